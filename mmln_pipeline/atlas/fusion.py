"""Joint label fusion: several atlases' labels, brought to one image, vote for its labels."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

PATCH_RADIUS = 2
"""Patches are cubes of 5 voxels along each axis."""
SEARCH_RADIUS = 1
"""How far, in voxels along each axis, the patch of an atlas may lie from the voxel that it votes for."""
ALPHA = 0.1
"""Added to the diagonal of the errors' matrix, so that no weight rests on noise."""
CHUNK_BYTES = 2**26
"""Memory for the patches of the voxels that are worked on at once."""
_FLAT = 1e-6


def joint_label_fusion(
    target: NDArray, images: Sequence[NDArray], labels: Sequence[NDArray], search_radius: int = SEARCH_RADIUS
) -> NDArray[np.integer]:
    """Fuse atlas labels by weights that expect atlases to err alike.

    Where all atlases agree, they have their way. Elsewhere atlas i looks near the voxel for its patch
    ``A_i`` that correlates best with the target's ``T`` (patches have mean 0 and standard deviation 1), and the
    label there gets the vote ``w_i`` with ``w = (M + alpha 1)^-1 1``, scaled to sum 1, where ``M_ij`` is
    the square of the patch mean of ``|A_i - T| |A_j - T|``: what two atlases get wrong together counts once.

    Parameters
    ----------
    target : array, shape (I, J, K)
        Intensities of the image to label.
    images : sequence of arrays, shape (I, J, K)
        Intensities of the atlases, brought to the target's grid.
    labels : sequence of int arrays, shape (I, J, K)
        Their labels on the same grid.
    search_radius : int, default=1
        Voxels along each axis; 0: no search.

    Returns
    -------
    array of int, shape (I, J, K)
        In a type that holds all labels. Fused labels. Of labels with equal votes the first atlas's counts.

    Raises
    ------
    ValueError
        If there are fewer than two atlases, or shapes differ.

    References
    ----------
    Wang et al., Multi-atlas segmentation with joint label fusion, IEEE TPAMI 35(3), 2013 (equations 6, 11 and 12).
    """
    _check(target, images, labels, search_radius)
    # Zeros around: patches at the border reach into the background.
    margin = PATCH_RADIUS + search_radius
    common = np.promote_types(np.int32, np.min_scalar_type(max(int(np.max(array)) for array in labels)))
    known = np.stack([np.pad(np.asarray(array, dtype=common), margin) for array in labels])
    disputed = np.argwhere((known != known[0]).any(axis=0))
    fused = known[0].copy()
    if disputed.size:
        low, high = disputed.min(axis=0) - margin, disputed.max(axis=0) + margin + 1
        box = tuple(slice(start, stop) for start, stop in zip(low, high, strict=True))
        padded = [np.pad(_scale(array), margin)[box] for array in (target, *images)]
        voxels = np.ravel_multi_index(tuple((disputed - low).T), padded[0].shape)
        fused[tuple(disputed.T)] = _vote(padded[0], padded[1:], known[(slice(None), *box)], voxels, search_radius)
    inner = tuple(slice(margin, size - margin) for size in fused.shape)
    return np.ascontiguousarray(fused[inner])


def _check(target: NDArray, images: Sequence[NDArray], labels: Sequence[NDArray], search_radius: int) -> None:
    """Refuse what cannot be fused."""
    if len(images) < 2 or len(images) != len(labels):
        raise ValueError(
            f"label fusion: expected two atlases or more, each an image and its labels, found {len(images)} images "
            f"and {len(labels)} label images"
        )
    shapes = {np.shape(array) for array in (target, *images, *labels)}
    if len(shapes) > 1 or target.ndim != 3:
        raise ValueError(f"label fusion: expected all volumes on one 3-D grid, found the shapes {sorted(shapes)}")
    if search_radius < 0:
        raise ValueError(f"search radius: expected 0 voxels or more, found {search_radius}")


def _scale(array: NDArray) -> NDArray[np.float32]:
    """Return intensities with a standard deviation near 1, for the sake of rounding."""
    values = np.asarray(array, dtype=np.float32)
    spread = float(values.std())
    return values / np.float32(spread) if spread else values


def _vote(
    target: NDArray[np.float32],
    images: Sequence[NDArray[np.float32]],
    labels: NDArray[np.integer],
    voxels: NDArray[np.intp],
    search_radius: int,
) -> NDArray[np.integer]:
    """Return the label of each voxel, given by its flat index."""
    places = np.stack([_match(target, image, voxels, search_radius) for image in images])  # (n, V)
    offsets = _flat_offsets(target.shape, PATCH_RADIUS)
    n_values = (len(images) + 1) * offsets.size
    step = max(1, CHUNK_BYTES // (4 * n_values))
    fused = np.empty(voxels.size, dtype=labels.dtype)
    for start in range(0, voxels.size, step):
        part = slice(start, start + step)
        truth = _patches(target, voxels[part], offsets)  # (V, P)
        errors = np.stack(
            [
                np.abs(_patches(image, place, offsets) - truth)
                for image, place in zip(images, places[:, part], strict=True)
            ]
        )  # (n, V, P)
        votes = _weights(errors)  # (V, n)
        candidates = np.stack(
            [array.ravel()[place] for array, place in zip(labels, places[:, part], strict=True)], axis=1
        )
        same = candidates[:, :, None] == candidates[:, None, :]
        winner = np.einsum("vij,vj->vi", same, votes).argmax(axis=1)
        fused[part] = candidates[np.arange(winner.size), winner]
    return fused


def _weights(errors: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return the weights of n atlases, shape (V, n), from their errors in patches, shape (n, V, P)."""
    joint = np.einsum("ivp,jvp->vij", errors, errors).astype(np.float64) / errors.shape[2]
    matrix = joint**2 + ALPHA * np.eye(len(errors))
    weights = np.linalg.solve(matrix, np.ones((*matrix.shape[:2], 1)))[..., 0]
    return weights / weights.sum(axis=1, keepdims=True)


def _patches(image: NDArray[np.float32], places: NDArray[np.intp], offsets: NDArray[np.intp]) -> NDArray[np.float32]:
    """Gather patches around flat indices, with mean 0 and standard deviation 1 (all 0 where they are flat)."""
    patches = image.ravel()[places[:, None] + offsets]
    patches -= patches.mean(axis=1, keepdims=True)
    spread = patches.std(axis=1, keepdims=True)
    return np.where(spread > _FLAT, patches / np.maximum(spread, _FLAT), np.float32(0))


def _match(
    target: NDArray[np.float32], image: NDArray[np.float32], voxels: NDArray[np.intp], radius: int
) -> NDArray[np.intp]:
    """Return, for each voxel, the flat index near it where the image's patch correlates best with the target's."""
    places = voxels.copy()
    if radius == 0:
        return places
    mean_target, spread_target = _local_moments(target)
    mean_image, spread_image = _local_moments(image)
    best = np.full(voxels.size, -np.inf, dtype=np.float32)
    for shift, jump in _shifts(target.shape, radius):
        there = voxels + jump
        product = target * np.roll(image, [-step for step in shift], axis=(0, 1, 2))
        covariance = ndimage.uniform_filter(product, 2 * PATCH_RADIUS + 1).ravel()[voxels]
        covariance -= mean_target[voxels] * mean_image[there]
        spread = spread_target[voxels] * spread_image[there]
        score = np.where(spread > _FLAT, covariance / np.maximum(spread, _FLAT), np.float32(0))
        better = score > best + _FLAT  # the nearest of equals
        places[better], best[better] = there[better], score[better]
    return places


def _local_moments(image: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return mean and standard deviation of the patch around each voxel, flat."""
    size = 2 * PATCH_RADIUS + 1
    mean = ndimage.uniform_filter(image, size)
    variance = ndimage.uniform_filter(image**2, size) - mean**2
    return mean.ravel(), np.sqrt(np.maximum(variance, 0)).ravel()


def _shifts(shape: tuple[int, ...], radius: int) -> Iterator[tuple[tuple[int, ...], int]]:
    """Yield each shift within a radius, nearest first, as steps along the axes and as a step of the flat index."""
    reach = range(-radius, radius + 1)
    strides = np.array([shape[1] * shape[2], shape[2], 1])
    for shift in sorted(itertools.product(reach, repeat=3), key=lambda steps: sum(step**2 for step in steps)):
        yield shift, int(np.dot(shift, strides))


def _flat_offsets(shape: tuple[int, ...], radius: int) -> NDArray[np.intp]:
    """Return the steps of the flat index from a voxel to all voxels of the cube around it."""
    return np.array([jump for _, jump in _shifts(shape, radius)], dtype=np.intp)
