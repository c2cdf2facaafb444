"""Sampling many images, or many labels, at the same places: where they are is worked out once.

Places are ITK's: an image reaches half a voxel beyond its outer voxel centres and is constant there.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import SimpleITK as sitk
from nibabel.affines import apply_affine, from_matvec
from numpy.typing import NDArray
from scipy.sparse import csr_array

from mmln_pipeline.space.grids import Grid
from mmln_pipeline.space.itk import itk_geometry, itk_points

_SLAB = 2**19
"""Voxels worked on at a time, so that memory depends on no image's size."""


@dataclass(frozen=True, eq=False)
class Sampler:
    """Linear interpolation, or the nearest voxel, at fixed places as one sparse matrix.

    Parameters
    ----------
    matrix : csr_array, shape (voxels of the output, voxels of the input)
        Weights; voxels count as NIfTI stores them, the first axis fastest. Rows outside the input are empty.
    is_outside : ndarray of bool, shape (voxels of the output,)
        Which rows these are.
    """

    matrix: csr_array
    is_outside: NDArray[np.bool_]

    @classmethod
    def make(cls, transform: sitk.Transform, grid: Grid, source: Grid, nearest: bool = False) -> Sampler:
        """Work out where to sample.

        Parameters
        ----------
        transform : SimpleITK Transform
            Points of the output's world to points of the input's world, LPS+ mm.
        grid, source : Grid
            Of the output and of the input.
        nearest : bool, default=False
            Take the nearest voxel (half up) in place of interpolating.
        """
        dtype = np.int32 if np.prod(source.shape) < 2**31 else np.int64
        corners, weights, inside = [], [], []
        for index in find_places(transform, grid, source):
            inside.append(is_inside(index, source))
            places = index[inside[-1]]
            found = _nearest(places, source) if nearest else _corners(places, source)
            corners.append(found[0].astype(dtype))
            weights.append(found[1].astype(np.float32))
        reached = np.concatenate(inside)
        n_corners = corners[0].shape[1]
        rows = np.concatenate([[0], np.cumsum(reached, dtype=np.int64) * n_corners])
        columns, values = np.concatenate(corners).ravel(), np.concatenate(weights).ravel()
        shape = (reached.size, int(np.prod(source.shape)))
        rows = rows.astype(dtype if values.size < 2**31 else np.int64)
        return cls(csr_array((values, columns, rows), shape=shape), ~reached)

    def sample(self, data: NDArray, default: float = 0.0) -> NDArray[np.float32]:
        """Sample an array.

        Parameters
        ----------
        data : ndarray, shape (I, J, K)
            Voxels of the input.
        default : float, default=0.0
            Value outside it.

        Returns
        -------
        ndarray of float32, shape (voxels of the output,)
        """
        moved = self.matrix @ data.ravel(order="F").astype(np.float32, copy=False)
        if default:
            moved[self.is_outside] = default
        return moved

    def pick(self, data: NDArray, default: float = 0.0) -> NDArray:
        """Take an array's nearest voxels as they are, in its own type; see `sample`."""
        moved = np.full(self.is_outside.size, default, dtype=data.dtype)
        moved[~self.is_outside] = data.ravel(order="F")[self.matrix.indices]
        return moved


def sample_labels(transform: sitk.Transform, grid: Grid, labels: NDArray, source: Grid, default: float = 0) -> NDArray:
    """Sample labels: each number is interpolated linearly on its own, and the largest share wins.

    At most eight numbers meet at a place, so that one look at each is enough however many an image has.

    Parameters
    ----------
    transform : SimpleITK Transform
        Points of the output's world to points of the input's world, LPS+ mm.
    grid, source : Grid
        Of the output and of the input.
    labels : ndarray, shape (I, J, K)
        Voxels of the input.
    default : float, default=0
        Label outside it.

    Returns
    -------
    ndarray, shape of `grid`
        In the type of `labels`. Where two share the first place, the smaller number.
    """
    values = labels.ravel(order="F")
    moved = np.full(int(np.prod(grid.shape)), default, dtype=labels.dtype)
    start = 0
    for index in find_places(transform, grid, source):
        where = np.flatnonzero(is_inside(index, source))
        corners, weights = _corners(index[where], source)
        numbers = values[corners]
        winners = numbers[:, 0].copy()
        mixed = np.flatnonzero((numbers != numbers[:, :1]).any(axis=1))
        winners[mixed] = _largest_share(numbers[mixed], weights[mixed])
        moved[start + where] = winners
        start += len(index)
    return moved.reshape(grid.shape, order="F")


def find_places(transform: sitk.Transform, grid: Grid, source: Grid) -> Iterator[NDArray[np.float64]]:
    """Yield where the voxels of a grid lie in the input, slab by slab.

    Yields
    ------
    ndarray, shape (N, 3)
        Voxel indices of `source`, with fractions; the grid's first axis runs fastest, and its last slowest.
    """
    to_voxels = np.linalg.inv(source.affine)
    i, j, depth = grid.shape
    step = max(1, _SLAB // (i * j))
    for first in range(0, depth, step):
        shape = (i, j, min(step, depth - first))
        slab = Grid(shape, grid.affine @ from_matvec(np.eye(3), (0, 0, first)))
        field = sitk.TransformToDisplacementField(transform, sitk.sitkVectorFloat64, shape, *itk_geometry(slab))
        voxels = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1).reshape(-1, 3, order="F")
        points = apply_affine(slab.affine, voxels) + _offsets(field).reshape(-1, 3, order="F")
        yield apply_affine(to_voxels, points)


def _offsets(field: sitk.Image) -> NDArray[np.float64]:
    """Return an ITK field's offsets, shape (I, J, K, 3), RAS+ mm, in double precision."""
    return itk_points(sitk.GetArrayViewFromImage(field).transpose(2, 1, 0, 3))


def is_inside(index: NDArray[np.float64], source: Grid) -> NDArray[np.bool_]:
    """Tell which voxel indices, shape (N, 3), an image covers: half a voxel beyond its outer centres, as in ITK."""
    return np.asarray(((index >= -0.5) & (index < np.array(source.shape) - 0.5)).all(axis=1))


def _corners(index: NDArray[np.float64], source: Grid) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return the eight voxels round each place, by their number, and their weights, both of shape (N, 8)."""
    last = np.array(source.shape) - 1
    index = np.clip(index, 0, last)
    low = np.minimum(index.astype(np.int64), np.maximum(last - 1, 0))
    share = index - low
    strides = np.array([1, source.shape[0], source.shape[0] * source.shape[1]])
    steps = np.where(last > 0, strides, 0)  # an axis of one voxel has no neighbour
    numbers = np.empty((len(index), 8), dtype=np.int64)
    weights = np.empty((len(index), 8))
    first = low @ strides
    for corner in range(8):
        bits = np.array([corner & 1, corner >> 1 & 1, corner >> 2])
        numbers[:, corner] = first + bits @ steps
        x, y, z = (share[:, axis] if bit else 1 - share[:, axis] for axis, bit in enumerate(bits))
        weights[:, corner] = x * y * z
    return numbers, weights


def _nearest(index: NDArray[np.float64], source: Grid) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return the voxel nearest to each place, halves upwards, and the weight 1, both of shape (N, 1)."""
    voxels = np.clip(np.floor(index + 0.5).astype(np.int64), 0, np.array(source.shape) - 1)
    numbers = voxels @ np.array([1, source.shape[0], source.shape[0] * source.shape[1]])
    return numbers[:, None], np.ones((len(index), 1))


def _largest_share(numbers: NDArray, weights: NDArray[np.float64]) -> NDArray:
    """Return of each row the number whose weights add up to most, the smallest of equals; shapes (N, 8)."""
    best, winners = np.full(len(numbers), -1.0), numbers[:, 0].copy()
    for corner in range(8):
        number = numbers[:, corner]
        share = np.where(numbers == number[:, None], weights, 0.0).sum(axis=1)
        wins = (share > best) | ((share == best) & (number < winners))
        best[wins], winners[wins] = share[wins], number[wins]
    return winners
