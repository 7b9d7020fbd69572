"""Reads a bundle with numpy and safetensors alone, runs its small-cnn, and checks its golden answers.

    python examples/read_bundle.py exports/reference
"""

import json
import sys

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from safetensors.numpy import load_file


def conv3x3(x, weight, stride):
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
    windows = sliding_window_view(padded, (3, 3), axis=(2, 3))[:, :, ::stride, ::stride]
    return np.einsum("nchwij,ocij->nohw", windows, weight, optimize=True)


def batch_norm(x, w, name):
    scale = w[f"{name}.weight"] / np.sqrt(w[f"{name}.running_var"] + 1e-5)
    shift = w[f"{name}.bias"] - w[f"{name}.running_mean"] * scale
    return x * scale[:, None, None] + shift[:, None, None]


def small_cnn(x, w):
    for layer, stride in [(1, 1), (2, 2), (3, 2), (4, 1)]:
        x = np.maximum(batch_norm(conv3x3(x, w[f"conv{layer}.weight"], stride), w, f"bn{layer}"), 0)
    return x.mean((2, 3)) @ w["linear.weight"].T + w["linear.bias"]


folder = sys.argv[1] if len(sys.argv) > 1 else "exports/reference"
with open(f"{folder}/manifest.json") as file:
    manifest = json.load(file)
assert manifest["schema"] == "steadfast-bundle/1", manifest["schema"]
assert manifest["model"]["arch"] == "small-cnn", "this example only knows the small-cnn"
weights = load_file(f"{folder}/model.safetensors")
golden = load_file(f"{folder}/golden.safetensors")

logits = small_cnn(golden["inputs"], weights)
difference = np.abs(logits - golden["logits"]).max()
print("labels:", ", ".join(manifest["labels"]), "- good:", ", ".join(manifest["good"]))
print("robust to:", manifest["threat_model"]["norm"], manifest["threat_model"]["epsilon"])
print("golden predictions:", [manifest["labels"][i] for i in logits.argmax(1)])
print(f"largest difference of a logit: {difference:.1e}")
assert difference < 1e-3 and (logits.argmax(1) == golden["logits"].argmax(1)).all()
