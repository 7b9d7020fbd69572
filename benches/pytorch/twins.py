"""What others need for the work of Steadfast: one measurement per call, one line of JSON on stdout per case.

    python benches/pytorch/twins.py step --arch resnet18 --width 64 --batch 32 --smooth b --gate open
    python benches/pytorch/twins.py inspect --bundle exports/reference --batch 1
    python benches/pytorch/twins.py evaluate --bundle exports/reference --images 1000 --attack pgd-20
    python benches/pytorch/twins.py layers --arch resnet18 --width 64 --batch 32 --layout nhwc

`step` is a training step in PyTorch, `inspect` one call of onnxruntime or OpenVINO, `evaluate` a whole attack by
torchattacks, `layers` every convolution of a network with its two gradients. Needs torch, numpy, safetensors;
onnx, onnxscript and onnxruntime; openvino; opencv-python-headless; torchattacks.
"""

import argparse
import hashlib
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from fractions import Fraction
from importlib.metadata import version

import numpy as np

# torch is imported where it is used: it would count in the memory of `inspect`, which runs without it.


def prepare(a):
    import torch

    torch.manual_seed(0)
    torch.set_num_threads(a.threads)
    torch.set_num_interop_threads(1)
    torch.backends.cudnn.benchmark = True
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = a.tf32 == "on"
    return torch, torch.device(a.device)


def clock(run, repeats, warmup, device="cpu", block=1):
    """Milliseconds of every repeat after the warm-up; `block` are timed as one, with no wait between."""
    cuda = str(device).startswith("cuda")
    if cuda:
        import torch
    for _ in range(warmup):
        run()
    if cuda:
        torch.cuda.synchronize()
        # The search for the fastest kernels takes more than they do.
        torch.cuda.reset_peak_memory_stats()
    times = []
    for _ in range(0, repeats, block):
        started = time.perf_counter()
        for _ in range(block):
            run()
        if cuda:
            torch.cuda.synchronize()
        times.append(1000 * (time.perf_counter() - started) / block)
    return times


def report(case, milliseconds, packages, device="cpu"):
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    if str(device).startswith("cuda"):
        import torch

        peak = torch.cuda.max_memory_allocated() / 2**20
    versions = {"python": sys.version.split()[0]} | {name: version(name) for name in packages}
    line = {"case": case, "milliseconds": [round(t, 4) for t in milliseconds], "peak_mib": round(peak, 1)}
    print(json.dumps(line | {"versions": versions}), flush=True)


def step(a):
    torch, device = prepare(a)
    from fat import Trainer, build

    images, classes = 2048, 10
    pixels = torch.randint(0, 256, (images, 3, a.size, a.size), dtype=torch.uint8).to(device)
    labels = torch.randint(0, classes, (images,)).to(device)
    model = build(a.arch, a.width, 3, classes).to(device)
    trainer = Trainer(model, pixels, labels, a.layout, a.amp, a.compile)
    benign = a.smooth == "b"
    # A stride of zero: the gate fires in every step.
    gate = (0.0, *torch.full((2,), 2.0, device=device), 0.3, 1.0) if benign and a.gate == "open" else None
    order = [picks for picks in torch.randperm(images, device=device).split(a.batch) if len(picks) == a.batch]
    fixed = trainer.draw(order[0]) if a.no_input else None
    done = 0

    def run():
        nonlocal done
        trainer.step(*(fixed or trainer.draw(order[done % len(order)])), benign, gate)
        done += 1

    times = clock(run, a.steps, a.warmup, device, block=10 if device.type == "cuda" else 1)
    smooth = f"b {a.gate}" if benign else "none"
    size = f" {a.size}x{a.size}" if a.size != 32 else ""
    case = f"{a.arch} w{a.width} b{a.batch}{size} {smooth}{' no-input' if a.no_input else ''}"
    report(case, times, ["torch"], device)


def manifest_of(bundle):
    with open(f"{bundle}/manifest.json") as file:
        return json.load(file)


def shape_of(manifest):
    return [manifest["input"][side] for side in ("channels", "height", "width")]


def load(bundle):
    from fat import build
    from safetensors.torch import load_file

    manifest = manifest_of(bundle)
    model = build(**manifest["model"])
    model.load_state_dict(load_file(f"{bundle}/model.safetensors"), strict=True)
    return model.eval(), manifest


def export(a):
    """Writes the bundle as ONNX."""
    torch, _ = prepare(a)
    model, manifest = load(a.bundle)
    images = torch.rand(a.batch, *shape_of(manifest))
    part = f"{a.out}.{os.getpid()}"
    settings = {"opset_version": 18, "optimize": True, "external_data": False, "verbose": False}
    try:
        torch.onnx.export(model, (images,), part, dynamo=True, **settings)
    except ImportError as error:
        # PyTorch's exporter needs packages that it does not bring.
        sys.exit(f"{error}: pip install onnx onnxscript")
    os.replace(part, a.out)


def inspect(a):
    """Logits by onnxruntime or OpenVINO, of random images or of files with their decoding by OpenCV."""
    with open(f"{a.bundle}/model.safetensors", "rb") as file:
        key = hashlib.sha256(file.read()).hexdigest()[:16]
    manifest = manifest_of(a.bundle)
    shape = shape_of(manifest)
    files = sorted(entry.path for entry in os.scandir(a.files)) if a.files else []
    batch = len(files) or a.batch
    onnx = f"{tempfile.gettempdir()}/steadfast-onnx/{key}-{batch}-torch{version('torch')}.onnx"
    if not os.path.exists(onnx):
        os.makedirs(os.path.dirname(onnx), exist_ok=True)
        # In a process of its own, for the same reason as the late imports.
        flags = ["--bundle", a.bundle, "--batch", str(batch), "--threads", str(a.threads), "--out", onnx]
        if subprocess.run([sys.executable, __file__, "export", *flags], stdout=sys.stderr).returncode:
            sys.exit("the ONNX of the bundle was not made, see above")
    run = {"onnxruntime": by_onnxruntime, "openvino": by_openvino}[a.layout](onnx, a.threads)
    if files:
        packages = [a.layout, "opencv-python-headless"]
        read = reader(shape, a.threads)
        times = clock(lambda: run(read(files)), a.repeats, max(3, a.repeats // 10))
    else:
        packages = [a.layout]
        images = np.random.default_rng(0).random((batch, *shape), np.float32)
        times = clock(lambda: run(images), a.repeats, max(3, a.repeats // 10))
    report(f"{name_of(a.bundle)} b{batch}{' files' if files else ''}", times, packages)


def by_onnxruntime(onnx, threads):
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    session = onnxruntime.InferenceSession(onnx, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda images: session.run(None, {name: images})


def by_openvino(onnx, threads):
    import openvino

    settings = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
    request = openvino.compile_model(onnx, "CPU", settings).create_infer_request()
    return lambda images: request.infer([images])


def reader(shape, threads):
    """A function from files to images [files, channels, height, width] in [0, 1]."""
    from concurrent.futures import ThreadPoolExecutor

    import cv2

    cv2.setNumThreads(1)
    pool = ThreadPoolExecutor(threads)
    channels, height, width = shape

    def one(path):
        image = cv2.imread(path, cv2.IMREAD_COLOR if channels == 3 else cv2.IMREAD_GRAYSCALE)
        if image.shape[:2] != (height, width):
            image = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
        if channels == 3:
            return np.ascontiguousarray(image[:, :, ::-1].transpose(2, 0, 1), np.float32) / 255
        return (image.astype(np.float32) / 255)[None]

    return lambda files: np.stack(list(pool.map(one, files)))


def name_of(bundle):
    return os.path.basename(os.path.abspath(bundle))


def read_images(path, shape):
    """Images in [0, 1] and labels, None where the file has none: CIFAR-10's binary records or safetensors."""
    import torch
    from safetensors.torch import load_file

    if path is None:
        return None, None
    if path.endswith(".bin"):
        records = torch.from_numpy(np.fromfile(path, np.uint8).reshape(-1, 1 + int(np.prod(shape))))
        images, labels = records[:, 1:].reshape(-1, *shape), records[:, 0]
    else:
        tensors = load_file(path)
        images, labels = tensors["images" if "images" in tensors else "inputs"], tensors.get("labels")
    images = images / 255 if images.dtype == torch.uint8 else images
    return images, None if labels is None else labels.long()


HARMLESS = 1e-5


def known_attack(name, model, epsilon, device):
    """An attack of torchattacks, or of AutoAttack's authors, and the name of its package."""
    import torchattacks

    kind, _, steps = name.partition("-")
    if kind == "pgd" and steps.isdigit():
        return torchattacks.PGD(model, eps=epsilon, alpha=epsilon / 4, steps=int(steps), random_start=True), "torchattacks"
    if name == "fgsm":
        return torchattacks.FGSM(model, eps=epsilon), "torchattacks"
    if name == "mi-fgsm":
        return torchattacks.MIFGSM(model, eps=epsilon, alpha=epsilon / 4, steps=10), "torchattacks"
    from autoattack.autopgd_base import APGDAttack, APGDAttack_targeted
    from autoattack.fab_pt import FABAttack_PT
    from autoattack.square import SquareAttack

    settings = {"norm": "Linf", "eps": epsilon, "device": device}
    authors = {
        "apgd-ce": lambda: APGDAttack(model, loss="ce", **settings),
        "apgd-dlr": lambda: APGDAttack(model, loss="dlr", **settings),
        "apgd-t": lambda: APGDAttack_targeted(model, n_target_classes=min(9, classes_of(model) - 1), **settings),
        "fab-t": lambda: FABAttack_PT(model, targeted=True, n_target_classes=min(9, classes_of(model) - 1), **settings),
        "square": lambda: SquareAttack(model, resc_schedule=False, **settings),
    }
    if name not in authors:
        sys.exit(f"--attack {name}: this twin knows pgd-N, fgsm, mi-fgsm, {', '.join(authors)}")
    return authors[name]().perturb, "autoattack"


def classes_of(model):
    return [parameter for parameter in model.parameters()][-1].numel()


def evaluate(a):
    torch, device = prepare(a)
    from fat import FORMATS

    model, manifest = load(a.bundle)
    memory_format = FORMATS[a.layout]
    model = model.to(device, memory_format=memory_format)
    images, labels = read_images(a.data, shape_of(manifest))
    images = torch.rand(a.images, *shape_of(manifest)) if images is None else images[: a.images]
    images = images.to(device, memory_format=memory_format)
    model = torch.compile(model) if a.compile else model
    # Its own answers, and a budget at which none of them changes: all work is done, by whoever stops early too.
    with torch.no_grad():
        labels = torch.cat([model(part).argmax(1) for part in images.split(a.batch)])
    attack, by = known_attack(a.attack, model, HARMLESS, device)
    correct = torch.zeros((), dtype=torch.int64, device=device)

    def batch(images, labels):
        with torch.autocast(device.type, torch.bfloat16, enabled=a.amp):
            adversarial = attack(images, labels)
            with torch.no_grad():
                correct.add_((model(adversarial).argmax(1) == labels).sum())

    def run():
        correct.zero_()
        for part in zip(images.split(a.batch), labels.split(a.batch)):
            batch(*part)

    clock(lambda: batch(images[: a.batch], labels[: a.batch]), 1, 0, device)
    times = clock(run, 1, 0, device)
    print(f"{correct.item()} of {len(images)} correct under {a.attack}", file=sys.stderr)
    report(f"{name_of(a.bundle)} {a.attack} x{len(images)}", times, ["torch", by], device)


def layers(a):
    torch, device = prepare(a)
    from fat import FORMATS, build

    memory_format, seen = FORMATS[a.layout], {}
    model = build(a.arch, a.width, 3, 10)

    def note(conv, inputs):
        seen.setdefault((*conv.weight.shape, conv.stride[0], *inputs[0].shape[2:]), conv)

    for module in model.modules():
        if isinstance(module, torch.nn.Conv2d):
            module.register_forward_pre_hook(note)
    with torch.no_grad():
        model(torch.rand(1, 3, a.size, a.size))
    backward, dtype = torch.ops.aten.convolution_backward, torch.bfloat16 if a.amp else torch.float32
    block = 10 if device.type == "cuda" else 1
    for (outputs, inputs, rows, columns, stride, height, width), conv in seen.items():
        x = torch.rand(a.batch, inputs, height, width).to(device, dtype, memory_format=memory_format)
        weight = conv.weight.detach().to(device, dtype, memory_format=memory_format)
        settings = ([stride] * 2, conv.padding, [1, 1])
        y = torch.conv2d(x, weight, None, *settings)
        gradient = torch.rand_like(y)

        def back(mask):
            return backward(gradient, x, weight, None, *settings, False, [0, 0], 1, mask)

        directions = {
            "forward": lambda: torch.conv2d(x, weight, None, *settings),
            "input-gradient": lambda: back([True, False, False]),
            "weight-gradient": lambda: back([False, True, False]),
        }
        for direction, run in directions.items():
            with torch.no_grad():
                times = clock(run, a.repeats, 2, device, block)
            case = f"{outputs}x{inputs}x{rows}x{columns} s{stride} {height}x{width} {direction}"
            report(case, times, ["torch"], device)


def arguments():
    verbatim = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=verbatim)
    verbs = parser.add_subparsers(dest="verb", required=True)

    def verb(name, run, *shared):
        it = verbs.add_parser(name, parents=shared, description=run.__doc__)
        it.set_defaults(run=run)
        it.add_argument("--threads", type=int, default=os.cpu_count())
        return it

    machine = argparse.ArgumentParser(add_help=False)
    machine.add_argument("--layout", choices=["nchw", "nhwc"], default="nchw")
    machine.add_argument("--device", default="cpu")
    machine.add_argument("--tf32", choices=["on", "off"], default="off")
    machine.add_argument("--amp", action="store_true", help="bfloat16 where autocast allows it")
    machine.add_argument("--compile", action="store_true")
    network = argparse.ArgumentParser(add_help=False)
    network.add_argument("--arch", choices=["resnet18", "resnet10", "small-cnn"], default="resnet18")
    network.add_argument("--width", type=int, default=64)
    network.add_argument("--batch", type=int, default=32)
    network.add_argument("--size", type=int, default=32, help="side of the images")
    bundle = argparse.ArgumentParser(add_help=False)
    bundle.add_argument("--bundle", required=True)

    it = verb("step", step, machine, network)
    it.add_argument("--smooth", choices=["none", "b"], default="none")
    it.add_argument("--gate", choices=["open", "closed"], default="closed")
    it.add_argument("--steps", type=int, default=20)
    it.add_argument("--warmup", type=int, default=3)
    it.add_argument("--no-input", action="store_true", help="one batch, drawn beforehand, for all steps")
    it = verb("inspect", inspect, bundle)
    it.add_argument("--layout", choices=["onnxruntime", "openvino"], default="onnxruntime")
    it.add_argument("--files", help="folder of images that are decoded and answered together")
    it.add_argument("--batch", type=int, default=1)
    it.add_argument("--repeats", type=int, default=200)
    it = verb("export", export, bundle)
    it.add_argument("--batch", type=int, default=1)
    it.add_argument("--out", required=True)
    it.set_defaults(tf32="off", device="cpu")
    it = verb("evaluate", evaluate, machine, bundle)
    it.add_argument("--data", help="FILE.bin of CIFAR-10, or FILE.safetensors with images and perhaps labels")
    it.add_argument("--images", type=int, default=1000)
    it.add_argument("--batch", type=int, default=128)
    it.add_argument("--attack", default="pgd-20")
    it = verb("layers", layers, machine, network)
    it.add_argument("--repeats", type=int, default=10)
    return parser.parse_args()


if __name__ == "__main__":
    chosen = arguments()
    chosen.run(chosen)
