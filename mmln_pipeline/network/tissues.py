"""Maps of tissue from an image's own brightness, soft shares and depth: labels that need no labelling."""

from __future__ import annotations

import numpy as np
import SimpleITK as sitk
import torch
from numpy.typing import NDArray
from scipy.cluster.vq import kmeans2
from torch import Tensor

CLASSES = 3
"""In T1w brains: cerebrospinal fluid, grey matter, white matter."""
SAMPLES = 100_000
"""About so many voxels of the brain, evenly spread, tell the classes' brightness."""
REACH = 8
"""Voxels from the tissue's surface, on either side, to which depth is measured; an even number."""


def tissue_maps(image: Tensor) -> Tensor:
    """Return how much every voxel belongs to each of three classes of brightness.

    Parameters
    ----------
    image : Tensor, shape (B, 1, I, J, K)
        In [0, 1]; the brain is above 0.

    Returns
    -------
    Tensor, shape (B, 3, I, J, K)
        From dark to bright, 0 to 1; they sum to 1 in the brain and are 0 outside it. All 0 where an image has fewer
        than three kinds of brightness.

    Notes
    -----
    The classes' means come from k-means; a voxel's shares are those of three Gaussians of one width, the standard
    deviation within the classes.
    """
    return torch.cat([_maps_of_one(one) for one in image.float().split(1)])


def depth_map(tissues: Tensor) -> Tensor:
    """Return how deep every voxel lies in tissue, measured from its border with fluid or background.

    Parameters
    ----------
    tissues : Tensor, shape (1, 3, I, J, K)
        What :func:`tissue_maps` returns.

    Returns
    -------
    Tensor, shape (1, 1, I, J, K)
        Signed Euclidean distance in voxels, positive in tissue, limited to `REACH` on either side. All 0 where an
        image has no such border.
    """
    tissue = (tissues[0, 1:].sum(0) > 0.5).cpu().numpy()
    if tissue.all() or not tissue.any():
        return torch.zeros_like(tissues[:, :1])
    depth = (_distance_to(~tissue) - _distance_to(tissue)).clip(-REACH, REACH)
    return torch.from_numpy(depth).to(tissues.device)[None, None]


def _distance_to(voxels: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Return each voxel's distance in voxels to the nearest marked one: SciPy's does the same on one thread."""
    signed = sitk.SignedMaurerDistanceMap(
        sitk.GetImageFromArray(voxels.astype(np.uint8)), squaredDistance=False, useImageSpacing=False
    )
    distance: NDArray[np.float32] = sitk.GetArrayFromImage(signed)
    return distance.clip(min=0)


def _maps_of_one(image: Tensor) -> Tensor:
    brain = image > 0
    values = image[brain]
    sample = values[:: max(1, len(values) // SAMPLES)].cpu()
    if len(sample.unique()) < CLASSES:
        return image.new_zeros(1, CLASSES, *image.shape[2:])
    dark, bright = sample.quantile(sample.new_tensor([0.02, 0.98]))
    start = dark + (torch.arange(CLASSES) + 0.5) / CLASSES * (bright - dark)
    observed = sample.numpy()[:, None]
    means, nearest = kmeans2(observed, start.numpy()[:, None], minit="matrix", iter=30)
    width = max(1e-3, float((observed - means[nearest]).std()))
    centres = image.new_tensor(means).view(1, CLASSES, 1, 1, 1)
    return torch.softmax(-((image - centres) ** 2) / (2 * width**2), dim=1) * brain
