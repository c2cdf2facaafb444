"""The loss of one run of a level on one pair: 3-D branch, smoothness, the helping branch, Dice (paper eq. 6-8)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import product

import numpy as np
import torch
from torch import Tensor

from mmln_pipeline.atlas.labels import LabelTable, load_label_table, structures28
from mmln_pipeline.fields.scales import downsample, resize_field
from mmln_pipeline.fields.warping import warp
from mmln_pipeline.fields.windows import Patch, Window, crop, halve_window
from mmln_pipeline.network.core import register_core
from mmln_pipeline.network.losses import level_loss, similarity_loss, smoothness_loss, soft_dice_loss, volume_loss
from mmln_pipeline.network.model import MMLN, LevelOutput
from mmln_pipeline.network.slices import register_slices
from mmln_pipeline.network.tissues import tissue_maps
from mmln_pipeline.training.config import TrainConfig

CORTEX = 100
"""Numbers from this one on are parcels of the cortex in the Neuromorphometrics table."""
PARCELS_A_STEP = 28
"""Parcels that one step compares, of 98: all of them would take as much time as the network."""

Maps = dict[str, tuple[Tensor, Tensor]]
"""Shares of classes in the voxels of the fixed and the moving image, by the name of the loss that compares them."""


class RunObjective:
    """Compute the loss of one run of a level.

    Parameters
    ----------
    model : MMLN
    config : TrainConfig
    table : LabelTable, optional
        Structures of the Dice loss; the 28 by default.
    """

    def __init__(self, model: MMLN, config: TrainConfig, table: LabelTable | None = None) -> None:
        self.model = model
        self.config = config
        self.structures = list((table or structures28()).values())
        self.parcels = [n for n in load_label_table("neuromorphometrics").values() if min(n) >= CORTEX]

    def __call__(
        self,
        fixed: Tensor,
        moving: Tensor,
        level: int,
        before: LevelOutput | None = None,
        window: Window | None = None,
        maps: Maps | None = None,
    ) -> tuple[dict[str, Tensor], LevelOutput]:
        """Run a level and return its loss in parts.

        Parameters
        ----------
        fixed, moving : Tensor, shape (B, 1, I, J, K)
            The pair at the level's size, in [0, 1].
        level : int
            From 1 (coarsest).
        before : LevelOutput, optional
            The run before; none for the first.
        window : tuple of 3 slices, optional
            Sub-volume of the finest level's grid to train on instead of the whole.
        maps : dict of str to tuple of 2 Tensor, optional
            What :meth:`maps` returns for the level.

        Returns
        -------
        losses : dict of str to Tensor
            ``loss``, ``similarity``, ``smoothness``, ``branch``, ``volume``, ``tissue``, ``dice``, ``cortex``; scalars.
        out : LevelOutput
            On the window when there is one.
        """
        out = self.model.run_level(level, fixed, moving, before, window)
        adds = self.model.config.combine == "add"  # then V_p is what is integrated, else each residual is
        parts = {
            "similarity": self._similarity(fixed, moving, out.displacement, window),
            "smoothness": smoothness_loss(out.velocity if adds else out.residual),
            "branch": self._branch(level, fixed, moving, out, before),
            "volume": self._volume(out.displacement),
            "tissue": self._overlap("tissue", maps, out.displacement, window),
            "dice": self._overlap("dice", maps, out.displacement, window),
            "cortex": self._overlap("cortex", maps, out.displacement, window),
        }
        loss = level_loss(
            level,
            self.model.config.levels,
            parts["similarity"],
            parts["smoothness"],
            self.config.smoothing(level),
            sum(parts[name] for name in ("branch", "volume", "tissue", "dice", "cortex")),
        )
        return {"loss": loss, **parts}, out

    def maps(
        self,
        fixed: Tensor,
        moving: Tensor,
        labels: tuple[Tensor, Tensor] | None,
        generator: np.random.Generator,
    ) -> dict[int, Maps]:
        """Prepare what the Dice losses of a pair compare.

        Parameters
        ----------
        fixed, moving : Tensor, shape (B, 1, I, J, K)
            The full-size pair, in [0, 1].
        labels : tuple of 2 Tensor, each of shape (B, 1, I, J, K), or None
            Its label images.
        generator : numpy.random.Generator
            Draws the parcels of the cortex that this step compares.

        Returns
        -------
        dict of int to dict of str to tuple of 2 Tensor
            By the level and the name of the loss, the share of each class in every voxel, shape
            (B, classes, i, j, k): on the level's grid, at the finest level on that of half the size. Only of the losses
            that count.
        """
        finest: Maps = {}
        if self.config.loss.tissue:
            finest["tissue"] = (downsample(tissue_maps(fixed)), downsample(tissue_maps(moving)))
        if self.config.loss.dice and labels is not None:
            finest["dice"] = (class_shares(labels[0], self.structures), class_shares(labels[1], self.structures))
        if self.config.loss.cortex and labels is not None:
            drawn = [self.parcels[i] for i in generator.permutation(len(self.parcels))[:PARCELS_A_STEP]]
            finest["cortex"] = (class_shares(labels[0], drawn), class_shares(labels[1], drawn))
        levels = self.model.config.levels
        maps = {levels: finest, max(1, levels - 1): finest}
        for level in range(levels - 2, 0, -1):
            maps[level] = {name: (downsample(f), downsample(m)) for name, (f, m) in maps[level + 1].items()}
        return maps

    def _moved(self, moving: Tensor, displacement: Tensor, window: Window | None) -> Tensor:
        """Return the moving image, or any image on its grid, seen through a field that may be coarser."""
        seen = Patch.of(moving.shape[2:], window)
        return warp(moving, resize_field(displacement, seen.size), origin=seen.origin)

    def _similarity(self, fixed: Tensor, moving: Tensor, displacement: Tensor, window: Window | None = None) -> Tensor:
        moved = self._moved(moving, displacement, window)
        loss = self.config.loss
        return similarity_loss(crop(fixed, window) if window else fixed, moved, loss.similarity, loss.window)

    def _volume(self, displacement: Tensor) -> Tensor:
        weight = self.config.loss.volume
        return weight * volume_loss(displacement) if weight else torch.zeros((), device=displacement.device)

    def _overlap(self, name: str, maps: Maps | None, displacement: Tensor, window: Window | None) -> Tensor:
        """Return a weighted Dice loss; 0 without maps for it."""
        if not maps or name not in maps:
            return torch.zeros((), device=displacement.device)
        fixed, moving = maps[name]
        if window:
            window = halve_window(window)
            fixed = crop(fixed, window)
        weight = getattr(self.config.loss, name)
        return weight * soft_dice_loss(fixed, self._moved(moving, displacement, window))

    def _branch(
        self, level: int, fixed: Tensor, moving: Tensor, out: LevelOutput, before: LevelOutput | None
    ) -> Tensor:
        """Return the weighted similarity of the core branch (finest level) or the slice branch (the others)."""
        loss, levels = self.config.loss, self.model.config.levels
        weight = loss.theta if level == levels else loss.alpha if level == 1 else loss.beta
        if weight == 0 or not (level == levels or self.model.config.slices):
            return torch.zeros((), device=fixed.device)
        if level == levels:
            displacement, core = register_core(self.model, fixed, moving, before, loss.core)
            return weight * self._similarity(fixed, moving, displacement, core)
        stacks = register_slices(self.model, fixed, moving, out, before)
        return weight * torch.stack([self._similarity(fixed, moving, u) for u in stacks]).mean()


def class_shares(labels: Tensor, classes: Sequence[Sequence[int]]) -> Tensor:
    """Return how much of every block of 2 x 2 x 2 voxels belongs to each class.

    Parameters
    ----------
    labels : Tensor of int, shape (B, 1, I, J, K)
        Label images of even size; negative and unknown numbers belong to no class.
    classes : sequence of sequence of int
        The label numbers of each class.

    Returns
    -------
    Tensor, shape (B, len(classes), I/2, J/2, K/2)
        0 to 1.
    """
    beyond = 1 + max(max(numbers) for numbers in classes)  # stands for all larger numbers too
    class_of = torch.full([1 + beyond], len(classes), device=labels.device)
    for index, numbers in enumerate(classes):
        class_of[list(numbers)] = index
    found = class_of[labels.long().clamp(0, beyond)]
    half = [n // 2 for n in found.shape[2:]]
    shares = torch.zeros(len(found), len(classes) + 1, math.prod(half), device=labels.device)
    for i, j, k in product((0, 1), repeat=3):
        corner = found[:, :, i::2, j::2, k::2].flatten(2)
        shares.scatter_add_(1, corner, torch.full_like(corner, 1 / 8, dtype=shares.dtype))
    return shares[:, :-1].unflatten(2, half)
