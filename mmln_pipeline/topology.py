"""The topology guarantee: repair velocity fields, where their map folds, until no tetrahedron is inverted.

A stationary velocity field has no folds in theory; on a grid its integral, and more so the composition of several,
can have a few. Around each fold the velocities are smoothed, the finest first, in a region and by a strength that grow
from round to round, until both the map and its inverse are free of folds. All else stays as it is: a repair happens in
a window round the fold, large enough that what lies beyond cannot feel it, and only the window is integrated anew.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from scipy.ndimage import find_objects, label
from torch import Tensor

from mmln_pipeline.fields import Window, cell_volumes, crop, integrate

FLOOR = 0.002
"""Smallest tetrahedron let pass, as a share of its volume before: it outlives the rounding of a transform's file."""
PASSES = (range(0, 2), range(2, 6), range(6, 12))
"""Rounds of smoothing. A pass looks at the whole grid and repairs each window; the last one takes the grid at once."""
MAX_ROUNDS = PASSES[-1].stop
SLOW_FROM = 4
"""Round after which smoothed velocities are slowed down too."""
SMALLEST_RADIUS = 2
"""Radius of the first round's weight in voxels of the full-size grid; it grows by one a round."""
_CLUSTER = 8
_CRAMPED = 0.5
"""Share of the grid from which on windows are not worth their margins."""


@dataclass(frozen=True)
class Certificate:
    """What the repair found and did, over the whole grid.

    Attributes
    ----------
    reached : bool
        The forward map's NDV is zero.
    rounds : int
        Most rounds of smoothing that one place took; 0 when there was nothing to do.
    cells_repaired, inverse_cells_repaired : int
        Grid cells below `FLOOR` before.
    largest_change_voxels : float
        Length of the largest change of the forward displacement.
    ndv_percent_before, ndv_percent : float
        Non-diffeomorphic volume of the forward map, in percent of the grid.
    min_jacobian_before, min_jacobian : float
        Least of all finite-difference Jacobian determinants of the forward map.
    inverse_... : float
        The same four of the inverse map, which is repaired alongside.
    """

    reached: bool
    rounds: int
    cells_repaired: int
    inverse_cells_repaired: int
    largest_change_voxels: float
    ndv_percent_before: float
    ndv_percent: float
    min_jacobian_before: float
    min_jacobian: float
    inverse_ndv_percent_before: float
    inverse_ndv_percent: float
    inverse_min_jacobian_before: float
    inverse_min_jacobian: float


@dataclass(frozen=True)
class Repair:
    """Velocity fields that were made free of folds, and their maps.

    Attributes
    ----------
    velocities : tuple of Tensor, each of shape (1, 3, i, j, k)
        The tensors given, or repaired copies of them.
    forward, inverse : Tensor, shape (1, 3, I, J, K)
        Their integrated displacement, voxels.
    ndv : Tensor, shape (1, I-1, J-1, K-1)
        Non-diffeomorphic volume of `forward`, as of `fields.ndv`.
    certificate : Certificate
    """

    velocities: tuple[Tensor, ...]
    forward: Tensor
    inverse: Tensor
    ndv: Tensor
    certificate: Certificate


class _Check:
    """The folds of one map: inverted volume and smallest determinant of each cell, shape (I-1, J-1, K-1)."""

    def __init__(self, displacement: Tensor) -> None:
        self.inverted, self.smallest = (volumes[0] for volumes in cell_volumes(displacement))

    @property
    def bad(self) -> Tensor:
        return ~(self.smallest >= FLOOR)  # true of a NaN as well

    @property
    def ndv_percent(self) -> float:
        return 100 * float(self.inverted.double().mean())

    @property
    def min_jacobian(self) -> float:
        return float(self.smallest.min())


@torch.no_grad()
def enforce(
    velocities: Sequence[Tensor],
    shape: Sequence[int],
    maps: tuple[Tensor, Tensor] | None = None,
    max_rounds: int = MAX_ROUNDS,
) -> Repair:
    """Make the map of a sequence of velocity fields, and its inverse, free of folds.

    Parameters
    ----------
    velocities : sequence of Tensor, each of shape (1, 3, i, j, k)
        Velocity fields in voxels of their own grids, coarse to fine, as for `fields.integrate`.
    shape : sequence of int
        Size (I, J, K) of the grid on which the map is checked.
    maps : tuple of two Tensors, each of shape (1, 3, I, J, K), optional
        The forward and the inverse displacement, where they are integrated already.
    max_rounds : int, default=12
        Rounds of smoothing that one place may take.

    Returns
    -------
    Repair
        The same tensors when nothing folds. Outside the repaired windows neither velocities nor maps change. Where
        folds are left after the last round, ``certificate.reached`` is False.

    Raises
    ------
    ValueError
        If the tensors hold more than one pair.
    """
    result = list(velocities)
    if any(len(velocity) != 1 for velocity in result):
        raise ValueError(f"topology: expected one pair at a time, found {[len(velocity) for velocity in result]}.")
    start = maps or (integrate(result, shape), integrate(result, shape, inverse=True))
    current = list(start)
    first = checks = [_Check(displacement) for displacement in current]
    is_finite = all(bool(torch.isfinite(displacement).all()) for displacement in current)
    rounds = 0
    for planned in PASSES if is_finite else ():
        numbers = range(planned.start, min(planned.stop, max_rounds))
        folds = [check.bad for check in checks]
        if not numbers or not any(bool(fold.any()) for fold in folds):
            break
        if current[0] is start[0]:
            current = [displacement.clone() for displacement in current]
        for region in _find_regions(result, folds, numbers, everything=planned is PASSES[-1]):
            rounds = max(rounds, _repair_region(result, current, region, numbers))
        checks = [_Check(displacement) for displacement in current]
    change = float((current[0] - start[0]).norm(dim=1).max()) if rounds else 0.0
    certificate = _certify(first, checks, rounds, change)
    return Repair(tuple(result), current[0], current[1], checks[0].inverted[None], certificate)


def _certify(before: Sequence[_Check], after: Sequence[_Check], rounds: int, change: float) -> Certificate:
    return Certificate(
        reached=after[0].ndv_percent == 0,
        rounds=rounds,
        cells_repaired=int(before[0].bad.sum()),
        inverse_cells_repaired=int(before[1].bad.sum()),
        largest_change_voxels=change,
        ndv_percent_before=before[0].ndv_percent,
        ndv_percent=after[0].ndv_percent,
        min_jacobian_before=before[0].min_jacobian,
        min_jacobian=after[0].min_jacobian,
        inverse_ndv_percent_before=before[1].ndv_percent,
        inverse_ndv_percent=after[1].ndv_percent,
        inverse_min_jacobian_before=before[1].min_jacobian,
        inverse_min_jacobian=after[1].min_jacobian,
    )


@dataclass(frozen=True)
class _Region:
    """A part of the grid in which folds are repaired.

    Attributes
    ----------
    outer : Window
        What is integrated anew; its bounds fall on voxel bounds of every level.
    reach : sequence of int
        How far, in voxels, a point in it travels at most along each axis: to that depth its map feels the cut.
    """

    outer: Window
    reach: Sequence[int]

    def inner(self, shape: Sequence[int]) -> Window:
        """Return the part whose map is as if nothing were cut off; sides on the grid's border stay."""
        sides = zip(self.outer, self.reach, shape, strict=True)
        return tuple(slice(s.start + r * (s.start > 0), s.stop - r * (s.stop < n)) for s, r, n in sides)


def _find_regions(
    velocities: Sequence[Tensor], folds: Sequence[Tensor], numbers: range, everything: bool
) -> list[_Region]:
    """Return the regions to repair, which hold every fold; the whole grid where they would be most of it."""
    shape = tuple(n + 1 for n in folds[0].shape)
    whole = _Region(tuple(slice(0, n) for n in shape), (0, 0, 0))
    strides = [_strides(velocity, shape) for velocity in velocities]
    if everything or not all(strides):
        return [whole]
    folded = (folds[0] | folds[1])[None, None].float()
    blocks = F.max_pool3d(folded, _CLUSTER, ceil_mode=True)[0, 0].cpu().numpy()
    clusters, _ = label(blocks, structure=np.ones((3, 3, 3)))
    regions = []
    for cluster in find_objects(clusters):
        window = tuple(slice(s.start * _CLUSTER, s.stop * _CLUSTER) for s in cluster)
        points = [_find_points(fold[window], window) for fold in folds]
        regions.append(_surround(velocities, points, numbers, strides, shape))
    volume = sum(math.prod(s.stop - s.start for s in region.outer) for region in regions)
    return regions if volume < _CRAMPED * math.prod(shape) else [whole]


def _surround(
    velocities: Sequence[Tensor],
    points: Sequence[Tensor],
    numbers: range,
    strides: Sequence[Sequence[int]],
    shape: Sequence[int],
) -> _Region:
    """Return the region round folded points: their paths, the weights along them, and all that these can move."""
    coarsest, step = max(max(s) for s in strides), math.lcm(*(n for s in strides for n in s))
    paths = _trace_all(velocities, points, shape)
    ratios = [torch.tensor(stride, device=path.device) for stride, path in zip(strides, paths, strict=True)]
    places = torch.cat([(path + 0.5) * ratio - 0.5 for path, ratio in zip(paths, ratios, strict=True)])
    spread = max(2 * math.ceil((SMALLEST_RADIUS + numbers[-1]) / n) * n for s in strides for n in s)
    corners = places.amin(0).floor().int().tolist(), places.amax(0).ceil().int().tolist()
    box = tuple(slice(max(a, 0), min(b + 1, n)) for a, b, n in zip(*corners, shape, strict=True))
    reach = [0, 0, 0]
    while True:  # until what moves within the region stays below its reach
        outer = _snap(_grow(box, [spread + 2 * r for r in reach], shape), step, shape)
        size = [s.stop - s.start for s in outer]
        travel = _travel([_crop(velocity, outer, shape) for velocity in velocities], size)
        if all(t + coarsest <= r for t, r in zip(travel, reach, strict=True)):
            return _Region(outer, reach)
        reach = [max(t + coarsest, r) for t, r in zip(travel, reach, strict=True)]


def _repair_region(velocities: list[Tensor], maps: Sequence[Tensor], region: _Region, numbers: range) -> int:
    """Repair one region, in place in `maps`; return how many rounds have been done, 0 if none was needed."""
    shape = maps[0].shape[2:]
    inner = region.inner(shape)
    local = tuple(slice(i.start - o.start, i.stop - o.start) for i, o in zip(inner, region.outer, strict=True))
    size = [s.stop - s.start for s in region.outer]
    parts = [_crop(velocity, region.outer, shape) for velocity in velocities]
    displacements = [crop(displacement, region.outer) for displacement in maps]
    done = 0
    for number in numbers:
        folds = [_Check(crop(displacement, local)).bad for displacement in displacements]
        if not any(bool(fold.any()) for fold in folds):
            break
        points = [_find_points(fold, local) for fold in folds]
        parts = _smooth(parts, _weights(parts, points, size, number), number)
        displacements = [integrate(parts, size, inverse=inverse) for inverse in (False, True)]
        done = number + 1
    if done:
        for index, part in enumerate(parts):
            velocities[index] = _paste(velocities[index], part, region.outer, shape)
        for displacement, part in zip(maps, displacements, strict=True):
            crop(displacement, inner).copy_(crop(part, local))
    return done


def _find_points(folds: Tensor, window: Window) -> Tensor:
    """Return the centres, shape (N, 3), of the folded cells of a window."""
    return torch.nonzero(folds) + torch.tensor([s.start + 0.5 for s in window], device=folds.device)


def _weights(
    parts: Sequence[Tensor], points: Sequence[Tensor], size: Sequence[int], number: int
) -> list[Tensor | None]:
    """Return for each velocity field how much of it is smoothed in a round; None for those left alone.

    The weight is 1 along the paths on which the folded points travel and fades to 0 around them.
    """
    moving = [index for index, part in enumerate(parts) if part.any()]
    chosen = moving[-(1 + number // 2) :]
    weights: list[Tensor | None] = []
    for index, (part, path) in enumerate(zip(parts, _trace_all(parts, points, size), strict=True)):
        ratio = max(n / m for n, m in zip(size, part.shape[2:], strict=True))
        radius = math.ceil((SMALLEST_RADIUS + number) / ratio)
        weights.append(_feather(path, part.shape[2:], radius) if index in chosen else None)
    return weights


def _trace_all(velocities: Sequence[Tensor], points: Sequence[Tensor], size: Sequence[int]) -> list[Tensor]:
    """Return the places that points of the forward and of the inverse map pass, by velocity and in its voxels."""
    forward, backward = points
    paths: list[list[Tensor]] = [[] for _ in velocities]
    for index in reversed(range(len(velocities))):  # the finest velocity moves a fixed point first
        forward = _trace(forward, velocities[index], size, 1.0, paths[index])
    for index in range(len(velocities)):
        backward = _trace(backward, velocities[index], size, -1.0, paths[index])
    return [torch.cat(path) for path in paths]


def _trace(points: Tensor, velocity: Tensor, size: Sequence[int], sign: float, paths: list[Tensor]) -> Tensor:
    """Move points, shape (N, 3), along one velocity; add the places they pass, in its voxels, to `paths`."""
    shape = torch.tensor(velocity.shape[2:], device=points.device)
    ratio = torch.tensor(size, device=points.device) / shape
    here = (points + 0.5) / ratio - 0.5
    paths.append(here)
    for _ in range(8):
        normalized = (here * 2 / (shape - 1).clamp(min=1) - 1).flip(1).view(1, 1, 1, -1, 3)
        speed = F.grid_sample(velocity.float(), normalized, padding_mode="border", align_corners=True)
        here = here + sign / 8 * speed.view(3, -1).T
        paths.append(here)
    return (here + 0.5) * ratio - 0.5


def _feather(points: Tensor, shape: Sequence[int], radius: int) -> Tensor:
    """Return a weight, shape (1, 1, i, j, k), of 1 near points and of 0 from twice the radius on."""
    top = torch.tensor(shape, device=points.device) - 1
    index = torch.minimum(points.round().long().clamp(min=0), top)
    mark = torch.zeros(1, 1, *shape, device=points.device)
    mark[0, 0].index_put_(index.unbind(1), mark.new_ones(()))
    for axis in range(3):  # a box is separable
        width, pad = [1, 1, 1], [0, 0, 0]
        width[axis], pad[axis] = 2 * radius + 1, radius
        mark = F.max_pool3d(mark, width, stride=1, padding=pad)
    return _gaussian(mark, radius / 2, radius).clamp(max=1.0)


def _smooth(parts: Sequence[Tensor], weights: Sequence[Tensor | None], number: int) -> list[Tensor]:
    """Blend smoothed velocities in; late rounds also slow them down."""
    sigma, speed = 0.75 * (1 + number / 2), 1.0 - 0.1 * max(0, number - SLOW_FROM)
    return [
        part if weight is None else part + weight * (speed * _gaussian(part, sigma, math.ceil(2.5 * sigma)) - part)
        for part, weight in zip(parts, weights, strict=True)
    ]


def _gaussian(field: Tensor, sigma: float, half_width: int) -> Tensor:
    """Smooth each channel of a field, shape (1, C, I, J, K), by a Gaussian; it is 0 outside its grid."""
    offset = torch.arange(-half_width, half_width + 1, device=field.device)
    kernel = torch.exp(-0.5 * (offset / sigma) ** 2)
    kernel = kernel / kernel.sum()
    channels = field.movedim(1, 0)
    for axis in range(3):
        width, pad = [1, 1, 1], [0, 0, 0]
        width[axis], pad[axis] = len(kernel), half_width
        channels = F.conv3d(channels, kernel.view(1, 1, *width), padding=pad)
    return channels.movedim(0, 1)


def _strides(velocity: Tensor, shape: Sequence[int]) -> list[int]:
    """Return how many voxels of the grid one of the velocity's spans, axis by axis; nothing unless whole numbers."""
    sizes = list(zip(shape, velocity.shape[2:], strict=True))
    return [n // m for n, m in sizes] if all(n % m == 0 for n, m in sizes) else []


def _travel(velocities: Sequence[Tensor], shape: Sequence[int]) -> list[int]:
    """Return a bound on how far any point moves along each axis, in voxels of the grid of that shape."""
    distance = [0.0, 0.0, 0.0]
    for velocity in velocities:
        peak = velocity.abs().amax(dim=(0, 2, 3, 4)).tolist()
        sizes = zip(distance, peak, shape, velocity.shape[2:], strict=True)
        distance = [d + p * n / m for d, p, n, m in sizes]
    return [math.ceil(d) for d in distance]


def _grow(window: Window, margins: Sequence[int], shape: Sequence[int]) -> Window:
    """Widen a window on all sides within its grid."""
    sides = zip(window, margins, shape, strict=True)
    return tuple(slice(max(s.start - margin, 0), min(s.stop + margin, n)) for s, margin, n in sides)


def _snap(window: Window, step: int, shape: Sequence[int]) -> Window:
    """Widen a window to multiples of a step."""
    return tuple(
        slice(s.start // step * step, min(-(-s.stop // step) * step, n)) for s, n in zip(window, shape, strict=True)
    )


def _crop(velocity: Tensor, window: Window, shape: Sequence[int]) -> Tensor:
    """Return the part of a velocity that lies in a window of the full-size grid."""
    sides = zip(window, velocity.shape[2:], shape, strict=True)
    return crop(velocity, tuple(slice(s.start * m // n, s.stop * m // n) for s, m, n in sides))


def _paste(velocity: Tensor, part: Tensor, window: Window, shape: Sequence[int]) -> Tensor:
    """Return a velocity with a window of it replaced; itself when nothing there has changed."""
    if not torch.equal(_crop(velocity, window, shape), part):
        velocity = velocity.clone()
        _crop(velocity, window, shape).copy_(part)
    return velocity
