"""The MMLN network: a pyramid of 3-D registration subnets with a 2-D slice branch and a core branch for training.

Decisions where the paper and its public description are silent:

- ``schedule`` says in which order the levels run. The paper runs each once, coarse to fine; a level may also run
  again on what is left to do, with the same weights: a recursive cascade, in the order of multigrid cycles.
- ``finest_field="half"`` lets level 3 compare full-size images, folded into channels, but predict a field of half
  their size, which is smoother and costs a third.
- ``combine="compose"`` integrates each level's residual velocity on its own, ``phi_p = phi'_(p-1) o exp(R_p)``, which
  is what warping the moving image before the level asks for; ``combine="add"`` is the paper's ``exp(V'_(p-1) + R_p)``.
- A level named in ``symmetric`` sees the pair in both orders and answers with half the difference: exchanging the
  images turns its velocity round.
- A window of level 3 (the core, or a training sub-volume) samples the whole moving image, so that what moves into the
  window from outside is seen.
- The last convolution starts at zero: an untrained network returns the identity.
- The last convolution and all fields stay float32 under autocast.

References: Zheng et al., Neurocomputing 501, 2022, sections 3.1 to 3.4; Mok and Chung, LapIRN, MICCAI 2020;
Zhao et al., Recursive cascaded networks, ICCV 2019.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmln_pipeline.fields.integration import exponentiate
from mmln_pipeline.fields.scales import downsample, fold, halve_shape, resize_field, resize_image
from mmln_pipeline.fields.warping import compose, warp
from mmln_pipeline.fields.windows import Window, crop, halve_window

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
    schedule : sequence of int, optional
        Levels in the order in which they run, from 1 (coarsest); empty for each once, coarse to fine.
    finest_field : {"full", "half"}, default="full"
        Size of the finest level's field, relative to the images.
    symmetric : sequence of int, optional
        Levels, from 1 (coarsest), that see the pair in both orders: ``R = (net(F, M, V) - net(M, F, -V)) / 2``.
    """

    levels: int = 3
    channels: int = 28
    velocity_range: float = 8.0
    combine: str = "compose"
    slices: tuple[str, ...] = ("axial",)
    schedule: tuple[int, ...] = ()
    finest_field: str = "full"
    symmetric: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        for name in ("levels", "channels"):
            if getattr(self, name) < 1:
                raise ValueError(f"network.{name}: expected at least 1, found {getattr(self, name)}")
        object.__setattr__(self, "slices", tuple(self.slices))
        object.__setattr__(self, "schedule", tuple(self.schedule) or tuple(range(1, self.levels + 1)))
        object.__setattr__(self, "symmetric", tuple(self.symmetric))
        if self.combine not in ("compose", "add"):
            raise ValueError(f"network.combine: expected 'compose' or 'add', found {self.combine!r}")
        unknown = set(self.slices) - set(AXES)
        if unknown:
            raise ValueError(f"network.slices: expected names among {sorted(AXES)}, found {sorted(unknown)}")
        if self.finest_field not in ("full", "half"):
            raise ValueError(f"network.finest_field: expected 'full' or 'half', found {self.finest_field!r}")
        if beyond := set(self.symmetric) - set(range(1, self.levels + 1)):
            raise ValueError(f"network.symmetric: expected levels 1 to {self.levels}, found {sorted(beyond)}")
        steps = zip((0, *self.schedule), self.schedule, strict=False)
        if set(self.schedule) != set(range(1, self.levels + 1)) or any(b > a + 1 for a, b in steps):
            raise ValueError(
                f"network.schedule: expected levels 1 to {self.levels}, each behind the one below it, "
                f"found {list(self.schedule)}"
            )

    def asdict(self) -> dict[str, object]:
        """Return the configuration as plain values, for a card or a checkpoint."""
        lists = {name: list(getattr(self, name)) for name in ("slices", "schedule", "symmetric")}
        return asdict(self) | lists


class LevelOutput(NamedTuple):
    """Where the registration stands behind a run of one level.

    The displacement and the velocity lie on the finest grid of any field so far, the rest on the level's own.

    Attributes
    ----------
    residual : Tensor, shape (B, 3, i, j, k)
        The level's own velocity R_p, voxels per unit time.
    velocity : Tensor, shape (B, 3, I, J, K)
        V_p = R_p + V'_(p-1): the sum of all residuals so far.
    displacement : Tensor, shape (B, 3, I, J, K)
        phi_p - identity, voxels.
    features : Tensor, shape (B, C, i, j, k)
        The level's final feature map.
    carried : Tensor, shape (B, C, i', j', k'), or None
        The feature map of the level below that the level received, for a second run of it; none behind a finer level.
    level : int
        p, from 0.
    """

    residual: Tensor
    velocity: Tensor
    displacement: Tensor
    features: Tensor
    carried: Tensor | None
    level: int

    def detach(self) -> LevelOutput:
        """Return the same without what gradients need."""
        carried = None if self.carried is None else self.carried.detach()
        residual, velocity, displacement = (x.detach() for x in (self.residual, self.velocity, self.displacement))
        return LevelOutput(residual, velocity, displacement, self.features.detach(), carried, self.level)


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
    stride : {2, 1}, default=2
        Of the convolution behind the encoder; 1 when the input has half the images' size already.
    """

    def __init__(self, in_channels: int, channels: int, velocity_range: float, dims: int = 3, stride: int = 2) -> None:
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
        self.down = conv(channels, channels, 3, stride=stride, padding=1, bias=False)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.LeakyReLU(0.2),
                conv(channels, channels, 3, padding=1, bias=False),
                nn.LeakyReLU(0.2),
                conv(channels, channels, 3, padding=1, bias=False),
            )
            for _ in range(5)
        )
        self.up = up(channels, channels, 2, stride=2, bias=False) if stride == 2 else nn.Identity()
        self.decode = conv(2 * channels, channels, 3, padding=1, bias=False)
        self.head = conv(channels, dims, 3, padding=1, bias=False)
        nn.init.zeros_(self.head.weight)

    def forward(self, x: Tensor, carried: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Predict a velocity field.

        Parameters
        ----------
        x : Tensor, shape (B, in_channels, *grid)
        carried : Tensor, shape (B, C, *half grid), optional
            The lower level's final feature map, added behind the convolution that follows the encoder
            (section 3.4).

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
        self.levels = nn.ModuleList(self._subnet(p) for p in range(c.levels))
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

    def _subnet(self, p: int) -> Subnet:
        c = self.config
        channels = 5 if p > 0 or self._knows_velocity() else 2
        if self._is_folded(p):
            return Subnet(2 * 2**3 + 3, c.channels, c.velocity_range, stride=1)
        return Subnet(channels, c.channels, c.velocity_range)

    def _knows_velocity(self) -> bool:
        """Return whether level 1 sees a velocity: not before its only run."""
        return self.config.schedule.count(1) > 1

    def _is_folded(self, p: int) -> bool:
        """Return whether a level sees its images folded into channels of half their size."""
        return p == self.config.levels - 1 and self.config.finest_field == "half"

    def forward(self, fixed: Tensor, moving: Tensor, finest: bool = True) -> tuple[Tensor, ...]:
        """Predict the velocity fields that align `moving` with `fixed`.

        Parameters
        ----------
        fixed, moving : Tensor, shape (B, 1, I, J, K)
            Images in [0, 1] on one grid of axes L, I, A at 1 mm.
        finest : bool, default=True
            Whether the finest level runs, where there are others; refinement on full-size images takes its place.

        Returns
        -------
        tuple of Tensor, each of shape (B, 3, i, j, k)
            Velocity fields in the order of :func:`mmln_pipeline.fields.integration.integrate`: one for each run of a
            level when they compose, their sum alone when they add.
        """
        outputs = self.run(fixed, moving, None if finest else max(1, self.config.levels - 1))
        if self.config.combine == "add":
            return (outputs[-1].velocity,)
        return tuple(out.residual for out in outputs)

    def schedule(self, levels: int | None = None) -> list[int]:
        """Return the levels, from 0, in the order in which they run, up to a number of levels."""
        return [p - 1 for p in self.config.schedule if levels is None or p <= levels]

    def run(self, fixed: Tensor, moving: Tensor, levels: int | None = None) -> list[LevelOutput]:
        """Run the 3-D branch in the order of the schedule.

        Parameters
        ----------
        fixed, moving : Tensor, shape (B, 1, I, J, K)
        levels : int, optional
            Leave out the levels above this one (default: none); the grids stay those of the whole pyramid.

        Returns
        -------
        list of LevelOutput
        """
        pairs = self.pyramid(fixed, moving)
        outputs: list[LevelOutput] = []
        for p in self.schedule(levels):
            outputs.append(self.run_level(p, *pairs[p], outputs[-1] if outputs else None))
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
            The run before, over its whole grid; none for the first.
        window : tuple of 3 slices, optional
            Voxels of the finest level's grid with even starts: the core strategy, or a training sub-volume.

        Returns
        -------
        LevelOutput
            On the window when there is one.
        """
        shape = fixed.shape[2:]
        where = window or tuple(slice(0, n) for n in shape)
        own, own_shape = (halve_window(where), halve_shape(shape)) if self._is_folded(p) else (where, shape)
        if below is None:
            size = [s.stop - s.start for s in own]
            velocity = fixed.new_zeros(len(fixed), 3, *size)
            residual, features = self._predict(p, fixed, moving, velocity)
            return LevelOutput(residual, residual, exponentiate(residual), features, None, p)
        moved = warp(moving, crop(resize_field(below.displacement, shape), where), origin=[s.start for s in where])
        seen = crop(resize_field(below.velocity, own_shape), own)
        carried = {p - 1: below.features, p: below.carried}.get(below.level)  # a finer run has none for a coarser
        cropped = carried
        if window is not None and carried is not None:
            cropped = crop(carried, halve_window(where))
        residual, features = self._predict(p, crop(fixed, where), moved, seen, cropped)
        if window is None:  # what a coarser level adds to a finer field must not make that coarser
            own_shape = tuple(max(pair) for pair in zip(below.velocity.shape[2:], own_shape, strict=True))
            own = tuple(slice(0, n) for n in own_shape)
        step = resize_field(residual, [s.stop - s.start for s in own])
        velocity = crop(resize_field(below.velocity, own_shape), own) + step
        prior = resize_field(below.displacement, own_shape)
        displacement = self._join(prior, velocity, residual, [s.start for s in own])
        return LevelOutput(residual, velocity, displacement, features, carried, p)

    def _predict(
        self, p: int, fixed: Tensor, moved: Tensor, velocity: Tensor, carried: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return a subnet's velocity and features, its velocity of both orders of the pair where it is symmetric."""
        ahead = self._input(p, fixed, moved, velocity)
        if p + 1 not in self.config.symmetric:
            residual, features = self.levels[p](ahead, carried)
            return residual, features
        both = torch.cat([ahead, self._input(p, moved, fixed, -velocity)])
        residual, features = self.levels[p](both, None if carried is None else carried.repeat(2, 1, 1, 1, 1))
        there, back = residual.chunk(2)
        return (there - back) / 2, features.chunk(2)[0]

    def _input(self, p: int, fixed: Tensor, moved: Tensor, velocity: Tensor) -> Tensor:
        """Stack a subnet's input channels."""
        images = torch.cat([fixed, moved], 1)
        if self._is_folded(p):
            images = fold(images)
        if p == 0 and not self._knows_velocity():
            return _channels_last(images)
        return _channels_last(torch.cat([images, velocity], 1))

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
        prior = prior_velocity = fixed.new_zeros(len(fixed), 3, *shape)
        if below is not None:
            prior, prior_velocity = (resize_field(u, shape) for u in (below.displacement, below.velocity))
            planes = [fixed, warp(moving, prior)]
        displacements = []
        for plane in self.config.slices:
            axis = AXES[plane]
            known = [_drop_component(prior_velocity, axis)] if p > 0 else []
            stack = to_slices(torch.cat([*planes, *known, out.features], 1), axis)
            in_plane, _ = self.slices[p].get_submodule(plane)(stack.contiguous(memory_format=torch.channels_last))
            residual = splice(in_plane, axis, batch=fixed.shape[0])
            displacements.append(self._join(prior, prior_velocity + residual, residual, (0, 0, 0)))
        return displacements

    def _join(self, prior: Tensor, velocity: Tensor, residual: Tensor, origin: Sequence[int]) -> Tensor:
        """Return the displacement behind a run: of all velocities so far, or of its own behind the one before it."""
        if self.config.combine == "add":
            return exponentiate(velocity)
        return compose(prior, resize_field(exponentiate(residual), velocity.shape[2:]), origin=origin)


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
