"""The loss of one pyramid level on one pair: 3-D branch, smoothness, and the branch that helps it (paper eq. 6-8)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mmln_pipeline.fields import Window, crop, warp
from mmln_pipeline.losses import level_loss, similarity_loss, smoothness_loss
from mmln_pipeline.network import MMLN, LevelOutput
from mmln_pipeline.training.config import LossConfig


class LevelObjective(nn.Module):
    """Compute a level's loss; a module, so that a wrapper for precision or several processes can hold it.

    Parameters
    ----------
    model : MMLN
    config : LossConfig
    level : int
        From 0 (coarsest).
    """

    def __init__(self, model: MMLN, config: LossConfig, level: int) -> None:
        super().__init__()
        self.model = model
        self.config = config
        self.level = level

    def forward(
        self, fixed: Tensor, moving: Tensor, frozen: bool = False, window: Window | None = None
    ) -> dict[str, Tensor]:
        """Return the level's loss and its parts.

        Parameters
        ----------
        fixed, moving : Tensor, shape (B, 1, I, J, K)
            Full-size pair in [0, 1].
        frozen : bool, default=False
            Keep the lower levels as they are.
        window : tuple of 3 slices, optional
            Sub-volume of this level's grid to train on instead of the whole.

        Returns
        -------
        dict of str to Tensor
            ``loss``, ``similarity``, ``smoothness``, ``branch``; scalars.
        """
        pairs = self.model.pyramid(fixed, moving)
        below = self._lower_levels(pairs, frozen)
        f, m = pairs[self.level]
        out = self.model.run_level(self.level, f, m, below, window)
        similarity = self._similarity(f, m, out.displacement, window)
        smoothness = smoothness_loss(out.velocity)
        branch = self._branch(f, m, out, below)
        levels = self.model.config.levels
        loss = level_loss(self.level + 1, levels, similarity, smoothness, self.config.smoothing, branch)
        return {"loss": loss, "similarity": similarity, "smoothness": smoothness, "branch": branch}

    def _lower_levels(self, pairs: Sequence[tuple[Tensor, Tensor]], frozen: bool) -> LevelOutput | None:
        below = None
        with torch.set_grad_enabled(not frozen and torch.is_grad_enabled()):
            for p in range(self.level):
                below = self.model.run_level(p, *pairs[p], below)
        return below

    def _similarity(self, fixed: Tensor, moving: Tensor, displacement: Tensor, window: Window | None = None) -> Tensor:
        origin = tuple(s.start for s in window) if window else (0, 0, 0)
        if window:
            fixed = crop(fixed, window)
        moved = warp(moving, displacement, origin=origin)
        return similarity_loss(fixed, moved, self.config.similarity, self.config.window)

    def _branch(self, fixed: Tensor, moving: Tensor, out: LevelOutput, below: LevelOutput | None) -> Tensor:
        """Return the weighted similarity of the slice branch (levels 1, 2) or the core branch (finest level)."""
        finest = self.level == self.model.config.levels - 1
        weight = self.config.theta if finest else (self.config.alpha, self.config.beta)[min(self.level, 1)]
        if weight == 0:
            return torch.zeros((), device=fixed.device)
        if finest:
            core = central_window(fixed.shape[2:], self.config.core)
            again = self.model.run_level(self.level, fixed, moving, below, core)
            return weight * self._similarity(fixed, moving, again.displacement, core)
        stacks = self.model.run_slices(self.level, fixed, moving, out, below)
        if not stacks:
            return torch.zeros((), device=fixed.device)
        return weight * torch.stack([self._similarity(fixed, moving, u) for u in stacks]).mean()


def central_window(shape: Sequence[int], size: Sequence[int]) -> Window:
    """Return the window of a size in the centre of a grid, with even starts; no larger than the grid."""
    size = [min(n, s) for n, s in zip(shape, size, strict=True)]
    return tuple(
        slice(start, start + s) for start, s in (((n - s) // 4 * 2, s) for n, s in zip(shape, size, strict=True))
    )
