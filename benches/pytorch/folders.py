"""A part of CIFAR-10 or Fashion-MNIST as folders of pictures, one for each class.

    python benches/pytorch/folders.py data/cifar10 OUT [--train 10000] [--test 1000]
"""

import argparse
import gzip
import pathlib

import numpy as np
from PIL import Image

parser = argparse.ArgumentParser()
parser.add_argument("data", type=pathlib.Path)
parser.add_argument("out", type=pathlib.Path)
parser.add_argument("--train", type=int, default=10_000)
parser.add_argument("--test", type=int, default=1_000)
arguments = parser.parse_args()


def cifar10(part):
    names = ["test_batch.bin"] if part == "test" else [f"data_batch_{i}.bin" for i in range(1, 6)]
    records = np.concatenate([np.fromfile(arguments.data / name, np.uint8) for name in names]).reshape(-1, 3073)
    return records[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1), records[:, 0]


def fashion_mnist(part):
    name = "t10k" if part == "test" else "train"
    images, labels = (gzip.open(arguments.data / f"{name}-{kind}-ubyte.gz").read() for kind in ("images-idx3", "labels-idx1"))
    return np.frombuffer(images, np.uint8, offset=16).reshape(-1, 28, 28), np.frombuffer(labels, np.uint8, offset=8)


read = cifar10 if (arguments.data / "test_batch.bin").exists() else fashion_mnist
for part, number in (("train", arguments.train), ("test", arguments.test)):
    for index, (image, label) in enumerate(zip(*(array[:number] for array in read(part)))):
        folder = arguments.out / part / str(label)
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / f"{index:05}.png")
