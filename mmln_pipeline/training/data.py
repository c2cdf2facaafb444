"""Training volumes in memory, as the pack holds them, and the pairs that are drawn from them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mmln_pipeline.fields.scales import downsample
from mmln_pipeline.training.augmentation import augment, deform
from mmln_pipeline.training.config import DataConfig

INDEX = "pack.json"
WAY = (0.2, 0.8)
"""How far a brain may go towards another, of the whole way."""
MOST_PAIRS = 20
"""Validation pairs at most: five people's."""

Align = Callable[[Tensor, Tensor], Tensor]
"""From a fixed and a moving image, each of shape (1, 1, I, J, K), to a velocity field of shape (1, 3, i, j, k)."""


@dataclass(frozen=True)
class Volume:
    """A packed brain in memory.

    Parameters
    ----------
    name, person : str
    image : Tensor, shape (1, I, J, K), uint8
    labels : Tensor of int, shape (1, I, J, K)
        Of shape (0, I, J, K) when the scan has none.
    """

    name: str
    person: str
    image: Tensor
    labels: Tensor

    @property
    def is_labelled(self) -> bool:
        """Whether it comes with labels."""
        return len(self.labels) > 0

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


def validation_pairs(volumes: Sequence[Volume]) -> list[tuple[Volume, Volume]]:
    """Return ordered (fixed, moving) pairs of labelled scans of two people: all, or each scan with its next ones."""
    labelled = [volume for volume in volumes if volume.is_labelled]
    count = len(labelled)
    places = [(n, (n + shift) % count) for shift in range(1, count) for n in range(count)]
    pairs = [(labelled[n], labelled[m]) for n, m in places if labelled[n].person != labelled[m].person]
    return pairs[:MOST_PAIRS]


def neighbouring_pairs(volumes: Sequence[Volume]) -> Iterator[tuple[Volume, Volume]]:
    """Yield each scan as the fixed one, with the next one of another person as the moving one: pairs without labels."""
    for index, fixed in enumerate(volumes):
        others = [v for v in (*volumes[index + 1 :], *volumes[:index]) if v.person != fixed.person]
        if others:
            yield fixed, others[0]


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
    volumes: Sequence[Volume], config: DataConfig, generator: np.random.Generator, align: Align | None = None
) -> TrainingPair:
    """Draw a training pair of two people, augmented.

    Parameters
    ----------
    volumes : sequence of Volume
    config : DataConfig
    generator : numpy.random.Generator
    align : callable, optional
        What sends a brain towards another, for ``data.between``.

    Returns
    -------
    TrainingPair
    """
    fixed = volumes[int(generator.integers(len(volumes)))]
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
    both = fixed.is_labelled and moving.is_labelled
    return TrainingPair(images[0], images[1], (labels[0], labels[1]) if both else None)


def _draw_other(volumes: Sequence[Volume], volume: Volume, generator: np.random.Generator) -> Volume:
    """Draw a volume of another person."""
    others = [v for v in volumes if v.person != volume.person]
    return others[generator.integers(len(others))]
