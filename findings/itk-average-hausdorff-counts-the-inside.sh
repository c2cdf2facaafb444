#!/usr/bin/env bash
# SimpleITK 2.5.7, MedPy 0.5.2: the average of HausdorffDistanceImageFilter is taken over all voxels of a structure,
# and those inside the other structure count as 0. It is no average surface distance: for the same fault, a shell of
# one voxel, it shrinks as the structure grows, and is a fourth to a tenth of what MedPy's assd gives. Structures of
# different size cannot be compared by it.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile SimpleITK==2.5.7 MedPy==0.5.2 numpy==2.3.5
cd "$folder"
"$folder/venv/bin/python" - <<'PY'
import numpy as np
import SimpleITK as sitk
from medpy.metric.binary import assd

away = np.sqrt(((np.indices((36, 36, 36)) - 18) ** 2).sum(0))
distance = sitk.HausdorffDistanceImageFilter()
found = []
for radius in (4, 8, 14):
    truth, guess = away <= radius, away <= radius + 1
    distance.Execute(*[sitk.GetImageFromArray(mask.astype(np.uint8)) for mask in (truth, guess)])
    found.append((distance.GetAverageHausdorffDistance(), float(assd(truth, guess))))
    print(f"ball of {radius} voxels, found one voxel too large: SimpleITK {found[-1][0]:.2f}, assd {found[-1][1]:.2f}")
if not np.allclose(found, [(0.28, 1.09), (0.17, 1.11), (0.10, 1.08)], atol=0.01):
    raise SystemExit("changed: the averages are others now")
PY
