#!/usr/bin/env bash
# nibabel 5.4.2: as_closest_canonical says that an image is in MNI space only if it was turned the right way before.
# If an axis is flipped, sform_code 4 (MNI 152) becomes 2 (aligned), and qform_code becomes 0; an image that needs no
# flip keeps both. So two images of one template end with different codes, by the order of their voxels.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet nibabel==5.4.2 numpy==2.3.5
cd "$folder"
"$folder/venv/bin/python" - <<'PY'
import nibabel as nb
import numpy as np

print("nibabel", nb.__version__)
found = []
for sign in (1, -1):
    affine = np.diag([sign, 1, 1, 1])
    image = nb.Nifti1Image(np.zeros((3, 4, 5), np.float32), affine)
    image.set_sform(affine, code="mni")
    image.set_qform(affine, code="mni")
    turned = nb.as_closest_canonical(image).header
    found.append((int(turned["sform_code"]), int(turned["qform_code"])))
    print(f"first axis {sign:+d} mm: sform_code and qform_code 4 and 4 become {found[-1][0]} and {found[-1][1]}")
if found != [(4, 4), (2, 0)]:
    raise SystemExit("changed: the codes are kept or lost otherwise now")
PY
