#!/usr/bin/env bash
# antspyx 0.6.3: registration(type_of_transform="ElasticSyN") runs antsRegistration with SyN[gradient step, flow_sigma,
# total_sigma] at its defaults 3 and 0: the total field, whose smoothing would make SyN elastic, is not smoothed, and the
# update is smoothed as for "SyN". Only total_sigma > 0, by hand, makes it elastic.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet antspyx==0.6.3 numpy==2.3.5
cd "$folder"
cat > run.py <<'PY'
import sys

import ants
import numpy as np

grid = np.stack(np.meshgrid(*[np.arange(24.0)] * 3, indexing="ij"))
images = [ants.from_numpy((100 * np.exp(-(((grid - centre) / 5) ** 2).sum(0))).astype("float32")) for centre in (11, 13)]
ants.registration(*images, type_of_transform=sys.argv[1], reg_iterations=(2,), verbose=True)
PY
stages() { "$folder/venv/bin/python" run.py "$1" 2>&1 | grep -o 'SyN\[[0-9.,]*\]' | sort -u; }
plain=$(stages SyN)
elastic=$(stages ElasticSyN)
echo "antspyx 0.6.3: SyN runs $plain, ElasticSyN runs $elastic"
test "$plain" = "$elastic" || { echo "changed: ElasticSyN is told apart from SyN now"; exit 1; }
