#!/usr/bin/env bash
# nibabel 5.4.2: img.slicer[::2, :, :, ::2] keeps every second voxel and every second volume. The voxel size in affine
# and header becomes twice as long; the time between volumes (pixdim[4], the repetition time for most readers) stays
# what it was, though it is twice as long, too.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet nibabel==5.4.2 numpy==2.3.5
cd "$folder"
"$folder/venv/bin/python" - <<'PY'
import nibabel as nb
import numpy as np

series = nb.Nifti1Image(np.zeros((4, 4, 4, 6), np.float32), np.eye(4))
series.header.set_xyzt_units("mm", "sec")
series.header.set_zooms((1, 1, 1, 2))
thinned = series.slicer[::2, :, :, ::2]
sizes = [float(size) for size in thinned.header.get_zooms()]
print(f"nibabel {nb.__version__}: shape {thinned.shape}, voxel {sizes[:3]} mm, time step {sizes[3]} s")
if sizes != [2.0, 1.0, 1.0, 2.0]:
    raise SystemExit("changed: the slicer's time step is another now")
PY
