"""Train a peer: draw a pair, step, log, validate, save; on the volumes, losses and draws that MMLN itself learns from.

A peer learns in phases (a pyramid's levels, or one for a single network), each of which has a share of the budget. With
a budget of steps alone a resumed run continues to the bit; one of seconds ends where its time does.
"""

from __future__ import annotations

import csv
import json
import math
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import date
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from mmln_pipeline import __version__
from mmln_pipeline.atlas.labels import LabelTable
from mmln_pipeline.fields.warping import warp
from mmln_pipeline.machine.devices import autocast, kept_memory, peak_memory_mb, resolve_device
from mmln_pipeline.machine.files import atomic_path, checksum, write_text
from mmln_pipeline.machine.progress import progress_bar
from mmln_pipeline.scores.metrics import dice, label_mean
from mmln_pipeline.study.methods.base import Budget, Surroundings
from mmln_pipeline.training.config import DataConfig, OptimizationConfig, StageConfig, TrainConfig
from mmln_pipeline.training.data import Volume, draw_pair, load_pack, validation_pairs
from mmln_pipeline.training.datasets import check_people, label_table
from mmln_pipeline.training.pack import build_pack

CHECKPOINT = "checkpoint.pt"
SAVE_SECONDS = 120.0
VALIDATIONS = 4
"""Times that the last phase is validated."""
WARM_UP = 0.05
"""Share of a phase in which the learning rate rises."""
PARTS = 1000
"""Of a budget, for the progress bar."""


class Trainee(Protocol):
    """What a peer tells of its learning."""

    name: ClassVar[str]
    phases: ClassVar[Sequence[float]]

    def build(self, grid: Sequence[int]) -> nn.Module:
        """Make the untrained network for images of a size."""

    def taught(self, network: nn.Module, phase: int) -> list[nn.Parameter]:
        """Return the weights that a phase, from 0, moves."""

    def losses(
        self, network: nn.Module, phase: int, done: float, fixed: Tensor, moving: Tensor, generator: np.random.Generator
    ) -> dict[str, Tensor]:
        """Return the loss of a pair, ``loss``, and its parts; `done` is the share of the phase that is over."""

    def predict(self, network: nn.Module, fixed: Tensor, moving: Tensor) -> Tensor:
        """Return the displacement of a pair, shape (1, 3, I, J, K), voxels."""


@dataclass
class Progress:
    """Where a run stands; stored in its checkpoint.

    Parameters
    ----------
    step : int
        Updates so far.
    seconds : float
        Time of the updates so far, without validation and saving.
    phase : int
        The phase that runs, from 0.
    updates, spent : dict of str to float
        Updates and seconds of each phase, by its number from 1.
    validated : int
        Validations so far.
    scores : dict of str to float
        Of the weights kept.
    finished : bool
        Whether the budget is spent and the last weights are validated.
    """

    step: int = 0
    seconds: float = 0.0
    phase: int = 0
    updates: dict[str, int] = field(default_factory=dict)
    spent: dict[str, float] = field(default_factory=dict)
    validated: int = 0
    scores: dict[str, float] = field(default_factory=dict)
    finished: bool = False


def learn(
    trainee: Trainee,
    options: dict[str, Any],
    optimization: OptimizationConfig,
    data: DataConfig,
    budget: Budget,
    output_dir: Path,
    surroundings: Surroundings,
) -> Path:
    """Train a peer, or go on with it.

    Parameters
    ----------
    trainee : Trainee
    options : dict
        What the network is built from, for the card and for the check on resuming.
    optimization : OptimizationConfig
    data : DataConfig
        Its paths start from ``surroundings.root``.
    budget : Budget
    output_dir : Path
        Receives ``checkpoint.pt``, ``log.csv``, ``NAME.safetensors`` and its card ``NAME.json``.
    surroundings : Surroundings

    Returns
    -------
    Path
        The weights.

    Raises
    ------
    FileNotFoundError, ValueError
        From the data or the device, or when the folder holds a run with other options, data or seed.
    """
    plain = TrainConfig(trainee.name, data=data, stages=(StageConfig((1,), 1),))
    device, table = resolve_device(surroundings.device), label_table(data, surroundings.root)
    pack = build_pack(plain, surroundings.root)
    volumes, validation = (load_pack(pack, split, device, data.halvings) for split in ("train", "validation"))
    check_people(volumes, validation, plain.loss)
    output_dir.mkdir(parents=True, exist_ok=True)
    what = {"options": options, "optimization": asdict(optimization), "data": asdict(data), "seed": surroundings.seed}
    run = _Run(trainee, what, optimization, budget, output_dir, device)
    with kept_memory():
        return run.train(volumes, validation, table, data)


class _Run:
    """One training run of a peer."""

    def __init__(
        self,
        trainee: Trainee,
        what: dict[str, Any],
        optimization: OptimizationConfig,
        budget: Budget,
        output: Path,
        device: torch.device,
    ) -> None:
        self.trainee, self.what, self.optimization = trainee, json.loads(json.dumps(what)), optimization
        self.budget, self.output, self.device = budget, output, device
        self.weights = output / f"{trainee.name}.safetensors"
        self.progress = Progress()
        ends = np.cumsum(trainee.phases) / sum(trainee.phases)
        self.ends = [float(end) for end in ends[:-1]] + [1.0]
        self.volumes: list[Volume] = []
        self.validation: list[Volume] = []

    def train(self, volumes: list[Volume], validation: list[Volume], table: LabelTable, data: DataConfig) -> Path:
        """Train until the budget is spent."""
        self.volumes, self.validation, self.table, self.data = volumes, validation, table, data
        torch.manual_seed(self.what["seed"])
        self.grid = list(volumes[0].image.shape[1:])
        self.network = self.trainee.build(self.grid).to(self.device)
        stored = self._load() if (self.output / CHECKPOINT).is_file() else None
        if self.progress.finished:
            return self.weights
        if stored is None:
            (self.output / "log.csv").unlink(missing_ok=True)
        first = int(PARTS * min(1.0, self.done))
        with progress_bar(f"train {self.trainee.name}", PARTS, first) as advance:
            shown = first
            for phase in range(self.progress.phase, len(self.ends)):
                self.progress.phase = phase
                self._begin(phase, stored)
                stored = None
                while self.done < self.ends[phase]:
                    losses = self._step(phase)
                    while shown < min(PARTS, int(PARTS * self.done)):
                        shown += 1
                        advance(f"phase {phase + 1} step {self.progress.step} loss {losses['loss']:.4f}")
                    self._keep_up(phase)
                self.network.load_state_dict(self.averaged.module.state_dict())
            self._validate()
            self.progress.finished = True
            self._save()
        return self.weights

    @property
    def done(self) -> float:
        """Share of the budget that is spent."""
        by_steps = self.progress.step / self.budget.steps if self.budget.steps else 0.0
        by_time = self.progress.seconds / self.budget.seconds if self.budget.seconds else 0.0
        return max(by_steps, by_time)

    def _done_of(self, phase: int) -> float:
        """Share of a phase that is over."""
        start = self.ends[phase - 1] if phase else 0.0
        return (self.done - start) / (self.ends[phase] - start)

    def _begin(self, phase: int, stored: dict[str, Any] | None) -> None:
        """Make the phase's optimiser and average, or take them up where they were saved."""
        weights = self.trainee.taught(self.network, phase)
        self.optimizer = torch.optim.Adam(weights, lr=self.optimization.learning_rate)
        self.averaged = AveragedModel(self.network, avg_fn=self._average)
        self.saved = time.monotonic()
        if stored is not None:
            self.optimizer.load_state_dict(stored["optimizer"])
            self.averaged.load_state_dict(stored["averaged"])

    def _average(self, average: Tensor, current: Tensor, count: Tensor | int) -> Tensor:
        n = float(count)
        return average.lerp(current, 1 - min(self.optimization.averaging, (1 + n) / (10 + n)))

    def _step(self, phase: int) -> dict[str, float]:
        """Move the weights once; what is drawn depends on seed and step alone."""
        begin, p = time.monotonic(), self.progress
        generator = np.random.default_rng([self.what["seed"], p.step])
        torch.manual_seed(int(generator.integers(2**31)))  # of what a network drops
        drawn = [draw_pair(self.volumes, self.data, generator) for _ in range(self.optimization.batch_size)]
        pairs = drawn + [pair.swapped() for pair in drawn] * self.data.both_orders
        fixed, moving = (torch.cat([getattr(pair, role) for pair in pairs]) for role in ("fixed", "moving"))
        for group in self.optimizer.param_groups:
            group["lr"] = self._rate(self._done_of(phase))
        self.network.train()
        with autocast(self.device):
            losses = self.trainee.losses(self.network, phase, self._done_of(phase), fixed, moving, generator)
        self.optimizer.zero_grad()
        losses["loss"].backward()
        nn.utils.clip_grad_norm_([w for group in self.optimizer.param_groups for w in group["params"]], 1.0)
        self.optimizer.step()
        self.averaged.update_parameters(self.network)
        numbers = {name: float(value.detach()) for name, value in losses.items()}
        seconds = time.monotonic() - begin
        p.step, p.seconds = p.step + 1, p.seconds + seconds
        key = str(phase + 1)
        p.updates[key], p.spent[key] = p.updates.get(key, 0) + 1, p.spent.get(key, 0.0) + seconds
        self._log(phase, numbers, seconds)
        return numbers

    def _rate(self, done: float) -> float:
        if self.optimization.schedule == "constant":
            return self.optimization.learning_rate
        cosine = 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
        return self.optimization.learning_rate * min(1.0, (done + 1e-3) / WARM_UP) * cosine

    def _log(self, phase: int, losses: dict[str, float], seconds: float) -> None:
        path = self.output / "log.csv"
        row = {"phase": phase + 1, "step": self.progress.step, **losses, "seconds": seconds, "memory": peak_memory_mb()}
        is_new = not path.exists()
        with path.open("a", newline="") as lines:
            writer = csv.DictWriter(lines, list(row))
            if is_new:
                writer.writeheader()
            writer.writerow({k: f"{v:.6g}" if isinstance(v, float) else v for k, v in row.items()})

    def _keep_up(self, phase: int) -> None:
        """Validate at the quarters of the last phase, and save now and then."""
        is_due = self._done_of(phase) * VALIDATIONS >= self.progress.validated + 1
        if phase == len(self.ends) - 1 and is_due and self.done < 1:
            self.progress.validated += 1
            self._validate()
        if time.monotonic() - self.saved > SAVE_SECONDS:
            self._save()

    @torch.no_grad()
    def _validate(self) -> None:
        """Score the averaged weights and keep them where they are the best; without labels the last are."""
        network = self.averaged.module.eval()
        scores = []
        for fixed, moving in validation_pairs(self.validation):
            displacement = self.trainee.predict(network, fixed.scaled, moving.scaled)
            moved = warp(moving.labels[None].float(), displacement, mode="nearest")[0, 0].round().int()
            scores.append(label_mean(dice(fixed.labels[0].cpu().numpy(), moved.cpu().numpy(), self.table)))
        known = [score for score in scores if score is not None]
        best = self.progress.scores.get("dice", -math.inf)
        if known and (mean := statistics.fmean(known)) <= best and self.weights.is_file():
            print(f"{self.trainee.name} step {self.progress.step}: dice {mean:.4f}, best {best:.4f}", flush=True)
        else:
            self.progress.scores = {"dice": mean, "step": self.progress.step} if known else {}
            with atomic_path(self.weights) as temporary:
                save_file({k: v.contiguous() for k, v in network.state_dict().items()}, temporary)
        write_text(self.weights.with_suffix(".json"), json.dumps(self._card(), indent=1) + "\n")

    def _card(self) -> dict[str, Any]:
        p = self.progress
        return {
            "name": self.trainee.name,
            "grid": self.grid,
            "options": self.what["options"],
            "training": {
                "volumes": [v.name for v in self.volumes],
                "validation": [v.name for v in self.validation],
                "steps": dict(p.updates),
                "hours": {phase: round(seconds / 3600, 4) for phase, seconds in p.spent.items()},
                "stages": [{"peak_memory_mb": round(peak_memory_mb())}],
                "threads": torch.get_num_threads(),
                "device": str(self.device),
                **{key: self.what[key] for key in ("optimization", "data", "seed")},
            },
            "scores": p.scores,
            "sha256": checksum(self.weights),
            "version": __version__,
            "date": date.today().isoformat(),
        }

    def _save(self) -> None:
        state = {
            "what": self.what,
            "progress": asdict(self.progress),
            "network": self.network.state_dict(),
            "averaged": self.averaged.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }
        with atomic_path(self.output / CHECKPOINT) as temporary:
            torch.save(state, temporary)
        self.saved = time.monotonic()

    def _load(self) -> dict[str, Any]:
        path = self.output / CHECKPOINT
        stored: dict[str, Any] = torch.load(path, map_location=self.device, weights_only=True)
        for key, ours in self.what.items():
            if stored["what"][key] != ours:
                raise ValueError(
                    f"{path} was made with another configuration: {key} is {stored['what'][key]} there and {ours} "
                    "here; give another folder, or delete the file to start afresh"
                )
        self.progress = Progress(**stored["progress"])
        self.network.load_state_dict(stored["network"])
        header, *rows = (self.output / "log.csv").read_text().splitlines()
        kept = [row for row in rows if int(row.split(",")[1]) <= self.progress.step]
        write_text(self.output / "log.csv", "\n".join([header, *kept]) + "\n")
        return stored


def read_card(path: Path) -> dict[str, Any]:
    """Read the card of a peer's weights.

    Raises
    ------
    FileNotFoundError, ValueError
        When the weights or their card are missing, or are not each other's.
    """
    card = path.with_suffix(".json")
    for needed in (path, card):
        if not needed.is_file():
            raise FileNotFoundError(f"model: no such file: {needed}")
    content: dict[str, Any] = json.loads(card.read_text(encoding="utf-8"))
    if "options" not in content or "grid" not in content:
        raise ValueError(f"model card {card}: expected that of a peer, with 'options' and 'grid'")
    if content.get("sha256") != checksum(path):
        raise ValueError(f"model: {path} has another SHA-256 than its card says")
    return content


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a peer's weights."""
    return load_file(path)


def describe(card: dict[str, Any]) -> str:
    """Say on what, and for how long, a peer's weights were trained."""
    training = card["training"]
    updates, hours = sum(training["steps"].values()), sum(training["hours"].values())
    size = " x ".join(map(str, card["grid"]))
    kept = f", weights of update {card['scores']['step']} kept" if card["scores"] else ""
    return (
        f"trained from scratch on {len(training['volumes'])} scans at {size} voxels: {updates} updates, "
        f"{60 * hours:.0f} minutes on {training['threads']} threads ({training['device']}){kept}"
    )
