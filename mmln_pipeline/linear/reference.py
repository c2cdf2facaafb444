"""One reference image from several images of one subject, by rigid registration: runs, or sessions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
from nibabel import Nifti1Image
from nibabel.affines import apply_affine
from scipy.linalg import expm, logm

from mmln_pipeline.images.brain import Brain
from mmln_pipeline.images.volumes import brain_mask, looks_skull_stripped, mask_array
from mmln_pipeline.linear.affine import estimate_affine
from mmln_pipeline.linear.choices import REFERENCES
from mmln_pipeline.space.grids import Grid, new_image
from mmln_pipeline.space.transforms import Transform

_MEAN_STEPS, _SAME_POSE = 20, 1e-9


@dataclass(frozen=True, eq=False)
class Reference:
    """What the images of one subject have in common.

    Attributes
    ----------
    image : Nifti1Image
        Mean (of two) or median (of more) of the aligned images, float32.
    matrices : tuple of ndarray, each of shape (4, 4)
        Rigid transforms, RAS+ mm, world of `image` to the world of each input.
    """

    image: Nifti1Image
    matrices: tuple[np.ndarray, ...]


def build_reference(
    images: Sequence[Nifti1Image],
    kind: str = "first-lex",
    masks: Sequence[Nifti1Image] | None = None,
    seed: int = 0,
) -> Reference:
    """Align images of one subject rigidly and average them.

    Parameters
    ----------
    images : sequence of Nifti1Image
        At least one; heads or skull-stripped brains, but all of one sort.
    kind : str, default="first-lex"
        One of `mmln_pipeline.linear.choices.REFERENCES`.
        In the space of the first image, on its grid; or in the middle of all, where the mean of the rigid
        transforms to the images is the identity, so that no image is treated otherwise than the rest.
    masks : sequence of Nifti1Image, optional
        The brains, each on its image's grid; they alone steer the alignment then.
    seed : int, default=0
        Of the alignment's sampling.

    Returns
    -------
    Reference

    Raises
    ------
    ValueError
        If there is no image, the kind is unknown or an image cannot be aligned.

    References
    ----------
    Reuter et al., Within-subject template estimation for unbiased longitudinal image analysis, NeuroImage 2012.
    """
    if kind not in REFERENCES or not images:
        raise ValueError(
            f"reference: expected images and one of {', '.join(REFERENCES)}; found {len(images)} and {kind!r}"
        )
    found = [None] * len(images) if masks is None else list(masks)
    matrices = [np.eye(4)]
    for number in range(1, len(images)):
        matrices.append(_align(images[0], images[number], found[0], found[number], seed))
    if kind == "first-lex":
        return Reference(_average(images, matrices, Grid.of(images[0])), tuple(matrices))
    matrices = _centre(matrices)
    mean = _average(images, matrices, _middle_grid(images, matrices))
    brain = None if masks is None else combine_masks(list(masks), matrices, mean)
    matrices = _centre([
        matrix @ _align(mean, _moved(image, matrix), brain, None if mask is None else _moved(mask, matrix), seed)
        for image, mask, matrix in zip(images, found, matrices, strict=True)
    ])  # fmt: skip
    return Reference(_average(images, matrices, _middle_grid(images, matrices)), tuple(matrices))


def combine_masks(
    masks: Sequence[Nifti1Image], matrices: Sequence[np.ndarray], grid: Nifti1Image, rule: str = "majority"
) -> Nifti1Image:
    """Bring masks of the images to the reference, and keep what they agree upon.

    Parameters
    ----------
    masks : sequence of Nifti1Image
        Non-zero inside, each in the world of its image.
    matrices : sequence of ndarray, each of shape (4, 4)
        World of the reference to the world of each mask, RAS+ mm.
    grid : Nifti1Image
        The reference.
    rule : {"majority", "any"}, default="majority"
        Keep what half of the masks mark, or what any of them marks.

    Returns
    -------
    Nifti1Image
        0 or 1, uint8.
    """
    shares = []
    for mask, matrix in zip(masks, matrices, strict=True):
        binary = new_image((np.asanyarray(mask.dataobj) > 0).astype(np.float32), mask)
        shares.append(np.asanyarray(Transform((matrix,)).resample(binary, grid).dataobj))
    common = np.max(shares, axis=0) if rule == "any" else np.mean(shares, axis=0)
    return new_image((common >= 0.5).astype(np.uint8), grid)


def _align(
    fixed: Nifti1Image, moving: Nifti1Image, fixed_mask: Nifti1Image | None, moving_mask: Nifti1Image | None, seed: int
) -> np.ndarray:
    return estimate_affine(Brain(fixed, fixed_mask), Brain(moving, moving_mask), "rigid", seed)


def _moved(image: Nifti1Image, matrix: np.ndarray) -> Nifti1Image:
    """Return an image whose header places it in the reference's world."""
    return new_image(np.asanyarray(image.dataobj), Grid(Grid.of(image).shape, np.linalg.inv(matrix) @ image.affine))


def _centre(matrices: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Shift the reference's world until the mean of the rigid transforms (of their logarithms) is the identity."""
    matrices = list(matrices)
    for _ in range(_MEAN_STEPS):
        mean = np.mean([logm(matrix).real for matrix in matrices], axis=0)
        matrices = [matrix @ expm(-mean) for matrix in matrices]
        if np.abs(mean).max() < _SAME_POSE:
            break
    return matrices


def _middle_grid(images: Sequence[Nifti1Image], matrices: Sequence[np.ndarray]) -> Grid:
    """Return a grid along the world's axes, in the finest voxels found, that holds every image's brain or head.

    A tenth of its size is background on every side, as stripped images are known by.
    """
    spacing = min(float(Grid.of(image).spacing.min()) for image in images)
    corners = []
    for image, matrix in zip(images, matrices, strict=True):
        voxels = np.argwhere(np.asanyarray(brain_mask(image).dataobj))
        box = np.array(list(product(*zip(voxels.min(axis=0) - 0.5, voxels.max(axis=0) + 0.5, strict=True))))
        corners.append(apply_affine(np.linalg.inv(matrix) @ image.affine, box))
    low, high = (np.concatenate(corners).min(axis=0), np.concatenate(corners).max(axis=0))
    shape = np.ceil(1.2 * (high - low) / spacing).astype(int)
    affine = np.diag([spacing, spacing, spacing, 1.0])
    affine[:3, 3] = (low + high) / 2 - spacing * (shape - 1) / 2
    return Grid((int(shape[0]), int(shape[1]), int(shape[2])), affine)


def _average(images: Sequence[Nifti1Image], matrices: Sequence[np.ndarray], grid: Grid) -> Nifti1Image:
    """Average what the images show at each voxel of a grid, their intensities brought to one scale.

    Images that do not reach a voxel have no say there. Two give their mean, more their median, which a run
    spoilt by motion or a lesion that comes and goes cannot spoil. The average of stripped brains is stripped too.
    """
    values = np.empty((len(images), *grid.shape), dtype=np.float32)
    strengths = [float(np.median(np.asanyarray(image.dataobj)[mask_array(image, None)])) for image in images]
    for number, (image, matrix) in enumerate(zip(images, matrices, strict=True)):
        transform = Transform(() if np.array_equal(matrix, np.eye(4)) else (matrix,))
        sampled = np.asanyarray(transform.resample(image, grid, default=np.nan).dataobj)
        values[number] = sampled * np.float32(np.mean(strengths) / strengths[number])
    values[0, np.isnan(values).all(axis=0)] = 0.0
    mean = np.nanmean(values, axis=0) if len(images) < 3 else np.nanmedian(values, axis=0)
    average = new_image(mean, grid, like=images[0])
    if all(looks_skull_stripped(image) for image in images):  # else the rims of both brains would add up
        brain = combine_masks([brain_mask(image) for image in images], matrices, average)
        average = new_image(np.where(np.asanyarray(brain.dataobj) > 0, mean, np.float32(0)), average)
    return average
