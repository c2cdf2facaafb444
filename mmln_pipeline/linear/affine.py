"""Affine and rigid alignment of two brains, and affines from files."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import partial

import numpy as np
import SimpleITK as sitk
from nibabel import Nifti1Image
from nibabel.affines import apply_affine, from_matvec
from scipy import fft, ndimage
from scipy.spatial.transform import Rotation

from mmln_pipeline.images.brain import Brain
from mmln_pipeline.images.volumes import brain_mask, conform, looks_skull_stripped, mask_array, normalize_intensity
from mmln_pipeline.linear.choices import AFFINES
from mmln_pipeline.machine.devices import itk_threads
from mmln_pipeline.machine.parallel import at_once
from mmln_pipeline.space.grids import Grid, new_image
from mmln_pipeline.space.itk import itk_points, matrix_from_sitk, to_sitk_image
from mmln_pipeline.space.transforms import Transform, read_transform

# Shrink factor, smoothing in voxels, share of voxels sampled; the last is the 2 mm image itself.
_LEVELS = ((4, 1.0, 1.0), (2, 1.0, 0.5), (1, 0.0, 0.2))
# Steps at each level, and those that decide between starts.
_STEPS, _START_STEPS = 100, 30
_SPACING_MM = 2.0
# A field of view of less than 64 of these voxels (small animals, tests) is worked on in finer ones.
_MIN_VOXELS = 64
# The search for a start: turns up to an angle, degrees, that far from each other, on voxels so many times larger.
_MAX_TURN, _TURN_STEP, _SEARCH_SHRINK = 50.0, 18.0, 4
_N_STARTS = 4
# Size of a brain that has yet to be found.
_BRAIN_LITRES = 1.45
# In a raw head, what is not air, as a share of its bright parts; fat, brighter than brain, is cut off at a percentile.
_AIR, _FAT_PERCENTILE = 0.05, 70.0
# Depth of what counts beside the fixed brain, voxels of 2 mm: of a stripped brain, and of one in its head, where
# more would draw the outline to the scalp; in the search, which has no choice of size, it tells brain from neck.
_RIM, _HEAD_RIM, _SEARCH_RIM = 4.0, 1.0, 3.0
_BINS = 32
_VOLUME_RATIO = (0.25, 4.0)
_MIN_OVERLAP = 0.6
# Overlap of brains from which a start needs no company. A training brain turned away from the template by 25 degrees
# (overlap 0.87 to 0.91) still came back to where all starts lead, turned by 36 (0.84 to 0.89) not always.
_NEAR = 0.9

_Turning = sitk.Euler3DTransform | sitk.Similarity3DTransform | sitk.AffineTransform
_Masks = tuple[sitk.Image, sitk.Image | None]
"""Where the fixed image counts, and where the moving one does (None: everywhere)."""


def estimate_affine(
    fixed: Brain,
    moving: Brain,
    kind: str = "affine",
    seed: int = 0,
    start: np.ndarray | None = None,
) -> np.ndarray:
    """Align two brains linearly, or a brain with a raw head.

    The fixed brain is tried in turns of up to 50 degrees at every place of the moving image. The best starts, and
    the one that lays the centres of mass onto each other, are improved by mutual information (Mattes) on coarse
    images; the best of these, rigid first, at 2 mm. The same inputs and seed give the same matrix, whatever the
    threads (as many as PyTorch's).

    Parameters
    ----------
    fixed : Brain
        Skull-stripped image, or a whole head with its mask; any orientation and voxel size.
    moving : Brain
        Likewise, or a raw T1-weighted head, neck and all, in which the brain has yet to be found. Where it has a lesion
        it does not steer.
    kind : str, default="affine"
        One of `mmln_pipeline.linear.choices.AFFINES`.
        12 or 6 parameters.
    seed : int, default=0
        Of the choice of sample points; at least 0.
    start : ndarray, shape (4, 4), optional
        RAS+ mm, fixed world to moving world: an affine that may be near. Where it lays the brains onto each other, an
        affine is improved from there and nothing else is tried.

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
    if kind not in AFFINES:
        raise ValueError(f"kind of alignment: expected one of {', '.join(AFFINES)}; found {kind!r}")
    if seed < 0:
        raise ValueError(f"random seed: expected 0 or more, found {seed}")
    fixed_brain = _coarse_brain(fixed)
    is_head = moving.mask is None and not looks_skull_stripped(moving.intensities)
    if is_head:
        target, litres = _coarse_head(moving.intensities), _BRAIN_LITRES
    else:
        target = _coarse_brain(moving)
        litres = _litres(target)
    scale = float(np.cbrt(litres / _litres(fixed_brain))) if kind == "affine" else 1.0
    region = _near_brain(fixed_brain, _HEAD_RIM if is_head else _RIM)
    masks = to_sitk_image(new_image(region.astype(np.uint8), fixed_brain)), _healthy(target, moving.lesion)
    with itk_threads(1):  # of one optimisation: the order of sums, and with it the result, depends on their number
        if start is not None and kind == "affine" and _overlap(start, fixed_brain, target, is_head) >= _NEAR:
            matrix = _improve(start, _centre_of_mass(fixed_brain), fixed_brain, target, seed, masks)
        else:
            matrix = _align(fixed_brain, target, scale, kind, seed, masks)
    _check_quality(matrix, fixed_brain, target, is_head)
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
    matrix = read_transform(path).matrix
    if matrix is None:
        raise ValueError(f"affine {path}: expected linear transforms only, found a displacement field")
    return matrix


def _coarse_brain(brain: Brain) -> Nifti1Image:
    """Return the brain smoothed, at about 2 mm along the image's own axes, intensities in [0, 1]."""
    inside = mask_array(brain.image, brain.outline, f"{brain.name} mask")
    scaled = normalize_intensity(np.asanyarray(brain.intensities.dataobj), inside)
    return _coarse(new_image(scaled, brain.image), _SPACING_MM)


def _coarse_head(image: Nifti1Image) -> Nifti1Image:
    """Return a raw head likewise, all that is brighter than most of it cut off."""
    head = np.clip(np.asanyarray(image.dataobj, dtype=np.float32), 0.0, None)
    tissue = head[head > _AIR * np.percentile(head[head > 0], 99)]
    top = np.percentile(tissue, _FAT_PERCENTILE)
    return _coarse(new_image(np.minimum(head / top, 1.0, dtype=np.float32), image), _SPACING_MM)


def _coarse(image: Nifti1Image, step: float) -> Nifti1Image:
    """Return an image smoothed, with cubic voxels of about `step` mm along its own axes."""
    own = Grid.of(image)
    extent = own.spacing * own.shape
    step = min(step, step / _SPACING_MM * extent.max() / _MIN_VOXELS)
    # Half a new voxel beyond the old resolution, the usual guard against aliasing.
    sigma = 0.5 * np.clip(step / own.spacing - 1.0, 0.0, None)
    data = ndimage.gaussian_filter(np.asanyarray(image.dataobj), sigma)
    scale = step / own.spacing
    # New voxel 0 begins at the edge where old voxel 0 begins.
    matrix = own.affine @ from_matvec(np.diag(scale), (scale - 1.0) / 2.0)
    return conform(new_image(data, image), Grid(tuple(np.ceil(extent / step).astype(int)), matrix))


def _healthy(brain: Nifti1Image, lesion: Nifti1Image | None) -> sitk.Image | None:
    """Return where an image may steer: everywhere (None), or outside its lesion."""
    if lesion is None:
        return None
    marked = new_image((np.asanyarray(lesion.dataobj) != 0).astype(np.float32), lesion)
    return to_sitk_image(new_image((np.asanyarray(conform(marked, brain).dataobj) < 0.5).astype(np.uint8), brain))


def _centre_of_mass(image: Nifti1Image) -> np.ndarray:
    """Return the intensity-weighted centre, RAS+ mm, shape (3,)."""
    return apply_affine(image.affine, ndimage.center_of_mass(np.asanyarray(image.dataobj)))


def _litres(image: Nifti1Image) -> float:
    """Return the volume of a stripped brain."""
    n_voxels = np.count_nonzero(np.asanyarray(brain_mask(image).dataobj))
    return float(n_voxels * np.prod(Grid.of(image).spacing) / 1e6)


def _align(fixed: Nifti1Image, moving: Nifti1Image, scale: float, kind: str, seed: int, masks: _Masks) -> np.ndarray:
    """Optimise a similarity from several starts, then the best of them to a rigid or an affine transform."""
    centre = _centre_of_mass(fixed)
    shifted = from_matvec(np.eye(3), _centre_of_mass(moving) - centre)
    brain = _coarse(fixed, _SEARCH_SHRINK / 2 * _SPACING_MM)
    region = _near_brain(brain, _SEARCH_RIM / 2)

    def attempt(start: np.ndarray) -> tuple[float, sitk.Transform]:
        coarse = _about(centre, start, sitk.Euler3DTransform() if kind == "rigid" else sitk.Similarity3DTransform())
        _optimise(coarse, _LEVELS[:1], fixed, moving, seed, masks, _START_STEPS)
        return _agreement(brain, region, conform(moving, brain, matrix_from_sitk(coarse))), coarse

    starts = (shifted, *_search(brain, region, centre, moving, scale))
    best = max(at_once(*(partial(attempt, start) for start in starts)), key=lambda pair: pair[0])[1]
    _optimise(best, _LEVELS[1:2] if kind == "affine" else _LEVELS[1:], fixed, moving, seed, masks)
    matrix = matrix_from_sitk(best)
    return matrix if kind == "rigid" else _improve(matrix, centre, fixed, moving, seed, masks)


def _improve(
    matrix: np.ndarray, centre: np.ndarray, fixed: Nifti1Image, moving: Nifti1Image, seed: int, masks: _Masks
) -> np.ndarray:
    """Optimise an affine that is near."""
    affine = _about(centre, matrix, sitk.AffineTransform(3))
    _optimise(affine, _LEVELS, fixed, moving, seed, masks)
    return matrix_from_sitk(affine)


def _about(centre: np.ndarray, matrix: np.ndarray, transform: _Turning) -> _Turning:
    """Return an ITK transform that turns about a point, set to a matrix, RAS+ mm, of its own kind."""
    linear = Transform((matrix,)).to_sitk()
    point = itk_points(centre)
    transform.SetCenter(point.tolist())
    transform.SetMatrix(sitk.AffineTransform(linear.GetNthTransform(0)).GetMatrix())
    transform.SetTranslation((np.array(linear.TransformPoint(point.tolist())) - point).tolist())
    return transform


def _search(
    brain: Nifti1Image, region: np.ndarray, centre: np.ndarray, moving: Nifti1Image, scale: float
) -> list[np.ndarray]:
    """Find where the moving image resembles a coarse brain in some turn, by correlation within a region round it.

    For each turn about the brain's centre of mass, Fourier transforms give the correlation coefficient at every place
    at once. Return the matrices of the best turns, RAS+ mm.
    """
    target = _coarse(moving, _SEARCH_SHRINK * _SPACING_MM)
    values, weights = np.asanyarray(brain.dataobj), region.astype(np.float32)
    step = Grid.of(target).spacing[0]
    farthest = np.linalg.norm(apply_affine(brain.affine, np.argwhere(weights)) - centre, axis=1).max()
    reach = int(np.ceil(scale * farthest / step))
    offsets = np.indices((2 * reach + 1,) * 3) - reach  # voxels of the target, about the window's middle
    correlate = _Correlation(np.asanyarray(target.dataobj), reach)

    def place(turn: np.ndarray) -> tuple[float, np.ndarray]:
        linear = turn * scale
        to_index = np.linalg.inv(brain.affine[:3, :3]) @ np.linalg.inv(linear) @ target.affine[:3, :3]
        index = np.tensordot(to_index, offsets, 1)
        index += apply_affine(np.linalg.inv(brain.affine), centre)[:, None, None, None]
        score, voxel = correlate(*(ndimage.map_coordinates(a, index, order=1) for a in (values, weights)))
        return score, from_matvec(linear, apply_affine(target.affine, voxel) - linear @ centre)

    found = sorted(at_once(*(partial(place, turn) for turn in _turns())), key=lambda pair: -pair[0])
    return [matrix for _, matrix in found[:_N_STARTS]]


class _Correlation:
    """Weighted correlation coefficient of a window with an image, for the window at every place.

    Parameters
    ----------
    image : ndarray, shape (I, J, K)
        Zero outside.
    reach : int
        The windows to come have 2 * reach + 1 voxels along each axis.
    """

    def __init__(self, image: np.ndarray, reach: int) -> None:
        self.reach, self.places = reach, image.shape
        self.shape = [fft.next_fast_len(n + 4 * reach, real=True) for n in image.shape]
        self.image, self.square = (fft.rfftn(a, self.shape) for a in (image, image * image))
        self.least = 1e-3 * image.var()

    def __call__(self, window: np.ndarray, weights: np.ndarray) -> tuple[float, np.ndarray]:
        """Return the largest coefficient and the voxel on which the window's middle then lies, shape (3,)."""
        share = weights / weights.sum()
        deviation = window - (share * window).sum()
        spread = (share * deviation**2).sum()
        mean = self._sums(self.image, share)
        variance = np.maximum(self._sums(self.square, share) - mean**2, self.least)
        score = self._sums(self.image, share * deviation) / np.sqrt(spread * variance)
        place = np.unravel_index(score.argmax(), score.shape)
        return float(score[place]), np.array(place)

    def _sums(self, image: np.ndarray, kernel: np.ndarray) -> np.ndarray:
        """Sum the image times the kernel, with the kernel's middle on each of the image's voxels."""
        sums = fft.irfftn(image * np.conj(fft.rfftn(kernel, self.shape)), self.shape)
        sums = np.roll(sums, self.reach, axis=(0, 1, 2))
        return sums[tuple(slice(n) for n in self.places)]


def _turns() -> list[np.ndarray]:
    """Return rotations of up to the largest angle about any axis, evenly spread, shape (3, 3) each."""
    n = int(_MAX_TURN // _TURN_STEP)
    vectors = (np.indices((2 * n + 1,) * 3).reshape(3, -1).T - n) * _TURN_STEP
    vectors = vectors[np.linalg.norm(vectors, axis=1) <= _MAX_TURN]
    return list(Rotation.from_rotvec(vectors, degrees=True).as_matrix())


def _near_brain(image: Nifti1Image, rim: float) -> np.ndarray:
    """Return the brain and `rim` voxels round it: where the outline still tells something."""
    brain = np.asanyarray(brain_mask(image).dataobj) > 0
    return ndimage.distance_transform_edt(~brain) <= rim


def _agreement(fixed: Nifti1Image, region: np.ndarray, moved: Nifti1Image) -> float:
    """Return the mutual information of two images on one grid within a region."""
    pair = [np.asanyarray(image.dataobj)[region] for image in (fixed, moved)]
    joint = np.histogram2d(pair[0], pair[1], bins=_BINS)[0] / np.count_nonzero(region)
    independent = joint.sum(1, keepdims=True) * joint.sum(0, keepdims=True)
    return float((joint * np.log(joint / independent, where=joint > 0, out=np.zeros_like(joint))).sum())


def _optimise(
    transform: sitk.Transform,
    levels: Sequence[tuple[int, float, float]],
    fixed: Nifti1Image,
    moving: Nifti1Image,
    seed: int,
    masks: _Masks,
    steps: int = _STEPS,
) -> None:
    """Move a transform, in place, to where mutual information is largest.

    `levels` are (shrink factor, smoothing in voxels, share of voxels sampled).
    """
    shrinks, sigmas, shares = zip(*levels, strict=True)
    method = sitk.ImageRegistrationMethod()
    method.SetMetricAsMattesMutualInformation(_BINS)
    method.SetMetricSamplingStrategy(sitk.ImageRegistrationMethod.RANDOM)
    # ITK takes seed 0 for "by the clock", so that all seeds move up by 1.
    method.SetMetricSamplingPercentagePerLevel(shares, seed + 1)
    method.SetMetricFixedMask(masks[0])
    if masks[1] is not None:
        method.SetMetricMovingMask(masks[1])
    method.SetInterpolator(sitk.sitkLinear)
    method.SetShrinkFactorsPerLevel(shrinks)
    method.SetSmoothingSigmasPerLevel(sigmas)
    method.SmoothingSigmasAreSpecifiedInPhysicalUnitsOff()
    method.SetOptimizerAsRegularStepGradientDescent(
        learningRate=1.0,
        minStep=1e-3,
        numberOfIterations=steps,
        relaxationFactor=0.7,
        gradientMagnitudeTolerance=1e-6,
    )
    method.SetOptimizerScalesFromPhysicalShift()
    method.SetInitialTransform(transform, inPlace=True)
    method.Execute(to_sitk_image(fixed), to_sitk_image(moving))


def _overlap(matrix: np.ndarray, fixed: Nifti1Image, moving: Nifti1Image, is_head: bool) -> float:
    """Return the Dice of both brains; of a head, the share of the fixed brain that lies in it."""
    a = np.asanyarray(brain_mask(fixed).dataobj) > 0
    b = np.asanyarray(conform(brain_mask(moving), fixed, matrix, "nearest").dataobj) > 0
    size = 2 * np.count_nonzero(a) if is_head else np.count_nonzero(a) + np.count_nonzero(b)
    return 2.0 * np.count_nonzero(a & b) / size


def _check_quality(matrix: np.ndarray, fixed: Nifti1Image, moving: Nifti1Image, is_head: bool) -> None:
    """Refuse a result that cannot be right."""
    ratio = np.linalg.det(matrix[:3, :3])
    if not _VOLUME_RATIO[0] < ratio < _VOLUME_RATIO[1]:
        raise ValueError(
            f"affine alignment failed: expected a volume ratio within {_VOLUME_RATIO}, found {ratio:.3g}; "
            "check both images, or give the start with --init XFM"
        )
    overlap = _overlap(matrix, fixed, moving, is_head)
    if overlap < _MIN_OVERLAP:
        raise ValueError(
            f"affine alignment failed: expected the brains to overlap by a Dice of {_MIN_OVERLAP} or more, "
            f"found {overlap:.2f}; check that both are skull-stripped, or give masks or --init XFM"
        )
