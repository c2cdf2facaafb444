"""Derivatives of fields, what maps do to volumes, and where they fold."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor

from mmln_pipeline.fields import kernels
from mmln_pipeline.fields.warping import voxel_grid

_SLAB = 16
"""Planes whose Jacobian determinants are computed at once."""
_BLOCK_PLANES, _BLOCK_CELLS = 4, 2**14
"""Cells whose volumes a CPU computes at once: few enough for its cache, and too few to wait for other threads."""


def gradient(field: Tensor) -> Tensor:
    """Return forward differences of a field along the three axes, zero behind the last voxel.

    Parameters
    ----------
    field : Tensor, shape (B, C, I, J, K)

    Returns
    -------
    Tensor, shape (B, C, 3, I, J, K)
        Difference per voxel; the last axis before the grid is the direction.
    """
    return torch.stack([F.pad(field.diff(dim=d), [0, 0] * (4 - d) + [0, 1]) for d in (2, 3, 4)], dim=2)


def jacobian_determinant(displacement: Tensor) -> Tensor:
    """Return the Jacobian determinant of ``x + u(x)`` by central differences, one-sided at the border.

    Parameters
    ----------
    displacement : Tensor, shape (B, 3, I, J, K)
        Voxels; every axis has at least 2 voxels.

    Returns
    -------
    Tensor, shape (B, I, J, K)
        Volume change; a value <= 0 is a fold.

    References
    ----------
    Paper section 4.3.
    """
    displacement, planes = displacement.float(), displacement.shape[2]
    parts = []
    for first in range(0, planes, _SLAB):  # nine derivatives of the whole would take thrice the field's memory
        last = min(first + _SLAB, planes)
        start = max(0, first - 1)  # a plane more on either side, for central differences
        rows = [list(torch.gradient(part, dim=(1, 2, 3))) for part in displacement[:, :, start : last + 1].unbind(1)]
        for axis, row in enumerate(rows):
            row[axis] = row[axis] + 1
        parts.append(determinant(*rows)[:, first - start : last - start])
    return torch.cat(parts, dim=1)


def determinant(a: Sequence[Tensor], b: Sequence[Tensor], c: Sequence[Tensor]) -> Tensor:
    """Return the determinant of 3 x 3 matrices, each row given as its three components."""
    return _dot(a, _cross(b, c))


def ndv(displacement: Tensor) -> Tensor:
    """Return the non-diffeomorphic volume of every grid cell.

    Each cell of 2 x 2 x 2 voxels is cut into five tetrahedra in its two possible ways; the volume that inverted
    tetrahedra take up, averaged over the two ways, is what no choice of finite differences can hide. A field is
    called fold-free only when this is zero everywhere.

    Parameters
    ----------
    displacement : Tensor, shape (B, 3, I, J, K)
        Voxels.

    Returns
    -------
    Tensor, shape (B, I-1, J-1, K-1)
        Inverted volume per cell, in voxels.

    References
    ----------
    Liu et al., "On finite difference Jacobian computation in deformable image registration", IJCV 2024.
    """
    return cell_volumes(displacement)[0]


def cell_volumes(displacement: Tensor) -> tuple[Tensor, Tensor]:
    """Return how much of every grid cell is inverted, and its smallest Jacobian determinant.

    Parameters
    ----------
    displacement : Tensor, shape (B, 3, I, J, K)
        Voxels.

    Returns
    -------
    inverted : Tensor, shape (B, I-1, J-1, K-1)
        Non-diffeomorphic volume in voxels; see :func:`ndv`.
    smallest : Tensor, shape (B, I-1, J-1, K-1)
        Volume of the cell's smallest tetrahedron relative to its volume before: the least of the ten determinants
        that finite differences give; the cell is fold-free when it is positive.
    """
    displacement = displacement.float()
    if kernels.are_usable(displacement):
        return kernels.cell_volumes(displacement)
    position = displacement + voxel_grid(displacement.shape[2:], displacement.device)
    planes, rows = position.shape[2] - 1, position.shape[3] - 1
    depth, height = planes, rows
    if position.device.type == "cpu":
        depth, height = _BLOCK_PLANES, max(1, _BLOCK_CELLS // (_BLOCK_PLANES * position.shape[4]))
    inverted = position.new_empty(len(position), planes, rows, position.shape[4] - 1)
    smallest = torch.empty_like(inverted)
    for i, j in product(range(0, planes, depth), range(0, rows, height)):
        block = _block_volumes(position[:, :, i : i + depth + 1, j : j + height + 1])
        part = (slice(None), slice(i, i + depth), slice(j, j + height))
        inverted[part], smallest[part] = block
    return inverted, smallest


def _block_volumes(position: Tensor) -> tuple[Tensor, Tensor]:
    """Return `cell_volumes` of a block of positions, shape (B, 3, I, J, K)."""
    components = position.unbind(1)
    x, y, z = ([c.diff(dim=d) for c in components] for d in (1, 2, 3))
    ends = slice(None, -1), slice(1, None)
    y_ends = [[c[..., end] for c in y] for end in ends]
    z_ends = [[c[..., end, :] for c in z] for end in ends]
    crosses = {(j, k): _cross(y_ends[k], z_ends[j]) for j, k in product((0, 1), repeat=2)}
    determinants = []
    for i, j, k in product((0, 1), repeat=3):  # the tetrahedron at each corner, spanned by its three edges
        determinants.append(_dot([c[:, :, ends[j], ends[k]] for c in x], [c[:, ends[i]] for c in crosses[j, k]]))
    corner = {(i, j, k): [c[:, ends[i], ends[j], ends[k]] for c in components] for i, j, k in product((0, 1), repeat=3)}
    for apex, others in (
        ((0, 0, 0), ((0, 1, 1), (1, 0, 1), (1, 1, 0))),
        ((1, 1, 1), ((1, 0, 0), (0, 1, 0), (0, 0, 1))),
    ):  # the middle tetrahedron of either way
        sides = [[a - b for a, b in zip(corner[bits], corner[apex], strict=True)] for bits in others]
        determinants.append(determinant(*sides) * (-1 if apex == (1, 1, 1) else 1))
    smallest = torch.minimum(determinants[8], determinants[9]) / 2  # twice a corner's, before the deformation
    for volume in determinants[:8]:
        smallest = torch.minimum(smallest, volume)
    inverted = torch.zeros_like(smallest)
    if not smallest.min() >= 0:  # true of a NaN as well
        inverted = sum(((-volume).clamp(min=0) / 6 for volume in determinants), inverted) / 2
    return inverted, smallest


def _cross(a: Sequence[Tensor], b: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    return a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]


def _dot(a: Sequence[Tensor], b: Sequence[Tensor]) -> Tensor:
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]
