#!/usr/bin/env bash
# pybids 0.22.0: get(subject=["01", "02"]) gives the scans of two people, get(subject=["01"]) of one, and
# get(subject=[]) of everybody: an empty list is no filter. A list of those who passed some check, when nobody did,
# selects all of them.
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
for subject in ("01", "02", "03"):
    write(f"sub-{subject}/anat/sub-{subject}_T1w.nii.gz")
layout = BIDSLayout(root)
print("pybids 0.22.0")
for asked, expected in ((["01", "02"], 2), (["01"], 1), ([], 3)):
    found = layout.get(subject=asked, suffix="T1w")
    print(f"subject={asked}: {len(found)} of 3 scans")
    if len(found) != expected:
        raise SystemExit("changed: an empty list is another filter now")
PY
