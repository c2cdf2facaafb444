"""Instance optimisation: improve one pair's velocity fields by descending its own loss.

A further stationary velocity field of half the grid's size is composed behind the network's, so that the result is a
diffeomorphism of the same kind. It is optimised on half-size images first, then on full-size images, which small deep
structures need. Nothing is kept between pairs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from mmln_pipeline.fields import compose, downsample, exponentiate, integrate, resize_field, warp
from mmln_pipeline.losses import similarity_loss, smoothness_loss, volume_loss

WINDOWS = (5, 15)
SMOOTHING = 0.1
"""Weight of the refining field's roughness."""
VOLUME = 0.2
"""Weight of the whole map's volume changes, the network's part included."""
LEARNING_RATE = 0.2
AUTO_ITERATIONS = 20
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
        Iterations on half-size images, followed by as many on full-size images; 0 returns the input.
        ``auto`` runs up to 20. Either stage stops on a plateau; what is returned never depends on the clock.
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
    count = _count(iterations)
    if count == 0:
        return tuple(velocities)
    half = [downsample(image) for image in (fixed, moving)]
    grid = [max(sizes) for sizes in zip(half[0].shape[2:], *(v.shape[2:] for v in velocities), strict=True)]
    with torch.no_grad():
        start = integrate(velocities, grid)
    refining = torch.zeros(1, 3, *half[0].shape[2:], device=fixed.device, requires_grad=True)
    optimizer = torch.optim.Adam([refining], lr=LEARNING_RATE)
    stages = [(half, downsample(weight) if weight is not None else None, count)]
    stages.append(([fixed, moving], weight, count))
    for images, stage_weight, steps in stages:
        best = _descend(images, start, refining, optimizer, steps, stage_weight, progress)
        with torch.no_grad():
            refining.copy_(best)
    return (*velocities, refining.detach()) if refining.detach().any() else tuple(velocities)


def _descend(
    images: Sequence[Tensor],
    start: Tensor,
    refining: Tensor,
    optimizer: torch.optim.Optimizer,
    steps: int,
    weight: Tensor | None,
    progress: Report | None,
) -> Tensor:
    """Run one stage; return the refining field of its lowest loss."""
    fixed, moving = images
    best, best_loss, since = refining.detach().clone(), float("inf"), 0
    for step in range(steps):
        displacement = compose(start, resize_field(exponentiate(refining, SQUARINGS), start.shape[2:]))
        moved = warp(moving, resize_field(displacement, fixed.shape[2:]))
        similarity = similarity_loss(fixed, moved, "local+global", WINDOWS, weight)
        loss = similarity + SMOOTHING * smoothness_loss(refining) + VOLUME * volume_loss(displacement)
        value = float(loss.detach())
        if value < best_loss * (1 - GAIN):
            best, best_loss, since = refining.detach().clone(), value, 0
        else:
            since += 1
        if progress is not None:
            progress(f"refine {step + 1}/{steps} at {fixed.shape[2]} voxels: loss {value:.4f}")
        if since >= PATIENCE:
            break
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return best


def _count(iterations: int | str) -> int:
    """Return how many half-size iterations may run."""
    if iterations == "auto":
        return AUTO_ITERATIONS
    if isinstance(iterations, str) or iterations < 0:
        raise ValueError(f"refine: expected 'auto' or a number of at least 0, found {iterations!r}")
    return iterations
