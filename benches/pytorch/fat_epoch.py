"""The same training step as `steadfast train`, in plain PyTorch: seconds per epoch on CIFAR-10 batches.

    python benches/pytorch/fat_epoch.py CIFAR10 [--smooth none|b] [--epochs 3] [--limit N] [--device cuda|cpu]

FGSM-RS at 8/255 on ResNet-18, batch 128, float32, data on the device; with `b`, a benign forward pass and the gate,
whose backward pass runs when it is open.
"""

import argparse
import glob
import os
import sys
import time

import numpy as np
import torch
from torch.nn import functional as F

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "../../tests/golden"))
from twins import build  # noqa: E402

parser = argparse.ArgumentParser()
parser.add_argument("data")
parser.add_argument("--smooth", choices=["none", "b"], default="none")
parser.add_argument("--epochs", type=int, default=3)
parser.add_argument("--limit", type=int)
parser.add_argument("--batch-size", type=int, default=128)
parser.add_argument("--arch", default="resnet18")
parser.add_argument("--width", type=int, default=64)
parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
arguments = parser.parse_args()

device = torch.device(arguments.device)
torch.backends.cudnn.benchmark = True
torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
batches = sorted(glob.glob(f"{arguments.data}/data_batch_*.bin"))
records = np.concatenate([np.fromfile(path, np.uint8).reshape(-1, 3073) for path in batches])[: arguments.limit]
# As many images as remain there when the validation part is cut.
records = records[: len(records) - round(len(records) * min(max(500 / len(records), 0.02), 0.2))]
pixels = torch.from_numpy(records[:, 1:].reshape(-1, 3, 32, 32).copy()).to(device)
labels = torch.from_numpy(records[:, 0].astype(np.int64)).to(device)
channels_last = device.type == "cuda"
model = build(arguments.arch, arguments.width, 3, 10).to(device)
if channels_last:
    model = model.to(memory_format=torch.channels_last)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
epsilon, alpha, factor, gamma = 8 / 255, 10 / 255, 0.6, 0.03
mean_benign = None


def augment(batch):
    padded = F.pad(batch, (4, 4, 4, 4))
    dy, dx = torch.randint(0, 9, (2, len(batch)), device=device)
    rows = dy[:, None] + torch.arange(32, device=device)
    columns = dx[:, None] + torch.arange(32, device=device)
    flip = torch.rand(len(batch), device=device) < 0.5
    columns = torch.where(flip[:, None], columns.flip(1), columns)
    index = torch.arange(len(batch), device=device)[:, None, None, None]
    channel = torch.arange(3, device=device)[None, :, None, None]
    x = padded[index, channel, rows[:, None, :, None], columns[:, None, None, :]].float() / 255
    return x.contiguous(memory_format=torch.channels_last) if channels_last else x


for epoch in range(arguments.epochs):
    if device.type == "cuda":
        torch.cuda.synchronize()
    started, total = time.perf_counter(), torch.zeros((), device=device)
    order = torch.randperm(len(pixels), device=device)
    steps = len(pixels) // arguments.batch_size
    for step in range(steps):
        picks = order[step * arguments.batch_size : (step + 1) * arguments.batch_size]
        images, y = augment(pixels[picks]), labels[picks]
        start = (images + (2 * torch.rand_like(images) - 1) * epsilon).clamp(0, 1).requires_grad_(True)
        (gradient,) = torch.autograd.grad(F.cross_entropy(model(start), y), start)
        with torch.no_grad():
            moved = start - images + alpha * gradient.sign()
            adversarial = (images + moved.clamp(-epsilon, epsilon)).clamp(0, 1)
        soft = torch.full((len(y), 10), (1 - factor) / 9, device=device).scatter_(1, y[:, None], factor)
        loss = F.cross_entropy(model(adversarial), soft)
        if arguments.smooth == "b":
            # Without milestones the gate is closed in the first two epochs and the last; then no graph is needed.
            active = 1 < epoch < arguments.epochs - 1
            with torch.set_grad_enabled(active):
                benign = F.cross_entropy(model(images), soft)
            total += benign.detach()
            if active:
                distance = (benign - mean_benign).abs()
                loss = loss + distance * (distance.detach() > gamma)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
    mean_benign = total / steps if arguments.smooth == "b" else None
    if device.type == "cuda":
        torch.cuda.synchronize()
    memory = torch.cuda.max_memory_allocated() >> 20 if device.type == "cuda" else 0
    print(f"epoch {epoch + 1}: {time.perf_counter() - started:.2f} s, loss {loss.item():.3f}, {memory} MiB", flush=True)
