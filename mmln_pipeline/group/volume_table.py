"""Volumes of labels, of many images in one table."""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from mmln_pipeline.machine.files import atomic_path

ORIGIN = ("participant_id", "session_id", "scan", "atlas")
VOLUMES = ("index", "name", "voxels", "volume_mm3")


def write_volumes(paths: Mapping[str, Sequence[Path]], target: Path) -> dict[str, str]:
    """Join the tables of volumes of many images, one in memory at a time.

    Parameters
    ----------
    paths : mapping of str to sequence of Path
        Tables ``..._seg-ATLAS_volumes.tsv`` of each scan, by its entities (``sub-X_ses-Y``).
    target : Path
        The table to write, a row a label of a scan, with the columns of `ORIGIN` and `VOLUMES`; left untouched where
        it would not change.

    Returns
    -------
    dict of str to str
        Why a table could not be read, by its name.
    """
    refused: dict[str, str] = {}
    with (
        atomic_path(target, keep_same=True) as temporary,
        temporary.open("w", newline="", encoding="utf-8") as stream,
    ):
        writer = csv.writer(stream, delimiter="\t", lineterminator="\n")
        writer.writerow((*ORIGIN, *VOLUMES))
        for scan, path in ((scan, path) for scan, own in paths.items() for path in own):
            try:
                with path.open(newline="", encoding="utf-8") as lines:
                    reader = csv.DictReader(lines, delimiter="\t")
                    if missing := [name for name in VOLUMES if name not in (reader.fieldnames or ())]:
                        raise ValueError(f"no column {missing[0]}")
                    rows = [[row[name] for name in VOLUMES] for row in reader]
            except (OSError, ValueError, csv.Error) as error:
                refused[path.name] = f"cannot be read ({' '.join(str(error).split())})"
                continue
            session, atlas = re.search("_(ses-[^_]+)", scan), re.search("_seg-([^_]+)_", path.name)
            origin = (scan.split("_")[0], session[1] if session else "n/a", scan, atlas[1] if atlas else "n/a")
            writer.writerows([*origin, *row] for row in rows)
    return refused
