#!/usr/bin/env bash
# dacite 1.9.2: with `cast=[tuple]`, the usual way to let a TOML list fill a field `tuple[str, ...]`, a plain text given in
# place of the list is no error. It becomes the letters of the name of one of dacite's own generator objects, each of
# which is a text, so that the check of types passes. Expected: WrongTypeError, as without the cast.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet dacite==1.9.2
"$folder/venv/bin/python" - <<'PY'
from dataclasses import dataclass

import dacite


@dataclass
class Section:
    labels: tuple[str, ...]


print("dacite", "1.9.2")
plain = dacite.Config()
cast = dacite.Config(cast=[tuple])
try:
    dacite.from_dict(Section, {"labels": "01"}, plain)
    raise SystemExit("changed: text passes without the cast")
except dacite.WrongTypeError as error:
    print("without cast:", error)
found = "".join(dacite.from_dict(Section, {"labels": "01"}, cast).labels)
print("with cast=[tuple]:", found.split(" at ")[0])
if not found.startswith("<generator object"):
    raise SystemExit("changed: text is handled otherwise now")
PY
