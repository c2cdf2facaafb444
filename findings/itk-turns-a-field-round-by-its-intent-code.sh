#!/usr/bin/env bash
# SimpleITK 2.5.7: NIfTI has two codes for vectors, 1007 (vector) and 1006 (displacement vector). ITK reads the numbers
# of the first as they stand, in its own axes (LPS), and takes those of the second as RAS: x and y change their sign. A
# field that was given the code made for it, with the same bytes, pulls the other way. ITK's own files say 1007, and an
# image read from a 1006 file cannot be written as NIfTI: RuntimeError.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile SimpleITK==2.5.7 nibabel==5.4.2 numpy==2.3.5
cd "$folder"
"$folder/venv/bin/python" - <<'PY'
import nibabel as nb
import numpy as np
import SimpleITK as sitk

field = nb.Nifti1Image(np.broadcast_to(np.float32([1, 2, 3]), (4, 4, 4, 1, 3)), np.eye(4))
print("SimpleITK 2.5.7, displacements of 1, 2, 3 in the file")
found = {}
for name in ("vector", "displacement vector"):
    field.header.set_intent(name)
    nb.save(field, "field.nii")
    image = sitk.ReadImage("field.nii")
    try:
        sitk.WriteImage(image, "again.nii")
        again = str(nb.load("again.nii").header.get_intent()[0])
    except RuntimeError:
        again = "no file, RuntimeError"
    found[name] = (image[1, 1, 1], again)
    print(f"intent {name}: read as {image[1, 1, 1]}; written again: {again}")
wanted = {"vector": ((1, 2, 3), "vector"), "displacement vector": ((-1, -2, 3), "no file, RuntimeError")}
if found != wanted:
    raise SystemExit("changed: the intent code means something else now")
PY
