"""Displacement fields in RAS+ millimetres: offsets on a grid, and how the network's voxels become them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from nibabel.affines import apply_affine
from scipy.ndimage import map_coordinates

from mmln_pipeline.space.grids import Grid, check_affine


@dataclass(frozen=True, eq=False, repr=False)
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

    def __repr__(self) -> str:
        size, longest = "x".join(map(str, self.grid.shape)), np.linalg.norm(self.offsets_mm, axis=-1).max()
        return f"<DisplacementField: {size} voxels, up to {longest:.2f} mm>"

    @property
    def grid(self) -> Grid:
        """The field's own grid."""
        return Grid(self.offsets_mm.shape[:3], self.affine)

    def map_points(self, points: np.ndarray) -> np.ndarray:
        """Move points, shape (N, 3), RAS+ mm; those more than half a voxel outside the grid stay."""
        index = apply_affine(np.linalg.inv(self.affine), points).T
        size = np.array(self.grid.shape)[:, None]
        is_inside = ((index >= -0.5) & (index < size - 0.5)).all(axis=0)  # as in ITK
        offsets = np.zeros_like(points)
        for axis in range(3):
            values = map_coordinates(self.offsets_mm[..., axis], index[:, is_inside], order=1, mode="nearest")
            offsets[is_inside, axis] = values
        return points + offsets


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
    return DisplacementField(np.moveaxis(u_vox, 0, -1) @ matrix.T.astype(np.float32), affine)


def displacement_to_voxels(field: DisplacementField) -> np.ndarray:
    """Return a displacement field's offsets in voxels of its own grid, shape (3, I, J, K), float32."""
    inverse = np.linalg.inv(field.affine[:3, :3]).astype(np.float32)
    return np.ascontiguousarray(np.moveaxis(field.offsets_mm @ inverse.T, -1, 0))
