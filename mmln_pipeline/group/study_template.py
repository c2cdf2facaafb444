"""The template of a group: the mean of its brains, in the shape that they have on average.

All brains are registered to the current mean. Where the maps to the brains do not cancel out, the mean lies nearer to
some of them than to others, and it is moved by the inverse of their mean; the brains are sampled once, through it all.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from nibabel import Nifti1Image
from nibabel.affines import apply_affine, from_matvec
from numpy.typing import NDArray
from scipy.linalg import expm, logm, polar
from scipy.ndimage import binary_erosion

from mmln_pipeline.fields.integration import correct_inverse
from mmln_pipeline.images.volumes import load_image, load_labels, normalize_intensity
from mmln_pipeline.space.displacements import DisplacementField, displacement_from_voxels, displacement_to_voxels
from mmln_pipeline.space.grids import Grid, check_same_grid, new_image
from mmln_pipeline.space.transforms import Transform

_INVERSION_STEPS = 10
_MAJORITY = 0.5


@dataclass(frozen=True)
class Member:
    """A brain of the group.

    Parameters
    ----------
    image, mask : Path
        The brain and its mask, on one grid.
    lesion : Path, optional
        Where it does not count (non-zero), on the same grid.
    """

    image: Path
    mask: Path
    lesion: Path | None = None


@dataclass(frozen=True, eq=False)
class MeanBrain:
    """What the brains of a group have in common.

    Parameters
    ----------
    image : Nifti1Image
        Mean intensity, in [0, 1], of the brains that reach a voxel; 0 outside `mask`; float32.
    mask : Nifti1Image
        Where at least half of them are, uint8.
    """

    image: Nifti1Image
    mask: Nifti1Image


def centre_affines(affines: Sequence[NDArray[np.float64]], centre: NDArray[np.float64]) -> list[NDArray[np.float64]]:
    """Let a world have the size and shape that the brains have on average, and keep its pose.

    With M the exponential of the mean of the affines' logarithms, and M = R P, R a rotation and P symmetric, each
    affine A becomes A P^-1: what is left on average is the rotation.

    Parameters
    ----------
    affines : sequence of ndarray, each of shape (4, 4)
        World of a template to the world of each brain, RAS+ mm.
    centre : ndarray, shape (3,)
        Point of the template's world that stays, mm.

    Returns
    -------
    list of ndarray, each of shape (4, 4)
        The new world to the world of each brain.

    References
    ----------
    Arsigny et al., A fast and log-Euclidean polyaffine framework for locally linear registration, JMIV 2009.
    """
    mean = expm(np.mean([logm(affine).real for affine in affines], axis=0))
    _, stretch = polar(mean[:3, :3])
    back = np.linalg.inv(stretch)
    return [affine @ from_matvec(back, centre - back @ centre) for affine in affines]


def centre_of(mask: Nifti1Image) -> NDArray[np.float64]:
    """Return the centre of gravity of what is not zero, RAS+ mm, shape (3,)."""
    return apply_affine(mask.affine, np.argwhere(np.asanyarray(mask.dataobj) != 0).mean(axis=0))


def mean_displacement(warps: Iterable[DisplacementField], grid: Grid) -> DisplacementField:
    """Return the mean of displacement fields, each of which may end where its pair of brains does.

    Parameters
    ----------
    warps : iterable of DisplacementField
        At least one, in one world; one at a time is in memory.
    grid : Grid
        Where to sample them.

    Raises
    ------
    ValueError
        If there is none.
    """
    total, count = np.zeros((*grid.shape, 3)), 0
    for warp in warps:
        total += Transform([warp]).displacement(grid).offsets_mm
        count += 1
    if not count:
        raise ValueError("displacement fields: expected at least one, found none")
    return DisplacementField(total / count, grid.affine)


def invert_smooth(field: DisplacementField) -> DisplacementField:
    """Return the inverse of a smooth displacement field without folds, such as a mean, on its own grid.

    References
    ----------
    Chen et al., A simple fixed-point approach to invert a deformation field, Med. Phys. 2008.
    """
    forward = torch.from_numpy(displacement_to_voxels(field))[None]
    with torch.no_grad():
        inverse = correct_inverse(-forward, forward, steps=_INVERSION_STEPS)
    return displacement_from_voxels(inverse[0].numpy(), field.affine)


def average_brains(members: Sequence[Member], transforms: Iterable[Transform], grid: Grid) -> MeanBrain:
    """Sample each brain once, through its transform, and average them.

    Each is divided by the 99.5 percentile of its own intensities first. A brain has no say where it does not reach, so
    that the rim is as bright as the brains are there.

    Parameters
    ----------
    members : sequence of Member
        The brains; one at a time is in memory.
    transforms : iterable of Transform
        Points of the mean's world to points of each brain's world, in the same order.
    grid : Grid
        Where to sample.

    Returns
    -------
    MeanBrain

    Raises
    ------
    ValueError
        If an image cannot be used, or nowhere half of the brains meet.
    """
    total, counted, inside = (np.zeros(grid.shape, np.float32) for _ in range(3))
    for member, transform in zip(members, transforms, strict=True):
        image, outline = load_image(member.image, "brain"), load_labels(member.mask, "brain mask")
        check_same_grid(outline, "brain mask", image, "brain", str(member.mask))
        brain = np.asanyarray(outline.dataobj) != 0
        values = normalize_intensity(np.asanyarray(image.dataobj), brain)
        with transform.held():
            share = reached = _sample(brain, image, transform, grid)
            if member.lesion is not None:
                sound = brain & (np.asanyarray(load_labels(member.lesion, "lesion mask").dataobj) == 0)
                share, values = _sample(sound, image, transform, grid), np.where(sound, values, np.float32(0))
            total += _sample(values, image, transform, grid, "bspline").clip(min=0)
        counted += share
        inside += reached
    mask = inside >= _MAJORITY * len(members)
    if not mask.any():
        raise ValueError(
            f"template: expected {len(members)} brains that overlap, found no voxel that half of them share"
        )
    mean = np.divide(total, counted, out=np.zeros_like(total), where=mask & (counted > 0))
    return MeanBrain(new_image(mean, grid), new_image(mask.astype(np.uint8), grid))


def gradient_energy(image: Nifti1Image, mask: Nifti1Image) -> float:
    """Return how sharp a brain is: the mean of its squared gradient, in (brightness per mm)^2.

    Brightness is in units of the brain's 99.5 percentile; the gradient is that of central differences, where all six
    neighbours are brain too: the outline does not count.

    Parameters
    ----------
    image, mask : Nifti1Image
        The brain and its mask, on one grid.
    """
    brain = np.asanyarray(mask.dataobj) != 0
    values = normalize_intensity(np.asanyarray(image.dataobj), brain)
    slopes = np.gradient(values, *Grid.of(image).spacing)
    core = binary_erosion(brain)
    return float(sum((slope[core] ** 2).mean() for slope in slopes))


def mean_length_mm(field: DisplacementField, mask: Nifti1Image) -> float:
    """Return how far a displacement field moves the points of a brain on average, mm."""
    brain = Transform().resample(mask, field.grid, "nearest")
    inside = np.asanyarray(brain.dataobj) != 0
    return float(np.linalg.norm(field.offsets_mm[inside], axis=-1).mean())


def _sample(
    data: NDArray, grid: Nifti1Image, transform: Transform, target: Grid, interpolation: str = "linear"
) -> NDArray[np.float32]:
    """Return an array of a grid sampled on another one."""
    image = new_image(data.astype(np.float32, copy=False), grid)
    return np.asanyarray(transform.resample(image, target, interpolation).dataobj)
