"""Figures of a registration: before and after, warp grid, log-Jacobian, brain mask, labels (SVG files)."""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.collections import LineCollection
from matplotlib.colors import Normalize
from nibabel.spatialimages import SpatialImage
from scipy.ndimage import gaussian_filter

from mmln_pipeline.reporting.canvas import Canvas
from mmln_pipeline.reporting.mosaic import HEAD_MARGIN_MM, Displacement, Mosaic, lay_out
from mmln_pipeline.space.transforms import number_consecutively

CONTOUR = "#ff5c39"
GRID = "#4fd8e8"
LESION = (0.31, 0.85, 0.91)
FOLDED = (0.75, 1.0, 0.0)
LOG_FOLDED = np.log(1e-6)  # a determinant at or below this counts as folded: log-Jacobians are clipped, never NaN
OUTLINE_SCALE = 2  # outlines of labels are half a pixel wide on either side of a border
MAX_LEGEND = 10

# The picture before registration lies over the one after it. Pointing at the file (or touching it) lets the
# two alternate, as NiReports' flickering figures do; a page that embeds the file can set the layers itself.
FLICKER = """
@keyframes mmln-flicker {0%, 40% {opacity: 0} 60%, 100% {opacity: 1}}
.layer-before {opacity: 0}
svg:hover > g > .layer-before, svg:active > g > .layer-before {
animation: mmln-flicker 1s ease-in-out infinite alternate}
"""


def plot_before_after(
    fixed: SpatialImage,
    before: SpatialImage,
    after: SpatialImage,
    out_svg: str | PathLike,
    *,
    mask: SpatialImage | None = None,
) -> None:
    """Draw the moving image before and after registration under the contours of the fixed image.

    The groups ``layer-fixed``, ``layer-after`` and ``layer-before`` lie on top of each other, and over them
    ``layer-contour``. Opened alone, the file shows the image after registration; it flickers when pointed at.

    Parameters
    ----------
    fixed : SpatialImage
        The fixed image; the slices follow its grid.
    before, after : SpatialImage
        The moving image in the fixed image's world before and after registration, on any grid.
    out_svg : path
        The file to write.
    mask : SpatialImage, optional
        The fixed brain. By default the non-zero voxels of `fixed`.
    """
    mosaic = lay_out(fixed, mask)
    canvas = Canvas(mosaic, "Registration, with contours of the fixed image")
    for image, name in ((fixed, "fixed"), (after, "after"), (before, "before")):
        caption = "fixed image" if name == "fixed" else f"{name} registration"
        canvas.add_picture(_grey(mosaic.sample(image)), name, caption)
    _add_tissue_contours(canvas.add_layer("contour"), mosaic, fixed, mask)
    canvas.add_frame()
    canvas.save(out_svg, style=FLICKER)


def plot_warp_grid(
    fixed: SpatialImage,
    displacement: Displacement,
    out_svg: str | PathLike,
    *,
    mask: SpatialImage | None = None,
    spacing_mm: float = 6.0,
    remove_affine: bool = True,
) -> None:
    """Draw a regular grid, moved by a displacement field, over the fixed image.

    The grid point at x is drawn at T(x) = x + u(x). With `remove_affine` it is drawn at A^-1 T(x), where A is
    the affine map that fits T best inside the brain, so that what is left is the nonlinear part in the fixed
    image's frame.

    Parameters
    ----------
    fixed : SpatialImage
        The fixed image; the slices follow its grid.
    displacement : Displacement
        Offsets u in mm (RAS+), fixed world to moving world, on any grid.
    out_svg : path
        The file to write.
    mask : SpatialImage, optional
        The fixed brain. By default the non-zero voxels of `fixed`.
    spacing_mm : float, default=6.0
        Distance of the grid's lines in mm.
    remove_affine : bool, default=True
        Take the affine part out.
    """
    mosaic = lay_out(fixed, mask, cuts=3)
    offsets = mosaic.sample_displacement(displacement)
    if remove_affine:
        brain = mosaic.sample(fixed if mask is None else mask) > 0
        offsets = _without_affine(mosaic.points, offsets, brain & mosaic.filled)
    canvas = Canvas(mosaic, f"Warp grid, lines {spacing_mm:g} mm apart")
    canvas.add_picture(0.55 * _grey(mosaic.sample(fixed)))
    lines = _grid_lines(mosaic, offsets, max(1, round(spacing_mm / mosaic.step_mm)))
    canvas.add_layer("grid").add_collection(LineCollection(lines, colors=GRID, linewidths=0.6), autolim=False)
    canvas.add_frame()
    canvas.save(out_svg)


def plot_log_jacobian(
    fixed: SpatialImage,
    log_jacobian: SpatialImage,
    out_svg: str | PathLike,
    *,
    mask: SpatialImage | None = None,
) -> None:
    """Draw the natural logarithm of the Jacobian determinant over the fixed image.

    The colours are centred on 0 (no change of volume) and reach the 99.5th percentile of the absolute values
    in the brain. Folded voxels (determinant at or below 1e-6) have a colour of their own.

    Parameters
    ----------
    fixed : SpatialImage
        The fixed image; the slices follow its grid.
    log_jacobian : SpatialImage
        log |J| of the map from the fixed to the moving world, no unit, on any grid.
    out_svg : path
        The file to write.
    mask : SpatialImage, optional
        The fixed brain, outside of which nothing is drawn. By default the non-zero voxels of `fixed`.
    """
    mosaic = lay_out(fixed, mask)
    brain = mosaic.sample(fixed if mask is None else mask, order=0) > 0
    values = np.nan_to_num(mosaic.sample(log_jacobian, order=0), nan=-np.inf)
    folded = brain & (values <= LOG_FOLDED)
    valid = np.abs(values[brain & ~folded])
    limit = max(0.1, float(np.ceil(10 * np.percentile(valid, 99.5)) / 10)) if valid.size else 1.0
    mappable = ScalarMappable(Normalize(-limit, limit), mpl.colormaps["RdBu_r"])
    colours = mappable.to_rgba(np.clip(values, -limit, limit))[..., :3]
    grey = np.repeat(_grey(mosaic.sample(fixed))[..., None], 3, axis=2)
    picture = np.where(brain[..., None], 0.75 * colours + 0.25 * grey, 0.0)
    picture[folded] = FOLDED
    canvas = Canvas(mosaic, "log-Jacobian of the transform", with_bar=True)
    note = f"{folded.sum()} folded pixels shown in yellow-green" if folded.any() else "no folded voxel on these slices"
    canvas.add_picture(picture, caption=note)
    canvas.add_frame()
    label = "log |J| (natural log, no unit): moving image smaller here < 0 < larger"
    canvas.add_colour_bar(mappable, label)
    canvas.save(out_svg)


def plot_brain_mask(
    t1w: SpatialImage, mask: SpatialImage, out_svg: str | PathLike, *, lesion: SpatialImage | None = None
) -> None:
    """Draw the outline of a brain mask, and a lesion mask, over the image they were made from.

    Parameters
    ----------
    t1w : SpatialImage
        The image; the slices follow its grid.
    mask : SpatialImage
        The brain (non-zero), on any grid.
    out_svg : path
        The file to write.
    lesion : SpatialImage, optional
        A lesion (non-zero), on any grid; the slices pass through its middle.
    """
    mosaic = lay_out(t1w, mask, through=lesion, margin=HEAD_MARGIN_MM)
    canvas = Canvas(mosaic, "Brain mask" if lesion is None else "Brain mask and lesion mask")
    inside = mosaic.sample(mask, order=0) > 0
    picture = np.repeat(_grey(mosaic.sample(t1w), inside)[..., None], 3, axis=2)
    caption = ""
    if lesion is not None:
        marked = mosaic.sample(lesion, order=0) > 0
        picture[marked] = 0.5 * picture[marked] + 0.5 * np.array(LESION)
        caption = "brain outlined in red, lesion mask filled in blue"
    axes = canvas.add_picture(picture, caption=caption)
    _contour(axes, inside.astype(np.float32), 0.5)
    canvas.add_frame()
    canvas.save(out_svg)


def plot_labels(
    image: SpatialImage,
    dseg: SpatialImage,
    out_svg: str | PathLike,
    *,
    names: Mapping[int, str] | None = None,
) -> None:
    """Draw the outlines of labels over an image.

    Parameters
    ----------
    image : SpatialImage
        The image; the slices follow its grid.
    dseg : SpatialImage
        Whole-numbered labels on any grid; 0 is background.
    out_svg : path
        The file to write.
    names : mapping of int to str, optional
        Names for the legend, which is drawn for up to ten labels.
    """
    mosaic = lay_out(image, dseg)
    numbers, codes = number_consecutively(np.round(np.asanyarray(dseg.dataobj)))
    background = np.searchsorted(numbers, 0)  # pictures are float32 and 0 outside: too coarse for large numbers
    picked = mosaic.sample_array((codes - background).astype(np.float32), dseg.affine, order=0)
    labels = numbers[np.round(picked).astype(int) + background].astype(int)
    shown = [int(value) for value in np.unique(labels) if value != 0]
    palette = {label: mpl.colormaps["tab10"](number % 10)[:3] for number, label in enumerate(shown)}
    with_legend = 0 < len(shown) <= MAX_LEGEND
    canvas = Canvas(mosaic, "Labels", with_bar=with_legend)
    large = np.kron(labels, np.ones((OUTLINE_SCALE, OUTLINE_SCALE), dtype=int))
    picture = _grey(mosaic.sample(image))
    height, width = mosaic.shape
    axes = canvas.add_picture(picture, caption=f"{len(shown)} labels on these slices")
    axes.imshow(
        _outline_colours(large, palette),
        extent=(-0.5, width - 0.5, height - 0.5, -0.5), interpolation="none", aspect="auto",
    )  # fmt: skip
    canvas.add_frame()
    if with_legend:
        names = names or {}
        canvas.add_legend([(str(names.get(label, label)), palette[label]) for label in shown])
    canvas.save(out_svg)


def _outline_colours(labels: np.ndarray, palette: Mapping[int, tuple[float, ...]]) -> np.ndarray:
    """Return an RGBA picture, uint8, of the pixels whose label differs from a neighbour's."""
    edge = np.zeros(labels.shape, dtype=bool)
    for axis in (0, 1):
        for shift in (-1, 1):
            edge |= np.roll(labels, shift, axis) != labels
    picture = np.zeros((*labels.shape, 4), dtype=np.uint8)
    for label, colour in palette.items():
        picture[edge & (labels == label)] = [*(round(255 * part) for part in colour), 255]
    return picture


def _grey(picture: np.ndarray, region: np.ndarray | None = None) -> np.ndarray:
    """Scale a picture to [0, 1] by the 99.8th percentile of its non-zero pixels in a region; NaN becomes 0."""
    picture = np.nan_to_num(picture)
    bright = picture[(picture > 0) if region is None else (picture > 0) & region]
    top = float(np.percentile(bright, 99.8)) if bright.size else 1.0
    return np.clip(picture / top, 0, 1)


def _contour(axes: Axes, picture: np.ndarray, level: float, width: float = 0.8) -> None:
    """Draw one iso-line where the picture has one."""
    if picture.min() < level < picture.max():
        axes.contour(picture, levels=[level], colors=[CONTOUR], linewidths=[width])


def _add_tissue_contours(axes: Axes, mosaic: Mosaic, fixed: SpatialImage, mask: SpatialImage | None) -> None:
    """Outline the fixed brain and, by intensity, about the border of its white matter."""
    picture = mosaic.sample(fixed)
    brain = mosaic.sample(fixed if mask is None else mask, order=0) > 0
    _contour(axes, brain.astype(np.float32), 0.5)
    if brain.any():
        inside = np.where(brain, picture, 0.0)
        _contour(axes, gaussian_filter(inside, 1.0), float(np.percentile(picture[brain], 60)), width=0.5)


def _without_affine(points: np.ndarray, offsets: np.ndarray, brain: np.ndarray) -> np.ndarray:
    """Return the offsets of A^-1 T, where A is the affine map that fits T(x) = x + u(x) best in the brain."""
    if not brain.any():
        return offsets
    centre = points[brain].mean(axis=0)
    design = np.column_stack([points[brain] - centre, np.ones(brain.sum())])
    fit = np.linalg.lstsq(design, offsets[brain], rcond=None)[0]  # (4, 3): linear part, then the shift
    linear = np.eye(3) + fit[:3].T
    residual = offsets - ((points - centre) @ fit[:3] + fit[3])
    return residual @ np.linalg.pinv(linear).T


def _grid_lines(mosaic: Mosaic, offsets: np.ndarray, every: int) -> list[np.ndarray]:
    """Return the moved grid as lines of (x, y) pixels, cut off where they leave their slice."""
    lines: list[np.ndarray] = []
    for cell in mosaic.cells:
        rows, columns = np.mgrid[cell.rows, cell.columns].astype(float)
        inside = offsets[cell.rows, cell.columns]
        x = columns + inside @ cell.right / mosaic.step_mm
        y = rows - inside @ cell.up / mosaic.step_mm
        left = (x < cell.columns.start) | (x > cell.columns.stop - 1)
        outside = left | (y < cell.rows.start) | (y > cell.rows.stop - 1)
        moved = np.stack([x, y], axis=-1)
        moved[outside] = np.nan
        start = every // 2
        lines += [moved[row] for row in range(start, moved.shape[0], every)]
        lines += [moved[:, column] for column in range(start, moved.shape[1], every)]
    return [line for line in lines if np.isfinite(line).any()]
