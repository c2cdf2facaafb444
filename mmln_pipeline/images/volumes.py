"""Images in and out, and what is done to them before a registration: checks, masks, grids and intensities."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import SimpleITK as sitk
from nibabel import Nifti1Image
from nibabel.arrayproxy import ArrayProxy
from nibabel.freesurfer import MGHImage
from scipy import ndimage

from mmln_pipeline.machine.files import why_unreadable
from mmln_pipeline.machine.reading import UNREADABLE, advise, explain, read_whole
from mmln_pipeline.machine.writing import write_whole
from mmln_pipeline.space.grids import GRID_AXES, GRID_SHAPE, Grid, affine_in_mm, check_affine, new_image
from mmln_pipeline.space.interpolation import FOR_LABELS
from mmln_pipeline.space.itk import to_sitk_image
from mmln_pipeline.space.placement import warn_of_placement
from mmln_pipeline.space.transforms import Transform

__all__ = [
    "GRID_AXES",
    "GRID_SHAPE",
    "UNREADABLE",
    "Grid",
    "brain_mask",
    "conform",
    "correct_bias",
    "load_image",
    "load_labels",
    "looks_skull_stripped",
    "mask_array",
    "network_grid",
    "normalize_intensity",
    "save_image",
]

N4_ITERATIONS, N4_SPACING_MM = (20, 20, 20), 8.0
IMAGE_SUFFIXES = (".nii", ".nii.gz", ".mgz")
# Columns: where a step along each grid axis leads in RAS+ mm (left, inferior, anterior).
_LIA = np.array([[-1.0, 0.0, 0.0], [0.0, 0.0, 1.0], [0.0, -1.0, 0.0]])
DARK_AND_BRIGHT = 0.5, 99.5
"""Percentiles that stand for the darkest and the brightest voxels of a brain."""
DARK_SHARE = 0.17
"""The one per the other of a stripped brain: the median of 19 training scans (0.12 to 0.22)."""
_BELIEVED = (0.1, 0.4)
"""No brain is as dark, or as flat: a background that would make it so was filled in, and is not the scan's zero."""
ANY_SHARE = (0.0, 1.0)
"""In a head, air is as dark as the background: whatever its share, a darker background is the zero."""
_FEW = 0.01
"""Share of negative voxels that interpolation leaves in images that are not signed."""
_TOP_PERCENTILE = 99.5
# Below this share of the brightest tissue a voxel is background: resampling leaves such traces round a brain.
_BACKGROUND = 1e-3
_SMALL_PIECE = 0.01
# How far a slope may lie from 1 and be none, and a label from a whole number: both are left by rounding.
_SLOPE, _FRACTION = 1e-6, 1e-3


def load_image(path: str | os.PathLike[str], name: str = "image", exact: bool = False) -> Nifti1Image:
    """Read a 3-D image and check that it can be worked with.

    Parameters
    ----------
    path : path-like
        NIfTI (.nii, .nii.gz) or FreeSurfer (.mgz) file.
    name : str, default="image"
        How to call it in an error, such as "fixed image".
    exact : bool, default=False
        Keep numbers of double precision, such as labels above 2**24, as they are.

    Returns
    -------
    Nifti1Image
        Data in memory, 3-D, its affine in mm; scaled integers and doubles become float32 (float64 if `exact`). Where
        qform and sform differ, the sform counts.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If it cannot be read or is damaged, is not 3-D or empty, holds numbers that are not finite, nothing but zeros,
        or an affine that cannot be inverted.

    Warns
    -----
    HeaderWarning
        If ITK places the image elsewhere (see `mmln_pipeline.space.placement`).
    """
    return _load(Path(path), name, _decode_doubles if exact else _decode)


def load_labels(path: str | os.PathLike[str], name: str = "labels") -> Nifti1Image:
    """Read a 3-D label image (or a mask) and check that its values are whole numbers.

    Parameters
    ----------
    path : path-like
        NIfTI (.nii, .nii.gz) or FreeSurfer (.mgz) file. A slope within rounding of 1 is none.
    name : str, default="labels"
        How to call it in an error.

    Returns
    -------
    Nifti1Image
        Data in memory, 3-D: an integer type of at most 32 bits, or int64 or uint64 where the numbers need it.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        As for `load_image`, and if a value is not a whole number (to 0.001) of 64 bits.
    """
    image = _load(Path(path), name, _decode_stored)
    data = np.asanyarray(image.dataobj)
    if data.dtype.kind in "iu" and data.dtype.itemsize < 4:
        return image
    whole = np.round(data)
    n_bad = np.count_nonzero(np.abs(whole - data) > _FRACTION) if data.dtype.kind == "f" else 0
    if n_bad:
        raise ValueError(
            f"{name} {path}: expected whole numbers, found {n_bad} of {data.size} voxels with fractions; "
            "resample labels with nearest-neighbour"
        )
    low, high = int(whole.min()), int(whole.max())
    for dtype in (np.int32, np.int64, np.uint64):
        if np.iinfo(dtype).min <= low and high <= np.iinfo(dtype).max:
            return new_image(whole.astype(dtype, copy=False), image)
    raise ValueError(f"{name} {path}: expected labels of at most 64 bits, found {low} to {high}")


def save_image(image: Nifti1Image, path: str | os.PathLike[str]) -> Path:
    """Write an image atomically.

    Parameters
    ----------
    image : Nifti1Image
        What to write, in the type of its data.
    path : path-like
        Ends in .nii, .nii.gz or .mgz (FreeSurfer's, which has the types uint8, int16, int32 and float32: the nearest).

    Returns
    -------
    Path
        The file written.

    Raises
    ------
    ValueError
        If the suffix is another, or .mgz has no type for the numbers.
    """
    if not os.fspath(path).endswith(IMAGE_SUFFIXES):
        raise ValueError(f"{path}: an image needs the suffix .nii, .nii.gz or .mgz")
    return write_whole(_as_freesurfer(image, path) if os.fspath(path).endswith(".mgz") else image, path)


def _as_freesurfer(image: Nifti1Image, path: str | os.PathLike[str]) -> MGHImage:
    """Return an image in a type that FreeSurfer has, with all its numbers."""
    data = np.asanyarray(image.dataobj)
    types = (np.float32,) if data.dtype.kind == "f" else (np.uint8, np.int16, np.int32)
    for dtype in types:
        if data.dtype.kind == "f" or np.can_cast(data.dtype, dtype):
            return MGHImage(data.astype(dtype), image.affine)
    low, high = int(data.min()), int(data.max())
    if low < np.iinfo(np.int32).min or high > np.iinfo(np.int32).max:
        raise ValueError(f"{path}: .mgz holds numbers of 32 bits, found {low} to {high}; write .nii.gz")
    return MGHImage(data.astype(np.int32), image.affine)


def brain_mask(image: Nifti1Image) -> Nifti1Image:
    """Mask the brain of a skull-stripped image: what is not background, without specks, holes filled.

    Parameters
    ----------
    image : Nifti1Image
        Skull-stripped, background (near) zero.

    Returns
    -------
    Nifti1Image
        1 in the brain, 0 elsewhere, uint8. Pieces under 1% of the largest one are dropped.
    """
    return new_image(_foreground(np.asanyarray(image.dataobj)).astype(np.uint8), image)


def fill_holes(region: np.ndarray) -> np.ndarray:
    """Fill what a region encloses: the answer of `scipy.ndimage.binary_fill_holes`, in a tenth of its time.

    Parameters
    ----------
    region : ndarray of bool, shape (I, J, K)

    Returns
    -------
    ndarray of bool, shape (I, J, K)
        True in the region, and where no way by voxels' faces leads to the array's border but through it.
    """
    pieces, n_pieces = ndimage.label(~region)
    is_open = np.zeros(n_pieces + 1, dtype=bool)
    for axis in range(region.ndim):
        is_open[np.take(pieces, (0, -1), axis)] = True
    is_open[0] = False  # the region itself
    return ~is_open[pieces]


def mask_array(image: Nifti1Image, mask: Nifti1Image | None, name: str = "mask") -> np.ndarray:
    """Return where an image's brain is, after checking the mask.

    Parameters
    ----------
    image : Nifti1Image
        The image, shape (I, J, K).
    mask : Nifti1Image or None
        Not zero in the brain; None: `brain_mask` of the image.
    name : str, default="mask"
        How to call it in an error.

    Returns
    -------
    ndarray of bool, shape (I, J, K)
        True in the brain.

    Raises
    ------
    ValueError
        If the mask is on another grid than the image, or empty.
    """
    mask = mask if mask is not None else brain_mask(image)
    if not Grid.of(image).matches(mask):
        raise ValueError(
            f"{name}: expected the image's grid, {Grid.of(image).describe_difference(mask)}; "
            "resample the mask onto the image"
        )
    is_brain = np.asanyarray(mask.dataobj) != 0
    if not is_brain.any():
        raise ValueError(f"{name}: expected a brain, found none of {is_brain.size} voxels")
    return is_brain


def make_unsigned(
    image: Nifti1Image,
    mask: Nifti1Image | None = None,
    dark_share: float = DARK_SHARE,
    believed: tuple[float, float] = _BELIEVED,
) -> Nifti1Image:
    """Lift an image with negative intensities (z-scored, or scaled as MP2RAGE's) so that its brain lies above 0.

    Parameters
    ----------
    image : Nifti1Image
        3-D image.
    mask : Nifti1Image, optional
        The brain (non-zero), on the image's grid. Default: what differs from a constant background, where the image has
        one on half of its faces; else all of it.
    dark_share : float, default=0.17
        The 0.5 percentile of such brains per their 99.5 percentile.
    believed : tuple of float, default=(0.1, 0.4)
        Least and largest such share by which the background is believed to be the zero of the scan.

    Returns
    -------
    Nifti1Image
        The image itself where under 1% of its signal is negative, and not its background. Else, float32, 0 in the
        background, and the brain's intensities above the background where that is darker, as when zero was moved; where
        it is not, as after a z-score within the brain, or was filled in (at the brain's minimum, or far below), above a
        zero that puts the 0.5 percentile at `dark_share`.
    """
    data = np.asanyarray(image.dataobj)
    if data.dtype.kind == "u" or data.min() >= 0:
        return image
    background = _find_background(data)
    inside = np.ones(data.shape, dtype=bool) if background is None else data != background
    is_moved = background is not None and background < 0
    if not is_moved and np.count_nonzero(data[inside] < 0) <= _FEW * np.count_nonzero(inside):
        return image
    if mask is not None:
        inside = np.asanyarray(mask.dataobj) != 0
    low, high = np.percentile(data[inside], DARK_AND_BRIGHT)
    zero = (low - dark_share * high) / (1 - dark_share)
    if background is not None:
        least, most = (share * (high - background) for share in believed)
        zero = background if least <= low - background <= most else zero
    lifted = np.where(inside, np.clip(data - zero, 0, None), 0)
    return new_image(lifted.astype(np.float32), image)


def _find_background(data: np.ndarray) -> float | None:
    """Return the value that at least half of an array's faces hold; None where there is none."""
    faces = np.concatenate([np.take(data, (0, -1), axis=axis).ravel() for axis in range(3)])
    values, counts = np.unique(faces, return_counts=True)
    return values[counts.argmax()] if 2 * counts.max() >= faces.size else None


def looks_skull_stripped(image: Nifti1Image) -> bool:
    """Tell a skull-stripped brain from a raw head.

    A stripped brain lies in a background of zeros that reaches the image's faces, is no larger than a brain
    can be, and has no dark layer inside (skull and air in a head).

    Parameters
    ----------
    image : Nifti1Image
        T1-weighted image, voxel size in its affine.

    Returns
    -------
    bool
        True if all signs speak for a stripped brain.
    """
    data = np.abs(np.asanyarray(make_unsigned(image, believed=ANY_SHARE).dataobj, dtype=np.float32))
    brain = _foreground(data)
    litres = brain.sum() * abs(np.linalg.det(image.affine[:3, :3])) / 1e6
    faces = np.ones(data.shape, dtype=bool)
    faces[1:-1, 1:-1, 1:-1] = False
    bright = np.percentile(data[data > 0], _TOP_PERCENTILE)
    dark_share = np.mean(data[brain] < 0.1 * bright)
    return bool(brain.mean() < 0.9 and brain[faces].mean() < 0.08 and litres < 2.3 and dark_share < 0.15)


def network_grid(fixed: Nifti1Image, mask: Nifti1Image | None = None, shape: tuple[int, int, int] = GRID_SHAPE) -> Grid:
    """Choose the grid on which the network registers to a fixed image.

    Parameters
    ----------
    fixed : Nifti1Image
        The fixed image, any orientation and voxel size.
    mask : Nifti1Image, optional
        Its brain, on its grid; default: `brain_mask`.
    shape : sequence of 3 int, default=(160, 192, 224)
        The network's (`mmln_pipeline.network.architecture.NetworkConfig.grid`).

    Returns
    -------
    Grid
        The image's own grid if that is of this shape at 1 mm along L, I, A; else such a grid along the
        world's axes, centred on the brain's bounding box. Where the fixed grid runs along the world's axes at
        1 mm too, the voxel centres coincide with it, so that conforming only moves voxels.

    Raises
    ------
    ValueError
        If the mask is on another grid or empty.
    """
    own = Grid.of(fixed)
    if own.shape == shape and own.axes == GRID_AXES and np.allclose(own.spacing, 1.0, atol=1e-3):
        return own
    voxels = np.argwhere(mask_array(fixed, mask, "fixed mask"))
    points = nib.affines.apply_affine(own.affine, voxels)
    centre = (points.min(axis=0) + points.max(axis=0)) / 2
    origin = centre - _LIA @ ((np.array(shape) - 1) / 2)
    if own.is_axis_aligned_1mm():
        phase = own.affine[:3, 3]
        origin = phase + np.floor(origin - phase + 0.5)
    return Grid(shape, nib.affines.from_matvec(_LIA, origin))


def conform(
    image: Nifti1Image,
    grid: Nifti1Image | Grid,
    affine: np.ndarray | None = None,
    interpolation: str = "linear",
) -> Nifti1Image:
    """Pull an image onto a grid: crop, pad, turn and resample in one step.

    Parameters
    ----------
    image : Nifti1Image
        3-D image.
    grid : Nifti1Image or Grid
        Where to sample it.
    affine : ndarray, shape (4, 4), optional
        RAS+ mm, the grid's world (fixed) to the image's (moving); default: the same world.
    interpolation : str, default="linear"
        One of `mmln_pipeline.space.interpolation.INTERPOLATIONS`.
        Labels take "nearest" or "label".

    Returns
    -------
    Nifti1Image
        On `grid`; float32, or the input's own type for "nearest" and "label". Zero outside the image. On the
        same grid without an affine the values are copied, not sampled.
    """
    if affine is None and Grid.of(grid).matches(image):
        keeps_type = interpolation in FOR_LABELS
        data = np.array(np.asanyarray(image.dataobj), dtype=None if keeps_type else np.float32)
        return new_image(data, grid)
    return Transform(() if affine is None else (affine,)).resample(image, grid, interpolation)


def normalize_intensity(array: np.ndarray, mask: np.ndarray | None = None) -> np.ndarray:
    """Scale intensities to [0, 1] by the 99.5 percentile of the brain; zero stays zero.

    Parameters
    ----------
    array : ndarray, shape (I, J, K)
        Intensities; negative ones become 0.
    mask : ndarray, shape (I, J, K), optional
        The brain; voxels outside become 0. Default: every voxel above zero.

    Returns
    -------
    ndarray, shape (I, J, K)
        float32 in [0, 1].

    Raises
    ------
    ValueError
        If the mask has another shape or no voxel of the brain is above zero.
    """
    if mask is not None and mask.shape != array.shape:
        raise ValueError(f"mask: expected the image's shape {array.shape}, found {mask.shape}")
    values = np.asarray(array, dtype=np.float32)
    if mask is not None:
        values = np.where(np.asarray(mask) > 0, values, np.float32(0))
    signal = values[values > 0]
    if not signal.size:
        raise ValueError(f"image to normalise: expected intensities above zero, found none in {array.size} voxels")
    return np.clip(values / np.percentile(signal, _TOP_PERCENTILE).astype(np.float32), 0.0, 1.0)


def correct_bias(image: Nifti1Image, mask: Nifti1Image | None = None) -> Nifti1Image:
    """Remove the slow intensity drift of the coil (N4), estimated on voxels of about 8 mm.

    Parameters
    ----------
    image : Nifti1Image
        T1-weighted image; negative values become 0.
    mask : Nifti1Image, optional
        Where the drift is estimated, on the image's grid; default: `brain_mask`.

    Returns
    -------
    Nifti1Image
        Corrected image, float32, same grid.

    Raises
    ------
    ValueError
        If the mask is on another grid or empty.

    References
    ----------
    Tustison et al., N4ITK: improved N3 bias correction, IEEE TMI 2010.
    """
    is_brain = mask_array(image, mask)
    data = np.clip(np.asanyarray(image.dataobj, dtype=np.float32), 0.0, None)
    own = Grid.of(image)
    voxels = np.round(N4_SPACING_MM / own.spacing).astype(int)  # of the image, in one of N4's
    shrink = np.clip(voxels, 1, np.maximum(1, np.array(own.shape) // 8)).tolist()
    full = to_sitk_image(new_image(data, image))
    brain = to_sitk_image(new_image(is_brain.astype(np.uint8), image))
    n4 = sitk.N4BiasFieldCorrectionImageFilter()
    n4.SetMaximumNumberOfIterations(N4_ITERATIONS)
    n4.SetConvergenceThreshold(1e-6)
    n4.Execute(sitk.Shrink(full, shrink), sitk.Shrink(brain, shrink))
    drift = sitk.GetArrayFromImage(n4.GetLogBiasFieldAsImage(full)).T  # (K, J, I) -> (I, J, K)
    return new_image(data / np.exp(drift), image)


def _load(path: Path, name: str, decode: Callable[[ArrayProxy], np.ndarray]) -> Nifti1Image:
    """Return a file as a 3-D image that can be worked with."""
    image, data = _read(path, name, decode)
    while data.ndim > 3 and data.shape[-1] == 1:
        data = data[..., 0]
    if data.ndim != 3:
        raise ValueError(f"{name} {path}: expected one 3-D volume, found shape {data.shape}; extract one volume")
    if data.size == 0:
        raise ValueError(f"{name} {path}: expected voxels, found none (shape {data.shape})")
    n_bad = 0 if data.dtype.kind in "iu" else data.size - np.count_nonzero(np.isfinite(data))
    if n_bad:
        raise ValueError(
            f"{name} {path}: expected finite numbers, found {n_bad} of {data.size} voxels NaN or infinite; replace them"
        )
    if not data.any():
        raise ValueError(f"{name} {path}: expected an image, found all {data.size} voxels zero")
    grid = Grid(data.shape, check_affine(affine_in_mm(image), f"{name} {path}: affine"))
    warn_of_placement(path, name)
    return new_image(data, grid, like=image)


def _read(path: Path, name: str, decode: Callable[[ArrayProxy], np.ndarray]) -> tuple[Nifti1Image, np.ndarray]:
    """Return the image and its array; name three ways in which that can fail."""
    if not path.is_file():
        raise FileNotFoundError(f"{name} {path}: {why_unreadable(path)}")
    if not path.name.endswith(IMAGE_SUFFIXES):
        raise ValueError(f"{name} {path}: expected one of {', '.join(IMAGE_SUFFIXES)}, found {path.suffix!r}")
    try:
        image = read_whole(path)
        data = decode(image.dataobj)
        if data.dtype.kind in "iuf":
            return image, np.ascontiguousarray(data.astype(data.dtype.newbyteorder("="), copy=False))
    except UNREADABLE as error:
        raise ValueError(f"{name} {path}: cannot be read ({explain(error)}); {advise(error)}") from error
    raise ValueError(f"{name} {path}: expected one number a voxel, found type {data.dtype}")


def _decode(voxels: ArrayProxy) -> np.ndarray:
    """Return an array in single precision; integers stay."""
    data = np.asanyarray(voxels)
    return data.astype(np.float32, copy=False) if data.dtype.kind == "f" else data


def _decode_doubles(voxels: ArrayProxy) -> np.ndarray:
    """Return an array in double precision at most; integers stay."""
    data = np.asanyarray(voxels)
    return data.astype(np.float64, copy=False) if data.dtype.kind == "f" and data.dtype.itemsize > 4 else data


def _decode_stored(voxels: ArrayProxy) -> np.ndarray:
    """Return an array without a slope that differs from 1 by no more than rounding: such is none."""
    is_none = abs(voxels.slope - 1.0) < _SLOPE and abs(voxels.inter) < _SLOPE
    return voxels.get_unscaled() if is_none else _decode_doubles(voxels)


def _foreground(data: np.ndarray) -> np.ndarray:
    """Return where an array is not background: traces and specks dropped, holes filled."""
    strength = np.abs(data.astype(np.float32))
    if not strength.any():
        return np.zeros(data.shape, dtype=bool)
    is_signal = strength > _BACKGROUND * np.percentile(strength[strength > 0], _TOP_PERCENTILE)
    pieces, _ = ndimage.label(is_signal)
    sizes = np.bincount(pieces.ravel())
    sizes[0] = 0
    is_large = sizes > _SMALL_PIECE * sizes.max()
    return fill_holes(is_large[pieces])
