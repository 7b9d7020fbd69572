"""Measures an exported CIFAR-10 bundle with PyTorch, on the images and from the random starts of `steadfast evaluate`.

    steadfast evaluate BUNDLE --data CIFAR10 --limit 1000 --attack clean,fgsm,pgd-20 --json > evaluation.json
    python tests/golden/compare.py BUNDLE CIFAR10 evaluation.json      (torch, numpy, safetensors)
"""

import json
import sys

import numpy as np
import torch
from safetensors.torch import load_file
from torch.nn import functional as F

from twins import load_bundle, permutation, pgd, threefry


bundle, data, evaluation = sys.argv[1:]
with open(evaluation) as file:
    rows = {row["attack"]: row for row in json.load(file)["rows"]}
count = rows["clean"]["examples"]
torch.set_num_threads(2)
model, manifest = load_bundle(bundle)

golden = load_file(f"{bundle}/golden.safetensors")
with torch.no_grad():
    difference = (model(golden["inputs"]) - golden["logits"]).abs().max().item()
print(f"golden logits: largest difference {difference:.1e}")

records = np.fromfile(f"{data}/test_batch.bin", np.uint8).reshape(-1, 3073)
kept = np.sort(permutation(0x11, len(records))[:count])
labels = torch.from_numpy(records[kept, 0].astype(np.int64))
images = torch.from_numpy(records[kept, 1:].reshape(-1, 3, 32, 32).astype(np.float32) * np.float32(1 / 255))

epsilon, step = 8 / 255, 2 / 255
key = threefry((0, 0), 0, 0)
example, pixel = np.meshgrid(np.arange(count, dtype=np.uint32), np.arange(3072, dtype=np.uint32), indexing="ij")
word, _ = threefry(key, example, pixel)
noise = torch.from_numpy((word >> np.uint32(8)).astype(np.float32) / 2**23 - 1).reshape(images.shape)
start = (images + epsilon * noise).clamp(0, 1)


def accuracy(x):
    with torch.no_grad():
        return (model(x).argmax(1) == labels).float().mean().item()


def batched(attack):
    return torch.cat([attack(s) for s in torch.arange(count).split(128)])


def one_step(s):
    """FGSM on every image, also on those misclassified already."""
    x = images[s].clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad(F.cross_entropy(model(x), labels[s], reduction="sum"), x)
    return (images[s] + epsilon * gradient.sign()).clamp(0, 1)


fgsm = batched(one_step)
pgd_20 = batched(lambda s: pgd(model, images[s], labels[s], epsilon, step, 20, start[s]))
for name, seen in [("clean", accuracy(images)), ("fgsm", accuracy(fgsm)), ("pgd-20", accuracy(pgd_20))]:
    print(f"{name:7} steadfast {100 * rows[name]['accuracy']:.1f} %  pytorch {100 * seen:.1f} %")
