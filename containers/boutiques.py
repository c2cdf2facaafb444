"""Write the Boutiques descriptor of the BIDS App, from its own parser: what platforms such as CBRAIN ask users for.

    python containers/boutiques.py > containers/boutiques.json

A test says when the file is out of date.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import fields
from typing import Any

from mmln_pipeline import __version__
from mmln_pipeline.bids_app.arguments import build_parser
from mmln_pipeline.bids_app.invocation import Config

SCHEMA = "0.5"
TYPES = {field.name: str(field.type) for field in fields(Config)}
FOLDERS = ("output_dir", "work_dir", "bids_database_dir")
"""Paths that a run may make itself; Boutiques wants those of its type File to be there."""


def describe_app() -> dict[str, Any]:
    """Compose the descriptor: Boutiques schema 0.5, one input for each option."""
    parser = build_parser()
    actions = [action for action in parser._actions if action.dest not in ("help", "version")]
    return {
        "schema-version": SCHEMA,
        "name": "mmln-bids",
        "tool-version": __version__,
        "description": parser.description,
        "command-line": " ".join(["mmln-bids", *(key_of(action) for action in actions)]),
        "inputs": [describe_option(action) for action in actions],
        "output-files": [
            {
                "id": "derivative_dataset",
                "name": "derivative dataset",
                "description": "OUTPUT_DIR",
                "path-template": key_of(next(action for action in actions if action.dest == "output_dir")),
            }
        ],
        "tags": {"domain": ["neuroinformatics", "bids-app", "mri", "registration"]},
    }


def describe_option(action: argparse.Action) -> dict[str, Any]:
    """Describe one argument of the parser as an input."""
    described: dict[str, Any] = {
        "id": action.dest,
        "name": action.dest.replace("_", " "),
        "description": str(action.help).replace("%%", "%"),
        "type": type_of(action),
        "value-key": key_of(action),
        "optional": bool(action.option_strings),
    }
    if action.option_strings:
        described["command-line-flag"] = max(action.option_strings, key=len)
    if action.nargs == "+":
        described["list"] = True
    if action.choices is not None:
        described["value-choices"] = list(action.choices)
    if described["type"] == "Number":
        described["integer"] = True
    return described


def type_of(action: argparse.Action) -> str:
    """Return Boutiques' name of what an argument takes."""
    if action.nargs == 0:
        return "Flag"
    of_field = TYPES.get(action.dest, "Path")  # --config-file is no setting
    if action.dest not in FOLDERS and "Path" in of_field and action.nargs is None:
        return "File"
    return "Number" if of_field == str(int) else "String"


def key_of(action: argparse.Action) -> str:
    """Return what stands for an argument in the command line."""
    return f"[{action.dest.upper()}]"


if __name__ == "__main__":
    print(json.dumps(describe_app(), indent=2))
