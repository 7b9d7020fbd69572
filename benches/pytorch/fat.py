"""A training step of docs/method.md, FGSM-RS with B-ConvergeSmooth, in PyTorch; nothing is read back."""

import os
import sys
from contextlib import nullcontext

import torch
from torch.nn import functional as F

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "../../tests/golden"))
from twins import build  # noqa: E402, F401

EPSILON, ALPHA, LABEL_FACTOR = 8 / 255, 10 / 255, 0.6
PAD = 4
# The rows of `Trainer.sums`, totals over examples.
ADVERSARIAL_LOSS, BENIGN_LOSS, ADVERSARIAL_CORRECT, BENIGN_CORRECT = range(4)
FORMATS = {"nchw": torch.contiguous_format, "nhwc": torch.channels_last}


class Trainer:
    """Trains `model` on uint8 `pixels` `[n, c, h, w]` and int64 `labels`, all three on one device."""

    def __init__(self, model, pixels, labels, layout, amp=False, compiled=False):
        self.format, self.device = FORMATS[layout], pixels.device
        model = model.to(memory_format=self.format).train()
        settings = {"lr": 0.1, "momentum": 0.9, "weight_decay": 5e-4}
        # Fused is faster than foreach on the CPU too.
        self.optimizer = torch.optim.SGD(model.parameters(), **settings, fused=True)
        self.model = torch.compile(model) if compiled else model
        self.autocast = lambda: torch.autocast(self.device.type, torch.bfloat16) if amp else nullcontext()
        self.labels = labels
        # Every crop of every image is a view of the padded one: a batch is cut out by a single gather.
        height, width = pixels.shape[2:]
        self.crops = F.pad(pixels, (PAD,) * 4).unfold(2, height, 1).unfold(3, width, 1)
        self.sums = torch.zeros(4, device=self.device)

    def draw(self, picks):
        """Images, cropped and mirrored by chance, random starts and labels of a batch."""
        down, right = torch.randint(0, 2 * PAD + 1, (2, len(picks)), device=self.device)
        crops = self.crops[picks, :, down, right]
        mirrored = torch.rand(len(picks), 1, 1, 1, device=self.device) < 0.5
        crops = torch.where(mirrored, crops.flip(3), crops)
        images = crops.to(torch.float32, memory_format=self.format).div_(255)
        start = torch.empty_like(images).uniform_(-EPSILON, EPSILON).add_(images).clamp_(0, 1)
        return images, start, self.labels[picks]

    def step(self, images, start, labels, benign=False, gate=None):
        """`benign`: with a pass over the images; `gate`: (γ, u, u', w1, w2), None where it cannot fire."""
        # A copy that is a leaf of its own, so a batch may be used again.
        start = start.detach().requires_grad_()
        with self.autocast():
            loss = F.cross_entropy(self.model(start).float(), labels)
        # Asked for the input alone, autograd makes no gradients of weights.
        (gradient,) = torch.autograd.grad(loss, start)
        with torch.no_grad():
            low, high = (images - EPSILON).clamp_(min=0), (images + EPSILON).clamp_(max=1)
            adversarial = gradient.sign_().mul_(ALPHA).add_(start).clamp_(low, high)
        del start, gradient, low, high
        with self.autocast():
            logits = self.model(adversarial).float()
            with torch.set_grad_enabled(gate is not None):
                benign_logits = self.model(images).float() if benign else logits
        # The same goal as `LABEL_FACTOR` on the true class, without writing it out.
        classes = logits.shape[1]
        smoothing = (1 - LABEL_FACTOR) * classes / (classes - 1)
        loss = adversarial_loss = F.cross_entropy(logits, labels, label_smoothing=smoothing)
        benign_loss = adversarial_loss
        if benign:
            benign_loss = F.cross_entropy(benign_logits, labels, label_smoothing=smoothing)
        if gate is not None:
            stride, u, u_adversarial, w1, w2 = gate
            distance = (benign_loss - u).abs()
            extra = w1 * (adversarial_loss - u_adversarial).abs() + w2 * distance
            loss = loss + extra * (distance.detach() > stride)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        with torch.no_grad():
            correct = [(answer.argmax(1) == labels).float().mean() for answer in (logits, benign_logits)]
            self.sums += torch.stack([adversarial_loss, benign_loss, *correct]) * len(labels)
