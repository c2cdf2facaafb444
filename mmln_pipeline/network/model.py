"""The MMLN network: a pyramid of 3-D registration subnets, and the schedule by which its levels run.

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

from collections.abc import Iterator, Sequence
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from mmln_pipeline.fields.integration import exponentiate
from mmln_pipeline.fields.scales import downsample, fold, resize_field
from mmln_pipeline.fields.warping import compose, warp
from mmln_pipeline.fields.windows import Patch, Window, crop, halve_window
from mmln_pipeline.network.architecture import NetworkConfig
from mmln_pipeline.network.subnet import Subnet


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
        p, from 1 (coarsest).
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


class MMLN(nn.Module):
    """Multi-strategy mutual learning network.

    Calling it runs the 3-D branch alone, which is all that registration needs; what helps in training is in
    `mmln_pipeline.network.slices` and `mmln_pipeline.network.core`. Levels are numbered as in the paper, from 1
    (coarsest) to L.

    Parameters
    ----------
    config : NetworkConfig, optional
    """

    def __init__(self, config: NetworkConfig | None = None) -> None:
        super().__init__()
        self.config = config or NetworkConfig()
        c = self.config
        self.levels = nn.ModuleList(self._make_subnet(level) for level in range(1, c.levels + 1))
        self.slices = nn.ModuleList(
            nn.ModuleDict(
                {
                    plane: Subnet((2 if level == 1 else 4) + c.channels, c.channels, c.velocity_range, dims=2)
                    for plane in c.slices
                }
            )
            for level in range(1, c.levels)
        )
        self.levels.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
        self.slices.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def _make_subnet(self, level: int) -> Subnet:
        c = self.config
        if c.is_folded(level):
            return Subnet(2 * 2**3 + 3, c.channels, c.velocity_range, stride=1)
        return Subnet(5 if level > 1 or c.knows_velocity else 2, c.channels, c.velocity_range)

    def subnet(self, level: int) -> Subnet:
        """Return a level's 3-D subnet."""
        return cast(Subnet, self.levels[level - 1])

    def slice_subnets(self, level: int) -> dict[str, Subnet]:
        """Return a level's 2-D subnets by their plane; the finest level has none."""
        return dict(cast(nn.ModuleDict, self.slices[level - 1]).items()) if level < self.config.levels else {}  # type: ignore[arg-type]

    def level_parameters(self, level: int) -> list[nn.Parameter]:
        """Return a level's weights, its 2-D branch's behind its 3-D subnet's."""
        subnets = [self.subnet(level), *self.slice_subnets(level).values()]
        return [weight for subnet in subnets for weight in subnet.parameters()]

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
        outputs = self._runs(fixed, moving, self.config.runs(None if finest else max(1, self.config.levels - 1)))
        fields = [(output.velocity, output.residual) for output in outputs]  # features need not stay
        if self.config.combine == "add":
            return (fields[-1][0],)
        return tuple(residual for _, residual in fields)

    def run(self, fixed: Tensor, moving: Tensor, finest: int | None = None, once: bool = False) -> list[LevelOutput]:
        """Run the 3-D branch in the order of the schedule.

        Parameters
        ----------
        fixed, moving : Tensor, shape (B, 1, I, J, K)
        finest : int, optional
            Leave out the levels above this one (default: none); the grids stay those of the whole pyramid.
        once : bool, default=False
            Run each level once, whatever the schedule: of a network that has not learned more yet.

        Returns
        -------
        list of LevelOutput
        """
        return list(self._runs(fixed, moving, self.config.runs(finest, once)))

    def _runs(self, fixed: Tensor, moving: Tensor, levels: Sequence[int]) -> Iterator[LevelOutput]:
        pairs = self.pyramid(fixed, moving)
        output = None
        for level in levels:
            output = self.run_level(level, *pairs[level], output)
            yield output

    def pyramid(self, fixed: Tensor, moving: Tensor) -> dict[int, tuple[Tensor, Tensor]]:
        """Return the pair at every level's size, by the level."""
        pairs = {self.config.levels: (fixed, moving)}
        for level in range(self.config.levels - 1, 0, -1):
            finer = pairs[level + 1]
            pairs[level] = downsample(finer[0]), downsample(finer[1])
        return pairs

    def run_level(
        self,
        level: int,
        fixed: Tensor,
        moving: Tensor,
        before: LevelOutput | None = None,
        window: Window | None = None,
    ) -> LevelOutput:
        """Run one level's 3-D subnet, over its whole grid or over a window of it: warp, predict, join.

        Parameters
        ----------
        level : int
        fixed, moving : Tensor, shape (B, 1, I, J, K)
            The pair at this level's size.
        before : LevelOutput, optional
            The run before, over its whole grid; none for the first.
        window : tuple of 3 slices, optional
            Voxels of the finest level's grid with even starts: the core strategy, or a training sub-volume.

        Returns
        -------
        LevelOutput
            On the window when there is one.
        """
        seen = Patch.of(fixed.shape[2:], window)
        own = seen.halved() if self.config.is_folded(level) else seen
        if before is None:
            velocity = fixed.new_zeros(len(fixed), 3, *own.size)
            residual, features = self._predict(level, fixed, moving, velocity)
            return LevelOutput(residual, residual, exponentiate(residual), features, None, level)
        moved = warp(moving, seen.cut(before.displacement), origin=seen.origin)
        carried = {level - 1: before.features, level: before.carried}.get(before.level)  # a finer run has none
        cropped = carried if carried is None or window is None else crop(carried, halve_window(window))
        residual, features = self._predict(level, crop(fixed, seen.window), moved, own.cut(before.velocity), cropped)
        if window is None:  # what a coarser level adds to a finer field must not make that coarser
            own = Patch.of([max(pair) for pair in zip(before.velocity.shape[2:], own.shape, strict=True)])
        velocity = own.cut(before.velocity) + resize_field(residual, own.size)
        displacement = self.join(resize_field(before.displacement, own.shape), velocity, residual, own.origin)
        return LevelOutput(residual, velocity, displacement, features, carried, level)

    def join(self, prior: Tensor, velocity: Tensor, residual: Tensor, origin: Sequence[int] = (0, 0, 0)) -> Tensor:
        """Return the displacement behind a run: of all velocities so far, or of its own behind the one before it.

        Parameters
        ----------
        prior : Tensor, shape (B, 3, I, J, K)
            The displacement before the run, over a whole grid.
        velocity : Tensor, shape (B, 3, i, j, k)
            The sum of all velocities so far, on a window of that grid.
        residual : Tensor, shape (B, 3, i', j', k')
            The run's own velocity.
        origin : sequence of 3 int, default=(0, 0, 0)
            Where the window starts.

        Returns
        -------
        Tensor, shape (B, 3, i, j, k)
            Voxels.
        """
        if self.config.combine == "add":
            return exponentiate(velocity)
        return compose(prior, resize_field(exponentiate(residual), velocity.shape[2:]), origin=origin)

    def _predict(
        self, level: int, fixed: Tensor, moved: Tensor, velocity: Tensor, carried: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return a subnet's velocity and features, its velocity of both orders of the pair where it is symmetric."""
        ahead = self._stack(level, fixed, moved, velocity)
        if level not in self.config.symmetric:
            residual, features = self.subnet(level)(ahead, carried)
            return residual, features
        both = torch.cat([ahead, self._stack(level, moved, fixed, -velocity)])
        residual, features = self.subnet(level)(both, None if carried is None else carried.repeat(2, 1, 1, 1, 1))
        there, back = residual.chunk(2)
        return (there - back) / 2, features.chunk(2)[0]

    def _stack(self, level: int, fixed: Tensor, moved: Tensor, velocity: Tensor) -> Tensor:
        """Stack a subnet's input channels."""
        images = torch.cat([fixed, moved], 1)
        if self.config.is_folded(level):
            images = fold(images)
        if level == 1 and not self.config.knows_velocity:
            return _channels_last(images)
        return _channels_last(torch.cat([images, velocity], 1))


def _channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last_3d)
