#!/usr/bin/env bash
# niworkflows 1.14.5: DerivativesDataSink names an output after its source file. Of an anatomical scan's source it
# leaves out "echo" and "part", which it knows: the outputs of two echoes, or of magnitude and phase, get one name, and
# the second overwrites the first without a word. "chunk", which it does not know, is carried along.
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


def save(name, value):
    path = Path(name).resolve()
    path.parent.mkdir(parents=True, exist_ok=True)
    nb.save(nb.Nifti1Image(np.full((3, 3, 3), value, np.float32), np.eye(4)), path)
    return str(path)


found = {}
print("niworkflows 1.14.5")
for sources in ("echo-1_T2starw echo-2_T2starw", "part-mag_T1w part-phase_T1w", "chunk-1_T1w chunk-2_T1w"):
    written = set()
    for number, source in enumerate(sources.split()):
        sink = DerivativesDataSink(
            base_directory=str(Path("out").resolve()),
            source_file=save(f"bids/sub-01/anat/sub-01_{source}.nii.gz", number),
            in_file=save("preprocessed.nii.gz", number),
            desc="preproc",
        )
        written.add(sink.run().outputs.out_file)
    names = sorted(Path(name).name for name in written)
    found[sources] = len(names)
    print(f"outputs of {sources}: {', '.join(names)}")
if list(found.values()) != [1, 1, 2]:
    raise SystemExit("changed: the sink gives other names now")
PY
