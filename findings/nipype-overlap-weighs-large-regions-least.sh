#!/usr/bin/env bash
# nipype 1.11.0: Overlap(weighting="volume") is described as weighting each class's overlap by the class's volume. The
# weights are one over the volume: the smallest region counts most. Here one voxel of 181 differs, a region of its own,
# and the weighted Dice is 0.006; by the volumes it would be 0.994. "squared_vol" goes further the same way.
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

truth = np.zeros((6, 6, 6), np.uint8)
truth[:5] = 1
truth[5, 0, 0] = 2
tested = truth.copy()
tested[5, 0, 0] = 0
names = []
for name, labels in (("truth", truth), ("tested", tested)):
    names.append(str(Path(f"{name}.nii").resolve()))
    nb.save(nb.Nifti1Image(labels, np.eye(4)), names[-1])
found = {}
print("nipype 1.11.0: label 1 has 180 voxels and a Dice of 1, label 2 has 1 voxel and a Dice of 0")
for weighting in ("none", "volume", "squared_vol"):
    found[weighting] = Overlap(volume1=names[0], volume2=names[1], weighting=weighting).run().outputs.dice
    print(f"weighting {weighting}: {found[weighting]:g}")
if found != {"none": 0.5, "volume": 0.00552, "squared_vol": 3e-05}:
    raise SystemExit("changed: the overlaps are weighted otherwise now")
PY
