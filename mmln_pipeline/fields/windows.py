"""Windows of a grid of voxels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from mmln_pipeline.fields.scales import halve_shape, resize_field

Window = tuple[slice, ...]
"""Voxels of a grid: a slice with start and stop for each of the three axes."""


def crop(tensor: Tensor, window: Window) -> Tensor:
    """Return the part of a tensor, shape (B, C, I, J, K), that lies in a window of its grid."""
    return tensor[(slice(None), slice(None), *window)]


def halve_window(window: Window) -> Window:
    """Return a window of even starts on the grid of half the size."""
    return tuple(slice(s.start // 2, (s.stop + 1) // 2) for s in window)


@dataclass(frozen=True)
class Patch:
    """A window of a grid, together with the whole grid's size.

    Parameters
    ----------
    shape : sequence of 3 int
        Voxels of the whole grid.
    window : Window
        Voxels of it that are meant.
    """

    shape: Sequence[int]
    window: Window

    @classmethod
    def of(cls, shape: Sequence[int], window: Window | None = None) -> Patch:
        """Return a window of a grid; the whole grid without one."""
        return cls(shape, window or tuple(slice(0, n) for n in shape))

    @property
    def origin(self) -> list[int]:
        """Where the window starts."""
        return [s.start for s in self.window]

    @property
    def size(self) -> list[int]:
        """Voxels of the window."""
        return [s.stop - s.start for s in self.window]

    def halved(self) -> Patch:
        """Return the same place on the grid of half the size; the window's starts are even."""
        return Patch(halve_shape(self.shape), halve_window(self.window))

    def cut(self, field: Tensor) -> Tensor:
        """Return what a velocity or displacement on a whole grid of any size, (B, 3, i, j, k), is in the window."""
        return crop(resize_field(field, self.shape), self.window)
