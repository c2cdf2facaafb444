"""The scores of all scans as one table: its columns and rows, and the scans that stand out."""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from mmln_pipeline.group.statistics import robust_distances
from mmln_pipeline.reporting.shown_scores import MISSING, SCORES, Score, leaves, write_number
from mmln_pipeline.scores.quality import VERDICTS

Value = float | int | str | None
MIN_SCANS = 5
"""Fewer scans have no outliers: a median of so few says little."""
MIN_RANGE = 3
"""Fewer scans have no range worth showing."""
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
    "similarity_brain_correlation_after": 0.01,
    "brain_overlap_after": 0.01,
    "affine_volume_ratio": 0.05,
    "affine_rotation_degrees": 5.0,
}
STRUCTURE_PREFIX = "dice_per_label_"
AGREEMENT = "label_agreement"
AGREEMENT_PREFIX = f"{AGREEMENT}_per_label_"
# Known from the scan's name, of no use in a table, or named after the scan's own files (a column for each scan).
LEFT_OUT = ("subject", "session", "versions", "input_sha256")
SECONDS = "seconds_total"
VERDICT, REASONS = "qc_verdict", "qc_reasons"
LONG = re.compile(r"\S:|\S{33}")  # addresses and checksums: too long for the page's table


def column(path: tuple[str, ...]) -> str:
    """Return the column of a nested score.

    Examples
    --------
    >>> column(("seconds", "total"))
    'seconds_total'
    """
    return sys.intern("_".join(path))  # one text for all scans: a table of thousands has a hundred columns


def flatten(record: Mapping[str, Any]) -> dict[str, Value]:
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
    kept = {path: value for path, value in leaves(record) if path[0] not in LEFT_OUT}
    return {column(path): _plain(value) for path, value in kept.items()}


def add_agreement(
    records: Mapping[str, Mapping[str, Value]], agreement: Mapping[str, Mapping[str, float]]
) -> dict[str, dict[str, Value]]:
    """Add the overlap of each scan's labels with those of all others to the flat records.

    Parameters
    ----------
    records : mapping of str to mapping
        Flat records by scan.
    agreement : mapping of str to mapping of str to float
        By scan and label; scans without labels are not in it.

    Returns
    -------
    dict
        The records; the mean is ``label_agreement``, that of each label ``label_agreement_per_label_N``.

    Examples
    --------
    >>> add_agreement({"sub-1": {"dice": None}}, {"sub-1": {"4": 0.5, "11": 1.0}})["sub-1"]["label_agreement"]
    0.75
    """
    found: dict[str, dict[str, Value]] = {}
    for scan, record in records.items():
        labels = agreement.get(scan, {})
        mean = {AGREEMENT: sum(labels.values()) / len(labels)} if labels else {}
        by_label = {sys.intern(f"{AGREEMENT_PREFIX}{label}"): value for label, value in labels.items()}
        found[scan] = {**record, **mean, **by_label}
    return found


def _plain(value: Any) -> Value:
    """Return a value that a table can hold."""
    if isinstance(value, bool):
        return int(value)
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


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

    @property
    def differing(self) -> list[str]:
        """The columns of short text in which the scans differ, such as the model; not the verdict."""
        several = [name for name, texts in self.facts.items() if len(texts) > 1 and name not in (VERDICT, REASONS)]
        return [name for name in several if not LONG.search(" ".join(self.facts[name]))]

    @cached_property
    def verdicts(self) -> dict[str, list[str]]:
        """The scans of each verdict that was given, from good to bad."""
        found: dict[str, list[str]] = {verdict: [] for verdict in VERDICTS}
        for scan, row in self.rows.items():
            if row.get(VERDICT) in found:
                found[str(row[VERDICT])].append(scan)
        return {verdict: scans for verdict, scans in found.items() if scans}

    @cached_property
    def structures(self) -> dict[str, list[float]]:
        """Dice of each structure in all scans that have it: with the template's, or else with the other scans'."""
        return self._by_label(STRUCTURE_PREFIX) or self._by_label(AGREEMENT_PREFIX)

    @property
    def are_structures_the_templates(self) -> bool:
        """Whether `structures` compares with the template's labels."""
        return bool(self._by_label(STRUCTURE_PREFIX))

    def _by_label(self, prefix: str) -> dict[str, list[float]]:
        names = [name for name in self.columns if name.startswith(prefix)]
        found = {name.removeprefix(prefix): list(self.numbers(name).values()) for name in names}
        return {name: values for name, values in found.items() if values}

    @cached_property
    def outliers(self) -> list[Outlier]:
        """What stands out, by scan: more than `MAX_DISTANCE` scaled MADs from the median of at least
        `MIN_SCANS` scans, and by no less than the difference that matters (`WATCHED`)."""
        found = [outlier for score in SCORES for outlier in self._outliers_of(score)]
        return sorted(found, key=lambda outlier: outlier.scan)

    def numbers(self, name: str) -> dict[str, float]:
        """Return the values of a column by scan, without those that are missing or text."""
        if name not in self._numbers:
            values = {scan: row.get(name) for scan, row in self.rows.items()}
            self._numbers[name] = {
                scan: float(value) for scan, value in values.items() if isinstance(value, (int, float))
            }
        return self._numbers[name]

    @cached_property
    def _numbers(self) -> dict[str, dict[str, float]]:
        """Columns that were asked for: those of many scans are asked for once for each."""
        return {}

    @cached_property
    def ranges(self) -> dict[Score, list[float]]:
        """Smallest value, quartile, median, quartile and largest value of each score that `MIN_RANGE` scans have."""
        columns = {score: list(self.numbers(column(score.after)).values()) for score in self.scores}
        return {
            score: np.percentile(values, (0, 25, 50, 75, 100)).tolist()
            for score, values in columns.items()
            if len(values) >= MIN_RANGE
        }

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
        lines = ["\t".join(["participant_id", "session_id", "scan", *self.columns, "outlier_scores"])]
        for scan, row in self.rows.items():
            values = [_write_cell(row.get(name)) for name in self.columns]
            lines.append("\t".join([*scan_labels(scan), scan, *values, ",".join(unusual.get(scan, [])) or MISSING]))
        return "\n".join([*lines, ""])

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


def group_tables(records: Mapping[str, Mapping[str, Any]]) -> dict[str, GroupTable]:
    """Sort records by their template.

    Parameters
    ----------
    records : mapping of str to mapping
        Nested records, as in ``_desc-registration_qc.json``, by scan.

    Returns
    -------
    dict of str to GroupTable
    """
    rows: dict[str, dict[str, Mapping[str, Value]]] = {}
    for scan, record in records.items():
        rows.setdefault(str(record.get("template")), {})[scan] = flatten(record)
    return {template: GroupTable(own) for template, own in rows.items()}


def page_rows(table: GroupTable) -> tuple[list[str], Iterator[tuple[str, list[tuple[str, str]]]]]:
    """Return the columns and rows that the page shows: main scores, and text in which the scans differ.

    Parameters
    ----------
    table : GroupTable
        All scores.

    Returns
    -------
    columns : list of str
        Their names, after that of the scan.
    rows : iterator of (str, list of (str, str))
        The scan, and of each cell its text and its value for sorting (empty where it is missing).
    """
    shown = [("QC", VERDICT, "")] * bool(table.verdicts)
    shown += [(score.name, column(score.after), score.digits) for score in table.scores]
    if table.numbers(SECONDS):
        shown.append(("Seconds", SECONDS, ".1f"))
    shown += [(name.replace("_", " "), name, "") for name in table.differing]
    rows = (
        (scan, [(write_number(row.get(name), digits), _sort_key(row.get(name))) for _, name, digits in shown])
        for scan, row in table.rows.items()
    )
    return [name for name, _, _ in shown], rows


def _sort_key(value: Value) -> str:
    """Return what a cell is sorted by: verdicts from good to bad, empty where there is no value."""
    if value in VERDICTS:
        return str(VERDICTS.index(value))
    return "" if value is None else str(value)


def scan_ranges(table: GroupTable, scan: str) -> dict[tuple[str, ...], dict[str, Any]]:
    """Say where a scan's scores lie in its group, for its own report.

    Parameters
    ----------
    table : GroupTable
        Scores of all scans, the scan among them.
    scan : str
        The scan.

    Returns
    -------
    dict
        By the keys of each score: ``text`` (median and range), ``at``, ``low``, ``high`` and ``median`` (the scan's
        value, the quartiles and the median in percent of the range), ``is_unusual`` (the scan stands out). Empty for
        fewer than `MIN_RANGE` scans.
    """
    unusual = {outlier.score.after for outlier in table.outliers if outlier.scan == scan}
    found = {}
    for score, (low, first, median, third, high) in table.ranges.items():
        numbers = table.numbers(column(score.after))
        if scan not in numbers:
            continue
        places = np.array([numbers[scan], first, median, third])
        percent = 100 * (places - low) / (high - low) if high > low else np.full(4, 50.0)
        text = "{} ({} to {})".format(*(write_number(value, score.digits) for value in (median, low, high)))
        found[score.after] = {
            "text": text,
            "is_unusual": score.after in unusual,
            **dict(zip(("at", "low", "median", "high"), percent.round(1).tolist(), strict=True)),
        }
    return found


def scan_labels(scan: str) -> tuple[str, str]:
    """Return subject and session of a scan as BIDS writes them in tables.

    Examples
    --------
    >>> scan_labels("sub-1_ses-a"), scan_labels("sub-1_run-2")
    (('sub-1', 'ses-a'), ('sub-1', 'n/a'))
    """
    session = re.search(r"_(ses-[^_]+)", scan)
    return scan.split("_")[0], session.group(1) if session else MISSING


def _write_cell(value: Value) -> str:
    """Write one cell of a TSV; nothing in it may end the cell or the row."""
    return MISSING if value is None else re.sub(r"\s", " ", str(value))
