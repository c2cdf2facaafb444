#!/usr/bin/env bash
# nibabel 5.4.2, SimpleITK 2.5.7, picsl_c3d 1.4.6.0: a NIfTI file may hold two places for an image, qform and sform.
# nibabel takes the sform whenever it has a code. ITK, and so c3d, takes it only if its code is 1 (scanner); with 2
# (aligned), 3 or 4 (template) it takes the qform. A scan that was aligned by its sform and kept the scanner's qform
# lies in two places, without a warning.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile SimpleITK==2.5.7 picsl_c3d==1.4.6.0 nibabel==5.4.2 numpy==2.3.5
cd "$folder"
"$folder/venv/bin/python" - <<'PY'
import nibabel as nb
import numpy as np
import picsl_c3d
import SimpleITK as sitk

names = {10: "qform", 20: "sform"}
found = {}
for code in range(5):
    image = nb.Nifti1Image(np.zeros((4, 4, 4), np.float32), np.eye(4))
    image.set_qform(nb.affines.from_matvec(np.eye(3), (10, 10, 10)), 1)
    image.set_sform(nb.affines.from_matvec(np.eye(3), (20, 20, 20)), code)
    nb.save(image, "scan.nii")
    picsl_c3d.Convert3D().execute("scan.nii -o c3d.nii")
    ours, theirs, written = nb.load("scan.nii"), sitk.ReadImage("scan.nii"), nb.load("c3d.nii")
    places = (ours.affine[2, 3], theirs.GetOrigin()[2], written.affine[2, 3])
    found[code] = [names.get(round(float(place)), "neither") for place in places]
    print(f"qform code 1, sform code {code}: nibabel, ITK and c3d take {', '.join(found[code])}")
split = ["sform", "qform", "qform"]
if found != {0: ["qform"] * 3, 1: ["sform"] * 3, 2: split, 3: split, 4: split}:
    raise SystemExit("changed: another form is taken")
PY
