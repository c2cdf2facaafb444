"""Train MMLN stage by stage: draw, step, log, validate, save; a resumed run continues to the bit."""

from __future__ import annotations

import csv
import math
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from lightning.fabric import Fabric
from torch import Tensor
from torch.optim.swa_utils import AveragedModel

from mmln_pipeline.atlas.labels import LabelTable, structures28
from mmln_pipeline.fields.windows import Window
from mmln_pipeline.machine.devices import kept_memory, peak_memory_mb, resolve_device
from mmln_pipeline.machine.files import atomic_path, write_text
from mmln_pipeline.machine.progress import progress_bar
from mmln_pipeline.network.model import MMLN, LevelOutput
from mmln_pipeline.training.config import StageConfig, TrainConfig, load_config, parse_config
from mmln_pipeline.training.data import TrainingPair, draw_pair, load_pack
from mmln_pipeline.training.datasets import check_numbers, check_people, label_table
from mmln_pipeline.training.objective import RunObjective
from mmln_pipeline.training.pack import build_pack
from mmln_pipeline.training.processes import (
    check_starter,
    is_so_everywhere,
    mean_over_all,
    share_gradients,
    start_fabric,
)
from mmln_pipeline.training.validation import Selection
from mmln_pipeline.weights import load_model, save_card, save_model, silent_levels

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
        Best validation so far, the more the better; a stage starts as the one before it left off, and has to beat it.
    scores : dict of str to dict
        Best validation scores of each finished or running stage that beat what was there before it.
    steps, hours : dict of str to float
        Steps and hours spent on each stage.
    start : dict of str to float
        Validation scores before the first step.
    tried : dict of str to dict
        Best validation scores of each stage, whether they beat what was there before it or not.
    seconds : dict of str to float
        Time of each stage's steps alone, without validation and saving.
    memory : dict of str to dict
        Most memory in use, MiB, by the end of each stage: ``peak_memory_mb``, and ``peak_gpu_memory_mb`` on a GPU.
    """

    stage: int
    step: int
    best_score: float
    scores: dict[str, dict[str, float]] = field(default_factory=dict)
    steps: dict[str, int] = field(default_factory=dict)
    hours: dict[str, float] = field(default_factory=dict)
    start: dict[str, float] = field(default_factory=dict)
    tried: dict[str, dict[str, float]] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    memory: dict[str, dict[str, float]] = field(default_factory=dict)


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
        From the configuration, the data, the device or the number of processes, before any work; or when the
        checkpoint belongs to another configuration.

    References
    ----------
    Paper sections 3.5 and 4.4.
    """
    config = load_config(config_path)
    root = Path(config_path).resolve().parent
    torch_device, table = resolve_device(device), label_table(config.data, root)
    check_starter(torch_device)
    output = root / config.output_dir
    check_initial_weights(config)
    if resume and (output / CHECKPOINT).is_file():
        check_checkpoint(output / CHECKPOINT, config)
    fabric = start_fabric(torch_device, config)
    with fabric.rank_zero_first():
        pack = build_pack(config, root)
    output.mkdir(parents=True, exist_ok=True)
    return Trainer(config, pack, output, fabric, table).run(minutes, resume)


def check_initial_weights(config: TrainConfig) -> None:
    """Check that the weights to start from are there and fit the network.

    Raises
    ------
    FileNotFoundError, ValueError
        When they are missing or of another network.
    """
    if not config.initial_weights:
        return
    model, _ = load_model(config.initial_weights)
    ours = {name: tensor.shape for name, tensor in MMLN(config.network).state_dict().items()}
    theirs = {name: tensor.shape for name, tensor in model.state_dict().items()}
    if ours != theirs:
        raise ValueError(
            f"initial_weights: expected those of the network {config.network.asdict()}, found in "
            f"{config.initial_weights} those of {model.config.asdict()}"
        )


def weights_path(output: Path, config: TrainConfig) -> Path:
    """Return where a run keeps the weights of its best validation."""
    return output / f"{config.name}.safetensors"


def check_checkpoint(path: Path, config: TrainConfig) -> None:
    """Check that a checkpoint was made with a configuration, as far as it decides what comes out, and has its weights.

    Raises
    ------
    FileNotFoundError
        When the weights of the best validation are not beside it.
    ValueError
        When the network, the loss, the data or the seed differ.
    """
    content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    if lacking := sorted({f.name for f in fields(Progress)} - set(content["progress"])):
        raise ValueError(f"{path} was made by an older version: no {lacking[0]!r}; give another output_dir")
    stored = parse_config(content["config"])
    for key in ("network", "loss", "data", "seed"):
        theirs, ours = getattr(stored, key), getattr(config, key)
        if theirs != ours:
            raise ValueError(
                f"{path} was made with another configuration: {key} is {theirs!r} there "
                f"and {ours!r} here; give another output_dir, or delete the file to start afresh"
            )
    best = weights_path(path.parent, config)
    if content["progress"]["scores"] and not best.is_file():
        raise FileNotFoundError(f"{path} wants the weights of the best validation so far beside it, found no {best}")


class Trainer:
    """One training run.

    Parameters
    ----------
    config : TrainConfig
    pack : Path
        Folder of preprocessed volumes.
    output : Path
        Folder of the run.
    fabric : Fabric
        Of several processes each makes its own trainer; the first one writes.
    table : LabelTable, optional
        Structures that labels are compared over; the 28 by default.

    Raises
    ------
    ValueError
        When no pair of two people can be made of the volumes, or their labels are numbered otherwise.
    """

    def __init__(
        self, config: TrainConfig, pack: Path, output: Path, fabric: Fabric, table: LabelTable | None = None
    ) -> None:
        self.config = config
        self.output = output
        self.table = table or structures28()
        self.fabric = fabric
        self.fabric.seed_everything(config.seed, verbose=False)
        self.volumes = load_pack(pack, "train", self.fabric.device, config.data.halvings)
        self.validation = load_pack(pack, "validation", self.fabric.device, config.data.halvings)
        check_people(self.volumes, self.validation, config.loss)
        for volume in (*self.volumes, *self.validation):
            if volume.is_labelled:
                check_numbers(volume.labels.cpu().numpy(), self.table, f"training labels {volume.name}")
        self.selection = Selection.choose(self.volumes, self.validation, self.table, config)
        self.model = MMLN(config.network).to(self.fabric.device)
        if config.initial_weights:
            weights, _ = load_model(config.initial_weights)
            self.model.load_state_dict(weights.state_dict())
        self.progress = Progress(0, 0, -math.inf)

    @kept_memory()
    def run(self, minutes: float | None, resume: bool) -> Path:
        """Train until the last stage's last step, or for some minutes."""
        deadline = time.monotonic() + 60 * minutes if minutes else math.inf
        checkpoint = self.output / CHECKPOINT
        stored = self._load(checkpoint) if resume and checkpoint.is_file() else None
        if stored is None:
            if self.fabric.is_global_zero:  # a log of a run that never came to a checkpoint
                (self.output / "log.csv").unlink(missing_ok=True)
            self._score_start()
        for stage in range(self.progress.stage, len(self.config.stages)):
            if stage != self.progress.stage:
                self.progress.stage, self.progress.step = stage, 0
            finished = self._train_stage(stage, stored, deadline)
            stored = None
            if not finished:
                break
        return self.weights

    @property
    def weights(self) -> Path:
        """The weights of the best validation so far."""
        return weights_path(self.output, self.config)

    def _train_stage(self, stage: int, stored: dict[str, Any] | None, deadline: float) -> bool:
        """Train one stage; return whether it got to its last step."""
        plan = self.config.stages[stage]
        objective = RunObjective(self.model, self.config, self.table)
        parameters = [p for level in self._reached(plan) for p in self.model.level_parameters(level)]
        optimizer: Any = torch.optim.Adam(parameters, lr=self.config.optimization.learning_rate)
        optimizer = self.fabric.setup_optimizers(optimizer)
        averaged = AveragedModel(self.model, avg_fn=self._average)
        if stored is not None:
            optimizer.load_state_dict(stored["optimizer"])
            averaged.load_state_dict(stored["averaged"])
        if self.fabric.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.fabric.device)
        began = time.monotonic()
        with self._bar(f"stage {stage + 1}", plan.steps) as advance:
            while self.progress.step < plan.steps:
                start = time.monotonic()
                losses = self._step(stage, objective, optimizer)
                averaged.update_parameters(self.model)
                self.progress.step += 1
                self._log(stage, losses, optimizer.param_groups[0]["lr"], time.monotonic() - start)
                advance(f"loss {losses['loss']:.4f}")
                late = deadline < math.inf and self.fabric.broadcast(time.monotonic() > deadline)
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
        self._close_stage(stage)
        self._save(optimizer, averaged)
        return True

    def _reached(self, plan: StageConfig) -> list[int]:
        """Return the levels whose weights a stage moves."""
        if plan.is_frozen(plan.steps - 1):
            return list(plan.levels)
        return list(range(1, max(plan.levels) + 1))

    def _step(self, stage: int, objective: RunObjective, optimizer: Any) -> dict[str, float]:
        """Take freshly drawn pairs through the schedule; what is drawn depends on seed, step and weights alone."""
        plan, step = self.config.stages[stage], self.progress.step
        generator = np.random.default_rng([self.config.seed, stage, step])
        batch = self._draw(stage, step)
        for group in optimizer.param_groups:
            group["lr"] = self._learning_rate(step, plan)
        maps = objective.maps(batch.fixed, batch.moving, batch.labels, generator)
        pairs = self.model.pyramid(batch.fixed, batch.moving)
        runs = self.config.runs(stage)
        last = max(i for i, level in enumerate(runs) if level in plan.levels)
        before: LevelOutput | None = None
        history = []
        for i, level in enumerate(runs[: last + 1]):
            if level not in plan.levels:
                with self.fabric.autocast(), torch.set_grad_enabled(not plan.is_frozen(step)):
                    before = self.model.run_level(level, *pairs[level], before)
                continue
            window = None
            if plan.window and level == self.config.network.levels:
                window = draw_window(batch.fixed.shape[2:], plan.window, generator)
            with self.fabric.autocast():
                losses, out = objective(*pairs[level], level, before, window, maps[level])
            self._update(optimizer, losses["loss"])
            history.append({name: float(value.detach()) for name, value in losses.items()})
            if window and i < last:  # the next run wants the whole grid
                with self.fabric.autocast(), torch.no_grad():
                    out = self.model.run_level(level, *pairs[level], before)
            before = out.detach()
        means = [statistics.fmean(row[name] for row in history) for name in history[0]]
        over_all = mean_over_all(self.fabric, torch.tensor(means, dtype=torch.float64))
        return dict(zip(history[0], over_all.tolist(), strict=True))

    def _draw(self, stage: int, step: int) -> TrainingPair:
        """Draw this process's pairs of a step, each by a generator of its own: all draw what one process would."""
        config, count = self.config, self.config.optimization.batch_size
        first = 1 + self.fabric.global_rank * count  # 0 would be the generator of what all pairs share
        generators = [np.random.default_rng([config.seed, stage, step, first + n]) for n in range(count)]
        drawn = [draw_pair(self.volumes, config.data, generator, self._align) for generator in generators]
        batch = _stack([*drawn, *(pair.swapped() for pair in drawn)] if config.data.both_orders else drawn)
        return batch if is_so_everywhere(self.fabric, batch.labels is not None) else replace(batch, labels=None)

    def _align(self, fixed: Tensor, moving: Tensor) -> Tensor:
        """Return the velocity of the first run: where a brain goes that is sent towards another."""
        with self.fabric.autocast(), torch.no_grad():
            return self.model.run_level(1, *self.model.pyramid(fixed, moving)[1]).residual

    def _update(self, optimizer: Any, loss: Tensor) -> None:
        """Move the weights by one gradient."""
        optimizer.zero_grad()
        self.fabric.backward(loss)
        weights = [w for group in optimizer.param_groups for w in group["params"]]
        share_gradients(self.fabric, weights)
        length = torch.nn.utils.clip_grad_norm_(weights, 1.0)
        if not torch.isfinite(length):
            raise ValueError(
                f"training: expected a finite gradient, found {float(length)} in stage {self.progress.stage + 1} "
                f"behind step {self.progress.step} (loss {float(loss):.4g}): give a lower learning_rate; the weights "
                "of the best validation and the last checkpoint are kept"
            )
        optimizer.step()

    def _learning_rate(self, step: int, plan: StageConfig) -> float:
        rate = plan.learning_rate or self.config.optimization.learning_rate
        if self.config.optimization.schedule == "constant":
            return rate
        warm = min(1.0, (step + 1) / (WARM_UP * plan.steps))
        return rate * warm * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * step / plan.steps)))

    def _average(self, average: Tensor, current: Tensor, count: Tensor | int) -> Tensor:
        """Return the running mean of a weight, its memory growing from the stage's first steps on."""
        n = float(count)
        keep = min(self.config.optimization.averaging, (1 + n) / (10 + n))
        return average.lerp(current, 1 - keep)

    def _score_start(self) -> None:
        """Score the network before its first step; weights to start from are what the first stage has to beat."""
        self._say(f"weights are chosen by {self.selection.describe}")
        self.progress.start = self._score(self.model.eval(), 0)
        self._say("before training: " + _list_scores(self.progress.start))
        if self.config.initial_weights:
            self.progress.best_score = self.selection.worth(self.progress.start)
            self._save_weights(self.model)

    def _score(self, model: MMLN, stage: int) -> dict[str, float]:
        """Score a network in the first process, for all."""
        scores = None
        if self.fabric.is_global_zero:
            with self.fabric.autocast():
                scores = self.selection.score(model, self.config.taught(stage), self.config.stages[stage].once)
        return cast(dict[str, float], self.fabric.broadcast(scores))

    def _save_weights(self, model: MMLN) -> None:
        if self.fabric.is_global_zero:
            save_model(model, self.weights, self._card())

    def _say(self, text: str) -> None:
        if self.fabric.is_global_zero:
            print(text, flush=True)

    def _bar(self, label: str, steps: int) -> AbstractContextManager[Callable[[str], None]]:
        """Return the first process's progress bar of a stage."""
        return (
            progress_bar(label, steps, self.progress.step)
            if self.fabric.is_global_zero
            else nullcontext(lambda text: None)
        )

    def _validate(self, stage: int, averaged: AveragedModel) -> None:
        """Score the averaged weights; keep them when they are the best so far."""
        key, p = str(stage + 1), self.progress
        scores = self._score(cast(MMLN, averaged.module), stage)
        use = {"seconds_per_step": p.seconds[key] / p.step, **p.memory[key]}
        self._say(f"stage {key} step {p.step}: {_list_scores(scores)} | {_list_scores(use)}")
        worth = self.selection.worth(scores)
        if key not in p.tried or worth > self.selection.worth(p.tried[key]):
            p.tried[key] = scores
        if worth > p.best_score:
            p.best_score, p.scores[key] = worth, scores
            self._save_weights(cast(MMLN, averaged.module))

    def _card(self) -> dict[str, Any]:
        """Return what the card says so far."""
        p = self.progress
        return {
            "name": self.config.name,
            "license": self.config.license,
            "training": {
                "volumes": [v.name for v in self.volumes],
                "validation": [v.name for v in self.validation],
                "selection": self.selection.describe,
                "processes": self.fabric.world_size,
                "steps": dict(p.steps),
                "hours": {k: round(v, 3) for k, v in p.hours.items()},
                "stages": [self._report(number, plan) for number, plan in enumerate(self.config.stages, 1)],
                "config": self.config.asdict(),
            },
            "scores": {"start": p.start, "validation": dict(p.scores)},
        }

    def _report(self, number: int, plan: StageConfig) -> dict[str, Any]:
        """Return what became of a stage, from 1."""
        key, p = str(number), self.progress
        is_over = number <= p.stage or (number == p.stage + 1 and p.step == plan.steps)
        verdict = "kept" if key in p.scores else "dropped" if is_over else "running" if key in p.steps else "to come"
        report: dict[str, Any] = {"levels": list(plan.levels), "verdict": verdict}
        if key in p.steps:
            report |= {"seconds_per_step": round(p.seconds[key] / p.steps[key], 3), **p.memory[key]}
        return report | ({"best": p.tried[key]} if key in p.tried else {})

    def _close_stage(self, stage: int) -> None:
        """Say what becomes of a stage, on the card too, and continue with the next one from the best weights so far."""
        key, p = str(stage + 1), self.progress
        levels = " and ".join(map(str, self.config.stages[stage].levels))
        best, before = self.selection.name(p.tried[key]), self._before(stage)
        if key in p.scores:
            self._say(f"stage {key} kept: {best}, {before} before it")
            if self.selection.worth(p.scores[key]) <= self.selection.worth(p.start):
                self._say(f"stage {key}: warning: no better than before training")
        else:
            self._say(f"stage {key} DROPPED: its best {best} does not beat {before}; level {levels} as before")
        self.fabric.barrier()  # the weights are there
        model, _ = load_model(self.weights)
        self.model.load_state_dict(model.state_dict())
        if silent := silent_levels(model):
            names = ", ".join(map(str, silent))
            self._say(f"{self.weights.name}: level {names} adds nothing, its last convolution is zero")
        if self.fabric.is_global_zero:
            save_card(model, self.weights, self._card())

    def _before(self, stage: int) -> str:
        """Return the score that a stage had to beat, in words."""
        kept = [self.progress.scores[k] for k in map(str, range(1, stage + 1)) if k in self.progress.scores]
        return self.selection.name(kept[-1] if kept else self.progress.start)

    def _account(self, stage: int, began: float) -> float:
        """Book the steps and the time since `began`; return the time now."""
        key, now = str(stage + 1), time.monotonic()
        self.progress.steps[key] = self.progress.step
        self.progress.hours[key] = self.progress.hours.get(key, 0.0) + (now - began) / 3600
        self.progress.memory[key] = self._peak_memory()
        return now

    def _peak_memory(self) -> dict[str, float]:
        """Return the most memory in use: of the process so far, and of the GPU since the stage began or went on."""
        peak: dict[str, float] = {"peak_memory_mb": round(peak_memory_mb())}
        if self.fabric.device.type == "cuda":
            peak["peak_gpu_memory_mb"] = round(torch.cuda.max_memory_allocated(self.fabric.device) / 2**20)
        return peak

    def _log(self, stage: int, losses: dict[str, float], rate: float, seconds: float) -> None:
        """Book a step's time, and write its row; a log keeps the columns that it began with."""
        key, path = str(stage + 1), self.output / "log.csv"
        self.progress.seconds[key] = self.progress.seconds.get(key, 0.0) + seconds
        if not self.fabric.is_global_zero:
            return
        row: dict[str, Any] = {"stage": key, "step": self.progress.step, "learning_rate": f"{rate:.3g}"}
        row |= {name: f"{value:.6f}" for name, value in losses.items()}
        row |= {"seconds": f"{seconds:.3f}"} | self._peak_memory()
        columns = path.read_text().splitlines()[0].split(",") if path.exists() else list(row)
        fresh = not path.exists()
        with path.open("a", newline="") as lines:
            writer = csv.DictWriter(lines, columns, extrasaction="ignore")
            if fresh:
                writer.writeheader()
            writer.writerow(row)

    def _save(self, optimizer: Any, averaged: AveragedModel) -> None:
        if not self.fabric.is_global_zero:
            return
        state = {
            "config": self.config.asdict(),
            "progress": vars(self.progress),
            "model": self.model.state_dict(),
            "averaged": averaged.state_dict(),
            "optimizer": optimizer.state_dict(),
        }
        with atomic_path(self.output / CHECKPOINT) as temporary:
            torch.save(state, temporary)

    def _load(self, path: Path) -> dict[str, Any]:
        stored: dict[str, Any] = torch.load(path, map_location=self.fabric.device, weights_only=True)
        self.progress = Progress(**stored["progress"])
        self.model.load_state_dict(stored["model"])
        if self.fabric.is_global_zero:
            self._trim_log()
        return stored

    def _trim_log(self) -> None:
        """Drop the log's rows of steps behind the checkpoint: they are about to be done again."""
        path = self.output / "log.csv"
        if not path.exists():  # the checkpoint alone was brought here
            return
        header, *rows = path.read_text().splitlines()
        done = (self.progress.stage + 1, self.progress.step)
        kept = [row for row in rows if tuple(map(int, row.split(",")[:2])) <= done]
        write_text(path, "\n".join([header, *kept]) + "\n")


def _list_scores(scores: dict[str, float]) -> str:
    """Return scores on one line."""
    return " ".join(f"{name} {value:.4f}" if value < 100 else f"{name} {value:.0f}" for name, value in scores.items())


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
