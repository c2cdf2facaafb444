#!/usr/bin/env bash
# surfa 0.6.3 (FreeSurfer's Python library) asks for any NumPy, and pip gives it one with which it reads no .mgz file, neither
# its own nor NiBabel's: binary np.fromstring is gone. NIfTI files, which it hands to NiBabel, are read.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet surfa==0.6.3 numpy==2.3.5 nibabel==5.4.0
cd "$folder"
"$folder/venv/bin/python" - <<'PY'
import nibabel as nib
import numpy as np
import surfa

data = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
nib.save(nib.MGHImage(data, np.eye(4)), "nibabel.mgz")
nib.save(nib.Nifti1Image(data, np.eye(4)), "nibabel.nii.gz")
surfa.Volume(data).save("surfa.mgz")
print(f"surfa {surfa.__version__}, numpy {np.__version__}")
for name in ("nibabel.nii.gz", "nibabel.mgz", "surfa.mgz"):
    try:
        said = f"read, shape {surfa.load_volume(name).shape}"
    except ValueError as error:
        said = f"ValueError: {error}"
    print(f"{name}: {said}")
    if said.startswith("read") != name.endswith(".nii.gz"):
        raise SystemExit("changed: surfa reads these files otherwise now")
assert np.array_equal(nib.load("surfa.mgz").get_fdata(), data)  # what it wrote is sound
PY
