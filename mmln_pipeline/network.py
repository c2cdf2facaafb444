"""The MMLN network: a pyramid of 3-D registration subnets with a 2-D slice branch and a core branch for training.

Decisions where the paper and its public description are silent:

- ``combine="compose"`` integrates each level's residual velocity on its own, ``phi_p = phi'_(p-1) o exp(R_p)``, which
  is what warping the moving image before the level asks for; ``combine="add"`` is the paper's ``exp(V'_(p-1) + R_p)``.
- A window of level 3 (the core, or a training sub-volume) samples the whole moving image, so that what moves into the
  window from outside is seen.
- The last convolution starts at zero: an untrained network returns the identity.
- The last convolution and all fields stay float32 under autocast.

References: Zheng et al., Neurocomputing 501, 2022, sections 3.1 to 3.4; Mok and Chung, LapIRN, MICCAI 2020.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmln_pipeline.fields import Window, compose, crop, downsample, exponentiate, resize_field, resize_image, warp

AXES = {"sagittal": 0, "axial": 1, "coronal": 2}
"""Slicing planes by the array axis that they cut across, on a grid of axes L, I, A."""


@dataclass(frozen=True)
class NetworkConfig:
    """Shape of the network.

    Parameters
    ----------
    levels : int, default=3
        Pyramid levels L.
    channels : int, default=28
        Feature channels C of every convolution.
    velocity_range : float, default=8.0
        Bound of a level's residual velocity, in voxels of that level per unit time.
    combine : {"compose", "add"}, default="compose"
        How a level's residual joins the level below.
    slices : sequence of {"axial", "coronal", "sagittal"}, default=("axial",)
        Stacks of the 2-D branch; empty for none.
    """

    levels: int = 3
    channels: int = 28
    velocity_range: float = 8.0
    combine: str = "compose"
    slices: tuple[str, ...] = ("axial",)

    def __post_init__(self) -> None:
        object.__setattr__(self, "slices", tuple(self.slices))
        if self.combine not in ("compose", "add"):
            raise ValueError(f"network.combine: expected 'compose' or 'add', found {self.combine!r}")
        unknown = set(self.slices) - set(AXES)
        if unknown:
            raise ValueError(f"network.slices: expected names among {sorted(AXES)}, found {sorted(unknown)}")

    def asdict(self) -> dict[str, object]:
        """Return the configuration as plain values, for a card or a checkpoint."""
        return asdict(self) | {"slices": list(self.slices)}


class LevelOutput(NamedTuple):
    """What one level hands to the next; all on that level's grid.

    Attributes
    ----------
    residual : Tensor, shape (B, 3, I, J, K)
        The level's own velocity R_p, voxels per unit time.
    velocity : Tensor, shape (B, 3, I, J, K)
        V_p = R_p + V'_(p-1).
    displacement : Tensor, shape (B, 3, I, J, K)
        phi_p - identity, voxels.
    features : Tensor, shape (B, C, I, J, K)
        The final feature map.
    """

    residual: Tensor
    velocity: Tensor
    displacement: Tensor
    features: Tensor


class Subnet(nn.Module):
    """The registration subnet of one level, in two or three dimensions.

    Parameters
    ----------
    in_channels : int
        Channels of the stacked input.
    channels : int
        Feature channels C.
    velocity_range : float
        Bound of the returned velocity in voxels.
    dims : {2, 3}, default=3
    """

    def __init__(self, in_channels: int, channels: int, velocity_range: float, dims: int = 3) -> None:
        super().__init__()
        conv = nn.Conv3d if dims == 3 else nn.Conv2d
        up = nn.ConvTranspose3d if dims == 3 else nn.ConvTranspose2d
        self.dims = dims
        self.velocity_range = velocity_range
        self.encode = nn.Sequential(
            conv(in_channels, channels, 3, padding=1, bias=False),
            nn.LeakyReLU(0.2),
            conv(channels, channels, 3, padding=1, bias=False),
        )
        self.down = conv(channels, channels, 3, stride=2, padding=1, bias=False)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.LeakyReLU(0.2),
                conv(channels, channels, 3, padding=1, bias=False),
                nn.LeakyReLU(0.2),
                conv(channels, channels, 3, padding=1, bias=False),
            )
            for _ in range(5)
        )
        self.up = up(channels, channels, 2, stride=2, bias=False)
        self.decode = conv(2 * channels, channels, 3, padding=1, bias=False)
        self.head = conv(channels, dims, 3, padding=1, bias=False)
        nn.init.zeros_(self.head.weight)

    def forward(self, x: Tensor, carried: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Predict a velocity field.

        Parameters
        ----------
        x : Tensor, shape (B, in_channels, *grid)
        carried : Tensor, shape (B, C, *half grid), optional
            The lower level's final feature map, added behind the stride-2 convolution (section 3.4).

        Returns
        -------
        velocity : Tensor, shape (B, dims, *grid), float32
        features : Tensor, shape (B, C, *grid)
        """
        skip = self.encode(x)
        y = self.down(skip)
        if carried is not None:
            y = y + resize_image(carried, y.shape[2:])
        for block in self.blocks:
            y = F.leaky_relu(y + block(y), 0.2)
        y = self.up(y)
        y = crop(y, tuple(slice(0, n) for n in skip.shape[2:]))  # at an odd size the transposed convolution adds one
        features = F.leaky_relu(self.decode(torch.cat([y, skip], dim=1)), 0.2)
        with torch.autocast(x.device.type, enabled=False):
            velocity = self.velocity_range * F.softsign(self.head(features.float()))
        return velocity, features


class MMLN(nn.Module):
    """Multi-strategy mutual learning network.

    Calling it runs the 3-D branch alone, which is all that registration needs; the branches that help training are
    :meth:`run_slices` and :meth:`run_level` with a `window`.

    Parameters
    ----------
    config : NetworkConfig, optional
    """

    def __init__(self, config: NetworkConfig | None = None) -> None:
        super().__init__()
        self.config = config or NetworkConfig()
        c = self.config
        self.levels = nn.ModuleList(Subnet(2 if p == 0 else 5, c.channels, c.velocity_range) for p in range(c.levels))
        self.slices = nn.ModuleList(
            nn.ModuleDict(
                {
                    plane: Subnet((2 if p == 0 else 4) + c.channels, c.channels, c.velocity_range, dims=2)
                    for plane in c.slices
                }
            )
            for p in range(c.levels - 1)
        )
        self.levels.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
        self.slices.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, fixed: Tensor, moving: Tensor) -> tuple[Tensor, ...]:
        """Predict the velocity fields that align `moving` with `fixed`.

        Parameters
        ----------
        fixed, moving : Tensor, shape (B, 1, I, J, K)
            Images in [0, 1] on one grid of axes L, I, A at 1 mm.

        Returns
        -------
        tuple of Tensor, each of shape (B, 3, i, j, k)
            Velocity fields, coarse to fine, for :func:`mmln_pipeline.fields.integrate`: one a level when the levels
            compose, the finest level's alone when they add.
        """
        outputs = self.run(fixed, moving)
        if self.config.combine == "add":
            return (outputs[-1].velocity,)
        return tuple(out.residual for out in outputs)

    def run(self, fixed: Tensor, moving: Tensor, levels: int | None = None) -> list[LevelOutput]:
        """Run the 3-D branch from the coarsest level up.

        Parameters
        ----------
        fixed, moving : Tensor, shape (B, 1, I, J, K)
        levels : int, optional
            Stop behind this level (default: the finest); the grids stay those of the whole pyramid.

        Returns
        -------
        list of LevelOutput
        """
        outputs: list[LevelOutput] = []
        wanted = self.config.levels if levels is None else levels
        for p, (f, m) in enumerate(self.pyramid(fixed, moving)[:wanted]):
            outputs.append(self.run_level(p, f, m, outputs[-1] if outputs else None))
        return outputs

    def pyramid(self, fixed: Tensor, moving: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Return the pair at every level's size, coarse to fine."""
        pairs = [(fixed, moving)]
        for _ in range(self.config.levels - 1):
            pairs.insert(0, (downsample(pairs[0][0]), downsample(pairs[0][1])))
        return pairs

    def run_level(
        self,
        p: int,
        fixed: Tensor,
        moving: Tensor,
        below: LevelOutput | None = None,
        window: Window | None = None,
    ) -> LevelOutput:
        """Run one level's 3-D subnet, over its whole grid or over a window of it.

        Parameters
        ----------
        p : int
            Level, from 0 (coarsest).
        fixed, moving : Tensor, shape (B, 1, I, J, K)
            The pair at this level's size.
        below : LevelOutput, optional
            The level below, over its whole grid; none for level 0.
        window : tuple of 3 slices, optional
            Voxels of this level's grid with even starts: the core strategy, or a training sub-volume.

        Returns
        -------
        LevelOutput
            On the window when there is one.
        """
        if below is None:
            velocity, features = self.levels[p](_channels_last(torch.cat([fixed, moving], 1)))
            return LevelOutput(velocity, velocity, exponentiate(velocity), features)
        shape = fixed.shape[2:]
        where = window or tuple(slice(0, n) for n in shape)
        origin = tuple(s.start for s in where)
        prior_velocity = crop(resize_field(below.velocity, shape), where)
        prior = resize_field(below.displacement, shape)
        moved = warp(moving, crop(prior, where), origin=origin)
        x = torch.cat([crop(fixed, where), moved, prior_velocity], 1)
        carried = crop(below.features, tuple(slice(s.start // 2, (s.stop + 1) // 2) for s in where))
        residual, features = self.levels[p](_channels_last(x), carried)
        velocity = prior_velocity + residual
        displacement = self._join(prior, velocity, residual, origin)
        return LevelOutput(residual, velocity, displacement, features)

    def run_slices(
        self, p: int, fixed: Tensor, moving: Tensor, out: LevelOutput, below: LevelOutput | None = None
    ) -> list[Tensor]:
        """Run one level's 2-D branch: register slice by slice and splice the slices back (section 3.2).

        The slices of the 3-D branch's final feature map are part of the input, so that the 2-D loss also teaches the
        3-D subnet.

        Parameters
        ----------
        p : int
            Level, from 0.
        fixed, moving : Tensor, shape (B, 1, I, J, K)
            The pair at this level's size.
        out : LevelOutput
            The same level's 3-D output.
        below : LevelOutput, optional
            The level below; none for level 0.

        Returns
        -------
        list of Tensor, each of shape (B, 3, I, J, K)
            Displacement phi'_p of every stack of slices, voxels.
        """
        shape = fixed.shape[2:]
        planes = [fixed, moving]
        if below is not None:
            prior = resize_field(below.displacement, shape)
            prior_velocity = resize_field(below.velocity, shape)
            planes = [fixed, warp(moving, prior)]
        displacements = []
        for plane in self.config.slices:
            axis = AXES[plane]
            inputs = list(planes)
            if below is not None:
                inputs.append(_drop_component(prior_velocity, axis))
            inputs.append(out.features)
            stack = to_slices(torch.cat(inputs, 1), axis)
            in_plane, _ = self.slices[p].get_submodule(plane)(stack.contiguous(memory_format=torch.channels_last))
            residual = splice(in_plane, axis, batch=fixed.shape[0])
            if below is None:
                displacements.append(exponentiate(residual))
            else:
                displacements.append(self._join(prior, prior_velocity + residual, residual, (0, 0, 0)))
        return displacements

    def _join(self, prior: Tensor, velocity: Tensor, residual: Tensor, origin: Sequence[int]) -> Tensor:
        """Return phi_p's displacement from the doubled phi'_(p-1) and this level's velocity."""
        if self.config.combine == "add":
            return exponentiate(velocity)
        return compose(prior, exponentiate(residual), origin=origin)


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


def _channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last_3d)
