"""Lay slices of a brain out on one picture in three planes, and sample any image or field on them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import nibabel as nb
import numpy as np
from nibabel.affines import apply_affine, voxel_sizes
from nibabel.spatialimages import SpatialImage
from scipy.ndimage import map_coordinates

# (name, axis that is cut, axis along the columns, axis along the rows), axes of a RAS+ grid
PLANES = (("axial", 2, 0, 1), ("coronal", 1, 0, 2), ("sagittal", 0, 1, 2))
MAX_PIXELS = 200  # longest side of one slice, in pixels
MARGIN_MM = 5.0  # left free round the brain
HEAD_MARGIN_MM = 15.0  # the same where what lies next to the brain matters


class Displacement(Protocol):
    """Offsets in mm on a grid: anything with these two attributes, such as ``DisplacementField``."""

    @property
    def offsets_mm(self) -> np.ndarray:
        """Offsets, shape (I, J, K, 3), in mm along the world axes (RAS+)."""

    @property
    def affine(self) -> np.ndarray:
        """Voxel to world matrix, 4x4."""


@dataclass(frozen=True)
class Cell:
    """One slice of a mosaic.

    Attributes
    ----------
    plane : str
        ``axial``, ``coronal`` or ``sagittal``.
    rows, columns : slice
        The pixels of the mosaic that it fills.
    right, up : ndarray, shape (3,)
        World direction (RAS+, unit length) of growing columns and of *falling* rows.
    position_mm : float
        World coordinate of the slice along the axis that is cut, in mm.
    """

    plane: str
    rows: slice
    columns: slice
    right: np.ndarray
    up: np.ndarray
    position_mm: float


@dataclass(frozen=True)
class Mosaic:
    """Slices in three planes, one row of slices a plane, and the world position of each pixel.

    Attributes
    ----------
    points : ndarray, shape (H, W, 3)
        World position (RAS+, mm) of each pixel; NaN between the slices.
    cells : tuple of Cell
        The slices, row after row.
    step_mm : float
        Side of a pixel in mm.
    """

    points: np.ndarray
    cells: tuple[Cell, ...]
    step_mm: float

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.points.shape[:2]

    @cached_property
    def filled(self) -> np.ndarray:
        """Pixels that belong to a slice: bool, shape (H, W)."""
        return np.isfinite(self.points[..., 0])

    @cached_property
    def _places(self) -> np.ndarray:
        """World positions of the filled pixels, shape (3, N)."""
        return np.ascontiguousarray(self.points[self.filled].T)

    def sample(self, image: SpatialImage, order: int = 1) -> np.ndarray:
        """Sample an image, of any orientation and grid, at each pixel.

        Parameters
        ----------
        image : SpatialImage
            A 3-D image.
        order : int, default=1
            0 for the nearest voxel (labels), 1 for linear interpolation.

        Returns
        -------
        ndarray, shape (H, W)
            float32; 0 outside the image and between the slices.
        """
        return self.sample_array(_volume(image), image.affine, order)

    def sample_displacement(self, field: Displacement) -> np.ndarray:
        """Sample a displacement field at each pixel.

        Parameters
        ----------
        field : Displacement
            Offsets in mm, RAS+; outside its grid the nearest offset holds.

        Returns
        -------
        ndarray, shape (H, W, 3)
            Offsets in mm, RAS+; 0 between the slices.
        """
        offsets = np.asarray(field.offsets_mm, dtype=np.float32)
        parts = [self.sample_array(offsets[..., axis], field.affine, 1, "nearest") for axis in range(3)]
        return np.stack(parts, axis=-1)

    def sample_array(self, data: np.ndarray, affine: np.ndarray, order: int = 1, mode: str = "constant") -> np.ndarray:
        """Sample an array that lies in the world by its affine; see `sample`."""
        to_voxels = np.linalg.inv(affine)
        voxels = to_voxels[:3, :3] @ self._places + to_voxels[:3, 3:]
        picture = np.zeros(self.shape, dtype=np.float32)
        picture[self.filled] = map_coordinates(data, voxels, order=order, mode=mode, cval=0.0)
        return picture


def lay_out(
    image: SpatialImage,
    mask: SpatialImage | None = None,
    cuts: int = 5,
    through: SpatialImage | None = None,
    margin: float = MARGIN_MM,
) -> Mosaic:
    """Choose slices through the brain along the axes of an image's grid.

    Columns grow to the right and to the front, rows fall from the top and from the front: the left of an
    axial or coronal slice is the left of the brain. An oblique image is cut along its own axes.

    Parameters
    ----------
    image : SpatialImage
        The 3-D image whose axes and voxel size are taken; any orientation.
    mask : SpatialImage, optional
        The brain, on any grid. By default the non-zero voxels of `image`.
    cuts : int, default=5
        Slices in each plane.
    through : SpatialImage, optional
        Something small (its non-zero voxels) that must be seen: in each plane the nearest slice moves to its centre.
    margin : float, default=5
        Left free round the brain, mm.

    Returns
    -------
    Mosaic
        The slices, at equal distances inside the bounding box of the brain.
    """
    canonical = nb.as_closest_canonical(image)
    spacing = voxel_sizes(canonical.affine)
    low, high = _brain_box(image if mask is None else mask, canonical)
    free = np.ceil(margin / spacing)
    first = np.maximum(low - free, 0)
    last = np.minimum(high + free, np.asarray(canonical.shape[:3]) - 1)
    extent = (last - first) * spacing
    step = float(max(spacing.min(), extent.max() / MAX_PIXELS))
    size = (np.floor(extent / step + 1e-6) + 1).astype(int)
    positions = [_cut_positions((low - first)[axis], (high - first)[axis], cuts) for axis in range(3)]
    if through is not None:
        inside = np.argwhere(np.nan_to_num(_volume(through)) > 0).mean(axis=0)
        middle = np.round(apply_affine(np.linalg.inv(canonical.affine) @ through.affine, inside) - first)
        for places, wanted in zip(positions, np.clip(middle, 0, last - first), strict=True):
            places[np.argmin(np.abs(places - wanted))] = wanted
    axes = canonical.affine[:3, :3] / spacing
    origin = apply_affine(canonical.affine, first)
    return _assemble(origin, axes, size, step, [p * s for p, s in zip(positions, spacing, strict=True)])


def _brain_box(source: SpatialImage, canonical: SpatialImage) -> tuple[np.ndarray, np.ndarray]:
    """Return the first and last voxel (in `canonical`) of the non-zero voxels of `source`."""
    shape = np.asarray(canonical.shape[:3])
    inside = np.nan_to_num(_volume(source)) > 0
    if not inside.any():
        return np.zeros(3), shape - 1.0
    corners = np.array([np.flatnonzero(inside.any(axis=across))[[0, -1]] for across in ((1, 2), (0, 2), (0, 1))]).T
    box = np.array([[corners[i, 0], corners[j, 1], corners[k, 2]] for i in (0, 1) for j in (0, 1) for k in (0, 1)])
    voxels = apply_affine(np.linalg.inv(canonical.affine) @ source.affine, box)
    low, high = np.round(voxels.min(axis=0)), np.round(voxels.max(axis=0))
    return np.clip(low, 0, shape - 1), np.clip(high, 0, shape - 1)


def _cut_positions(low: float, high: float, cuts: int) -> np.ndarray:
    """Return whole voxel numbers at equal distances strictly inside the box (as far as it has room)."""
    return np.round(np.linspace(low, high, cuts + 2)[1:-1])


def _assemble(
    origin: np.ndarray, axes: np.ndarray, size: np.ndarray, step: float, positions: list[np.ndarray]
) -> Mosaic:
    """Place one row of slices a plane, centred, on a common picture; `positions` in mm from `origin`."""
    cuts = len(positions[0])
    width = max(cuts * size[across] for _, _, across, _ in PLANES)
    height = sum(size[along] for *_, along in PLANES)
    points = np.full((height, width, 3), np.nan)
    cells, top = [], 0
    for plane, cut, across, along in PLANES:
        left = (width - cuts * size[across]) // 2
        rows = slice(top, top + size[along])
        for position in positions[cut]:
            columns = slice(left, left + size[across])
            corner = origin + position * axes[:, cut]
            up = step * np.arange(size[along])[::-1, None, None] * axes[:, along]
            points[rows, columns] = corner + up + step * np.arange(size[across])[:, None] * axes[:, across]
            middle = points[rows, columns].mean(axis=(0, 1))
            cells.append(Cell(plane, rows, columns, axes[:, across], axes[:, along], float(middle[cut])))
            left = columns.stop
        top = rows.stop
    return Mosaic(points, tuple(cells), step)


def _volume(image: SpatialImage) -> np.ndarray:
    """Return the voxels of a 3-D image as float32."""
    data = np.asanyarray(image.dataobj)
    data = data[..., 0] if data.ndim == 4 and data.shape[3] == 1 else data
    if data.ndim != 3:
        raise ValueError(f"A figure needs a 3-D image, found shape {data.shape}: pass one volume of it.")
    return data.astype(np.float32, copy=False)
