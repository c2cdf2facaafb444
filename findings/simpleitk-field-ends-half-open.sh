#!/usr/bin/env bash
# SimpleITK 2.5.7: where does a displacement field end? Half a voxel outside of its outer voxels' centres, but not alike
# at both ends: a point exactly half a voxel before the first voxel is moved, one exactly half a voxel behind the last is
# not. (Outside, points stay.) An implementation that treats both ends alike differs from ITK at every point there, such
# as all voxel centres of an image whose voxels are half a voxel beside the field's.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet SimpleITK==2.5.7 numpy==2.3.5
"$folder/venv/bin/python" - <<'PY'
import numpy as np
import SimpleITK as sitk

size = 8
image = sitk.GetImageFromArray(np.ones((size, size, size, 3)), isVector=True)
transform = sitk.DisplacementFieldTransform(image)
print("SimpleITK", sitk.Version_VersionString())
found = {x: transform.TransformPoint((x, 4.0, 4.0))[0] - x for x in (-0.51, -0.5, size - 0.5, size - 0.51)}
for x, moved in found.items():
    print(f"index {x:5.2f} of a field of {size} voxels, all offsets 1: moved by {moved:g}")
if list(found.values()) != [0.0, 1.0, 0.0, 1.0]:
    raise SystemExit("changed: the ends of a field are treated otherwise now")
PY
