"""Writes attacks.safetensors beside this script: what the authors' AutoAttack does to a small network.

    pip install torch numpy safetensors git+https://github.com/fra31/auto-attack
    python tests/golden/attacks.py
"""

import os

import torch
from autoattack.autopgd_base import APGDAttack, APGDAttack_targeted
from autoattack.fab_projections import projection_l2, projection_linf
from autoattack.fab_pt import FABAttack_PT
from autoattack.square import SquareAttack
from safetensors.torch import save_file
from torch.nn import functional as F

from twins import build

HERE = os.path.dirname(os.path.abspath(__file__))
CLASSES, COUNT, SHAPE, EPSILON, STEPS = 6, 32, (3, 9, 7), 0.05, 100
LENGTH = {"Linf": EPSILON, "L2": 0.6}

torch.manual_seed(0)
model = build("small-cnn", 3, SHAPE[0], CLASSES)
patterns = torch.rand(CLASSES, *SHAPE)


def draw(count):
    labels = torch.randint(CLASSES, (count,))
    return (0.5 * patterns[labels] + 0.5 * torch.rand(count, *SHAPE)).clamp(0, 1), labels


optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
for _ in range(80):
    images, labels = draw(64)
    optimizer.zero_grad()
    F.cross_entropy(model(images), labels).backward()
    optimizer.step()
model.eval()
for parameter in model.parameters():
    parameter.requires_grad_(False)
images, labels = draw(400)
right = (model(images).argmax(1) == labels).nonzero().squeeze()[:COUNT]
images, labels = images[right], labels[right]
assert len(images) == COUNT
tensors = {f"model.{name}": value for name, value in model.state_dict().items()}
tensors |= {"images": images, "labels": labels.to(torch.int32)}

# Losses after every step, from the logits that the attack asks for: one forward pass before the first step, and one each.
for norm, epsilon in LENGTH.items():
    direction = 2 * torch.rand_like(images) - 1 if norm == "Linf" else torch.randn_like(images)
    length = direction.abs().flatten(1).max(1)[0] if norm == "Linf" else direction.flatten(1).norm(dim=1)
    start = (images + epsilon * direction / length.view(-1, 1, 1, 1)).clamp(0, 1)
    tensors[f"start.{norm}"] = start
    for loss in ["ce", "dlr", "dlr-targeted"]:
        seen = []

        def watched(x):
            seen.append(model(x))
            return seen[-1]

        if loss == "dlr-targeted":
            attack = APGDAttack_targeted(watched, n_iter=STEPS, norm=norm, eps=epsilon)
            attack.y_target = model(images).sort(dim=1)[1][:, -2]
            value = attack.dlr_loss_targeted
        else:
            attack = APGDAttack(watched, n_iter=STEPS, norm=norm, eps=epsilon, loss=loss)
            value = attack.dlr_loss if loss == "dlr" else lambda z, y: F.cross_entropy(z, y, reduction="none")
        attack.init_hyperparam(images)
        _, standing, _, adversarial = attack.attack_single_run(images, labels, x_init=start)
        assert len(seen) == STEPS + 1
        losses = torch.stack([value(logits.detach(), labels) for logits in seen[1:]])
        tensors |= {f"{norm}.{loss}.losses": losses, f"{norm}.{loss}.standing": standing.to(torch.int32)}

    # The nearest points that FAB finds towards the most likely wrong class, and its projections.
    fab = FABAttack_PT(model, norm=norm, eps=epsilon, n_iter=STEPS, targeted=True, device=images.device)
    fab.target_class = 2
    found = fab.attack_single_run(images, labels, is_targeted=True)
    change = (found - images).flatten(1)
    tensors[f"{norm}.fab"] = change.abs().max(1)[0] if norm == "Linf" else change.norm(dim=1)
    # Some planes are near, some at the other end of the box, some outside of it.
    points, normals = images[:16].flatten(1), torch.randn(16, images[0].numel())
    offsets = (normals * points).sum(1) + torch.linspace(-60, 60, 16)
    project = projection_linf if norm == "Linf" else projection_l2
    tensors |= {
        f"{norm}.normals": normals.view_as(images[:16]),
        f"{norm}.offsets": offsets,
        f"{norm}.projected": project(points, normals, offsets).view_as(images[:16]),
    }

# The side of Square's square at some queries, for images of two shapes.
queries = torch.tensor([0, 10, 11, 50, 51, 200, 201, 500, 501, 1000, 1001, 2000, 2001, 4000, 4001, 4999])
square = SquareAttack(model, n_queries=5000, eps=EPSILON, resc_schedule=False)
for height, width in [(32, 32), (9, 7)]:
    sides = [
        min(max(int(round((square.p_selection(query) * height * width) ** 0.5)), 1), height, width)
        for query in queries.tolist()
    ]
    tensors[f"square.{height}x{width}"] = torch.tensor(sides, dtype=torch.int32)
for side in [1, 3, 4, 7]:
    # The bump and hollow of its L2 version; turned at random, so the rows' sums say which way it lies.
    square = SquareAttack(model, norm="L2", eps=EPSILON, device="cpu")
    pattern = square.eta(side)
    upright = pattern[: side // 2].sum() >= 0 and (side < 2 or pattern.sum(1).abs().max() > pattern.sum(0).abs().max())
    tensors[f"square.pattern{side}"] = pattern if upright else pattern.T
tensors["square.queries"] = queries.to(torch.int32)
save_file({name: value.contiguous() for name, value in tensors.items()}, f"{HERE}/attacks.safetensors")
