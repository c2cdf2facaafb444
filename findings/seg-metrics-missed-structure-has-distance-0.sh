#!/usr/bin/env bash
# seg-metrics 1.2.8: for a structure of which nothing was found, the Dice value is 0, and so are the Hausdorff
# distance, its 95th percentile and the mean surface distance, as if the match were perfect. Expected: infinity or nan.
# Means over scans get better with each structure missed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile seg-metrics==1.2.8 numpy==2.3.5
cd "$folder"
"$folder/venv/bin/python" - <<'PY'
import numpy as np
import seg_metrics.seg_metrics as sg

truth = np.zeros((16, 16, 16), np.uint8)
truth[2:6, 2:6, 2:6] = 1
truth[9:14, 9:14, 9:14] = 2
guess = np.roll(truth, 1, axis=0)  # the first structure one voxel off ...
guess[guess == 2] = 0  # ... and nothing of the second
names = ["dice", "hd", "hd95", "msd"]
values = sg.write_metrics(labels=[1, 2], gdth_img=truth, pred_img=guess, csv_file=None, metrics=names, verbose=False)[0]
found = {name: [round(float(value), 2) for value in values[name]] for name in names}
print(f"seg-metrics 1.2.8, a structure found one voxel off, and one missed: {found}")
if found != {"dice": [0.75, 0.0], "hd": [1.0, 0.0], "hd95": [1.0, 0.0], "msd": [0.36, 0.0]}:
    raise SystemExit("changed: a missed structure has other distances now")
PY
