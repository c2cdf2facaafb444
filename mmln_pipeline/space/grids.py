"""Voxel grids in the world: the network's grid, the grid of an image, and images made on a grid."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import nibabel as nib
import numpy as np
from nibabel import Nifti1Image
from nibabel.affines import from_matvec, voxel_sizes

GRID_SHAPE = (160, 192, 224)
"""Size of the network's grid in voxels of 1 mm."""
GRID_AXES = ("L", "I", "A")
"""Direction in which each of its axes points: left, inferior, anterior."""
_MM_PER_UNIT = {1: 1000.0, 3: 0.001}  # by NIfTI's code: metre, micrometre; unknown is mm
_UNIT_BITS = 0b111
_SAME_GRID_MM, _DECIMALS_MM = 1e-2, 3
Lattice = TypeVar("Lattice", bound=Any)
"""A `Grid`, or an image, which has shape and affine too."""


@dataclass(frozen=True, eq=False)
class Grid:
    """A lattice of voxel centres in RAS+ millimetres.

    Parameters
    ----------
    shape : tuple of int
        Number of voxels (I, J, K).
    affine : ndarray, shape (4, 4)
        Voxel index to RAS+ mm; copied, float64 and read-only.

    Raises
    ------
    ValueError
        If the shape is not three positive numbers, or the affine not 4 x 4, finite and invertible.
    """

    shape: tuple[int, int, int]
    affine: np.ndarray

    def __post_init__(self) -> None:
        shape = tuple(int(n) for n in self.shape)
        if len(shape) != 3 or min(shape) < 1:
            raise ValueError(f"grid shape: expected 3 positive sizes, found {self.shape}")
        affine = check_affine(self.affine, "grid affine")
        affine.setflags(write=False)
        object.__setattr__(self, "shape", shape)
        object.__setattr__(self, "affine", affine)

    @classmethod
    def of(cls, image: Nifti1Image | Grid) -> Grid:
        """Return the grid of an image (a grid is returned as it is)."""
        if isinstance(image, Grid):
            return image
        i, j, k = image.shape[:3]
        return cls((i, j, k), image.affine)

    @property
    def spacing(self) -> np.ndarray:
        """Distance between voxel centres along each axis, mm, shape (3,)."""
        return voxel_sizes(self.affine)

    @property
    def axes(self) -> tuple[str, str, str]:
        """Nearest anatomical direction of each axis, such as ("L", "I", "A")."""
        return nib.aff2axcodes(self.affine)

    def with_spacing(self, spacing: Sequence[float]) -> Grid:
        """Return a grid of other voxels over the same field of view, its centre in the same place.

        Parameters
        ----------
        spacing : sequence of 3 float
            Voxel size along each axis, mm.
        """
        ratio = np.asarray(spacing, dtype=np.float64) / self.spacing
        shape = np.maximum(np.round(np.array(self.shape) / ratio), 1).astype(int)
        first = ((np.array(self.shape) - 1) - ratio * (shape - 1)) / 2
        i, j, k = shape.tolist()
        return Grid((i, j, k), self.affine @ from_matvec(np.diag(ratio), first))

    def cut(self, window: Sequence[slice]) -> Grid:
        """Return the grid of a window of voxels, a slice with start and stop for each axis."""
        i, j, k = (along.stop - along.start for along in window)
        return Grid((i, j, k), self.affine @ from_matvec(np.eye(3), [along.start for along in window]))

    def matches(self, other: Nifti1Image | Grid) -> bool:
        """Tell whether another grid has the same voxel centres, to within 0.01 mm at its corners."""
        return self.distance_mm(other) < _SAME_GRID_MM

    def distance_mm(self, other: Nifti1Image | Grid) -> float:
        """Return how far from this one the farthest corner of another grid lies, mm; infinity for another shape."""
        other = Grid.of(other)
        if self.shape != other.shape:
            return float("inf")
        corners = np.stack(np.meshgrid(*[(0, n - 1) for n in self.shape], indexing="ij"), -1).reshape(-1, 3)
        offsets = nib.affines.apply_affine(self.affine - other.affine, corners)
        return float(np.linalg.norm(offsets, axis=1).max())

    def describe_difference(self, other: Nifti1Image | Grid) -> str:
        """Say in an error what another grid has that does not match: its shape, or how far away it lies."""
        other = Grid.of(other)
        if self.shape != other.shape:
            return f"expected shape {self.shape}, found {other.shape}"
        return (
            f"found the same shape {self.shape}, but its voxels up to {self.distance_mm(other):.3g} mm away "
            f"({_SAME_GRID_MM} mm is let pass)"
        )

    def is_axis_aligned_1mm(self) -> bool:
        """Tell whether each axis runs along a world axis in steps of exactly 1 mm."""
        matrix = np.abs(self.affine[:3, :3])
        permutation = matrix.round()
        return bool(
            np.allclose(matrix, permutation, atol=1e-4)
            and (permutation.sum(0) == 1).all()
            and (permutation.sum(1) == 1).all()
        )


def check_affine(matrix: np.ndarray, name: str) -> np.ndarray:
    """Return a matrix as a float64 copy after checking that it is a usable affine.

    Parameters
    ----------
    matrix : array-like, shape (4, 4)
        Homogeneous transform.
    name : str
        How to call it in an error.

    Returns
    -------
    ndarray, shape (4, 4)
        A copy, float64.

    Raises
    ------
    ValueError
        If the matrix is not 4 x 4, finite and invertible, or its last row is not (0, 0, 0, 1).
    """
    matrix = np.array(matrix, dtype=np.float64)
    if matrix.shape != (4, 4):
        raise ValueError(f"{name}: expected a 4 x 4 matrix, found shape {matrix.shape}")
    if not np.isfinite(matrix).all():
        raise ValueError(f"{name}: expected finite numbers, found {matrix.tolist()}")
    if not np.allclose(matrix[3], (0, 0, 0, 1)):
        raise ValueError(f"{name}: expected the last row (0, 0, 0, 1), found {matrix[3].tolist()}")
    determinant = np.linalg.det(matrix[:3, :3])
    if abs(determinant) < 1e-9:
        raise ValueError(f"{name}: expected an invertible matrix, found determinant {determinant:.3g}")
    return matrix


def check_same_grid(image: Nifti1Image, name: str, reference: Nifti1Image, reference_name: str, path: str = "") -> None:
    """Raise a ValueError unless two images share a grid (`Grid.matches`)."""
    grid = Grid.of(reference)
    if not grid.matches(image):
        where = f"{name} {path}" if path else name
        raise ValueError(
            f"The {where} must lie on the grid of the {reference_name}: {grid.describe_difference(image)}; "
            "resample it first (mmln apply)."
        )


def on_most_common_grid(images: Sequence[Lattice]) -> Lattice:
    """Return the first image on the grid that most images have.

    Parameters
    ----------
    images : sequence of Nifti1Image or Grid
        At least one. They share a grid where shapes are equal, and affines to within 0.001 mm.

    Returns
    -------
    Nifti1Image or Grid
    """
    keys = [(tuple(image.shape), *(np.round(image.affine, _DECIMALS_MM) + 0.0).ravel().tolist()) for image in images]
    return images[keys.index(Counter(keys).most_common(1)[0][0])]


def new_image(data: np.ndarray, grid: Nifti1Image | Grid, like: Nifti1Image | None = None) -> Nifti1Image:
    """Make an image on a grid, with a header that every reader understands alike.

    Parameters
    ----------
    data : ndarray, shape (I, J, K) or (I, J, K, ...)
        Voxel values; not copied.
    grid : Nifti1Image or Grid
        Where the voxels lie.
    like : Nifti1Image, optional
        Its space codes (scanner, template...) are kept; default: those of `grid` if it is an image, else
        "scanner".

    Returns
    -------
    Nifti1Image
        sform and qform say the same; where the affine is sheared only the sform is set.
    """
    affine = Grid.of(grid).affine
    like = like if like is not None else (None if isinstance(grid, Grid) else grid)
    code = 1 if like is None else space_code(like) or 1
    # Naming the type lets 64-bit integers through, which nibabel else refuses.
    image = Nifti1Image(data, affine, dtype=data.dtype)
    image.header.set_xyzt_units("mm")
    directions = affine[:3, :3] / voxel_sizes(affine)
    is_sheared = not np.allclose(directions.T @ directions, np.eye(3), atol=1e-4)
    image.set_sform(affine, code)
    image.set_qform(affine, 0 if is_sheared else code)
    return image


def space_code(image: Nifti1Image) -> int:
    """Return the NIfTI code of the space that an image's affine leads to; formats without one are the scanner's (1)."""
    if not isinstance(image, Nifti1Image):
        return 1
    return int(image.header["sform_code"]) or int(image.header["qform_code"])


def affine_in_mm(image: Any) -> np.ndarray:
    """Return an image's affine, shape (4, 4), voxels to RAS+ mm, whatever the header's unit."""
    if not isinstance(image, Nifti1Image):
        return image.affine
    scale = _MM_PER_UNIT.get(int(image.header["xyzt_units"]) & _UNIT_BITS)
    return image.affine if scale is None else np.diag([scale, scale, scale, 1.0]) @ image.affine


def in_mm(image: Any) -> Any:
    """Return an image whose affine leads to mm.

    Parameters
    ----------
    image : SpatialImage
        NIfTI images may be in metres or micrometres (`xyzt_units`); an unknown unit counts as mm.

    Returns
    -------
    SpatialImage
        The image itself where it is in mm, else a Nifti1Image with the same voxels.
    """
    affine = affine_in_mm(image)
    return image if affine is image.affine else new_image(image.dataobj, Grid(image.shape[:3], affine), like=image)
