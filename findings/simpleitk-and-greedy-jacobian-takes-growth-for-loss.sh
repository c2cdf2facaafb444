#!/usr/bin/env bash
# SimpleITK 2.5.7, picsl-greedy 1.4.0.3: the Jacobian determinant of a displacement field is taken along the array's
# axes, while the vectors are in mm along x, y, z; the image's direction is not used. Where the first two axes run to
# the right and to the front, as in most NIfTI files, growth by 20 % is reported as loss of 20 %; in oblique images
# the number is off by less. antspyx 0.6.3 gives 1.2 for both, as resampling with the field does.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile SimpleITK==2.5.7 antspyx==0.6.3 picsl-greedy==1.4.0.3 numpy==2.3.5
cd "$folder"
"$folder/venv/bin/python" - <<'PY'
import subprocess
import sys

import ants
import SimpleITK as sitk

GREEDY = "import picsl_greedy; picsl_greedy.Greedy3D().execute('-d 3 -rf scan.nii -r field.nii -rj jacobian.nii')"
growth = sitk.AffineTransform((1.2, 0, 0, 0, 1, 0, 0, 0, 1), (0, 0, 0))  # 20 % along x, whatever the image
found = {}
for name, sign in (("LPS", 1), ("RAS", -1)):
    scan = sitk.Image((9, 9, 9), sitk.sitkFloat32)
    scan.SetDirection((sign, 0, 0, 0, sign, 0, 0, 0, 1))
    sitk.WriteImage(scan, "scan.nii")
    convert = sitk.TransformToDisplacementFieldFilter()
    convert.SetReferenceImage(scan)
    field = convert.Execute(growth)
    sitk.WriteImage(sitk.Cast(field, sitk.sitkVectorFloat32), "field.nii")
    subprocess.run([sys.executable, "-c", GREEDY], check=True, stdout=subprocess.DEVNULL)
    found[name] = {
        "SimpleITK": sitk.DisplacementFieldJacobianDeterminant(field)[4, 4, 4],
        "greedy -rj": sitk.ReadImage("jacobian.nii")[4, 4, 4],
        "antspyx": float(ants.create_jacobian_determinant_image(ants.image_read("scan.nii"), "field.nii")[4, 4, 4]),
    }
    found[name] = {tool: round(value, 3) for tool, value in found[name].items()}
    print(f"volume times 1.2, image {name}: {found[name]}")
right = {"SimpleITK": 1.2, "greedy -rj": 1.2, "antspyx": 1.2}
if found != {"LPS": right, "RAS": right | {"SimpleITK": 0.8, "greedy -rj": 0.8}}:
    raise SystemExit("changed: another Jacobian determinant")
PY
