"""The same training step as `steadfast train`, in plain PyTorch: seconds per epoch on CIFAR-10 batches.

    python benches/pytorch/fat_epoch.py CIFAR10 [--smooth none|b] [--epochs 3] [--limit N] [--device cuda|cpu]

FGSM-RS at 8/255 on ResNet-18, batch 128, float32, data on the device; with `b`, a benign forward pass and the
gate, whose backward pass runs when it is open.
"""

import argparse
import glob
import time

import numpy as np
import torch

from fat import ADVERSARIAL_LOSS, BENIGN_LOSS, Trainer, build

parser = argparse.ArgumentParser()
parser.add_argument("data")
parser.add_argument("--smooth", choices=["none", "b"], default="none")
parser.add_argument("--epochs", type=int, default=3)
parser.add_argument("--limit", type=int)
parser.add_argument("--batch-size", type=int, default=128)
parser.add_argument("--arch", default="resnet18")
parser.add_argument("--width", type=int, default=64)
parser.add_argument("--layout", choices=["nchw", "nhwc"], default="nhwc")
parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
arguments = parser.parse_args()

device = torch.device(arguments.device)
torch.backends.cudnn.benchmark = True
torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
batches = sorted(glob.glob(f"{arguments.data}/data_batch_*.bin"))
records = np.concatenate([np.fromfile(path, np.uint8).reshape(-1, 3073) for path in batches])
records = records[: arguments.limit]
# As many images as remain there when the validation part is cut.
records = records[: len(records) - round(len(records) * min(max(500 / len(records), 0.02), 0.2))]
pixels = torch.from_numpy(records[:, 1:].reshape(-1, 3, 32, 32).copy()).to(device)
labels = torch.from_numpy(records[:, 0].astype(np.int64)).to(device)
model = build(arguments.arch, arguments.width, 3, 10).to(device)
trainer = Trainer(model, pixels, labels, arguments.layout)
means = None
for epoch in range(arguments.epochs):
    if device.type == "cuda":
        torch.cuda.synchronize()
    started = time.perf_counter()
    trainer.sums.zero_()
    order = torch.randperm(len(pixels), device=device)
    steps = len(pixels) // arguments.batch_size
    # Without milestones the gate is closed in the first two epochs and the last.
    active = arguments.smooth == "b" and 1 < epoch < arguments.epochs - 1
    gate = (0.03, means[BENIGN_LOSS], means[ADVERSARIAL_LOSS], 0.0, 1.0) if active else None
    for picks in order[: steps * arguments.batch_size].split(arguments.batch_size):
        trainer.step(*trainer.draw(picks), arguments.smooth == "b", gate)
    means = trainer.sums / (steps * arguments.batch_size)
    if device.type == "cuda":
        torch.cuda.synchronize()
    seconds, loss = time.perf_counter() - started, means[ADVERSARIAL_LOSS].item()
    memory = torch.cuda.max_memory_allocated() >> 20 if device.type == "cuda" else 0
    print(f"epoch {epoch + 1}: {seconds:.2f} s, loss {loss:.3f}, {memory} MiB", flush=True)
