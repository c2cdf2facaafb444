"""Turn the scores of a registration into the rows of tables: names, numbers, limits, how to read them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from mmln_pipeline.scores.quality import CHECKS, VERDICTS, KeyPath, look_up


@dataclass(frozen=True)
class Score:
    """A score that the report names.

    Attributes
    ----------
    name : str
        Its name, with the unit.
    after, before : tuple of str
        Keys, outer to inner, of its value after registration and (empty if there is none) before.
    digits : str
        Format specification of its numbers.
    note : str
        How to read it.
    """

    name: str
    after: KeyPath
    digits: str
    note: str
    before: KeyPath = ()


SCORES = (
    Score("Dice, mean over labels", ("dice",), ".3f", "Overlap of labels; 1 is best.", ("dice_before",)),
    Score(
        "Agreement of labels, mean",
        ("label_agreement",),
        ".3f",
        "Overlap with the labels of all other images in template space; 1 is best.",
    ),
    Score(
        "Similarity, global correlation",
        ("similarity", "global_correlation", "after"),
        ".3f",
        "1 is best.",
        ("similarity", "global_correlation", "before"),
    ),
    Score(
        "Similarity, local correlation",
        ("similarity", "local_correlation", "after"),
        ".3f",
        "Mean over the brain; 1 is best.",
        ("similarity", "local_correlation", "before"),
    ),
    Score(
        "Similarity, correlation in the brain",
        ("similarity", "brain_correlation", "after"),
        ".3f",
        "Over the brain alone; 1 is best, below 0: contrast is inverted.",
        ("similarity", "brain_correlation", "before"),
    ),
    Score(
        "Brain overlap (Dice)",
        ("brain_overlap", "after"),
        ".3f",
        "Brain masks of image and template; 1 is best.",
        ("brain_overlap", "before"),
    ),
    Score("Brain on the border (cm2)", ("brain_cut_cm2",), ".0f", "More than a few: the field of view cuts the brain."),
    Score("Flat face of the brain (cm2)", ("brain_flat_cm2",), ".0f", "More than a few: a part was cut off."),
    Score(
        "Folded voxels in the brain (%)",
        ("folding_percent_brain",),
        ".3g",
        "Jacobian at or below 0; 0 is best.",
    ),
    Score("Folded voxels, whole grid (%)", ("folding_percent",), ".3g", "The same over the whole grid."),
    Score(
        "Non-diffeomorphic volume, NDV (%)",
        ("ndv_percent",),
        ".3g",
        "0 means free of folds in the strict sense.",
    ),
    Score("Non-diffeomorphic volume in the brain (%)", ("ndv_percent_brain",), ".3g", "The same in the brain."),
    Score("Topology change, TC", ("tc",), ".3f", "Label volume after per volume before; 1 is best."),
    Score("SD of log-Jacobian in the brain", ("sdlogj",), ".3f", "Smaller is smoother."),
    Score("Log-Jacobian, 1st percentile", ("log_jacobian", "p1"), ".2f", "Of the warp, in the brain; -0.69 is half."),
    Score("Log-Jacobian, 99th percentile", ("log_jacobian", "p99"), ".2f", "Of the warp, in the brain; 0.69 is twice."),
    Score("Surface distance, HD95 (mm)", ("hd95_mm",), ".2f", "95th percentile, mean over labels; 0 is best."),
    Score(
        "Inverse consistency error (mm)",
        ("inverse_consistency_mm",),
        ".3f",
        "Forward then inverse; 0 is best.",
    ),
    Score("Affine, volume ratio", ("affine", "volume_ratio"), ".2f", "Volume in the image per volume in the template."),
    Score("Affine, rotation (degrees)", ("affine", "rotation_degrees"), ".1f", "Against the template's axes."),
    Score(
        "Affine, anisotropy", ("affine", "anisotropy"), ".2f", "Largest per smallest scale; 1: no direction squeezed."
    ),
    Score("Contrast of the image", ("contrast", "moving"), ".2f", "Interquartile range per median of the brain."),
    Score("Contrast of the template", ("contrast", "fixed"), ".2f", "The same of the fixed image."),
    Score("Headers, NiBabel to ITK (mm)", ("headers", "itk_distance_mm"), ".3g", "How far apart they place an input."),
    Score("Headers that ITK refuses", ("headers", "itk_refuses"), ".0f", "Number of inputs; 0 is best."),
    Score("Peak memory (MB)", ("peak_memory_mb",), ".0f", "Of the process that registered."),
)

PER_LABEL = {
    "dice_per_label": ("Dice", ".3f"),
    "tc_per_label": ("TC", ".3f"),
    "hd95_per_label": ("HD95 (mm)", ".2f"),
}
GLANCE = {
    "Dice": ("dice",),
    "Local correlation": ("similarity", "local_correlation", "after"),
    "Brain overlap": ("brain_overlap", "after"),
    "NDV (%)": ("ndv_percent",),
    "Inverse error (mm)": ("inverse_consistency_mm",),
    "Seconds": ("seconds", "total"),
}
ADVICE = {
    "pass": "Nothing points to a failure.",
    "look": "Look at the figures before you use this result:",
    "fail": "Do not use this result before you know the cause:",
}
"""What to do after each verdict of the quality check."""
MISSING = "n/a"


def write_number(value: Any, digits: str = ".4g") -> str:
    """Format a number; `n/a` for None, text as it is.

    Examples
    --------
    >>> write_number(0.76543, ".3f"), write_number(None), write_number(0.0)
    ('0.765', 'n/a', '0')
    """
    if value is None:
        return MISSING
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return format(value, digits)
    return str(value)


def score_rows(qc: Mapping[str, Any], ranges: Mapping[KeyPath, object] | None = None) -> list[dict[str, Any]]:
    """Return the rows of the table of scores: name, before, after, verdict, limits, range, note.

    Parameters
    ----------
    qc : mapping
        Scores of one registration, as in its ``_desc-registration_qc.json``.
    ranges : mapping of tuple of str to object, optional
        What the page shows of the group, by the score's keys.

    Returns
    -------
    list of dict
        One row a score that is recorded; a recorded score without value shows as ``n/a``. ``verdict`` is that on this
        score alone, empty where the quality check has no ``limits`` for it.
    """
    rows = []
    for score in SCORES:
        if score.after[0] not in qc:
            continue
        before = write_number(look_up(qc, score.before), score.digits) if score.before else "–"
        after = write_number(look_up(qc, score.after), score.digits)
        checks = [check for check in CHECKS if check.path == score.after]
        rows.append(
            {
                "name": score.name,
                "before": before,
                "after": after,
                "verdict": max((check.judge(qc)[0] for check in checks), key=VERDICTS.index, default=""),
                "limits": "; ".join("change: " * bool(check.before) + check.limits for check in checks),
                "range": (ranges or {}).get(score.after),
                "note": score.note,
            }
        )
    return rows


def glance_rows(records: Mapping[str, Mapping[str, Any]]) -> tuple[list[str], list[tuple[str, list[str]]]]:
    """Return the columns, and the rows (image, values), of the few scores that the summary shows, where any has one.

    Examples
    --------
    >>> glance_rows({"sub-1": {"ndv_percent": 0.0, "dice": None}})
    (['NDV (%)'], [('sub-1', ['0'])])
    """
    known = [name for name, path in GLANCE.items() if any(look_up(qc, path) is not None for qc in records.values())]
    rows = [(name, [write_number(look_up(qc, GLANCE[key]), ".3g") for key in known]) for name, qc in records.items()]
    return known, rows


def label_rows(qc: Mapping[str, Any]) -> tuple[list[str], list[tuple[str, list[str]]]]:
    """Return the columns, and the rows (label, values), of the table of labels.

    Examples
    --------
    >>> label_rows({"dice_per_label": {"1": 0.5, "2": None}})
    (['Dice'], [('1', ['0.500']), ('2', ['n/a'])])
    """
    present = {key: form for key, form in PER_LABEL.items() if isinstance(qc.get(key), Mapping)}
    labels = dict.fromkeys(str(label) for key in present for label in qc[key])
    tables = {key: {str(label): value for label, value in qc[key].items()} for key in present}
    rows = [(label, [write_number(tables[key].get(label), present[key][1]) for key in present]) for label in labels]
    return [name for name, _ in present.values()], rows


def second_rows(qc: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return the duration of each stage, in seconds, in the order recorded."""
    seconds = qc.get("seconds")
    stages = seconds if isinstance(seconds, Mapping) else {"total": seconds} if seconds is not None else {}
    return [(str(name).replace("_", " "), write_number(value, ".1f")) for name, value in stages.items()]


def other_rows(qc: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return what no other table shows, flattened: ``outer: inner`` and its value."""
    shown = {path for score in SCORES for path in (score.after, score.before)}
    hidden = {*PER_LABEL, "seconds", "versions", "machine", "qc"}
    rows = [(path, value) for path, value in leaves(qc) if path[0] not in hidden and path not in shown]
    return [(": ".join(path).replace("_", " "), write_number(value)) for path, value in rows]


def leaves(content: Mapping[str, Any], path: KeyPath = ()) -> Iterator[tuple[KeyPath, Any]]:
    """Walk through a nested mapping, depth first; a list is one text.

    Examples
    --------
    >>> list(leaves({"qc": {"verdict": "look", "reasons": ["dark", "small"]}}))
    [(('qc', 'verdict'), 'look'), (('qc', 'reasons'), 'dark; small')]
    """
    for key, value in content.items():
        if isinstance(value, Mapping):
            yield from leaves(value, (*path, str(key)))
        else:
            text = "; ".join(map(str, value)) if isinstance(value, (list, tuple)) else value
            yield (*path, str(key)), text
