"""Transforms in the files of FSL, FreeSurfer and nitransforms (X5), through fslpy and nitransforms.

Each is turned into, or made of, a mapping of points of the fixed world to the moving world, RAS+ mm.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel import Nifti1Image

from mmln_pipeline.machine.files import atomic_path
from mmln_pipeline.machine.reading import UNREADABLE, explain
from mmln_pipeline.space.displacements import DisplacementField, displacement_to_voxels
from mmln_pipeline.space.grids import new_image
from mmln_pipeline.space.itk import AFFINE_SUFFIXES, FIELD_SUFFIXES, is_field, save_affine, save_displacement
from mmln_pipeline.space.transforms import Transform, read_transform

SUFFIXES = {
    "itk": (".h5", *AFFINE_SUFFIXES, *FIELD_SUFFIXES),
    "fsl": (".mat", *FIELD_SUFFIXES),
    "freesurfer": (".lta",),
    "x5": (".x5",),
}
"""How their files end; of FSL a matrix (FLIRT), and a warp."""
_FSL_INTENTS = range(2006, 2017)
_GREEDY_STEP_VOX, _GREEDY_SHARE = 0.1, 0.999


class RoundingWarning(UserWarning):
    """A warp was rounded when it was saved: its folds and its smoothness are partly the rounding's."""


def write_as(
    kind: str, transform: Transform, path: str | os.PathLike[str], fixed: Nifti1Image, moving: Nifti1Image
) -> Path:
    """Write a transform as another tool has it.

    Parameters
    ----------
    kind : str
        One of `mmln_pipeline.space.formats.FORMATS`.
    transform : Transform
        Fixed to moving.
    path : path-like
        Its suffix is one of the tool's (`SUFFIXES`); replaced atomically.
    fixed, moving : Nifti1Image
        The images that it belongs to: FSL's and FreeSurfer's files mean nothing without them.

    Returns
    -------
    Path
        The file written.

    Raises
    ------
    ValueError
        If the suffix is not the tool's, the file can hold a matrix only and the transform is more, or a library is
        missing.
    """
    name = os.fspath(path)
    if not name.endswith(SUFFIXES[kind]):
        raise ValueError(f"{path}: expected for {kind} a name that ends in {', '.join(SUFFIXES[kind])}")
    holds_matrix_only = name.endswith((*AFFINE_SUFFIXES, ".lta"))
    if holds_matrix_only and transform.matrix is None:
        raise ValueError(f"{path}: expected an affine alone, found a displacement field in it; {_ADVICE[kind]}")
    writers: dict[str, Callable[..., Any]] = {
        "itk": _write_itk,
        "fsl": _write_fsl,
        "freesurfer": _write_lta,
        "x5": _write_x5,
    }
    if kind != "itk":
        check_libraries(kind)
    with atomic_path(path) as temporary:
        writers[kind](transform, temporary, fixed, moving)
    return Path(path)


def read_any(path: str | os.PathLike[str], fixed: Nifti1Image | None, moving: Nifti1Image | None) -> Transform:
    """Read a transform of any tool known here; which one, the file itself tells.

    Parameters
    ----------
    path : path-like
        ITK (ANTs, greedy, this package), FSL (FLIRT's matrix, FNIRT's warp or coefficients), FreeSurfer (.lta) or X5.
    fixed, moving : Nifti1Image or None
        The images that it was made for, which FSL's files need.

    Returns
    -------
    Transform
        Fixed to moving, RAS+ mm.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If it cannot be read, FSL's file comes without both images, or a library is missing.

    Warns
    -----
    RoundingWarning
        If all offsets are whole tenths of a voxel, as greedy saves them unless it is told not to.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"transform {path}: no such file")
    kind = find_format(path)
    if kind == "itk":
        transform = read_transform(path)
        _warn_of_rounding(transform, path)
        return transform
    check_libraries(kind)
    if kind == "fsl" and (fixed is None or moving is None):
        raise ValueError(
            f"transform {path}: of FSL, which means nothing without the fixed and the moving image; "
            "'mmln convert' makes an ITK file of it"
        )
    readers: dict[str, Callable[..., Transform]] = {"fsl": _read_fsl, "freesurfer": _read_lta, "x5": _read_x5}
    try:
        return readers[kind](path, fixed, moving)
    except (*UNREADABLE, AssertionError, LookupError, TypeError, AttributeError, NotImplementedError) as error:
        raise ValueError(f"transform {path}: not a readable file of {kind} ({explain(error)})") from error


def read_alone(path: str | os.PathLike[str]) -> Transform:
    """Read a transform of any tool whose files say all by themselves: ITK's, FreeSurfer's and X5; see `read_any`."""
    is_itk = not Path(path).is_file() or find_format(Path(path)) == "itk"
    return read_transform(path) if is_itk else read_any(path, None, None)


def find_format(path: Path) -> str:
    """Tell whose file it is: by the suffix, a matrix in plain text, or the code in a NIfTI header."""
    for kind in ("freesurfer", "x5"):
        if path.name.endswith(SUFFIXES[kind]):
            return kind
    if path.suffix == ".mat":
        try:
            return "fsl" if np.loadtxt(path).shape == (4, 4) else "itk"
        except ValueError:
            return "itk"
    if is_field(path):
        try:
            image: Any = nib.load(path)
        except UNREADABLE:
            return "itk"
        return "fsl" if int(image.header["intent_code"]) in _FSL_INTENTS else "itk"
    return "itk"


def check_libraries(kind: str) -> None:
    """Raise a ValueError where the library that knows a tool's files is not installed."""
    module, package = ("fsl", "fslpy") if kind == "fsl" else ("nitransforms", "nitransforms")
    if find_spec(module) is None:
        raise ValueError(f"{kind}: expected the package {package}, found none: pip install 'mmln-pipeline[convert]'.")


_ADVICE = {
    "itk": "write a composite (.h5) or a field (.nii.gz)",
    "fsl": "write a warp (.nii.gz)",
    "freesurfer": "its warps are not written (see the documentation)",
}


def _write_itk(transform: Transform, path: Path, fixed: Nifti1Image, moving: Nifti1Image) -> None:
    if path.name.endswith(".h5"):
        transform.save(path)
    elif is_field(path):
        save_displacement(transform.displacement(fixed), path)
    else:
        save_affine(transform.matrix, path)  # type: ignore[arg-type]


def _write_fsl(transform: Transform, path: Path, fixed: Nifti1Image, moving: Nifti1Image) -> None:
    from fsl.data.image import Image
    from fsl.transform import flirt, fnirt, nonlinear

    source, reference = Image(moving), Image(fixed)
    if path.suffix == ".mat":
        matrix = flirt.toFlirt(np.linalg.inv(transform.matrix), source, reference, "world", "world")  # type: ignore[arg-type]
        flirt.writeFlirt(matrix, path)
        return
    offsets = transform.displacement(fixed).offsets_mm
    spaces = {"srcSpace": "world", "refSpace": "world", "defType": "relative"}
    field = nonlinear.DeformationField(offsets, source, reference, xform=fixed.affine, **spaces)
    fnirt.toFnirt(field).save(os.fspath(path))


def _read_fsl(path: Path, fixed: Nifti1Image, moving: Nifti1Image) -> Transform:
    from fsl.data.image import Image
    from fsl.transform import flirt, fnirt, nonlinear

    source, reference = Image(moving), Image(fixed)
    if path.suffix == ".mat":
        matrix = flirt.fromFlirt(flirt.readFlirt(path), source, reference, "world", "world")
        return Transform((np.linalg.inv(matrix),))
    field = fnirt.fromFnirt(fnirt.readFnirt(os.fspath(path), source, reference), "world", "world")
    offsets = nonlinear.convertDeformationType(field, "relative") if field.absolute else field.data
    return Transform((DisplacementField(np.asarray(offsets), field.voxToWorldMat),))


def _write_lta(transform: Transform, path: Path, fixed: Nifti1Image, moving: Nifti1Image) -> None:
    from nitransforms.io.lta import FSLinearTransform

    # The matrix takes points of the source to the destination; nitransforms would name the two volumes the other way.
    lta = FSLinearTransform.from_ras(transform.matrix, moving=fixed, reference=moving)
    path.write_text(lta.to_string(), encoding="utf-8")


def _read_lta(path: Path, *_: Any) -> Transform:
    from nitransforms.io.lta import FSLinearTransform

    return Transform((FSLinearTransform.from_string(path.read_text(encoding="utf-8")).to_ras(),))


def _write_x5(transform: Transform, path: Path, fixed: Nifti1Image, moving: Nifti1Image) -> None:
    from nitransforms.io import x5

    theirs = to_nitransforms(transform, fixed)
    if transform.matrix is not None:
        theirs.to_filename(path, fmt="X5")
    else:
        x5.to_filename(path, [theirs.to_x5()])


def to_nitransforms(transform: Transform, fixed: Nifti1Image) -> Any:
    """Return a transform as nitransforms has it.

    Parameters
    ----------
    transform : Transform
        Forward: fixed world to moving world.
    fixed : Nifti1Image
        The image whose grid it resamples onto.

    Returns
    -------
    nitransforms.linear.Affine or nitransforms.nonlinear.DenseFieldTransform
        The whole chain: a matrix where it is linear, else a field on the grid.

    Raises
    ------
    ValueError
        If nitransforms is not installed.
    """
    check_libraries("nitransforms")
    from nitransforms.linear import Affine
    from nitransforms.nonlinear import DenseFieldTransform

    if transform.matrix is not None:
        return Affine(transform.matrix, reference=fixed)
    field = new_image(transform.displacement(fixed).offsets_mm, fixed)
    return DenseFieldTransform(field, is_deltas=True, reference=fixed)


def from_nitransforms(theirs: Any) -> Transform:
    """Take over a transform of nitransforms.

    Parameters
    ----------
    theirs : nitransforms.linear.Affine or nitransforms.nonlinear.DenseFieldTransform
        From the world of its reference to that of the moving image.

    Returns
    -------
    Transform

    Raises
    ------
    ValueError
        If it is of another kind.
    """
    return _from_x5([theirs.to_x5()])


def _read_x5(path: Path, *_: Any) -> Transform:
    from nitransforms.io import x5

    return _from_x5(x5.from_filename(path))


def _from_x5(nodes: Iterable[Any]) -> Transform:
    """Make a transform of the one node of an X5 file."""
    parts: list[Any] = []
    for node in nodes:
        if node.type == "linear":
            parts.append(np.asarray(node.transform, dtype=np.float64).reshape(4, 4))
        elif node.subtype == "densefield" and node.representation == "displacements" and node.domain is not None:
            parts.append(DisplacementField(node.transform, node.domain.mapping))
        else:
            raise ValueError(f"expected matrices and dense displacements, found {node.type} {node.representation}")
    if len(parts) != 1:
        raise ValueError(f"expected one transform, found {len(parts)}")
    return Transform(parts)


def _warn_of_rounding(transform: Transform, path: Path) -> None:
    """Warn of a field whose offsets are all whole tenths of a voxel."""
    for part in transform.parts:
        if not isinstance(part, DisplacementField):
            continue
        steps = displacement_to_voxels(part) / np.float32(_GREEDY_STEP_VOX)
        steps = steps[np.abs(steps) > 0.5]
        if steps.size and np.mean(np.abs(steps - np.round(steps)) < 0.02) > _GREEDY_SHARE:
            warnings.warn(
                f"transform {path}: all offsets are whole tenths of a voxel, as greedy saves them: folds and "
                "smoothness are then partly those of the rounding; greedy -wp 0 saves them as they are",
                RoundingWarning,
                stacklevel=3,
            )
