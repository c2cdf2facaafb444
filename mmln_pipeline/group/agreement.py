"""How well the labels of many brains agree after all were brought to one space, and what most of them say."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel import Nifti1Image

from mmln_pipeline.images.volumes import UNREADABLE, load_labels
from mmln_pipeline.space.grids import Grid, affine_in_mm, new_image, on_most_common_grid

_BLOCK = 8
"""Edge of a block of votes in voxels: small enough to follow a label's outline."""


def label_agreement(paths: Mapping[str, Path]) -> dict[str, dict[str, float]]:
    """Measure the overlap of each brain's labels with those of all others, on their common grid.

    For brain i and label l it is the generalised overlap ``2 sum_j |A_i and A_j| / sum_j (|A_i| + |A_j|)`` over the
    other brains j: the Dice coefficient pooled over the pairs. The sums over j are counts of voxels, which are the same
    for all i: images are read twice, once to count and once to compare, and none is kept.

    Parameters
    ----------
    paths : mapping of str to Path
        Label images by name. Those on another grid than most, or that cannot be read, are left out.

    Returns
    -------
    dict of str to dict of str to float
        By name and label number; empty for fewer than two images.

    References
    ----------
    Crum, Camara, Hill, Generalized overlap measures for evaluation and validation in medical image analysis, IEEE TMI
    2006.
    """
    grids = _read_grids(paths)
    if not grids:
        return {}
    common = on_most_common_grid(list(grids.values()))
    votes, kept = _Votes(common.shape, len(grids)), []
    for name, grid in grids.items():
        if not grid.matches(common):
            continue
        try:
            labels = _read(paths[name])
        except (OSError, ValueError):
            continue
        votes.add(labels)
        kept.append(name)
    n_others = len(kept) - 1
    if n_others < 1:
        return {}
    found: dict[str, dict[str, float]] = {}
    for name in kept:
        found[name] = {}
        for number, (size, agreeing) in votes.count(_read(paths[name])).items():
            shared = agreeing - size  # each voxel has this brain's own vote
            found[name][str(number)] = 2 * shared / (n_others * size + votes.totals[number] - size)
    return found


class _Votes:
    """How many images have a label at a voxel, held in blocks of voxels, and only where the label occurs at all.

    Parameters
    ----------
    shape : tuple of int
        Voxels of the common grid.
    n_images : int
        How many images there are at most.
    """

    def __init__(self, shape: tuple[int, int, int], n_images: int) -> None:
        sizes = [-(-n // _BLOCK) for n in shape]
        axes = [np.arange(n, dtype=np.int32) for n in shape]
        i, j, k = np.ix_(*(axis // _BLOCK for axis in axes))
        self._block = ((i * sizes[1] + j) * sizes[2] + k).ravel()
        i, j, k = np.ix_(*(axis % _BLOCK for axis in axes))
        self._offset = ((i * _BLOCK + j) * _BLOCK + k).astype(np.int16).ravel()
        self._pages = np.empty((0, int(np.prod(sizes))), np.int32)
        self._lines: dict[int, int] = {}
        self._votes = np.zeros((0, _BLOCK**3), np.min_scalar_type(n_images))
        self.totals: Counter[int] = Counter()
        """Voxels of each label in all images."""

    def add(self, labels: np.ndarray) -> None:
        """Add the labels of one image, shape (I, J, K)."""
        numbers, sizes, line, voxels = self._take_apart(labels)
        self.totals.update(dict(zip(numbers, sizes.tolist(), strict=True)))
        self._provide(line * self._pages.shape[1] + self._block[voxels])
        self._votes.reshape(-1)[self._find(line, voxels)] += 1  # no place comes twice in an image

    def count(self, labels: np.ndarray) -> dict[int, tuple[int, int]]:
        """Return the voxels of each label of an added image, and the votes for it there, its own among them."""
        numbers, sizes, line, voxels = self._take_apart(labels)
        votes = self._votes.reshape(-1)[self._find(line, voxels)]
        agreeing = np.bincount(line, votes, len(self._lines))[[self._lines[number] for number in numbers]]
        return dict(zip(numbers, zip(sizes.tolist(), map(int, agreeing), strict=True), strict=True))

    def _take_apart(self, labels: np.ndarray) -> tuple[list[int], np.ndarray, np.ndarray, np.ndarray]:
        """Return an image's sorted numbers, their sizes, and of each labelled voxel its label's line and its place."""
        voxels = np.flatnonzero(labels > 0)
        found, index, sizes = np.unique(labels.ravel()[voxels], return_inverse=True, return_counts=True)
        numbers = found.tolist()
        new = [number for number in numbers if number not in self._lines]
        self._lines.update(zip(new, range(len(self._lines), len(self._lines) + len(new)), strict=True))
        absent = np.full((len(new), self._pages.shape[1]), -1, np.int32)
        self._pages = np.concatenate([self._pages, absent]) if new else self._pages
        lines = np.array([self._lines[number] for number in numbers], np.int64)
        return numbers, sizes, lines[index], voxels

    def _provide(self, wanted: np.ndarray) -> None:
        """Make room for blocks that no image had before, given as places in the table of pages."""
        pages = self._pages.reshape(-1)
        new = np.unique(wanted[pages[wanted] < 0])
        pages[new] = np.arange(len(self._votes), len(self._votes) + len(new))
        self._votes.resize((len(self._votes) + len(new), _BLOCK**3), refcheck=False)

    def _find(self, line: np.ndarray, voxels: np.ndarray) -> np.ndarray:
        """Return where the votes of voxels stand."""
        return self._pages[line, self._block[voxels]].astype(np.int64) * _BLOCK**3 + self._offset[voxels]


def _read_grids(paths: Mapping[str, Path]) -> dict[str, Grid]:
    """Read the grid of each image from its header; leave out those that have none."""
    grids = {}
    for name, path in paths.items():
        try:
            image: Any = nib.load(path)
            grids[name] = Grid(image.shape[:3], affine_in_mm(image))
        except UNREADABLE:
            continue
    return grids


def _read(path: Path) -> np.ndarray:
    return np.asanyarray(load_labels(path, name="labels").dataobj)


def majority_labels(paths: Sequence[Path]) -> Nifti1Image:
    """Return the label that most of some label images have at each voxel; the smallest of equals.

    Parameters
    ----------
    paths : sequence of Path
        Label images on one grid, at least one.

    Returns
    -------
    Nifti1Image
        In the smallest integer type that holds the numbers.

    Raises
    ------
    ValueError
        If they lie on different grids.
    """
    first = load_labels(paths[0], name="labels")
    places = []
    for path in paths:
        image = load_labels(path, name="labels")
        if not Grid.of(first).matches(image):
            raise ValueError(f"labels {path}: {Grid.of(first).describe_difference(image)}")
        places.append(_find_places(np.asanyarray(image.dataobj)))
    numbers = sorted({number for labels in places for number in labels})
    n_voxels = math.prod(first.shape)
    winner = np.zeros(n_voxels, np.min_scalar_type(max(numbers, default=0)))
    most = np.full(n_voxels, len(paths), dtype=np.uint32)  # so many have no label there
    for labels in places:
        for voxels in labels.values():
            most[voxels] -= 1
    for number in numbers:
        votes = np.bincount(np.concatenate([own[number] for own in places if number in own]), minlength=n_voxels)
        wins = votes > most
        winner[wins], most[wins] = number, votes[wins]
    return new_image(winner.reshape(first.shape), first)


def _find_places(labels: np.ndarray) -> dict[int, np.ndarray]:
    """Return the flat indices of each label's voxels."""
    voxels = np.flatnonzero(labels > 0)
    values = labels.ravel()[voxels]
    order = np.argsort(values, kind="stable")
    numbers, starts = np.unique(values[order], return_index=True)
    return dict(zip(numbers.tolist(), np.split(voxels[order], starts[1:]), strict=True))
