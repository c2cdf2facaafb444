"""Affine and rigid alignment of two brains, and affines from files."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import nibabel as nib
import numpy as np
import SimpleITK as sitk
from nibabel import Nifti1Image
from nibabel.affines import apply_affine
from scipy import ndimage

from mmln_pipeline.grids import Grid, new_image
from mmln_pipeline.transforms import itk_points, matrix_from_sitk, read_transform, to_sitk_image
from mmln_pipeline.volumes import brain_mask, conform, mask_array, normalize_intensity

KINDS = ("affine", "rigid")
# Shrink factor, smoothing in voxels, share of voxels sampled; the last is the 2 mm image itself.
_LEVELS = ((4, 1.0, 1.0), (2, 1.0, 0.5), (1, 0.0, 0.2))
_SPACING_MM = 2.0
# A field of view of less than 64 of these voxels (small animals, tests) is worked on in finer ones.
_MIN_VOXELS = 64
_VOLUME_RATIO = (0.25, 4.0)
_MIN_OVERLAP = 0.6


def estimate_affine(
    fixed: Nifti1Image,
    moving: Nifti1Image,
    kind: str = "affine",
    fixed_mask: Nifti1Image | None = None,
    moving_mask: Nifti1Image | None = None,
    seed: int = 0,
) -> np.ndarray:
    """Align two brains linearly.

    Mutual information (Mattes) at 2 mm, from a start that lays the brains' centres of mass onto each other;
    an affine starts from the rigid result. The same inputs and seed give the same matrix.

    Parameters
    ----------
    fixed, moving : Nifti1Image
        Skull-stripped images, or whole heads with masks; any orientation and voxel size.
    kind : {"affine", "rigid"}, default="affine"
        12 or 6 parameters.
    fixed_mask, moving_mask : Nifti1Image, optional
        The brains, each on its image's grid; default: `brain_mask`.
    seed : int, default=0
        Of the choice of sample points; at least 0.

    Returns
    -------
    ndarray, shape (4, 4)
        RAS+ mm, fixed world to moving world.

    Raises
    ------
    ValueError
        If the kind is unknown, the seed negative, a mask on another grid or empty, or the result cannot be
        right (the brains hardly overlap, or one would have to change its volume more than fourfold).
    """
    if kind not in KINDS:
        raise ValueError(f"kind of alignment: expected one of {', '.join(KINDS)}; found {kind!r}")
    if seed < 0:
        raise ValueError(f"random seed: expected 0 or more, found {seed}")
    fixed_brain = _coarse_brain(fixed, fixed_mask, "fixed")
    moving_brain = _coarse_brain(moving, moving_mask, "moving")
    matrix = np.eye(4)
    matrix[:3, 3] = _centre_of_mass(moving_brain) - _centre_of_mass(fixed_brain)
    matrix = _align(fixed_brain, moving_brain, matrix, kind, seed)
    _check_quality(matrix, fixed_brain, moving_brain)
    return matrix


def load_affine(path: str | os.PathLike[str]) -> np.ndarray:
    """Read an affine from an ITK transform file.

    Parameters
    ----------
    path : path-like
        .mat, .txt, .tfm or .h5 that holds linear transforms only.

    Returns
    -------
    ndarray, shape (4, 4)
        All of them as one matrix, RAS+ mm, fixed world to moving world.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If it is no ITK transform or holds a displacement field.
    """
    matrix = np.eye(4)
    for part in read_transform(path).parts:
        if not isinstance(part, np.ndarray):
            raise ValueError(f"affine {path}: expected linear transforms only, found a displacement field")
        matrix = part @ matrix
    return matrix


def _coarse_brain(image: Nifti1Image, mask: Nifti1Image | None, name: str) -> Nifti1Image:
    """Return the brain smoothed, at about 2 mm along the image's own axes, intensities in [0, 1]."""
    own = Grid.of(image)
    brain = normalize_intensity(np.asanyarray(image.dataobj), mask_array(image, mask, f"{name} mask"))
    extent = own.spacing * own.shape
    step = min(_SPACING_MM, extent.max() / _MIN_VOXELS)
    # Half a new voxel beyond the old resolution, the usual guard against aliasing.
    brain = ndimage.gaussian_filter(brain, 0.5 * np.clip(step / own.spacing - 1.0, 0.0, None))
    scale = step / own.spacing
    # New voxel 0 begins at the edge where old voxel 0 begins.
    matrix = own.affine @ nib.affines.from_matvec(np.diag(scale), (scale - 1.0) / 2.0)
    return conform(new_image(brain, image), Grid(tuple(np.ceil(extent / step).astype(int)), matrix))


def _centre_of_mass(image: Nifti1Image) -> np.ndarray:
    """Return the intensity-weighted centre, RAS+ mm, shape (3,)."""
    return apply_affine(image.affine, ndimage.center_of_mass(np.asanyarray(image.dataobj)))


def _align(fixed: Nifti1Image, moving: Nifti1Image, start: np.ndarray, kind: str, seed: int) -> np.ndarray:
    """Optimise a rigid, then (if asked) an affine transform, from a translation on."""
    centre = itk_points(_centre_of_mass(fixed)).tolist()
    rigid = sitk.Euler3DTransform()
    rigid.SetCenter(centre)
    rigid.SetTranslation(itk_points(start[:3, 3]).tolist())
    last_level = _LEVELS[2:] if kind == "rigid" else ()
    _optimise(rigid, (*_LEVELS[:2], *last_level), fixed, moving, seed)
    if kind == "rigid":
        return matrix_from_sitk(rigid)
    affine = sitk.AffineTransform(3)
    affine.SetCenter(centre)
    affine.SetMatrix(rigid.GetMatrix())
    affine.SetTranslation(rigid.GetTranslation())
    _optimise(affine, _LEVELS, fixed, moving, seed)
    return matrix_from_sitk(affine)


def _optimise(
    transform: sitk.Transform,
    levels: Sequence[tuple[int, float, float]],
    fixed: Nifti1Image,
    moving: Nifti1Image,
    seed: int,
) -> None:
    """Move a transform, in place, to where mutual information is largest.

    `levels` are (shrink factor, smoothing in voxels, share of voxels sampled). One thread: the order of the
    sums, and with it the result, would else depend on the machine.
    """
    shrinks, sigmas, shares = zip(*levels, strict=True)
    method = sitk.ImageRegistrationMethod()
    method.SetMetricAsMattesMutualInformation(numberOfHistogramBins=32)
    method.SetMetricSamplingStrategy(sitk.ImageRegistrationMethod.RANDOM)
    # ITK takes seed 0 for "by the clock", so that all seeds move up by 1.
    method.SetMetricSamplingPercentagePerLevel(shares, seed + 1)
    method.SetMetricFixedMask(_surroundings(fixed))
    method.SetInterpolator(sitk.sitkLinear)
    method.SetShrinkFactorsPerLevel(shrinks)
    method.SetSmoothingSigmasPerLevel(sigmas)
    method.SmoothingSigmasAreSpecifiedInPhysicalUnitsOff()
    method.SetOptimizerAsRegularStepGradientDescent(
        learningRate=1.0,
        minStep=1e-3,
        numberOfIterations=100,
        relaxationFactor=0.7,
        gradientMagnitudeTolerance=1e-6,
    )
    method.SetOptimizerScalesFromPhysicalShift()
    method.SetInitialTransform(transform, inPlace=True)
    with _one_thread():
        method.Execute(to_sitk_image(fixed), to_sitk_image(moving))


@contextmanager
def _one_thread() -> Iterator[None]:
    """Run SimpleITK on one thread for the block; the metric heeds only the global number."""
    previous = sitk.ProcessObject.GetGlobalDefaultNumberOfThreads()
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    try:
        yield
    finally:
        sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(previous)


def _surroundings(image: Nifti1Image) -> sitk.Image:
    """Return the brain and five voxels round it: where the outline still tells something."""
    brain = np.asanyarray(brain_mask(image).dataobj) > 0
    return to_sitk_image(new_image(ndimage.binary_dilation(brain, iterations=5).astype(np.uint8), image))


def _check_quality(matrix: np.ndarray, fixed: Nifti1Image, moving: Nifti1Image) -> None:
    """Refuse a result that cannot be right."""
    ratio = np.linalg.det(matrix[:3, :3])
    if not _VOLUME_RATIO[0] < ratio < _VOLUME_RATIO[1]:
        raise ValueError(
            f"affine alignment failed: expected a volume ratio within {_VOLUME_RATIO}, found {ratio:.3g}; "
            "check both images, or give the start with --init XFM"
        )
    a = np.asanyarray(brain_mask(fixed).dataobj) > 0
    b = np.asanyarray(conform(brain_mask(moving), fixed, matrix, "nearest").dataobj) > 0
    overlap = 2.0 * np.count_nonzero(a & b) / (np.count_nonzero(a) + np.count_nonzero(b))
    if overlap < _MIN_OVERLAP:
        raise ValueError(
            f"affine alignment failed: expected the brains to overlap by a Dice of {_MIN_OVERLAP} or more, "
            f"found {overlap:.2f}; check that both are skull-stripped, or give masks or --init XFM"
        )
