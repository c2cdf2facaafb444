"""Instance optimisation: improve one pair's velocity fields by descending its own loss.

A further stationary velocity field of half the grid's size is composed behind the network's, so that the result is a
diffeomorphism of the same kind. It is optimised on half-size images first, then on full-size images, which small deep
structures need; of both only the box round the brains. Nothing is kept between pairs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from mmln_pipeline.fields import compose, downsample, exponentiate, integrate, resize_field, warp
from mmln_pipeline.losses import (
    similarity_loss,
    smoothness_loss,
    soft_dice_loss,
    squared_difference_loss,
    volume_loss,
)
from mmln_pipeline.tissues import REACH, depth_map, tissue_maps

WINDOWS = (6, 14)
GLOBAL = 2.0
"""Weight of the correlation over the whole brain beside that in windows."""
SMOOTHING = 0.1
"""Weight of the refining field's roughness."""
VOLUME = 0.15
"""Weight of the whole map's volume changes, the network's part included."""
TISSUES = 0.6
"""Weight of one minus the soft Dice of the tissue maps."""
DEPTH = 0.025
"""Weight of the squared difference in depth below the tissue's surface, in voxels."""
LEARNING_RATE = 0.2
WARM_UP = 3
"""Steps before the learning rate is whole: Adam's first ones go as far for noise as for edges."""
AUTO_ITERATIONS = 26
MARGIN = 4
"""Voxels of background that the box round the brains keeps, on half-size images."""
SQUARINGS = 2
"""Enough for so small a field while it is sought; the result is integrated as all others are."""
PATIENCE, GAIN = 6, 1e-4
"""Stop when the loss has not fallen by the gain over so many iterations."""

Report = Callable[[str], None]


def refine(
    fixed: Tensor,
    moving: Tensor,
    velocities: Sequence[Tensor],
    iterations: int | str = "auto",
    weight: Tensor | None = None,
    progress: Report | None = None,
) -> tuple[Tensor, ...]:
    """Refine a pair's velocity fields by instance optimisation.

    Parameters
    ----------
    fixed, moving : Tensor, shape (1, 1, I, J, K)
        Images in [0, 1].
    velocities : sequence of Tensor, each of shape (1, 3, i, j, k)
        The network's answer.
    iterations : int or "auto", default="auto"
        Iterations on full-size images, after half as many on half-size images; 0 returns the input.
        ``auto`` runs up to 26. Either stage stops on a plateau; what is returned never depends on the clock.
    weight : Tensor, shape (1, 1, I, J, K), optional
        What each fixed voxel counts; 0 inside a lesion.
    progress : callable, optional
        Called after each iteration with a short text.

    Returns
    -------
    tuple of Tensor
        `velocities` and, behind them, the refining field of shape (1, 3, I/2, J/2, K/2); the input alone when
        refining did not lower the loss.

    Raises
    ------
    ValueError
        When `iterations` is neither "auto" nor a number of at least 0.
    """
    steps = count_steps(iterations)
    if not any(steps):
        return tuple(velocities)
    half = [downsample(image) for image in (fixed, moving)]
    shape = half[0].shape[2:]
    grid = tuple(max(sizes) for sizes in zip(shape, *(v.shape[2:] for v in velocities), strict=True))
    box = _brain_box(*half)
    with torch.no_grad():
        start = _crop(integrate(velocities, grid), box, 1 if grid == shape else 2)
    half = [_crop(image, box) for image in half]
    half_weight = _crop(downsample(weight), box) if weight is not None else None
    full = [_crop(image, box, 2) for image in (fixed, moving)]
    full_weight = _crop(weight, box, 2) if weight is not None else None
    tissues = [tissue_maps(image) for image in full]
    maps = [downsample(torch.cat([depth_map(shares), shares], 1)) for shares in tissues]  # depth comes first
    share_weight = 1.0 if half_weight is None else half_weight
    fixed_depth, fixed_shares = maps[0][:, :1], share_weight * maps[0][:, 1:]
    # What has no weight may look like fluid, which tells on the depth as far as it reaches.
    depth_weight = -F.max_pool3d(-half_weight, REACH + 1, 1, REACH // 2) if half_weight is not None else None
    refining = torch.zeros_like(half[0]).repeat(1, 3, 1, 1, 1).requires_grad_()
    optimizer = torch.optim.Adam([refining], lr=LEARNING_RATE)
    warm_up = torch.optim.lr_scheduler.LinearLR(optimizer, 1 / (WARM_UP + 1), total_iters=WARM_UP)

    def penalty(displacement: Tensor) -> Tensor:
        moved = warp(maps[1], resize_field(displacement, maps[0].shape[2:]))
        apart = squared_difference_loss(fixed_depth, moved[:, :1], depth_weight)
        overlap = soft_dice_loss(fixed_shares, share_weight * moved[:, 1:])
        restraint = SMOOTHING * smoothness_loss(refining) + VOLUME * volume_loss(displacement)
        return TISSUES * overlap + DEPTH * apart + restraint

    for count, images, stage_weight in zip(steps, (half, full), (half_weight, full_weight), strict=True):
        best = _descend(images, start, refining, optimizer, warm_up, count, stage_weight, penalty, progress)
        with torch.no_grad():
            refining.copy_(best)
    if not refining.detach().any():
        return tuple(velocities)
    around = [(along.start, n - along.stop) for along, n in zip(box, shape, strict=True)]
    sides = [side for pair in reversed(around) for side in pair]  # the last axis first
    return (*velocities, F.pad(refining.detach(), sides, mode="replicate"))


def _descend(
    images: Sequence[Tensor],
    start: Tensor,
    refining: Tensor,
    optimizer: torch.optim.Optimizer,
    warm_up: torch.optim.lr_scheduler.LRScheduler,
    steps: int,
    weight: Tensor | None,
    penalty: Callable[[Tensor], Tensor],
    progress: Report | None,
) -> Tensor:
    """Run one stage; return the refining field of its lowest loss, similarity and the displacement's penalty."""
    fixed, moving = images
    best, best_loss, since = refining.detach().clone(), float("inf"), 0
    for step in range(steps):
        displacement = compose(start, resize_field(exponentiate(refining, SQUARINGS), start.shape[2:]))
        moved = warp(moving, resize_field(displacement, fixed.shape[2:]))
        loss = similarity_loss(fixed, moved, "local+global", WINDOWS, weight, GLOBAL) + penalty(displacement)
        value = float(loss.detach())
        if value < best_loss * (1 - GAIN):
            best, best_loss, since = refining.detach().clone(), value, 0
        else:
            since += 1
        if progress is not None:
            progress(f"refine {step + 1}/{steps} at {'x'.join(map(str, fixed.shape[2:]))} voxels: loss {value:.4f}")
        if since >= PATIENCE:
            break
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        warm_up.step()
    return best


def count_steps(iterations: int | str) -> tuple[int, int]:
    """Return how many iterations may run on half-size and on full-size images.

    Raises
    ------
    ValueError
        When `iterations` is neither "auto" nor a number of at least 0.
    """
    if iterations == "auto":
        iterations = AUTO_ITERATIONS
    if isinstance(iterations, str) or iterations < 0:
        raise ValueError(f"refine: expected 'auto' or a number of at least 0, found {iterations!r}")
    return (iterations + 1) // 2, iterations


def _brain_box(*images: Tensor) -> tuple[slice, ...]:
    """Return where, with a margin, any half-size image is above 0, axis by axis; all of it where none is."""
    inside = torch.stack([image > 0 for image in images]).flatten(0, -4).any(0)
    box = []
    for axis, n in enumerate(inside.shape):
        places = inside.movedim(axis, 0).flatten(1).any(1).nonzero().flatten().tolist() or [0, n]
        box.append(slice(max(places[0] - MARGIN, 0), min(places[-1] + 1 + MARGIN, n)))
    return tuple(box)


def _crop(image: Tensor, box: Sequence[slice], scale: int = 1) -> Tensor:
    """Return what of an image or field on the half-size grid, or one `scale` times as fine, lies in the box."""
    i, j, k = (slice(scale * along.start, scale * along.stop) for along in box)
    return image[:, :, i, j, k]
