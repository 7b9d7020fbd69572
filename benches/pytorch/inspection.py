"""Adversarial training as a practitioner would write it, on folders of pictures: what `steadfast train --recipe auto` is compared
with.

    python benches/pytorch/inspection.py DATA OUT.safetensors --method pgd|trades|clean --epsilon 8 [--minutes 10] [--seed 0]

The network of `--arch mobile-resnet --stem half`, AdamW 2e-3 with one cycle, weight decay 0.05, batches of 32, flips and quarter
turns, label smoothing 0.1, classes drawn equally often with `--balance`; 3 steps of ε/2. With `--objects` `--stem cifar`, batches of
64, shifts by up to 4 pixels and flips. A fifth of the training images chooses the epoch by balanced accuracy under PGD-10. As many
epochs as the minutes allow, 80 at most. `steadfast evaluate OUT.safetensors --arch mobile-resnet --stem half --data DATA` (or
`--stem cifar`) measures what it writes.
"""

import argparse
import json
import os
import time

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from torch.nn import functional as F

from fat import build

parser = argparse.ArgumentParser()
parser.add_argument("data")
parser.add_argument("out")
parser.add_argument("--method", choices=["pgd", "trades", "clean"], default="pgd")
parser.add_argument("--epsilon", type=float, default=8, help="in 255ths")
parser.add_argument("--minutes", type=float, default=10)
parser.add_argument("--epochs", type=int, help="instead of minutes")
parser.add_argument("--objects", action="store_true", help="images of up to 40 pixels that have an up and down")
parser.add_argument("--balance", action="store_true")
parser.add_argument("--seed", type=int, default=0)
arguments = parser.parse_args()

BATCH, STEPS, BETA, SMOOTHING = 64 if arguments.objects else 32, 3, 6.0, 0.1
epsilon = arguments.epsilon / 255
torch.manual_seed(arguments.seed)
random = np.random.default_rng(arguments.seed)
classes = sorted(os.listdir(f"{arguments.data}/train"))


def read(part):
    files = [(f"{arguments.data}/{part}/{name}", label) for label, name in enumerate(classes)]
    files = [(f"{folder}/{file}", label) for folder, label in files for file in sorted(os.listdir(folder))]
    images = np.stack([np.atleast_3d(np.asarray(Image.open(path), np.float32)).transpose(2, 0, 1) / 255 for path, _ in files])
    return torch.from_numpy(images), torch.tensor([label for _, label in files])


images, labels = read("train")
validation = np.concatenate([random.permutation(np.flatnonzero(labels == k))[: max(1, int(labels.eq(k).sum()) // 5)] for k in range(len(classes))])
kept = np.setdiff1d(np.arange(len(labels)), validation)
val, (images, labels) = (images[validation], labels[validation]), (images[kept], labels[kept])
counts = np.bincount(labels, minlength=len(classes))
weights = 1 / counts[labels] if arguments.balance else np.ones(len(labels))

model = build("mobile-resnet", 16, images.shape[1], len(classes), "cifar" if arguments.objects else "half").to(memory_format=torch.channels_last)
decayed, others = [[p for p in model.parameters() if (p.dim() > 1) is many] for many in (True, False)]
optimizer = torch.optim.AdamW([{"params": decayed, "weight_decay": 0.05}, {"params": others, "weight_decay": 0}], lr=2e-3, fused=True)
steps = len(labels) // BATCH


def attack(x, start, step, number, loss):
    for _ in range(number):
        start = start.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(loss(model(start)), start)
        start = (start + step * gradient.sign()).clamp(x - epsilon, x + epsilon).clamp(0, 1)
    return start.detach()


def uniform(x):
    return (x + epsilon * (2 * torch.rand_like(x) - 1)).clamp(0, 1)


def turned(x):
    flip, down, turn = torch.rand(3, BATCH, 1, 1, 1) < 0.5
    x = torch.where(flip, x.flip(3), x)
    x = torch.where(down, x.flip(2), x)
    return torch.where(turn, x.transpose(2, 3), x)


def shifted(x, most=4):
    side = x.shape[2]
    x = torch.where(torch.rand(BATCH, 1, 1, 1) < 0.5, x.flip(3), x)
    at = torch.randint(2 * most + 1, (2, BATCH, 1)) + torch.arange(side)
    picks = torch.arange(BATCH)[:, None, None], at[0][:, :, None], at[1][:, None, :]
    return F.pad(x, [most] * 4).permute(0, 2, 3, 1)[picks].permute(0, 3, 1, 2)


def loss_of(x, y):
    if arguments.method == "clean":
        return F.cross_entropy(model(x), y, label_smoothing=SMOOTHING)
    if arguments.method == "pgd":
        x = attack(x, uniform(x), epsilon / 2, STEPS, lambda logits: F.cross_entropy(logits, y))
        return F.cross_entropy(model(x), y, label_smoothing=SMOOTHING)
    with torch.no_grad():
        before = F.softmax(model(x), 1)
    distance = lambda logits: F.kl_div(F.log_softmax(logits, 1), before, reduction="sum")
    moved = attack(x, x + 0.001 * torch.randn_like(x), epsilon / 2, STEPS, distance)
    logits = model(x)
    divergence = F.kl_div(F.log_softmax(model(moved), 1), F.softmax(logits, 1), reduction="batchmean")
    return F.cross_entropy(logits, y, label_smoothing=SMOOTHING) + BETA * divergence


def balanced(right, y):
    return float(np.mean([right[y == k].float().mean().item() for k in range(len(classes))]))


def validate():
    model.eval()
    x, y = val
    moved = attack(x, uniform(x), epsilon / 4, 10, lambda logits: F.cross_entropy(logits, y, reduction="sum"))
    with torch.no_grad():
        figures = [balanced(model(inputs).argmax(1) == y, y) for inputs in (x, moved)]
    model.train()
    return figures


started = time.perf_counter()
epochs, epoch, best, chosen = arguments.epochs or 80, 0, (-1.0, 0.0), None
while epoch < epochs:
    order = random.choice(len(labels), steps * BATCH, p=weights / weights.sum()) if arguments.balance else random.permutation(len(labels))
    for step in range(steps):
        progress = (epoch * steps + step + 1) / (epochs * steps)
        for group in optimizer.param_groups:
            group["lr"] = 2e-3 * max(min(progress / 0.3, (1 - progress) / 0.7), 1e-4)
        picks = order[step * BATCH :][:BATCH]
        x, y = images[picks], labels[picks]
        x = (shifted if arguments.objects else turned)(x).contiguous(memory_format=torch.channels_last)
        optimizer.zero_grad()
        loss_of(x, y).backward()
        optimizer.step()
    clean, robust = validate()
    epoch += 1
    if epoch == 1:
        second = time.perf_counter()
    if epoch == 3 and arguments.epochs is None:
        # The first epoch warms up: the pace is that of the next two.
        left = arguments.minutes * 57 - (time.perf_counter() - started)
        epochs = max(5, min(80, 3 + int(2 * left / (time.perf_counter() - second))))
    score = (clean, robust) if arguments.method == "clean" else (robust, clean)
    if score > best:
        best, chosen = score, {name: value.clone() for name, value in model.state_dict().items()}
    print(f"epoch {epoch}/{epochs}: validation, balanced: clean {clean:.3f}, PGD-10 {robust:.3f}", flush=True)

save_file({name: value.contiguous() for name, value in chosen.items()}, arguments.out)
seconds = time.perf_counter() - started
print(json.dumps({**vars(arguments), "epochs": epochs, "seconds": seconds, "validation": best}))
