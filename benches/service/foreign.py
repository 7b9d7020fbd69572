"""How well a bundle tells foreign parts from its own by their distance: the area under the ROC curve, and the share of each set that is
beyond the threshold.

    python benches/service/foreign.py BINARY BUNDLE OWN FOREIGN...      (folders of images; the bundle exported with --data)
"""

import json
import subprocess
import sys

binary, bundle, own, *foreign = sys.argv[1:]


def distances(folder):
    command = [binary, "inspect", bundle, folder, "--json", "--device", "cpu"]
    lines = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True).stdout.splitlines()
    return [json.loads(line)["distance"] for line in lines]


known = distances(own)
print(f"{own}: {len(known)} images, {sum(d > 1 for d in known) / len(known):.1%} beyond the threshold")
for folder in foreign:
    other = distances(folder)
    pairs = sum((o > k) + (o == k) / 2 for o in other for k in known)
    beyond = sum(d > 1 for d in other) / len(other)
    print(f"{folder}: {len(other)} images, {beyond:.1%} beyond the threshold, AUROC {pairs / len(known) / len(other):.3f}")
