"""Compares what `steadfast export` wrote with `steadfast inspect`, on this machine and on emulated ones, and prints a table.

    steadfast export RUN --out BUNDLE --format embedded,onnx [--quantize int8 --data DATA]
    steadfast inspect BUNDLE PICTURES --json --logits --device cpu > answers.jsonl
    python benches/deployment/run.py BUNDLE answers.jsonl

Pictures have to have the size of the exported frames. Rows: largest difference of a logit from `inspect`, answers (label and
verdict) that differ, bytes of the model's file or of flash, bytes of memory, instructions of an image, milliseconds of an image on
one thread of this machine. What is not installed is left out.
"""

import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

bundle, answers = Path(sys.argv[1]), [json.loads(line) for line in open(sys.argv[2])]
here = Path(__file__).resolve().parent
manifest = json.loads((bundle / "manifest.json").read_text())
frames = np.stack([np.asarray(Image.open(answer["path"])) for answer in answers])
frames = frames if frames.ndim == 4 else frames[..., None]
expected = np.array([answer["logits"] for answer in answers])
said = [(answer["label"], {"pass": "pass", "reject": "REJECT"}.get(answer.get("verdict"), "-")) for answer in answers]
library = bundle / "embedded" / "c"
quantised = manifest.get("quantized")
precision = quantised["precision"] if quantised else "float32"
PICOLIBC = "--specs=picolibc.specs --oslib=semihost --crt0=hosted -Wl,--defsym=__flash=0 -Wl,--defsym=__flash_size=0x400000 -Wl,--defsym=__ram=0x20000000 -Wl,--defsym=__ram_size=0x400000 -Tpicolibc.ld".split()


def row(target, form, logits=None, said_here=None, size="", memory="", instructions="", milliseconds=""):
    far = differ = ""
    if logits is not None:
        far = f"{np.abs(logits - expected).max():.1e}"
        differ = sum(one != other for one, other in zip(said, said_here))
    print(f"| {target} | {form} | {far} | {differ} | {size} | {memory} | {instructions} | {milliseconds} |", flush=True)


def run(words, **options):
    done = subprocess.run(words, check=True, capture_output=True, text=True, **options)
    return done.stdout + done.stderr


def read(printed):
    lines = [line.split(" ") for line in printed.splitlines()[1:]]
    assert printed.startswith("the self-test passed") and len(lines) == len(answers), printed[:200]
    return np.array([[float(word) for word in line[2:]] for line in lines]), [(line[1], line[0]) for line in lines]


def there(*programs):
    return all(shutil.which(program) for program in programs)


print(f"{len(answers)} pictures, {bundle.name}, {precision}\n")
print("| target | format | logit | answers | bytes | memory | instructions | ms |")
print("|---|---|---|---|---|---|---|---|")
with tempfile.TemporaryDirectory() as folder:
    folder = Path(folder)
    (folder / "frames.bin").write_bytes(frames.tobytes())
    header = (library / "steadfast.h").read_text()
    arena = int(header.split("STEADFAST_ARENA_BYTES ")[1].split()[0])

    def built(compiler, source, *flags):
        program = folder / "program"
        run([*compiler, "-std=c99", "-O2", f"-I{library}", str(source), str(library / "steadfast.c"), "-o", str(program), "-lm", *flags])
        return str(program)

    example = here.parent.parent / "examples" / "embedded" / "main.c"
    if there("gcc"):
        program = built(["gcc"], example)
        started = time.perf_counter()
        result = read(run([program], cwd=folder))
        took = 1000 * (time.perf_counter() - started) / len(answers)
        row("C99, gcc, this machine", precision, *result, size=(library / "steadfast.c").stat().st_size, memory=arena, milliseconds=f"{took:.1f}")
    if there("aarch64-linux-gnu-gcc", "qemu-aarch64"):
        program = built(["aarch64-linux-gnu-gcc"], example, "-static")
        row("C99, Cortex-A (aarch64, emulated)", precision, *read(run(["qemu-aarch64", program], cwd=folder)), memory=arena)
    if there("arm-none-eabi-gcc", "qemu-system-arm"):
        for core, float_unit, board in [("cortex-m4", "fpv4-sp-d16", "mps2-an386"), ("cortex-m7", "fpv5-d16", "mps2-an500")]:
            compiler = ["arm-none-eabi-gcc", f"-mcpu={core}", "-mthumb", "-mfloat-abi=hard", f"-mfpu={float_unit}", "-mfp16-format=ieee"]
            emulator = ["qemu-system-arm", "-M", board, "-nographic", "-semihosting-config", "enable=on,target=native", "-kernel"]
            program = built([*compiler, *PICOLIBC], example)
            result = read(run([*emulator, program], cwd=folder))
            program = built([*compiler, *PICOLIBC], here / "instructions.c")
            counted = int(run([*emulator[:3], "-icount", "shift=0", *emulator[3:], program]))
            run([*compiler, "--specs=picolibc.specs", "-std=c99", "-O2", f"-I{library}", "-c", str(library / "steadfast.c"), "-o", str(folder / "o")])
            sizes = run(["arm-none-eabi-size", str(folder / "o")]).splitlines()[1].split()
            row(f"C99, {core} (emulated)", precision, *result, size=int(sizes[0]) + int(sizes[1]), memory=arena, instructions=f"{counted / 1e6:.1f} M")

good = manifest["good"]


def answers_of(logits, passes):
    labels = [manifest["labels"][index] for index in logits.argmax(1)]
    verdicts = ["-"] * len(labels) if passes is None else ["pass" if passed else "REJECT" for passed in np.ravel(passes)]
    return list(zip(labels, verdicts))


suffix = f".{precision}" if quantised else ""
for form, name in [("float32", "model.onnx"), (precision, f"model{suffix}.onnx")][: 2 if quantised else 1]:
    path = str(bundle / name)
    try:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        started = time.perf_counter()
        seen = [session.run(None, {"frame": frame[None]}) for frame in frames]
        took = 1000 * (time.perf_counter() - started) / len(frames)
        logits = np.concatenate([one[0] for one in seen])
        passes = np.concatenate([np.ravel(one[2]) for one in seen]) if good else None
        row(f"onnxruntime {onnxruntime.__version__}", form, logits, answers_of(logits, passes), size=Path(path).stat().st_size, milliseconds=f"{took:.1f}")
    except ImportError:
        pass
    try:
        import openvino

        core = openvino.Core()
        network = core.compile_model(core.read_model(path), "CPU", {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1})
        started = time.perf_counter()
        seen = [network({"frame": frame[None]}) for frame in frames]
        took = 1000 * (time.perf_counter() - started) / len(frames)
        logits = np.concatenate([one["logits"] for one in seen])
        passes = np.concatenate([np.ravel(one["passes"]) for one in seen]) if good else None
        row(f"OpenVINO {openvino.__version__.split('-')[0]}", form, logits, answers_of(logits, passes), size=Path(path).stat().st_size, milliseconds=f"{took:.1f}")
    except ImportError:
        pass
