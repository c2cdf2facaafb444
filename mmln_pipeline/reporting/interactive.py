"""What the scripts of a group's pages read: the images, their scores, and what they are chosen by."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from mmln_pipeline.reporting.group_table import VERDICT, GroupTable, column, scan_labels
from mmln_pipeline.reporting.shown_scores import MISSING, Score


def collect(
    table: GroupTable, links: Mapping[str, str], participants: Mapping[str, Mapping[str, str]] | None = None
) -> dict[str, Any]:
    """Collect the data of a group's scripts.

    Parameters
    ----------
    table : GroupTable
        Scores of all scans.
    links : mapping of str to str
        Address of the report of each scan's subject, where there is one.
    participants : mapping of str to mapping of str to str, optional
        What the dataset says of each participant (`sub-X`): text by the column of ``participants.tsv``.

    Returns
    -------
    dict
        ``scans``, ``labels`` (participant and session), ``verdicts`` and ``links`` (lists, one item a scan),
        ``scores`` (``values``, ``before``, ``unusual``: numbers of scans, and ``digits``) and ``filters`` (``name`` and
        one text a scan).
    """
    scans = list(table.rows)
    verdicts = [str(table.rows[scan].get(VERDICT) or "") for scan in scans]
    labels = [scan_labels(scan) for scan in scans]
    filters = {"Quality check": verdicts, "Session": [session for _, session in labels]}
    filters |= {name: [str(table.rows[scan].get(name) or MISSING) for scan in scans] for name in table.differing}
    for name in dict.fromkeys(name for own in (participants or {}).values() for name in own):
        values = [(participants or {}).get(participant, {}).get(name, MISSING) for participant, _ in labels]
        filters[name if name not in filters else f"{name} (participants.tsv)"] = values
    return {
        "scans": scans,
        "labels": labels,
        "verdicts": verdicts,
        "links": [links.get(scan) for scan in scans],
        "scores": [_plotted(table, score, scans) for score in table.scores],
        "filters": [{"name": name, "values": values} for name, values in filters.items() if len(set(values)) > 1],
    }


def _plotted(table: GroupTable, score: Score, scans: list[str]) -> dict[str, Any]:
    """Return one score of all scans."""
    numbers = table.numbers(column(score.after))
    before = table.numbers(column(score.before)) if score.before else {}
    unusual = {outlier.scan for outlier in table.outliers if outlier.score == score}
    decimals = re.search(r"\.(\d+)", score.digits)
    return {
        "digits": int(decimals[1]) if decimals else 0,
        "values": [numbers.get(scan) for scan in scans],
        "before": [before.get(scan) for scan in scans] if before else None,
        "unusual": [at for at, scan in enumerate(scans) if scan in unusual],
    }
