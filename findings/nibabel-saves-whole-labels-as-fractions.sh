#!/usr/bin/env bash
# nibabel 5.4.2: labels held as floats (what get_fdata gives) and saved as int16 are stretched over the whole range of
# int16, with a slope, although each fits as it is. They come back as 1.00001526 or 2.99998: `== 1` finds no voxel,
# and a cast to int makes a 2 of the 3. This is what an image made with a label image's own header does. Integers in
# memory are stored as they are.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet nibabel==5.4.2 numpy==2.3.5
cd "$folder"
"$folder/venv/bin/python" - <<'PY'
import nibabel as nb
import numpy as np

labels = np.array([0, 1, 2, 3, 4], np.int16).reshape(5, 1, 1)
nb.save(nb.Nifti1Image(labels, np.eye(4)), "labels.nii")
image = nb.load("labels.nii")
print("nibabel", nb.__version__)
for name, data in (("floats", image.get_fdata()), ("integers", np.asarray(image.dataobj))):
    nb.save(nb.Nifti1Image(data, image.affine, image.header), "saved.nii")
    saved = nb.load("saved.nii")
    found = saved.get_fdata().ravel()
    print(f"{name} as {saved.get_data_dtype()}: {found.tolist()}, cast {found.astype(int).tolist()}")
    if (found.astype(int).tolist() == [0, 1, 2, 3, 4]) != (name == "integers"):
        raise SystemExit("changed: labels are saved otherwise now")
PY
