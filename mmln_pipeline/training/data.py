"""Training volumes: the pack of preprocessed brains, and the pairs drawn from it."""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mmln_pipeline.fields.warping import downsample
from mmln_pipeline.training.augmentation import augment, deform
from mmln_pipeline.training.config import DataConfig, DatasetConfig

RECIPE = "n4+affine+lia1mm+p99.5/1"
"""Name of the preprocessing; a change of it makes every packed volume stale."""
INDEX = "pack.json"
WAY = (0.2, 0.8)
"""How far a brain may go towards another, of the whole way."""

Align = Callable[[Tensor, Tensor], Tensor]
"""From a fixed and a moving image, each of shape (1, 1, I, J, K), to a velocity field of shape (1, 3, i, j, k)."""


@dataclass(frozen=True)
class Source:
    """One scan of a dataset.

    Parameters
    ----------
    name : str
        Unique in the pack: dataset, subject and session.
    person : str
        Dataset and subject: two scans of one person are never a pair.
    image : Path
    labels : Path or None
    """

    name: str
    person: str
    image: Path
    labels: Path | None


def find_sources(dataset: DatasetConfig, root: Path) -> list[Source]:
    """List a dataset's scans.

    Parameters
    ----------
    dataset : DatasetConfig
    root : Path
        Folder that a relative dataset path starts from.

    Returns
    -------
    list of Source
        Sorted by name.

    Raises
    ------
    FileNotFoundError
        When the folder, its split table, a label image, or any T1w image is missing.
    """
    folder = (root / dataset.path).resolve()
    if not folder.is_dir():
        raise FileNotFoundError(f"training data: no such folder: {folder}")
    chosen = _split(folder, dataset.split) if dataset.split else None
    sources = []
    for image in sorted(folder.glob("sub-*/**/anat/*_T1w.nii.gz")):
        where = image.relative_to(folder)
        subject, session = where.parts[0], where.parts[1] if where.parts[1].startswith("ses-") else ""
        if chosen is not None and (subject, session) not in chosen:
            continue
        labels = None
        if dataset.labels:
            labels = next(iter((folder / dataset.labels / where.parent).glob("*_dseg.nii.gz")), None)
            if labels is None:
                raise FileNotFoundError(
                    f"training labels: no *_dseg.nii.gz in {folder / dataset.labels / where.parent}"
                )
        name = "_".join(part for part in (folder.name, subject, session) if part)
        sources.append(Source(name, f"{folder.name}_{subject}", image, labels))
    if not sources:
        raise FileNotFoundError(f"training data: no sub-*/**/anat/*_T1w.nii.gz of split {dataset.split!r} in {folder}")
    return sources


def build_pack(config: DataConfig, root: Path) -> Path:
    """Preprocess every scan of a configuration that the pack does not hold yet.

    Each volume becomes one compressed file: N4, affine to the template, 160 x 192 x 224 at 1 mm, uint8, with its
    labels. A volume whose source or recipe has changed is made again.

    Parameters
    ----------
    config : DataConfig
    root : Path
        Folder that relative paths start from.

    Returns
    -------
    Path
        The pack's folder; its ``pack.json`` names the volumes of each split.
    """
    folder = root / config.pack
    if not (config.train or config.validation):  # a pack that travelled without its sources
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    index: dict[str, list[dict[str, str]]] = {}
    for split in ("train", "validation"):
        index[split] = []
        for dataset in getattr(config, split):
            for source in find_sources(dataset, root):
                _pack_volume(source, config.template, folder)
                index[split].append({"name": source.name, "person": source.person})
    (folder / INDEX).write_text(json.dumps({"recipe": RECIPE, **index}, indent=1))
    return folder


@dataclass(frozen=True)
class Volume:
    """A packed brain in memory.

    Parameters
    ----------
    name, person : str
    image : Tensor, shape (1, I, J, K), uint8
    labels : Tensor, shape (1, I, J, K), int16
        Of shape (0, I, J, K) when the scan has none.
    """

    name: str
    person: str
    image: Tensor
    labels: Tensor

    @property
    def scaled(self) -> Tensor:
        """The image as a network sees it: in [0, 1], shape (1, 1, I, J, K)."""
        return self.image[None].float() / 255


def load_pack(folder: Path, split: str, device: torch.device, halvings: int = 0) -> list[Volume]:
    """Read one split of a pack.

    Parameters
    ----------
    folder : Path
    split : {"train", "validation"}
    device : torch.device
        Where the volumes are kept.
    halvings : int, default=0
        Times that the grid is halved: images by averaging, labels by every second voxel.

    Returns
    -------
    list of Volume

    Raises
    ------
    FileNotFoundError
        When the pack or one of its volumes is missing.
    """
    index = folder / INDEX
    if not index.is_file():
        raise FileNotFoundError(f"training pack: no {INDEX} in {folder}; give [[data.train]] datasets to make it from")
    volumes = []
    for entry in json.loads(index.read_text())[split]:
        with np.load(folder / f"{entry['name']}.npz") as arrays:
            image = torch.from_numpy(arrays["image"])[None].to(device)
            labels = torch.from_numpy(arrays["labels"])[None].to(device) if "labels" in arrays else image[:0].short()
        for _ in range(halvings):
            image = downsample(image[None].float())[0].round().to(torch.uint8)
            labels = labels[:, ::2, ::2, ::2]
        volumes.append(Volume(entry["name"], entry["person"], image, labels))
    return volumes


def validation_pairs(volumes: list[Volume]) -> Iterator[tuple[Volume, Volume]]:
    """Yield every ordered (fixed, moving) pair of labelled scans of two people."""
    for fixed in volumes:
        for moving in volumes:
            if fixed.person != moving.person and len(fixed.labels) and len(moving.labels):
                yield fixed, moving


@dataclass(frozen=True)
class TrainingPair:
    """An augmented pair.

    Parameters
    ----------
    fixed, moving : Tensor, shape (1, 1, I, J, K)
        Images in [0, 1].
    labels : tuple of 2 Tensor, each of shape (1, 1, I, J, K), or None
        Label images of both, when both have them.
    """

    fixed: Tensor
    moving: Tensor
    labels: tuple[Tensor, Tensor] | None

    def swapped(self) -> TrainingPair:
        """Return the pair in the other order."""
        return TrainingPair(self.moving, self.fixed, self.labels[::-1] if self.labels else None)


def draw_pair(
    volumes: list[Volume], config: DataConfig, generator: np.random.Generator, align: Align | None = None
) -> TrainingPair:
    """Draw a training pair of two people, augmented.

    Parameters
    ----------
    volumes : list of Volume
    config : DataConfig
    generator : numpy.random.Generator
    align : callable, optional
        What sends a brain towards another, for ``data.between``.

    Returns
    -------
    TrainingPair
    """
    fixed = volumes[generator.integers(len(volumes))]
    moving = _draw_other(volumes, fixed, generator)
    draws = generator.random(2 if config.flip_apart else 1) if config.flip else np.ones(1)
    images, labels = [], []
    for volume, mirror in zip((fixed, moving), np.broadcast_to(draws < 0.5, 2), strict=True):
        image, numbers = volume.scaled, volume.labels[None]
        if align is not None and config.between and generator.random() < config.between:
            goal = _draw_other(volumes, volume, generator).scaled
            velocity = generator.uniform(*WAY) * align(goal, image)
            image, numbers = deform(image, numbers, velocity)
        image, numbers = augment(image, numbers, config, generator)
        images.append(image.flip(2) if mirror else image)
        labels.append(numbers.flip(2) if mirror else numbers)  # the numbers' sides swap with the image's
    both = len(fixed.labels) > 0 and len(moving.labels) > 0
    return TrainingPair(images[0], images[1], (labels[0], labels[1]) if both else None)


def _draw_other(volumes: list[Volume], volume: Volume, generator: np.random.Generator) -> Volume:
    """Draw a volume of another person."""
    others = [v for v in volumes if v.person != volume.person]
    return others[generator.integers(len(others))]


def _split(folder: Path, split: str) -> set[tuple[str, str]]:
    """Return the (subject, session) rows of a split table."""
    table = folder / "split.tsv"
    if not table.is_file():
        raise FileNotFoundError(f"training data: split {split!r} asked for, but there is no {table}")
    with table.open(newline="") as lines:
        rows = csv.DictReader(lines, delimiter="\t")
        return {(row["participant_id"], row.get("session_id", "")) for row in rows if row["split"] == split}


def _pack_volume(source: Source, template_name: str, folder: Path) -> None:
    """Preprocess one scan into the pack, unless it is there already."""
    from mmln_pipeline.atlas.templates import load_template
    from mmln_pipeline.images.brain import Brain
    from mmln_pipeline.images.volumes import (
        brain_mask,
        conform,
        correct_bias,
        load_image,
        load_labels,
        network_grid,
        normalize_intensity,
    )
    from mmln_pipeline.linear.affine import estimate_affine
    from mmln_pipeline.machine.files import atomic_path

    path = folder / f"{source.name}.npz"
    fingerprint = hashlib.sha256((RECIPE + template_name).encode() + source.image.read_bytes()).hexdigest()
    if path.is_file():
        with np.load(path) as arrays:
            if str(arrays["fingerprint"]) == fingerprint:
                return
    template = load_template(template_name)
    image = load_image(source.image, "training image")
    mask = brain_mask(image)
    image = correct_bias(image, mask)
    affine = estimate_affine(Brain(template.image), Brain(image, mask))
    grid = network_grid(template.image)
    aligned = normalize_intensity(conform(image, grid, affine).get_fdata(dtype=np.float32))
    arrays = {"image": np.round(aligned * 255).astype(np.uint8), "fingerprint": np.array(fingerprint)}
    if source.labels is not None:
        labels = conform(load_labels(source.labels, "training labels"), grid, affine, "nearest")
        numbers = np.asarray(labels.dataobj)
        arrays["labels"] = numbers.astype(np.promote_types(np.int16, np.min_scalar_type(int(numbers.max()))))
    with atomic_path(path) as temporary:
        np.savez_compressed(temporary, **arrays)
