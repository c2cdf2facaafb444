#!/usr/bin/env bash
# nitransforms 25.1.0, SimpleITK 2.5.7: a displacement field may be smaller than the image that is resampled onto. Outside
# of it ITK moves nothing. nitransforms does the same for points between the field's voxels; when all points lie on its
# voxels, it looks them up as array indices without regard to the field's size: points before its first voxel go where a
# voxel at its other end goes. (Points behind its last voxel raise IndexError.)
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet nitransforms==25.1.0 SimpleITK==2.5.7 nibabel==5.4.2 numpy==2.3.5 scipy==1.15.3
cd "$folder"
"$folder/venv/bin/python" - <<'PY'
import nibabel as nb
import nitransforms as nt
import numpy as np
import SimpleITK as sitk

# 10 voxels of 1 mm from (2, 2, 2); the offset along x (RAS) is the voxel's index along x, in mm.
offsets = np.zeros((10, 10, 10, 1, 3), np.float32)
offsets[..., 0, 0] = -np.arange(10)[:, None, None]  # ITK's file is LPS
affine = nb.affines.from_matvec(np.eye(3), (2, 2, 2))
image = nb.Nifti1Image(offsets, affine)
image.header.set_intent("vector")
image.to_filename("field.nii.gz")

field = nt.io.itk.ITKDisplacementsField.from_image(nb.load("field.nii.gz"))
theirs = nt.nonlinear.DenseFieldTransform(field)
itk = sitk.DisplacementFieldTransform(sitk.ReadImage("field.nii.gz", sitk.sitkVectorFloat64))


def by_itk(x, y, z):
    moved = itk.TransformPoint((-x, -y, z))
    return np.array([-moved[0], -moved[1], moved[2]])


print("nitransforms 25.1.0")
for name, point in (("on a voxel's place before the field", (1.0, 5.0, 5.0)), ("a tenth beside it", (1.1, 5.0, 5.0))):
    found, expected = theirs.map(np.array([point]))[0] - point, by_itk(*point) - point
    print(f"{name}: nitransforms moves by {found.round(3).tolist()}, ITK by {expected.round(3).tolist()}")
    is_wrong = abs(found - expected).max() > 1
    if is_wrong != (name != "a tenth beside it"):
        raise SystemExit("changed: nitransforms handles such points otherwise now")
PY
