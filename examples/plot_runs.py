"""Robust accuracy by epoch of the runs of a sweep, one panel per setting, collapsed epochs marked.

    python examples/plot_runs.py OUT.svg "TITLE" SETTING... --runs FOLDER        (matplotlib)
"""

import argparse
import json
from pathlib import Path

import matplotlib

matplotlib.use("svg")
from matplotlib import pyplot as plt

arguments = argparse.ArgumentParser()
arguments.add_argument("out")
arguments.add_argument("title")
arguments.add_argument("settings", nargs="+")
arguments.add_argument("--runs", type=Path, required=True)
given = arguments.parse_args()

plt.rcParams["svg.fonttype"] = "none"
plt.rcParams["svg.hashsalt"] = "steadfast"
columns = min(len(given.settings), 5)
rows = -(-len(given.settings) // columns)
figure, panels = plt.subplots(rows, columns, figsize=(11, 2.4 * rows), sharex=True, sharey=True, squeeze=False)
for panel in panels.flat[len(given.settings) :]:
    panel.axis("off")
for panel, setting in zip(panels.flat, given.settings):
    for run in sorted(given.runs.glob(f"{setting}-seed*/log.jsonl")):
        # An epoch that was given up is repeated; what counts is the last of its lines.
        lines = [json.loads(line) for line in run.read_text().splitlines()]
        kept = {line["epoch"]: line for line in lines if not line["guard"]["rolled_back"]}
        pgd = {epoch: 100 * line["validation"]["pgd_10"] for epoch, line in kept.items()}
        fgsm = {epoch: 100 * line["validation"]["fgsm"] for epoch, line in kept.items()}
        (drawn,) = panel.plot(pgd.keys(), pgd.values(), linewidth=1.4)
        panel.plot(fgsm.keys(), fgsm.values(), linewidth=0.7, linestyle=":", color=drawn.get_color())
        given_up = [line for line in lines if line["guard"]["collapsed"] and "validation" in line]
        epochs = [line["epoch"] for line in given_up]
        accuracy = [100 * line["validation"]["pgd_10"] for line in given_up]
        panel.plot(epochs, accuracy, "x", markersize=4, color=drawn.get_color())
    panel.set_title(setting, fontsize=9)
    panel.grid(alpha=0.3)
    panel.tick_params(labelsize=7)
figure.suptitle(f"{given.title}: validation accuracy in %, PGD-10 solid, FGSM dotted, x = collapsed epoch", fontsize=9)
figure.supxlabel("epoch", fontsize=8)
figure.tight_layout()
figure.savefig(given.out, metadata={"Date": None})
