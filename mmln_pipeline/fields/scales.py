"""From scale to scale: halve, resize, fold into channels, smooth.

Voxel ``j`` of a grid half the size has its centre at ``2 j + 0.5`` of the finer grid, for pooling and for interpolation
alike.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from mmln_pipeline.fields import kernels


def halve_shape(shape: Sequence[int]) -> tuple[int, ...]:
    """Return the size of the grid of half a grid's size."""
    return tuple((n + 1) // 2 for n in shape)


def downsample(image: Tensor) -> Tensor:
    """Halve an image by averaging blocks of 2 x 2 x 2 voxels (the anti-aliased trilinear half).

    Parameters
    ----------
    image : Tensor, shape (B, C, I, J, K)
        An odd size keeps its last voxel by averaging what there is of the block.

    Returns
    -------
    Tensor, shape (B, C, ceil(I/2), ceil(J/2), ceil(K/2))
    """
    return F.avg_pool3d(image, 2, ceil_mode=True, count_include_pad=False)


def resize_image(image: Tensor, shape: Sequence[int]) -> Tensor:
    """Resample an image to another grid size over the same field of view, trilinearly.

    Parameters
    ----------
    image : Tensor, shape (B, C, I, J, K)
    shape : sequence of int
        New size (i, j, k).

    Returns
    -------
    Tensor, shape (B, C, i, j, k)
    """
    if tuple(image.shape[2:]) == tuple(shape):
        return image
    return F.interpolate(image, size=tuple(shape), mode="trilinear", align_corners=False)


def resize_field(field: Tensor, shape: Sequence[int]) -> Tensor:
    """Resample a displacement or velocity field and rescale its voxel units, axis by axis.

    Parameters
    ----------
    field : Tensor, shape (B, 3, I, J, K)
        Voxels of its own grid.
    shape : sequence of int
        New size (i, j, k).

    Returns
    -------
    Tensor, shape (B, 3, i, j, k)
        Voxels of the new grid.
    """
    if tuple(field.shape[2:]) == tuple(shape):
        return field
    ratio = [new / old for new, old in zip(shape, field.shape[2:], strict=True)]
    scaled = [part * r for part, r in zip(field.split(1, 1), ratio, strict=True)]  # numbers need not go to a GPU
    return resize_image(torch.cat(scaled, 1), shape)


def fold(image: Tensor) -> Tensor:
    """Fold blocks of 2 x 2 x 2 voxels into channels.

    Parameters
    ----------
    image : Tensor, shape (B, C, I, J, K)
        An odd size is filled up by repeating the border.

    Returns
    -------
    Tensor, shape (B, 8 C, ceil(I/2), ceil(J/2), ceil(K/2))
    """
    odd = [n % 2 for n in image.shape[:1:-1]]  # the last axis first, as padding wants it
    if any(odd):
        image = F.pad(image, [side for n in odd for side in (0, n)], mode="replicate")
    for dim in (2, 4, 6):
        image = image.unflatten(dim, (-1, 2))
    return image.permute(0, 1, 3, 5, 7, 2, 4, 6).flatten(1, 4)  # (B, C, i, 2, j, 2, k, 2) -> (B, C 8, i, j, k)


def smooth(field: Tensor, sigma: float, half_width: int | None = None) -> Tensor:
    """Smooth each channel by a Gaussian; beyond its border a field goes on as there.

    Parameters
    ----------
    field : Tensor, shape (B, C, I, J, K)
    sigma : float
        Voxels.
    half_width : int, optional
        Where the Gaussian is cut off, voxels (default: 2.5 `sigma`).

    Returns
    -------
    Tensor, shape (B, C, I, J, K)
    """
    reach = math.ceil(2.5 * sigma) if half_width is None else half_width
    offset = torch.arange(-reach, reach + 1, device=field.device)
    kernel = torch.exp(-0.5 * (offset / sigma) ** 2)
    kernel = kernel / kernel.sum()
    if kernels.are_usable(field) and not field.requires_grad:
        filtered = kernels.filter_symmetric(field.flatten(0, 1), [reach] * 3, kernel[reach:], repeat=True)
        return filtered.unflatten(0, field.shape[:2])
    channels = field.flatten(0, 1)[:, None]
    for axis in range(3):
        width, pad = [1, 1, 1], [0] * 6
        width[axis] = len(kernel)
        pad[4 - 2 * axis] = pad[5 - 2 * axis] = reach
        channels = F.conv3d(F.pad(channels, pad, mode="replicate"), kernel.view(1, 1, *width))
    return channels[:, 0].unflatten(0, field.shape[:2])


def dilate(mask: Tensor, radius: int) -> Tensor:
    """Grow a mask by a cube.

    Parameters
    ----------
    mask : Tensor, shape (1, 1, I, J, K)
        1 inside, 0 outside.
    radius : int
        Voxels to either side.

    Returns
    -------
    Tensor, shape (1, 1, I, J, K)
    """
    if kernels.are_usable(mask):
        return (kernels.filter_symmetric(mask[0], [radius] * 3, mask.new_ones(radius + 1)) > 0).float()[None]
    for axis in range(3):  # a box is separable
        width, pad = [1, 1, 1], [0, 0, 0]
        width[axis], pad[axis] = 2 * radius + 1, radius
        mask = F.max_pool3d(mask, width, stride=1, padding=pad)
    return mask
