"""Random changes of one training volume: its contrast, a bias field, its shape, a way towards another brain."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from scipy.ndimage import gaussian_filter
from torch import Tensor

from mmln_pipeline.fields.integration import exponentiate
from mmln_pipeline.fields.scales import resize_field, resize_image
from mmln_pipeline.fields.warping import warp
from mmln_pipeline.images.volumes import normalize_intensity
from mmln_pipeline.training.config import DataConfig

KNOT = 8
"""Voxels between the knots of a smooth random field."""
SMOOTH = 2
"""Standard deviation, in knots, of the Gaussian that smooths it."""


def augment(image: Tensor, labels: Tensor, config: DataConfig, generator: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Change a volume at random, as far as the configuration says.

    Parameters
    ----------
    image : Tensor, shape (1, 1, I, J, K)
        In [0, 1].
    labels : Tensor, shape (1, C, I, J, K)
        C is 1, or 0 without labels; they follow the change of shape.
    config : DataConfig
        ``gamma``, ``bias`` and ``warp``; what is 0 draws nothing.
    generator : numpy.random.Generator

    Returns
    -------
    tuple of 2 Tensor
        Image and labels of the given shapes.
    """
    shape = image.shape[2:]
    if config.gamma:
        image = image ** float(np.exp(generator.normal(0, config.gamma)))
    if config.bias:
        drift = resize_image(_smooth_noise(1, shape, generator).to(image.device), shape)
        shaded = (image * torch.exp(config.bias * drift)).cpu().numpy()
        image = torch.from_numpy(normalize_intensity(shaded)).to(image.device)
    if config.warp:
        velocity = _smooth_noise(3, shape, generator).to(image.device) * config.warp / KNOT
        image, labels = deform(image, labels, velocity)
    return image, labels


def deform(image: Tensor, labels: Tensor, velocity: Tensor) -> tuple[Tensor, Tensor]:
    """Warp a volume by the exponential of a velocity field.

    Parameters
    ----------
    image : Tensor, shape (1, 1, I, J, K)
    labels : Tensor, shape (1, C, I, J, K)
        C is 1, or 0 without labels.
    velocity : Tensor, shape (1, 3, i, j, k)
        On any grid over the same volume, in its own voxels.

    Returns
    -------
    tuple of 2 Tensor
        Image and labels of the given shapes.
    """
    displacement = resize_field(exponentiate(velocity), image.shape[2:])
    if labels.shape[1]:
        labels = warp(labels, displacement, mode="nearest").round().to(labels.dtype)
    return warp(image, displacement), labels


def _smooth_noise(channels: int, shape: Sequence[int], generator: np.random.Generator) -> Tensor:
    """Return smooth Gaussian noise of standard deviation 1 on a coarse grid, shape (1, channels, i, j, k)."""
    noise = generator.standard_normal((1, channels, *(-(-n // KNOT) for n in shape)), dtype=np.float32)
    smooth = gaussian_filter(noise, (0, 0, SMOOTH, SMOOTH, SMOOTH), mode="wrap")
    return torch.from_numpy(smooth / smooth.std())
