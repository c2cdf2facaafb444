#!/usr/bin/env bash
# nibabel 5.4.2, SimpleITK 2.5.7: a NIfTI header names the unit of its lengths. ITK converts a file in micrometres to
# mm; nibabel's affine holds the numbers as they stand, as do header zooms. A point or transform taken from one of
# them lies a thousand times off in the other. It is the same with metres.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet nibabel==5.4.2 numpy==2.3.5 SimpleITK==2.5.7
cd "$folder"
"$folder/venv/bin/python" - <<'PY'
import nibabel as nb
import numpy as np
import SimpleITK as sitk

print(f"nibabel {nb.__version__}, SimpleITK {sitk.Version_VersionString()}")
for unit, millimetres in (("mm", 1.0), ("micron", 0.001), ("meter", 1000.0)):
    image = nb.Nifti1Image(np.zeros((3, 4, 5), np.float32), nb.affines.from_matvec(np.diag([8, 8, 8]), (16, 16, 16)))
    image.header.set_xyzt_units(unit)
    nb.save(image, "scan.nii")
    read = sitk.ReadImage("scan.nii")
    ours = nb.load("scan.nii").affine[[0, 2], [0, 3]]
    theirs = np.array([read.GetSpacing()[0], read.GetOrigin()[2]])
    print(f"{unit}: spacing and place of the first voxel {ours.tolist()} by nibabel, {theirs.round(6).tolist()} by ITK")
    if not (np.allclose(ours, [8, 16]) and np.allclose(theirs, millimetres * ours)):
        raise SystemExit("changed: units are handled otherwise now")
PY
