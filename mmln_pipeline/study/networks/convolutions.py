"""The convolutional parts that networks of several peers share."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

FIELD_DEVIATION = 1e-5
"""Of the last convolution's weights before training: fields begin near zero, as in VoxelMorph."""


class ConvBlock(nn.Sequential):
    """Convolution, instance normalisation, leaky rectifier."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(
            nn.Conv3d(inputs, outputs, 3, padding=1, bias=False), nn.InstanceNorm3d(outputs), nn.LeakyReLU(0.2)
        )


class UpBlock(nn.Module):
    """Double a feature map, join it with the encoder's of that size, and convolve twice."""

    def __init__(self, inputs: int, outputs: int, skip: int) -> None:
        super().__init__()
        self.convolve = nn.Sequential(ConvBlock(inputs + skip, outputs), ConvBlock(outputs, outputs))

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        x = F.interpolate(x, size=skip.shape[2:], mode="trilinear", align_corners=False)
        convolved: Tensor = self.convolve(torch.cat([x, skip], 1))
        return convolved


def field_head(inputs: int) -> nn.Conv3d:
    """Make the convolution that predicts a field from features."""
    return start_near_zero(nn.Conv3d(inputs, 3, 3, padding=1))


def start_near_zero(head: nn.Conv3d) -> nn.Conv3d:
    """Give a last convolution weights near zero and no bias."""
    nn.init.normal_(head.weight, std=FIELD_DEVIATION)
    if head.bias is not None:
        nn.init.zeros_(head.bias)
    return head
