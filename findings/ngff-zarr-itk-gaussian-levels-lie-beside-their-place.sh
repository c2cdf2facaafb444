#!/usr/bin/env bash
# ngff-zarr 0.50.0, itk 5.4.7: a pyramid made with Methods.ITK_GAUSSIAN holds the right translations (0.5, 1.5 and 3.5
# voxels for 2, 4 and 8 times coarser levels), but voxels sampled as if there were none: all levels start at the first
# voxel. Level by level the image lies further beside its place. The default, ITKWASM_GAUSSIAN, of which it is said to
# be the native twin, is right.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile ngff-zarr==0.50.0 itk==5.4.7 numpy==2.3.5
cd "$folder"
"$folder/venv/bin/python" - <<'PY'
import ngff_zarr
import numpy as np

ramp = np.broadcast_to(np.arange(64, dtype=np.float32), (16, 16, 64)).copy()  # each voxel holds its own x
one, zero = dict.fromkeys("zyx", 1), dict.fromkeys("zyx", 0)
image = ngff_zarr.to_ngff_image(ramp, dims=("z", "y", "x"), scale=one, translation=zero)
found = {}
for method in (ngff_zarr.Methods.ITKWASM_GAUSSIAN, ngff_zarr.Methods.ITK_GAUSSIAN):
    found[method.name] = []
    for level in ngff_zarr.to_multiscales(image, scale_factors=[2, 4, 8], method=method).images[1:]:
        values = np.asarray(level.data)
        depth, height, width = (size // 2 for size in values.shape)
        place = width * level.scale["x"] + level.translation["x"]
        found[method.name].append(round(float(place - values[depth, height, width]), 3))
    print(f"{method.name}: levels beside their place by {found[method.name]} voxels of the full image")
if found != {"ITKWASM_GAUSSIAN": [0, 0, 0], "ITK_GAUSSIAN": [0.5, 1.5, 3.5]}:
    raise SystemExit("changed: the levels lie elsewhere now")
PY
