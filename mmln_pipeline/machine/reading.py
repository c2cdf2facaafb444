"""Image files read to their end, so that a damaged one is refused before it is worked with."""

from __future__ import annotations

import math
import os
import zlib
from collections.abc import Iterator
from typing import Any, cast

import nibabel as nib
import numpy as np
from isal import igzip, isal_zlib
from nibabel.filebasedimages import ImageFileError
from nibabel.freesurfer.mghformat import MGHError
from nibabel.spatialimages import HeaderDataError
from numpy.typing import NDArray

UNREADABLE = (
    ImageFileError, HeaderDataError, MGHError, OSError, EOFError, ValueError, OverflowError, MemoryError, zlib.error,
    KeyError,  # by which NiBabel looks up FreeSurfer's types
    cast(type[Exception], isal_zlib.error),  # its stub calls it an instance
)  # fmt: skip
"""What is raised for files that are broken, no images, or larger than the memory."""
_COMPRESSED = (".gz", ".mgz")
_CHUNK = 2**24


def read_whole(path: str | os.PathLike[str]) -> Any:
    """Read an image file into memory and check that it is whole.

    NiBabel stops at the last voxel and never sees a gzip file's checksum, which stands behind it; and it takes the
    memory that a header asks for before it knows what the file holds.

    Parameters
    ----------
    path : path-like
        NIfTI (.nii, .nii.gz) or FreeSurfer (.mgz) file.

    Returns
    -------
    SpatialImage
        Of NiBabel's class for the file; its voxels are decoded on access.

    Raises
    ------
    UNREADABLE
        If the file is no image, damaged (checksum, length), shorter than its header promises or too large.
    """
    promise: Any = nib.load(path)  # the header alone
    if min(promise.shape, default=0) < 0:
        raise ImageFileError(f"its header has the sizes {promise.shape}")
    size = int(promise.dataobj.offset) + math.prod(map(int, promise.shape)) * promise.get_data_dtype().itemsize
    opened = igzip.open if os.fspath(path).endswith(_COMPRESSED) else open
    with opened(path, "rb") as stream:
        content = b"".join(_read_up_to(stream, size))
        if len(content) < size:
            raise ImageFileError(f"its header promises {size} bytes, found {len(content)}")
        while stream.read(_CHUNK):  # to the end, where gzip compares its checksum
            pass
    return type(promise).from_bytes(content)


def stream_volumes(path: str | os.PathLike[str]) -> Iterator[NDArray]:
    """Yield the volumes of a series one after the other, in one pass through the file.

    Parameters
    ----------
    path : path-like
        4-D NIfTI (.nii, .nii.gz) or FreeSurfer (.mgz) file.

    Yields
    ------
    ndarray, shape (I, J, K)
        In the stored type where the header has no slope; else float32.

    Raises
    ------
    UNREADABLE
        As of `read_whole`; what is wrong at the file's end shows there.
    """
    promise: Any = nib.load(path)
    proxy, shape, stored = promise.dataobj, promise.shape[:3], promise.get_data_dtype()
    slope, inter = getattr(proxy, "slope", 1.0), getattr(proxy, "inter", 0.0)
    size = math.prod(map(int, shape)) * stored.itemsize
    opened = igzip.open if os.fspath(path).endswith(_COMPRESSED) else open
    with opened(path, "rb") as stream:
        stream.read(int(proxy.offset))
        for number in range(math.prod(map(int, promise.shape[3:]))):
            content = b"".join(_read_up_to(stream, size))
            if len(content) < size:
                raise ImageFileError(f"its header promises {promise.shape[3]} volumes, volume {number} is cut off")
            volume = np.frombuffer(content, dtype=stored).reshape(shape, order="F")
            is_scaled = (slope, inter) != (1.0, 0.0)
            yield volume.astype(np.float32) * np.float32(slope) + np.float32(inter) if is_scaled else volume
        while stream.read(_CHUNK):  # to the end, where gzip compares its checksum
            pass


def _read_up_to(stream: Any, size: int) -> Iterator[bytes]:
    """Yield what a file holds piece by piece: what its header promises is no reason to take memory."""
    while size > 0 and (piece := stream.read(min(size, _CHUNK))):
        yield piece
        size -= len(piece)


def explain(error: BaseException) -> str:
    """Return the cause of an error on one line; its kind, too, where it says a word at most (MemoryError, KeyError)."""
    cause = " ".join(str(error).split())
    return cause if " " in cause else f"{type(error).__name__} {cause}".strip()


def advise(error: BaseException) -> str:
    """Return what to do about a file that cannot be read: not every error is the file's fault."""
    return "give the run more memory" if isinstance(error, MemoryError) else "restore the file"
