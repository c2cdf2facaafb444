#!/usr/bin/env bash
# nibabel 5.4.2, SimpleITK 2.5.7: a NIfTI file whose qform_code and sform_code are both 0 has no orientation, and both
# readers give it one without a warning: for nibabel the second axis runs to the front and 0 is the image's middle,
# for ITK the axis runs to the back from the first voxel. The first axis runs to the left for both.
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

nb.save(nb.Nifti1Image(np.zeros((4, 5, 6), np.float32), None), "plain.nii")
header = nb.load("plain.nii").header
assert header["qform_code"] == 0 and header["sform_code"] == 0
image = sitk.ReadImage("plain.nii")
lps = np.array([image.TransformIndexToPhysicalPoint(index) for index in ((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1))])
ras = lps * (-1, -1, 1) + 0.0
affine = np.eye(4)
affine[:3] = np.column_stack([ras[1:].T - ras[:1].T, ras[0]])
theirs = {"nibabel 5.4.2": nb.load("plain.nii").affine, f"SimpleITK {sitk.Version_VersionString()}": affine}
for name, matrix in theirs.items():
    print(f"{name}: axes to {''.join(nb.aff2axcodes(matrix))}, first voxel at {matrix[:3, 3].tolist()} mm (RAS)")
if ["".join(nb.aff2axcodes(matrix)) for matrix in theirs.values()] != ["LAS", "LPS"]:
    raise SystemExit("changed: such files are placed otherwise now")
PY
