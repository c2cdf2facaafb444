#!/usr/bin/env bash
# niworkflows 1.14.5: DerivativesDataSink rounds an image to the type asked for (data_dtype="source": that of the source
# file) without clipping or scaling. What resampling makes of an int16 scan's brightest edge, above 32767, is written as
# a large negative number; -1 is 255 in uint8. The log tells of a changed type, and names the same type twice.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile niworkflows==1.14.5 nipype==1.11.0 nibabel==5.4.2 numpy==2.3.5
cd "$folder"
export NO_ET=1 TEMPLATEFLOW_HOME="$folder/templateflow" TEMPLATEFLOW_AUTOUPDATE=off
"$folder/venv/bin/python" - <<'PY'
from pathlib import Path

import nibabel as nb
import numpy as np
from niworkflows.interfaces.bids import DerivativesDataSink


def save(name, values, kind):
    path = Path(name).resolve()
    path.parent.mkdir(parents=True, exist_ok=True)
    nb.save(nb.Nifti1Image(np.array(values, kind).reshape(3, 1, 1), np.eye(4)), path)
    return str(path)


source = save("bids/sub-01/anat/sub-01_T1w.nii.gz", [0, 100, 32767], np.int16)
resampled = save("resampled.nii.gz", [-0.75, 100.25, 33000], np.float32)
found = {}
for kind in (None, "source", "uint8"):
    options = {} if kind is None else {"data_dtype": kind}
    base = str(Path("out").resolve())
    sink = DerivativesDataSink(base_directory=base, source_file=source, in_file=resampled, desc="preproc", **options)
    found[kind] = nb.load(sink.run().outputs.out_file).get_fdata().ravel().tolist()
    print(f"niworkflows 1.14.5, -0.75, 100.25 and 33000 with data_dtype={kind}: {found[kind]}")
if found != {None: [-0.75, 100.25, 33000], "source": [-1, 100, -32536], "uint8": [255, 100, 232]}:
    raise SystemExit("changed: the sink converts numbers otherwise now")
PY
