"""ViT-V-Net: a vision transformer at the bottom of a V-Net."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mmln_pipeline.study.methods.networked import PairMethod, PairSettings
from mmln_pipeline.study.methods.voxelmorph import AUTHORS

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class ViTVNetSettings(PairSettings):
    """Options of ViT-V-Net.

    Parameters
    ----------
    hidden, layers, heads, mlp : int
        Of the transformer: width of a token, a multiple of `heads`; blocks; heads; width of a block's middle.
    """

    smoothing: float = AUTHORS
    hidden: int = 252
    layers: int = 12
    heads: int = 12
    mlp: int = 3072

    def __post_init__(self) -> None:
        super().__post_init__()
        if min(self.hidden, self.layers, self.heads, self.mlp) < 1 or self.hidden % self.heads:
            raise ValueError(f"hidden: expected a multiple of heads, {self.heads}, found {self.hidden}")


class ViTVNetMethod(PairMethod):
    """ViT-V-Net."""

    name = "vit-v-net"
    needs = ("monai", "einops")
    Settings = ViTVNetSettings
    settings: ViTVNetSettings

    def build(self, grid: Sequence[int]) -> nn.Module:
        """Make the untrained network, for this size of images and no other."""
        from mmln_pipeline.study.networks.patch_transformer import ViTVNet

        s = self.settings
        return ViTVNet([n + -n % self.multiple for n in grid], s.hidden, s.layers, s.heads, s.mlp)
