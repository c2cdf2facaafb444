#!/usr/bin/env bash
# MONAI 1.6.1: LocalNormalizedCrossCorrelationLoss is said to lie between -1 and 0. For a float32 CT in Hounsfield
# units, whose air is -1000 and varies by 0.01 as after resampling, it is about -10 billion: sums of squares cancel, and
# a variance that is lost becomes 0.00001, below the line. Such windows drown all others. In double precision, or with
# 1000 added, it is within bounds.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile monai==1.6.1 torch==2.13.0 numpy==2.3.5
cd "$folder"
"$folder/venv/bin/python" - <<'PY'
import monai
import torch
from monai.losses import LocalNormalizedCrossCorrelationLoss

torch.manual_seed(0)
ct = torch.rand(1, 1, 16, 16, 16) / 100 - 1000  # air
ct[..., 5:11, 5:11, 5:11] = 50 + torch.randn(6, 6, 6)  # tissue
loss = LocalNormalizedCrossCorrelationLoss()
found = {}
for name, image in (("float32", ct), ("float64", ct.double()), ("float32, plus 1000", ct + 1000)):
    found[name] = float(loss(image, torch.roll(image, 1, -1)))
    print(f"MONAI {monai.__version__}, {name}: loss {found[name]:.4g}")
if [value < -1e6 for value in found.values()] != [True, False, False] or min(list(found.values())[1:]) < -1.01:
    raise SystemExit("changed: the loss has other bounds now")
PY
