"""Spatial transforms in RAS+ millimetres: chains of affines and displacement fields that move points and images.

A forward transform maps points of the *fixed* world to the *moving* world, which is what resampling the moving image
onto the fixed grid needs and what an ITK file of it holds. Files are read and written in `mmln_pipeline.space.itk`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from nibabel import Nifti1Image
from nibabel.affines import apply_affine

from mmln_pipeline.space import itk
from mmln_pipeline.space.displacements import DisplacementField
from mmln_pipeline.space.grids import Grid, check_affine, new_image
from mmln_pipeline.space.interpolation import FOR_LABELS, INTERPOLATIONS
from mmln_pipeline.space.inversion import InverseField
from mmln_pipeline.space.placement import warn_of_placement
from mmln_pipeline.space.sampling import sample_labels

INTERPOLATORS = {
    "linear": sitk.sitkLinear,
    "nearest": sitk.sitkNearestNeighbor,
    "bspline": sitk.sitkBSpline3,
    "lanczos": sitk.sitkLanczosWindowedSinc,
}
"""SimpleITK's interpolators by name; labels have one of their own (`mmln_pipeline.space.sampling`)."""
_EXACT = 2**53  # beyond it ITK, which computes in double precision, changes whole numbers


@dataclass(frozen=True, eq=False, repr=False)
class Transform:
    """A chain of affines and displacement fields, in RAS+ mm.

    Parameters
    ----------
    parts : sequence of (ndarray, shape (4, 4)), DisplacementField or InverseField
        Applied to a point from first to last. Forward registration: ``(warp, affine)``, fixed to moving.
    """

    parts: Sequence[itk.Part | InverseField] = ()

    def __post_init__(self) -> None:
        fields = DisplacementField, InverseField
        parts = (part if isinstance(part, fields) else check_affine(part, "affine") for part in self.parts)
        object.__setattr__(self, "parts", tuple(parts))

    def __repr__(self) -> str:
        parts = ("affine" if isinstance(part, np.ndarray) else repr(part).strip("<>") for part in self.parts)
        return f"<Transform: {', then '.join(parts) or 'identity'}>"

    def inverse(self) -> Transform:
        """Return the mapping back: affines inverted exactly, fields point by point."""
        return Transform([_invert(part) for part in reversed(self.parts)])

    @property
    def matrix(self) -> np.ndarray | None:
        """The whole chain as one matrix, shape (4, 4), where it is linear; else None."""
        matrix = np.eye(4)
        for part in self.parts:
            if not isinstance(part, np.ndarray):
                return None
            matrix = part @ matrix
        return matrix

    @property
    def _files_parts(self) -> list[itk.Part]:
        """The parts as files hold them: inverses of fields sampled on their grids, at least one part."""
        parts = [part.sampled if isinstance(part, InverseField) else part for part in self.parts]
        return parts or [np.eye(4)]

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
            move = partial(apply_affine, part) if isinstance(part, np.ndarray) else part.map_points
            points = move(points)
        return points

    def to_sitk(self) -> sitk.CompositeTransform:
        """Return the same mapping for SimpleITK (LPS+ mm), which applies first what was added last."""
        held: sitk.CompositeTransform | None = self.__dict__.get("_held")
        return held or itk.chain_to_sitk(self._files_parts)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keep what SimpleITK needs, in double precision, for a block that samples through the chain several times."""
        object.__setattr__(self, "_held", self.to_sitk())
        try:
            yield
        finally:
            object.__delattr__(self, "_held")

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
        if interpolation not in INTERPOLATIONS:
            known = ", ".join(INTERPOLATIONS)
            raise ValueError(f"interpolation: expected one of {known}; found {interpolation!r}")
        data = np.asanyarray(image.dataobj)
        if data.ndim != 3:
            raise ValueError(f"image to resample: expected 3-D, found shape {data.shape}")
        native = data.dtype.newbyteorder("=")
        grid = Grid.of(reference)
        if interpolation not in FOR_LABELS:
            return new_image(
                self._sample(data.astype(np.float32, copy=False), image.affine, grid, interpolation, default), reference
            )
        if interpolation == "label":
            labels = data.astype(native, copy=False)
            return new_image(sample_labels(self.to_sitk(), grid, labels, Grid.of(image), default), reference)
        if data.size and (data.max() > _EXACT or data.min() < -_EXACT):
            numbers, codes = number_consecutively(data.astype(native, copy=False), default)
            outside = float(np.searchsorted(numbers, native.type(default)))
            sampled = self._sample(codes.astype(np.float32), image.affine, grid, interpolation, outside)
            return new_image(numbers[sampled.astype(np.int64)], reference)
        sampled = self._sample(data.astype(native, copy=False), image.affine, grid, interpolation, default)
        return new_image(sampled, reference)

    def _sample(
        self, data: np.ndarray, affine: np.ndarray, grid: Grid, interpolation: str, default: float
    ) -> np.ndarray:
        """Return an array sampled on a grid through the chain, in its own type."""
        resampler = sitk.ResampleImageFilter()
        origin, spacing, direction = itk.itk_geometry(grid)
        resampler.SetSize(grid.shape)
        resampler.SetOutputOrigin(origin)
        resampler.SetOutputSpacing(spacing)
        resampler.SetOutputDirection(direction)
        resampler.SetTransform(self.to_sitk())
        resampler.SetInterpolator(INTERPOLATORS[interpolation])
        resampler.SetDefaultPixelValue(float(default))
        moved = resampler.Execute(itk.array_to_sitk(data, affine))
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
            self.to_sitk(), sitk.sitkVectorFloat32, grid.shape, *itk.itk_geometry(grid)
        )
        return itk.field_from_sitk(field)

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
        return itk.write_composite(self._files_parts, path)


def _invert(part: itk.Part | InverseField) -> itk.Part | InverseField:
    """Return the inverse of a part of a chain."""
    if isinstance(part, np.ndarray):
        return np.linalg.inv(part)
    return InverseField(part) if isinstance(part, DisplacementField) else part.forward


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
    transform = Transform(itk.read_parts(path))
    if itk.is_field(path):
        warn_of_placement(path, "transform")
    return transform


def read_chain(names: Sequence[str], read: Callable[[str], Transform] | None = None) -> Transform:
    """Read transforms that are applied one after the other, in the order in which ANTs lists them.

    Parameters
    ----------
    names : sequence of str
        Files as of `read_transform`; ``inverse:FILE``, or ANTs' ``[FILE,1]``, for the mapping back. The first is the
        nearest to the reference: a point of the reference goes through the first, then the second..., and so the image
        is brought along by the last one first. ``warp, affine``, as antsApplyTransforms takes the files of
        antsRegistration.
    read : callable, optional
        Reads a file; default: `read_transform`.

    Returns
    -------
    Transform
        Reference to image.

    Raises
    ------
    FileNotFoundError, ValueError
        As of `read_transform`.
    """
    parts: list[itk.Part | InverseField] = []
    for name in names:
        path, is_turned = split_name(name)
        transform = (read or read_transform)(path)
        parts += transform.inverse().parts if is_turned else transform.parts
    return Transform(parts)


def split_name(name: str) -> tuple[str, bool]:
    """Return the file of a transform as `read_chain` takes it, and whether the mapping back is meant.

    Examples
    --------
    >>> split_name("warp.nii.gz"), split_name("inverse:warp.nii.gz"), split_name("[ warp.nii.gz, 1 ]")
    (('warp.nii.gz', False), ('warp.nii.gz', True), ('warp.nii.gz', True))
    """
    bracket = re.fullmatch(r"\[\s*(.+?)\s*,\s*([01])\s*\]", name)
    if bracket:
        return bracket[1], bracket[2] == "1"
    path = name.removeprefix("inverse:")
    return path, path != name
