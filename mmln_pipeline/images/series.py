"""Series of volumes (functional and diffusion images) resampled one volume at a time, in the memory of a few."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from isal import igzip
from nibabel import Nifti1Image
from numpy.typing import NDArray

from mmln_pipeline.images.volumes import IMAGE_SUFFIXES
from mmln_pipeline.machine.files import atomic_path
from mmln_pipeline.machine.reading import UNREADABLE, advise, explain, stream_volumes
from mmln_pipeline.space.grids import Grid, affine_in_mm, check_affine, new_image
from mmln_pipeline.space.interpolation import FOR_LABELS
from mmln_pipeline.space.placement import warn_of_placement
from mmln_pipeline.space.sampling import Sampler
from mmln_pipeline.space.transforms import Transform

SERIES_SUFFIXES = (".nii", ".nii.gz")
"""How files of series that are written end."""
Resample = Callable[[NDArray], NDArray]
"""Takes a volume to the reference's grid."""


def count_volumes(path: str | os.PathLike[str]) -> int:
    """Return how many volumes an image has; 1 for what cannot be read, which its reader says better."""
    if not os.fspath(path).endswith(IMAGE_SUFFIXES):
        return 1
    try:
        shape = nib.load(path).shape  # type: ignore[attr-defined]
    except UNREADABLE:
        return 1
    return int(shape[3]) if len(shape) == 4 else 1


def resample_series(
    path: str | os.PathLike[str],
    output: str | os.PathLike[str],
    transform: Transform,
    reference: Nifti1Image | Grid,
    interpolation: str = "linear",
    progress: Callable[[str], Any] = lambda text: None,
) -> Path:
    """Resample a 4-D image, volume by volume: where to sample is worked out once for all.

    Parameters
    ----------
    path : path-like
        4-D NIfTI or .mgz, in the world where the transform ends.
    output : path-like
        NIfTI to write, atomically; float32, or the input's type for labels. Its time step is the input's.
    transform : Transform
        Points of the reference's world to points of the image's.
    reference : Nifti1Image or Grid
        Where to sample.
    interpolation : str, default="linear"
        One of `mmln_pipeline.space.interpolation.INTERPOLATIONS`.
    progress : callable, optional
        Called after each volume, with nothing to tell.

    Returns
    -------
    Path
        The file written.

    Raises
    ------
    ValueError
        If the output is no NIfTI file, or the input cannot be read to its end, is not made of finite real numbers.
    """
    if not os.fspath(output).endswith(SERIES_SUFFIXES):
        raise ValueError(f"{output}: a series needs the suffix {' or '.join(SERIES_SUFFIXES)}")
    name = f"input image {path}"
    image: Any = nib.load(path)
    stored = image.get_data_dtype()
    if stored.kind not in "iuf":
        raise ValueError(f"{name}: expected one number a voxel, found type {stored}")
    warn_of_placement(path, "input image")
    source = Grid(image.shape[:3], check_affine(affine_in_mm(image), f"{name}: affine"))
    resample = _make_resampler(transform, Grid.of(reference), source, interpolation)
    dtype = stored.newbyteorder("=") if interpolation in FOR_LABELS and not _is_scaled(image) else np.dtype(np.float32)
    try:
        with atomic_path(output) as temporary, _open(temporary) as file:
            file.write(_header(image, reference, dtype))
            for number, volume in enumerate(stream_volumes(path)):
                if volume.dtype.kind == "f" and not np.isfinite(volume).all():
                    raise ValueError(f"volume {number} holds numbers that are NaN or infinite; replace them")
                native = volume.astype(volume.dtype.newbyteorder("="), copy=False)
                file.write(np.ascontiguousarray(resample(native), dtype=dtype))
                progress("")
    except UNREADABLE as error:
        raise ValueError(f"{name}: cannot be read ({explain(error)}); {advise(error)}") from error
    return Path(output)


def _make_resampler(transform: Transform, grid: Grid, source: Grid, interpolation: str) -> Resample:
    """Return what takes a volume to a grid, in the order in which NIfTI stores it."""
    if interpolation in ("linear", "nearest"):
        sampler = Sampler.make(transform.to_sitk(), grid, source, nearest=interpolation == "nearest")
        return sampler.pick if interpolation == "nearest" else sampler.sample

    def resample(volume: NDArray) -> NDArray:
        moved = transform.resample(new_image(volume, source), grid, interpolation)
        return np.asanyarray(moved.dataobj).ravel(order="F")

    return resample


def _header(image: Any, reference: Nifti1Image | Grid, dtype: np.dtype) -> bytes:
    """Return the first bytes of the output: a header on the reference's grid, with the input's volumes and time."""
    grid = Grid.of(reference)
    shape = (*grid.shape, int(image.shape[3]))
    made = new_image(np.broadcast_to(dtype.type(0), shape), reference)
    made.header.set_zooms((*grid.spacing, float(image.header.get_zooms()[3])))
    units = image.header.get_xyzt_units()[1] if isinstance(image, Nifti1Image) else "msec"
    made.header.set_xyzt_units("mm", units)
    made.header["vox_offset"], made.header["magic"] = 352, b"n+1"
    made.header.set_slope_inter(1.0, 0.0)
    return made.header.binaryblock + bytes(4)


def _is_scaled(image: Any) -> bool:
    """Tell whether a header asks for other numbers than those stored."""
    return (getattr(image.dataobj, "slope", 1.0), getattr(image.dataobj, "inter", 0.0)) != (1.0, 0.0)


@contextmanager
def _open(path: Path) -> Iterator[Any]:
    """Open a file for writing, compressed where its name says so, and the same bytes each time."""
    with path.open("wb") as raw:
        if not path.name.endswith(".gz"):
            yield raw
            return
        with igzip.IGzipFile("", "wb", compresslevel=1, fileobj=raw, mtime=0) as packed:
            yield packed
