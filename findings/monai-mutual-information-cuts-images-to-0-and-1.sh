#!/usr/bin/env bash
# MONAI 1.6.1: GlobalMutualInformationLoss, with its default kernel "gaussian", cuts images to 0 to 1 without a word;
# kernel "b-spline" scales them by their range. Images of 0 to 1000 become nearly all 1: matched with
# itself, one scores no better than two that have nothing in common.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile monai==1.6.1 torch==2.13.0 numpy==2.3.5
cd "$folder"
"$folder/venv/bin/python" - <<'PY'
import monai
import torch
from monai.losses import GlobalMutualInformationLoss

torch.manual_seed(0)
image, other = torch.rand(2, 1, 1, 16, 16, 16)
print(f"MONAI {monai.__version__}")
found = {}
for kernel in ("gaussian", "b-spline"):
    loss = GlobalMutualInformationLoss(kernel_type=kernel)
    for top in (1, 1000):
        found[kernel, top] = float(loss(top * image, top * image))
        beside = float(loss(top * image, top * other))
        print(f"{kernel}, 0 to {top}: an image with itself {found[kernel, top]:.3f}, with another {beside:.3f}")
if [value < -1.5 for value in found.values()] != [True, False, True, True]:
    raise SystemExit("changed: the scale of the images matters otherwise now")
PY
