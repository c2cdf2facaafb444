"""The page of a group: scores, outliers, mean images and a table in one HTML file that needs nothing else."""

from __future__ import annotations

import base64
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup

from mmln_pipeline import __version__
from mmln_pipeline.group.averaging import Average
from mmln_pipeline.reporting import group_figures, interactive
from mmln_pipeline.reporting.contact_sheet import Thumbnails, write_contact_sheet
from mmln_pipeline.reporting.group_table import (
    MAX_DISTANCE,
    MIN_SCANS,
    REASONS,
    VERDICT,
    WATCHED,
    GroupTable,
    column,
    page_rows,
)
from mmln_pipeline.reporting.rendering import svg_uri, write_page
from mmln_pipeline.reporting.shown_scores import ADVICE, Score, write_number

RULE = (
    f"An image stands out where a score lies more than {MAX_DISTANCE:g} scaled median absolute deviations (MADs) from "
    f"the median of at least {MIN_SCANS} images, and by a difference that matters (0.01; 0.01% of voxels; HD95 0.1 mm;"
    " inverse consistency 0.05 mm; of the affine 0.05 in volume, 5 degrees). That is unusual in this group, not "
    "necessarily wrong: look at the image's report."
)
_MOST_EMBEDDED = 2**20
"""Characters of a table that the page holds, so that it can be sent alone; some hundreds of images."""
LOG_UNIT = "log |J| (natural log, no unit)"


def write_group_report(
    path: str | Path,
    table: GroupTable,
    *,
    template: str,
    t1w: Average,
    log_jacobian: Average,
    image_names: Mapping[str, str],
    table_name: str,
    links: Mapping[str, str],
    missing: Sequence[tuple[str, str]] = (),
    structure_names: Mapping[str, str] | None = None,
    participants: Mapping[str, Mapping[str, str]] | None = None,
    thumbnails: Thumbnails | None = None,
    sheet_name: str = "",
) -> None:
    """Write the page and its contact sheet; what would not change is left untouched.

    Figures, style, table and script are inside the file, and its content policy lets no request leave it.

    Parameters
    ----------
    path : path
        The page.
    table : GroupTable
        Scores of all scans.
    template : str
        Name of the template.
    t1w, log_jacobian : Average
        Mean and spread of the images in template space.
    image_names : mapping of str to str
        Links to the images `mean_t1w`, `mean_log_jacobian` and `sd_log_jacobian`, relative to the page.
    table_name : str
        Name of the table's file.
    links : mapping of str to str
        Link to the report of each scan's subject, by scan, where there is one.
    missing : sequence of (str, str)
        Scan and what could not be taken into account.
    structure_names : mapping of str to str, optional
        Names of labels, by the number as text.
    participants : mapping of str to mapping of str to str, optional
        What the dataset says of each participant, by the column of ``participants.tsv``.
    thumbnails : Thumbnails, optional
        The images of the contact sheet; without any there is none.
    sheet_name : str
        Name of the contact sheet's file, beside the page.
    """
    columns, rows = page_rows(table)
    data = interactive.collect(table, links, participants)
    has_sheet = bool(thumbnails and thumbnails.pictures and t1w.mean is not None)
    write_page(
        Path(path),
        "group.html",
        scripts=("filters.js", "plots.js", "group.js"),
        data=data,
        title=f"Registration of {_count(len(table.rows), 'image')} to {template}",
        facts=_facts(table, template, t1w, log_jacobian),
        verdicts={verdict: len(scans) for verdict, scans in table.verdicts.items()},
        doubtful=_doubtful_rows(table),
        advice=ADVICE,
        rule=RULE,
        is_judged=any(len(table.numbers(name)) >= MIN_SCANS for name in WATCHED),
        outliers=_outlier_rows(table),
        unusual={outlier.scan for outlier in table.outliers} | {scan for scan, _, _ in _doubtful_rows(table)},
        sheet_name=sheet_name if has_sheet else "",
        **_draw(table, t1w, log_jacobian, image_names, structure_names or {}),
        columns=columns,
        rows=rows,
        links=links,
        missing=missing,
        table_name=table_name,
        table_source=_address(table.to_tsv(), table_name),
    )
    sheet = Path(path).with_name(sheet_name)
    if has_sheet and thumbnails is not None and t1w.mean is not None:
        outline = thumbnails.outline(t1w.mean, t1w.brain or t1w.mean)
        verdicts = {scan: str(row.get(VERDICT) or "") for scan, row in table.rows.items()}
        title = f"Contact sheet of {_count(len(table.rows), 'image')} in the space of {template}"
        small = {key: value for key, value in data.items() if key != "scores"}
        write_contact_sheet(
            sheet, title, small, thumbnails, outline, list(table.rows), verdicts, links, Path(path).name
        )
    elif sheet_name:
        sheet.unlink(missing_ok=True)


def _draw(
    table: GroupTable,
    t1w: Average,
    log_jacobian: Average,
    image_names: Mapping[str, str],
    structure_names: Mapping[str, str],
) -> dict[str, Any]:
    """Draw every figure; return them for the template, with the names of their sections."""
    with tempfile.TemporaryDirectory() as scratch:
        svg = Path(scratch) / "figure.svg"
        structures = _structure_plot(table, structure_names, svg)
        images = list(_image_figures(t1w, log_jacobian, image_names, svg))
    plots = [_describe_score(table, score) | {"number": number} for number, score in enumerate(table.scores)]
    values = [_all_values(table, score) for score in table.scores]
    spread = [plot for plot, own in zip(plots, values, strict=True) if len(own) > 1]
    constant = [(plot["name"], plot["median"]) for plot in plots if plot not in spread]
    middle = ["Structures"] * bool(structures) + ["Images"] * bool(images)
    sections = ["Summary", "Quality", "Outliers", "Scores", *middle, "Table", "Missing"]
    return {"plots": spread, "constant": constant, "structures": structures, "images": images, "sections": sections}


def _address(table: str, name: str) -> Markup | str:
    """Return where the page finds the table: in itself, or beside it where it is large."""
    if len(table) > _MOST_EMBEDDED:
        return name
    return Markup("data:text/tab-separated-values;base64," + base64.b64encode(table.encode("utf-8")).decode("ascii"))


def _count(number: int, name: str) -> str:
    """Say how many there are.

    Examples
    --------
    >>> _count(1, "image"), _count(2, "image")
    ('1 image', '2 images')
    """
    return f"{number} {name}{'' if number == 1 else 's'}"


def _facts(table: GroupTable, template: str, t1w: Average, log_jacobian: Average) -> list[tuple[str, str]]:
    """Return the rows of the first table."""
    subjects = {scan.split("_")[0] for scan in table.rows}
    unusual = dict.fromkeys(outlier.scan for outlier in table.outliers)
    facts = {
        "Images": f"{len(table.rows)}, of {_count(len(subjects), 'subject')}",
        "Template": template,
        "In the mean image": str(len(t1w.names)),
        "In the mean log-Jacobian": str(len(log_jacobian.names)),
        "Quality check": ", ".join(f"{len(scans)} {name}" for name, scans in table.verdicts.items()) or "not done",
        "Outliers": f"{len(unusual)}: {', '.join(unusual)}" if unusual else "none",
    }
    for name in ("model", "device", "version"):
        if name in table.facts:
            facts["Software" if name == "version" else name.capitalize()] = ", ".join(table.facts[name])
    return list({**facts, "Page made by": f"mmln-pipeline {__version__}"}.items())


def _doubtful_rows(table: GroupTable) -> list[tuple[str, str, list[str]]]:
    """Return the scans that did not pass the quality check, the worst first: scan, verdict, reasons."""
    doubtful = [(scan, verdict) for verdict in ("fail", "look") for scan in table.verdicts.get(verdict, [])]
    return [(scan, verdict, str(table.rows[scan].get(REASONS) or "").split("; ")) for scan, verdict in doubtful]


def _outlier_rows(table: GroupTable) -> list[tuple[str, ...]]:
    """Return the rows of the table of outliers."""
    return [
        (
            outlier.scan,
            outlier.score.name,
            write_number(outlier.value, outlier.score.digits),
            write_number(outlier.median, outlier.score.digits),
            f"{outlier.distance:+.1f}",
        )
        for outlier in table.outliers
    ]


def _all_values(table: GroupTable, score: Score) -> set[float]:
    """Return the different values of a score, after registration and before it."""
    return {value for path in (score.after, score.before) if path for value in table.numbers(column(path)).values()}


def _describe_score(table: GroupTable, score: Score) -> dict[str, Any]:
    """Return what the page says of a score beside its plot."""
    values = list(table.numbers(column(score.after)).values())
    low, median, high = (write_number(float(part), score.digits) for part in np.percentile(values, (0, 50, 100)))
    text = f"Median {median}, from {low} to {high} ({_count(len(values), 'image')})."
    return {"name": score.name, "note": score.note, "median": median, "text": text}


def _structure_plot(table: GroupTable, names: Mapping[str, str], svg: Path) -> dict[str, str] | None:
    """Draw Dice of the structures, if there is any; numbers with a name are shown with it."""
    if not table.structures:
        return None
    names = names if table.are_structures_the_templates else {}
    named = {f"{names[key]} ({key})" if key in names else key: values for key, values in table.structures.items()}
    group_figures.plot_structures(named, svg)
    medians = {name: float(np.median(values)) for name, values in named.items()}
    best, worst = max(medians, key=medians.__getitem__), min(medians, key=medians.__getitem__)
    text = f"Box plot of {len(named)} structures: medians from {medians[worst]:.3f} ({worst})"
    whose = "the template's" if table.are_structures_the_templates else "those of all other images, in template space"
    return {
        "alt": f"{text} to {medians[best]:.3f} ({best}).",
        "caption": f"Overlap (Dice) of each label with {whose}, over all images with labels; 1 is best.",
        "source": svg_uri(svg),
    }


def _image_figures(
    t1w: Average, log_jacobian: Average, image_names: Mapping[str, str], svg: Path
) -> Iterator[dict[str, str]]:
    """Draw the group's images; yield what the page says of each."""
    if t1w.mean is not None:
        group_figures.plot_mean(t1w.mean, len(t1w.names), svg, mask=t1w.brain)
        note = "Sharp borders mean that the brains agree in template space; each was scaled by its own brightness."
        yield {"name": "Mean image", "note": note, "path": image_names["mean_t1w"], "source": svg_uri(svg)}
    maps = (
        ("mean_log_jacobian", log_jacobian.mean, "Mean log-Jacobian", True,
         "Blue: the brains are smaller here than the template; red: larger. Affine and warp together."),
        ("sd_log_jacobian", log_jacobian.sd, "Standard deviation of the log-Jacobian", False,
         "How much the brains differ in local volume (divisor: number of images - 1)."),
    )  # fmt: skip
    for key, image, name, is_signed, note in maps:
        if image is None:
            continue
        background = image if t1w.mean is None else t1w.mean
        label = f"{'Mean' if is_signed else 'SD'} of {LOG_UNIT}"
        group_figures.plot_map(background, image, len(log_jacobian.names), svg,
                               title=name, label=label, mask=t1w.brain, is_signed=is_signed)  # fmt: skip
        yield {"name": name, "note": note, "path": image_names[key], "source": svg_uri(svg)}
