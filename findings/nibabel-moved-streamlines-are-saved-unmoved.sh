#!/usr/bin/env bash
# nibabel 5.4.2: Tractogram.apply_affine moves the streamlines, and they print moved. Saving takes the move back, as
# affine_to_rasmm, which was given its inverse, is applied first. Streamlines brought to a template by a
# registration's matrix lie in the subject's space again in the .tck or .trk file, without a warning. A new Tractogram
# of the moved points helps.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet nibabel==5.4.2 numpy==2.3.5
cd "$folder"
"$folder/venv/bin/python" - <<'PY'
import nibabel as nb
import numpy as np
from nibabel.streamlines import Tractogram, load, save

tracts = Tractogram([np.array([[0, 0, 0], [1, 2, 3]], np.float32)], affine_to_rasmm=np.eye(4))
tracts.apply_affine(nb.affines.from_matvec(np.eye(3), (10, 0, 0)))
print(f"nibabel {nb.__version__}: moved by 10 mm along x, points at x = {tracts.streamlines[0][:, 0].tolist()}")
for kind in ("tck", "trk"):
    save(tracts, f"moved.{kind}")
    found = load(f"moved.{kind}").streamlines[0][:, 0].tolist()
    print(f"in the .{kind} file: x = {found}")
    if not np.allclose(found, [0, 1]):
        raise SystemExit("changed: moved streamlines are saved moved")
PY
