"""TransMorph: a Swin transformer reads the pair, convolutions draw the field."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mmln_pipeline.study.methods.networked import PairMethod, PairSettings
from mmln_pipeline.study.methods.voxelmorph import AUTHORS

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class TransMorphSettings(PairSettings):
    """Options of TransMorph.

    Parameters
    ----------
    channels : int
        Of a patch; a multiple of 8.
    drop_path : float
        Largest share of the transformer's blocks that a step of learning leaves out.
    """

    smoothing: float = AUTHORS
    channels: int = 96
    drop_path: float = 0.3

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.channels < 8 or self.channels % 8:
            raise ValueError(f"channels: expected a multiple of 8, found {self.channels}")
        if not 0 <= self.drop_path < 1:
            raise ValueError(f"drop_path: expected a share from 0 to below 1, found {self.drop_path}")


class TransMorphMethod(PairMethod):
    """TransMorph."""

    name = "transmorph"
    needs = ("monai", "einops")
    Settings = TransMorphSettings
    settings: TransMorphSettings

    def build(self, grid: Sequence[int]) -> nn.Module:
        """Make the untrained network."""
        from mmln_pipeline.study.networks.swin_pyramid import TransMorph

        return TransMorph(self.settings.channels, self.settings.drop_path)
