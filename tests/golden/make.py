"""Writes the golden files beside this script: what PyTorch answers for small random networks.

    python tests/golden/make.py        (torch, numpy, safetensors)
"""

import hashlib
import os
from math import prod

import numpy as np
import torch
from safetensors.torch import save_file
from torch.nn import functional as F

from twins import build, pgd, threefry

HERE = os.path.dirname(os.path.abspath(__file__))
EPSILON, STEP, STEPS = 8 / 255, 2 / 255, 10


def draw(name, shape):
    """What `Classifier::new` draws from key 1 for a weight of more than one dimension."""
    digest = hashlib.sha256(name.encode()).digest()
    low, high = np.frombuffer(digest, "<u4", 2)
    key = threefry((1, 0), low, high)
    word, _ = threefry(key, 0, np.arange(prod(shape), dtype=np.uint32))
    bound = np.float32(1) / np.sqrt(np.float32(prod(shape[1:])))
    uniform = (word >> np.uint32(8)).astype(np.float32) * np.float32(2**-24)
    return torch.from_numpy(bound * (np.float32(2) * uniform - np.float32(1))).reshape(shape)


# Architecture, width, stem, shape of the images, and whether the weights are drawn instead of stored.
for arch, width, stem, shape, drawn in [
    ("small-cnn", 2, "cifar", (6, 3, 16, 12), False),
    ("micro-cnn", 3, "cifar", (6, 3, 16, 12), False),
    ("resnet18", 2, "cifar", (6, 3, 16, 12), False),
    ("preact-resnet18", 2, "cifar", (6, 3, 16, 12), False),
    ("wide-resnet34-10", 1, "cifar", (4, 3, 16, 12), True),
    ("resnet10", 2, "imagenet", (2, 1, 40, 72), True),
    ("resnet10", 2, "half", (2, 1, 21, 30), True),
    ("preact-resnet18", 2, "imagenet", (2, 1, 67, 30), True),
]:
    torch.manual_seed(1)
    model = build(arch, width, shape[1], 4, stem)
    weights = {name: value for name, value in model.state_dict().items() if drawn and value.dim() > 1}
    for name, value in weights.items():
        value.copy_(draw(name, value.shape))
    images = torch.rand(shape)
    labels = torch.arange(len(images)) % 4
    model.train()
    # Statistics that are not those of initialisation, and the logits of the last training pass.
    for _ in range(5):
        train_logits = model(images * 0.7 + 0.1 * torch.rand_like(images)).detach()
    model.eval()
    images.requires_grad_(True)
    logits = model(images)
    (gradient,) = torch.autograd.grad(F.cross_entropy(logits, labels, reduction="sum"), images)
    images = images.detach()
    adversarial = pgd(model, images, labels, EPSILON, STEP, STEPS, images)
    kept = {name: value for name, value in model.state_dict().items() if name not in weights}
    tensors = {f"model.{name}": value for name, value in kept.items()}
    tensors |= {
        "images": images,
        "labels": labels.to(torch.int32),
        "logits": logits.detach(),
        "gradient": gradient,
        "adversarial": adversarial,
        "adversarial_logits": model(adversarial).detach(),
    }
    file = arch if stem == "cifar" else f"{arch}-{stem}"
    save_file({name: value.contiguous() for name, value in tensors.items()}, f"{HERE}/{file}.safetensors")

# One run of each optimizer: momentum and weight decay, three steps.
for name, optimizer_of, settings in [
    ("sgd", torch.optim.SGD, {"lr": 0.05, "momentum": 0.9, "weight_decay": 5e-4}),
    ("adamw", torch.optim.AdamW, {"lr": 0.002, "weight_decay": 0.05}),
]:
    torch.manual_seed(2)
    model = build("small-cnn", 2, 1, 3).eval()
    before = {f"before.{name}": value.clone() for name, value in model.state_dict().items()}
    optimizer = optimizer_of(model.parameters(), **settings)
    images, labels = torch.rand(4, 1, 8, 8), torch.tensor([0, 1, 2, 1])
    for _ in range(3):
        optimizer.zero_grad()
        F.cross_entropy(model(images), labels).backward()
        optimizer.step()
    after = {f"after.{name}": value for name, value in model.state_dict().items()}
    save_file({**before, **after, "images": images, "labels": labels.to(torch.int32)}, f"{HERE}/{name}.safetensors")

# Two whole training steps: FGSM-RS from a given start, B-ConvergeSmooth with its gate open, SGD; BatchNorm in training mode.
torch.manual_seed(3)
model = build("small-cnn", 2, 1, 3)
before = {f"before.{name}": value.clone() for name, value in model.state_dict().items()}
optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
images, labels = torch.rand(6, 1, 8, 8), torch.tensor([0, 1, 2, 1, 0, 2])
start = (images + (2 * torch.rand_like(images) - 1) * EPSILON).clamp(0, 1)
last_benign, last_adversarial, gamma, w1, w2, factor = 0.8, 1.6, 0.03, 0.3, 1.0, 0.6
soft = torch.full((6, 3), (1 - factor) / 2).scatter_(1, labels[:, None], factor)
losses = []
for _ in range(2):
    x = start.clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad(F.cross_entropy(model(x), labels), x)
    eta = (start - images + 10 / 255 * gradient.sign()).clamp(-EPSILON, EPSILON)
    adversarial = (images + eta).clamp(0, 1)
    adversarial_loss, benign_loss = F.cross_entropy(model(adversarial), soft), F.cross_entropy(model(images), soft)
    loss = adversarial_loss
    if abs(benign_loss.item() - last_benign) > gamma:
        loss = loss + w1 * (adversarial_loss - last_adversarial).abs() + w2 * (benign_loss - last_benign).abs()
    losses.append(loss.detach())
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
after = {f"after.{name}": value for name, value in model.state_dict().items()}
extra = {"images": images, "start": start, "labels": labels.to(torch.int32), "losses": torch.stack(losses)}
save_file({**before, **after, **extra}, f"{HERE}/step.safetensors")

# Two training steps of TRADES with two attack steps from given starts, and two of FGSM with adversarial weight perturbation.
for name in ["trades", "awp"]:
    torch.manual_seed(6)
    model = build("small-cnn", 2, 1, 3)
    before = {f"before.{name}": value.clone() for name, value in model.state_dict().items()}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
    images, labels = torch.rand(6, 1, 8, 8), torch.tensor([0, 1, 2, 1, 0, 2])
    start = (images + (2 * torch.rand_like(images) - 1) * EPSILON).clamp(0, 1)
    soft = torch.full((6, 3), (1 - factor) / 2).scatter_(1, labels[:, None], factor)
    for _ in range(2):
        x = start.clone()
        clean = F.softmax(model(images), 1).detach()
        for step in [4 / 255] * 2 if name == "trades" else [10 / 255]:
            x.requires_grad_(True)
            logits = model(x)
            distance = F.kl_div(F.log_softmax(logits, 1), clean, reduction="sum") if name == "trades" else F.cross_entropy(logits, labels)
            (gradient,) = torch.autograd.grad(distance, x)
            x = (x.detach() - images + step * gradient.sign()).clamp(-EPSILON, EPSILON).add(images).clamp(0, 1)

        def loss():
            if name == "awp":
                return F.cross_entropy(model(x), soft)
            distance = F.kl_div(F.log_softmax(model(x), 1), F.softmax(model(images), 1), reduction="batchmean")
            return F.cross_entropy(model(images), soft) + 6 * distance

        moved = []
        if name == "awp":
            kernels = [parameter for parameter in model.parameters() if parameter.dim() > 1]
            for kernel, gradient in zip(kernels, torch.autograd.grad(loss(), kernels)):
                moved.append((kernel, 0.01 * kernel.norm() * gradient / (gradient.norm() + 1e-12)))
            for kernel, by in moved:
                kernel.data += by
        optimizer.zero_grad()
        loss().backward()
        for kernel, by in moved:
            kernel.data -= by
        optimizer.step()
    after = {f"after.{name}": value for name, value in model.state_dict().items()}
    extra = {"images": images, "start": start, "labels": labels.to(torch.int32)}
    save_file({**before, **after, **extra}, f"{HERE}/{name}.safetensors")

# The gradient of grad-align's regulariser by double back-propagation, in float64; checked against finite differences here.
torch.manual_seed(4)
model, weight = build("small-cnn", 2, 1, 3).double(), 0.4
images, labels = torch.rand(4, 1, 8, 8).double(), torch.tensor([0, 1, 2, 1])
start = (images + 0.1 * (2 * torch.rand_like(images) - 1)).clamp(0, 1)
images, start = images.float().double(), start.float().double()


def regulariser(second_order):
    def gradient(at):
        at = at.clone().requires_grad_(True)
        loss = F.cross_entropy(model(at), labels, reduction="sum")
        return torch.autograd.grad(loss, at, create_graph=second_order)[0].flatten(1)

    return weight * (1 - F.cosine_similarity(gradient(images), gradient(start), eps=1e-30)).mean()


parameters = dict(model.named_parameters())
before = {f"model.{name}": value.float() for name, value in model.state_dict().items()}
exact = torch.autograd.grad(regulariser(True), parameters.values(), allow_unused=True)
exact = {name: torch.zeros_like(p) if g is None else g for (name, p), g in zip(parameters.items(), exact)}
direction = {name: 2 * torch.rand_like(p) - 1 for name, p in parameters.items()}


def moved(by):
    with torch.no_grad():
        for name, p in parameters.items():
            p += by * direction[name]
    return regulariser(False).item()


up, down = moved(1e-6), moved(-2e-6)
product = sum((exact[name] * direction[name]).sum().item() for name in parameters)
assert abs((up - down) / 2e-6 - product) < 1e-4 * max(1, abs(product)), ((up - down) / 2e-6, product)
save_file(
    {**before, **{f"exact.{name}": value.float().contiguous() for name, value in exact.items()}}
    | {"images": images.float(), "start": start.float(), "labels": labels.to(torch.int32)},
    f"{HERE}/grad-align.safetensors",
)
