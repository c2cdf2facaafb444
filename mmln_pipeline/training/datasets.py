"""The scans that a configuration names, and what has to hold of them before an hour goes into preparing them."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from mmln_pipeline.atlas.labels import SYSTEMS, LabelTable, load_label_table, structures28
from mmln_pipeline.images.volumes import load_image, load_labels, looks_skull_stripped
from mmln_pipeline.training.config import DataConfig, DatasetConfig, LossConfig

SPLITS = ("train", "validation")


class Scan(Protocol):
    """What the checks want to know of a scan, packed or not."""

    @property
    def name(self) -> str:
        """Unique among the scans."""

    @property
    def person(self) -> str:
        """Two scans of one person are never a pair."""

    @property
    def is_labelled(self) -> bool:
        """Whether it comes with labels."""


@dataclass(frozen=True)
class Source:
    """One scan of a dataset.

    Parameters
    ----------
    name : str
        Unique in the pack: dataset, and the image's name without its suffix.
    person : str
        Dataset and subject: two scans of one person are never a pair.
    image : Path
    labels : Path or None
    """

    name: str
    person: str
    image: Path
    labels: Path | None

    @property
    def is_labelled(self) -> bool:
        """Whether it comes with labels."""
        return self.labels is not None


def find_sources(dataset: DatasetConfig, root: Path, what: str = "training") -> list[Source]:
    """List a dataset's scans.

    Parameters
    ----------
    dataset : DatasetConfig
    root : Path
        Folder that relative paths start from.
    what : str, default="training"
        What the scans are for, in an error.

    Returns
    -------
    list of Source
        Sorted by name.

    Raises
    ------
    FileNotFoundError
        When the folder, its split table, a label image, or any T1w image is missing.
    ValueError
        When several label images could be an image's.
    """
    folder = (root / dataset.path).resolve()
    if not folder.is_dir():
        raise FileNotFoundError(f"{what} data: no such folder: {folder}")
    chosen = _split(dataset, folder, root, what) if dataset.split else None
    sources, found = [], set()
    for image in sorted(folder.glob("sub-*/**/anat/*_T1w.nii.gz")):
        parts = image.relative_to(folder).parts
        subject, session = parts[0], parts[1] if parts[1].startswith("ses-") else ""
        if chosen is not None and (subject, session) not in chosen:
            continue
        found.add((subject, session))
        labels = _find_labels(image, folder, folder / dataset.labels, what) if dataset.labels else None
        name = f"{folder.name}_{image.name.removesuffix('_T1w.nii.gz')}"
        sources.append(Source(name, f"{folder.name}_{subject}", image, labels))
    if not sources:
        raise FileNotFoundError(f"{what} data: no sub-*/**/anat/*_T1w.nii.gz of split {dataset.split!r} in {folder}")
    if absent := sorted((chosen or set()) - found):
        names = ", ".join(" ".join(part for part in row if part) for row in absent[:3])
        raise FileNotFoundError(
            f"{what} data: {len(absent)} scans of split {dataset.split!r} have no T1w image in {folder}: {names}"
        )
    return sources


def find_all(config: DataConfig, root: Path) -> dict[str, list[Source]]:
    """List the scans of both splits, and check that no two are taken for one.

    Parameters
    ----------
    config : DataConfig
    root : Path
        Folder that relative paths start from.

    Returns
    -------
    dict of str to list of Source
        By split, ``train`` and ``validation``.

    Raises
    ------
    FileNotFoundError
        As for :func:`find_sources`.
    ValueError
        When two scans have one name or one label image, or a person is in both splits.
    """
    sources = {
        split: [source for dataset in getattr(config, split) for source in find_sources(dataset, root)]
        for split in SPLITS
    }
    if both := sorted({s.person for s in sources["train"]} & {s.person for s in sources["validation"]}):
        raise ValueError(f"training data: expected each person in one split, found {', '.join(both[:3])} in both")
    named: dict[str | Path, Source] = {}
    for source in [*sources["train"], *sources["validation"]]:
        for key, what in ((source.name, "the name"), (source.labels, "the labels")):
            other = named.setdefault(key, source) if key else source
            if other is not source:
                raise ValueError(f"training data: {other.image} and {source.image} share {what} {key}")
    return sources


def label_table(config: DataConfig, root: Path) -> LabelTable:
    """Load the table of the structures that are compared; a file's path is relative to a folder.

    Raises
    ------
    FileNotFoundError, ValueError
        When there is no such table, or it is none.
    """
    path = root / config.label_table
    return load_label_table(path if path.is_file() else config.label_table)


def check_people(train: Sequence[Scan], validation: Sequence[Scan], loss: LossConfig) -> None:
    """Check that pairs of two people can be made of the scans, for each purpose.

    Parameters
    ----------
    train, validation : sequence of scans
        Packed volumes or their sources.
    loss : LossConfig
        What wants labels.

    Raises
    ------
    ValueError
        When there are too few people, in all or with labels.
    """
    _expect_two(train, "training data")
    if validation:
        _expect_two(validation, "validation data")
    if any(scan.is_labelled for scan in validation):
        _expect_two([scan for scan in validation if scan.is_labelled], "validation data with labels")
    for name in ("dice", "cortex"):
        if getattr(loss, name):
            _expect_two([scan for scan in train if scan.is_labelled], f"loss.{name}: training data with labels")


def check_source(source: Source, table: LabelTable) -> None:
    """Read a scan and check that it can be trained on.

    Parameters
    ----------
    source : Source
    table : LabelTable
        The structures that are looked for.

    Raises
    ------
    FileNotFoundError, ValueError
        When the image or its labels cannot be read, the image is no stripped brain, or the labels are numbered
        otherwise.
    """
    if not looks_skull_stripped(load_image(source.image, "training image")):
        raise ValueError(
            f"training image {source.image}: expected a skull-stripped brain, found a head or no background"
        )
    if source.labels is not None:
        check_numbers(
            np.asarray(load_labels(source.labels, "training labels").dataobj), table, f"training labels {source.labels}"
        )


def check_numbers(labels: NDArray[np.integer], table: LabelTable, where: str) -> None:
    """Check that a label image is numbered as a table says.

    Parameters
    ----------
    labels : array of int, any shape
    table : LabelTable
    where : str
        What to call the image in an error.

    Raises
    ------
    ValueError
        When the image has none of the table's structures, or more of those of another bundled system.
    """
    numbers = np.unique(labels)
    found = _count(numbers, table)
    fits = {f"structures28:{system}": _count(numbers, structures28(system)) for system in SYSTEMS}
    better = max(fits, key=lambda name: fits[name])
    if found == 0 or (table.name in fits and fits[better] > found):
        hint = f"; {better!r} as data.label_table finds {fits[better]}" if fits[better] > found else ""
        raise ValueError(f"{where}: expected the structures of {table.name}, found {found} of {len(table)}{hint}")


def _count(numbers: NDArray[np.integer], table: LabelTable) -> int:
    """Return how many structures of a table have a number among some."""
    known = set(numbers.tolist())
    return sum(not known.isdisjoint(members) for members in table.values())


def _expect_two(scans: Iterable[Scan], what: str) -> None:
    """Refuse scans of fewer than two people."""
    people = {scan.person: scan.name for scan in scans}
    if len(people) < 2:
        names = ", ".join(people.values()) or "none"
        raise ValueError(f"{what}: expected scans of at least two people, since a pair takes two; found {names}")


def _find_labels(image: Path, folder: Path, derivative: Path, what: str) -> Path:
    """Return the label image that mirrors an image: its name and more, or the only one beside its only mirror."""
    place = derivative / image.parent.relative_to(folder)
    every = sorted(place.glob("*_dseg.nii.gz"))
    own = [path for path in every if path.name.startswith(image.name.removesuffix("T1w.nii.gz"))]
    fitting = own or (every if len(list(image.parent.glob("*_T1w.nii.gz"))) == 1 else [])
    if not fitting:
        raise FileNotFoundError(f"{what} labels: no *_dseg.nii.gz of {image.name} in {place}")
    if len(fitting) > 1:
        names = ", ".join(path.name for path in fitting)
        raise ValueError(f"{what} labels: expected one *_dseg.nii.gz of {image.name} in {place}, found {names}")
    return fitting[0]


def _split(dataset: DatasetConfig, folder: Path, root: Path, what: str) -> set[tuple[str, str]]:
    """Return the (subject, session) rows of a split table."""
    table = root / dataset.split_table if dataset.split_table else folder / "split.tsv"
    if not table.is_file():
        raise FileNotFoundError(f"{what} data: split {dataset.split!r} asked for, but there is no {table}")
    with table.open(newline="", encoding="utf-8-sig") as lines:
        rows = csv.DictReader(lines, delimiter="\t")
        if not {"participant_id", "split"} <= set(rows.fieldnames or ()):
            found = ", ".join(rows.fieldnames or ()) or "none"
            raise ValueError(f"{what} data: expected columns participant_id and split in {table}, found {found}")
        return {(row["participant_id"], row.get("session_id") or "") for row in rows if row["split"] == dataset.split}
