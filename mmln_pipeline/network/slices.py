"""The 2-D branch, for training (section 3.2): slices of the pair are registered by themselves and spliced back.

Slices of the 3-D branch's final feature map are part of the input, so that the 2-D loss also teaches the 3-D subnet.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mmln_pipeline.fields.scales import resize_field
from mmln_pipeline.fields.warping import warp
from mmln_pipeline.network.architecture import AXES
from mmln_pipeline.network.model import MMLN, LevelOutput


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
    displacements = []
    for plane, subnet in model.slice_subnets(out.level).items():
        axis = AXES[plane]
        known = [_drop_component(velocity, axis)] if out.level > 1 else []
        stack = to_slices(torch.cat([fixed, moved, *known, out.features], 1), axis)
        in_plane, _ = subnet(stack.contiguous(memory_format=torch.channels_last))
        residual = splice(in_plane, axis, batch=fixed.shape[0])
        displacements.append(model.join(prior, velocity + residual, residual))
    return displacements


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
