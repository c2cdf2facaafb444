"""The core branch, for training (section 3.3): the finest level registers the centre a second time, by itself."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from mmln_pipeline.fields.windows import Window
from mmln_pipeline.network.model import MMLN, LevelOutput


def register_core(
    model: MMLN, fixed: Tensor, moving: Tensor, before: LevelOutput | None, size: Sequence[int]
) -> tuple[Tensor, Window]:
    """Register the centre of a pair by itself, with the finest level's weights.

    Parameters
    ----------
    model : MMLN
    fixed, moving : Tensor, shape (B, 1, I, J, K)
        The full-size pair.
    before : LevelOutput or None
        The run before the finest level's; none for the first.
    size : sequence of 3 int
        The core's, in voxels.

    Returns
    -------
    displacement : Tensor, shape (B, 3, *size) or half of it
        On the core, voxels.
    core : tuple of 3 slices
        Where it lies.
    """
    core = central_window(fixed.shape[2:], size)
    return model.run_level(model.config.levels, fixed, moving, before, core).displacement, core


def central_window(shape: Sequence[int], size: Sequence[int]) -> Window:
    """Return the window of a size in the centre of a grid, with even starts; no larger than the grid."""
    size = [min(n, s) for n, s in zip(shape, size, strict=True)]
    return tuple(
        slice(start, start + s) for start, s in (((n - s) // 4 * 2, s) for n, s in zip(shape, size, strict=True))
    )
