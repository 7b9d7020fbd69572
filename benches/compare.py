#!/usr/bin/env python3
"""Steadfast beside PyTorch, onnxruntime and torchattacks: the same work in turn, one process per measurement.

    benches/compare.py step                           --rounds 5 --out step.csv
    benches/compare.py inspect  --bundle BUNDLE ...   --rounds 9 --out inspect.csv
    benches/compare.py evaluate --bundle BUNDLE ... [--data FILE]  --out evaluate.csv
    benches/compare.py layers [--arch A --width W --batch B]       --out layers.csv

Ours is `cargo bench -q --bench twins -- VERB ARGUMENTS`, theirs `benches/pytorch/twins.py VERB ARGUMENTS` in
each layout (`--layouts -`: in none, so that theirs can be another build of ours); what follows a lone `--` goes to theirs alone (`-- --device cuda --tf32 on`). A process counts
with its median, a side with the median over the rounds, theirs in the layout that is the faster. Ratios are
ours / theirs: below 1 ours is faster. The spread is that of the ratio over the rounds.
"""

import argparse
import csv
import datetime
import json
import os
import platform
import shlex
import subprocess
import sys
from statistics import median

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
# (arch, width, batch, steps, warm-up): about ten seconds a process on two cores.
STEPS = [("resnet18", 64, 32, 6, 1), ("resnet10", 8, 128, 50, 5), ("resnet10", 16, 128, 30, 3)]
SMOOTH = [("none", "closed"), ("b", "closed"), ("b", "open")]
COLUMNS = [
    "case", "ours_ms", "theirs_ms", "layout", "ratio", "ratio_min", "ratio_max",
    "ours_min_ms", "ours_max_ms", "theirs_min_ms", "theirs_max_ms", "ours_peak_mib", "theirs_peak_mib",
    "rounds",
]  # fmt: skip


def cases(a):
    """(label, arguments) of every process that each side runs once a round."""
    if a.verb == "step":
        for arch, width, batch, steps, warmup in STEPS:
            for smooth, gate in SMOOTH:
                label = f"{arch} w{width} b{batch} {smooth if smooth == 'none' else f'{smooth} {gate}'}"
                flags = f"--arch {arch} --width {width} --batch {batch} --smooth {smooth} --gate {gate}"
                yield label, [*flags.split(), "--steps", str(steps), "--warmup", str(warmup)]
    elif a.verb == "layers":
        flags = f"--arch {a.arch} --width {a.width} --batch {a.batch} --size {a.size}"
        yield f"layers of {a.arch} w{a.width} b{a.batch} at {a.size}x{a.size}", flags.split()
    for bundle in getattr(a, "bundle", []):
        name, path = os.path.basename(os.path.abspath(bundle)), os.path.abspath(bundle)
        if a.verb == "inspect":
            if a.files:
                yield f"{name} files", ["--bundle", path, "--files", os.path.abspath(a.files), "--repeats", str(a.repeats // 10)]
                continue
            for batch, repeats in (1, a.repeats), (64, max(1, a.repeats // 10)):
                flags = f"--batch {batch} --repeats {repeats}"
                yield f"{name} b{batch}", ["--bundle", path, *flags.split()]
        else:
            for attack in a.attack:
                flags = f"--images {a.images} --batch {a.batch} --attack {attack}"
                data = ["--data", os.path.abspath(a.data)] if a.data else []
                yield f"{name} {attack} x{a.images}", ["--bundle", path, *data, *flags.split()]


def measure(command, label):
    """(case, median milliseconds, peak MiB, versions) per line of JSON; a lone line goes by the label."""
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode or not lines:
        sys.exit(f"{shlex.join(command)}: exit {done.returncode}\n{done.stderr[-2000:]}")
    if len(lines) == 1:
        lines[0]["case"] = label
    return [(it["case"], median(it["milliseconds"]), it["peak_mib"], it["versions"]) for it in lines]


def row(case, times, peaks):
    """A line of the table from {side: milliseconds per round} and {side: peak MiB}."""
    ours = times.pop("ours")
    layout = min(times, key=lambda side: median(times[side]))
    theirs = times[layout]
    ratios = [a / b for a, b in zip(ours, theirs)]
    values = [
        case, median(ours), median(theirs), layout, median(ours) / median(theirs), min(ratios), max(ratios),
        min(ours), max(ours), min(theirs), max(theirs), peaks["ours"], peaks[layout], len(ours),
    ]  # fmt: skip
    return dict(zip(COLUMNS, values))


def machine():
    try:
        with open("/proc/cpuinfo") as file:
            return next(line.split(":", 1)[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def commit():
    def git(*arguments):
        return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True).stdout.strip()

    return git("rev-parse", "HEAD") + (" with changes" if git("status", "--porcelain") else "")


def write(path, facts, rows):
    with open(path, "w", newline="") as file:
        file.writelines(f"# {name}: {value}\n" for name, value in facts.items())
        table = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        table.writeheader()
        for values in rows:
            table.writerow({k: f"{v:.5g}" if isinstance(v, float) else v for k, v in values.items()})


def show(rows):
    width = max(len(it["case"]) for it in rows)
    print(f"{'case':{width}}    ours ms  theirs ms  layout  ratio  its spread   peak MiB ours  theirs")
    for it in rows:
        spread = f"{it['ratio_min']:.2f}..{it['ratio_max']:.2f}"
        print(
            f"{it['case']:{width}} {it['ours_ms']:10.3f} {it['theirs_ms']:10.3f}  {it['layout']:6} "
            f"{it['ratio']:6.2f}  {spread:11} {it['ours_peak_mib']:14.0f} {it['theirs_peak_mib']:7.0f}"
        )


def arguments(argv):
    verbatim = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=verbatim)
    verbs = parser.add_subparsers(dest="verb", required=True)
    theirs = shlex.join([sys.executable, os.path.join(ROOT, "benches/pytorch/twins.py")])
    for name in "step", "inspect", "evaluate", "layers":
        it = verbs.add_parser(name)
        it.add_argument("--rounds", type=int, default=5)
        it.add_argument("--out", required=True)
        it.add_argument("--threads", type=int, default=os.cpu_count())
        it.add_argument("--only", default="", help="cases whose label contains this")
        it.add_argument("--layouts", help="those of theirs to try, of inspect its runtimes [default: nchw,nhwc; onnxruntime,openvino]")
        it.add_argument("--ours", default="cargo bench -q --bench twins --", help="command before the verb")
        it.add_argument("--theirs", default=theirs, help="command before the verb")
        if name in ("inspect", "evaluate"):
            it.add_argument("--bundle", required=True, nargs="+")
        if name == "inspect":
            it.add_argument("--repeats", type=int, default=500, help="at batch 1; a tenth at batch 64 and of files")
            it.add_argument("--files", help="folder of images that are decoded and answered together")
        elif name == "evaluate":
            it.add_argument("--data")
            it.add_argument("--images", type=int, default=1000)
            it.add_argument("--batch", type=int, default=128)
            it.add_argument("--attack", default=["pgd-20"], nargs="+")
        elif name == "layers":
            it.add_argument("--arch", default="resnet18")
            it.add_argument("--width", type=int, default=64)
            it.add_argument("--batch", type=int, default=32)
            it.add_argument("--size", type=int, default=32, help="side of the images")
    return parser.parse_args(argv)


def main():
    argv = sys.argv[1:]
    split = argv.index("--") if "--" in argv else len(argv)
    a, extra = arguments(argv[:split]), argv[split + 1 :]
    ours, theirs = shlex.split(a.ours), shlex.split(a.theirs)
    # Of inspection: its runtimes.
    layouts = (a.layouts or ("onnxruntime,openvino" if a.verb == "inspect" else "nchw,nhwc")).split(",")
    facts = {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "commit": commit(),
        "command": shlex.join(["benches/compare.py", *argv]),
        "cpu": f"{machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.2f} before",
        "threads": a.threads,
    }
    rows = []
    for label, flags in cases(a):
        if a.only not in label:
            continue
        flags = [a.verb, *flags, "--threads", str(a.threads)]
        commands = {"ours": [*ours, *flags]}
        for layout in layouts:
            commands[layout] = [*theirs, *flags, *([] if layout == "-" else ["--layout", layout]), *extra]
        times, peaks = {}, {}
        for turn in range(a.rounds):
            # Both orders in turn, so that what drifts does not favour a side.
            for side in list(commands)[:: -1 if turn % 2 else 1]:
                for case, milliseconds, peak, versions in measure(commands[side], label):
                    times.setdefault(case, {}).setdefault(side, []).append(milliseconds)
                    highest = peaks.setdefault(case, {})
                    highest[side] = max(peak, highest.get(side, 0))
                    whose = "ours" if side == "ours" else "theirs"
                    facts[f"versions of {whose}"] = json.dumps(versions)
            print(f"{label}: round {turn + 1} of {a.rounds}", file=sys.stderr, flush=True)
        for case, sides in times.items():
            if missing := commands.keys() - sides.keys():
                sys.exit(f"{case}: not measured by {', '.join(missing)}; do they name cases differently?")
            rows.append(row(case, sides, peaks[case]))
        write(a.out, facts, rows)
    if not rows:
        sys.exit(f"--only {a.only}: no such case; known are: {'; '.join(label for label, _ in cases(a))}")
    show(rows)


if __name__ == "__main__":
    main()
