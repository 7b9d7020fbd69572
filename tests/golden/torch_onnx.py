"""Writes classifiers of PyTorch as ONNX into a folder, and prints the accuracy of the first on the test part of a data set.

    python tests/golden/torch_onnx.py FOLDER DATA

resnet18.onnx: a briefly trained ResNet-18 that takes off a mean and divides by a standard deviation; grouped.onnx and sigmoid.onnx have
operators that cannot be attacked.
"""

import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn

folder, data = map(Path, sys.argv[1:])
torch.manual_seed(0)


class Block(nn.Module):
    def __init__(self, inputs, outputs, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut = nn.Sequential()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x):
        y = torch.relu(self.bn1(self.conv1(x)))
        return torch.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


class ResNet18(nn.Module):
    def __init__(self, classes, width=16):
        super().__init__()
        self.conv1 = nn.Conv2d(1, width, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.pool = nn.MaxPool2d(3, 2, 1)
        widths = [width, width, width, 2 * width, 2 * width, 4 * width, 4 * width, 8 * width, 8 * width]
        strides = [1, 1, 2, 1, 2, 1, 2, 1]
        self.blocks = nn.Sequential(*[Block(i, o, s) for i, o, s in zip(widths, widths[1:], strides)])
        self.fc = nn.Linear(8 * width, classes)

    def forward(self, x):
        x = self.pool(torch.relu(self.bn1(self.conv1((x - 0.4) / 0.25))))
        return self.fc(torch.flatten(nn.functional.adaptive_avg_pool2d(self.blocks(x), 1), 1))


classes = sorted(path.name for path in (data / "test").iterdir())
images, labels = [], []
for label, name in enumerate(classes):
    for path in sorted((data / "test" / name).iterdir()):
        images.append(np.asarray(Image.open(path).convert("L"), dtype=np.float32) / 255)
        labels.append(label)
images, labels = torch.from_numpy(np.stack(images))[:, None], torch.tensor(labels)
model = ResNet18(len(classes))
# A few steps, so that it does not answer the same to everything.
optimizer = torch.optim.Adam(model.parameters(), 1e-3)
for _ in range(60):
    optimizer.zero_grad()
    nn.functional.cross_entropy(model(images), labels).backward()
    optimizer.step()
model.eval()


def write(module, name):
    torch.onnx.export(module, (images[:1],), folder / name, opset_version=13, dynamo=False, input_names=["image"], dynamic_axes={"image": {0: "batch"}})


write(model, "resnet18.onnx")
write(nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1, groups=2)).eval(), "grouped.onnx")
write(nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.Sigmoid()).eval(), "sigmoid.onnx")
with torch.no_grad():
    print((model(images).argmax(1) == labels).double().mean().item())
