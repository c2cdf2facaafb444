#!/usr/bin/env bash
# antspyx 0.6.3: from_numpy makes every integer array but uint8 an image of uint32, signed ones too, without a word.
# -5 becomes 4294967291, so that the darkest voxels of a CT, or of any int16 scan below 0, are the brightest. Floats
# keep their values.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile antspyx==0.6.3 numpy==2.3.5
cd "$folder"
"$folder/venv/bin/python" - <<'PY'
import ants
import numpy as np

print("antspyx 0.6.3")
found = {}
for kind in ("int8", "int16", "int32", "int64", "float32"):
    image = ants.from_numpy(np.full((4, 4, 4), -5, kind))
    found[kind] = float(image.numpy()[0, 0, 0])
    print(f"-5 as {kind}: image of {image.pixeltype} holding {found[kind]:.0f}")
if found != {kind: -5.0 if kind == "float32" else 4294967291.0 for kind in found}:
    raise SystemExit("changed: from_numpy keeps other numbers now")
PY
