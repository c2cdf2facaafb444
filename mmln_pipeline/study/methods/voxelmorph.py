"""VoxelMorph: one U-Net from the pair to the field, MONAI's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mmln_pipeline.study.methods.networked import PairMethod, PairSettings

if TYPE_CHECKING:
    from torch import nn

AUTHORS = 1 / 9
"""A smoothness loss that is a mean over nine differences, the authors', in ours, which is their sum."""


@dataclass(frozen=True)
class VoxelMorphSettings(PairSettings):
    """Options of VoxelMorph.

    Parameters
    ----------
    channels : int
        Features of all layers but the first and the last, which have half as many.
    """

    smoothing: float = AUTHORS
    channels: int = 32


class VoxelMorph(PairMethod):
    """VoxelMorph.

    Reference: Balakrishnan et al., VoxelMorph: a learning framework for deformable medical image registration, IEEE TMI
    38(8), 2019.
    """

    name = "voxelmorph"
    needs = ("monai",)
    Settings = VoxelMorphSettings
    settings: VoxelMorphSettings
    multiple = 16

    def build(self, grid: Sequence[int]) -> nn.Module:
        """Make the untrained network."""
        from monai.networks.nets.voxelmorph import VoxelMorphUNet
        from torch import nn

        from mmln_pipeline.study.networks.convolutions import start_near_zero

        full = self.settings.channels
        half = full // 2
        network = VoxelMorphUNet(3, 2, full, (half, *[full] * 5), (half, half))
        start_near_zero([layer for layer in network.modules() if isinstance(layer, nn.Conv3d)][-1])
        return network
