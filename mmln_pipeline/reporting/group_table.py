"""The scores of all scans as one table: its columns and rows, and the scans that stand out."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from mmln_pipeline.reporting.scores import MISSING, SCORES, Score, write_number
from mmln_pipeline.statistics import robust_distances

Value = float | int | str | None
MIN_SCANS = 5
"""Fewer scans have no outliers: a median of so few says little."""
MAX_DISTANCE = 3.0
"""Scaled MADs from the median that are still usual."""
# Scores that are watched, and the smallest difference from the median that matters.
WATCHED = {
    "dice": 0.01,
    "similarity_global_correlation_after": 0.01,
    "similarity_local_correlation_after": 0.01,
    "folding_percent_brain": 0.01,
    "folding_percent": 0.01,
    "ndv_percent": 0.01,
    "tc": 0.01,
    "sdlogj": 0.01,
    "hd95_mm": 0.1,
    "inverse_consistency_mm": 0.05,
}
STRUCTURE_PREFIX = "dice_per_label_"
# Known from the scan's name, of no use in a table, or not one value a scan.
LEFT_OUT = ("subject", "session", "versions")
SECONDS = "seconds_total"
LONG = re.compile(r"\S:|\S{33}")  # addresses and checksums: too long for the page's table


def column(path: tuple[str, ...]) -> str:
    """Return the column of a nested score.

    Examples
    --------
    >>> column(("seconds", "total"))
    'seconds_total'
    """
    return "_".join(path)


def flatten(record: Mapping[str, Any], prefix: str = "") -> dict[str, Value]:
    """Bring a scan's nested record to one level: every number and every text.

    Parameters
    ----------
    record : mapping
        Content of a ``_desc-registration_qc.json``.

    Returns
    -------
    dict
        Names joined by ``_``, in the order of the record; numbers that are not finite become None.

    Examples
    --------
    >>> flatten({"subject": "01", "model": "mmln", "seconds": {"total": 3.5}, "dice": None})
    {'model': 'mmln', 'seconds_total': 3.5, 'dice': None}
    """
    flat: dict[str, Value] = {}
    for key, value in record.items():
        name = f"{prefix}{key}"
        if not prefix and key in LEFT_OUT:
            continue
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{name}_")
        elif isinstance(value, bool):
            flat[name] = int(value)
        elif isinstance(value, (int, float)):
            flat[name] = value if math.isfinite(value) else None
        elif value is None or isinstance(value, str):
            flat[name] = value
    return flat


@dataclass(frozen=True)
class Outlier:
    """A score of a scan that is unusual in its group.

    Attributes
    ----------
    scan : str
        The scan.
    score : Score
        The score.
    value, median : float
        The scan's value and the group's median.
    distance : float
        Scaled MADs from the median, below zero for a smaller value.
    """

    scan: str
    score: Score
    value: float
    median: float
    distance: float


@dataclass(frozen=True)
class GroupTable:
    """Scores of many scans.

    Attributes
    ----------
    rows : mapping of str to mapping
        Flat record (see `flatten`) of each scan by the entities that its file names begin with.
    """

    rows: Mapping[str, Mapping[str, Value]]

    @cached_property
    def columns(self) -> list[str]:
        """What at least one scan has a value for, in the order of the records."""
        named = dict.fromkeys(name for row in self.rows.values() for name in row)
        return [name for name in named if any(row.get(name) is not None for row in self.rows.values())]

    @cached_property
    def scores(self) -> list[Score]:
        """The scores with a name of their own that at least one scan has, in the order of a subject's report."""
        return [score for score in SCORES if self.numbers(column(score.after))]

    @cached_property
    def facts(self) -> dict[str, list[str]]:
        """Text that scans share or differ in, such as the model: the different values by the name."""
        found: dict[str, list[str]] = {}
        for name in self.columns:
            texts = [row.get(name) for row in self.rows.values() if isinstance(row.get(name), str)]
            if texts:
                found[name] = list(dict.fromkeys(str(text) for text in texts))
        return found

    @cached_property
    def structures(self) -> dict[str, list[float]]:
        """Dice of each structure in all scans that have it."""
        names = [name for name in self.columns if name.startswith(STRUCTURE_PREFIX)]
        found = {name.removeprefix(STRUCTURE_PREFIX): list(self.numbers(name).values()) for name in names}
        return {name: values for name, values in found.items() if values}

    @cached_property
    def outliers(self) -> list[Outlier]:
        """What stands out, by scan: more than `MAX_DISTANCE` scaled MADs from the median of at least
        `MIN_SCANS` scans, and by no less than the difference that matters (`WATCHED`)."""
        found = [outlier for score in SCORES for outlier in self._outliers_of(score)]
        return sorted(found, key=lambda outlier: outlier.scan)

    def numbers(self, name: str) -> dict[str, float]:
        """Return the values of a column by scan, without those that are missing or text."""
        values = {scan: row.get(name) for scan, row in self.rows.items()}
        return {scan: float(value) for scan, value in values.items() if isinstance(value, (int, float))}

    def to_tsv(self) -> str:
        """Return the whole table: a row a scan, all scores, ``n/a`` for what is missing.

        Returns
        -------
        str
            Tab-separated, with a header; the last column names the scores that stand out.
        """
        unusual: dict[str, list[str]] = {}
        for outlier in self.outliers:
            unusual.setdefault(outlier.scan, []).append(column(outlier.score.after))
        lines = [["participant_id", "session_id", "scan", *self.columns, "outlier_scores"]]
        for scan, row in self.rows.items():
            values = [_write_cell(row.get(name)) for name in self.columns]
            lines.append([*_labels(scan), scan, *values, ",".join(unusual.get(scan, [])) or MISSING])
        return "".join("\t".join(line) + "\n" for line in lines)

    def _outliers_of(self, score: Score) -> Iterator[Outlier]:
        """Yield the scans that stand out in one score."""
        name = column(score.after)
        numbers = self.numbers(name)
        if name not in WATCHED or len(numbers) < MIN_SCANS:
            return
        median = float(np.median(list(numbers.values())))
        for (scan, value), distance in zip(numbers.items(), robust_distances(list(numbers.values())), strict=True):
            if abs(distance) > MAX_DISTANCE and abs(value - median) >= WATCHED[name]:
                yield Outlier(scan, score, value, median, float(distance))


def page_rows(table: GroupTable) -> tuple[list[str], list[tuple[str, list[tuple[str, str]]]]]:
    """Return the columns and rows that the page shows: main scores, and text in which the scans differ.

    Parameters
    ----------
    table : GroupTable
        All scores.

    Returns
    -------
    columns : list of str
        Their names, after that of the scan.
    rows : list of (str, list of (str, str))
        The scan, and of each cell its text and its value for sorting (empty where it is missing).
    """
    shown = [(score.name, column(score.after), score.digits) for score in table.scores]
    if table.numbers(SECONDS):
        shown.append(("Seconds", SECONDS, ".1f"))
    differing = [name for name, texts in table.facts.items() if len(texts) > 1 and not LONG.search(" ".join(texts))]
    shown += [(name.replace("_", " "), name, "") for name in differing]
    rows = []
    for scan, row in table.rows.items():
        cells = [(write_number(row.get(name), digits), row.get(name)) for _, name, digits in shown]
        rows.append((scan, [(text, "" if value is None else str(value)) for text, value in cells]))
    return [name for name, _, _ in shown], rows


def _labels(scan: str) -> tuple[str, str]:
    """Return subject and session of a scan as BIDS writes them in tables."""
    session = re.search(r"_(ses-[^_]+)", scan)
    return scan.split("_")[0], session.group(1) if session else MISSING


def _write_cell(value: Value) -> str:
    """Write one cell of a TSV; nothing in it may end the cell or the row."""
    return MISSING if value is None else re.sub(r"\s", " ", str(value))
