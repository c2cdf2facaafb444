#!/usr/bin/env bash
# antspyx 0.6.3 and picsl_c3d 1.4.6.0 name an axis by the side it comes from, nibabel and SimpleITK's DICOMOrient by
# the side it runs to. So reorient_image2(image, "RAS") and `c3d -swapdim RAS` give what nibabel calls LPI, each axis
# the other way round, and the array goes mirrored into whatever is fed with arrays. The headers stay right; antspyx's
# help names no convention.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile antspyx==0.6.3 SimpleITK==2.5.7 picsl_c3d==1.4.6.0 nibabel==5.4.2 numpy==2.3.5
cd "$folder"
"$folder/venv/bin/python" - <<'PY'
import ants
import nibabel as nb
import numpy as np
import picsl_c3d
import SimpleITK as sitk

nb.save(nb.Nifti1Image(np.zeros((3, 4, 5), np.float32), np.diag([-1, 1, 1, 1])), "scan.nii")
ants.image_write(ants.reorient_image2(ants.image_read("scan.nii"), "RAS"), "antspyx.nii")
picsl_c3d.Convert3D().execute("scan.nii -swapdim RAS -o c3d.nii")
sitk.WriteImage(sitk.DICOMOrient(sitk.ReadImage("scan.nii"), "RAS"), "SimpleITK.nii")
found = {}
for name in ("antspyx", "c3d", "SimpleITK"):
    found[name] = "".join(nb.aff2axcodes(nb.load(f"{name}.nii").affine))
    print(f"{name}, asked for RAS: {found[name]} by nibabel")
if found != {"antspyx": "LPI", "c3d": "LPI", "SimpleITK": "RAS"}:
    raise SystemExit("changed: RAS means something else now")
PY
