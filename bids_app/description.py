"""The file that describes a dataset, `dataset_description.json`."""

import json
import os
from collections.abc import Mapping
from pathlib import Path

from mmln_pipeline.bids_app.arguments import UsageError
from mmln_pipeline.derivatives.filenames import DESCRIPTION
from mmln_pipeline.machine.files import why_unreadable

BIDS_VERSION = "1.11.0"
"""Version of BIDS that outputs follow."""


def read_description(root: Path, mend: str = "add it") -> dict:
    """Read a dataset's description, with or without a byte-order mark.

    Parameters
    ----------
    root : Path
        The dataset.
    mend : str, default "add it"
        What to do where there is none.

    Returns
    -------
    dict

    Raises
    ------
    UsageError
        There is none, or it cannot be read or is no JSON object.
    """
    path = root / DESCRIPTION
    reason = why_unreadable(path)
    if reason == "no such file":
        raise UsageError(f"{root}: no BIDS dataset, {DESCRIPTION} is missing: {mend}")
    if reason is not None:
        raise UsageError(f"{path}: {reason}")
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except ValueError as error:
        raise UsageError(f"{path}: not valid JSON: {error}") from error
    if not isinstance(content, dict):
        raise UsageError(f"{path}: expected a JSON object, found {type(content).__name__}")
    return content


def makers_of(description: Mapping) -> list[str]:
    """Return the names of the programs that made a dataset; what is no such entry is passed over."""
    entries = description.get("GeneratedBy")
    return (
        [str(entry.get("Name")) for entry in entries if isinstance(entry, Mapping)] if isinstance(entries, list) else []
    )


def describe_container(environment: Mapping[str, str] = os.environ) -> dict[str, str] | None:
    """Say which container image this program runs in, as `GeneratedBy` has it; None outside of containers.

    Parameters
    ----------
    environment : mapping of str to str, default os.environ
        Variables: our images set `MMLN_IMAGE`, Apptainer and Singularity set theirs.

    Examples
    --------
    >>> describe_container({"MMLN_IMAGE": "mmln-pipeline:1.0.0"})
    {'Type': 'docker', 'Tag': 'mmln-pipeline:1.0.0'}
    >>> describe_container({"APPTAINER_CONTAINER": "/project/mmln.sif"})
    {'Type': 'apptainer', 'URI': 'file:///project/mmln.sif'}
    """
    image = environment.get("MMLN_IMAGE")
    tag = {"Tag": image} if image else {}
    for kind in ("apptainer", "singularity"):
        path = environment.get(f"{kind.upper()}_CONTAINER")
        if path:
            uri = {"URI": Path(path).as_uri()} if Path(path).is_absolute() else {}
            return {"Type": kind, **tag, **uri}
    return {"Type": "docker", **tag} if tag else None
