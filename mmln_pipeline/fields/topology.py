"""The topology guarantee: repair a displacement field, where it folds, until no tetrahedron is inverted.

A stationary velocity field has no folds in theory; on a grid its integral, and more so the composition of several, can
have a few. Around each fold the displacement is smoothed, in a region and by a strength that grow from round to round,
until the folds are gone. All else stays as it is. The map and its inverse are repaired each on its own: where one of
them folds on its grid, the other one, which expands there, is sound and shall not lose detail.

Beyond its grid a map is the identity, as its readers take it: the cells across the border count, too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from scipy.ndimage import find_objects, label
from torch import Tensor

from mmln_pipeline.fields.jacobian import cell_volumes
from mmln_pipeline.fields.scales import dilate, smooth
from mmln_pipeline.fields.windows import Window, crop

FLOOR = 0.002
"""Smallest tetrahedron let pass, as a share of its volume before: it outlives the rounding of a transform's file."""
MAX_ROUNDS = 30
SMALLEST_RADIUS = 2
"""Radius in voxels, in the first round, of what is smoothed round a folded cell; it grows by one every other round."""
_INSIDE = (slice(None), slice(None), *[slice(1, -1)] * 3)
_BLOCK = 8
"""Folds are gathered in blocks so large, whose neighbours are repaired together."""


@dataclass(frozen=True)
class Repair:
    """A displacement field that was made free of folds, and what that took.

    Attributes
    ----------
    displacement : Tensor, shape (1, 3, I, J, K)
        The tensor given, or a repaired copy of it, voxels.
    ndv : Tensor, shape (1, I-1, J-1, K-1)
        Its non-diffeomorphic volume, as of `fields.jacobian.ndv`.
    reached : bool
        NDV is zero, also across the border.
    rounds : int
        Rounds of smoothing; 0 when there was nothing to do.
    cells_repaired : int
        Grid cells below `FLOOR` before.
    largest_change_voxels : float
        Length of the largest change of the displacement.
    ndv_percent_before, ndv_percent : float
        Non-diffeomorphic volume in percent of the grid and its border.
    min_jacobian_before, min_jacobian : float
        Least of all finite-difference Jacobian determinants, those across the border among them.
    """

    displacement: Tensor
    ndv: Tensor
    reached: bool
    rounds: int
    cells_repaired: int
    largest_change_voxels: float
    ndv_percent_before: float
    ndv_percent: float
    min_jacobian_before: float
    min_jacobian: float

    def certificate(self) -> dict[str, Any]:
        """Return the facts without the fields."""
        return {name: value for name, value in vars(self).items() if not isinstance(value, Tensor)}


@torch.no_grad()
def enforce(displacement: Tensor, max_rounds: int = MAX_ROUNDS) -> Repair:
    """Make a map free of folds.

    Parameters
    ----------
    displacement : Tensor, shape (1, 3, I, J, K)
        Voxels; it should fade to zero at the border.
    max_rounds : int, default=30
        Rounds of smoothing.

    Returns
    -------
    Repair
        The same tensor when nothing folds. Where folds are left after the last round, ``reached`` is False.

    Raises
    ------
    ValueError
        If the tensor holds more than one field.
    """
    if len(displacement) != 1:
        raise ValueError(f"topology: expected one field at a time, found {len(displacement)}.")
    given = F.pad(displacement, [1] * 6)
    inverted, smallest = cell_volumes(given)
    before = _summarise(inverted, smallest)
    cells = int(_folds(smallest).sum())
    result, rounds = given, 0
    is_finite = bool(torch.isfinite(displacement).all())
    while is_finite and rounds < max_rounds and bool(_folds(smallest).any()):
        if result is given:
            result = given.clone()
        for window in _find_windows(_folds(smallest), _reach(rounds)):
            _smooth(crop(result, window), smallest, window, rounds)
            _hold_still(result)
            changed = tuple(slice(max(0, s.start - 1), s.stop) for s in window)
            cropped = tuple(slice(s.start, s.stop + 1) for s in changed)
            for volumes, anew in zip((inverted, smallest), cell_volumes(crop(result, cropped)), strict=True):
                volumes[(slice(None), *changed)] = anew
        rounds += 1
    after = _summarise(inverted, smallest)
    return Repair(
        displacement=result[_INSIDE].contiguous() if rounds else displacement,
        ndv=inverted[:, 1:-1, 1:-1, 1:-1],
        reached=after[0] == 0,
        rounds=rounds,
        cells_repaired=cells,
        largest_change_voxels=float((result - given).square().sum(1).max().sqrt()) if rounds else 0.0,
        ndv_percent_before=before[0],
        ndv_percent=after[0],
        min_jacobian_before=before[1],
        min_jacobian=after[1],
    )


def _hold_still(surrounded: Tensor) -> None:
    """Make the outermost voxels, those beyond the field's grid, the identity again, in place."""
    for axis in (2, 3, 4):
        surrounded.select(axis, 0).zero_()
        surrounded.select(axis, -1).zero_()


def _summarise(inverted: Tensor, smallest: Tensor) -> tuple[float, float]:
    """Return the NDV in percent and the least determinant."""
    return 100 * float(inverted.double().mean()), float(smallest.min())


def _folds(smallest: Tensor) -> Tensor:
    return ~(smallest[0] >= FLOOR)  # true of a NaN as well


def _radius(number: int) -> int:
    return SMALLEST_RADIUS + number // 2


def _sigma(number: int) -> float:
    return 0.75 * (1 + number / 4)


def _reach(number: int) -> int:
    """Return how far from a fold a round changes the displacement, voxels."""
    return 2 * _radius(number) + 1


def _find_windows(folds: Tensor, margin: int) -> list[Window]:
    """Return windows of voxels that hold every folded cell and a margin round it."""
    blocks = F.max_pool3d(folds[None, None].float(), _BLOCK, ceil_mode=True)[0, 0].cpu().numpy()
    clusters, _ = label(blocks, structure=np.ones((3, 3, 3)))
    return [
        tuple(
            slice(max(0, s.start * _BLOCK - margin), min(n + 1, s.stop * _BLOCK + margin + 1))
            for s, n in zip(cluster, folds.shape, strict=True)
        )
        for cluster in find_objects(clusters)
    ]


def _smooth(part: Tensor, smallest: Tensor, window: Window, number: int) -> None:
    """Blend a smoothed displacement in, in place, round the folded cells of a window."""
    cells = tuple(slice(s.start, s.stop - 1) for s in window)
    folds = F.pad(_folds(smallest[(slice(None), *cells)])[None, None].float(), [0, 1] * 3)
    corners = F.max_pool3d(F.pad(folds, [1, 0] * 3), 2, stride=1)  # a cell's eight voxels
    radius, sigma = _radius(number), _sigma(number)
    weight = smooth(dilate(corners, radius), radius / 2, radius)
    part += weight * (smooth(part, sigma) - part)
