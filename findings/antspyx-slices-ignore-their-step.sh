#!/usr/bin/env bash
# antspyx 0.6.3: an image takes slices as an array does, but reading ignores their step. image[::2, ::2, ::2] is the
# whole image in full resolution, image[::-1] is not flipped, and no error tells. Assigning to the same slice does
# honour the step.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile antspyx==0.6.3 numpy==2.3.5
cd "$folder"
"$folder/venv/bin/python" - <<'PY'
import ants
import numpy as np

image = ants.from_numpy(np.broadcast_to(np.arange(1.0, 9.0, dtype=np.float32)[:, None, None], (8, 8, 8)).copy())
print("antspyx 0.6.3, an image of 8 x 8 x 8 with 1 to 8 along the first axis")
half, turned = image[::2, ::2, ::2], image[::-1, :, :]
print(f"image[::2, ::2, ::2] has the shape {half.shape}")
print(f"image[::-1, :, :] holds {turned[:, 0, 0].tolist()} along the first axis")
image[::2, ::2, ::2] = 0
zeros = int((image.numpy() == 0).sum())
print(f"image[::2, ::2, ::2] = 0 sets {zeros} of {8**3} voxels")
if half.shape != (8, 8, 8) or turned[0, 0, 0] != 1 or zeros != 64:
    raise SystemExit("changed: slices are read otherwise now")
PY
