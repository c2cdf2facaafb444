#!/usr/bin/env bash
# SimpleITK 2.5.7: an argument of type double, such as the value of voxels outside the image, takes Python's int 3, but no
# NumPy integer and no float32: TypeError ("argument 2 of type 'double'"). float64 passes, being a Python float. So
# `SetDefaultPixelValue(labels.min())` fails for every type of label image, and `labels.mean()` works; float(...) helps.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet SimpleITK==2.5.7 numpy==2.3.5
"$folder/venv/bin/python" - <<'PY'
import numpy as np
import SimpleITK as sitk

print("SimpleITK", sitk.Version_VersionString(), "NumPy", np.__version__)
taken = {}
for kind in ("uint8", "int16", "int32", "uint32", "int64", "uint64", "float32", "float64"):
    try:
        sitk.ResampleImageFilter().SetDefaultPixelValue(np.dtype(kind).type(3))
        taken[kind] = True
    except TypeError:
        taken[kind] = False
print({kind: "taken" if ok else "TypeError" for kind, ok in taken.items()})
sitk.ResampleImageFilter().SetDefaultPixelValue(3)
if [kind for kind, ok in taken.items() if ok] != ["float64"]:
    raise SystemExit("changed: other NumPy numbers are taken now")
PY
