"""What a record of scores tells besides scores: what was found and done with an image, and on which machine."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from mmln_pipeline.derivatives.filenames import QC_ENDING
from mmln_pipeline.reporting.shown_scores import write_number
from mmln_pipeline.scores.quality import is_number

Record = Mapping[str, Any]

ALIGNMENTS = {
    "affine": "12 parameters, by mutual information",
    "rigid": "6 parameters, by mutual information",
    "identity": "none: taken as aligned already",
}


def read_records(output_dir: Path, subject: str = "*", ending: str = QC_ENDING) -> dict[str, dict[str, Any]]:
    """Read the records of scores in a dataset; those that cannot be read are left out.

    Parameters
    ----------
    output_dir : Path
        The derivatives dataset.
    subject : str, default="*"
        Label of one subject; all by default.
    ending : str, default="_desc-registration_qc.json"
        How the files' names end: registrations, or labels of several atlases (`mmln_pipeline.derivatives.filenames`).

    Returns
    -------
    dict of str to dict
        Scores by the entities that their file names begin with, such as ``sub-01_ses-02``; sorted.
    """
    records = {}
    for path in sorted(output_dir.glob(f"sub-{subject}/**/anat/*{ending}")):
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            continue
        if isinstance(content, dict) and isinstance(content.get("template", ""), str):
            records[path.name.removesuffix(ending)] = content
    # Where a name says the template, it goes before one of an earlier run that does not.
    return {name: own for name, own in records.items() if f"{name}_space-{own.get('template')}" not in records}


def done_rows(record: Record) -> list[tuple[str, str]]:
    """Tell the steps that an image went through, in their order.

    Parameters
    ----------
    record : mapping
        Scores of one registration, as in its ``_desc-registration_qc.json``.

    Returns
    -------
    list of (str, str)
        Step, and what was found and done; steps of which nothing is recorded are left out.

    Examples
    --------
    >>> done_rows({"t1w": "bids:raw:a", "bias_correction": False, "init": "rigid", "refine": 0})
    [('T1w image', 'bids:raw:a'), ('Bias field', 'left as it is'), ('Alignment', '6 parameters, by mutual information')]
    """
    found = ((name, write(record)) for name, write in STEPS.items())
    return [(name, text) for name, text in found if text]


def machine_rows(records: Iterable[Record]) -> list[tuple[str, str]]:
    """Tell the machines and the versions of software behind some records: name and the different values."""
    found: dict[str, dict[str, None]] = {}
    for record in records:
        for key in ("machine", "versions"):
            for name, value in (record.get(key) or {}).items():
                found.setdefault(str(name).replace("_", " "), {})[write_number(value)] = None
    return [(name, ", ".join(values)) for name, values in found.items()]


def _text(key: str) -> Callable[[Record], str]:
    """Return a function that gives a text of the record as it is."""
    return lambda record: str(record.get(key) or "")


def _averaged(record: Record) -> str:
    count = record.get("images_averaged")
    return f"unbiased average of {count} images of the subject" if count else ""


def _bias(record: Record) -> str:
    words: dict[Any, str] = {True: "corrected with N4", False: "left as it is"}
    return words.get(record.get("bias_correction"), "")


def _alignment(record: Record) -> str:
    init = record.get("init")
    kind = ALIGNMENTS.get(str(init), f"given: {init}") if init else ""
    affine = record.get("affine") or {}
    if not is_number(affine.get("rotation_degrees")) or not is_number(affine.get("volume_ratio")):
        return kind
    shape = f"turned by {affine['rotation_degrees']:.1f} degrees, volume {affine['volume_ratio']:.2f} of the template's"
    return f"{kind}: {shape}" if kind else shape


def _warp(record: Record) -> str:
    model = record.get("model")
    if not model:
        return ""
    refine = record.get("refine")
    tuned = "" if refine in (None, 0) else ", then tuned to this image" + (f" ({refine} steps)" * (refine != "auto"))
    return f"network {model}{_checksum(record)}{tuned}"


def _checksum(record: Record) -> str:
    return f" (SHA-256 {record['model_sha256'][:12]})" if record.get("model_sha256") else ""


def _topology(record: Record) -> str:
    certificate = record.get("topology") or {}
    if certificate.get("mode") == "off":
        return "not checked (--topology off)"
    if not is_number(certificate.get("rounds")):
        return ""
    before, after = (write_number(certificate.get(key), ".2g") for key in ("ndv_percent_before", "ndv_percent"))
    if certificate["rounds"] == 0:
        return "free of folds as it came (NDV 0%)"
    cells, rounds = certificate.get("cells_repaired", 0), certificate["rounds"]
    return f"{cells} cells repaired in {rounds} round{'s' * (rounds != 1)}: NDV {before}% before, {after}% after"


def _labels(record: Record) -> str:
    return "; ".join(_label_texts(record))


def _label_texts(record: Record) -> Iterator[str]:
    if record.get("atlas"):
        yield f"{record['atlas']} brought to the image"
    if record.get("dice_per_label"):
        yield f"{len(record['dice_per_label'])} labels of image and template compared"


STEPS: Mapping[str, Callable[[Record], str]] = {
    "T1w image": _text("t1w"),
    "Reference": _averaged,
    "Brain mask": _text("brain_mask"),
    "Bias field": _bias,
    "Alignment": _alignment,
    "Warp": _warp,
    "Folds": _topology,
    "Labels": _labels,
    "Ran on": _text("device"),
}
"""What is told of an image, and from which part of its record."""
