"""Who is registered to whom: the scans of the test sets, the atlases among them, and who must not be among them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mmln_pipeline.machine.files import checksum
from mmln_pipeline.study.configuration import Row, StudyConfig, TestSet
from mmln_pipeline.study.methods import Surroundings
from mmln_pipeline.study.provenance import learned_from
from mmln_pipeline.training.datasets import Source, find_all, find_sources

Scans = Mapping[str, Sequence[Source]]
"""The scans of each test set, by its name."""


@dataclass(frozen=True)
class Pair:
    """A pair of scans, by the names of its test set and of both."""

    test_set: str
    fixed: str
    moving: str


def find_scans(study: StudyConfig, root: Path) -> dict[str, list[Source]]:
    """List the scans of each test set.

    Parameters
    ----------
    study : StudyConfig
    root : Path
        Folder that relative paths start from.

    Returns
    -------
    dict of str to list of Source
        Sorted by name.

    Raises
    ------
    FileNotFoundError, ValueError
        As of `mmln_pipeline.training.datasets.find_sources`; when scans of two people are too few.
    """
    scans = {item.name: find_sources(item.dataset, root, "test") for item in study.sets}
    for item in study.sets:
        found, wanted = scans[item.name], item.atlases or study.atlases
        if len({scan.person for scan in found}) < 2 or len(found) < wanted:
            raise ValueError(
                f"sets: expected scans of two people or more, and {wanted} atlases among them, "
                f"found {len(found)} scans of {len({scan.person for scan in found})} people in {item.name!r}"
            )
    return scans


def check_people(study: StudyConfig, scans: Scans, root: Path) -> None:
    """Refuse a test scan of somebody whom a row has learned from, or whose scans chose its weights.

    Parameters
    ----------
    study : StudyConfig
    scans : mapping of str to sequence of Source
        As of `find_scans`.
    root : Path
        Folder that relative paths start from.

    Raises
    ------
    ValueError
        By the participant's name: one in two splits, one among the volumes on the card of a row's
        weights, and one whose scan is stored twice.
    """
    splits = find_all(study.data, root)
    learned = {mark: f"data.{split}" for split, found in splits.items() for scan in found for mark in _marks(scan)}
    for test_set, members in scans.items():
        for scan in members:
            if group := next((learned[mark] for mark in _marks(scan) if mark in learned), ""):
                raise ValueError(
                    f"people: expected each participant in one split, found {scan.person} in {group} and sets "
                    f"{test_set!r}"
                )
    tested = [scan for members in scans.values() for scan in members]
    for row in study.rows:
        for name in learned_from(row.make(Surroundings(root)), root):
            for scan in tested:
                if scan.name == name or name.startswith(f"{scan.person}_"):
                    raise ValueError(
                        f"people: the weights of {row.name!r} were trained or chosen on {name}, "
                        f"a scan of the test participant {scan.person}"
                    )


def _marks(scan: Source) -> tuple[str, str]:
    """Return what tells that two scans are of one person: the participant, and a copy's content."""
    return scan.person, checksum(scan.image)


def draw_pairs(study: StudyConfig, test_set: TestSet, scans: Sequence[Source]) -> list[Pair]:
    """Draw atlases at random, and let every other person's scan move onto each.

    Parameters
    ----------
    study : StudyConfig
    test_set : TestSet
    scans : sequence of Source
        Of the test set, sorted by name.

    Returns
    -------
    list of Pair
        First one of each atlas, then a second one, and so on, so that the first ones have all atlases among them.
    """
    order = np.random.default_rng(study.seed).permutation(len(scans))
    atlases = [scans[index] for index in order[: test_set.atlases or study.atlases]]
    moving = {atlas.name: [scan for scan in scans if scan.person != atlas.person] for atlas in atlases}
    pairs = [
        Pair(test_set.name, atlas.name, moving[atlas.name][place].name)
        for place in range(len(scans))
        for atlas in atlases
        if place < len(moving[atlas.name])
    ]
    return pairs[: study.pairs]


def choose_pairs(row: Row, pairs: Iterable[Pair]) -> list[Pair]:
    """Return the pairs of a set that a row registers: the first ones, where it has a limit."""
    return list(pairs)[: row.pairs]
