#!/usr/bin/env bash
# niworkflows 1.14.5: DerivativesDataSink sets the unit of a BOLD series' time to seconds, and leaves the number as it
# is unless RepetitionTime is given. A series whose header says 2000 ms is written with 2000 s: the repetition time is
# half an hour for whoever reads the header's unit with the number.
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

source = Path("bids/sub-01/func/sub-01_task-rest_bold.nii.gz").resolve()
source.parent.mkdir(parents=True)
series = nb.Nifti1Image(np.zeros((3, 3, 3, 5), np.float32), np.eye(4))
series.header.set_zooms((1, 1, 1, 2000))
series.header.set_xyzt_units("mm", "msec")
nb.save(series, source)
nb.save(series, "preprocessed.nii.gz")
sink = DerivativesDataSink(
    base_directory=str(Path("out").resolve()),
    source_file=str(source),
    in_file=str(Path("preprocessed.nii.gz").resolve()),
    desc="preproc",
)
written = nb.load(sink.run().outputs.out_file).header
found = (float(written.get_zooms()[3]), written.get_xyzt_units()[1])
print(f"niworkflows 1.14.5: a time step of 2000 msec went in, {found[0]:g} {found[1]} came out")
if found != (2000.0, "sec"):
    raise SystemExit("changed: the sink writes another time step now")
PY
