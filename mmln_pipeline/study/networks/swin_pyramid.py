"""TransMorph: a Swin transformer reads the pair, convolutions draw the field. The transformer's blocks are MONAI's.

Reference: Chen et al., TransMorph: transformer for unsupervised medical image registration, Medical Image Analysis 82,
2022.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from monai.networks.blocks import PatchEmbed
from monai.networks.nets.swin_unetr import BasicLayer, PatchMergingV2
from torch import Tensor, nn

from mmln_pipeline.study.networks.convolutions import ConvBlock, UpBlock, field_head

DEPTHS = (2, 2, 4, 2)
HEADS = (4, 4, 8, 8)
WINDOW = (5, 6, 7)
"""Patches in which attention acts; it tiles 160 x 192 x 224 voxels at every stage."""
PATCH = 4
FULL_SIZE = 16
"""Channels of the last stage of the decoder."""


class TransMorph(nn.Module):
    """TransMorph.

    Parameters
    ----------
    channels : int, default=96
        Of a patch; a multiple of 8.
    drop_path : float, default=0.3
        Largest share of the transformer's blocks that a step of learning leaves out.
    """

    def __init__(self, channels: int = 96, drop_path: float = 0.3) -> None:
        super().__init__()
        widths = [channels * 2**stage for stage in range(len(DEPTHS))]
        drops = torch.linspace(0, drop_path, sum(DEPTHS)).split(DEPTHS)
        self.embed = PatchEmbed(PATCH, 2, channels, spatial_dims=3)
        self.stages = nn.ModuleList(
            BasicLayer(width, depth, heads, WINDOW, drop.tolist(), qkv_bias=True)
            for width, depth, heads, drop in zip(widths, DEPTHS, HEADS, drops, strict=True)
        )
        self.norms = nn.ModuleList(nn.LayerNorm(width) for width in widths)
        self.merges = nn.ModuleList(PatchMergingV2(width) for width in widths[:-1])
        self.at_half, self.at_full = ConvBlock(2, channels // 2), ConvBlock(2, FULL_SIZE)
        skips = [*widths[-2::-1], channels // 2, FULL_SIZE]
        inputs = [widths[-1], *skips[:-1]]
        self.ups = nn.ModuleList(UpBlock(i, s, s) for i, s in zip(inputs, skips, strict=True))
        self.head = field_head(FULL_SIZE)

    def forward(self, pair: Tensor) -> Tensor:
        """Predict a field in voxels, shape (B, 3, I, J, K), from the stacked pair, (B, 2, I, J, K)."""
        x, maps = self.embed(pair), []
        for number, (stage, norm) in enumerate(zip(self.stages, self.norms, strict=True)):
            x = stage(x).movedim(1, -1)  # (B, C, i, j, k) -> (B, i, j, k, C)
            maps.append(norm(x).movedim(-1, 1))
            if number < len(self.merges):
                x = self.merges[number](x).movedim(-1, 1)
        skips = [*maps[-2::-1], self.at_half(F.avg_pool3d(pair, 2)), self.at_full(pair)]
        return draw(maps[-1], self.ups, skips, self.head)


def draw(x: Tensor, ups: nn.ModuleList, skips: Sequence[Tensor], head: nn.Module) -> Tensor:
    """Go up through a decoder; the head stays float32 under autocast."""
    for up, skip in zip(ups, skips, strict=True):
        x = up(x, skip)
    with torch.autocast(x.device.type, enabled=False):
        field: Tensor = head(x.float())
    return field
