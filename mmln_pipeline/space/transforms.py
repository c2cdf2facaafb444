"""Spatial transforms in RAS+ millimetres, and their ITK files: the only place where an axis is flipped.

Everything outside this module is in RAS+ mm. ITK (ANTs, SimpleITK) works in LPS+ mm, so the signs of x and y
change here, on the way in and out, and nowhere else. A forward transform maps points of the *fixed* world to
the *moving* world, which is what resampling the moving image onto the fixed grid needs and what an ITK file
of it holds.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import h5py
import nibabel as nib
import numpy as np
import SimpleITK as sitk
from nibabel import Nifti1Image
from nibabel.affines import apply_affine, from_matvec, voxel_sizes
from nibabel.orientations import apply_orientation, axcodes2ornt, inv_ornt_aff, io_orientation, ornt_transform
from scipy.io import loadmat
from scipy.io.matlab import MatReadError
from scipy.ndimage import map_coordinates

from mmln_pipeline.machine.files import atomic_path
from mmln_pipeline.machine.reading import UNREADABLE, explain, read_whole
from mmln_pipeline.space.grids import LPS, Grid, affine_in_mm, check_affine, new_image
from mmln_pipeline.space.interpolation import FOR_LABELS, INTERPOLATIONS
from mmln_pipeline.space.placement import warn_of_placement

_SITK = (sitk.sitkLinear, sitk.sitkNearestNeighbor, sitk.sitkLanczosWindowedSinc, sitk.sitkLabelLinear)
INTERPOLATORS = dict(zip(INTERPOLATIONS, _SITK, strict=True))
"""SimpleITK's interpolators by name."""
# Beyond these ITK, which computes in double precision, and its labels' interpolator, changes whole numbers.
_EXACT = dict(zip(FOR_LABELS, (2**53, 2**24), strict=True))
AFFINE_SUFFIXES = (".mat", ".txt", ".tfm")
FIELD_SUFFIXES = (".nii", ".nii.gz")
# Finer than any registration; zero low bits let gzip take a third off the file.
_FILE_STEPS_PER_MM = 8192
_GZIP = {"compression": "gzip", "compression_opts": 1, "shuffle": True}
_CHUNK = 3 * 160 * 16
# Images seldom have voxels there. At points that are all voxels of the field, nitransforms looks the field up without
# regard to its size: beyond it, that fails or takes the value of another place.
_OFF_VOXELS = 1 / 512


@dataclass(frozen=True, eq=False)
class DisplacementField:
    """Offsets on a grid: a point x goes to ``x + offset(x)``, interpolated linearly; outside it stays.

    Parameters
    ----------
    offsets_mm : ndarray, shape (I, J, K, 3)
        Offsets along R, A, S in mm, float32.
    affine : ndarray, shape (4, 4)
        Voxel index to RAS+ mm.

    Raises
    ------
    ValueError
        If the shape is not (I, J, K, 3), an offset is not finite or the affine is unusable.
    """

    offsets_mm: np.ndarray
    affine: np.ndarray

    def __post_init__(self) -> None:
        offsets = np.asarray(self.offsets_mm, dtype=np.float32)
        if offsets.ndim != 4 or offsets.shape[-1] != 3:
            raise ValueError(f"displacement field: expected shape (I, J, K, 3), found {offsets.shape}")
        n_bad = offsets.size - np.count_nonzero(np.isfinite(offsets))
        if n_bad:
            raise ValueError(f"displacement field: expected finite offsets, found {n_bad} of {offsets.size} not")
        object.__setattr__(self, "offsets_mm", offsets)
        object.__setattr__(self, "affine", check_affine(self.affine, "displacement field affine"))

    @property
    def grid(self) -> Grid:
        """The field's own grid."""
        return Grid(self.offsets_mm.shape[:3], self.affine)

    def map_points(self, points: np.ndarray) -> np.ndarray:
        """Move points, shape (N, 3), RAS+ mm; those more than half a voxel outside the grid stay."""
        index = apply_affine(np.linalg.inv(self.affine), points).T
        size = np.array(self.grid.shape)[:, None]
        is_inside = ((index >= -0.5) & (index <= size - 0.5)).all(axis=0)
        offsets = np.zeros_like(points)
        for axis in range(3):
            values = map_coordinates(self.offsets_mm[..., axis], index[:, is_inside], order=1, mode="nearest")
            offsets[is_inside, axis] = values
        return points + offsets


@dataclass(frozen=True, eq=False)
class Transform:
    """A chain of affines and displacement fields, in RAS+ mm.

    Parameters
    ----------
    parts : sequence of (ndarray, shape (4, 4)) or DisplacementField
        Applied to a point from first to last. Forward registration: ``(warp, affine)``, fixed to moving.
    """

    parts: Sequence[np.ndarray | DisplacementField] = ()

    def __post_init__(self) -> None:
        parts = (p if isinstance(p, DisplacementField) else check_affine(p, "affine") for p in self.parts)
        object.__setattr__(self, "parts", tuple(parts))

    def map_points(self, points: np.ndarray) -> np.ndarray:
        """Map points through the chain.

        Parameters
        ----------
        points : array-like, shape (N, 3)
            RAS+ mm in the world where the transform starts (forward: fixed).

        Returns
        -------
        ndarray, shape (N, 3)
            RAS+ mm in the world where it ends (forward: moving), float64.
        """
        points = np.array(points, dtype=np.float64)
        if points.ndim != 2 or points.shape[1] != 3:
            raise ValueError(f"points: expected shape (N, 3), found {points.shape}")
        for part in self.parts:
            move = part.map_points if isinstance(part, DisplacementField) else partial(apply_affine, part)
            points = move(points)
        return points

    def to_sitk(self) -> sitk.CompositeTransform:
        """Return the same mapping for SimpleITK (LPS+ mm), which applies first what was added last."""
        composite = sitk.CompositeTransform(3)
        for part in reversed(self.parts or (np.eye(4),)):
            composite.AddTransform(
                _field_to_sitk(part) if isinstance(part, DisplacementField) else _affine_to_sitk(part)
            )
        return composite

    def resample(
        self,
        image: Nifti1Image,
        reference: Nifti1Image | Grid,
        interpolation: str = "linear",
        default: float = 0.0,
    ) -> Nifti1Image:
        """Sample an image once, through the whole chain, on another grid.

        Parameters
        ----------
        image : Nifti1Image
            3-D image in the world where the transform ends (forward: moving).
        reference : Nifti1Image or Grid
            Grid in the world where it starts (forward: fixed).
        interpolation : str, default="linear"
            One of `mmln_pipeline.space.interpolation.INTERPOLATIONS`.
            Labels take "nearest" or "label".
        default : float, default=0.0
            Value of voxels that fall outside `image`.

        Returns
        -------
        Nifti1Image
            On `reference`; float32, or the input's own type for "nearest" and "label".

        Raises
        ------
        ValueError
            If the interpolation is unknown or the image not 3-D.
        """
        if interpolation not in INTERPOLATORS:
            known = ", ".join(INTERPOLATORS)
            raise ValueError(f"interpolation: expected one of {known}; found {interpolation!r}")
        data = np.asanyarray(image.dataobj)
        if data.ndim != 3:
            raise ValueError(f"image to resample: expected 3-D, found shape {data.shape}")
        native = data.dtype.newbyteorder("=")
        grid = Grid.of(reference)
        if interpolation not in _EXACT:
            return new_image(
                self._sample(data.astype(np.float32, copy=False), image.affine, grid, interpolation, default), reference
            )
        # SimpleITK has no interpolator of labels for every pixel type, so that float32 carries them there.
        dtype = native if interpolation == "nearest" else np.float32
        limit = _EXACT[interpolation]
        if data.size and (data.max() > limit or data.min() < -limit):
            numbers, codes = number_consecutively(data.astype(native, copy=False), default)
            outside = float(np.searchsorted(numbers, native.type(default)))
            sampled = self._sample(codes.astype(np.float32), image.affine, grid, interpolation, outside)
            return new_image(numbers[sampled.astype(np.int64)], reference)
        sampled = self._sample(data.astype(dtype, copy=False), image.affine, grid, interpolation, default)
        return new_image(sampled.astype(native, copy=False), reference)

    def _sample(
        self, data: np.ndarray, affine: np.ndarray, grid: Grid, interpolation: str, default: float
    ) -> np.ndarray:
        """Return an array sampled on a grid through the chain, in its own type."""
        resampler = sitk.ResampleImageFilter()
        origin, spacing, direction = itk_geometry(grid)
        resampler.SetSize(grid.shape)
        resampler.SetOutputOrigin(origin)
        resampler.SetOutputSpacing(spacing)
        resampler.SetOutputDirection(direction)
        resampler.SetTransform(self.to_sitk())
        resampler.SetInterpolator(INTERPOLATORS[interpolation])
        resampler.SetDefaultPixelValue(default)
        moved = resampler.Execute(_array_to_sitk(data, affine))
        return np.ascontiguousarray(sitk.GetArrayFromImage(moved).T)

    def displacement(self, reference: Nifti1Image | Grid) -> DisplacementField:
        """Sample the whole chain as one displacement field.

        Parameters
        ----------
        reference : Nifti1Image or Grid
            Where to sample it, in the world where the transform starts.

        Returns
        -------
        DisplacementField
            ``T(x) - x`` at each voxel centre of `reference`, RAS+ mm.
        """
        grid = Grid.of(reference)
        field = sitk.TransformToDisplacementField(
            self.to_sitk(), sitk.sitkVectorFloat64, grid.shape, *itk_geometry(grid)
        )
        return _field_from_sitk(field)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the chain as an ITK composite, which ANTs, SimpleITK and nitransforms read.

        Fields are stored as float32 in steps of 1/8192 mm, compressed, on their grid re-ordered towards L, P,
        S so that its direction matrix is near the identity, and 1/512 voxel beside it; offsets are extrapolated so
        far, and so the mapping stays the same. Affines keep double precision.

        Parameters
        ----------
        path : path-like
            Ends in .h5; replaced atomically.

        Returns
        -------
        Path
            The file written.
        """
        if not os.fspath(path).endswith(".h5"):
            raise ValueError(f"{path}: an ITK composite transform needs the suffix .h5")
        with atomic_path(path) as temporary, h5py.File(temporary, "w", track_order=False) as file:
            # Readers ask for these; constants keep the file the same on every machine.
            file["ITKVersion"] = _h5_text("5.4.0")
            file["HDFVersion"] = _h5_text("HDF5 library version: 1.12.1")
            file["OSName"] = _h5_text("any")
            file["OSVersion"] = _h5_text("any")
            file["TransformGroup/0/TransformType"] = _h5_text("CompositeTransform_double_3_3")
            for number, part in enumerate(reversed(self.parts or (np.eye(4),)), start=1):
                group = file.create_group(f"TransformGroup/{number}")
                _write_field(group, part) if isinstance(part, DisplacementField) else _write_affine(group, part)
        return Path(path)


def number_consecutively(labels: np.ndarray, outside: float = 0) -> tuple[np.ndarray, np.ndarray]:
    """Renumber labels from 0, for arithmetic that is too coarse for their own numbers.

    Parameters
    ----------
    labels : array of numbers, any shape
        Label image.
    outside : float, default=0
        A further number that gets a code.

    Returns
    -------
    numbers : array, shape (N,)
        The numbers found and `outside`, ascending, in the type of `labels`.
    codes : array of int, shape of `labels`
        ``numbers[codes]`` are the labels.

    Examples
    --------
    >>> number_consecutively(np.array([614454277, 0, 16777217]))
    (array([        0,  16777217, 614454277]), array([2, 0, 1]))
    """
    numbers = np.union1d(labels, np.asarray(outside).astype(labels.dtype))
    return numbers, np.searchsorted(numbers, labels)


def displacement_from_voxels(u_vox: np.ndarray, affine: np.ndarray) -> DisplacementField:
    """Turn offsets in voxels of a grid into a displacement field in mm.

    Parameters
    ----------
    u_vox : ndarray, shape (3, I, J, K)
        Offsets along the array axes, voxels.
    affine : ndarray, shape (4, 4)
        The grid's voxel index to RAS+ mm; only its linear part turns offsets.

    Returns
    -------
    DisplacementField
        The same mapping of points.
    """
    u_vox = np.asarray(u_vox)
    if u_vox.ndim != 4 or u_vox.shape[0] != 3:
        raise ValueError(f"displacement in voxels: expected shape (3, I, J, K), found {u_vox.shape}")
    matrix = np.asarray(affine, dtype=np.float64)[:3, :3]
    return DisplacementField(np.tensordot(u_vox, matrix.astype(np.float32), axes=(0, 1)), affine)


def displacement_to_voxels(field: DisplacementField) -> np.ndarray:
    """Return a displacement field's offsets in voxels of its own grid, shape (3, I, J, K), float32."""
    inverse = np.linalg.inv(field.affine[:3, :3]).astype(np.float32)
    return np.ascontiguousarray(np.moveaxis(field.offsets_mm @ inverse.T, -1, 0))


def save_displacement(field: DisplacementField, path: str | os.PathLike[str]) -> Path:
    """Write a displacement field as ITK's NIfTI: shape (I, J, K, 1, 3), vector intent, LPS+ mm, float32.

    Parameters
    ----------
    field : DisplacementField
        What to write.
    path : path-like
        Ends in .nii or .nii.gz; replaced atomically.

    Returns
    -------
    Path
        The file written.
    """
    if not os.fspath(path).endswith(FIELD_SUFFIXES):
        raise ValueError(f"{path}: a displacement field needs the suffix .nii or .nii.gz")
    image = new_image(itk_points(field.offsets_mm)[..., None, :], field.grid)
    image.header.set_intent("vector")
    with atomic_path(path) as temporary:
        nib.save(image, temporary)
    return Path(path)


def save_affine(matrix: np.ndarray, path: str | os.PathLike[str]) -> Path:
    """Write an affine as an ITK transform file.

    Parameters
    ----------
    matrix : ndarray, shape (4, 4)
        RAS+ mm, fixed world to moving world.
    path : path-like
        Ends in .mat (binary, exact), .txt or .tfm; replaced atomically.

    Returns
    -------
    Path
        The file written.
    """
    if not os.fspath(path).endswith(AFFINE_SUFFIXES):
        raise ValueError(f"{path}: an ITK affine needs one of the suffixes {', '.join(AFFINE_SUFFIXES)}")
    transform = _affine_to_sitk(check_affine(matrix, "affine"))
    with atomic_path(path) as temporary:
        sitk.WriteTransform(transform, os.fspath(temporary))
    return Path(path)


def read_transform(path: str | os.PathLike[str]) -> Transform:
    """Read an ITK transform file.

    Parameters
    ----------
    path : path-like
        A composite (.h5), a displacement field (.nii, .nii.gz) or an affine (.mat, .txt, .tfm).

    Returns
    -------
    Transform
        The same mapping, RAS+ mm.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If it is of another kind, damaged, or holds a transform that is neither linear nor a displacement
        field.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"transform {path}: no such file")
    if path.name.endswith(FIELD_SUFFIXES):
        return Transform((_read_displacement(path),))
    if not path.name.endswith((".h5", *AFFINE_SUFFIXES)):
        kinds = ", ".join((".h5", *FIELD_SUFFIXES, *AFFINE_SUFFIXES))
        raise ValueError(f"transform {path}: expected an ITK file ({kinds}), found another suffix")
    try:
        if path.suffix == ".mat":
            loadmat(path)  # ITK makes numbers up for what is missing at the end
        transform = sitk.ReadTransform(os.fspath(path))
    except (RuntimeError, ValueError, TypeError, OSError, NotImplementedError, MatReadError) as error:
        cause = str(error).strip().splitlines()[-1]
        raise ValueError(f"transform {path}: not a readable ITK transform ({cause})") from error
    return Transform([_part_from_sitk(part, path) for part in _members(transform)])


def itk_geometry(grid: Nifti1Image | Grid) -> tuple[list[float], list[float], list[float]]:
    """Return a grid as ITK wants it: origin (LPS+ mm), spacing (mm), direction (9 numbers, row by row)."""
    affine = LPS @ Grid.of(grid).affine
    spacing = voxel_sizes(affine)
    return affine[:3, 3].tolist(), spacing.tolist(), (affine[:3, :3] / spacing).ravel().tolist()


def itk_points(points: np.ndarray) -> np.ndarray:
    """Turn points or vectors, shape (..., 3), from RAS+ mm to ITK's LPS+ mm or back; float32 stays so."""
    points = np.asarray(points)
    return points * np.diag(LPS)[:3].astype(np.result_type(points, np.float32))


def to_sitk_image(image: Nifti1Image) -> sitk.Image:
    """Return a 3-D image as SimpleITK's, its data copied."""
    return _array_to_sitk(np.asanyarray(image.dataobj), image.affine)


def matrix_from_sitk(transform: sitk.Transform) -> np.ndarray:
    """Return a linear SimpleITK transform as a matrix, shape (4, 4), RAS+ mm."""
    origin = np.array(transform.TransformPoint((0.0, 0.0, 0.0)))
    columns = [np.array(transform.TransformPoint(unit)) - origin for unit in np.eye(3).tolist()]
    return LPS @ from_matvec(np.stack(columns, axis=1), origin) @ LPS


def _array_to_sitk(array: np.ndarray, affine: np.ndarray) -> sitk.Image:
    """Return an array, (I, J, K) or (I, J, K, 3), as a SimpleITK image on its grid."""
    is_vector = array.ndim == 4
    reversed_axes = array.transpose((2, 1, 0, 3) if is_vector else (2, 1, 0))
    image = sitk.GetImageFromArray(reversed_axes, isVector=is_vector)
    origin, spacing, direction = itk_geometry(Grid(array.shape[:3], affine))
    image.SetOrigin(origin)
    image.SetSpacing(spacing)
    image.SetDirection(direction)
    return image


def _field_to_sitk(field: DisplacementField) -> sitk.DisplacementFieldTransform:
    """Return a field as ITK's transform, which wants double precision."""
    return sitk.DisplacementFieldTransform(
        _array_to_sitk(itk_points(field.offsets_mm).astype(np.float64), field.affine)
    )


def _field_from_sitk(image: sitk.Image) -> DisplacementField:
    """Return an ITK vector image as a field, RAS+ mm."""
    offsets = itk_points(sitk.GetArrayViewFromImage(image).transpose(2, 1, 0, 3))
    linear = np.array(image.GetDirection()).reshape(3, 3) * image.GetSpacing()
    return DisplacementField(offsets, LPS @ from_matvec(linear, image.GetOrigin()))


def _affine_to_sitk(matrix: np.ndarray) -> sitk.AffineTransform:
    """Return a RAS+ matrix as ITK's affine."""
    lps = LPS @ matrix @ LPS
    transform = sitk.AffineTransform(3)
    transform.SetMatrix(lps[:3, :3].ravel().tolist())
    transform.SetTranslation(lps[:3, 3].tolist())
    return transform


def _members(transform: sitk.Transform) -> list[sitk.Transform]:
    """Return the members of a composite in the order in which a point meets them."""
    if transform.GetName() != "CompositeTransform":
        return [transform]
    composite = sitk.CompositeTransform(transform)
    return [composite.GetNthTransform(i) for i in reversed(range(composite.GetNumberOfTransforms()))]


def _part_from_sitk(transform: sitk.Transform, path: Path) -> np.ndarray | DisplacementField:
    """Return a simple ITK transform as a part of ours."""
    if transform.GetDimension() != 3:
        raise ValueError(f"transform {path}: expected 3 dimensions, found {transform.GetDimension()}")
    kind = transform.GetName()
    if kind == "DisplacementFieldTransform":
        return _field_from_sitk(sitk.DisplacementFieldTransform(transform).GetDisplacementField())
    if not transform.IsLinear():
        raise ValueError(f"transform {path}: expected affines and displacement fields, found {kind}")
    return check_affine(matrix_from_sitk(transform), f"transform {path}")


def _read_displacement(path: Path) -> DisplacementField:
    """Read ITK's NIfTI displacement field."""
    try:
        image = read_whole(path)
        data = np.asanyarray(image.dataobj, dtype=np.float32)
    except UNREADABLE as error:
        raise ValueError(f"transform {path}: not a readable NIfTI file ({explain(error)})") from error
    if data.ndim != 5 or data.shape[3:] != (1, 3):
        raise ValueError(f"transform {path}: expected an ITK field of shape (I, J, K, 1, 3), found {data.shape}")
    warn_of_placement(path, "transform")
    return DisplacementField(itk_points(data[..., 0, :]), affine_in_mm(image))


def _h5_text(text: str) -> np.ndarray:
    """Return a string as ITK stores and seeks it: an array of one variable-length string."""
    return np.array([text], dtype=h5py.string_dtype("ascii"))


def _write_affine(group: h5py.Group, matrix: np.ndarray) -> None:
    """Write a RAS+ matrix as ITK's affine, centre at the origin."""
    lps = LPS @ matrix @ LPS
    group["TransformType"] = _h5_text("AffineTransform_double_3_3")
    group["TransformFixedParameters"] = np.zeros(3)
    group["TransformParameters"] = np.concatenate([lps[:3, :3].ravel(), lps[:3, 3]])


def _write_field(group: h5py.Group, field: DisplacementField) -> None:
    """Write a field as ITK's displacement field transform, its axes re-ordered towards L, P, S, off its voxels."""
    reorder = ornt_transform(io_orientation(field.affine), axcodes2ornt(("L", "P", "S")))
    offsets = apply_orientation(field.offsets_mm, reorder)
    beside = from_matvec(np.eye(3), (0.0, 0.0, _OFF_VOXELS))
    grid = Grid(offsets.shape[:3], field.affine @ inv_ornt_aff(reorder, field.grid.shape) @ beside)
    origin, spacing, direction = itk_geometry(grid)
    values = itk_points(offsets.transpose(2, 1, 0, 3))
    values[1:] += np.float32(_OFF_VOXELS) * np.diff(values, axis=0)
    values = np.round(values * np.float32(_FILE_STEPS_PER_MM)) / np.float32(_FILE_STEPS_PER_MM)
    group["TransformType"] = _h5_text("DisplacementFieldTransform_double_3_3")
    group["TransformFixedParameters"] = np.array([*grid.shape, *origin, *spacing, *direction], dtype=np.float64)
    group.create_dataset("TransformParameters", data=values.ravel(), chunks=(min(_CHUNK, values.size),), **_GZIP)
