"""Compares the ONNX files of a bundle with `steadfast inspect --json --logits`, in onnxruntime and, where it is installed, OpenVINO.

    python tests/golden/onnx_runtimes.py BUNDLE ANSWERS.jsonl [int8|float16]

Pictures whose size or channels are not those of `model.onnx` are left out. Prints the largest difference of a logit and how many
verdicts differ; exits with 1 where a verdict differs or a logit is further away than 1e-4, in resized frames than 2e-3: sums in
another order round a tie to another grey level. With `int8` or `float16` it is the quantised network, whose answers the C library
gave: those of int8 may differ by a few steps, because runtimes round halves to even and sum in float32.
"""

import json
import sys

import numpy as np
import onnx
import onnxruntime
from PIL import Image
from safetensors.numpy import load_file

folder, answers, *quantised = sys.argv[1:]
suffix = f".{quantised[0]}.onnx" if quantised else ".onnx"
models = {name: f"{folder}/{name}{suffix}" for name in ("network", "model")}
for path in models.values():
    onnx.checker.check_model(onnx.load(path), full_check=True)


def in_onnxruntime(path):
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return lambda name, value: dict(zip(names, session.run(None, {name: value})))


runtimes = {"onnxruntime": in_onnxruntime}
try:
    import openvino

    def in_openvino(path):
        core = openvino.Core()
        compiled = core.compile_model(core.read_model(path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        names = [output.any_name for output in compiled.outputs]
        return lambda name, value: dict(zip(names, compiled({name: value}).values()))

    runtimes["openvino"] = in_openvino
except ImportError:
    pass

golden = load_file(f"{folder}/golden.safetensors")
lines = [json.loads(line) for line in open(answers)]
shape = [dim.dim_value for dim in onnx.load(models["model"]).graph.input[0].type.tensor_type.shape.dim][1:]
frames, expected = [], []
for line in lines:
    picture = np.asarray(Image.open(line["path"]))
    picture = picture[..., None] if picture.ndim == 2 else picture
    if list(picture.shape) == shape and picture.dtype == np.uint8:
        frames.append(picture)
        expected.append(line)
resized = shape[:2] != list(golden["inputs"].shape[2:])
failed = not frames
for name, start in runtimes.items():
    logits = start(models["network"])("image", golden["inputs"])["logits"]
    distance = np.abs(logits - golden["logits"]).max()
    seen = start(models["model"])("frame", np.stack(frames)) if frames else {}
    far = np.abs(seen["logits"] - np.array([line["logits"] for line in expected])).max() if frames else np.nan
    verdicts = [bool(passes) for passes in np.ravel(seen.get("passes", []))]
    differ = sum(passes != (line["verdict"] == "pass") for passes, line in zip(verdicts, expected))
    print(f"{name}: golden inputs {distance:.1e}; {len(frames)} frames of {shape}: {far:.1e}, {differ} of {len(verdicts)} verdicts differ")
    if quantised:
        # The golden logits are those of float32.
        failed |= not far < (2e-3 if quantised == ["float16"] else 5e-2)
    else:
        failed |= not (distance < 1e-4 and far < (2e-3 if resized else 1e-4) and differ == 0)
sys.exit(failed)
