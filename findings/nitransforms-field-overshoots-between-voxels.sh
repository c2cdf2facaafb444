#!/usr/bin/env bash
# nitransforms 25.1.0, SimpleITK 2.5.7: between the voxels of a displacement field ITK interpolates linearly.
# nitransforms' DenseFieldTransform.map takes cubic splines, with no argument for another order: at a step from 0 to 8
# mm it goes to -0.8 and 8.8. One file moves the same point to two places wherever the field's grid is not the
# reference's.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet nitransforms==25.1.0 SimpleITK==2.5.7 scipy==1.15.3 nibabel==5.4.2 numpy==2.3.5
cd "$folder"
"$folder/venv/bin/python" - <<'PY'
import nibabel as nb
import nitransforms as nt
import numpy as np
import SimpleITK as sitk

offsets = np.zeros((8, 8, 8, 1, 3), np.float32)
offsets[4:, ..., 0] = -8  # ITK's file is LPS, so that this is 8 mm to the right
image = nb.Nifti1Image(offsets, np.eye(4))
image.header.set_intent("vector")
image.to_filename("field.nii.gz")
theirs = nt.nonlinear.DenseFieldTransform(nt.io.itk.ITKDisplacementsField.from_image(nb.load("field.nii.gz")))
itk = sitk.DisplacementFieldTransform(sitk.ReadImage("field.nii.gz", sitk.sitkVectorFloat64))
places = np.array([2.5, 3.5, 4.5])
points = np.column_stack([places, np.full((3, 2), 4.0)])
found = theirs.map(points)[:, 0] - places
expected = np.array([-itk.TransformPoint((-x, -y, z))[0] for x, y, z in points]) - places
print("nitransforms 25.1.0, moved by nitransforms and by ITK, in mm:")
for x, one, other in zip(places, found, expected):
    print(f"x = {x}: {one:.3f} {other:.3f}")
if not (np.allclose(expected, [0, 4, 8]) and found[0] < -0.5 and found[2] > 8.5):
    raise SystemExit("changed: nitransforms interpolates fields otherwise now")
PY
