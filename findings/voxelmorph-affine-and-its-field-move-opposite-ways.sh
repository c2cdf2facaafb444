#!/usr/bin/env bash
# voxelmorph 0.3.4 (PyTorch): spatial_transform(image, affine) inverts the matrix before use; affine_to_disp and compose
# do not. So a matrix moves an image one way when given as such, and the other way once it was made a displacement field
# or was composed with one, even with a field of zeros. An affine step checked alone is turned round when a deformation
# joins it.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile voxelmorph==0.3.4 neurite==0.3.4 torch==2.13.0 numpy==2.3.5
cd "$folder"
"$folder/venv/bin/python" - <<'PY'
import torch
import voxelmorph as vxm

size = (15, 15, 15)
image = torch.zeros(size)
image[7, 7, 7] = 1
shift = torch.eye(4)
shift[0, 3] = 3
ways = {
    "the matrix": shift,
    "affine_to_disp of it": vxm.affine_to_disp(shift, shape=size),
    "compose of it and no displacement": vxm.compose([shift, torch.zeros(3, *size)]),
}
print("voxelmorph 0.3.4, a point at 7 on the first axis and a matrix with a shift of 3")
found = []
for name, transform in ways.items():
    found.append(int(vxm.spatial_transform(image, transform).sum((1, 2)).argmax()))
    print(f"moved by {name}: at {found[-1]}")
if found != [10, 4, 4]:
    raise SystemExit("changed: the transforms move points elsewhere now")
PY
