#!/usr/bin/env bash
# niworkflows 1.14.5: TemplateDimensions and Conform bring a subject's T1w scans to one grid: the smallest voxel size of
# all and the largest number of voxels of all, each chosen by itself. Two scans, one of few large voxels and one of more
# small ones, get a field of view smaller than the first has, and its outer parts are cut off without a warning. One
# would expect a grid that holds every scan.
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
from niworkflows.interfaces.images import Conform, TemplateDimensions

names = []
for size, number in ((2, 12), (1, 16)):
    affine = np.diag([size, size, size, 1.0])
    affine[:3, 3] = -size * (number - 1) / 2
    head = np.zeros((number,) * 3, np.float32)
    head[1:-1, 1:-1, 1:-1] = 1
    names.append(str(Path(f"voxels-of-{size}-mm.nii").resolve()))
    nb.save(nb.Nifti1Image(head, affine), names[-1])
grid = TemplateDimensions(anat_list=names).run().outputs
print(f"niworkflows 1.14.5: {grid.target_shape} voxels of {grid.target_zooms} mm")
kept = []
for name in names:
    result = Conform(in_file=name, target_zooms=grid.target_zooms, target_shape=grid.target_shape).run()
    before, after = (
        image.get_fdata().sum() * abs(np.linalg.det(image.affine))
        for image in (nb.load(name), nb.load(result.outputs.out_file))
    )
    kept.append(after / before)
    print(f"{Path(name).name}: {before:.0f} mm3 of head before, {after:.0f} mm3 after")
if grid.target_shape != (16, 16, 16) or not 0.45 < kept[0] < 0.55 or abs(kept[1] - 1) > 0.01:
    raise SystemExit("changed: the scans are brought to another grid now")
PY
