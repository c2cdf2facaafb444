"""Images that are in memory already: NiBabel's, TorchIO's, and arrays with an affine, all made NiBabel's NIfTI."""

from __future__ import annotations

import os
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from nibabel import Nifti1Image
from nibabel.spatialimages import SpatialImage

from mmln_pipeline.space.grids import check_affine

ImageSource = str | Path | SpatialImage | tuple[Any, Any] | Any
"""A file, an image of NiBabel or TorchIO, or a pair of array and affine (RAS mm)."""
EXPECTED = "a path, an image of NiBabel or TorchIO, or a pair (array, affine) with the affine in RAS mm"
# NIfTI readers know few types: what an array may hold, and what it is written as.
_TYPES = {"b": np.uint8, "f": np.float32}


def as_source(source: ImageSource, name: str) -> str | Path | Nifti1Image:
    """Return a path as it is, and what is in memory as an image.

    Parameters
    ----------
    source : path, SpatialImage, torchio.Image or (array, affine)
        An array is 3-D; its affine, shape (4, 4), leads from voxels to RAS mm. Of TorchIO, an image with one channel.
    name : str
        How to call it in an error, such as "fixed image".

    Returns
    -------
    str, Path or Nifti1Image

    Raises
    ------
    ValueError
        If it is none of these, such as an array without an affine, or the affine is unusable.

    Examples
    --------
    >>> as_source((np.ones((2, 3, 4)), np.eye(4)), "fixed image").shape
    (2, 3, 4)
    >>> as_source(np.ones((2, 3, 4)), "fixed image")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    ValueError: fixed image: expected a path, ..., found an array of shape (2, 3, 4) without an affine.
    """
    if isinstance(source, Nifti1Image | str | Path):
        return source
    if isinstance(source, os.PathLike):
        return Path(source)
    if isinstance(source, SpatialImage):
        return _to_image(np.asanyarray(source.dataobj), source.affine, name)
    if isinstance(source, tuple) and len(source) == 2:
        return _to_image(np.asarray(source[0]), source[1], name)
    if hasattr(source, "affine") and hasattr(source, "data") and hasattr(source, "spatial_shape"):  # TorchIO's
        channels = np.asarray(source.data)
        if len(channels) != 1:
            raise ValueError(f"{name}: expected one channel, found {len(channels)}.")
        return _to_image(channels[0], source.affine, name)
    shape = getattr(source, "shape", None)
    found = type(source).__name__ if shape is None else f"an array of shape {tuple(shape)} without an affine"
    raise ValueError(f"{name}: expected {EXPECTED}, found {found}.")


def to_torchio(images: Mapping[str, Nifti1Image], labels: Mapping[str, Nifti1Image]) -> Any:
    """Return images as a subject of TorchIO.

    Parameters
    ----------
    images, labels : mapping of str to Nifti1Image
        Images and label maps by their names in the subject.

    Returns
    -------
    torchio.Subject

    Raises
    ------
    ValueError
        If TorchIO is not installed.
    """
    if find_spec("torchio") is None:
        raise ValueError("to_torchio: expected the package torchio, found none: pip install torchio.")
    import torchio

    kinds = ((torchio.ScalarImage, images), (torchio.LabelMap, labels))
    return torchio.Subject({
        name: kind(tensor=np.asarray(image.dataobj)[None].astype(np.float32), affine=image.affine)
        for kind, own in kinds
        for name, image in own.items()
    })  # fmt: skip


def _to_image(array: np.ndarray, affine: Any, name: str) -> Nifti1Image:
    """Make an image of an array, in a type that NIfTI's readers know."""
    kind = array.dtype.kind
    if kind not in "biuf":
        raise ValueError(f"{name}: expected an array of numbers, found {array.dtype}.")
    small = array.dtype.itemsize < 8 and kind in "iu"
    dtype = array.dtype if small else _TYPES.get(kind, np.int32)
    return Nifti1Image(array.astype(dtype), check_affine(np.asarray(affine), f"{name}: affine"))
