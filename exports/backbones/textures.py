"""Draws grey textures, one folder per kind: what exports/backbones/textures.safetensors was trained on.

    python exports/backbones/textures.py OUT [--images 400] [--size 64] [--seed 1]

Noise of several spectra, grains, stripes, cells, and surfaces with pits, spots, scratches, cracks and patches, each with its own
light, contrast and noise. Nothing is taken from pictures. Needs numpy and Pillow.
"""

import argparse
import os

import numpy as np
from PIL import Image

parser = argparse.ArgumentParser()
parser.add_argument("out")
parser.add_argument("--images", type=int, default=400, help="of each kind")
parser.add_argument("--size", type=int, default=64)
parser.add_argument("--seed", type=int, default=1)
arguments = parser.parse_args()

N = arguments.size
rows, columns = np.mgrid[0:N, 0:N].astype(float)
down, across = np.fft.fftfreq(N)[:, None] * N, np.fft.fftfreq(N)[None] * N
frequency, direction = np.hypot(across, down) + 1e-9, np.arctan2(down, across)


def standard(image):
    return (image - image.mean()) / (image.std() + 1e-9)


def filtered(random, response):
    """White noise with this amplitude for each frequency."""
    return standard(np.fft.ifft2(np.fft.fft2(random.standard_normal((N, N))) * response).real)


def fractal(random, decay):
    return filtered(random, 1 / np.maximum(frequency, 1) ** decay)


def grain(random, centre, width, oriented=False):
    """Noise of one scale, in `centre` periods per image; oriented like brushed metal."""
    response = np.exp(-(((frequency - centre) / width) ** 2))
    if oriented:
        turned = np.angle(np.exp(2j * (direction - random.uniform(0, np.pi)))) / 2
        response = response * np.exp(-((turned / 0.2) ** 2))
    return filtered(random, response)


def spots(random, count, radii, edge, sign=None):
    image = np.zeros((N, N))
    for _ in range(count):
        distance = np.hypot(rows - random.uniform(0, N), columns - random.uniform(0, N))
        image += (sign or random.choice([-1, 1])) / (1 + np.exp((distance - random.uniform(*radii)) / edge * 2))
    return image


def strokes(random, count, width, length, bend, angle=None):
    image = np.zeros((N, N))
    for _ in range(count):
        place, heading = random.uniform(0, N, 2), random.uniform(0, np.pi) if angle is None else random.normal(angle, 0.1)
        stroke = np.zeros((N, N))
        for _ in range(int(length)):
            row, column = place.astype(int)
            if 0 <= row < N and 0 <= column < N:
                stroke[row, column] = 1
            heading += random.normal(0, bend)
            place = place + [np.sin(heading), np.cos(heading)]
        smooth = np.exp(-((frequency / N * np.pi * width * 1.5) ** 2))
        stroke = np.fft.ifft2(np.fft.fft2(stroke) * smooth).real
        image += random.choice([-1, 1]) * stroke / (stroke.max() + 1e-9)
    return image


def cells(random, count):
    """Distances to the nearest seed and to the next."""
    seeds = random.uniform(-8, N + 8, (count, 2))
    return np.sort(np.hypot(rows[..., None] - seeds[:, 0], columns[..., None] - seeds[:, 1]), -1)[..., :2]


def borders(random, count, width):
    nearest = cells(random, count)
    return 2 * np.exp(-(((nearest[..., 1] - nearest[..., 0]) / width) ** 2))


def stripes(random):
    angle = random.uniform(0, np.pi)
    return np.sin((columns * np.cos(angle) + rows * np.sin(angle)) * random.uniform(0.3, 0.9) + 2 * fractal(random, 2.2))


def rings(random):
    distance = np.hypot(columns - random.uniform(0, N), rows - random.uniform(0, N))
    return np.sin(distance * random.uniform(0.3, 0.9) + fractal(random, 2.2))


def chequers(random):
    step = random.uniform(0.3, 0.8)
    return np.sign(np.sin(columns * step + random.uniform(0, 6)) * np.sin(rows * step + random.uniform(0, 6)))


def grid(random):
    step = random.uniform(0.4, 0.9)
    return 2 * np.maximum(np.cos(columns * step), np.cos(rows * step))


def patches(random):
    near = lambda line: np.abs(line - random.uniform(0, N)) < random.uniform(2, 10)
    return sum((near(rows) & near(columns)) * random.choice([-1.0, 1.0]) for _ in range(random.integers(1, 5)))


KINDS = {
    "fractal-rough": lambda r: fractal(r, r.uniform(0.8, 1.2)),
    "fractal-smooth": lambda r: fractal(r, r.uniform(1.6, 2.4)),
    "grain-coarse": lambda r: grain(r, r.uniform(3, 5), 1.5),
    "grain-medium": lambda r: grain(r, r.uniform(8, 12), 2),
    "grain-fine": lambda r: grain(r, r.uniform(18, 26), 3),
    "brushed-coarse": lambda r: grain(r, r.uniform(4, 7), 2, True),
    "brushed-fine": lambda r: grain(r, r.uniform(12, 20), 3, True),
    "two-tone-smooth": lambda r: np.sign(fractal(r, 1.5) + r.uniform(-0.5, 0.5)),
    "two-tone-grain": lambda r: np.sign(grain(r, r.uniform(6, 10), 2) + r.uniform(-0.4, 0.4)),
    "pits": lambda r: fractal(r, 1) / 2 + 3 * spots(r, r.integers(3, 9), (1, 2.5), 0.7, -1),
    "stains": lambda r: fractal(r, 1) / 2 + 3 * spots(r, r.integers(1, 4), (5, 12), 1.5),
    "speckles": lambda r: fractal(r, 1) / 2 + 3 * spots(r, r.integers(25, 60), (1, 2), 0.7),
    "scratches": lambda r: fractal(r, 1) / 2 + 3 * strokes(r, r.integers(1, 4), 1, r.uniform(25, 64), 0.01),
    "cracks": lambda r: fractal(r, 1) / 2 + 3 * strokes(r, r.integers(1, 4), 1, r.uniform(40, 100), 0.3),
    "fibres": lambda r: 0.4 * fractal(r, 1) + 2 * strokes(r, r.integers(15, 40), 1, r.uniform(8, 20), 0.05),
    "lines": lambda r: 0.4 * fractal(r, 1)
    + 2 * strokes(r, r.integers(10, 25), 1.5, r.uniform(20, 60), 0.02, r.uniform(0, np.pi)),
    "cells-large": lambda r: borders(r, r.integers(8, 20), 1.5) + 0.3 * fractal(r, 1),
    "cells-small": lambda r: borders(r, r.integers(40, 80), 1) + 0.3 * fractal(r, 1),
    "domes": lambda r: standard(cells(r, r.integers(10, 40))[..., 0]),
    "stripes": stripes,
    "rings": rings,
    "chequers": lambda r: chequers(r) + 0.4 * fractal(r, 1),
    "grid": lambda r: grid(r) + 0.4 * fractal(r, 1),
    "patches": lambda r: fractal(r, 1) / 2 + 2.5 * patches(r),
}


def draw(random, kind):
    image = standard(KINDS[kind](random))
    if random.random() < 0.5:
        angle = random.uniform(0, 2 * np.pi)
        slope = (columns - N / 2) * np.cos(angle) + (rows - N / 2) * np.sin(angle)
        image = image + random.uniform(0, 2) * slope / N
    image = image + random.uniform(0, 0.3) * random.standard_normal((N, N))
    image = random.uniform(0.3, 0.7) + image * random.uniform(0.05, 0.22) * random.choice([-1, 1])
    return (image.clip(0, 1) * 255).astype(np.uint8)


for number, kind in enumerate(KINDS):
    os.makedirs(f"{arguments.out}/{kind}", exist_ok=True)
    random = np.random.default_rng([arguments.seed, number])
    for index in range(arguments.images):
        Image.fromarray(draw(random, kind)).save(f"{arguments.out}/{kind}/{index:04}.png")
