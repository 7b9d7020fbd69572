"""The plain PyTorch twins of Steadfast's architectures: `load_state_dict(strict=True)` takes an exported model."""

import json

import numpy as np
import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional as F


def threefry(key, high, low):
    """Threefry-2x32 with 20 rounds on arrays of uint32."""
    with np.errstate(over="ignore"):
        k = [np.uint32(key[0]), np.uint32(key[1])]
        k.append(np.uint32(0x1BD11BDA) ^ k[0] ^ k[1])
        x0, x1 = np.uint32(high) + k[0], np.uint32(low) + k[1]
        for i in range(5):
            for r in [(13, 15, 26, 6), (17, 29, 16, 24)][i % 2]:
                x0 = x0 + x1
                x1 = ((x1 << np.uint32(r)) | (x1 >> np.uint32(32 - r))) ^ x0
            x0 = x0 + k[(i + 1) % 3]
            x1 = x1 + k[(i + 2) % 3] + np.uint32(i + 1)
        return x0, x1


def permutation(seed, n):
    """The numbers 0..n in the random order of `Key::permutation`."""
    order = np.arange(n)
    for i in range(n - 1, 0, -1):
        high, low = threefry((seed, 0), i, 0)
        j = ((int(high) << 32) | int(low)) % (i + 1)
        order[i], order[j] = order[j], order[i]
    return order


def conv(inputs, outputs, kernel, stride):
    return nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)


def stem(kind, inputs, outputs):
    """The first convolution and what is done after it, BatchNorm and ReLU between."""
    if kind == "imagenet":
        return conv(inputs, outputs, 7, 2), nn.MaxPool2d(3, 2, 1)
    return conv(inputs, outputs, 3, 2 if kind == "half" else 1), nn.Identity()


class SmallCnn(nn.Module):
    def __init__(self, width, channels, classes, kind):
        super().__init__()
        w = width
        self.conv1, self.pool = stem(kind, channels, w)
        self.bn1 = nn.BatchNorm2d(w)
        for i, (inputs, outputs, stride) in enumerate([(w, 2 * w, 2), (2 * w, 4 * w, 2), (4 * w, 4 * w, 1)], 2):
            setattr(self, f"conv{i}", conv(inputs, outputs, 3, stride))
            setattr(self, f"bn{i}", nn.BatchNorm2d(outputs))
        self.linear = nn.Linear(4 * w, classes)

    def forward(self, x):
        x = self.pool(F.relu(self.bn1(self.conv1(x))))
        for i in range(2, 5):
            x = F.relu(getattr(self, f"bn{i}")(getattr(self, f"conv{i}")(x)))
        return self.linear(x.mean((2, 3)))


class SeparableBlock(nn.Module):
    def __init__(self, inputs, outputs, stride):
        super().__init__()
        self.depthwise, self.bn1 = nn.Conv2d(inputs, inputs, 3, stride, 1, groups=inputs, bias=False), nn.BatchNorm2d(inputs)
        self.pointwise, self.bn2 = conv(inputs, outputs, 1, 1), nn.BatchNorm2d(outputs)

    def forward(self, x):
        y = self.bn2(self.pointwise(F.relu(self.bn1(self.depthwise(x)))))
        return F.relu(y + x if x.shape == y.shape else y)


class MicroCnn(nn.Module):
    def __init__(self, width, channels, classes, kind):
        super().__init__()
        w = width
        self.conv1, self.pool = stem(kind, channels, w)
        self.bn1 = nn.BatchNorm2d(w)
        for i, outputs in enumerate([2 * w, 4 * w, 8 * w], 1):
            blocks = SeparableBlock(outputs // 2, outputs, 2), SeparableBlock(outputs, outputs, 1)
            setattr(self, f"layer{i}", nn.Sequential(*blocks))
        self.linear = nn.Linear(8 * w, classes)

    def forward(self, x):
        x = self.layer3(self.layer2(self.layer1(self.pool(F.relu(self.bn1(self.conv1(x)))))))
        return self.linear(x.mean((2, 3)))


class BasicBlock(nn.Module):
    def __init__(self, inputs, outputs, stride):
        super().__init__()
        self.conv1, self.bn1 = conv(inputs, outputs, 3, stride), nn.BatchNorm2d(outputs)
        self.conv2, self.bn2 = conv(outputs, outputs, 3, 1), nn.BatchNorm2d(outputs)
        self.shortcut = nn.Sequential()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(conv(inputs, outputs, 1, stride), nn.BatchNorm2d(outputs))

    def forward(self, x):
        y = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


class PreActBlock(nn.Module):
    def __init__(self, inputs, outputs, stride):
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(inputs), conv(inputs, outputs, 3, stride)
        self.bn2, self.conv2 = nn.BatchNorm2d(outputs), conv(outputs, outputs, 3, 1)
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(conv(inputs, outputs, 1, stride))

    def forward(self, x):
        y = F.relu(self.bn1(x))
        shortcut = self.shortcut(y) if hasattr(self, "shortcut") else x
        return self.conv2(F.relu(self.bn2(self.conv1(y)))) + shortcut


class ResNet(nn.Module):
    def __init__(self, block, blocks, width, channels, classes, kind):
        super().__init__()
        w = width
        self.conv1, self.pool = stem(kind, channels, w)
        if block is BasicBlock:
            self.bn1 = nn.BatchNorm2d(w)
        plan = [(w, w, 1), (w, 2 * w, 2), (2 * w, 4 * w, 2), (4 * w, 8 * w, 2)]
        for i, (inputs, outputs, stride) in enumerate(plan, 1):
            others = (block(outputs, outputs, 1) for _ in range(1, blocks))
            setattr(self, f"layer{i}", nn.Sequential(block(inputs, outputs, stride), *others))
        if block is PreActBlock:
            self.bn = nn.BatchNorm2d(8 * w)
        self.linear = nn.Linear(8 * w, classes)

    def forward(self, x):
        x = self.conv1(x)
        if hasattr(self, "bn1"):
            x = F.relu(self.bn1(x))
        x = self.pool(x)
        for i in range(1, 5):
            x = getattr(self, f"layer{i}")(x)
        if hasattr(self, "bn"):
            x = F.relu(self.bn(x))
        return self.linear(x.mean((2, 3)))


class WideBlock(nn.Module):
    def __init__(self, inputs, outputs, stride):
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(inputs), conv(inputs, outputs, 3, stride)
        self.bn2, self.conv2 = nn.BatchNorm2d(outputs), conv(outputs, outputs, 3, 1)
        self.convShortcut = conv(inputs, outputs, 1, stride) if inputs != outputs else None

    def forward(self, x):
        y = F.relu(self.bn1(x))
        shortcut = self.convShortcut(y) if self.convShortcut else x
        return self.conv2(F.relu(self.bn2(self.conv1(y)))) + shortcut


class WideGroup(nn.Module):
    def __init__(self, inputs, outputs, stride):
        super().__init__()
        others = (WideBlock(outputs, outputs, 1) for _ in range(4))
        self.layer = nn.Sequential(WideBlock(inputs, outputs, stride), *others)

    def forward(self, x):
        return self.layer(x)


class WideResNet(nn.Module):
    """WideResNet-34-10."""

    def __init__(self, width, channels, classes, kind):
        super().__init__()
        w = width
        self.conv1, self.pool = stem(kind, channels, w)
        for i, (inputs, outputs, stride) in enumerate([(w, 10 * w, 1), (10 * w, 20 * w, 2), (20 * w, 40 * w, 2)], 1):
            setattr(self, f"block{i}", WideGroup(inputs, outputs, stride))
        self.bn1 = nn.BatchNorm2d(40 * w)
        self.fc = nn.Linear(40 * w, classes)

    def forward(self, x):
        x = self.pool(self.conv1(x))
        for i in range(1, 4):
            x = getattr(self, f"block{i}")(x)
        return self.fc(F.relu(self.bn1(x)).mean((2, 3)))


def build(arch, width, channels, classes, stem="cifar"):
    """The twin of `--arch ARCH --width WIDTH`; `stem` is that of run.json."""
    kinds = {
        "mobile-resnet": (BasicBlock, 1),
        "resnet10": (BasicBlock, 1),
        "resnet18": (BasicBlock, 2),
        "preact-resnet18": (PreActBlock, 2),
    }
    if arch in kinds:
        return ResNet(*kinds[arch], width, channels, classes, stem)
    others = {"small-cnn": SmallCnn, "micro-cnn": MicroCnn, "wide-resnet34-10": WideResNet}
    return others[arch](width, channels, classes, stem)


def load_bundle(folder):
    """The model of an exported bundle in evaluation mode, and its manifest."""
    with open(f"{folder}/manifest.json") as file:
        manifest = json.load(file)
    model = build(**manifest["model"])
    model.load_state_dict(load_file(f"{folder}/model.safetensors"), strict=True)
    return model.eval(), manifest


def pgd(model, images, labels, epsilon, step, steps, start):
    """PGD on cross-entropy; an example stays where it is first misclassified."""
    x = start.clone()
    for _ in range(steps):
        x.requires_grad_(True)
        logits = model(x)
        (gradient,) = torch.autograd.grad(F.cross_entropy(logits, labels, reduction="sum"), x)
        with torch.no_grad():
            moved = (images + (x - images + step * gradient.sign()).clamp(-epsilon, epsilon)).clamp(0, 1)
            x = torch.where((logits.argmax(1) != labels)[:, None, None, None], x, moved)
    return x.detach()
