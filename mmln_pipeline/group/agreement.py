"""How well the labels of many brains agree after all were brought to one space, and what most of them say."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from nibabel import Nifti1Image

from mmln_pipeline.images.volumes import load_labels
from mmln_pipeline.space.grids import Grid, new_image, on_most_common_grid


def label_agreement(paths: Mapping[str, Path]) -> dict[str, dict[str, float]]:
    """Measure the overlap of each brain's labels with those of all others, on their common grid.

    For brain i and label l it is the generalised overlap ``2 sum_j |A_i and A_j| / sum_j (|A_i| + |A_j|)`` over the
    other brains j: the Dice coefficient pooled over the pairs.

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
    grids, places = {}, {}
    for name, path in paths.items():
        try:
            image = load_labels(path, name="labels")
        except (OSError, ValueError):
            continue
        grids[name] = Grid.of(image)
        places[name] = _find_places(np.asanyarray(image.dataobj))
    if not grids:
        return {}
    common = on_most_common_grid(list(grids.values()))
    kept = {name: places[name] for name, grid in grids.items() if grid.matches(common)}
    n_voxels, n_others = math.prod(common.shape), len(kept) - 1
    found: dict[str, dict[str, float]] = {name: {} for name in kept} if n_others else {}
    for number in sorted({number for labels in kept.values() for number in labels}) if n_others else ():
        holders = {name: labels[number] for name, labels in kept.items() if number in labels}
        votes = np.bincount(np.concatenate(list(holders.values())), minlength=n_voxels)
        total = sum(map(len, holders.values()))
        for name, voxels in holders.items():
            shared = votes[voxels].sum() - len(voxels)  # each voxel has this brain's own vote
            found[name][str(number)] = float(2 * shared / (n_others * len(voxels) + total - len(voxels)))
    return found


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
