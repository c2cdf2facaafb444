"""What judges a refining field: how unlike a pair still is, and what the map does to volumes."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, partial

import torch
import torch.nn.functional as F
from torch import Tensor

from mmln_pipeline.fields.integration import exponentiate
from mmln_pipeline.fields.scales import downsample, fold, resize_field
from mmln_pipeline.fields.warping import compose, warp, warp_corners
from mmln_pipeline.machine.parallel import at_once
from mmln_pipeline.network.losses import (
    similarity_loss,
    smoothness_loss,
    soft_dice_loss,
    squared_difference_loss,
    volume_loss,
)
from mmln_pipeline.network.tissues import CLASSES, REACH, depth_map, tissue_maps
from mmln_pipeline.refinement.parameters import RefinementSettings


@dataclass(frozen=True)
class PairLoss:
    """The loss of a refining field on a pair of images: their intensities, tissues and depth, and the map's volumes.

    The field, and all but the moving image, lie on a grid of half the images' size.

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
    settings : RefinementSettings
    """

    fixed: Tensor
    moving: Tensor
    fixed_maps: Tensor
    moving_maps: Tensor
    start: Tensor
    weight: Tensor | None
    settings: RefinementSettings

    @classmethod
    def of(
        cls, fixed: Tensor, moving: Tensor, start: Tensor, weight: Tensor | None, settings: RefinementSettings
    ) -> PairLoss:
        """Prepare the loss of a pair.

        Parameters
        ----------
        fixed, moving : Tensor, shape (1, 1, I, J, K)
            Images in [0, 1].
        start : Tensor, shape (1, 3, I/2, J/2, K/2)
            The network's displacement.
        weight : Tensor, shape (1, 1, I, J, K), or None
            What each fixed voxel counts.
        settings : RefinementSettings

        Returns
        -------
        PairLoss
        """
        fixed_maps, moving_maps = at_once(*(partial(_list_maps, image) for image in (fixed, moving)))
        folded_weight = None if weight is None else fold(weight)
        return cls(fold(fixed), moving, fixed_maps, moving_maps, start, folded_weight, settings)

    def halved(self) -> PairLoss:
        """Return the loss on images of half the size."""
        fixed = fold(self.fixed.mean(1, keepdim=True))
        weight = None if self.block_weight is None else fold(self.block_weight)
        moving, fixed_maps, moving_maps = (downsample(x) for x in (self.moving, self.fixed_maps, self.moving_maps))
        start = resize_field(self.start, fixed_maps.shape[2:])
        return PairLoss(fixed, moving, fixed_maps, moving_maps, start, weight, self.settings)

    @cached_property
    def block_weight(self) -> Tensor | None:
        """What a block counts: as little as any of its voxels, which it is a mixture of."""
        return None if self.weight is None else self.weight.amin(1, keepdim=True)

    @cached_property
    def depth_weight(self) -> Tensor | None:
        """What a block's depth counts: what has no weight may look like fluid, which tells as far as depth reaches."""
        return None if self.block_weight is None else -F.max_pool3d(-self.block_weight, REACH + 1, 1, REACH // 2)

    def __call__(self, refining: Tensor, corners: list[int]) -> Tensor:
        """Return the loss of a refining field.

        Parameters
        ----------
        refining : Tensor, shape (1, 3, I/2, J/2, K/2)
            Velocity.
        corners : list of int
            Voxels of every block that are compared, as `fields.scales.fold` numbers them.

        Returns
        -------
        Tensor, scalar
        """
        s = self.settings
        displacement = compose(self.start, exponentiate(refining, s.squarings))
        moved = warp_corners(self.moving, displacement, corners)
        weight = None if self.weight is None else _choose(self.weight, corners)
        unlike = similarity_loss(_choose(self.fixed, corners), moved, "local+global", s.windows, weight, s.whole)
        restraint = s.smoothing * smoothness_loss(refining) + s.volume * volume_loss(displacement)
        return unlike + self._tissue_loss(warp(self.moving_maps, displacement)) + restraint

    def _tissue_loss(self, moved_maps: Tensor) -> Tensor:
        parts = (maps.split((1, CLASSES), 1) for maps in (self.fixed_maps, moved_maps))
        (fixed_depth, fixed_shares), (depth, shares) = parts
        overlap = soft_dice_loss(fixed_shares, shares, self.block_weight)
        apart = squared_difference_loss(fixed_depth, depth, self.depth_weight)
        return self.settings.tissues * overlap + self.settings.depth * apart


def _choose(folded: Tensor, corners: list[int]) -> Tensor:
    """Return some channels; to index by a list would copy it to a GPU, and wait for that, in every step."""
    return torch.cat([folded[:, corner : corner + 1] for corner in corners], 1)


def _list_maps(image: Tensor) -> Tensor:
    """Return the maps of an image, shape (1, 4, I/2, J/2, K/2): depth, and the shares of three tissues."""
    shares = tissue_maps(image)
    return downsample(torch.cat([depth_map(shares), shares], 1))
