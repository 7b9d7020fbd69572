"""Classifies pictures with the ONNX file of a bundle: onnxruntime, Pillow and numpy alone.

    python examples/onnx_inspect.py BUNDLE/model.onnx PICTURE...
"""

import json
import sys

import numpy as np
import onnxruntime
from PIL import Image

session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
labels = json.loads(session.get_modelmeta().custom_metadata_map["labels"])
_, height, width, channels = session.get_inputs()[0].shape
for path in sys.argv[2:]:
    picture = Image.open(path).convert("L" if channels == 1 else "RGB")
    if picture.size != (width, height):
        sys.exit(f"{path}: {picture.size}, but this file takes frames of {(width, height)}: export with --frame")
    frame = np.asarray(picture, np.uint8).reshape(1, height, width, channels)
    answer = {output.name: value[0] for output, value in zip(session.get_outputs(), session.run(None, {"frame": frame}))}
    verdict = [("pass" if answer["passes"] else "REJECT")] if "passes" in answer else []
    best = int(np.argmax(answer["logits"]))
    print(f"{path}:", *verdict, labels[best], f"({answer['probabilities'][best]:.0%})")
