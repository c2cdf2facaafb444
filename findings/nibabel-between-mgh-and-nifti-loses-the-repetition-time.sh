#!/usr/bin/env bash
# nibabel 5.4.2: NIfTI keeps a series' time step in the units that its header names, MGH in milliseconds. A series of
# 2 s made an MGHImage by from_image has a time step of 0; an MGH series of 2000 ms made a Nifti1Image has 2000 of an
# unknown unit.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet nibabel==5.4.2 numpy==2.3.5
cd "$folder"
"$folder/venv/bin/python" - <<'PY'
import nibabel as nb
import numpy as np

data = np.zeros((3, 4, 5, 6), np.float32)
nifti = nb.Nifti1Image(data, np.eye(4))
nifti.header.set_xyzt_units("mm", "sec")
nifti.header.set_zooms((1, 1, 1, 2))
mgh = nb.MGHImage(data, np.eye(4))
mgh.header["tr"] = 2000
nb.save(nb.MGHImage.from_image(nifti), "from_nifti.mgz")
nb.save(nb.Nifti1Image.from_image(mgh), "from_mgh.nii")
to_mgh = float(nb.load("from_nifti.mgz").header["tr"])
header = nb.load("from_mgh.nii").header
to_nifti = float(header.get_zooms()[3]), header.get_xyzt_units()[1]
print(f"nibabel {nb.__version__}: 2 s in NIfTI becomes {to_mgh} ms in MGH")
print(f"2000 ms in MGH becomes {to_nifti[0]} in NIfTI, unit {to_nifti[1]!r}")
if (to_mgh, to_nifti) != (0.0, (2000.0, "unknown")):
    raise SystemExit("changed: the repetition time is carried over otherwise now")
PY
