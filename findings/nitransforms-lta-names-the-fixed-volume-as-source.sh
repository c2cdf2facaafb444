#!/usr/bin/env bash
# nitransforms 25.1.0, surfa 0.6.3 (FreeSurfer's library): an LTA file holds a matrix that takes the source's points
# to the target's, and both volumes' geometry. nitransforms writes the matrix from moving to fixed, as it should be,
# but describes the fixed image as "src" and the moving one as "dst": the two halves of the file contradict each
# other. It reads its own files back right, as it ignores the volumes then.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet nitransforms==25.1.0 surfa==0.6.3 scipy==1.15.3 nibabel==5.4.2 numpy==2.3.5
cd "$folder"
"$folder/venv/bin/python" - <<'PY'
import nibabel as nb
import nitransforms as nt
import numpy as np
import surfa

fixed = nb.Nifti1Image(np.zeros((5, 6, 7), np.float32), np.eye(4))
moving = nb.Nifti1Image(np.zeros((8, 9, 10), np.float32), np.eye(4))
matrix = nb.affines.from_matvec(np.eye(3), (1, 2, 3))  # nitransforms: a point of the fixed image to one of the moving
nt.linear.Affine(matrix, reference=fixed).to_filename("moving_to_fixed.lta", fmt="fs", moving=moving)
assert np.allclose(nt.linear.load("moving_to_fixed.lta", fmt="fs").matrix, matrix)
read = surfa.load_affine("moving_to_fixed.lta")
shift, source, target = (np.asarray(part).tolist() for part in (read.matrix[:3, 3], read.source.shape, read.target.shape))
print(f"nitransforms 25.1.0: moving image {moving.shape}, fixed image {fixed.shape}, moving to fixed is (-1, -2, -3)")
print(f"read by surfa: from source {source} to target {target}, shift {shift}")
if (shift, source, target) != ([-1.0, -2.0, -3.0], [5, 6, 7], [8, 9, 10]):
    raise SystemExit("changed: LTA files are written otherwise now")
PY
