"""ViT-V-Net: a vision transformer at the bottom of a V-Net. The transformer is MONAI's.

Reference: Chen et al., ViT-V-Net: vision transformer for unsupervised volumetric medical image registration, MIDL 2021
(arXiv:2104.06468).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from monai.networks.nets.vit import ViT
from torch import Tensor, nn

from mmln_pipeline.study.networks.convolutions import ConvBlock, UpBlock, field_head
from mmln_pipeline.study.networks.swin_pyramid import draw

ENCODER = (16, 32, 32)
"""Channels at full, half and quarter size."""
DECODER = (96, 48, 32, 32, 16)
"""Channels from a sixteenth of the size to all of it."""
BOTTOM = 512
"""Channels into which the transformer's tokens are turned."""
PATCH = 8
"""Edge of a token, in voxels of the quarter-size features."""


class ViTVNet(nn.Module):
    """ViT-V-Net.

    Parameters
    ----------
    grid : sequence of 3 int
        Size of the images, multiples of 32: the tokens' places are learned.
    hidden, layers, heads, mlp : int
        Of the transformer.
    """

    def __init__(
        self, grid: Sequence[int], hidden: int = 252, layers: int = 12, heads: int = 12, mlp: int = 3072
    ) -> None:
        super().__init__()
        self.tokens = [n // 32 for n in grid]
        inputs = (2, *ENCODER[:-1])
        self.encoder = nn.ModuleList(
            nn.Sequential(ConvBlock(i, o), ConvBlock(o, o)) for i, o in zip(inputs, ENCODER, strict=True)
        )
        self.transformer = ViT(ENCODER[-1], [n // 4 for n in grid], PATCH, hidden, mlp, layers, heads)
        self.bottom = nn.Sequential(nn.Conv3d(hidden, BOTTOM, 3, padding=1), nn.LeakyReLU(0.2))
        skips = (ENCODER[2], ENCODER[2], *ENCODER[::-1])
        ups = zip((BOTTOM, *DECODER[:-1]), DECODER, skips, strict=True)
        self.ups = nn.ModuleList(UpBlock(*sizes) for sizes in ups)
        self.head = field_head(DECODER[-1])

    def forward(self, pair: Tensor) -> Tensor:
        """Predict a field in voxels, shape (B, 3, I, J, K), from the stacked pair, (B, 2, I, J, K)."""
        maps: list[Tensor] = []
        for block in self.encoder:
            maps.append(block(F.max_pool3d(maps[-1], 2) if maps else pair))
        tokens, _ = self.transformer(maps[-1])
        bottom = self.bottom(tokens.movedim(1, 2).unflatten(2, self.tokens))  # (B, n, C) -> (B, C, i, j, k)
        for _ in range(2):
            maps.append(F.max_pool3d(maps[-1], 2))
        return draw(bottom, self.ups, maps[::-1], self.head)
