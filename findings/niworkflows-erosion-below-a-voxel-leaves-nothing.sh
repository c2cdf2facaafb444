#!/usr/bin/env bash
# niworkflows 1.14.5: TPM2ROI(erode_mm=...) erodes a tissue's region by that many millimetres. Less than a voxel leaves
# no voxel at all, where one would expect the region unchanged or one layer less: it is no erosion steps, which SciPy
# takes as "until nothing changes". Signals of white matter or CSF are then taken from an empty region.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile niworkflows==1.14.5 nipype==1.11.0 nibabel==5.4.2 numpy==2.3.5
cd "$folder"
NO_ET=1 "$folder/venv/bin/python" - <<'PY'
from pathlib import Path

import nibabel as nb
import numpy as np
from niworkflows.interfaces.probmaps import TPM2ROI

probability = np.zeros((16, 16, 16), np.float32)
probability[2:14, 2:14, 2:14] = 1
names = []
for name, array in (("probability", probability), ("mask", np.ones((16, 16, 16), np.uint8))):
    names.append(str(Path(f"{name}.nii").resolve()))
    nb.save(nb.Nifti1Image(array, np.diag([2, 2, 2, 1])), names[-1])
found = {}
print("niworkflows 1.14.5: a region of 12 x 12 x 12 voxels of 2 mm")
for depth in (None, 1.0, 2.0, 4.0):
    options = {} if depth is None else {"erode_mm": depth}
    region = TPM2ROI(in_tpm=names[0], in_mask=names[1], **options).run().outputs.roi_file
    found[depth] = int(nb.load(region).get_fdata().sum())
    print(f"eroded by {depth or 0:g} mm: {found[depth]} of 1728 voxels")
if found != {None: 1728, 1.0: 0, 2.0: 1000, 4.0: 512}:
    raise SystemExit("changed: TPM2ROI erodes otherwise now")
PY
