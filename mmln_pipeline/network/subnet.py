"""The registration subnet of one level (section 3.4), in three dimensions or in two."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmln_pipeline.fields.scales import resize_image
from mmln_pipeline.fields.windows import crop
from mmln_pipeline.network.convolution import Convolution


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
        conv = Convolution if dims == 3 else nn.Conv2d
        up = nn.ConvTranspose3d if dims == 3 else nn.ConvTranspose2d
        self.dims = dims
        self.velocity_range = velocity_range
        self.encode = nn.Sequential(
            conv(in_channels, channels, 3, padding=1, bias=False),
            nn.LeakyReLU(0.2, inplace=True),
            conv(channels, channels, 3, padding=1, bias=False),
        )
        self.down = conv(channels, channels, 3, stride=stride, padding=1, bias=False)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.LeakyReLU(0.2),
                conv(channels, channels, 3, padding=1, bias=False),
                nn.LeakyReLU(0.2, inplace=True),
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
            y = F.leaky_relu(block(y).add_(y), 0.2, inplace=True)
        y = self.up(y)
        y = crop(y, tuple(slice(0, n) for n in skip.shape[2:]))  # at an odd size the transposed convolution adds one
        features = F.leaky_relu(self.decode(torch.cat([y, skip], dim=1)), 0.2, inplace=True)
        with torch.autocast(x.device.type, enabled=False):
            velocity = self.velocity_range * F.softsign(self.head(features.float())).contiguous()
        return velocity, features
