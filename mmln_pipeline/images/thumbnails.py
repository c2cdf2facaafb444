"""Small pictures of brains: an axial, a coronal and a sagittal slice side by side, as a data URI."""

from __future__ import annotations

import base64
import io
from typing import NamedTuple

import nibabel as nib
import numpy as np
from nibabel import Nifti1Image
from nibabel.affines import voxel_sizes
from numpy.typing import NDArray
from PIL import Image

PIXELS = 120
"""Of a plane along the longest side of the brain: about 1.5 mm each, and 8 kB for the three of a brain."""
MARGIN = 0.03
"""Left free round the brain, as a share of its longest side."""
BESIDE_MIDDLE = 0.1
"""How far the sagittal plane lies beside the middle of the brain, as a share of its width: not in the fissure."""


class Frame(NamedTuple):
    """A box in the RAS order of a grid, the sagittal, coronal and axial plane in its voxels, a pixel's size in mm."""

    box: tuple[slice, ...]
    planes: tuple[int, ...]
    pixel: float


def frame_brain(image: Nifti1Image) -> Frame:
    """Choose box and planes by what is above zero; all of an empty image.

    Parameters
    ----------
    image : Nifti1Image
        A stripped brain, 3-D, in any orientation.

    Returns
    -------
    Frame
    """
    canonical = nib.as_closest_canonical(image)
    shape = np.array(canonical.shape[:3])
    inside = np.argwhere(np.asarray(canonical.dataobj) > 0)
    low, high = (inside.min(axis=0), inside.max(axis=0)) if len(inside) else (np.zeros(3, int), shape - 1)
    spacing = voxel_sizes(canonical.affine)
    longest = float(((high - low + 1) * spacing).max())
    free = np.ceil(MARGIN * longest / spacing).astype(int)
    first, last = np.maximum(low - free, 0), np.minimum(high + free, shape - 1)
    box = tuple(slice(int(a), int(b) + 1) for a, b in zip(first, last, strict=True))
    shares = np.array([0.5 + BESIDE_MIDDLE, 0.5, 0.5])
    planes = tuple(np.round(low + shares * (high - low) - first).astype(int).tolist())
    return Frame(box, planes, longest / PIXELS)


def lay_out_planes(image: Nifti1Image, frame: Frame) -> NDArray[np.float32]:
    """Put three planes side by side: axial, coronal, sagittal; the left of the brain on the left.

    Parameters
    ----------
    image : Nifti1Image
        On the grid that the frame was chosen on.
    frame : Frame
        Where the planes lie.

    Returns
    -------
    ndarray, shape (H, W)
        Square pixels of the frame's size.
    """
    canonical = nib.as_closest_canonical(image)
    spacing = voxel_sizes(canonical.affine)
    data = np.asarray(canonical.dataobj, dtype=np.float32)[frame.box]
    parts = []
    for axis in (2, 1, 0):
        across, along = (other for other in range(3) if other != axis)
        plane = np.take(data, frame.planes[axis], axis=axis).T[::-1]
        height, width = (
            max(1, round(n * spacing[to] / frame.pixel)) for n, to in zip(plane.shape, (along, across), strict=True)
        )
        parts.append(np.asarray(Image.fromarray(plane).resize((width, height), Image.Resampling.BILINEAR)))
    sheet = np.zeros((max(len(part) for part in parts), sum(part.shape[1] for part in parts)), np.float32)
    left = 0
    for part in parts:
        top = (len(sheet) - len(part)) // 2
        sheet[top : top + len(part), left : left + part.shape[1]] = part
        left += part.shape[1]
    return sheet


def to_data_uri(picture: NDArray) -> str:
    """Write a grey picture, values 0 to 1, shape (H, W), as JPEG that stands in a page."""
    buffer = io.BytesIO()
    grey = np.round(255 * np.clip(picture, 0, 1)).astype(np.uint8)
    Image.fromarray(grey).save(buffer, format="JPEG", quality=70)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
