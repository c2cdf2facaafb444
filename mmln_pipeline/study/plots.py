"""The paper's figures 4 and 6: Dice of each structure, and four scores of each atlas. At the width of a column."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.style
import numpy as np
import pandas as pd
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from mmln_pipeline.machine.files import atomic_path, write_text
from mmln_pipeline.reporting.canvas import STYLE, tidy_svg
from mmln_pipeline.study.configuration import StudyConfig, slug
from mmln_pipeline.study.results import STRUCTURE, by_pair, costs

MM = 1 / 25.4
WIDTH_MM = 85.0
"""A journal's column."""
DPI = 300
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Told apart by people who see fewer colours (Okabe and Ito)."""
DASHES: tuple[Any, ...] = ("-", "--", ":", "-.")
LOOK = STYLE | {
    "font.size": 6.5,
    "axes.linewidth": 0.5,
    "xtick.major.width": 0.5,
    "ytick.major.width": 0.5,
    "xtick.major.size": 2,
    "ytick.major.size": 2,
    "figure.dpi": DPI,
}
GRID = "#d0d7de"


def plot_structures(results: pd.DataFrame, rows: Sequence[str], test_set: str, path: Path) -> list[Path]:
    """Draw boxes of the Dice of each structure, one a row (figure 4).

    Parameters
    ----------
    results : DataFrame
    rows : sequence of str
        At most four.
    test_set : str
    path : Path
        Without a suffix.

    Returns
    -------
    list of Path
        The files written.
    """
    found = [by_pair(results, row, [test_set]) for row in rows]
    columns = [name for name in found[-1] if name.startswith(STRUCTURE) and found[-1][name].notna().any()]
    columns.sort(key=lambda name: (-found[-1][name].median(), name))
    with mpl.style.context(["default", LOOK]):
        figure = Figure(figsize=(WIDTH_MM * MM, (16 + 5.2 * len(columns)) * MM), layout="constrained")
        axes = figure.subplots()
        height = 0.8 / len(rows)
        for number, (table, colour) in enumerate(zip(found, COLOURS, strict=False)):
            places = np.arange(len(columns)) + (number - (len(rows) - 1) / 2) * height
            axes.boxplot(
                [table[name].dropna() if name in table else [] for name in columns],
                positions=places, orientation="horizontal", widths=0.8 * height, patch_artist=True,
                boxprops={"facecolor": colour, "edgecolor": colour, "alpha": 0.55, "linewidth": 0.5},
                medianprops={"color": "black", "linewidth": 0.9},
                whiskerprops={"color": colour, "linewidth": 0.7}, capprops={"color": colour, "linewidth": 0.7},
                flierprops={"marker": ".", "markersize": 2, "markeredgecolor": colour},
            )  # fmt: skip
        names = [_shorten(name.removeprefix(STRUCTURE)) for name in columns]
        axes.set(yticks=range(len(columns)), yticklabels=names, ylim=(len(columns) - 0.4, -0.6), xlabel="Dice")
        axes.grid(axis="x", color=GRID, linewidth=0.4)
        axes.set_axisbelow(True)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
        handles = [mpl.patches.Patch(facecolor=c, alpha=0.55) for c, _ in zip(COLOURS, rows, strict=False)]
        figure.legend(handles, rows, loc="outside upper center", ncols=2, frameon=False)
        return save(figure, path, f"Dice of {len(columns)} structures")


def _shorten(name: str) -> str:
    """Return a structure's name as it fits beside an axis.

    Examples
    --------
    >>> _shorten("Right-Cerebellum-White-Matter"), _shorten("3rd-Ventricle")
    ('Cerebellum white matter R', '3rd ventricle')
    """
    side = {"Right": " R", "Left": " L"}.get(name.partition("-")[0], "")
    words = name.partition("-")[2].split("-") if side else name.split("-")
    lower = [word if word.isupper() else word.lower() for word in words]
    text = " ".join(lower)
    return text[:1].upper() + text[1:] + side


def plot_radar(results: pd.DataFrame, rows: Sequence[str], test_set: str, path: Path) -> list[Path]:
    """Draw four scores of each atlas as a radar chart, the better the farther out (figure 6).

    Parameters
    ----------
    results : DataFrame
    rows : sequence of str
        At most four.
    test_set : str
    path : Path
        Without a suffix.

    Returns
    -------
    list of Path
        The files written.
    """
    chosen = results[(results["set"] == test_set) & results["row"].isin(rows)]
    atlases = sorted(chosen["fixed"].unique())
    values = {(row, atlas): _four_scores(chosen, row, test_set, atlas) for row in rows for atlas in atlases}
    scaled, limits = _scale(values)
    angles = np.linspace(0, 2 * math.pi, len(AXES), endpoint=False)
    columns = min(2, len(atlases))
    lines = math.ceil(len(atlases) / columns)
    with mpl.style.context(["default", LOOK]):
        figure = Figure(figsize=(WIDTH_MM * MM, (15 + 45 * lines) * MM), layout="constrained")
        panels = figure.subplots(lines, columns, subplot_kw={"projection": "polar"}, squeeze=False)
        for axes, atlas in zip(panels.flat, atlases, strict=False):
            for row, colour, dash in zip(rows, COLOURS, DASHES, strict=False):
                spokes = scaled[row, atlas]
                axes.plot([*angles, angles[0]], [*spokes, spokes[0]], color=colour, linestyle=dash, linewidth=1.2)
                axes.fill(angles, spokes, color=colour, alpha=0.12, linewidth=0)
            axes.set_theta_offset(math.pi / 2)
            axes.set_xticks(angles, list(limits))
            axes.set(ylim=(0, 1.05), yticks=(INNER, 1.0), yticklabels=())
            axes.tick_params(pad=0)
            axes.grid(color=GRID, linewidth=0.4)
            axes.spines["polar"].set_visible(False)
            axes.set_title(f"Atlas {_scan(atlas)}", fontsize=7, pad=4)
        for axes in panels.flat[len(atlases) :]:
            axes.set_visible(False)
        pens = zip(COLOURS, DASHES, rows, strict=False)
        handles = [Line2D([], [], color=colour, linestyle=dash, linewidth=1.2) for colour, dash, _ in pens]
        figure.legend(handles, rows, loc="outside upper center", ncols=2, frameon=False)
        ranges = [f"{name} {_short(low)} to {_short(high)}" for name, (low, high) in limits.items()]
        text = f"From the inner circle outwards: {ranges[0]}, {ranges[1]},\n{ranges[2]}, {ranges[3]}"
        figure.supxlabel(text, fontsize=6)
        return save(figure, path, "Four scores of each atlas, the better the farther out")


AXES: dict[str, Callable[[pd.Series], float]] = {
    "Dice": lambda mean: mean["dice"],
    "folds": lambda mean: -mean["folding_percent"],
    "|TC − 1|": lambda mean: -abs(mean["tc"] - 1),
    "time": lambda mean: -mean["seconds"],
}
"""Scores of the radar chart, each so that more is better; folds are %|J|<=0."""
INNER = 0.25
"""Where the inner circle lies, on which the worst score is."""


def _four_scores(chosen: pd.DataFrame, row: str, test_set: str, atlas: str) -> list[float]:
    """Return the scores of a row on one atlas, more is better."""
    own = chosen[chosen["fixed"] == atlas]
    mean = by_pair(own, row, [test_set]).mean()
    mean["seconds"] = costs(own, row, [test_set])["seconds"]
    return [score(mean) for score in AXES.values()]


def _scale(values: dict) -> tuple[dict, dict[str, tuple[float, float]]]:
    """Scale each score to `INNER` for the worst and 1 for the best shown; return the limits too, worst first."""
    table = np.array(list(values.values()))
    low, high = np.nanmin(table, axis=0), np.nanmax(table, axis=0)
    span = np.where(high > low, high - low, 1.0)
    scaled = {key: INNER + (1 - INNER) * np.where(high > low, (row - low) / span, 1.0) for key, row in values.items()}
    return scaled, {
        name: (abs(float(worst)), abs(float(best))) for name, worst, best in zip(AXES, low, high, strict=True)
    }


def _short(value: float) -> str:
    """Return a number with three digits that count, and no more than four decimals.

    Examples
    --------
    >>> _short(0.7689), _short(0.00335), _short(1234.5), _short(0.0)
    ('0.769', '0.0034', '1234', '0')
    """
    return f"{float(f'{value:.3g}'):.4f}".rstrip("0").rstrip(".") if value < 1000 else f"{value:.0f}"


def _scan(name: str) -> str:
    """Return a scan's name without what all share.

    Examples
    --------
    >>> _scan("oasis_sub-OAS10101_ses-02"), _scan("brain0")
    ('OAS10101 02', 'brain0')
    """
    parts = [part.partition("-")[2] for part in name.split("_") if part.startswith(("sub-", "ses-"))]
    return " ".join(parts) or name


def save(figure: Figure, path: Path, title: str) -> list[Path]:
    """Write a figure as SVG and PNG whose bytes depend on the figure alone.

    Parameters
    ----------
    figure : Figure
    path : Path
        Without a suffix.
    title : str
        Short description for screen readers.

    Returns
    -------
    list of Path
    """
    FigureCanvasAgg(figure)
    drawing = io.StringIO()
    figure.savefig(drawing, format="svg", facecolor="white", metadata={"Date": None})
    files = [write_text(path.with_suffix(".svg"), tidy_svg(drawing.getvalue(), title))]
    with atomic_path(path.with_suffix(".png")) as temporary:
        figure.savefig(temporary, dpi=DPI, facecolor="white", metadata={"Software": None})
    return [*files, path.with_suffix(".png")]


def write_plots(study: StudyConfig, results: pd.DataFrame, folder: Path) -> list[Path]:
    """Write the figures of which there are results; 3 and 5 need slices, too.

    Parameters
    ----------
    study : StudyConfig
    results : DataFrame
    folder : Path
        Of the results.

    Returns
    -------
    list of Path
        The files written.
    """
    from mmln_pipeline.study.panels import plot_flow, plot_moved

    test_set = study.sets[0].name
    there = set(results[results["set"] == test_set]["row"])
    slices = {row.name: folder / "slices" / f"{slug(row.name)}_seed-{row.seeds[0]}.npz" for row in study.rows}
    drawn = {name for name in there if slices[name].is_file()}
    shown = choose_rows(study)
    written = []
    if moved := [name for name in shown["moved"] if name in drawn]:
        written += plot_moved({name: slices[name] for name in moved}, folder / "figure3")
    if structures := [name for name in shown["structures"] if name in there]:
        written += plot_structures(results, structures, test_set, folder / "figure4")
    if flow := [name for name in shown["flow"] if name in drawn]:
        written += plot_flow({name: slices[name] for name in flow}, folder / "figure5")
    if radar := [name for name in shown["radar"] if name in there]:
        written += plot_radar(results, radar, test_set, folder / "figure6")
    return written


def choose_rows(study: StudyConfig) -> dict[str, list[str]]:
    """Return the rows of each figure: those of the configuration, or else by the tables."""
    by_table = {table: [row.name for row in study.rows_of(table)] for table in (1, 3, 4)}
    six = [name for name in by_table[1] if name != study.reference][:5]
    pair = [*by_table[3][:1], study.reference]
    default = {
        "moved": [*six, study.reference],
        "structures": list(dict.fromkeys(pair)),
        "flow": by_table[3][:2],
        "radar": by_table[4][:4],
    }
    return {name: list(getattr(study.figures, name)) or rows for name, rows in default.items()}
