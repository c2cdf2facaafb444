"""Image files written whole or not at all, and compressed by a library that is ten times as fast as zlib."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from isal import igzip, isal_zlib
from nibabel.filebasedimages import SerializableImage

from mmln_pipeline.machine.files import atomic_path

_LEVEL = 1


def write_whole(image: SerializableImage, path: str | os.PathLike[str]) -> Path:
    """Write an image atomically.

    Parameters
    ----------
    image : SerializableImage
        Of NiBabel, in one file.
    path : path-like
        With ``.gz`` or ``.mgz`` at the end, it is compressed; the same image gives the same bytes.

    Returns
    -------
    Path
        The file written.
    """
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        if temporary.name.endswith((".gz", ".mgz")):
            file.write(igzip.compress(image.to_bytes(), _LEVEL, mtime=0))
        else:
            image.to_stream(file)
    return Path(path)


def shuffle_and_deflate(values: np.ndarray) -> bytes:
    """Compress numbers as HDF5's filters "shuffle" and "deflate" do: all first bytes, all second bytes, ...

    Parameters
    ----------
    values : ndarray, shape (N,)

    Returns
    -------
    bytes
    """
    octets = values.view(np.uint8)
    shuffled = np.stack([octets[place :: values.itemsize] for place in range(values.itemsize)])
    return isal_zlib.compress(shuffled, _LEVEL)
