"""The paper's figures 3 and 5: moved images with outlines of labels, and flow fields, in three planes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import matplotlib as mpl
import matplotlib.style
import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from mmln_pipeline.study.planes import PLANES, Slice, read_slices
from mmln_pipeline.study.plots import LOOK, MM, WIDTH_MM, save

FIXED, MOVED, FOLDED = "#56B4E9", "#E69F00", "#D55E00"
GAP_MM, LABEL_MM, LEGEND_MM = 0.8, 3.6, 5.0
MOST = 0.18
"""Share of what is labelled in a plane up to which a label is outlined."""
LINES = 48
"""Lines of a flow field across the longest side of a panel."""


def plot_moved(rows: Mapping[str, Path], path: Path) -> list[Path]:
    """Draw the moved image of each row, with the outlines of its labels over those of the fixed image (figure 3).

    Parameters
    ----------
    rows : mapping of str to Path
        Slices of each row.
    path : Path
        Without a suffix.

    Returns
    -------
    list of Path
        The files written.
    """
    slices = {name: read_slices(file) for name, file in rows.items()}
    with mpl.style.context(["default", LOOK]):
        figure, panels = _lay_out(next(iter(slices.values())), ["Fixed", *slices])
        for axes, (name, plane) in panels.items():
            shown = next(iter(slices.values()))[plane] if name == "Fixed" else slices[name][plane]
            picture = shown.fixed if name == "Fixed" else shown.moved
            axes.imshow(picture, cmap="gray", vmin=0, vmax=1, origin="lower", interpolation="none")
            _outline(axes, shown.fixed_labels, FIXED, 0.45)
            if name != "Fixed":
                _outline(axes, shown.moved_labels, MOVED, 0.45)
        handles = [Line2D([], [], color=colour, linewidth=1.2) for colour in (FIXED, MOVED)]
        names = ["labels of the fixed image", "moved labels"]
        figure.legend(handles, names, loc="lower center", ncols=2, frameon=False)
        return save(figure, path, "Moved images with outlines of labels, in three planes")


def plot_flow(rows: Mapping[str, Path], path: Path) -> list[Path]:
    """Draw the flow field of each row as a moved grid (figure 5).

    Parameters
    ----------
    rows : mapping of str to Path
        Slices of each row.
    path : Path
        Without a suffix.

    Returns
    -------
    list of Path
        The files written.
    """
    slices = {name: read_slices(file) for name, file in rows.items()}
    with mpl.style.context(["default", LOOK]):
        figure, panels = _lay_out(next(iter(slices.values())), list(slices), side_by_side=True)
        for axes, (name, plane) in panels.items():
            shown = slices[name][plane]
            axes.imshow(np.where(shown.fixed > 0, 0.86, 1.0), cmap="gray", vmin=0, vmax=1, origin="lower")
            every = max(1, round(max(shown.fixed.shape) / LINES))
            axes.add_collection(LineCollection(_grid(shown, every), colors="#1b1f24", linewidths=0.35), autolim=False)
            folds = np.argwhere(_in_plane_determinant(shown.offsets) <= 0)
            axes.scatter(folds[:, 1], folds[:, 0], s=1.2, c=FOLDED, linewidths=0, zorder=3)
        handle = Line2D([], [], color=FOLDED, marker="o", markersize=2, linewidth=0)
        figure.legend([handle], ["folded within the plane"], loc="lower center", frameon=False)
        return save(figure, path, "Flow fields as moved grids, in three planes")


def _lay_out(
    planes: Mapping[str, Slice], names: list[str], side_by_side: bool = False
) -> tuple[Figure, dict[Axes, tuple[str, str]]]:
    """Return a figure with a panel for each name and plane, at one scale, and what each panel is for.

    Names go from top to bottom and planes from left to right, or the other way round.
    """
    shapes = {plane: planes[plane].fixed.shape for plane in PLANES}
    columns = names if side_by_side else list(PLANES)
    widest = {column: max(w for p, (_, w) in shapes.items() if side_by_side or p == column) for column in columns}
    highest = {plane: shapes[plane][0] if side_by_side else max(h for h, _ in shapes.values()) for plane in PLANES}
    scale = (WIDTH_MM - GAP_MM * (len(columns) - 1)) / sum(widest.values())
    lines = list(PLANES) if side_by_side else names
    heights = [highest[line if side_by_side else "axial"] * scale for line in lines]
    titles = [LABEL_MM if not side_by_side or number == 0 else GAP_MM for number in range(len(lines))]
    total = sum(heights) + sum(titles) + LEGEND_MM
    figure, panels = Figure(figsize=(WIDTH_MM * MM, total * MM)), {}
    top = 0.0
    for line, height, title in zip(lines, heights, titles, strict=True):
        left, top = 0.0, top + title
        for column in columns:
            name, plane = (column, line) if side_by_side else (line, column)
            if title == LABEL_MM and (side_by_side or column == columns[0]):
                where = left / WIDTH_MM, 1 - (top - 0.8) / total
                figure.text(*where, name, ha="left", va="bottom", fontsize=7, parse_math=False)
            rows, cells = shapes[plane]
            corner = left + (widest[column] - cells) * scale / 2, top + (height + rows * scale) / 2
            box = corner[0] / WIDTH_MM, 1 - corner[1] / total, cells * scale / WIDTH_MM, rows * scale / total
            axes = figure.add_axes(box, label=f"{name} {plane}")
            axes.set(xlim=(-0.5, cells - 0.5), ylim=(-0.5, rows - 0.5))
            axes.set_axis_off()
            panels[axes] = name, plane
            left += widest[column] * scale + GAP_MM
        top += height
    return figure, panels


def _outline(axes: Axes, labels: NDArray[np.integer], colour: str, width: float) -> None:
    """Draw the outline of each label but the largest ones, white matter, whose folds would cover everything."""
    for code in np.unique(labels[labels > 0]):
        if (labels == code).sum() > MOST * (labels > 0).sum():
            continue
        axes.contour(labels == code, levels=[0.5], colors=[colour], linewidths=[width])


def _grid(shown: Slice, every: int) -> list[NDArray[np.floating]]:
    """Return the lines of a moved grid as (x, y) in pixels."""
    rows, columns = np.mgrid[: shown.fixed.shape[0], : shown.fixed.shape[1]].astype(float)
    moved = np.stack([columns + shown.offsets[0], rows + shown.offsets[1]], axis=-1)
    return [*moved[every // 2 :: every], *moved[:, every // 2 :: every].swapaxes(0, 1)]


def _in_plane_determinant(offsets: NDArray[np.floating]) -> NDArray[np.floating]:
    """Return the Jacobian determinant of a field within its plane, shape (H, W)."""
    (across_y, across_x), (up_y, up_x) = (np.gradient(component) for component in offsets)
    return (1 + across_x) * (1 + up_y) - across_y * up_x
