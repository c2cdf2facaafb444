#!/usr/bin/env bash
# niworkflows 1.14.5: SpikeRegressors flags, for each volume of too much motion, the volumes at the given lags, too:
# [0, 1] stands for that volume and the next. Each lag is applied to all that is flagged already: [0, 1, 2] flags three
# volumes after it, not two, and [-1, 0, 1, 2] five in all, not four. More data are censored than was asked for.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile niworkflows==1.14.5 nipype==1.11.0 nibabel==5.4.2 numpy==2.3.5
cd "$folder"
NO_ET=1 "$folder/venv/bin/python" - <<'PY'
import csv
from pathlib import Path

from niworkflows.interfaces.confounds import SpikeRegressors

motion = Path("motion.tsv").resolve()
rows = [f"{2 if volume == 4 else 0}\t0\n" for volume in range(12)]
motion.write_text("framewise_displacement\tstd_dvars\n" + "".join(rows))
found = []
print("niworkflows 1.14.5: volume 4 of 12 moved")
for lags in ([0], [0, 1], [0, 1, 2], [-1, 0, 1, 2]):
    result = SpikeRegressors(confounds_file=str(motion), lags=lags, output_format="mask").run()
    with open(result.outputs.confounds_file, newline="") as file:
        flags = [float(row["motion_outlier"]) for row in csv.DictReader(file, delimiter="\t")]
    found.append([volume for volume, flag in enumerate(flags) if flag])
    print(f"lags {lags}: volumes {found[-1]} flagged")
if found != [[4], [4, 5], [4, 5, 6, 7], [3, 4, 5, 6, 7]]:
    raise SystemExit("changed: the lags flag other volumes now")
PY
