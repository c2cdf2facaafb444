"""Make the pack of preprocessed training volumes: ``python -m mmln_pipeline.training.pack CONFIG.toml``."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import psutil

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
from mmln_pipeline.machine.devices import itk_threads
from mmln_pipeline.machine.files import atomic_path, write_text
from mmln_pipeline.machine.progress import progress_bar
from mmln_pipeline.training.config import TrainConfig, load_config
from mmln_pipeline.training.data import INDEX
from mmln_pipeline.training.datasets import SPLITS, Source, check_people, check_source, find_all, label_table

RECIPE = "n4+affine+lia1mm+p99.5/2"
"""Name of the preprocessing; a change of it makes every packed volume stale."""
WORKER_BYTES = 2e9
"""Memory that one worker may take."""


def build_pack(config: TrainConfig, root: Path) -> Path:
    """Preprocess every scan of a configuration that the pack does not hold yet, on all processors.

    Each volume becomes one compressed file: N4, affine to the template, the network's grid, uint8, with its labels. A
    volume whose source or recipe has changed is made again. Before the first one all are checked.

    Parameters
    ----------
    config : TrainConfig
    root : Path
        Folder that relative paths start from.

    Returns
    -------
    Path
        The pack's folder; its ``pack.json`` names the volumes of each split.

    Raises
    ------
    FileNotFoundError, ValueError
        By the file's name, when a scan is missing, cannot be used, or does not go with the others.
    """
    data, grid, folder = config.data, config.network.grid, root / config.data.pack
    if not (data.train or data.validation):  # a pack that travelled without its sources
        return folder
    sources, table = find_all(data, root), label_table(data, root)
    check_people(sources["train"], sources["validation"], config.loss)
    load_template(data.template)
    every = [source for split in SPLITS for source in sources[split]]
    new = [source for source in every if not is_packed(source, data.template, grid, folder)]
    _for_each(lambda source: check_source(source, table), new, "checking scans")
    folder.mkdir(parents=True, exist_ok=True)
    _for_each(lambda source: pack_volume(source, data.template, grid, folder), new, "packing scans")
    index = {split: [{"name": source.name, "person": source.person} for source in sources[split]] for split in SPLITS}
    write_text(folder / INDEX, json.dumps({"recipe": RECIPE, **index}, indent=1))
    return folder


def pack_volume(source: Source, template_name: str, shape: tuple[int, int, int], folder: Path) -> None:
    """Preprocess one scan into the pack.

    Parameters
    ----------
    source : Source
    template_name : str
    shape : tuple of 3 int
        Voxels of the network's grid.
    folder : Path
        Receives ``NAME.npz``: ``image`` and, for a labelled scan, ``labels``.

    Raises
    ------
    ValueError
        By the image's name, when a step fails on it.
    """
    try:
        template = load_template(template_name)
        image = load_image(source.image, "training image")
        mask = brain_mask(image)
        image = correct_bias(image, mask)
        affine = estimate_affine(Brain(template.image), Brain(image, mask))
        grid = network_grid(template.image, shape=shape)
        aligned = normalize_intensity(conform(image, grid, affine).get_fdata(dtype=np.float32))
        arrays: dict[str, Any] = {"image": np.round(aligned * 255).astype(np.uint8)}
        if source.labels is not None:
            labels = conform(load_labels(source.labels, "training labels"), grid, affine, "nearest")
            numbers = np.asarray(labels.dataobj)
            arrays["labels"] = numbers.astype(np.promote_types(np.int16, np.min_scalar_type(int(numbers.max()))))
    except (ValueError, RuntimeError) as error:  # SimpleITK raises the latter
        raise ValueError(f"training image {source.image}: cannot be prepared ({error})") from error
    with atomic_path(folder / f"{source.name}.npz") as temporary:
        np.savez_compressed(temporary, fingerprint=np.array(_fingerprint(source, template_name)), **arrays)


def _fingerprint(source: Source, template_name: str) -> str:
    """Return the checksum of all that a packed volume is made from."""
    labels = b"" if source.labels is None else source.labels.read_bytes()
    return hashlib.sha256((RECIPE + template_name).encode() + source.image.read_bytes() + labels).hexdigest()


def is_packed(source: Source, template_name: str, shape: tuple[int, int, int], folder: Path) -> bool:
    """Tell whether a pack holds a scan as it is today, prepared on a grid of this shape."""
    path = folder / f"{source.name}.npz"
    if not path.is_file():
        return False
    with np.load(path) as arrays:
        is_same = str(arrays["fingerprint"]) == _fingerprint(source, template_name)
        return is_same and arrays["image"].shape == shape


def _for_each(work: Callable[[Source], None], sources: Sequence[Source], label: str) -> None:
    """Do something to every scan, one processor a scan, and show how far it is."""
    room = int(psutil.virtual_memory().available // WORKER_BYTES)
    workers = min(joblib.cpu_count(), room, len(sources))

    def work_alone(source: Source) -> str:
        with itk_threads(1):
            work(source)
        return source.name

    if not sources:
        return
    with progress_bar(label, len(sources)) as advance:
        if workers < 2:
            for source in sources:
                work(source)
                advance(source.name)
            return
        with joblib.parallel_config(backend="loky", inner_max_num_threads=1):
            pool = joblib.Parallel(n_jobs=workers, return_as="generator_unordered", batch_size=1)
            for name in pool(joblib.delayed(work_alone)(source) for source in sources):
                advance(name)


def main(config_path: str) -> None:
    """Build the pack of a configuration and print its folder and size."""
    folder = build_pack(load_config(config_path), Path(config_path).resolve().parent)
    size = sum(f.stat().st_size for f in folder.iterdir())
    print(f"{folder}: {len(list(folder.glob('*.npz')))} volumes, {size / 2**20:.0f} MiB")


if __name__ == "__main__":
    main(sys.argv[1])
