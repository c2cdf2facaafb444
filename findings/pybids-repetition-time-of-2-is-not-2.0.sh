#!/usr/bin/env bash
# pybids 0.22.0: get(RepetitionTime=2.0) finds the scans whose sidecar says 2.0 and not those that say 2, and
# get(...=2) the other way round. JSON knows one kind of number, and a sidecar may be written either way; a query by
# TR silently leaves scans out.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet pybids==0.22.0
cd "$folder"
"$folder/venv/bin/python" - <<'PY'
import json
import warnings
from pathlib import Path

from bids import BIDSLayout

warnings.simplefilter("ignore")
root = Path("bids").resolve()


def write(name, content=None):
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_text("" if content is None else json.dumps(content))


write("dataset_description.json", {"Name": "example", "BIDSVersion": "1.8.0"})
for subject, step in (("01", 2), ("02", 2.0)):
    write(f"sub-{subject}/func/sub-{subject}_task-rest_bold.nii.gz")
    write(f"sub-{subject}/func/sub-{subject}_task-rest_bold.json", {"RepetitionTime": step})
layout = BIDSLayout(root)
print("pybids 0.22.0: the sidecar of 01 says 2, that of 02 says 2.0")
for asked, expected in ((2, ["01"]), (2.0, ["02"])):
    found = [scan.entities["subject"] for scan in layout.get(RepetitionTime=asked, extension=".nii.gz")]
    print(f"RepetitionTime={asked}: {found}")
    if found != expected:
        raise SystemExit("changed: numbers are matched otherwise now")
PY
