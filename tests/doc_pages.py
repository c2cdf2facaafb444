"""The pages of the documentation as tests read them: their code blocks, run in one process on a tiny brain."""

import contextlib
import io
import json
import re
import shlex
import shutil
from functools import partial
from pathlib import Path

import joblib
import numpy as np
import pytest
from tiny_bids import SHAPE, make_brain

from mmln_pipeline import cli, demo, weights
from mmln_pipeline.atlas import templates
from mmln_pipeline.bids_app import arguments as parser
from mmln_pipeline.bids_app.run import main as run_bids_app
from mmln_pipeline.space.grids import Grid

ROOT = Path(__file__).resolve().parents[1]
PAGES = {path.stem: path.read_text(encoding="utf-8") for path in (ROOT / "docs").glob("*.md")}
PAGES |= {name: (ROOT / f"{name}.md").read_text(encoding="utf-8") for name in ("README", "CONTRIBUTING")}


def find_blocks(page, *languages):
    """Return the language and the text of each code block of a page."""
    found = re.findall(r"^```(\w+)\n(.*?)^```$", PAGES[page], re.MULTILINE | re.DOTALL)
    return [(language, text) for language, text in found if language in languages]


def list_commands(text):
    """Return the commands of a block of bash, without comments, their lines joined; a script is one command."""
    if text.startswith("#!"):
        return [text]
    lines = text.replace("\\\n", " ").splitlines()
    return [command for command in (shlex.join(shlex.split(line, comments=True)) for line in lines) if command]


def ants_apply_transforms(arguments):
    """ANTs' own program, from the library that antspyx brings."""
    from ants.internal import get_lib_fn

    return get_lib_fn("antsApplyTransforms")(arguments)


PROGRAMS = {"mmln-bids": run_bids_app, "mmln": cli.main, "antsApplyTransforms": ants_apply_transforms}


def run_block(language, text, names):
    """Run a block in this process, Python with the names of the blocks before it; return what it printed."""
    with contextlib.redirect_stdout(io.StringIO()) as out:
        if language == "python":
            exec(compile(text, "<page>", "exec"), names)
            return out.getvalue()
        for command in list_commands(text):
            program, *arguments = shlex.split(command)
            assert PROGRAMS[program](arguments) == 0, command
    return out.getvalue()


@contextlib.contextmanager
def walnut(folder):
    """Work in a folder, with a template and bundled weights for a brain of the size of a walnut, on one processor."""
    brain = make_brain()
    shares = [np.clip(brain.get_fdata() / 600 - shift, 0, 1).astype(np.float32) for shift in (0.0, 0.4)]
    images = dict(zip(("t1", "gm", "wm"), (brain.get_fdata(dtype=np.float32), *shares), strict=True))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(weights, "FOLDER", shrink_weights(folder / "weights"))
        patch.setattr(templates, "_read_nilearns", lambda kind: (Grid.of(brain), images[kind].copy()))
        patch.setattr(demo, "make_truth", partial(demo.make_truth, spacing=1, smoothness=8.0, size=1.0))
        patch.setattr(parser, "_available_processors", lambda: 1)
        patch.setattr(joblib, "cpu_count", lambda: 1)
        yield


def shrink_weights(folder):
    """Copy the bundled weights, with cards that tell of a small grid."""
    shutil.copytree(weights.FOLDER, folder)
    for path in folder.glob("*.json"):
        card = json.loads(path.read_text())
        path.write_text(json.dumps(card | {"network": card["network"] | {"grid": SHAPE}}))
    return folder
