"""What the figures show of one pair, in three planes: images, labels and the field of each row."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from numpy.typing import NDArray

from mmln_pipeline.fields.warping import warp
from mmln_pipeline.machine.files import atomic_path
from mmln_pipeline.study.preparation import PreparedScan

PLANES = {"axial": (2, 0, 1), "coronal": (1, 0, 2), "sagittal": (0, 1, 2)}
"""Axis that is cut, axis to the right and axis upwards, of a RAS+ grid."""
SIDE_SHARE = 0.13
"""How far beside the middle the sagittal plane lies, of the brain's width: where deep grey matter is."""
MARGIN = 0.03
"""What is left free round the brain, of the grid's longest side."""


@dataclass(frozen=True)
class Slice:
    """One plane of a pair, its rows upwards and its columns to the right or to the front.

    Parameters
    ----------
    fixed, moved : ndarray of float, shape (H, W)
        Images in [0, 1].
    fixed_labels, moved_labels : ndarray of int, shape (H, W)
        Structures, numbered from 1 in the order of the test set's table.
    offsets : ndarray of float, shape (2, H, W)
        Displacement to the right and upwards, voxels.
    """

    fixed: NDArray[np.floating]
    moved: NDArray[np.floating]
    fixed_labels: NDArray[np.integer]
    moved_labels: NDArray[np.integer]
    offsets: NDArray[np.floating]


def keep_slices(
    path: Path,
    displacement: torch.Tensor,
    pair: tuple[PreparedScan, PreparedScan],
    moved_labels: NDArray[np.integer],
    table: Mapping[str, tuple[int, ...]],
) -> None:
    """Write what the figures show of a pair.

    Parameters
    ----------
    path : Path
        The ``.npz`` file to write.
    displacement : Tensor, shape (1, 3, I, J, K)
        Voxels, fixed to moving.
    pair : tuple of PreparedScan
        Fixed and moving scan.
    moved_labels : ndarray of int, shape (I, J, K)
    table : mapping of str to tuple of int
        The structures.
    """
    fixed, moving = pair
    moved = warp(torch.from_numpy(moving.image)[None, None], displacement)[0, 0].numpy()
    order = nib.orientations.io_orientation(fixed.grid.affine)

    def turn(array: NDArray) -> NDArray:
        return nib.orientations.apply_orientation(array, order)

    axes = [int(np.flatnonzero(order[:, 0] == axis)[0]) for axis in range(3)]
    field = [order[axis, 1] * turn(displacement[0, axis].numpy()) for axis in axes]
    volumes = {
        "fixed": np.round(255 * turn(fixed.image)).astype(np.uint8),
        "moved": np.round(255 * turn(moved)).astype(np.uint8),
        "fixed_labels": _recode(turn(fixed.labels), table),
        "moved_labels": _recode(turn(moved_labels), table),
    }
    box = _box(turn(fixed.brain))
    arrays: dict[str, Any] = {}
    for plane, (cut, right, up) in PLANES.items():
        where = _cut(box, cut)
        for name, volume in (volumes | {"right": field[right], "up": field[up]}).items():
            arrays[f"{plane}_{name}"] = np.ascontiguousarray(volume[box].take(where, axis=cut).T)
    with atomic_path(path) as temporary:
        np.savez_compressed(temporary, **arrays)


def read_slices(path: Path) -> dict[str, Slice]:
    """Read the planes of a row, by their names."""
    with np.load(path) as arrays:
        return {
            plane: Slice(
                arrays[f"{plane}_fixed"] / 255,
                arrays[f"{plane}_moved"] / 255,
                arrays[f"{plane}_fixed_labels"],
                arrays[f"{plane}_moved_labels"],
                np.stack([arrays[f"{plane}_right"], arrays[f"{plane}_up"]]),
            )
            for plane in PLANES
        }


def _recode(labels: NDArray, table: Mapping[str, tuple[int, ...]]) -> NDArray[np.uint8]:
    """Number structures by their place in a table; everything else is 0."""
    codes = np.zeros(labels.shape, np.uint8)
    for code, numbers in enumerate(table.values(), 1):
        codes[np.isin(labels, numbers)] = min(code, 255)
    return codes


def _box(brain: NDArray[np.bool_]) -> tuple[slice, ...]:
    """Return the box round a brain, with a margin."""
    margin = round(MARGIN * max(brain.shape))
    inside = np.argwhere(brain)
    low = np.maximum(inside.min(0) - margin, 0)
    high = np.minimum(inside.max(0) + margin + 1, brain.shape)
    return tuple(slice(int(a), int(b)) for a, b in zip(low, high, strict=True))


def _cut(box: tuple[slice, ...], axis: int) -> int:
    """Return where a plane cuts the box: in its middle, the sagittal one beside it."""
    size = box[axis].stop - box[axis].start
    return round(size * (0.5 - (SIDE_SHARE if axis == 0 else 0)))
