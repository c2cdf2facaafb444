#!/usr/bin/env bash
# nilearn 0.14.1: swap_img_hemispheres mirrors an image about the middle of its own grid, not about x = 0, where the
# hemispheres of MNI space meet. An image cut to the head, or of another field of view, comes out beside its place:
# here a voxel at x = 4 mm goes to -2 mm, not to -4. Only a grid that reaches equally far to both sides, as nilearn's
# templates do, is mirrored in place.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet nilearn==0.14.1 scipy==1.15.3 nibabel==5.4.2 numpy==2.3.5
cd "$folder"
"$folder/venv/bin/python" - <<'PY'
import nibabel as nb
import nilearn
import numpy as np
from nilearn.image import swap_img_hemispheres

print("nilearn", nilearn.__version__)
found = {}
for first in (-4, -3):  # nine voxels of 1 mm: from -4 to 4, and from -3 to 5
    data = np.zeros((9, 3, 3), np.float32)
    data[4 - first] = 1  # x = 4
    image = nb.Nifti1Image(data, nb.affines.from_matvec(np.eye(3), (first, 0, 0)))
    swapped = swap_img_hemispheres(image)
    index = int(swapped.get_fdata()[:, 1, 1].argmax())
    found[first] = float(swapped.affine[0, 0] * index + swapped.affine[0, 3])
    print(f"image from x = {first} to {first + 8}: what was at 4 is at {found[first]:g}")
if found != {-4: -4.0, -3: -2.0}:
    raise SystemExit("changed: images are mirrored about another plane now")
PY
