"""Passes over voxels (`kernels.c`) with their gradients: a few reads of memory where operators take many."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from mmln_pipeline.machine import native

LONGEST_ROW = 4096
"""Voxels of a row along the last axis that `kernels.c` has room for."""


def are_usable(*tensors: Tensor) -> bool:
    """Return whether there are kernels for these tensors: float32 on a CPU."""
    return native.is_usable(*tensors) and all(tensor.shape[-1] <= LONGEST_ROW for tensor in tensors)


def sample(image: Tensor, displacement: Tensor, origin: Sequence[int] = (0, 0, 0), spacing: int = 1) -> Tensor:
    """Sample an image at displaced positions; see :func:`mmln_pipeline.fields.warping.warp`.

    Parameters
    ----------
    image : Tensor, shape (B, C, I, J, K)
    displacement : Tensor, shape (B, 3, i, j, k)
    origin : sequence of int, default=(0, 0, 0)
    spacing : int, default=1

    Returns
    -------
    Tensor, shape (B, C, i, j, k)
        With gradients for both.
    """
    return _Sample.apply(image, displacement, tuple(origin), spacing)


def sample_corners(image: Tensor, displacement: Tensor, corners: Sequence[int]) -> Tensor:
    """Sample an image at corners of blocks; see :func:`mmln_pipeline.fields.warping.warp_corners`.

    Parameters
    ----------
    image : Tensor, shape (1, 1, I, J, K)
    displacement : Tensor, shape (1, 3, i, j, k)
    corners : sequence of int

    Returns
    -------
    Tensor, shape (1, len(corners), i, j, k)
        With a gradient for the displacement.
    """
    return _SampleCorners.apply(image, displacement, tuple(corners))


def roughness(field: Tensor) -> Tensor:
    """Return the sum of a field's squared forward differences.

    Parameters
    ----------
    field : Tensor, shape (B, C, I, J, K)

    Returns
    -------
    Tensor, scalar
    """
    return _Sum.apply("roughness", field, (field.shape[1],))


def log_volumes(displacement: Tensor, lowest: float) -> Tensor:
    """Return the sum of a map's squared log-Jacobians, by forward differences.

    Parameters
    ----------
    displacement : Tensor, shape (B, 3, I, J, K)
    lowest : float
        Smaller Jacobians count as this.

    Returns
    -------
    Tensor, scalar
    """
    return _Sum.apply("log_volumes", displacement, (float(lowest),))


def cell_volumes(displacement: Tensor) -> tuple[Tensor, Tensor]:
    """Return every cell's inverted volume and smallest determinant, as `fields.jacobian.cell_volumes` does.

    Parameters
    ----------
    displacement : Tensor, shape (B, 3, I, J, K)

    Returns
    -------
    inverted, smallest : Tensor, shape (B, I-1, J-1, K-1)
    """
    displacement = displacement.contiguous()
    cells = [n - 1 for n in displacement.shape[2:]]
    inverted, smallest = (displacement.new_empty(len(displacement), *cells) for _ in range(2))
    for u, a, b in zip(displacement, inverted, smallest, strict=True):
        native.call("cell_volumes", cells[0], u, u.shape[1:], a, b)
    return inverted, smallest


def global_correlation(fixed: Tensor, moved: Tensor, either: bool) -> Tensor:
    """Return Pearson's correlation of all samples, the mean over the batch.

    Parameters
    ----------
    fixed, moved : Tensor, shape (B, S, I, J, K)
    either : bool
        Count only samples of which either is above 0.

    Returns
    -------
    Tensor, scalar
        With a gradient for `moved`.
    """
    return _GlobalCorrelation.apply(fixed, moved, either)


def local_correlation(fixed: Tensor, moved: Tensor, windows: Sequence[int], flat: float) -> Tensor:
    """Return the mean squared correlation inside cubic windows round every voxel.

    Parameters
    ----------
    fixed, moved : Tensor, shape (B, S, I, J, K)
        Of S samples within each voxel.
    windows : sequence of int
        Odd edges in voxels, of which the mean counts.
    flat : float
        Product of two variances that is added to the denominator.

    Returns
    -------
    Tensor, scalar
        With a gradient for `moved`.
    """
    return _LocalCorrelation.apply(fixed, moved, tuple(windows), flat)


def filter_symmetric(images: Tensor, reach: Sequence[int], weights: Tensor, repeat: bool = False) -> Tensor:
    """Filter images along their three axes, one after the other.

    Parameters
    ----------
    images : Tensor, shape (M, I, J, K)
    reach : sequence of 3 int
        How far to either side, by the axis.
    weights : Tensor, shape (1 + max(reach),)
        By the distance.
    repeat : bool, default=False
        Repeat what is at the border beyond it, instead of nothing.

    Returns
    -------
    Tensor, shape (M, I, J, K)
    """
    images, weights = images.contiguous(), weights.contiguous()
    planes, size = images.shape[0] * images.shape[1], images.shape[1:]
    in_planes, filtered = torch.empty_like(images), torch.empty_like(images)
    native.call("filter_in_planes", planes, images, size, reach, weights, int(repeat), in_planes)
    native.call("filter_across_planes", planes, in_planes, size, reach, weights, int(repeat), filtered)
    return filtered


class _Sample(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, image: Tensor, displacement: Tensor, origin: tuple[int, ...], spacing: int) -> Tensor:
        image, displacement = image.contiguous(), displacement.contiguous()
        ctx.save_for_backward(image, displacement)
        ctx.where = origin, spacing
        out = image.new_empty(*image.shape[:2], *displacement.shape[2:])
        for v, u, row in zip(image, displacement, out, strict=True):
            native.call("sample", len(u[0]), v, v.shape[1:], len(v), u, u.shape[1:], origin, spacing, row)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, Tensor, None, None]:
        image, displacement = ctx.saved_tensors
        slope, u_slope = slope.contiguous(), torch.empty_like(displacement)
        image_slope = torch.zeros_like(image) if ctx.needs_input_grad[0] else None
        for n, (v, u, row, u_row) in enumerate(zip(image, displacement, slope, u_slope, strict=True)):
            arguments = v, v.shape[1:], len(v), u, u.shape[1:], *ctx.where, row, u_row
            if image_slope is None:
                native.call("sample_slope", len(u[0]), *arguments, None)
            else:
                native.call("sample_slope", len(u[0]), *arguments, scattered=image_slope[n])
        return image_slope, u_slope, None, None


class _SampleCorners(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, image: Tensor, displacement: Tensor, corners: tuple[int, ...]) -> Tensor:
        image, displacement = image.contiguous(), displacement.contiguous()
        ctx.save_for_backward(image, displacement)
        u = displacement[0]
        ctx.arguments = image[0, 0].shape, u, u.shape[1:], corners, len(corners)
        out = image.new_empty(1, len(corners), *u.shape[1:])
        native.call("sample_corners", len(u[0]), image, *ctx.arguments, out)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor) -> tuple[None, Tensor, None]:
        image, displacement = ctx.saved_tensors
        u_slope = torch.zeros_like(displacement)
        native.call(
            "sample_corners_slope", u_slope.shape[2], image, *ctx.arguments, slope.contiguous(), scattered=u_slope
        )
        return None, u_slope, None


class _Sum(torch.autograd.Function):
    """A sum over voxels whose slope is found on the way."""

    @staticmethod
    def forward(ctx: Any, name: str, field: Tensor, arguments: tuple[Any, ...]) -> Tensor:
        field = field.contiguous()
        slope = torch.zeros_like(field)
        total = sum(
            sum(native.call(name, len(u[0]), u, u.shape[1:], *arguments, scattered=row))
            for u, row in zip(field, slope, strict=True)
        )
        ctx.save_for_backward(slope)
        return field.new_tensor(total)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor) -> tuple[None, Tensor, None]:
        return None, ctx.saved_tensors[0] * slope, None


class _GlobalCorrelation(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, fixed: Tensor, moved: Tensor, either: bool) -> Tensor:
        fixed, moved = fixed.contiguous(), moved.contiguous()
        slope = torch.empty_like(moved)
        size = fixed.shape[-2] * fixed.shape[-1]
        planes = fixed[0].numel() // size
        scores = []
        for a, b, row in zip(fixed, moved, slope, strict=True):
            sums = torch.empty(planes, 6, dtype=torch.float64)
            native.call("correlation_sums", planes, a, b, size, int(either), sums)
            count, *moments = sums.sum(0).tolist()
            mean_a, mean_b, mean_aa, mean_bb, mean_ab = (moment / max(count, 1.0) for moment in moments)
            var_b = mean_bb - mean_b**2
            product = max((mean_aa - mean_a**2) * var_b, 1e-12)
            covariance, scale = mean_ab - mean_a * mean_b, product**-0.5
            by_b = -covariance * scale / var_b if product > 1e-12 else 0.0
            factors = (
                share / (max(count, 1.0) * len(fixed)) for share in (scale, by_b, -scale * mean_a - by_b * mean_b)
            )
            native.call("correlation_slope", planes, a, b, size, int(either), *factors, row)
            scores.append(covariance * scale)
        ctx.save_for_backward(slope)
        return fixed.new_tensor(sum(scores) / len(scores))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor) -> tuple[None, Tensor, None]:
        return None, ctx.saved_tensors[0] * slope, None


class _LocalCorrelation(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, fixed: Tensor, moved: Tensor, windows: tuple[int, ...], flat: float) -> Tensor:
        fixed, moved = fixed.contiguous(), moved.contiguous()
        slope = torch.empty_like(moved)
        samples, *size = fixed.shape[1:]
        voxels, plane = size[0] * size[1] * size[2], size[1] * size[2]
        n_scores, total = len(fixed) * len(windows) * voxels, 0.0
        for a, b, row in zip(fixed, moved, slope, strict=True):
            moments = a.new_empty(5, *size)
            native.call("moments", size[0], a, b, samples, voxels, plane, moments)
            slopes = a.new_zeros(3, *size)
            for window in windows:
                reach = [(min(window, n) - 1) // 2 for n in size]
                of_window, box = torch.empty_like(slopes), a.new_ones(1 + max(reach))
                sums = filter_symmetric(moments, reach, box)
                total += sum(native.call("correlate", size[0], sums, size, reach, float(flat), of_window))
                slopes += filter_symmetric(of_window, reach, box)
            factor = 1 / n_scores
            native.call("moments_slope", size[0], a, b, samples, voxels, plane, slopes, factor, row)
        ctx.save_for_backward(slope)
        return fixed.new_tensor(total / n_scores)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor) -> tuple[None, Tensor, None, None]:
        return None, ctx.saved_tensors[0] * slope, None, None
