"""A brain: an image, its mask and its lesion, which belong together and are checked together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from nibabel import Nifti1Image
from nibabel.affines import voxel_sizes
from numpy.typing import NDArray

from mmln_pipeline.images.volumes import (
    ANY_SHARE,
    DARK_AND_BRIGHT,
    DARK_SHARE,
    brain_mask,
    looks_skull_stripped,
    make_unsigned,
)
from mmln_pipeline.space.grids import check_same_grid

HUMAN_SHARE = 0.02
"""Share of the network's grid that a human brain fills at least (138 cm3; a newborn's has 350, a macaque's 90)."""

MIN_VOXEL_MM, MAX_VOXEL_MM = 0.01, 20.0
"""Voxels of a brain's image lie within; others come of a wrong unit."""


@dataclass(frozen=True)
class Brain:
    """A brain image with what is known about it.

    Parameters
    ----------
    image : Nifti1Image
        3-D, skull-stripped, or a whole head with its mask.
    mask : Nifti1Image, optional
        The brain (non-zero), on the image's grid.
    lesion : Nifti1Image, optional
        Where the image must not steer (non-zero), on the image's grid.
    name : str, default="image"
        How to call it in an error.
    dark_share : float, default=0.17
        Where the brain's darkest voxels lie, should it be without a zero (`make_unsigned`).

    Raises
    ------
    ValueError
        If mask or lesion lie on another grid than the image (`Grid.matches`), or the mask is empty.
    """

    image: Nifti1Image
    mask: Nifti1Image | None = None
    lesion: Nifti1Image | None = None
    name: str = "image"
    dark_share: float = DARK_SHARE

    def __post_init__(self) -> None:
        for what, part in (("mask", self.mask), ("lesion mask", self.lesion)):
            if part is not None:
                check_same_grid(part, f"{self.name} {what}", self.image, f"{self.name} image")
        if self.mask is not None and not np.asanyarray(self.mask.dataobj).any():
            raise ValueError(f"{self.name} mask: expected a brain, found all {np.prod(self.mask.shape)} voxels zero")

    @cached_property
    def intensities(self) -> Nifti1Image:
        """The image as it is compared: background 0, the brain above it (`make_unsigned`)."""
        is_signed = np.asanyarray(self.image.dataobj).min() < 0
        if is_signed and self.mask is None and not looks_skull_stripped(self.image):
            return make_unsigned(self.image, None, self.dark_share, believed=ANY_SHARE)
        return make_unsigned(self.image, self.mask, self.dark_share)

    def like(self, other: Brain) -> Brain:
        """Return this brain, its darkest voxels where those of another one lie, if it alone is without a zero."""
        if self.intensities is self.image or other.intensities is not other.image:
            return self
        return replace(self, dark_share=other.measure_dark_share())

    def measure_dark_share(self) -> float:
        """Return the intensity of the darkest voxels per that of the brightest (0.5 and 99.5 percentiles)."""
        low, high = np.percentile(np.asanyarray(self.intensities.dataobj)[self.inside], DARK_AND_BRIGHT)
        return float(low / high)

    @cached_property
    def inside(self) -> NDArray[np.bool_]:
        """Where the brain is, shape (I, J, K): where the mask is not 0, or else the image is above its background."""
        if self.mask is not None:
            return np.asanyarray(self.mask.dataobj) != 0
        return np.asanyarray(self.intensities.dataobj) > 0

    @cached_property
    def outline(self) -> Nifti1Image:
        """The mask, or the one that the image shows (`brain_mask`)."""
        return brain_mask(self.intensities) if self.mask is None else self.mask


def check_image(image: Nifti1Image, name: str) -> None:
    """Refuse an image that can show no human brain, before grids are made that hold its voxels.

    Parameters
    ----------
    image : Nifti1Image
        3-D image.
    name : str
        How to call it in the error.

    Raises
    ------
    ValueError
        If all voxels are equal, or smaller than 0.01 mm or larger than 20 mm along an axis.
    """
    data = np.asanyarray(image.dataobj)
    if data.min() == data.max():
        raise ValueError(f"{name}: expected an image of a brain, found {data.flat[0]:g} in all {data.size} voxels")
    found = voxel_sizes(image.affine)
    if found.min() < MIN_VOXEL_MM or found.max() > MAX_VOXEL_MM:
        sizes = " x ".join(f"{size:.3g}" for size in found)
        raise ValueError(
            f"{name}: expected voxels of {MIN_VOXEL_MM:g} to {MAX_VOXEL_MM:g} mm, found {sizes} mm: look at the "
            "header's unit (xyzt_units), sform and qform"
        )


def check_size(brain: Brain, grid_shape: Sequence[int]) -> None:
    """Refuse a brain that is far too small for the network, before any work is done on it.

    Parameters
    ----------
    brain : Brain
        Fixed or moving.
    grid_shape : sequence of 3 int
        The network's grid, voxels of 1 mm.

    Raises
    ------
    ValueError
        If it fills less of the grid than any human brain: another species, or a wrong voxel size.
    """
    room_cm3 = np.prod(grid_shape) / 1000
    found = np.count_nonzero(brain.inside) * float(np.prod(voxel_sizes(brain.image.affine))) / 1000
    if found < HUMAN_SHARE * room_cm3:
        raise ValueError(
            f"{brain.name} image: expected a brain of at least {HUMAN_SHARE * room_cm3:.3g} cm3, found {found:.3g}: "
            "look at the voxel size, the mask, and whose brain it is: the network knows no other species than humans"
        )
