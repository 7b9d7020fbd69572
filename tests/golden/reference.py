"""Measures an exported bundle with the authors' AutoAttack and with torchattacks, on the images of an evaluation of it, and
prints both beside each other.

    pip install torch numpy pillow safetensors torchattacks git+https://github.com/fra31/auto-attack
    steadfast evaluate BUNDLE --data DATA --limit 500 --json --attack clean,fgsm,pgd-20-0,mi-fgsm,apgd-ce,apgd-dlr,apgd-t,fab-t,square,autoattack > evaluation.json
    python tests/golden/reference.py BUNDLE DATA evaluation.json

DATA: CIFAR-10's binary batches, or folders of grey images.
"""

import json
import sys
import time
from pathlib import Path

import numpy as np
import torch
import torchattacks
from autoattack import AutoAttack
from PIL import Image

from twins import load_bundle, permutation, pgd


def read(folder):
    """Images [n, channels, height, width] in [0, 1] and labels of the test part."""
    batch = folder / "test_batch.bin"
    if batch.exists():
        records = np.fromfile(batch, np.uint8).reshape(-1, 3073)
        images, labels = records[:, 1:].reshape(-1, 3, 32, 32), records[:, 0]
    else:
        files = sorted((folder / "test").glob("*/*.*"))
        names = sorted({file.parent.name for file in files})
        images = np.stack([np.asarray(Image.open(file).convert("L"))[None] for file in files])
        labels = np.array([names.index(file.parent.name) for file in files])
    scaled = torch.from_numpy(images.astype(np.float32) * np.float32(1 / 255))
    return scaled, torch.from_numpy(labels.astype(np.int64))


bundle, data, evaluation = sys.argv[1], Path(sys.argv[2]), json.load(open(sys.argv[3]))
rows = {row["attack"]: row for row in evaluation["rows"]}
count = rows["clean"]["examples"]
above, below = evaluation["epsilon"].split("/")
epsilon = float(above) / float(below)
model, _ = load_bundle(bundle)
model.eval()
for parameter in model.parameters():
    parameter.requires_grad_(False)
images, labels = read(data)
if count < len(images):
    kept = np.sort(permutation(0x11, len(images))[:count])
    images, labels = images[kept], labels[kept]


def accuracy(x):
    return (model(x).argmax(1) == labels).float().mean().item()


def plain(attack):
    return lambda: torch.cat([attack(images[s], labels[s]) for s in torch.arange(count).split(128)])


def authors(names):
    attack = AutoAttack(model, norm="Linf", eps=epsilon, version="custom", attacks_to_run=names, device="cpu", verbose=False)
    # Its own numbers; with few classes it would look for targets that are not there.
    others = len(evaluation["classes"]) - 1
    attack.apgd.n_restarts = attack.fab.n_restarts = 1
    attack.apgd_targeted.n_target_classes = attack.fab.n_target_classes = min(9, others)
    return attack.run_standard_evaluation(images, labels, bs=128)


attacks = {
    "clean": lambda: images,
    "fgsm": plain(torchattacks.FGSM(model, eps=epsilon)),
    "pgd-20-0": lambda: torch.cat(
        [pgd(model, images[s], labels[s], epsilon, epsilon / 4, 20, images[s]) for s in torch.arange(count).split(128)]
    ),
    "mi-fgsm": plain(torchattacks.MIFGSM(model, eps=epsilon, alpha=epsilon / 4, steps=10, decay=1.0)),
}
for name in ["apgd-ce", "apgd-dlr", "apgd-t", "fab-t", "square"]:
    attacks[name] = lambda name=name: authors([name])
attacks["autoattack"] = lambda: authors(["apgd-ce", "apgd-t", "fab-t", "square"])

right = model(images).argmax(1) == labels
print(f"{bundle}: {count} images at {evaluation['epsilon']}")
print(f"{'attack':12} {'steadfast':>10} {'reference':>10} {'seconds':>9} {'seconds':>9}")
for name, attack in attacks.items():
    if name not in rows:
        continue
    started = time.time()
    adversarial = attack()
    seconds = time.time() - started
    standing = model(adversarial).argmax(1) == labels
    if name not in ["clean", "fgsm", "pgd-20-0", "mi-fgsm"]:
        standing &= right
    ours, theirs = 100 * rows[name]["accuracy"], 100 * standing.float().mean().item()
    print(f"{name:12} {ours:9.1f}% {theirs:9.1f}% {rows[name]['seconds']:9.1f} {seconds:9.1f}", flush=True)
