#!/usr/bin/env bash
# pybids 0.22.0: ToDense makes a time series of a run's events. BIDS lets an event begin before the first volume, at a
# negative onset; ToDense takes it for the first of the next run. It appears as far from the run's end as it was before
# its start, and all events after it are lost, with a warning of late onsets. An event of no duration, for BIDS an
# impulse, does not appear either. Regressors made of such events are wrong or 0.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile pybids==0.22.0 nibabel==5.4.2 numpy==2.3.5
cd "$folder"
"$folder/venv/bin/python" - <<'PY'
import json
from pathlib import Path

import nibabel as nb
import numpy as np
from bids import BIDSLayout
from bids.modeling.transformations import ToDense

root = Path("bids").resolve()
run = root / "sub-01/func/sub-01_task-rest"
run.parent.mkdir(parents=True)
(root / "dataset_description.json").write_text(json.dumps({"Name": "example", "BIDSVersion": "1.8.0"}))
Path(f"{run}_bold.json").write_text(json.dumps({"TaskName": "rest", "RepetitionTime": 1.0}))
nb.save(nb.Nifti1Image(np.zeros((2, 2, 2, 20), np.float32), np.eye(4)), f"{run}_bold.nii.gz")
found = []
print("pybids 0.22.0, a run of 20 s")
for onset, duration in ((5, 2), (-3, 1), (5, 0)):
    Path(f"{run}_events.tsv").write_text(f"onset\tduration\tresponse\n{onset}\t{duration}\t1\n10\t1\t1\n")
    events = BIDSLayout(root).get_collections("run", types=["events"], merge=True)
    ToDense(events, "response", sampling_rate=1)
    found.append(np.flatnonzero(events["response"].values.to_numpy()).tolist())
    print(f"events at {onset} s for {duration} s and at 10 s for 1 s: seconds {found[-1]} are not 0")
if found != [[5, 6, 10], [17], [10]]:
    raise SystemExit("changed: events are put elsewhere now")
PY
