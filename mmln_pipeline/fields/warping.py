"""Displacement fields on voxel grids: warp and compose.

One convention everywhere. A displacement ``u`` has shape (B, 3, I, J, K), its components are in voxels of its own
grid in array-axis order, and it maps by pull: ``moved(x) = M(x + u(x))``. Everything here is float32: half precision
loses sub-voxel accuracy in repeated composition.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from mmln_pipeline.fields import kernels


def voxel_grid(shape: Sequence[int], device: torch.device | None = None) -> Tensor:
    """Return the voxel coordinates of a grid.

    Parameters
    ----------
    shape : sequence of int
        Grid size (I, J, K).
    device : torch.device, optional
        Where the tensor lives (default: CPU).

    Returns
    -------
    Tensor, shape (3, I, J, K)
        Coordinates in voxels, float32.
    """
    axes = [torch.arange(n, dtype=torch.float32, device=device) for n in shape]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"))


def warp(
    image: Tensor,
    displacement: Tensor,
    mode: str = "bilinear",
    origin: Sequence[int] = (0, 0, 0),
    spacing: int = 1,
) -> Tensor:
    """Sample an image, or a field, at displaced positions.

    Parameters
    ----------
    image : Tensor, shape (B, C, I, J, K)
        What is sampled.
    displacement : Tensor, shape (B, 3, i, j, k)
        Offsets in voxels of `image`'s grid.
    mode : {"bilinear", "nearest"}, default="bilinear"
        Interpolation (trilinear in 3-D); positions outside take the nearest border voxel.
    origin : sequence of int, default=(0, 0, 0)
        Voxel of `image` at which the displacement's grid begins, when that is a window of it.
    spacing : int, default=1
        Voxels of `image` from one voxel of the displacement's grid to the next.

    Returns
    -------
    Tensor, shape (B, C, i, j, k)
        ``image(spacing x + origin + u(x))``, float32.
    """
    image, displacement = image.float(), displacement.float()
    if mode == "bilinear" and len(image) == len(displacement) and kernels.are_usable(image, displacement):
        return kernels.sample(image, displacement, origin, spacing)
    components: list[Tensor] = []
    for n, first, offset in zip(image.shape[2:], origin, displacement.unbind(1), strict=True):
        axis, scale = len(components), 2.0 / max(n - 1, 1)
        place = torch.arange(offset.shape[1 + axis], dtype=torch.float32, device=offset.device) * spacing + first
        place = (place * scale - 1.0).view([-1 if a == axis else 1 for a in range(3)])
        components.append(torch.add(place, offset, alpha=scale))
    normalized = torch.stack(components[::-1], -1)  # grid_sample wants the last axis first
    return _grid_sample(image, normalized, mode)


def warp_corners(image: Tensor, displacement: Tensor, corners: Sequence[int]) -> Tensor:
    """Sample an image of twice the displacement's size at some of the eight voxels of each block.

    Parameters
    ----------
    image : Tensor, shape (1, 1, I, J, K)
    displacement : Tensor, shape (1, 3, ceil(I/2), ceil(J/2), ceil(K/2))
        Voxels of its own grid.
    corners : sequence of int
        Which of the channels that :func:`mmln_pipeline.fields.scales.fold` makes of a block's voxels, 0 to 7.

    Returns
    -------
    Tensor, shape (1, len(corners), ceil(I/2), ceil(J/2), ceil(K/2))
        ``fold(warp(image, resize_field(displacement, (I, J, K))))[:, corners]``, for a fraction of the work.
    """
    if kernels.are_usable(image, displacement):
        return kernels.sample_corners(image, displacement, corners)
    planes = [_quarter(2 * displacement, 2, side) for side in (0, 1)]
    lines = [_quarter(plane, 3, side) for plane in planes for side in (0, 1)]
    samples = []
    for corner in corners:
        origin = corner >> 2, corner >> 1 & 1, corner & 1
        there = _quarter(lines[corner >> 1], 4, corner & 1)
        samples.append(warp(image, there, origin=origin, spacing=2))
    return torch.cat(samples, 1)


def compose(outer: Tensor, inner: Tensor, origin: Sequence[int] = (0, 0, 0)) -> Tensor:
    """Return the displacement of ``outer(inner(x))``.

    Parameters
    ----------
    outer : Tensor, shape (B, 3, I, J, K)
        Displacement applied second, in voxels.
    inner : Tensor, shape (B, 3, i, j, k)
        Displacement applied first; its grid is `outer`'s, or a window of it that begins at `origin`.
    origin : sequence of int, default=(0, 0, 0)
        See :func:`warp`.

    Returns
    -------
    Tensor, shape (B, 3, i, j, k)
        Displacement in voxels on `inner`'s grid.
    """
    return inner + warp(outer, inner, origin=origin)


def _quarter(field: Tensor, dim: int, side: int) -> Tensor:
    """Return a field a quarter of a voxel before (side 0) or behind (side 1) every voxel, linearly interpolated."""
    inner = field.shape[dim] - 1
    border, neighbours = field.narrow(dim, side * inner, 1), field.narrow(dim, side, inner)
    return field.lerp(torch.cat([neighbours, border] if side else [border, neighbours], dim), 0.25)


def _grid_sample(image: Tensor, position: Tensor, mode: str) -> Tensor:
    """Sample at normalized positions; on a CPU, where only batches run in parallel, in as many slabs as threads."""
    slabs = torch.get_num_threads() if image.device.type == "cpu" and len(image) == 1 else 1
    rows = position.shape[1:3]
    if slabs == 1 or math.prod(rows) % slabs:
        return F.grid_sample(image, position, mode=mode, padding_mode="border", align_corners=True)
    parts = position[0].view(slabs, 1, -1, *position.shape[3:])  # (1, I, J, K, 3) -> (slabs, 1, I J / slabs, K, 3)
    sampled = F.grid_sample(
        image.expand(slabs, *image.shape[1:]), parts, mode=mode, padding_mode="border", align_corners=True
    )
    return sampled.movedim(0, 1).flatten(1, 3).unflatten(1, rows)[None]
