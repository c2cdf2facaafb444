"""Validation scores during training: Dice over the 28 structures and folds, on labelled pairs."""

from __future__ import annotations

import statistics

import torch

from mmln_pipeline.atlas.labels import structures28
from mmln_pipeline.fields.warping import jacobian_determinant, resize_field, warp
from mmln_pipeline.network.model import MMLN
from mmln_pipeline.scores.metrics import dice, folding_percent, label_mean, sdlogj, tc
from mmln_pipeline.training.data import Volume, validation_pairs


@torch.no_grad()
def validate(model: MMLN, volumes: list[Volume], levels: int) -> dict[str, float]:
    """Score a network, up to a pyramid level, on every ordered pair of labelled people.

    Parameters
    ----------
    model : MMLN
    volumes : list of Volume
        With labels in the Neuromorphometrics numbering.
    levels : int
        Levels to run; the field of a coarser one is up-sampled.

    Returns
    -------
    dict of str to float
        Means over pairs: ``dice`` (28 structures), ``folding_percent_brain``, ``sdlogj``, ``tc``.
    """
    table = structures28()
    rows = []
    for fixed, moving in validation_pairs(volumes):
        images = [v.scaled for v in (fixed, moving)]
        outputs = model.run(images[0], images[1], levels=levels)
        displacement = resize_field(outputs[-1].displacement, images[0].shape[2:])
        moved = warp(moving.labels[None].float(), displacement, mode="nearest")[0, 0].round().short().cpu().numpy()
        jacobian = jacobian_determinant(displacement)[0].cpu().numpy()
        brain = (fixed.image[0] > 0).cpu().numpy()
        overlap = label_mean(dice(fixed.labels[0].cpu().numpy(), moved, table))
        volume = label_mean(tc(moving.labels[0].cpu().numpy(), moved, table))
        rows.append((overlap, folding_percent(jacobian, brain), sdlogj(jacobian, brain), volume))
    names = ("dice", "folding_percent_brain", "sdlogj", "tc")
    return {name: statistics.fmean(column) for name, column in zip(names, zip(*rows, strict=True), strict=True)}
