"""The frame in which a network wants its images: order and direction of axes, and size of the grid."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from nibabel import Nifti1Image
from nibabel.orientations import apply_orientation, axcodes2ornt, io_orientation, ornt_transform
from numpy.typing import NDArray


@dataclass(frozen=True)
class Frame:
    """A view of a grid: its axes re-ordered and turned, then cropped or padded to a size.

    Parameters
    ----------
    turn : ndarray, shape (3, 2)
        From each axis of the images, the network's axis and +1 or -1, as nibabel's orientations.
    before : tuple of 3 int
        Size of the turned grid.
    start : tuple of 3 int
        The turned grid's voxel at which the network's begins; negative where that is padded.
    size : tuple of 3 int
        Of the network's grid.
    """

    turn: NDArray[np.float64]
    before: tuple[int, ...]
    start: tuple[int, ...]
    size: tuple[int, ...]

    @classmethod
    def of(cls, image: Nifti1Image, axes: str = "", size: Sequence[int] = ()) -> Frame:
        """Lay the frame round the centre of an image's brain.

        Parameters
        ----------
        image : Nifti1Image
            Its voxels above 0 are the brain.
        axes : str, optional
            Where the array axes point, like "LPS"; as the image's by default.
        size : sequence of 3 int, optional
            As the image's by default.
        """
        own = io_orientation(image.affine)
        turn = ornt_transform(own, axcodes2ornt(axes)) if axes else np.array([[0, 1], [1, 1], [2, 1]], float)
        turned = apply_orientation(np.asarray(image.dataobj), turn)
        if not len(size):
            return cls(turn, turned.shape, (0, 0, 0), turned.shape)
        spans = [np.flatnonzero(turned.any(tuple({0, 1, 2} - {axis}))) for axis in range(3)]
        starts = []
        for span, old, new in zip(spans, turned.shape, size, strict=True):
            middle = (span[0] + span[-1] + 1) // 2 if len(span) else old // 2
            wanted = middle - new // 2
            starts.append(int(np.clip(wanted, min(0, old - new), max(0, old - new))))
        return cls(turn, turned.shape, tuple(starts), tuple(size))

    def view(self, image: Nifti1Image) -> NDArray[np.float32]:
        """Return an image's voxels in the frame, shape `size`, 0 where it is padded."""
        turned = apply_orientation(image.get_fdata(dtype=np.float32), self.turn)
        return np.ascontiguousarray(self._fit(turned, self.start, self.size, "constant"))

    def restore(self, displacement: NDArray[np.float32]) -> NDArray[np.float32]:
        """Bring a displacement in voxels, shape (3, *size), back to the image's grid and its axes.

        Beyond the network's grid it goes on as at its border.
        """
        back = tuple(-start for start in self.start)
        fields = [self._fit(component, back, self.before, "edge") for component in displacement]
        inverse = np.empty((3, 2))
        inverse[self.turn[:, 0].astype(int)] = np.stack([np.arange(3), self.turn[:, 1]], 1)
        turned = [apply_orientation(fields[int(axis)], inverse) * sign for axis, sign in self.turn]
        return np.stack(turned).astype(np.float32)

    @staticmethod
    def _fit(array: NDArray, start: Sequence[int], size: Sequence[int], mode: str) -> NDArray:
        """Cut a window out of an array, which is padded where the window reaches beyond it."""
        spans = list(zip(start, size, array.shape, strict=True))
        padding = [(max(0, -first), max(0, first + length - n)) for first, length, n in spans]
        inside = tuple(slice(max(0, first), min(n, first + length)) for first, length, n in spans)
        return np.pad(array[inside], padding, mode=mode)  # type: ignore[call-overload]
