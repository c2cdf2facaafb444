"""Instance optimisation: improve one pair's velocity fields by descending its own loss.

A further stationary velocity field is composed behind the network's, so that the result is a diffeomorphism of the same
kind. It has half the size of the images that it is optimised on: half-size images first, then full-size ones, which
small deep structures need. Nothing is kept between pairs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.optim.adam import adam

from mmln_pipeline.fields.integration import integrate
from mmln_pipeline.fields.scales import halve_shape, resize_field
from mmln_pipeline.refinement.pair_loss import PairLoss
from mmln_pipeline.refinement.parameters import DEFAULTS, RefinementSettings

TETRAHEDRA = ([0, 3, 5, 6], [1, 2, 4, 7])
"""Voxels of each block that steps compare in turn, as `fields.scales.fold` numbers them: half tell as much as all."""

Report = Callable[[str], None]


def refine(
    fixed: Tensor,
    moving: Tensor,
    velocities: Sequence[Tensor],
    iterations: int | str = "auto",
    weight: Tensor | None = None,
    progress: Report | None = None,
    settings: RefinementSettings = DEFAULTS,
) -> tuple[Tensor, ...]:
    """Refine a pair's velocity fields by instance optimisation.

    Parameters
    ----------
    fixed, moving : Tensor, shape (1, 1, I, J, K)
        Images in [0, 1].
    velocities : sequence of Tensor, each of shape (1, 3, i, j, k)
        The network's answer.
    iterations : int or "auto", default="auto"
        Iterations on half-size images, and once more on full-size ones; 0 returns the input. ``auto`` runs as many as
        `settings` allows. Either stage stops on a plateau; what is returned never depends on the clock.
    weight : Tensor, shape (1, 1, I, J, K), optional
        What each fixed voxel counts; 0 inside a lesion.
    progress : callable, optional
        Called after each iteration with a short text.
    settings : RefinementSettings, optional

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
    counts = settings.count_steps(iterations)
    if not any(counts):
        return tuple(velocities)
    with torch.no_grad():
        start = integrate(velocities, halve_shape(fixed.shape[2:]))
    full = PairLoss.of(fixed, moving, start, weight, settings)
    refining = torch.zeros_like(start)
    for steps, loss in zip(counts, (full.halved(), full), strict=True):
        refining = _descend(loss, resize_field(refining, loss.start.shape[2:]), steps, progress)
    return (*velocities, refining) if refining.any() else tuple(velocities)


def _descend(pair_loss: PairLoss, refining: Tensor, steps: int, progress: Report | None) -> Tensor:
    """Return the refining field of the lowest loss on the way down."""
    settings = pair_loss.settings
    best, best_loss, since = refining, float("inf"), 0
    refining = refining.clone().requires_grad_()
    mean, square, count = torch.zeros_like(best), torch.zeros_like(best), torch.zeros(())
    size = "x".join(map(str, pair_loss.moving.shape[2:]))
    for step in range(steps):
        loss = pair_loss(refining, TETRAHEDRA[step % len(TETRAHEDRA)])
        value = float(loss.detach())
        if value < best_loss * (1 - settings.gain):
            best, best_loss, since = refining.detach().clone(), value, 0
        elif step > settings.warm_up:
            since += 1
        if progress is not None:
            progress(f"refine {step + 1}/{steps} at {size} voxels: loss {value:.4f}")
        if since >= settings.patience:
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
                lr=settings.learning_rate * min(1.0, (step + 1) / (settings.warm_up + 1)),
                beta1=0.9,
                beta2=0.999,
                eps=1e-8,
                weight_decay=0.0,
                amsgrad=False,
                maximize=False,
            )
    return best
