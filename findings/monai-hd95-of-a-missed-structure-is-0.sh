#!/usr/bin/env bash
# MONAI 1.6.1: HausdorffDistanceMetric is infinite for a structure that the prediction misses altogether; with
# percentile=95 it is nan, and aggregate() leaves nan out. The worst failure does not count: a structure missed in
# half of the scans keeps the HD95 of the other half, one missed in all of them has the best possible value, 0.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile monai==1.6.1 torch==2.13.0 scipy==1.15.3 numpy==2.3.5
cd "$folder"
"$folder/venv/bin/python" - <<'PY'
import warnings

import monai
import torch
from monai.metrics import HausdorffDistanceMetric

warnings.simplefilter("ignore")
truth = torch.zeros(2, 1, 12, 12, 12)
truth[..., 4:8, 4:8, 4:8] = 1
half = torch.roll(truth, 1, dims=2)  # one voxel off in both scans ...
half[1] = 0  # ... and nothing found in the second
print(f"MONAI {monai.__version__}")
found = []
for percentile in (None, 95):
    for name, guess in (("missed in one of two scans", half), ("missed in both", torch.zeros_like(truth))):
        metric = HausdorffDistanceMetric(include_background=True, percentile=percentile)
        each = metric(guess, truth)
        found.append(float(metric.aggregate()))
        print(f"percentile={percentile}, structure {name}: {each.flatten().tolist()}, aggregate {found[-1]}")
if found != [float("inf"), float("inf"), 1.0, 0.0]:
    raise SystemExit("changed: a missed structure counts otherwise now")
PY
