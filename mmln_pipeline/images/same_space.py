"""Whether two images show one space, and masks and labels brought onto the grid of the image they belong to."""

from __future__ import annotations

import numpy as np
from nibabel import Nifti1Image
from nibabel.affines import apply_affine

from mmln_pipeline.images.volumes import conform
from mmln_pipeline.space.grids import Grid, space_code

SUBJECT_CODES = (1, 2)
"""NIfTI codes of the subject's own space: of the scanner, and aligned to another image of the subject."""
MIN_COVER = 0.5
"""Share of the smaller field of view that the other one must cover at least."""
_LATTICE = 9


def why_not_same_space(image: Nifti1Image, reference: Nifti1Image) -> str | None:
    """Ask two headers whether a voxel of the one can be looked up in the other.

    Images on one grid share their space. On different grids the headers must say so: both name a space
    (NIfTI's sform code, or qform code), which is the subject's own for both (scanner or aligned) or the same
    standard space, and their fields of view cover each other.

    Parameters
    ----------
    image, reference : Nifti1Image
        3-D images; only their headers are read.

    Returns
    -------
    str or None
        What speaks against it; None where they share a space.
    """
    if Grid.of(reference).matches(image):
        return None
    codes = [space_code(image), space_code(reference)]
    if 0 in codes:
        return f"they lie on different grids and a header names no space (codes {codes[0]} and {codes[1]})"
    if codes[0] != codes[1] and not set(codes) <= set(SUBJECT_CODES):
        return f"their headers name different spaces (codes {codes[0]} and {codes[1]})"
    return why_apart(image, reference)


def why_apart(image: Nifti1Image, reference: Nifti1Image) -> str | None:
    """Ask two headers whether the images show one part of a space that both are known to be in.

    Parameters
    ----------
    image, reference : Nifti1Image
        3-D images or series; only their headers are read.

    Returns
    -------
    str or None
        What speaks against it; None where the smaller field of view is covered by half at least.
    """
    cover = max(_cover(image, reference), _cover(reference, image))
    if cover < MIN_COVER:
        return f"they cover different parts of the space ({100 * cover:.0f}% in common)"
    return None


def labels_on_grid(labels: Nifti1Image, reference: Nifti1Image, name: str, reference_name: str) -> Nifti1Image:
    """Bring a mask or label image onto the grid of an image in the same space, nearest voxel by nearest voxel.

    Parameters
    ----------
    labels, reference : Nifti1Image
        Whole numbers, and the image that they belong to.
    name, reference_name : str
        How to call them in an error, such as their paths.

    Returns
    -------
    Nifti1Image
        Type of `labels`, on the grid of `reference`; the values are copied where the grids agree.

    Raises
    ------
    ValueError
        If their headers do not say that they share a space, or nothing is left on the image's grid.
    """
    reason = why_not_same_space(labels, reference)
    if reason is not None:
        raise ValueError(
            f"{name}: expected the space of {reference_name}, but {reason}: resample it, or mend the headers"
        )
    moved = conform(labels, reference, interpolation="nearest")
    if not np.asanyarray(moved.dataobj).any():
        raise ValueError(f"{name}: nothing of it lies inside {reference_name}")
    return moved


def _cover(image: Nifti1Image, reference: Nifti1Image) -> float:
    """Return which share of an image's field of view lies inside another's."""
    steps = (np.arange(_LATTICE) + 0.5) / _LATTICE
    lattice = np.stack(np.meshgrid(steps, steps, steps, indexing="ij"), axis=-1).reshape(-1, 3)
    points = apply_affine(image.affine, lattice * np.array(image.shape[:3]) - 0.5)
    voxels = apply_affine(np.linalg.inv(reference.affine), points)
    return float(((voxels >= -0.5) & (voxels <= np.array(reference.shape[:3]) - 0.5)).all(axis=1).mean())
