"""The loss of one run of a level on one pair: 3-D branch, smoothness, the helping branch, Dice (paper eq. 6-8)."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext

import torch
from torch import Tensor, nn

from mmln_pipeline.fields import Window, crop, downsample, resize_field, warp
from mmln_pipeline.labels import structures28
from mmln_pipeline.losses import level_loss, similarity_loss, smoothness_loss, soft_dice_loss
from mmln_pipeline.network import MMLN, LevelOutput
from mmln_pipeline.training.config import TrainConfig


class RunObjective(nn.Module):
    """Compute the loss of one run of a level; a module, so that a wrapper for precision can hold it.

    Parameters
    ----------
    model : MMLN
    config : TrainConfig
    """

    def __init__(self, model: MMLN, config: TrainConfig) -> None:
        super().__init__()
        self.model = model
        self.config = config
        self.structures = tuple(torch.tensor(numbers) for numbers in structures28().values())

    def forward(
        self,
        fixed: Tensor,
        moving: Tensor,
        level: int,
        before: Sequence[int] = (),
        frozen: bool = False,
        window: Window | None = None,
        labels: tuple[Tensor, Tensor] | None = None,
    ) -> dict[str, Tensor]:
        """Return the loss of a level's run, and its parts.

        Parameters
        ----------
        fixed, moving : Tensor, shape (B, 1, I, J, K)
            Full-size pair in [0, 1].
        level : int
            From 0 (coarsest).
        before : sequence of int
            Levels of the runs before it.
        frozen : bool, default=False
            Keep the runs before it as they are.
        window : tuple of 3 slices, optional
            Sub-volume of the finest level's grid to train on instead of the whole.
        labels : tuple of 2 Tensor, each of shape (B, 1, I, J, K), optional
            Label images of the pair.

        Returns
        -------
        dict of str to Tensor
            ``loss``, ``similarity``, ``smoothness``, ``branch``, ``dice``; scalars.
        """
        pairs = self.model.pyramid(fixed, moving)
        below = None
        with torch.no_grad() if frozen else nullcontext():
            for p in before:
                below = self.model.run_level(p, *pairs[p], below)
        f, m = pairs[level]
        out = self.model.run_level(level, f, m, below, window)
        adds = self.model.config.combine == "add"  # then V_p is what is integrated, else each residual is
        smoothness = smoothness_loss(out.velocity if adds else out.residual)
        parts = {
            "similarity": self._similarity(f, m, out.displacement, window),
            "smoothness": smoothness,
            "branch": self._branch(level, f, m, out, below),
            "dice": self._dice(labels, level, out.displacement, window),
        }
        loss = level_loss(
            level + 1,
            self.model.config.levels,
            parts["similarity"],
            smoothness,
            self.config.smoothing(level),
            parts["branch"] + parts["dice"],
        )
        return {"loss": loss, **parts}

    def _moved(self, moving: Tensor, displacement: Tensor, window: Window | None) -> Tensor:
        """Return the moving image, or any image on its grid, seen through a field that may be coarser."""
        size = [s.stop - s.start for s in window] if window else moving.shape[2:]
        origin = tuple(s.start for s in window) if window else (0, 0, 0)
        return warp(moving, resize_field(displacement, size), origin=origin)

    def _similarity(self, fixed: Tensor, moving: Tensor, displacement: Tensor, window: Window | None = None) -> Tensor:
        moved = self._moved(moving, displacement, window)
        loss = self.config.loss
        return similarity_loss(crop(fixed, window) if window else fixed, moved, loss.similarity, loss.window)

    def _dice(
        self, labels: tuple[Tensor, Tensor] | None, level: int, displacement: Tensor, window: Window | None
    ) -> Tensor:
        """Return the weighted Dice loss on the level's grid; 0 without labels."""
        weight = self.config.loss.dice
        if weight == 0 or labels is None:
            return torch.zeros((), device=displacement.device)
        fixed, moving = (self._one_hot(image, level) for image in labels)
        moved = self._moved(moving, displacement, window)
        return weight * soft_dice_loss(crop(fixed, window) if window else fixed, moved)

    def _one_hot(self, labels: Tensor, level: int) -> Tensor:
        """Return the share of each structure in every voxel of a level's grid, shape (B, structures, i, j, k)."""
        shares = []
        for numbers in self.structures:
            share = torch.isin(labels, numbers.to(labels.device)).float()
            for _ in range(self.model.config.levels - 1 - level):
                share = downsample(share)
            shares.append(share)
        return torch.cat(shares, 1)

    def _branch(self, level: int, fixed: Tensor, moving: Tensor, out: LevelOutput, below: LevelOutput | None) -> Tensor:
        """Return the weighted similarity of the slice branch (levels 1, 2) or the core branch (finest level)."""
        finest = level == self.model.config.levels - 1
        loss = self.config.loss
        weight = loss.theta if finest else (loss.alpha, loss.beta)[min(level, 1)]
        if weight == 0 or not (finest or self.model.config.slices):
            return torch.zeros((), device=fixed.device)
        if finest:
            core = central_window(fixed.shape[2:], loss.core)
            again = self.model.run_level(level, fixed, moving, below, core)
            return weight * self._similarity(fixed, moving, again.displacement, core)
        stacks = self.model.run_slices(level, fixed, moving, out, below)
        return weight * torch.stack([self._similarity(fixed, moving, u) for u in stacks]).mean()


def central_window(shape: Sequence[int], size: Sequence[int]) -> Window:
    """Return the window of a size in the centre of a grid, with even starts; no larger than the grid."""
    size = [min(n, s) for n, s in zip(shape, size, strict=True)]
    return tuple(
        slice(start, start + s) for start, s in (((n - s) // 4 * 2, s) for n, s in zip(shape, size, strict=True))
    )
