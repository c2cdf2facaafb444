"""Windows of a grid of voxels."""

from __future__ import annotations

from torch import Tensor

Window = tuple[slice, ...]
"""Voxels of a grid: a slice with start and stop for each of the three axes."""


def crop(tensor: Tensor, window: Window) -> Tensor:
    """Return the part of a tensor, shape (B, C, I, J, K), that lies in a window of its grid."""
    return tensor[(slice(None), slice(None), *window)]


def halve_window(window: Window) -> Window:
    """Return a window of even starts on the grid of half the size."""
    return tuple(slice(s.start // 2, (s.stop + 1) // 2) for s in window)
