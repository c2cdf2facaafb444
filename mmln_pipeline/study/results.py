"""The results as one tidy table: a row for each method, seed and pair, with its scores, costs and provenance."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from mmln_pipeline.machine.files import write_text
from mmln_pipeline.study.configuration import Row, StudyConfig
from mmln_pipeline.study.people import Pair
from mmln_pipeline.study.protocol import pair_path

RESULTS = "results.tsv"
WHO = ("row", "method", "seed", "set", "fixed", "moving")
SCORES = {
    "dice": "Dice over the structures of the set's table",
    "dice_cortex": "Dice over the parcels of the cortex",
    "folding_percent": "voxels with |J| <= 0, % of the grid",
    "folding_percent_brain": "the same, % of the fixed brain",
    "ndv_percent": "non-diffeomorphic volume, % of the grid",
    "tc": "volume of a label after per before the warp",
    "hd95_mm": "95th percentile of surface distances, mm",
    "sdlogj": "SD of log J in the fixed brain",
    "sdlogj_learn2reg": "SD of log(J + 3) over the grid, Learn2Reg's",
    "dice_before": "Dice before the warp",
}
COSTS = ("seconds", "call", "peak_memory_mb", "threads", "voxel_mm", "scored_voxel_mm")
ORIGIN = ("provenance", "gradient_updates", "training_seconds", "training_memory_mb", "version")
STRUCTURE = "dice:"
"""What the columns of single structures begin with."""


def collect(output_dir: Path, marks: Mapping[tuple[str, int, Pair], str]) -> pd.DataFrame:
    """Read the scores of the pairs that are there.

    Parameters
    ----------
    output_dir : Path
        Folder of the study.
    marks : mapping of (row, seed, pair) to str
        The registrations in their order, each with the fingerprint that its scores must bear.

    Returns
    -------
    DataFrame
        Columns `WHO`, `SCORES`, `COSTS`, `ORIGIN`, and one a structure.
    """
    records = []
    for (row, seed, pair), mark in marks.items():
        path = pair_path(output_dir, row, seed, pair)
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        if content.get("fingerprint") == mark:
            structures = {f"{STRUCTURE}{name}": value for name, value in content["dice_per_label"].items()}
            records.append({name: content.get(name) for name in (*WHO, *SCORES, *COSTS, *ORIGIN)} | structures)
    return pd.DataFrame(records)


def write_results(study: StudyConfig, results: pd.DataFrame, output_dir: Path) -> Path:
    """Write the table of results.

    Parameters
    ----------
    study : StudyConfig
    results : DataFrame
        As of `collect`.
    output_dir : Path

    Returns
    -------
    Path
    """
    text = results.to_csv(sep="\t", index=False, float_format="%.6g", na_rep="n/a", lineterminator="\n")
    return write_text(output_dir / RESULTS, text)


def read_results(output_dir: Path) -> pd.DataFrame:
    """Read the table of results.

    Raises
    ------
    FileNotFoundError
        When there is none.
    ValueError
        When a column is missing.
    """
    path = output_dir / RESULTS
    if not path.is_file():
        raise FileNotFoundError(f"results: no such file: {path}; run the study first")
    results = pd.read_csv(path, sep="\t", na_values=["n/a"], keep_default_na=False, dtype={"provenance": str})
    if missing := [name for name in (*WHO, *SCORES, *COSTS, *ORIGIN) if name not in results]:
        raise ValueError(f"results {path}: expected a column {missing[0]!r}, found none")
    return results


def by_pair(results: pd.DataFrame, row: Row | str, test_sets: list[str]) -> pd.DataFrame:
    """Return a row's scores of each pair, averaged over its seeds; index: set, fixed, moving."""
    name = row if isinstance(row, str) else row.name
    chosen = results[(results["row"] == name) & results["set"].isin(test_sets)]
    numbers = [column for column in results if column in SCORES or column.startswith(STRUCTURE)]
    return chosen.groupby(["set", "fixed", "moving"], sort=True)[numbers].mean()


def costs(results: pd.DataFrame, row: str, test_sets: list[str]) -> dict[str, float]:
    """Return what a row costs.

    Parameters
    ----------
    results : DataFrame
    row : str
    test_sets : list of str

    Returns
    -------
    dict
        ``seconds``: median over the registrations of a warm method, or of all where none was warm; ``is_warm``, 1 or 0;
        ``peak_memory_mb``: mean over those that were the first of their process, whose peak no score has raised.
    """
    chosen = results[(results["row"] == row) & results["set"].isin(test_sets)]
    warm, first = chosen[chosen["call"] > 1], chosen[chosen["call"] == 1]
    timed = warm if len(warm) else chosen
    return {
        "seconds": float(timed["seconds"].median()),
        "is_warm": float(bool(len(warm))),
        "peak_memory_mb": float(first["peak_memory_mb"].mean()),
    }
