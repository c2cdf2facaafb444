#!/usr/bin/env bash
# nipype 1.11.0: a node runs again when an input has changed. An array is compared by its printed form, which shows the
# first and last three of more than 1000 elements, and a float by ten decimals. A change in between, or below 1e-10,
# is none: the node says that it is cached and hands out the old result, whatever hash_method is set.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile nipype==1.11.0 numpy==2.3.5
cd "$folder"
cat > run.py <<'PY'
import logging
from pathlib import Path

import numpy as np
from nipype import Function, Node

logging.disable(logging.WARNING)


def total(values):
    import numpy

    return float(numpy.sum(values))


def run(name, values):
    function = Function(function=total, input_names=["values"], output_names=["total"])
    node = Node(function, name=name, base_dir=str(Path.cwd()))
    node.inputs.values = values
    return node.run().outputs.total


found = {}
for name, size in (("short", 1000), ("long", 1001)):
    values = np.zeros(size)
    before = run(name, values)
    values[size // 2] = 7
    found[name] = (before, run(name, values))
found["float"] = (run("float", 1e-11), run("float", 2e-11))
print("nipype 1.11.0, sums of zeros, then with one 7 in the middle:")
print(f"1000 elements: {found['short']}, 1001 elements: {found['long']}")
print(f"a float of 1e-11, then 2e-11: {found['float']}")
if found != {"short": (0.0, 7.0), "long": (0.0, 0.0), "float": (1e-11, 1e-11)}:
    raise SystemExit("changed: a node tells its inputs apart otherwise now")
PY
NO_ET=1 "$folder/venv/bin/python" run.py
