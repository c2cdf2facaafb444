"""Mean and standard deviation of many images on one grid, with one image in memory at a time."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel import Nifti1Image

from mmln_pipeline.group.statistics import RunningMoments
from mmln_pipeline.images.volumes import UNREADABLE
from mmln_pipeline.space.grids import Grid, new_image, on_most_common_grid

_BACKGROUND = 1e-3  # of the largest value: resampling leaves such traces round a brain


@dataclass(frozen=True, eq=False)
class Average:
    """What many images have in common.

    Attributes
    ----------
    names : tuple of str
        The images that took part.
    refused : mapping of str to str
        Why an image did not, by its name.
    mean : Nifti1Image or None
        Mean of the images, float32; None where no image took part.
    sd : Nifti1Image or None
        Standard deviation (divisor: number of images - 1), float32; None with fewer than two images, or unwanted.
    brain : Nifti1Image or None
        Where at least half of the images are not background (above 1/1000 of their largest absolute value), uint8.
    """

    names: tuple[str, ...] = ()
    refused: Mapping[str, str] = field(default_factory=dict)
    mean: Nifti1Image | None = None
    sd: Nifti1Image | None = None
    brain: Nifti1Image | None = None


def average_images(
    paths: Mapping[str, Path],
    prepare: Callable[[np.ndarray], np.ndarray] | None = None,
    look: Callable[[str, Nifti1Image], None] | None = None,
    spread: bool = True,
) -> Average:
    """Average images that share a grid; those that cannot take part are named, and stop nothing.

    Parameters
    ----------
    paths : mapping of str to Path
        NIfTI files by name. The grid that most of them have is the grid of the average.
    prepare : callable, optional
        What is done to each array, float32, shape (I, J, K), before it counts, such as scaling; a ValueError
        refuses the image.
    look : callable, optional
        Called with name and image, as they count, of each that takes part: so that it is read once.
    spread : bool, default=True
        Whether the standard deviation is wanted.

    Returns
    -------
    Average
        On the common grid.
    """
    grids, refused = _read_grids(paths)
    if not grids:
        return Average(refused=refused)
    grid = on_most_common_grid(list(grids.values()))
    moments, names = RunningMoments(grid.shape, spread), []
    support = np.zeros(grid.shape, np.min_scalar_type(len(grids)))
    for name in grids:
        try:
            array = _read_array(paths[name], grid)
            array = array if prepare is None else prepare(array)
            moments.add(array)
        except UNREADABLE as error:
            refused[name] = " ".join(str(error).split())
            continue
        floor = _BACKGROUND * max(array.max(), -array.min())
        for plane, count in zip(array, support, strict=True):  # a whole image's differences would be as large as it
            count += np.abs(plane) > floor
        names.append(name)
        if look is not None:
            look(name, new_image(array, grid))
    if not names:
        return Average(refused=refused)
    sd = new_image(moments.sd.astype(np.float32), grid) if spread and len(names) > 1 else None
    mean = new_image(moments.mean.astype(np.float32), grid)
    brain = new_image((support >= len(names) / 2).astype(np.uint8), grid)
    return Average(tuple(names), refused, mean, sd, brain)


def _read_grids(paths: Mapping[str, Path]) -> tuple[dict[str, Grid], dict[str, str]]:
    """Read the grid of each image from its header; return them, and why some have none."""
    grids: dict[str, Grid] = {}
    refused: dict[str, str] = {}
    for name, path in paths.items():
        try:
            image: Any = nib.load(path)
            grids[name] = Grid.of(image)
        except UNREADABLE as error:
            refused[name] = f"cannot be read ({' '.join(str(error).split())})"
    return grids, refused


def _read_array(path: Path, grid: Grid) -> np.ndarray:
    """Read an image's voxels, float32, after checking that they lie on the grid and are finite."""
    image: Any = nib.load(path)
    if image.shape != grid.shape:
        raise ValueError(f"lies on another grid {image.shape} than most images {grid.shape}")
    if not grid.matches(image):
        raise ValueError(f"lies on another grid than most images: {grid.describe_difference(image)}")
    array = np.asanyarray(image.dataobj, dtype=np.float32)
    n_bad = array.size - np.count_nonzero(np.isfinite(array))
    if n_bad:
        raise ValueError(f"{n_bad} of {array.size} voxels are NaN or infinite")
    return array
