"""The page of a group's template: how it converged, and the mean of the brains before and after, in one HTML file."""

from __future__ import annotations

import base64
import tempfile
from collections.abc import Mapping
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure
from nibabel import Nifti1Image

from mmln_pipeline import __version__
from mmln_pipeline.machine.files import write_text
from mmln_pipeline.reporting.group_figures import INK, REGISTERED, plot_mean, save_figure
from mmln_pipeline.reporting.rendering import load_template
from mmln_pipeline.reporting.shown_scores import write_number

MEASURES = {
    "moved_mm": ("Move of the mean", "mm", "how far the mean of the warps moved a point of the brain: what was biased"),
    "warp_mm": ("Warp to the brains", "mm", "how far a point of the mean lies from its counterparts, after the affine"),
    "gradient_energy": (
        "Gradient energy",
        "",
        "mean squared gradient in the brain, brightness per mm: larger is sharper",
    ),
    "label_overlap": ("Label overlap", "", "of each brain's labels with those of all others (Crum et al., 2006)"),
}
"""Columns of the table: how they are called, in which unit, and what they say."""
_DIGITS = {"moved_mm": ".2f", "warp_mm": ".2f", "gradient_energy": ".5f", "label_overlap": ".3f"}


def write_template_page(
    path: str | Path,
    name: str,
    table: pd.DataFrame,
    means: Mapping[str, tuple[Nifti1Image, Nifti1Image]],
    facts: Mapping[str, object],
) -> None:
    """Write the page; nothing in it is loaded from elsewhere.

    Parameters
    ----------
    path : path
        The page.
    name : str
        Of the template.
    table : DataFrame
        A row an iteration: ``iteration``, ``brains`` and those of `MEASURES` that there are.
    means : mapping of str to (Nifti1Image, Nifti1Image)
        Means with their masks, by what to call them.
    facts : mapping of str to object
        What else to tell, by name.
    """
    shown = {key: words for key, words in MEASURES.items() if key in table and table[key].notna().any()}
    count = int(table["brains"].iloc[-1])
    with tempfile.TemporaryDirectory() as scratch:
        svg = Path(scratch) / "figure.svg"
        plot_convergence(table, svg)
        convergence = _as_uri(svg)
        figures = []
        for title, (image, mask) in means.items():
            plot_mean(image, count, svg, mask=mask, title=title)
            figures.append((title, _as_uri(svg)))
    html = load_template("template.html").render(
        title=f"Template {name} of {count} brains",
        facts={**facts, "Software": f"mmln-pipeline {__version__}"},
        headings=[f"{title}{f', {unit}' if unit else ''}" for title, unit, _ in shown.values()],
        meanings=[(title, meaning) for title, _, meaning in shown.values()],
        rows=[
            (
                int(row["iteration"]),
                ["" if pd.isna(row[key]) else write_number(row[key], _DIGITS[key]) for key in shown],
            )
            for _, row in table.iterrows()
        ],
        convergence=convergence,
        figures=figures,
    )
    write_text(path, html)


def plot_convergence(table: pd.DataFrame, out_svg: str | Path) -> None:
    """Draw each measure over the iterations.

    Parameters
    ----------
    table : DataFrame
        As in `write_template_page`.
    out_svg : path
        The file to write.
    """
    shown = [key for key in MEASURES if key in table and table[key].notna().any()]
    figure = Figure(figsize=(2.6 * len(shown), 2.2), facecolor="white", layout="constrained")
    for axes, key in zip(figure.subplots(1, len(shown), squeeze=False)[0], shown, strict=True):
        known = table[table[key].notna()]
        axes.plot(known["iteration"], known[key], marker="o", markersize=4, color=REGISTERED, clip_on=False)
        title, unit, _ = MEASURES[key]
        axes.set_title(f"{title}{f', {unit}' if unit else ''}", fontsize=9, color=INK)
        axes.set_ylim(bottom=0)
        axes.set_xlim(-0.3, table["iteration"].max() + 0.3)
        axes.set_xticks(table["iteration"])
        axes.tick_params(labelsize=8, colors=INK)
        axes.spines[["top", "right"]].set_visible(False)
    save_figure(figure, "Convergence over the iterations", out_svg)


def _as_uri(svg: Path) -> str:
    return "data:image/svg+xml;base64," + base64.b64encode(svg.read_bytes()).decode("ascii")
