"""Figures of a group: Dice of each structure, mean and spread of the images (SVG)."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from os import PathLike

import matplotlib as mpl
import matplotlib.style
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from nibabel.spatialimages import SpatialImage

from mmln_pipeline.machine.files import write_text
from mmln_pipeline.reporting.canvas import STYLE, Canvas, tidy_svg
from mmln_pipeline.reporting.mosaic import lay_out

REGISTERED, INK = "#0b5cad", "#1b1f24"


def plot_structures(structures: Mapping[str, Sequence[float]], out_svg: str | PathLike) -> None:
    """Draw one box of Dice scores a structure, the best at the top.

    Parameters
    ----------
    structures : mapping of str to sequence of float
        Dice in each scan, by the structure's name.
    out_svg : path
        The file to write.
    """
    order = sorted(structures, key=lambda name: (-float(np.median(structures[name])), name))
    figure = Figure(figsize=(8.0, 0.8 + 0.24 * len(order)), facecolor="white", layout="constrained")
    axes = figure.subplots()
    for number, name in enumerate(order):
        _draw_box(axes, list(structures[name]), number)
    axes.set(yticks=range(len(order)), ylim=(len(order) - 0.4, -0.6), xlabel="Dice")
    axes.set_yticklabels([name if len(name) <= 40 else f"{name[:39]}…" for name in order], parse_math=False)
    _finish(axes)
    save_figure(figure, f"Dice of {len(order)} structures", out_svg)


def plot_mean(
    image: SpatialImage,
    count: int,
    out_svg: str | PathLike,
    *,
    mask: SpatialImage | None = None,
    title: str = "Mean image in template space",
) -> None:
    """Draw slices of a mean image.

    Parameters
    ----------
    image : SpatialImage
        The mean.
    count : int
        Number of images that it is the mean of.
    out_svg : path
        The file to write.
    mask : SpatialImage, optional
        The brain; the slices run through it.
    title : str, default="Mean image in template space"
        What it is the mean of.
    """
    mosaic = lay_out(image, mask)
    picture = mosaic.sample(image)
    top = float(picture.max()) or 1.0
    canvas = Canvas(mosaic, title)
    canvas.add_picture(picture / top, caption=_count(count))
    canvas.add_frame()
    canvas.save(out_svg)


def plot_map(
    background: SpatialImage,
    values: SpatialImage,
    count: int,
    out_svg: str | PathLike,
    *,
    title: str,
    label: str,
    mask: SpatialImage | None = None,
    is_signed: bool = False,
) -> None:
    """Draw a map of numbers in the brain over the mean image, with a colour bar.

    Parameters
    ----------
    background : SpatialImage
        The mean image (or the map itself); the slices follow its grid.
    values : SpatialImage
        The map.
    count : int
        Number of images behind it.
    out_svg : path
        The file to write.
    title, label : str
        Title of the figure, and of its colour bar.
    mask : SpatialImage, optional
        The brain, outside of which nothing is drawn.
    is_signed : bool, default=False
        Colours run from blue over white at 0 to red; else from dark at 0 to bright. They end at the 99.5th
        percentile of the brain.
    """
    mosaic = lay_out(background, mask)
    brain = mosaic.filled if mask is None else mosaic.sample(mask, order=0) > 0
    numbers = mosaic.sample(values, order=0)
    limit = float(np.percentile(np.abs(numbers[brain]), 99.5)) if brain.any() else 0.0
    limit = max(0.05, np.ceil(20 * limit) / 20)
    colour_map = mpl.colormaps["RdBu_r" if is_signed else "inferno"]
    mappable = ScalarMappable(Normalize(-limit if is_signed else 0.0, limit), colour_map)
    colours = mappable.to_rgba(np.clip(numbers, -limit, limit))[..., :3]
    canvas = Canvas(mosaic, title, with_bar=True)
    canvas.add_picture(np.where(brain[..., None], colours, 0.0), caption=_count(count))
    canvas.add_frame()
    canvas.add_colour_bar(mappable, label)
    canvas.save(out_svg)


def _count(count: int) -> str:
    """Say how many images there are."""
    return f"{count} image{'s' if count != 1 else ''}"


def _draw_box(axes: Axes, values: list[float], position: float) -> None:
    """Draw median, quartiles, whiskers (to the last value within 1.5 interquartile ranges), and what is beyond."""
    numbers = np.asarray(values)
    first, median, third = np.percentile(numbers, (25, 50, 75))
    reach = 1.5 * (third - first)
    is_near = (numbers >= first - reach) & (numbers <= third + reach)
    low, high = numbers[is_near].min(), numbers[is_near].max()
    axes.hlines([position, position], [low, third], [first, high], colors=REGISTERED, linewidth=1)
    axes.add_patch(Rectangle((first, position - 0.3), third - first, 0.6, fill=False, edgecolor=REGISTERED))
    axes.vlines(median, position - 0.3, position + 0.3, colors=INK, linewidth=1.6)
    beyond = numbers[~is_near]
    axes.scatter(beyond, np.full(beyond.shape, position), s=10, c=REGISTERED, linewidths=0)


def _finish(axes: Axes) -> None:
    """Give axes the plain look of the page."""
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.tick_params(axis="y", length=0, labelsize=9, colors=INK)
    axes.tick_params(axis="x", labelsize=9, colors=INK)
    axes.grid(axis="x", color="#d0d7de", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.locator_params(axis="x", nbins=6)
    axes.ticklabel_format(axis="x", useOffset=False)


def save_figure(figure: Figure, title: str, out_svg: str | PathLike) -> None:
    """Write a figure as SVG whose bytes depend on the input alone."""
    buffer = io.StringIO()
    with mpl.style.context(["default", STYLE]):
        figure.savefig(buffer, format="svg", facecolor="white", metadata={"Date": None})
    write_text(out_svg, tidy_svg(buffer.getvalue(), title))
