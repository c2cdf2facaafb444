"""LapIRN, diffeomorphic or by displacements, and CIR-DM, its form that takes the smoothness as an input."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, cast

import numpy as np
from nibabel import Nifti1Image

from mmln_pipeline.study.methods.frames import Frame
from mmln_pipeline.study.methods.networked import LearnedSettings, NetworkMethod

if TYPE_CHECKING:
    from torch import Tensor, nn

    from mmln_pipeline.study.networks.laplacian_pyramid import LapIRN

OFFICIAL = ".pth"
"""How the official weights files end."""
WINDOWS = ((3,), (5, 3), (7, 5, 3))
"""Windows of the local correlation at each level, from its own size downwards."""
AUTHORS = 4 / 9
"""The authors' smoothness loss in ours: a mean over nine differences, of fields in half voxels."""
FROZEN = 0.1
"""Share of a level's phase in which the levels below it rest; the authors' 2000 of 30000 and 3000 of 60000 steps."""


@dataclass(frozen=True)
class LapIRNSettings(LearnedSettings):
    """Options of LapIRN.

    Parameters
    ----------
    smoothing : float
        In the authors' units, whose defaults are 3.5 for velocities and 1 for displacements.
    channels : int
        Features of every convolution.
    diffeomorphic : bool
        Velocities or displacements.
    axes : str
        Where the array axes of the weights' images point, like "LPS"; empty for those of the pair.
    grid : tuple of 3 int
        Size of the weights' images, round the brain; empty for that of the pair. How far the network reaches depends
        on it.
    """

    smoothing: float = 3.5
    channels: int = 28
    diffeomorphic: bool = True
    axes: str = ""
    grid: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.axes and sorted("RAS"["RASLPI".index(c) % 3] if c in "RASLPI" else c for c in self.axes) != list("ARS"):
            raise ValueError(f"axes: expected three directions like LPS, found {self.axes!r}")
        if len(self.grid) not in (0, 3) or any(n < 1 or n % 8 for n in self.grid):
            raise ValueError(f"grid: expected three multiples of 8, or none, found {list(self.grid)}")


class LapIRNMethod(NetworkMethod):
    """Three levels, taught one after the other, the lower ones at rest at first.

    Each level's own images are compared, by local correlation at its size and below.
    """

    name = "lapirn"
    Settings: ClassVar[type[LearnedSettings]] = LapIRNSettings
    settings: LapIRNSettings
    phases = (0.25, 0.25, 0.5)

    def build(self, grid: Sequence[int]) -> LapIRN:
        """Make the untrained network."""
        from mmln_pipeline.study.networks.laplacian_pyramid import LapIRN, LapIRNConfig

        s = self.settings
        return LapIRN(LapIRNConfig(s.channels, s.channels, s.diffeomorphic))

    @property
    def provenance(self) -> str:
        """Weights from where, trained on what, for how long."""
        if self.model.suffix != OFFICIAL:
            return super().provenance
        return f"official weights {self.model.name}, trained by the authors on OASIS scans that may be among these"

    def check(self) -> None:
        """Check the weights and the device."""
        if self.model.suffix != OFFICIAL:
            super().check()
        elif not self.model.is_file():
            raise FileNotFoundError(f"model: no such file: {self.model}")

    def load(self) -> nn.Module:
        """Make the network of the official weights, or of our own."""
        import torch

        from mmln_pipeline.study.networks.laplacian_pyramid import from_official

        if self.model.suffix != OFFICIAL:
            return super().load()
        try:
            state = torch.load(self.model, map_location="cpu", weights_only=True)
            return from_official(state, self._is_diffeomorphic)
        except ValueError as error:
            raise ValueError(f"model: {self.model}: {error}") from error

    @property
    def _is_diffeomorphic(self) -> bool:
        return self.settings.diffeomorphic

    def frame(self, fixed: Nifti1Image) -> Frame:
        """Return the frame of the weights' images."""
        return Frame.of(fixed, self.settings.axes, self.settings.grid)

    def predict(self, network: nn.Module, fixed: Tensor, moving: Tensor) -> Tensor:
        """Run the network on the pair, filled up with background to multiples of 8."""
        import torch.nn.functional as F

        grid = fixed.shape[2:]
        padding = [side for n in reversed(grid) for side in (0, -n % 8)]
        found: Tensor = network(F.pad(fixed, padding), F.pad(moving, padding), self._smoothness(fixed))
        return found[:, :, : grid[0], : grid[1], : grid[2]]

    def _smoothness(self, like: Tensor) -> Tensor | None:
        """Return what a conditional network is told."""
        return None

    def taught(self, network: nn.Module, phase: int) -> list[nn.Parameter]:
        """Return the weights of a level and of those below it."""
        return list(cast("LapIRN", network).levels[: phase + 1].parameters())

    def losses(
        self, network: nn.Module, phase: int, done: float, fixed: Tensor, moving: Tensor, generator: np.random.Generator
    ) -> dict[str, Tensor]:
        """Return a level's similarity, over the sizes up to its own, and the smoothness of its sum."""
        import torch

        from mmln_pipeline.fields.warping import warp
        from mmln_pipeline.network.losses import smoothness_loss
        from mmln_pipeline.study.networks.laplacian_pyramid import pyramid, to_voxels

        lapirn = cast("LapIRN", network)
        for level, subnet in enumerate(lapirn.levels):
            subnet.requires_grad_(level == phase or (level < phase and done >= FROZEN))
        smoothness, weight = self._drawn(fixed, generator)
        field = lapirn.run(fixed, moving, smoothness, phase + 1)[-1]
        pair = pyramid(torch.cat([fixed, moving], 1))[phase]
        similarity = _pyramid_loss(pair[:, :1], warp(pair[:, 1:], to_voxels(field.displacement)), WINDOWS[phase])
        rough = AUTHORS * smoothness_loss(to_voxels(field.sum))
        return {"loss": similarity + weight * rough, "similarity": similarity, "smoothness": rough}

    def _drawn(self, like: Tensor, generator: np.random.Generator) -> tuple[Tensor | None, float]:
        """Return what the network is told in a step of learning, and the weight of smoothness."""
        return None, self.settings.smoothing


@dataclass(frozen=True)
class CIRDMSettings(LearnedSettings):
    """Options of CIR-DM.

    Parameters
    ----------
    smoothing : float
        Weight of smoothness, in the authors' units, that the input 1 stands for.
    smoothness : float
        The input at test time, 0 to 1.
    channels : int
        At a level's full size; twice as many at half of it.
    axes, grid
        As LapIRN's.
    """

    smoothing: float = 10.0
    smoothness: float = 0.1
    channels: int = 8
    axes: str = ""
    grid: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        LapIRNSettings(axes=self.axes, grid=self.grid)
        if not 0 <= self.smoothness <= 1:
            raise ValueError(f"smoothness: expected a number from 0 to 1, found {self.smoothness}")


class CIRDM(LapIRNMethod):
    """LapIRN by displacements, taught with a smoothness that is drawn anew each step and told to the network."""

    name = "cir-dm"
    Settings = CIRDMSettings
    settings: CIRDMSettings  # type: ignore[assignment]
    _is_diffeomorphic = False

    def build(self, grid: Sequence[int]) -> LapIRN:
        """Make the untrained network."""
        from mmln_pipeline.study.networks.laplacian_pyramid import LapIRN, LapIRNConfig

        channels = self.settings.channels
        return LapIRN(LapIRNConfig(channels, 2 * channels, diffeomorphic=False, conditional=True))

    def _smoothness(self, like: Tensor) -> Tensor | None:
        return like.new_full((len(like), 1), self.settings.smoothness)

    def _drawn(self, like: Tensor, generator: np.random.Generator) -> tuple[Tensor | None, float]:
        drawn = float(generator.random())
        return like.new_full((len(like), 1), drawn), drawn * self.settings.smoothing


def _pyramid_loss(fixed: Tensor, moved: Tensor, windows: Sequence[int]) -> Tensor:
    """Return the sum of local correlation losses at a size and below, each of which counts half of the one above it."""
    import torch.nn.functional as F

    from mmln_pipeline.network.losses import local_correlation_loss

    total = local_correlation_loss(fixed, moved, windows[0])
    for halvings, window in enumerate(windows[1:], 1):
        fixed, moved = (F.avg_pool3d(x, 3, stride=2, padding=1, count_include_pad=False) for x in (fixed, moved))
        total = total + local_correlation_loss(fixed, moved, window) / 2**halvings
    return total
