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

from mmln_pipeline.study.plots import LOOK, MM, WIDTH_MM, save
from mmln_pipeline.study.slices import PLANES, Slice, read_slices

FIXED, MOVED, FOLDED = "#56B4E9", "#E69F00", "#D55E00"
GAP_MM, LABEL_MM, LEGEND_MM = 0.8, 3.6, 5.0
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
        figure, panels = _lay_out(next(iter(slices.values())), list(slices))
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


def _lay_out(planes: Mapping[str, Slice], names: list[str]) -> tuple[Figure, dict[Axes, tuple[str, str]]]:
    """Return a figure with a line of panels a name, three planes side by side at one scale, and what each is for."""
    shapes = {plane: planes[plane].fixed.shape for plane in PLANES}
    free = WIDTH_MM - GAP_MM * (len(PLANES) - 1)
    scale = free / sum(width for _, width in shapes.values())
    line = max(height for height, _ in shapes.values()) * scale + LABEL_MM
    total = line * len(names) + LEGEND_MM
    figure, panels = Figure(figsize=(WIDTH_MM * MM, total * MM)), {}
    for number, name in enumerate(names):
        left, top = 0.0, number * line + LABEL_MM
        figure.text(0.0, 1 - (top - 0.8) / total, name, ha="left", va="bottom", fontsize=7, parse_math=False)
        for plane, (height, width) in shapes.items():
            size = width * scale, height * scale
            bottom = 1 - (top + (line - LABEL_MM + size[1]) / 2) / total
            box = left / WIDTH_MM, bottom, size[0] / WIDTH_MM, size[1] / total
            axes = figure.add_axes(box, label=f"{number} {plane}")
            axes.set(xlim=(-0.5, width - 0.5), ylim=(-0.5, height - 0.5))
            axes.set_axis_off()
            panels[axes] = name, plane
            left += size[0] + GAP_MM
    return figure, panels


def _outline(axes: Axes, labels: NDArray[np.integer], colour: str, width: float) -> None:
    """Draw the outline of each label."""
    for code in np.unique(labels[labels > 0]):
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
