#!/usr/bin/env bash
# nipype 1.11.0: PickAtlas(hemi="right") keeps the first half of the array's first axis, whatever the affine says. In
# an atlas stored in RAS order, which nibabel's as_closest_canonical makes of any, that is the left hemisphere: the
# mask lies in the wrong one, without a warning. Only a first axis that runs to the left gives the side asked for.
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
from nipype.algorithms.misc import PickAtlas

labels = np.zeros((7, 3, 3), np.int16)
labels[[1, 5]] = 5
found = {}
print("nipype 1.11.0: label 5 lies at x = -4 mm (left) and x = 4 mm (right)")
for order, sign in (("LAS", -1), ("RAS", 1)):
    affine = np.diag([2 * sign, 2, 2, 1])
    affine[0, 3] = -6 * sign
    nb.save(nb.Nifti1Image(labels, affine), f"{order}.nii")
    for side in ("left", "right"):
        result = PickAtlas(atlas=str(Path(f"{order}.nii").resolve()), labels=5, hemi=side).run()
        mask = nb.load(result.outputs.mask_file)
        voxels = np.argwhere(mask.get_fdata() > 0)
        found[order, side] = sorted(set(nb.affines.apply_affine(mask.affine, voxels)[:, 0].tolist()))
        print(f"stored in {order} order, hemi={side}: x = {found[order, side]}")
same, swapped = {"left": [-4.0], "right": [4.0]}, {"left": [4.0], "right": [-4.0]}
if found != {(order, side): x for order, sides in (("LAS", same), ("RAS", swapped)) for side, x in sides.items()}:
    raise SystemExit("changed: PickAtlas finds the hemispheres otherwise now")
PY
