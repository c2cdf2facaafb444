"""Train MMLN stage by stage: draw, step, log, validate, save; a resumed run continues to the bit."""

from __future__ import annotations

import csv
import math
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from lightning.fabric import Fabric
from torch import Tensor
from torch.optim.swa_utils import AveragedModel

from mmln_pipeline.fields.warping import Window
from mmln_pipeline.machine.devices import has_fast_bfloat16, kept_memory, resolve_device
from mmln_pipeline.machine.files import atomic_path, write_text
from mmln_pipeline.machine.progress import progress_bar
from mmln_pipeline.network.model import MMLN, LevelOutput
from mmln_pipeline.training.config import StageConfig, TrainConfig, load_config
from mmln_pipeline.training.data import TrainingPair, build_pack, draw_pair, load_pack
from mmln_pipeline.training.objective import RunObjective
from mmln_pipeline.training.validation import validate
from mmln_pipeline.weights import load_model, save_model

CHECKPOINT = "checkpoint.pt"
WARM_UP = 0.05
"""Share of a stage's steps in which the learning rate rises."""


@dataclass
class Progress:
    """Where a run stands; stored in its checkpoint.

    Parameters
    ----------
    stage, step : int
        Stage that runs (from 0), and steps done in it.
    best_score : float
        Best validation Dice so far; a stage starts as the one before it left off, and has to beat it.
    scores : dict of str to dict
        Best validation scores of each finished or running stage.
    steps, hours : dict of str to float
        Steps and hours spent on each stage.
    """

    stage: int
    step: int
    best_score: float
    scores: dict[str, dict[str, float]]
    steps: dict[str, int]
    hours: dict[str, float]


def train(config_path: str | Path, minutes: float | None = None, device: str = "auto", resume: bool = True) -> Path:
    """Train a network from a configuration, stage after stage.

    The run's folder receives ``checkpoint.pt`` (all that resuming needs), ``log.csv`` (one row a step) and, after each
    validation that is the best so far, ``NAME.safetensors`` with its card ``NAME.json``.

    Parameters
    ----------
    config_path : str or Path
        TOML file, see :class:`mmln_pipeline.training.config.TrainConfig`.
    minutes : float, optional
        Stop, resumable, after this long.
    device : str, default="auto"
    resume : bool, default=True
        Continue from the run's checkpoint when there is one.

    Returns
    -------
    Path
        The weights of the best validation.

    Raises
    ------
    FileNotFoundError, ValueError
        From the configuration, the data or the device, before any work; or when the checkpoint belongs to another
        configuration.

    References
    ----------
    Paper sections 3.5 and 4.4.
    """
    config = load_config(config_path)
    root = Path(config_path).resolve().parent
    torch_device = resolve_device(device)
    pack = build_pack(config.data, root)
    output = root / config.output_dir
    output.mkdir(parents=True, exist_ok=True)
    return Trainer(config, pack, output, torch_device).run(minutes, resume)


class Trainer:
    """One training run.

    Parameters
    ----------
    config : TrainConfig
    pack : Path
        Folder of preprocessed volumes.
    output : Path
        Folder of the run.
    device : torch.device
    """

    def __init__(self, config: TrainConfig, pack: Path, output: Path, device: torch.device) -> None:
        self.config = config
        self.output = output
        self.fabric = Fabric(
            accelerator="gpu" if device.type == "cuda" else "cpu",
            devices=[device.index or 0] if device.type == "cuda" else 1,
            precision="bf16-mixed" if has_fast_bfloat16(device) else "32-true",
        )
        self.fabric.launch()
        self.fabric.seed_everything(config.seed, verbose=False)
        self.volumes = load_pack(pack, "train", self.fabric.device, config.data.halvings)
        self.validation = load_pack(pack, "validation", self.fabric.device, config.data.halvings)
        self.model = MMLN(config.network).to(self.fabric.device)
        if config.initial_weights:
            weights, _ = load_model(config.initial_weights)
            self.model.load_state_dict(weights.state_dict())
        self.progress = Progress(0, 0, -1.0, {}, {}, {})

    @kept_memory()
    def run(self, minutes: float | None, resume: bool) -> Path:
        """Train until the last stage's last step, or for some minutes."""
        deadline = time.monotonic() + 60 * minutes if minutes else math.inf
        checkpoint = self.output / CHECKPOINT
        stored = self._load(checkpoint) if resume and checkpoint.is_file() else None
        for stage in range(self.progress.stage, len(self.config.stages)):
            if stage != self.progress.stage:
                self.progress.stage, self.progress.step = stage, 0
            finished = self._train_stage(stage, stored, deadline)
            stored = None
            if not finished:
                break
        return self.output / f"{self.config.name}.safetensors"

    def _train_stage(self, stage: int, stored: dict[str, Any] | None, deadline: float) -> bool:
        """Train one stage; return whether it got to its last step."""
        plan = self.config.stages[stage]
        objective = RunObjective(self.model, self.config)
        parameters = [p for q in self._reached(plan) for p in self._level_parameters(q)]
        optimizer: Any = torch.optim.Adam(parameters, lr=self.config.optimization.learning_rate)
        optimizer = self.fabric.setup_optimizers(optimizer)
        averaged = AveragedModel(self.model, avg_fn=self._average)
        if stored is not None:
            optimizer.load_state_dict(stored["optimizer"])
            averaged.load_state_dict(stored["averaged"])
        began = time.monotonic()
        with progress_bar(f"stage {stage + 1}", plan.steps, self.progress.step) as advance:
            while self.progress.step < plan.steps:
                losses = self._step(stage, objective, optimizer)
                averaged.update_parameters(self.model)
                self.progress.step += 1
                self._log(stage, losses, optimizer.param_groups[0]["lr"])
                advance(f"loss {losses['loss']:.4f}")
                late = time.monotonic() > deadline
                step, last = self.progress.step, self.progress.step == plan.steps
                is_validated = step % self.config.validate_every == 0 or last
                is_saved = step % self.config.save_every == 0 or late
                if is_validated or is_saved:
                    began = self._account(stage, began)
                if is_validated:
                    self._validate(stage, averaged)
                if is_saved:
                    self._save(optimizer, averaged)
                if late:
                    return False
        self._keep_best()
        self._save(optimizer, averaged)
        return True

    def _reached(self, plan: StageConfig) -> list[int]:
        """Return the levels, from 0, whose weights a stage moves."""
        if plan.is_frozen(plan.steps - 1):
            return [level - 1 for level in plan.levels]
        return list(range(max(plan.levels)))

    def _step(self, stage: int, objective: RunObjective, optimizer: Any) -> dict[str, float]:
        """Take freshly drawn pairs through the schedule; what is drawn depends on seed, step and weights alone."""
        plan, step = self.config.stages[stage], self.progress.step
        generator = np.random.default_rng([self.config.seed, stage, step])
        count = self.config.optimization.batch_size
        drawn = [draw_pair(self.volumes, self.config.data, generator, self._align) for _ in range(count)]
        batch = _stack([*drawn, *(pair.swapped() for pair in drawn)] if self.config.data.both_orders else drawn)
        for group in optimizer.param_groups:
            group["lr"] = self._learning_rate(step, plan.steps)
        levels = [level - 1 for level in plan.levels]
        maps = objective.maps(batch.fixed, batch.moving, batch.labels, generator)
        pairs = self.model.pyramid(batch.fixed, batch.moving)
        runs = self.model.schedule(self.config.taught(stage))
        last = max(i for i, p in enumerate(runs) if p in levels)
        below: LevelOutput | None = None
        history = []
        for i, p in enumerate(runs[: last + 1]):
            if p not in levels:
                with self.fabric.autocast(), torch.set_grad_enabled(not plan.is_frozen(step)):
                    below = self.model.run_level(p, *pairs[p], below)
                continue
            window = None
            if plan.window and p == self.config.network.levels - 1:
                window = draw_window(batch.fixed.shape[2:], plan.window, generator)
            with self.fabric.autocast():
                losses, out = objective(*pairs[p], p, below, window, maps[p])
            self._update(optimizer, losses["loss"])
            history.append({name: float(value.detach()) for name, value in losses.items()})
            if window and i < last:  # the next run wants the whole grid
                with self.fabric.autocast(), torch.no_grad():
                    out = self.model.run_level(p, *pairs[p], below)
            below = out.detach()
        return {name: statistics.fmean(row[name] for row in history) for name in history[0]}

    def _align(self, fixed: Tensor, moving: Tensor) -> Tensor:
        """Return the velocity of the first run: where a brain goes that is sent towards another."""
        with self.fabric.autocast(), torch.no_grad():
            return self.model.run_level(0, *self.model.pyramid(fixed, moving)[0]).residual

    def _update(self, optimizer: Any, loss: Tensor) -> None:
        """Move the weights by one gradient."""
        optimizer.zero_grad()
        self.fabric.backward(loss)
        torch.nn.utils.clip_grad_norm_([w for group in optimizer.param_groups for w in group["params"]], 1.0)
        optimizer.step()

    def _learning_rate(self, step: int, steps: int) -> float:
        rate = self.config.optimization.learning_rate
        if self.config.optimization.schedule == "constant":
            return rate
        warm = min(1.0, (step + 1) / (WARM_UP * steps))
        return rate * warm * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * step / steps)))

    def _average(self, average: Tensor, current: Tensor, count: Tensor | int) -> Tensor:
        """Return the running mean of a weight, its memory growing from the stage's first steps on."""
        n = float(count)
        keep = min(self.config.optimization.averaging, (1 + n) / (10 + n))
        return average.lerp(current, 1 - keep)

    def _level_parameters(self, level: int) -> list[torch.nn.Parameter]:
        branches = list(self.model.slices[level].parameters()) if level < len(self.model.slices) else []
        return [*self.model.levels[level].parameters(), *branches]

    def _validate(self, stage: int, averaged: AveragedModel) -> None:
        """Score the averaged weights; keep them when they are the best so far."""
        with self.fabric.autocast():
            scores = validate(cast(MMLN, averaged.module), self.validation, self.config.taught(stage))
        print(
            f"stage {stage + 1} step {self.progress.step}: " + " ".join(f"{k} {v:.4f}" for k, v in scores.items()),
            flush=True,
        )
        if scores["dice"] <= self.progress.best_score:
            return
        self.progress.best_score = scores["dice"]
        self.progress.scores[str(stage + 1)] = scores
        card = {
            "name": self.config.name,
            "license": self.config.license,
            "training": {
                "volumes": [v.name for v in self.volumes],
                "validation": [v.name for v in self.validation],
                "steps": dict(self.progress.steps),
                "hours": {k: round(v, 3) for k, v in self.progress.hours.items()},
                "config": self.config.asdict(),
            },
            "scores": {"validation": dict(self.progress.scores)},
        }
        save_model(cast(MMLN, averaged.module), self.output / f"{self.config.name}.safetensors", card)

    def _keep_best(self) -> None:
        """Continue with the next stage from the best weights so far."""
        best, _ = load_model(str(self.output / f"{self.config.name}.safetensors"))
        self.model.load_state_dict(best.state_dict())

    def _account(self, stage: int, began: float) -> float:
        """Book the steps and the time since `began`; return the time now."""
        key, now = str(stage + 1), time.monotonic()
        self.progress.steps[key] = self.progress.step
        self.progress.hours[key] = self.progress.hours.get(key, 0.0) + (now - began) / 3600
        return now

    def _log(self, stage: int, losses: dict[str, float], rate: float) -> None:
        path = self.output / "log.csv"
        fresh = not path.exists()
        with path.open("a", newline="") as lines:
            writer = csv.writer(lines)
            if fresh:
                writer.writerow(["stage", "step", "learning_rate", *losses])
            writer.writerow([stage + 1, self.progress.step, f"{rate:.3g}", *(f"{v:.6f}" for v in losses.values())])

    def _save(self, optimizer: Any, averaged: AveragedModel) -> None:
        state = {
            "config": self.config.asdict(),
            "progress": vars(self.progress),
            "model": self.model.state_dict(),
            "averaged": averaged.state_dict(),
            "optimizer": optimizer.state_dict(),
        }
        with atomic_path(self.output / CHECKPOINT) as temporary:
            self.fabric.save(temporary, state)

    def _load(self, path: Path) -> dict[str, Any]:
        stored: dict[str, Any] = torch.load(path, map_location=self.fabric.device, weights_only=True)
        for key in ("network", "loss", "data", "seed"):
            ours = self.config.asdict()[key]
            if stored["config"][key] != ours:
                raise ValueError(
                    f"{path} was made with another configuration: {key} is {stored['config'][key]!r} there "
                    f"and {ours!r} here; give another output_dir, or delete the file to start afresh"
                )
        self.progress = Progress(**stored["progress"])
        self.model.load_state_dict(stored["model"])
        self._trim_log()
        return stored

    def _trim_log(self) -> None:
        """Drop the log's rows of steps behind the checkpoint: they are about to be done again."""
        path = self.output / "log.csv"
        header, *rows = path.read_text().splitlines()
        done = (self.progress.stage + 1, self.progress.step)
        kept = [row for row in rows if tuple(map(int, row.split(",")[:2])) <= done]
        write_text(path, "\n".join([header, *kept]) + "\n")


def draw_window(shape: Sequence[int], size: Sequence[int], generator: np.random.Generator) -> Window:
    """Draw where a training sub-volume of the finest level lies, with even starts."""
    starts = [2 * int(generator.integers((n - s) // 2 + 1)) for n, s in zip(shape, size, strict=True)]
    return tuple(slice(start, start + s) for start, s in zip(starts, size, strict=True))


def _stack(pairs: Sequence[TrainingPair]) -> TrainingPair:
    """Join pairs to a batch, with labels when all pairs have them."""
    labels = [pair.labels for pair in pairs if pair.labels is not None]
    return TrainingPair(
        torch.cat([pair.fixed for pair in pairs]),
        torch.cat([pair.moving for pair in pairs]),
        (torch.cat([a for a, _ in labels]), torch.cat([b for _, b in labels])) if len(labels) == len(pairs) else None,
    )
