"""Instance optimisation: improve one pair's velocity fields by descending its own loss.

A further stationary velocity field is composed behind the network's, so that the result is a diffeomorphism of the same
kind. It has half the size of the images that it is optimised on: half-size images first, then full-size ones, which
small deep structures need; of both only the box round the brains. Nothing is kept between pairs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.optim.adam import adam

from mmln_pipeline.fields.integration import exponentiate, integrate
from mmln_pipeline.fields.scales import downsample, fold, halve_shape, resize_field
from mmln_pipeline.fields.warping import compose, warp, warp_corners
from mmln_pipeline.network.losses import (
    similarity_loss,
    smoothness_loss,
    soft_dice_loss,
    squared_difference_loss,
    volume_loss,
)
from mmln_pipeline.network.tissues import CLASSES, REACH, depth_map, tissue_maps

WINDOWS = (3, 7)
"""Edges of the windows of local correlation, in blocks of 2 x 2 x 2 voxels."""
TETRAHEDRA = ([0, 3, 5, 6], [1, 2, 4, 7])
"""Voxels of each block that steps compare in turn, as `fields.scales.fold` numbers them: half tell as much as all."""
GLOBAL = 2.0
"""Weight of the correlation over the whole brain beside that in windows."""
SMOOTHING = 0.1
"""Weight of the refining field's roughness."""
VOLUME = 0.18
"""Weight of the whole map's volume changes, the network's part included."""
TISSUES = 0.6
"""Weight of one minus the soft Dice of the tissue maps."""
DEPTH = 0.025
"""Weight of the squared difference in depth below the tissue's surface, in voxels."""
LEARNING_RATE = 0.28
WARM_UP = 3
"""Steps before the learning rate is whole: Adam's first ones go as far for noise as for edges."""
AUTO_ITERATIONS = 26
MARGIN = 2
"""Voxels of background that the box round the brains keeps, on quarter-size images."""
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
        Iterations on half-size images, and once more on full-size ones; 0 returns the input.
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
    counts = count_steps(iterations)
    if not any(counts):
        return tuple(velocities)
    shape = halve_shape(fixed.shape[2:])
    box = _brain_box(fixed, moving)
    with torch.no_grad():
        start = _crop(integrate(velocities, shape), box)
    fixed, moving = (_crop(image, box, 2) for image in (fixed, moving))
    folded_weight = None if weight is None else fold(_crop(weight, box, 2))
    fixed_maps, moving_maps = (
        downsample(torch.cat([depth_map(shares), shares], 1)) for shares in map(tissue_maps, (fixed, moving))
    )
    full = _Stage(fold(fixed), moving, fixed_maps, moving_maps, start, folded_weight)
    refining = torch.zeros_like(start)
    for steps, stage in zip(counts, (full.halved(), full), strict=True):
        refining = _descend(stage, resize_field(refining, stage.start.shape[2:]), steps, progress)
    if not refining.any():
        return tuple(velocities)
    around = [(along.start, n - along.stop) for along, n in zip(box, shape, strict=True)]
    sides = [side for pair in reversed(around) for side in pair]  # the last axis first
    return (*velocities, F.pad(refining, sides, mode="replicate"))


@dataclass(frozen=True)
class _Stage:
    """What judges a refining field: a pair of images, and more about them on the field's grid, of half their size.

    Attributes
    ----------
    fixed : Tensor, shape (1, 8, I/2, J/2, K/2)
        Folded.
    moving : Tensor, shape (1, 1, I, J, K)
    fixed_maps, moving_maps : Tensor, shape (1, 4, I/2, J/2, K/2)
        Depth below the tissue's surface, in voxels of the full-size images, and the shares of three tissues.
    start : Tensor, shape (1, 3, I/2, J/2, K/2)
        The network's displacement.
    weight : Tensor, shape (1, 8, I/2, J/2, K/2), or None
        What each fixed voxel counts, folded.
    """

    fixed: Tensor
    moving: Tensor
    fixed_maps: Tensor
    moving_maps: Tensor
    start: Tensor
    weight: Tensor | None

    def halved(self) -> _Stage:
        """Return the stage at half the size."""
        fixed = fold(self.fixed.mean(1, keepdim=True))
        weight = None if self.block_weight is None else fold(self.block_weight)
        moving, fixed_maps, moving_maps = (downsample(x) for x in (self.moving, self.fixed_maps, self.moving_maps))
        start = resize_field(self.start, fixed_maps.shape[2:])
        return _Stage(fixed, moving, fixed_maps, moving_maps, start, weight)

    @cached_property
    def block_weight(self) -> Tensor | None:
        """What a block counts: as little as any of its voxels, which it is a mixture of."""
        return None if self.weight is None else self.weight.amin(1, keepdim=True)

    @cached_property
    def depth_weight(self) -> Tensor | None:
        """What a block's depth counts: what has no weight may look like fluid, which tells as far as depth reaches."""
        return None if self.block_weight is None else -F.max_pool3d(-self.block_weight, REACH + 1, 1, REACH // 2)

    def loss(self, refining: Tensor, corners: list[int]) -> Tensor:
        """Return the loss of a refining field, the images compared at some corners of every block."""
        displacement = compose(self.start, exponentiate(refining, SQUARINGS))
        moved = warp_corners(self.moving, displacement, corners)
        weight = None if self.weight is None else self.weight[:, corners]
        unlike = similarity_loss(self.fixed[:, corners], moved, "local+global", WINDOWS, weight, GLOBAL)
        restraint = SMOOTHING * smoothness_loss(refining) + VOLUME * volume_loss(displacement)
        return unlike + self._tissue_loss(warp(self.moving_maps, displacement)) + restraint

    def _tissue_loss(self, moved_maps: Tensor) -> Tensor:
        parts = (maps.split((1, CLASSES), 1) for maps in (self.fixed_maps, moved_maps))
        (fixed_depth, fixed_shares), (depth, shares) = parts
        overlap = soft_dice_loss(fixed_shares, shares, self.block_weight)
        return TISSUES * overlap + DEPTH * squared_difference_loss(fixed_depth, depth, self.depth_weight)


def _descend(stage: _Stage, refining: Tensor, steps: int, progress: Report | None) -> Tensor:
    """Return the refining field of the lowest loss on the way down."""
    best, best_loss, since = refining, float("inf"), 0
    refining = refining.clone().requires_grad_()
    mean, square, count = torch.zeros_like(best), torch.zeros_like(best), torch.zeros(())
    size = "x".join(map(str, stage.moving.shape[2:]))
    for step in range(steps):
        loss = stage.loss(refining, TETRAHEDRA[step % len(TETRAHEDRA)])
        value = float(loss.detach())
        if value < best_loss * (1 - GAIN):
            best, best_loss, since = refining.detach().clone(), value, 0
        else:
            since += 1
        if progress is not None:
            progress(f"refine {step + 1}/{steps} at {size} voxels: loss {value:.4f}")
        if since >= PATIENCE:
            break
        gradient = torch.autograd.grad(loss, refining)[0]
        with torch.no_grad():  # the function, since to make torch's optimiser imports its compiler first: two seconds
            adam(
                [refining],
                [gradient],
                exp_avgs=[mean],
                exp_avg_sqs=[square],
                max_exp_avg_sqs=[],
                state_steps=[count],
                lr=LEARNING_RATE * min(1.0, (step + 1) / (WARM_UP + 1)),
                beta1=0.9,
                beta2=0.999,
                eps=1e-8,
                weight_decay=0.0,
                amsgrad=False,
                maximize=False,
            )
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
    return iterations, iterations


def _brain_box(*images: Tensor) -> tuple[slice, ...]:
    """Return where, with a margin, any image is above 0, axis by axis on the half-size grid; all where none is."""
    inside = torch.stack([downsample(downsample(image)) > 0 for image in images]).flatten(0, -4).any(0)
    box = []
    half = halve_shape(images[0].shape[2:])
    for axis, n in enumerate(inside.shape):
        places = inside.movedim(axis, 0).flatten(1).any(1).nonzero().flatten().tolist() or [0, n]
        first, last = max(places[0] - MARGIN, 0), places[-1] + 1 + MARGIN
        box.append(slice(2 * first, min(2 * last, half[axis])))
    return tuple(box)


def _crop(image: Tensor, box: Sequence[slice], scale: int = 1) -> Tensor:
    """Return what of an image or field on the half-size grid, or one `scale` times as fine, lies in the box."""
    i, j, k = (slice(scale * along.start, scale * along.stop) for along in box)
    return image[:, :, i, j, k]
