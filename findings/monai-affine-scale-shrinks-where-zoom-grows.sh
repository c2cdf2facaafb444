#!/usr/bin/env bash
# MONAI 1.6.1: Zoom(1.5) makes an object larger, Affine(scale_params=1.5) smaller; Rotate90 turns an image one way, a
# Rotate or an Affine by +90 degrees the other; Affine(translate_params=+3) moves it by -3. Affine's numbers belong to
# the sampling grid, not to the image. Augmentation written with one of them is not the same with the other.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile monai==1.6.1 torch==2.13.0 numpy==2.3.5
cd "$folder"
"$folder/venv/bin/python" - <<'PY'
import math

import monai
import torch
from monai.transforms import Affine, Rotate, Rotate90, Zoom

cube = torch.zeros(1, 21, 21, 21)
cube[:, 6:15, 6:15, 6:15] = 1
point = torch.zeros(1, 21, 21, 21)
point[:, 14, 10, 10] = 1
options = {"mode": "nearest", "padding_mode": "zeros", "image_only": True}
quarter = (0, 0, math.pi / 2)


def where(image):
    return [int(i) for i in image[0].nonzero()[0]]


found = {
    "cube of 9, Zoom 1.5": round(float(Zoom(1.5, mode="nearest")(cube).sum()) ** (1 / 3)),
    "cube of 9, Affine 1.5": round(float(Affine(scale_params=(1.5,) * 3, **options)(cube).sum()) ** (1 / 3)),
    "point at 14, 10, 10, Rotate90": where(Rotate90(1, (0, 1))(point)),
    "point at 14, 10, 10, Rotate +90": where(Rotate(quarter, mode="nearest")(point)),
    "point at 14, 10, 10, Affine +90": where(Affine(rotate_params=quarter, **options)(point)),
    "point at 14, 10, 10, Affine +3": where(Affine(translate_params=(3, 0, 0), **options)(point)),
}
print(f"MONAI {monai.__version__}", *(f"{name}: {value}" for name, value in found.items()), sep="\n")
if list(found.values()) != [14, 6, [10, 14, 10], [10, 6, 10], [10, 6, 10], [11, 10, 10]]:
    raise SystemExit("changed: the transforms do something else now")
PY
