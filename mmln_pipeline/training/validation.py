"""Scores that choose the weights: overlap and folds on labelled pairs; without labels the loss."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mmln_pipeline.atlas.labels import LabelTable, structures28
from mmln_pipeline.fields.jacobian import jacobian_determinant
from mmln_pipeline.fields.scales import resize_field
from mmln_pipeline.fields.warping import warp
from mmln_pipeline.network.losses import similarity_loss, smoothness_loss
from mmln_pipeline.network.model import MMLN, LevelOutput
from mmln_pipeline.scores.metrics import dice, folding_percent, label_mean, sdlogj, tc
from mmln_pipeline.training.config import TrainConfig
from mmln_pipeline.training.data import Volume, neighbouring_pairs, validation_pairs


@torch.no_grad()
def validate(
    model: MMLN, volumes: Sequence[Volume], levels: int, table: LabelTable | None = None, once: bool = False
) -> dict[str, float]:
    """Score a network, up to a pyramid level, on every ordered pair of labelled people.

    Parameters
    ----------
    model : MMLN
    volumes : sequence of Volume
        With labels.
    levels : int
        Levels to run; the field of a coarser one is up-sampled.
    table : LabelTable, optional
        Structures to compare; the 28 by default.
    once : bool, default=False
        Run each level once.

    Returns
    -------
    dict of str to float
        Means over pairs: ``dice``, ``folding_percent_brain``, ``sdlogj``, ``tc``.
    """
    table = table or structures28()
    rows = []
    for fixed, moving in validation_pairs(volumes):
        _, displacement = _register(model, fixed, moving, levels, once)
        moved = warp(moving.labels[None].float(), displacement, mode="nearest")[0, 0].round().int().cpu().numpy()
        overlap = label_mean(dice(fixed.labels[0].cpu().numpy(), moved, table))
        volume = label_mean(tc(moving.labels[0].cpu().numpy(), moved, table))
        rows.append({"dice": overlap, **_regularity(fixed, displacement), "tc": volume})
    return _means(rows)


@torch.no_grad()
def validate_by_loss(
    model: MMLN, volumes: Sequence[Volume], levels: int, config: TrainConfig, once: bool = False
) -> dict[str, float]:
    """Score a network, up to a pyramid level, by its loss on pairs without labels.

    All levels are measured alike, on the full-size images: their own losses could not be compared.

    Parameters
    ----------
    model : MMLN
    volumes : sequence of Volume
        Each is the fixed one of one pair.
    levels : int
        Levels to run; the field of a coarser one is up-sampled.
    config : TrainConfig
        Which similarity, and the finest level's k.
    once : bool, default=False
        Run each level once.

    Returns
    -------
    dict of str to float
        Means over pairs: ``loss`` (similarity loss and k times smoothness loss), ``folding_percent_brain``, ``sdlogj``.
    """
    rows = []
    for fixed, moving in neighbouring_pairs(volumes):
        out, displacement = _register(model, fixed, moving, levels, once)
        similarity = similarity_loss(
            fixed.scaled, warp(moving.scaled, displacement), config.loss.similarity, config.loss.window
        )
        loss = similarity + config.smoothing(config.network.levels) * smoothness_loss(out.velocity)
        rows.append({"loss": float(loss), **_regularity(fixed, displacement)})
    return _means(rows)


@dataclass(frozen=True)
class Selection:
    """What chooses the weights of a run.

    Parameters
    ----------
    volumes : sequence of Volume
    table : LabelTable or None
        Structures whose mean Dice decides; none where the loss does.
    config : TrainConfig
    source : {"validation", "training"}
        Which volumes they are.
    """

    volumes: Sequence[Volume]
    table: LabelTable | None
    config: TrainConfig
    source: str

    @classmethod
    def choose(
        cls, train: Sequence[Volume], validation: Sequence[Volume], table: LabelTable, config: TrainConfig
    ) -> Selection:
        """Take the validation pairs' Dice; without labels their loss; without validation the training pairs' loss."""
        volumes, source = (validation, "validation") if validation else (train, "training")
        is_labelled = bool(validation) and any(v.is_labelled for v in validation)
        return cls(volumes, table if is_labelled else None, config, source)

    @property
    def describe(self) -> str:
        """What the card and the log call it."""
        what = f"mean Dice ({self.table.name})" if self.table else "loss"
        return f"{what} on {self.source} pairs"

    def score(self, model: MMLN, levels: int, once: bool = False) -> dict[str, float]:
        """Return a network's scores up to a level; they begin with the one that decides."""
        if self.table:
            return validate(model, self.volumes, levels, self.table, once)
        return validate_by_loss(model, self.volumes, levels, self.config, once)

    def worth(self, scores: dict[str, float]) -> float:
        """Return the number that is to be as large as possible."""
        return scores["dice"] if self.table else -scores["loss"]

    def name(self, scores: dict[str, float]) -> str:
        """Return the score that decides, in words."""
        key = "dice" if self.table else "loss"
        return f"{key} {scores[key]:.4f}"


def _register(model: MMLN, fixed: Volume, moving: Volume, levels: int, once: bool) -> tuple[LevelOutput, Tensor]:
    """Return a pair's last output, and its displacement on the full grid."""
    out = model.run(fixed.scaled, moving.scaled, levels, once)[-1]
    return out, resize_field(out.displacement, fixed.scaled.shape[2:])


def _regularity(fixed: Volume, displacement: Tensor) -> dict[str, float | None]:
    """Return the scores of a field within the fixed brain."""
    jacobian = jacobian_determinant(displacement)[0].cpu().numpy()
    brain = (fixed.image[0] > 0).cpu().numpy()
    return {"folding_percent_brain": folding_percent(jacobian, brain), "sdlogj": sdlogj(jacobian, brain)}


def _means(rows: Sequence[dict[str, float | None]]) -> dict[str, float]:
    """Return the mean of each score over the pairs that have it."""
    known = {name: [value for row in rows if (value := row[name]) is not None] for name in rows[0]}
    return {name: statistics.fmean(values) for name, values in known.items() if values}
