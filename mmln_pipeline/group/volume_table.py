"""Volumes of labels, of many images in one table."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

COLUMNS = ("participant_id", "session_id", "scan", "atlas", "index", "name", "voxels", "volume_mm3")


def join_volumes(paths: Mapping[str, Sequence[Path]]) -> tuple[pd.DataFrame, dict[str, str]]:
    """Join the tables of volumes of many images.

    Parameters
    ----------
    paths : mapping of str to sequence of Path
        Tables ``..._seg-ATLAS_volumes.tsv`` of each scan, by its entities (``sub-X_ses-Y``).

    Returns
    -------
    table : DataFrame
        With `COLUMNS`; a row a label of a scan.
    refused : dict of str to str
        Why a table could not be read, by its name.
    """
    parts, refused = [], {}
    for scan, own in paths.items():
        session = re.search("_(ses-[^_]+)", scan)
        for path in own:
            atlas = re.search("_seg-([^_]+)_", path.name)
            try:
                table = pd.read_csv(path, sep="\t", keep_default_na=False)
                part = table[list(COLUMNS[4:])]
            except (OSError, ValueError, KeyError) as error:
                refused[path.name] = f"cannot be read ({' '.join(str(error).split())})"
                continue
            origin = {
                "participant_id": scan.split("_")[0],
                "session_id": session[1] if session else "n/a",
                "scan": scan,
                "atlas": atlas[1] if atlas else "n/a",
            }
            parts.append(part.assign(**origin)[list(COLUMNS)])
    return (pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=COLUMNS)), refused
