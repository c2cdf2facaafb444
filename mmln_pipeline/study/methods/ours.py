"""MMLN: bundled weights, a weights file, or a training configuration, with its strategies on or off."""

from __future__ import annotations

import csv
import math
import os
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from nibabel import Nifti1Image
from numpy.typing import NDArray

from mmln_pipeline.machine.files import write_text
from mmln_pipeline.registration.settings import Settings as RegisterSettings
from mmln_pipeline.study.methods.base import Budget, LearnedMethod
from mmln_pipeline.training.config import DataConfig, DatasetConfig, TrainConfig, load_config

CONFIG = "config.toml"
"""The configuration that a run was started with, in its folder."""
REHEARSED = 3
"""Steps of each stage that are timed, to tell how many fit into a budget of seconds."""


@dataclass(frozen=True)
class MMLNSettings:
    """Options of MMLN.

    Parameters
    ----------
    model : str
        Bundled name, or weights file with its card; "mmln" where `config` is not given either.
    config : str
        Training configuration; its data, seed and number of steps are the study's.
    slices, core : bool
        Whether the training has its 2-D branch, and its core branch.
    refine : "auto" or int
        Steps on the very pair, see `mmln_pipeline.register`.
    topology : {"off", "strict"}
        Whether folds are repaired.
    """

    model: str = ""
    config: str = ""
    slices: bool = True
    core: bool = True
    refine: int | str = 0
    topology: str = "off"

    def __post_init__(self) -> None:
        RegisterSettings(refine=self.refine, topology=self.topology)
        if not (self.model or self.config):
            object.__setattr__(self, "model", RegisterSettings.model)
        if not self.config and not (self.slices and self.core):
            raise ValueError("slices, core: expected a training configuration, option 'config', to leave them out of")


class MMLNMethod(LearnedMethod):
    """MMLN, or LapIRN's pyramid in its code and training: that is what it is without slices and core."""

    name = "mmln"
    Settings = MMLNSettings
    settings: MMLNSettings
    _loaded: Any = None

    @property
    def model(self) -> str | Path:
        """Bundled name, or path of the weights."""
        name = self.settings.model
        return self.surroundings.root / name if name.endswith(".safetensors") else name

    @property
    def provenance(self) -> str:
        """Weights from where, trained on what, for how long."""
        if not self.is_trained:
            return "not trained yet"
        from mmln_pipeline.weights import load_model

        _, card = load_model(self.model)
        training = card["training"]
        steps, hours = sum(training["steps"].values()), sum(training["hours"].values())
        origin = "trained from scratch" if isinstance(self.model, Path) else f"bundled weights {self.model}, trained"
        return f"{origin} on {len(training['volumes'])} scans: {steps} steps, {60 * hours:.0f} minutes with validation"

    def check(self) -> None:
        """Check the weights or the training configuration, and the device."""
        from mmln_pipeline.machine.devices import resolve_device
        from mmln_pipeline.weights import load_model

        resolve_device(self.surroundings.device)
        if not self.is_trained:
            self._base_config()
            return
        _, card = load_model(self.model)
        if self.settings.refine != 0 and _halvings(card):
            raise ValueError(f"refine: expected 0 with weights of a halved grid ({self.model}), found another number")

    def displacement(self, fixed: Nifti1Image, moving: Nifti1Image) -> NDArray[Any]:
        """Run the network on the pair's own grid where it was made for it, else as `mmln register` does."""
        if not self.is_trained:
            raise ValueError("mmln: expected option 'model', or weights from training, found neither")
        from mmln_pipeline.machine.devices import resolve_device, set_threads
        from mmln_pipeline.weights import load_model

        set_threads(self.surroundings.threads)
        if self._loaded is None:
            self._loaded = load_model(self.model, resolve_device(self.surroundings.device))
        model, card = self._loaded
        halvings = _halvings(card)
        own = tuple(n >> halvings for n in model.config.grid)
        if fixed.shape == own and self.settings.refine == 0:
            return self._run(model, fixed, moving)
        if halvings:
            raise ValueError(f"mmln: {self.model} was made for a grid of {own}, found a pair on {fixed.shape}")
        return self._register(fixed, moving)

    def _run(self, model: Any, fixed: Nifti1Image, moving: Nifti1Image) -> NDArray[Any]:
        """Run the 3-D branch, integrate, and repair folds where that is wanted."""
        import torch

        from mmln_pipeline.fields.integration import integrate, taper
        from mmln_pipeline.fields.topology import enforce
        from mmln_pipeline.machine.devices import autocast, kept_memory, resolve_device

        device = resolve_device(self.surroundings.device)
        images = [torch.from_numpy(i.get_fdata(dtype=np.float32))[None, None].to(device) for i in (fixed, moving)]
        with kept_memory(), torch.no_grad():
            with autocast(device):
                velocities = model(*images)
            if self.settings.topology == "off":
                found = integrate(velocities, fixed.shape)
            else:
                repair = enforce(integrate([taper(v, fixed.shape) for v in velocities], fixed.shape))
                if not repair.reached:
                    raise RuntimeError(f"mmln: the warp still folds after {repair.rounds} rounds of repair")
                found = repair.displacement
        return found[0].cpu().numpy()

    def _register(self, fixed: Nifti1Image, moving: Nifti1Image) -> NDArray[Any]:
        """Register as users do, from an identity start."""
        from mmln_pipeline import register
        from mmln_pipeline.space.displacements import displacement_to_voxels

        around = self.surroundings
        result = register(
            fixed,
            moving,
            init="identity",
            model=self.model,
            refine=self.settings.refine,
            topology=self.settings.topology,
            device=around.device,
            threads=around.threads,
            random_seed=around.seed,
        )
        return displacement_to_voxels(result.warp)

    def train(self, data: DataConfig, budget: Budget, output_dir: Path) -> Path:
        """Train as `mmln train` does; every stage has as many steps as its share of the budget holds."""
        from mmln_pipeline.machine.devices import set_threads
        from mmln_pipeline.training import loop

        set_threads(self.surroundings.threads)
        path, wanted = output_dir / CONFIG, self._study_config(data)
        if not path.is_file():
            _write(_scaled(wanted, self._count_steps(wanted, budget)), path)
        started = load_config(path)
        for part in ("network", "loss", "data", "seed"):
            if getattr(started, part) != getattr(wanted, part):
                raise ValueError(f"{path}: {part} was another when this run began; give another folder, or delete it")
        return loop.train(path, device=self.surroundings.device)

    def _base_config(self) -> TrainConfig:
        """Read the training configuration that the row names."""
        if not self.settings.config:
            raise ValueError("mmln: expected option 'config', a training configuration, found none")
        path = self.surroundings.root / self.settings.config
        config = load_config(path)
        if config.initial_weights:
            raise ValueError(f"{path}: initial_weights: expected none, since the study trains from scratch")
        return config

    def _study_config(self, data: DataConfig) -> TrainConfig:
        """Return the row's configuration with the study's data and seed, its sizes those of the study's grid."""
        base, root, s = self._base_config(), self.surroundings.root.resolve(), self.settings
        extra = data.halvings - base.data.halvings
        i, j, k = (max(2, int(n / 2**extra)) for n in base.loss.core)
        loss = replace(base.loss, core=(i, j, k), theta=base.loss.theta if s.core else 0.0)
        network = base.network
        if not s.slices:
            loss, network = replace(loss, alpha=0.0, beta=0.0), replace(network, slices=())
        windows = [tuple(2 * max(1, int(n / 2 ** (extra + 1))) for n in stage.window) for stage in base.stages]
        stages = tuple(replace(stage, window=window) for stage, window in zip(base.stages, windows, strict=True))
        parts: dict[str, Any] = {"network": network, "loss": loss, "stages": stages, "data": _rooted(data, root)}
        return replace(base, name=self.name, output_dir=".", seed=self.surroundings.seed, **parts)

    def _count_steps(self, config: TrainConfig, budget: Budget) -> float:
        """Return by what the steps of all stages are multiplied to spend a budget."""
        counts = [stage.steps for stage in config.stages]
        factors = []
        if budget.steps is not None:
            factors.append(budget.steps / sum(counts))
        if budget.seconds is not None:
            times = _rehearse(config, self.surroundings.device)
            factors.append(budget.seconds / sum(n * t for n, t in zip(counts, times, strict=True)))
        return min(factors)


def _rooted(data: DataConfig, root: Path) -> DataConfig:
    """Return what is trained on with absolute paths."""

    def place(dataset: DatasetConfig) -> DatasetConfig:
        table = str(root / dataset.split_table) if dataset.split_table else ""
        return replace(dataset, path=str(root / dataset.path), split_table=table)

    table = str(root / data.label_table) if data.label_table.endswith(".tsv") else data.label_table
    train, validation = (tuple(place(dataset) for dataset in part) for part in (data.train, data.validation))
    return replace(data, train=train, validation=validation, pack=str(root / data.pack), label_table=table)


def _halvings(card: dict[str, Any]) -> int:
    """Return how often the grid was halved that weights learned on."""
    return int(card["training"].get("config", {}).get("data", {}).get("halvings", 0))


def _scaled(config: TrainConfig, factor: float) -> TrainConfig:
    """Return a configuration with more or fewer steps in each stage."""
    stages = []
    for stage in config.stages:
        frozen = stage.frozen_steps if stage.frozen_steps < 0 else round(factor * stage.frozen_steps)
        stages.append(replace(stage, steps=max(1, round(factor * stage.steps)), frozen_steps=frozen))
    longest = max(stage.steps for stage in stages)
    seldom, often = math.ceil(longest / 4), math.ceil(longest / 50)
    return replace(config, stages=tuple(stages), validate_every=seldom, save_every=often)


def _write(config: TrainConfig, path: Path) -> None:
    import tomli_w

    write_text(path, tomli_w.dumps(config.asdict()))


def _rehearse(config: TrainConfig, device: str) -> list[float]:
    """Return the seconds that a step of each stage takes."""
    from mmln_pipeline.machine.devices import resolve_device
    from mmln_pipeline.training import loop
    from mmln_pipeline.training.pack import build_pack
    from mmln_pipeline.training.processes import start_fabric

    class Rehearsal(loop.Trainer):
        """Takes steps, and neither scores nor saves."""

        def _score_start(self) -> None: ...
        def _validate(self, stage: int, averaged: Any) -> None: ...
        def _close_stage(self, stage: int) -> None: ...
        def _save(self, optimizer: Any, averaged: Any) -> None: ...

    short = replace(config, stages=tuple(replace(stage, steps=REHEARSED) for stage in config.stages))
    with TemporaryDirectory(prefix="mmln-") as folder:
        pack = build_pack(config, Path(os.sep))
        Rehearsal(short, pack, Path(folder), start_fabric(resolve_device(device), short)).run(None, resume=False)
        with (Path(folder) / "log.csv").open(newline="") as lines:
            rows = list(csv.DictReader(lines))
    stages = range(1, len(config.stages) + 1)
    return [min(float(row["seconds"]) for row in rows if int(row["stage"]) == stage) for stage in stages]
