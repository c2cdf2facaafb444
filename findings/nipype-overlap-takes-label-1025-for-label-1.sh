#!/usr/bin/env bash
# nipype 1.11.0: Overlap stores the second volume's labels in the smallest type that holds the first one's. Against a
# first volume of labels up to 255, a label of 1025 (FreeSurfer's cortical regions have such numbers) becomes 1: Dice is
# 1 for regions of different labels, without a warning. With the volumes the other way round it is 0.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile nipype==1.11.0 nibabel==5.4.2 numpy==2.3.5
cd "$folder"
NO_ET=1 "$folder/venv/bin/python" - <<'PY'
from pathlib import Path

import nibabel as nb
import numpy as np
from nipype.algorithms.metrics import Overlap

region = np.zeros((6, 6, 6), np.int16)
region[2:4, 2:4, 2:4] = 1
names = {}
for label in (1, 1025):
    names[label] = str(Path(f"label-{label}.nii").resolve())
    nb.save(nb.Nifti1Image(region * np.int16(label), np.eye(4)), names[label])
found = {}
print("nipype 1.11.0, Dice of two volumes with one region each, at the same place:")
for first, second in ((1, 1), (1, 1025), (1025, 1)):
    found[first, second] = Overlap(volume1=names[first], volume2=names[second]).run().outputs.dice
    print(f"label {first} and label {second}: {found[first, second]:g}")
if found != {(1, 1): 1.0, (1, 1025): 1.0, (1025, 1): 0.0}:
    raise SystemExit("changed: Overlap keeps the labels apart now")
PY
