#!/usr/bin/env bash
# niworkflows 1.14.5: CreateSurfaceROI makes a mask of the cortex from a thickness map, 1 where the thickness is not 0.
# It works the mask out, and saves the thickness: the file and its map are named ROI, and hold millimetres. As weights,
# or summed up, they give wrong numbers; only "not 0" finds the cortex.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile niworkflows==1.14.5 nipype==1.11.0 nibabel==5.4.2 numpy==2.3.5
cd "$folder"
NO_ET=1 "$folder/venv/bin/python" - <<'PY'
from pathlib import Path

import nibabel as nb
import numpy as np
from nibabel.gifti import GiftiDataArray, GiftiImage
from niworkflows.interfaces.surf import CreateSurfaceROI

thickness = np.float32([0, 2.5, 3.25, 0, 1.75])
name = Path("thickness.shape.gii").resolve()
nb.save(GiftiImage(darrays=[GiftiDataArray(thickness, intent="NIFTI_INTENT_SHAPE")]), name)
result = CreateSurfaceROI(hemisphere="L", thickness_file=str(name)).run().outputs.roi_file
mask = nb.load(result).darrays[0]
print(f"niworkflows 1.14.5: thickness {thickness.tolist()}")
print(f"{Path(result).name}, map {mask.meta['Name']}: {mask.data.tolist()}")
if not np.array_equal(mask.data, thickness):
    raise SystemExit("changed: the ROI holds something else now")
PY
