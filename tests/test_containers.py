"""What the container recipes share with the package: the files they copy, the descriptor of its options, the tag."""

import json
import re
import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
CONTAINERS = ROOT / "containers"


def test_both_recipes_copy_the_same_files_and_all_are_there():
    ignored = (ROOT / ".dockerignore").read_text()
    kept = re.findall(r"^!(.+)$", ignored, re.MULTILINE)
    copied = re.findall(r"^    (\S+) /src/(\S+)$", (CONTAINERS / "mmln.def").read_text(), re.MULTILINE)
    assert [source for source, _ in copied] == [target for _, target in copied] == kept
    assert all((ROOT / name).exists() for name in kept)
    assert "\n*\n" in ignored  # nothing else


def test_both_recipes_start_from_one_image():
    recipes = [(CONTAINERS / name).read_text() for name in ("Dockerfile", "mmln.def")]
    bases = re.findall(r"^(?:ARG BASE=|From: )(.+)$", "\n".join(recipes), re.MULTILINE)
    assert len(bases) == 3 and len(set(bases)) == 1


def test_the_boutiques_descriptor_is_that_of_the_options():
    written = json.loads((CONTAINERS / "boutiques.json").read_text())
    assert written == runpy.run_path(str(CONTAINERS / "boutiques.py"))["describe_app"](), (
        "python containers/boutiques.py > containers/boutiques.json"
    )


def test_the_boutiques_descriptor_is_valid():
    validate = pytest.importorskip("boutiques.validator", reason="boutiques is not installed").validate_descriptor
    validate(json.loads((CONTAINERS / "boutiques.json").read_text()))
