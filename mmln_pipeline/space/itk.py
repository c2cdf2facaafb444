"""ITK's transforms and files (ANTs, SimpleITK), in LPS+ mm: the only place where an axis is flipped.

Everything outside this module is in RAS+ mm; the signs of x and y change here, on the way in and out, and nowhere else.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

import h5py
import numpy as np
import SimpleITK as sitk
from nibabel import Nifti1Image
from nibabel.affines import from_matvec, voxel_sizes
from nibabel.orientations import apply_orientation, axcodes2ornt, inv_ornt_aff, io_orientation, ornt_transform
from scipy.io import loadmat
from scipy.io.matlab import MatReadError

from mmln_pipeline.machine.files import atomic_path, why_unreadable
from mmln_pipeline.machine.reading import UNREADABLE, read_whole
from mmln_pipeline.machine.writing import shuffle_and_deflate, write_whole
from mmln_pipeline.space.displacements import DisplacementField
from mmln_pipeline.space.grids import Grid, affine_in_mm, check_affine, new_image

LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
"""RAS+ to LPS+ and back."""
Part = np.ndarray | DisplacementField
"""What transforms are chains of: a matrix, shape (4, 4), or a field, RAS+ mm."""
AFFINE_SUFFIXES = (".mat", ".txt", ".tfm")
FIELD_SUFFIXES = (".nii", ".nii.gz")
# Finer than any registration; zero low bits let gzip take a third off the file.
_FILE_STEPS_PER_MM = 8192
_GZIP = {"compression": "gzip", "compression_opts": 1, "shuffle": True}
_CHUNK = 3 * 160 * 256  # half a megabyte, half of what HDF5 keeps of a dataset while it reads
_DISPLACEMENTS = 1006  # NIfTI's intent code; ITK itself writes that for vectors, 1007
_LINEAR_PARAMETERS = 32  # ITK's linear transforms have 16 at most
_EXPECTED = "expected affines and displacement fields"
_UNREADABLE = (*UNREADABLE, RuntimeError, TypeError, KeyError, AttributeError, NotImplementedError, MatReadError)
# Images seldom have voxels there. At points that are all voxels of the field, nitransforms looks the field up without
# regard to its size: beyond it, that fails or takes the value of another place.
_OFF_VOXELS = 1 / 512


def itk_geometry(grid: Nifti1Image | Grid) -> tuple[list[float], list[float], list[float]]:
    """Return a grid as ITK wants it: origin (LPS+ mm), spacing (mm), direction (9 numbers, row by row)."""
    affine = LPS @ Grid.of(grid).affine
    spacing = voxel_sizes(affine)
    return affine[:3, 3].tolist(), spacing.tolist(), (affine[:3, :3] / spacing).ravel().tolist()


def itk_points(points: np.ndarray, dtype: np.dtype | type | None = None, order: Literal["K", "C"] = "K") -> np.ndarray:
    """Turn points or vectors, shape (..., 3), from RAS+ mm to ITK's LPS+ mm or back; float32 stays so by default."""
    points = np.asarray(points)
    dtype = np.dtype(dtype or np.result_type(points, np.float32))
    return np.multiply(points, np.diag(LPS)[:3].astype(dtype), dtype=dtype, order=order)


def to_sitk_image(image: Nifti1Image) -> sitk.Image:
    """Return a 3-D image as SimpleITK's, its data copied."""
    return array_to_sitk(np.asanyarray(image.dataobj), image.affine)


def matrix_from_sitk(transform: sitk.Transform) -> np.ndarray:
    """Return a linear SimpleITK transform as a matrix, shape (4, 4), RAS+ mm."""
    origin = np.array(transform.TransformPoint((0.0, 0.0, 0.0)))
    columns = [np.array(transform.TransformPoint(unit)) - origin for unit in np.eye(3).tolist()]
    return LPS @ from_matvec(np.stack(columns, axis=1), origin) @ LPS


def array_to_sitk(array: np.ndarray, affine: np.ndarray) -> sitk.Image:
    """Return an array, (I, J, K) or (I, J, K, 3), as a SimpleITK image on its grid."""
    return _place(sitk.GetImageFromArray(array.transpose((2, 1, 0, 3)[: array.ndim]), isVector=array.ndim == 4), affine)


def _place(image: sitk.Image, affine: np.ndarray) -> sitk.Image:
    """Return an image, put on a grid."""
    origin, spacing, direction = itk_geometry(Grid(image.GetSize(), affine))
    image.SetOrigin(origin)
    image.SetSpacing(spacing)
    image.SetDirection(direction)
    return image


def _field_to_sitk(field: DisplacementField) -> sitk.DisplacementFieldTransform:
    """Return a field as ITK's transform, which wants double precision."""
    offsets = itk_points(field.offsets_mm.transpose(2, 1, 0, 3), np.float64, "C")  # one copy, as ITK reads it
    return sitk.DisplacementFieldTransform(_place(sitk.GetImageFromArray(offsets, isVector=True), field.affine))


def field_from_sitk(image: sitk.Image) -> DisplacementField:
    """Return an ITK vector image as a field, RAS+ mm."""
    offsets = itk_points(sitk.GetArrayViewFromImage(image).transpose(2, 1, 0, 3), np.float32)
    return DisplacementField(offsets, affine_from_sitk(image))


def affine_from_sitk(image: sitk.Image | sitk.ImageFileReader) -> np.ndarray:
    """Return where the voxels of an image's first three axes lie, voxel index to RAS+ mm, shape (4, 4)."""
    return _affine_from_itk(image.GetOrigin(), image.GetSpacing(), image.GetDirection())


def _affine_from_itk(origin: Sequence[float], spacing: Sequence[float], direction: Sequence[float]) -> np.ndarray:
    """Return the affine of ITK's numbers as `itk_geometry` gives them, of three dimensions or more."""
    linear = np.reshape(direction, (len(spacing), len(spacing))) * spacing
    return LPS @ from_matvec(linear[:3, :3], origin[:3])


def chain_to_sitk(parts: Sequence[Part]) -> sitk.CompositeTransform:
    """Return a chain for SimpleITK (LPS+ mm), which applies first what was added last."""
    composite = sitk.CompositeTransform(3)
    for part in reversed(parts):
        composite.AddTransform(_field_to_sitk(part) if isinstance(part, DisplacementField) else _affine_to_sitk(part))
    return composite


def write_composite(parts: Sequence[Part], path: str | os.PathLike[str]) -> Path:
    """Write a chain as an ITK composite (HDF5).

    Parameters
    ----------
    parts : sequence of (ndarray, shape (4, 4)) or DisplacementField
        At least one, applied to a point from first to last, RAS+ mm.
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
        for number, part in enumerate(reversed(parts), start=1):
            group = file.create_group(f"TransformGroup/{number}")
            _write_field(group, part) if isinstance(part, DisplacementField) else _write_affine(group, part)
    return Path(path)


def _affine_to_sitk(matrix: np.ndarray) -> sitk.AffineTransform:
    """Return a RAS+ matrix as ITK's affine."""
    lps = LPS @ matrix @ LPS
    transform = sitk.AffineTransform(3)
    transform.SetMatrix(lps[:3, :3].ravel().tolist())
    transform.SetTranslation(lps[:3, 3].tolist())
    return transform


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
    if not is_field(path):
        raise ValueError(f"{path}: a displacement field needs the suffix .nii or .nii.gz")
    image = new_image(itk_points(field.offsets_mm)[..., None, :], field.grid)
    image.header.set_intent("vector")
    return write_whole(image, path)


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


def is_field(path: str | os.PathLike[str]) -> bool:
    """Tell by its name whether a file is a displacement field."""
    return os.fspath(path).endswith(FIELD_SUFFIXES)


def read_parts(path: str | os.PathLike[str]) -> list[Part]:
    """Read an ITK transform file; see `mmln_pipeline.space.transforms.read_transform`.

    Returns
    -------
    list of (ndarray, shape (4, 4)) or DisplacementField
        Applied to a point from first to last, RAS+ mm.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"transform {path}: {why_unreadable(path)}")
    if not path.name.endswith((".h5", *FIELD_SUFFIXES, *AFFINE_SUFFIXES)):
        kinds = ", ".join((".h5", *FIELD_SUFFIXES, *AFFINE_SUFFIXES))
        raise ValueError(f"transform {path}: expected an ITK file ({kinds}), found another suffix")
    try:
        if path.suffix == ".h5":
            return _read_composite(path)
        return [_read_displacement(path) if is_field(path) else _read_linear(path)]
    except _UNREADABLE as error:
        kind = "NIfTI file" if is_field(path) else "ITK transform"
        cause = (str(error).strip() or type(error).__name__).splitlines()[-1]  # where ITK says it
        raise ValueError(f"transform {path}: not a readable {kind} ({cause})") from error


def _read_linear(path: Path) -> np.ndarray:
    """Read a linear transform from a file of text or MATLAB's; ITK knows what the parameters of each kind mean."""
    if path.suffix == ".mat":
        loadmat(path)  # ITK makes numbers up for what is missing at the end
    transform = sitk.ReadTransform(os.fspath(path))
    if transform.GetDimension() != 3:
        raise ValueError(f"expected 3 dimensions, found {transform.GetDimension()}")
    if not transform.IsLinear():
        raise ValueError(f"{_EXPECTED}, found {transform.GetName()}")
    return check_affine(matrix_from_sitk(transform), "affine")


def _read_displacement(path: Path) -> DisplacementField:
    """Read ITK's NIfTI displacement field, LPS, or RAS where the intent code is that for displacements, as ITK does."""
    image = read_whole(path)
    data = np.asanyarray(image.dataobj, dtype=np.float32)
    if data.ndim != 5 or data.shape[3:] != (1, 3):
        raise ValueError(f"expected an ITK field of shape (I, J, K, 1, 3), found {data.shape}")
    is_ras = int(image.header["intent_code"]) == _DISPLACEMENTS
    return DisplacementField(data[..., 0, :] if is_ras else itk_points(data[..., 0, :]), affine_in_mm(image))


def _read_composite(path: Path) -> list[Part]:
    """Read an HDF5 file of ITK's without ITK.

    ITK takes the memory that a field's size asks for before it knows what the file holds, and HDF5 tells the terminal
    what is wrong with a damaged one.
    """
    with h5py.File(path) as file:
        groups = file["TransformGroup"]
        members = [groups[name] for name in sorted(groups, key=int)]
        kinds = [np.ravel(group["TransformType"].asstr()[()])[0] for group in members]
        parts = list(zip(kinds, members, strict=True))
        if kinds and kinds[0].startswith("CompositeTransform_"):
            del parts[0]  # the members follow, the one that is applied last first
        elif len(parts) != 1:
            raise ValueError(f"expected one transform or a composite, found {', '.join(kinds) or 'none'}")
        return [_read_member(kind, group) for kind, group in reversed(parts)]


def _read_member(kind: str, group: h5py.Group) -> Part:
    """Read one member of a composite; `kind` is such as AffineTransform_double_3_3."""
    if not kind.endswith("_3_3"):
        raise ValueError(f"expected 3 dimensions, found {kind}")
    fixed, values = (_find_numbers(group, f"Transform{name}Parameters") for name in ("Fixed", ""))
    if "DisplacementFieldTransform_" in kind:
        return _read_field(fixed[...], values)
    if values.size > _LINEAR_PARAMETERS:
        raise ValueError(f"{_EXPECTED}, found {kind} of {values.size} parameters")
    numbers = {"Parameters": values[...], "FixedParameters": fixed[...]}
    if not all(np.isfinite(part).all() for part in numbers.values()):
        raise ValueError(f"expected finite parameters of {kind}, found {values[...].tolist()}")
    lines = [f"{name}: {' '.join(map(str, part.tolist()))}" for name, part in numbers.items()]
    with TemporaryDirectory() as folder:
        path = Path(folder, "member.tfm")
        path.write_text(
            "\n".join(["#Insight Transform File V1.0", "#Transform 0", f"Transform: {kind}", *lines, ""]),
            encoding="ascii",
        )
        return _read_linear(path)


def _find_numbers(group: h5py.Group, name: str) -> h5py.Dataset:
    """Return numbers of a transform, to be read; refuse those of which the file holds a part or nothing."""
    found = group[name] if name in group else group[name.replace("Transform", "Tranform", 1)]  # as ITK 4 spells it
    if found.size and found.id.get_space_status() != h5py.h5d.SPACE_STATUS_ALLOCATED:
        raise ValueError(f"it promises {found.size} numbers as {name}, and does not hold them")
    return found


def _read_field(fixed: np.ndarray, values: h5py.Dataset) -> DisplacementField:
    """Read a displacement field of a composite; `fixed`: size, origin, spacing and direction."""
    if fixed.shape != (18,) or not np.isfinite(fixed).all():
        raise ValueError(f"expected 18 numbers that place a displacement field, found {fixed.tolist()}")
    size, origin, spacing, direction = (part.tolist() for part in np.split(fixed, (3, 6, 9)))
    if not all(n.is_integer() for n in size) or 3 * np.prod(size) != values.size or min(spacing) <= 0:
        found = f"{'x'.join(f'{n:g}' for n in size)} voxels of {'x'.join(f'{n:g}' for n in spacing)} mm"
        raise ValueError(f"a displacement field of {found} cannot have {values.size} numbers")
    shape = *map(int, reversed(size)), 3
    offsets = values.astype(np.float32)[...].reshape(shape).transpose(2, 1, 0, 3)
    return DisplacementField(itk_points(offsets), _affine_from_itk(origin, spacing, direction))


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
    values *= np.float32(_FILE_STEPS_PER_MM)
    np.rint(values, out=values)
    values /= np.float32(_FILE_STEPS_PER_MM)
    group["TransformType"] = _h5_text("DisplacementFieldTransform_double_3_3")
    group["TransformFixedParameters"] = np.array([*grid.shape, *origin, *spacing, *direction], dtype=np.float64)
    _write_compressed(group, "TransformParameters", values.ravel())


def _write_compressed(group: h5py.Group, name: str, values: np.ndarray) -> None:
    """Write numbers chunk by chunk, compressed by a faster library than HDF5's, for HDF5's filters to undo."""
    chunk = min(_CHUNK, values.size)
    dataset = group.create_dataset(name, values.shape, values.dtype, chunks=(chunk,), **_GZIP)
    for start in range(0, values.size, chunk):
        part = values[start : start + chunk]
        if part.size < chunk:  # which is whole on disk
            part = np.pad(part, (0, chunk - part.size))
        dataset.id.write_direct_chunk((start,), shuffle_and_deflate(part))
