"""The 2-D branch, for training (section 3.2): slices of the pair are registered by themselves and spliced back.

Slices of the 3-D branch's final feature map are part of the input, so that the 2-D loss also teaches the 3-D subnet.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from mmln_pipeline.fields.scales import resize_field
from mmln_pipeline.fields.warping import warp
from mmln_pipeline.network.subnet import Subnet

if TYPE_CHECKING:
    from mmln_pipeline.network.model import MMLN, LevelOutput

AXES = {"sagittal": 0, "axial": 1, "coronal": 2}
"""Slicing planes by the array axis that they cut across, on a grid of axes L, I, A."""


class SliceBranch(nn.ModuleDict):
    """The 2-D subnets of one level, one for each stack of slices.

    Parameters
    ----------
    planes : sequence of {"axial", "coronal", "sagittal"}
    channels : int
        Feature channels C, here and of the 3-D branch.
    velocity_range : float
        Bound of the returned velocity in voxels.
    knows_velocity : bool
        Whether the velocity of the run before is part of the input.
    """

    def __init__(self, planes: Sequence[str], channels: int, velocity_range: float, knows_velocity: bool) -> None:
        in_channels = (4 if knows_velocity else 2) + channels
        super().__init__({plane: Subnet(in_channels, channels, velocity_range, dims=2) for plane in planes})
        self.knows_velocity = knows_velocity

    def forward(self, fixed: Tensor, moved: Tensor, velocity: Tensor, features: Tensor) -> list[Tensor]:
        """Predict the velocity that is left, stack by stack.

        Parameters
        ----------
        fixed, moved : Tensor, shape (B, 1, I, J, K)
        velocity : Tensor, shape (B, 3, I, J, K)
            Of the run before.
        features : Tensor, shape (B, C, I, J, K)
            The 3-D branch's final feature map.

        Returns
        -------
        list of Tensor, each of shape (B, 3, I, J, K)
            Residual velocities that do not leave their plane.
        """
        residuals = []
        for plane, subnet in self.items():
            axis = AXES[plane]
            known = [_drop_component(velocity, axis)] if self.knows_velocity else []
            stack = to_slices(torch.cat([fixed, moved, *known, features], 1), axis)
            in_plane, _ = subnet(stack.contiguous(memory_format=torch.channels_last))
            residuals.append(splice(in_plane, axis, batch=fixed.shape[0]))
        return residuals


def register_slices(
    model: MMLN, fixed: Tensor, moving: Tensor, out: LevelOutput, before: LevelOutput | None = None
) -> list[Tensor]:
    """Register a pair slice by slice, where the 3-D branch has run.

    Parameters
    ----------
    model : MMLN
    fixed, moving : Tensor, shape (B, 1, I, J, K)
        The pair at the level's size.
    out : LevelOutput
        The 3-D branch's run.
    before : LevelOutput, optional
        The run before that; none for the first.

    Returns
    -------
    list of Tensor, each of shape (B, 3, I, J, K)
        Displacement phi'_p of every stack of slices, voxels.
    """
    shape = fixed.shape[2:]
    prior = velocity = fixed.new_zeros(len(fixed), 3, *shape)
    moved = moving
    if before is not None:
        prior, velocity = (resize_field(u, shape) for u in (before.displacement, before.velocity))
        moved = warp(moving, prior)
    residuals = model.slice_branch(out.level)(fixed, moved, velocity, out.features)
    return [model.join(prior, velocity + residual, residual) for residual in residuals]


def to_slices(volume: Tensor, axis: int) -> Tensor:
    """Cut a volume across an axis into a batch of slices.

    Parameters
    ----------
    volume : Tensor, shape (B, C, I, J, K)
    axis : {0, 1, 2}

    Returns
    -------
    Tensor, shape (B * n, C, h, w)
        n slices a volume; (h, w) are the two remaining axes in order.
    """
    return volume.movedim(2 + axis, 1).flatten(0, 1)  # (B, n, C, h, w) -> (B n, C, h, w)


def splice(in_plane: Tensor, axis: int, batch: int) -> Tensor:
    """Stack the slices' in-plane fields into a 3-D field that does not move through the plane.

    Parameters
    ----------
    in_plane : Tensor, shape (B * n, 2, h, w)
    axis : {0, 1, 2}
        The axis that was cut across.
    batch : int
        B.

    Returns
    -------
    Tensor, shape (B, 3, I, J, K)
    """
    field = in_plane.unflatten(0, (batch, -1)).movedim(1, 2 + axis)  # (B, n, 2, h, w) -> (B, 2, I, J, K)
    through = torch.zeros_like(field[:, :1])
    return torch.cat([field[:, :axis], through, field[:, axis:]], dim=1)


def _drop_component(field: Tensor, axis: int) -> Tensor:
    return torch.cat([field[:, :axis], field[:, axis + 1 :]], dim=1)
