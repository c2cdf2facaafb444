"""Training losses: similarity (global and local correlation), smoothness, and the level totals (paper eq. 2-8)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from mmln_pipeline.fields import kernels
from mmln_pipeline.fields.jacobian import determinant, gradient

SIMILARITIES = ("global", "local", "local+global")
FLAT = 1e-7
"""Product of two window variances under which a window counts as flat: images in [0, 1] stored in 8 bits have
noise of variance 1e-6, so background scores 0 and cannot explode."""
SMALLEST_VOLUME = 0.01
"""Smaller Jacobians, folds too, count as this in the logarithm."""


def global_correlation_loss(fixed: Tensor, moved: Tensor, weight: Tensor | None = None) -> Tensor:
    """Return one minus Pearson's correlation over the whole image grid.

    Parameters
    ----------
    fixed, moved : Tensor, shape (B, S, I, J, K)
        Images of S samples within each voxel.
    weight : Tensor, shape (B, S, I, J, K), optional
        What each sample counts; all ones by default.

    Returns
    -------
    Tensor, scalar
        Mean over the batch of ``1 - CorrCoef``, 0 (identical up to scale) to 2.

    References
    ----------
    Paper eq. 2-4.
    """
    a, b = fixed.float().flatten(1), moved.float().flatten(1)
    w = torch.ones_like(a) if weight is None else weight.float().flatten(1)
    w = w / w.sum(1, keepdim=True).clamp(min=1e-6)
    a = a - (w * a).sum(1, keepdim=True)
    b = b - (w * b).sum(1, keepdim=True)
    covariance, var_a, var_b = ((w * product).sum(1) for product in (a * b, a * a, b * b))
    return 1 - (covariance / (var_a * var_b).clamp(min=1e-12).sqrt()).mean()


def local_correlation(fixed: Tensor, moved: Tensor, window: int = 7, weight: Tensor | None = None) -> Tensor:
    """Return the squared correlation coefficient inside cubic windows.

    Parameters
    ----------
    fixed, moved : Tensor, shape (B, 1, I, J, K)
        Images in [0, 1].
    window : int, default=7
        Edge of the window in voxels: odd, or twice an odd number of at least 3.
    weight : Tensor, shape (B, 1, I, J, K), optional
        What each voxel counts within a window; all ones by default.

    Returns
    -------
    Tensor, shape (B, 1, ceil(I/s), ceil(J/s), ceil(K/s))
        0 to 1; 0 where either image is flat. One window round every voxel (s = 1); windows of 9, 15, 21, ... voxels lie
        round every third one (s = 3), even ones round every block of two (s = 2), which tells the same and costs a
        fraction.
    """
    stride = _stride(window)
    return _correlation(_pooled(_moments(fixed, moved, weight), stride), window // stride)


def local_correlation_loss(
    fixed: Tensor, moved: Tensor, window: int | Sequence[int] = 7, weight: Tensor | None = None
) -> Tensor:
    """Return one minus the mean local squared correlation.

    Parameters
    ----------
    fixed, moved : Tensor, shape (B, S, I, J, K)
        Images in [0, 1]: one sample of every voxel, or S within it, all of which count in its windows.
    window : int or sequence of int, default=7
        Edge of the window in voxels, see :func:`local_correlation`; of several windows, the mean counts.
    weight : Tensor, shape (B, S, I, J, K), optional
        What each sample counts, within windows, and a voxel as their centre: 0 where a lesion must not steer; all ones
        by default.

    Returns
    -------
    Tensor, scalar
    """
    windows = (window,) if isinstance(window, int) else tuple(window)
    strides = [_stride(w) for w in windows]
    fixed, moved = fixed.float(), moved.float()
    if weight is None and set(strides) == {1} and kernels.are_usable(fixed, moved) and not fixed.requires_grad:
        return 1 - kernels.local_correlation(fixed, moved, windows, FLAT)
    moments = _moments(fixed, moved, weight)
    pooled = {stride: _pooled(moments, stride) for stride in set(strides)}  # the costly part, shared by windows
    scores = (_correlation(pooled[s], w // s) for w, s in zip(windows, strides, strict=True))
    weights = (None if weight is None else pooled[s][0] for s in strides)
    return torch.stack([1 - _mean(score, w) for score, w in zip(scores, weights, strict=True)]).mean()


def _moments(fixed: Tensor, moved: Tensor, weight: Tensor | None) -> list[Tensor]:
    """Return what windows average: both images, their squares and product, weighted and behind the weight if any."""
    a, b = fixed.float(), moved.float()
    moments = [a, b, a * a, b * b, a * b]
    if weight is not None:
        moments = [weight.float(), *(moment * weight for moment in moments)]
    return moments if a.shape[1] == 1 else [moment.mean(1, keepdim=True) for moment in moments]


def _pooled(moments: list[Tensor], stride: int) -> list[Tensor]:
    """Return the moments' means over blocks."""
    return moments if stride == 1 else [_pool(moment, stride) for moment in moments]


def _correlation(moments: list[Tensor], window: int) -> Tensor:
    """Return the squared correlation coefficient in windows of as many voxels, or blocks."""
    *weight, mean_a, mean_b, mean_aa, mean_bb, mean_ab = (_BoxMean.apply(moment, window) for moment in moments)
    if weight:
        counted = weight[0].clamp(min=1e-4)
        mean_a, mean_b, mean_aa, mean_bb, mean_ab = (m / counted for m in (mean_a, mean_b, mean_aa, mean_bb, mean_ab))
    var_a = (mean_aa - mean_a * mean_a).clamp(min=0)
    var_b = (mean_bb - mean_b * mean_b).clamp(min=0)
    covariance = mean_ab - mean_a * mean_b
    return covariance * covariance / (var_a * var_b + FLAT)


def _mean(score: Tensor, weight: Tensor | None) -> Tensor:
    if weight is None:
        return score.mean(dtype=torch.float64).float()  # single precision would tell how many threads added up
    total = weight.sum(dtype=torch.float64).clamp(min=1.0)
    return ((score * weight).sum(dtype=torch.float64) / total).float()


def _stride(window: int) -> int:
    """Return the distance of a window's centres: what divides it into an odd number of at least 3 parts."""
    return next((stride for stride in (3, 2) if window % (2 * stride) == stride and window >= 3 * stride), 1)


def _pool(image: Tensor, size: int) -> Tensor:
    """Average over blocks; the last ones average what there is."""
    return F.avg_pool3d(image, size, ceil_mode=True, count_include_pad=False)


def similarity_loss(
    fixed: Tensor,
    moved: Tensor,
    kind: str = "global",
    window: int | Sequence[int] = 7,
    weight: Tensor | None = None,
    share: float = 1.0,
) -> Tensor:
    """Return the similarity loss that a configuration names.

    Parameters
    ----------
    fixed, moved : Tensor, shape (B, S, I, J, K)
        Images in [0, 1], of S samples within each voxel.
    kind : {"global", "local", "local+global"}, default="global"
        Pearson's correlation over the grid (the paper's), the squared one in windows, or the sum of both losses, the
        global one where either image is above 0: windows see every edge alike, and the whole brain tells which of them
        part tissues.
    window : int or sequence of int, default=7
        Edge of the local window in voxels; of several windows, the mean counts.
    weight : Tensor, shape (B, S, I, J, K), optional
        What each sample counts; all ones by default.
    share : float, default=1
        What the global loss counts in the sum.

    Returns
    -------
    Tensor, scalar

    Raises
    ------
    ValueError
        When `kind` is none of these.
    """
    if kind == "global":
        return global_correlation_loss(fixed, moved, weight)
    if kind == "local":
        return local_correlation_loss(fixed, moved, window, weight)
    if kind == "local+global":
        if weight is None and kernels.are_usable(fixed, moved) and not fixed.requires_grad:
            local = local_correlation_loss(fixed, moved, window)
            return local + share * (1 - kernels.global_correlation(fixed, moved, either=True))
        either = (fixed > 0) | (moved.detach() > 0)
        brain = either if weight is None else either * weight
        local = local_correlation_loss(fixed, moved, window, weight)
        return local + share * global_correlation_loss(fixed, moved, brain)
    raise ValueError(f"similarity: expected one of {', '.join(map(repr, SIMILARITIES))}, found {kind!r}")


def squared_difference_loss(fixed: Tensor, moved: Tensor, weight: Tensor | None = None) -> Tensor:
    """Return the mean squared difference of two images of one unit.

    Parameters
    ----------
    fixed, moved : Tensor, shape (B, 1, I, J, K)
    weight : Tensor, shape (B, 1, I, J, K), optional
        What each voxel counts; all ones by default.

    Returns
    -------
    Tensor, scalar
        In the unit's square.
    """
    return _mean((fixed.float() - moved.float()).square(), weight)


def smoothness_loss(velocity: Tensor) -> Tensor:
    """Return the mean squared norm of a velocity field's gradient, in voxel units.

    Parameters
    ----------
    velocity : Tensor, shape (B, 3, I, J, K)
        Voxels per unit time, so that the three axes weigh alike.

    Returns
    -------
    Tensor, scalar
        Mean over voxels of the sum of the nine squared forward differences.

    References
    ----------
    Paper eq. 5, without its factor ``k / 2**(L - p)``, which :func:`level_loss` applies.
    """
    velocity = velocity.float()
    if kernels.are_usable(velocity):
        return kernels.roughness(velocity) / (velocity.numel() / velocity.shape[1])
    return gradient(velocity).square().sum(dim=(1, 2)).mean()


def volume_loss(displacement: Tensor) -> Tensor:
    """Return the mean squared logarithm of a map's volume change.

    It holds back what SDlogJ measures and leaves a deformation that keeps volumes free to be as large as it needs.

    Parameters
    ----------
    displacement : Tensor, shape (B, 3, I, J, K)
        Voxels.

    Returns
    -------
    Tensor, scalar
        Mean over voxels of ``log(J) ** 2``, J by forward differences and not below 0.01.

    References
    ----------
    Leow et al., Statistical properties of Jacobian maps, IEEE TMI 2007 (the penalty on log J of both directions);
    Burger, Modersitzki and Ruthotto, A hyperelastic regularization energy, SIAM J. Sci. Comput. 2013.
    """
    displacement = displacement.float()
    if kernels.are_usable(displacement):
        return kernels.log_volumes(displacement, SMALLEST_VOLUME) / (displacement.numel() / 3)
    along = gradient(displacement) + torch.eye(3, device=displacement.device).view(1, 3, 3, 1, 1, 1)
    rows = [row.unbind(1) for row in along.unbind(1)]
    return determinant(*rows).clamp(min=SMALLEST_VOLUME).log().square().mean()


def soft_dice_loss(fixed: Tensor, moved: Tensor, weight: Tensor | None = None) -> Tensor:
    """Return one minus the mean soft Dice of structures, for the semi-supervised model.

    Parameters
    ----------
    fixed, moved : Tensor, shape (B, C, I, J, K)
        Share of each structure in every voxel, 0 to 1.
    weight : Tensor, shape (B, 1, I, J, K), optional
        What each voxel counts; all ones by default.

    Returns
    -------
    Tensor, scalar
        Mean over the structures that either side has; 0 (all agree) to 1.

    References
    ----------
    Balakrishnan et al., VoxelMorph, IEEE TMI 2019, eq. 7 to 9; Milletari et al., V-Net, 3DV 2016.
    """
    fixed, moved = fixed.float(), moved.float()
    if weight is not None:
        fixed, moved = weight * fixed, weight * moved
    grid = (2, 3, 4)
    total = fixed.square().sum(grid, dtype=torch.float64) + moved.square().sum(grid, dtype=torch.float64)
    present = total > 1.0  # less than one voxel is the edge of something outside
    score = 2 * (fixed * moved).sum(grid, dtype=torch.float64) / total.clamp(min=1.0)
    return (1 - (score * present).sum() / present.sum().clamp(min=1)).float()


def level_loss(
    level: int,
    levels: int,
    similarity: Tensor,
    smoothness: Tensor,
    smoothing: float,
    branch: Tensor | float = 0.0,
) -> Tensor:
    """Return a level's total loss.

    Parameters
    ----------
    level, levels : int
        Level p, from 1 (coarsest), of L.
    similarity : Tensor, scalar
        Of the 3-D branch.
    smoothness : Tensor, scalar
        :func:`smoothness_loss` of the 3-D branch's velocity.
    smoothing : float
        Regularisation parameter k.
    branch : Tensor or float, default=0
        The second branch's similarity, weighted: alpha or beta times the slice branch's, or theta times the core's.

    Returns
    -------
    Tensor, scalar

    References
    ----------
    Paper eq. 5-8.
    """
    return similarity + smoothing / 2 ** (levels - level) * smoothness + branch


class _BoxMean(torch.autograd.Function):
    """Average over a cubic window; the border averages what there is, a small grid shrinks the window.

    Sums of shifted copies take a CPU a fraction of the pooling operator's time, and the gradient is such a sum too.
    """

    @staticmethod
    def forward(ctx: Any, image: Tensor, window: int) -> Tensor:
        reaches = [(min(window, n) - 1) // 2 for n in image.shape[2:]]
        ctx.reaches = reaches
        return _box_sum(image, reaches).div_(_box_counts(image, reaches))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor, None]:
        return _box_sum(slope / _box_counts(slope, ctx.reaches), ctx.reaches), None


def _box_sum(image: Tensor, reaches: Sequence[int]) -> Tensor:
    """Add up the neighbours of every voxel, axis by axis, as far as each axis reaches to either side."""
    for axis, reach in enumerate(reaches, 2):
        total = image.clone()
        for shift in range(1, reach + 1):
            inner = image.shape[axis] - shift
            total.narrow(axis, shift, inner).add_(image.narrow(axis, 0, inner))
            total.narrow(axis, 0, inner).add_(image.narrow(axis, shift, inner))
        image = total
    return image


def _box_counts(image: Tensor, reaches: Sequence[int]) -> Tensor:
    """Return how many voxels of the grid each voxel's window holds."""
    counts = image.new_ones(1)
    for axis, reach in enumerate(reaches, 2):
        place = torch.arange(image.shape[axis], device=image.device)
        along = 1 + place.clamp(max=reach) + place.flip(0).clamp(max=reach)
        counts = counts * along.view([-1 if a == axis else 1 for a in range(5)])
    return counts
