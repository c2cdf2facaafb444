#!/usr/bin/env bash
# picsl-greedy 1.4.0.3 (Greedy3D): the displacement field written by -o holds multiples of 0.1 voxel unless -wp 0 is given,
# so that a comparison of its warps, or a Jacobian of them, sees steps of a tenth of a voxel that the registration had not.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet picsl-greedy==1.4.0.3 SimpleITK==2.5.7 numpy==2.3.5
cd "$folder"
"$folder/venv/bin/python" - <<'PY'
import numpy as np
import picsl_greedy
import SimpleITK as sitk

# Two blurred balls, one 1.5 voxels further along the first axis; spacing 1 mm, so that millimetres are voxels.
grid = np.stack(np.meshgrid(*[np.arange(32.0)] * 3, indexing="ij"))
for name, shift in (("fixed", 0.0), ("moving", 1.5)):
    centre = np.array([16 + shift, 16, 16])[:, None, None, None]
    ball = 100 * np.exp(-(((grid - centre) / 6) ** 2).sum(0))
    sitk.WriteImage(sitk.GetImageFromArray(ball.T.astype(np.float32)), f"{name}.nii.gz")


def run(more):
    greedy = picsl_greedy.Greedy3D()
    greedy.execute(f"-d 3 -m SSD -n 20x10 -i fixed.nii.gz moving.nii.gz -o warp.nii.gz -threads 1 {more}")
    return sitk.GetArrayFromImage(sitk.ReadImage("warp.nii.gz")).astype(np.float64)


print("picsl-greedy 1.4.0.3")
for more in ("", "-wp 0"):
    warp = run(more)
    off = np.abs(warp * 10 - np.round(warp * 10)).max() / 10
    print(f"options {more!r}: {len(np.unique(warp))} values, at most {off:.4f} voxel from multiples of 0.1")
    if (off < 1e-4) != (more == ""):
        raise SystemExit("changed: the field's precision is another now")
PY
