#!/usr/bin/env bash
# picsl_c3d 1.4.6.0: c3d reads not-a-number and infinity as 0, without a word. A file that is only read and written
# has lost them: voxels marked as missing become measurements of 0, count in means, and lie inside thresholds such as
# -1 to 1.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet picsl_c3d==1.4.6.0 nibabel==5.4.2 numpy==2.3.5
cd "$folder"
"$folder/venv/bin/python" - <<'PY'
import nibabel as nb
import numpy as np
import picsl_c3d

values = np.array([-1, 2, np.nan, np.inf, -np.inf], np.float32).reshape(5, 1, 1)
nb.save(nb.Nifti1Image(values, np.eye(4)), "read.nii")
picsl_c3d.Convert3D().execute("read.nii -o written.nii")
found = nb.load("written.nii").get_fdata().ravel().tolist()
print(f"picsl_c3d 1.4.6.0: {values.ravel().tolist()} becomes {found}")
if found != [-1.0, 2.0, 0.0, 0.0, 0.0]:
    raise SystemExit("changed: c3d handles them otherwise now")
PY
