"""The training configuration: one dataclass a TOML table, each checked where it is made."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from mmln_pipeline.machine.toml import read_toml, to_dataclass
from mmln_pipeline.network.architecture import NetworkConfig
from mmln_pipeline.network.losses import SIMILARITIES

NEUROMORPHOMETRICS = ("structures28", "structures28:neuromorphometrics", "neuromorphometrics")
"""Bundled label tables in the one numbering that tells the parcels of the cortex."""


@dataclass(frozen=True)
class DatasetConfig:
    """One BIDS dataset of skull-stripped T1w images.

    Parameters
    ----------
    path : str
        Dataset folder, relative to the configuration file or absolute.
    labels : str, optional
        Derivative folder inside `path` whose ``*_dseg.nii.gz`` mirror the images; none for unlabelled data.
    split : str, optional
        Use only the scans that the split table (columns participant_id, session_id, split) gives this value.
    split_table : str, optional
        That table, relative to the configuration file or absolute; `path`/split.tsv by default.
    """

    path: str
    labels: str = ""
    split: str = ""
    split_table: str = ""

    def __post_init__(self) -> None:
        if self.split_table and not self.split:
            raise ValueError(f"split_table: expected a split to choose from it, found {self.split_table!r} without one")


@dataclass(frozen=True)
class DataConfig:
    """What is trained on and what selects the checkpoint.

    Parameters
    ----------
    train, validation : tuple of DatasetConfig
    pack : str
        Folder of the preprocessed volumes, relative to the configuration file; made when absent.
    template : str
        Template whose grid the volumes are aligned to.
    label_table : str
        Structures that validation and `loss.dice` compare, see ``mmln_pipeline.atlas.labels.load_label_table``: a
        bundled name, or a TSV relative to the configuration file.
    flip : bool
        Mirror pairs left to right, half of the time.
    flip_apart : bool
        Mirror either brain of a pair without the other; not with labels in the loss, which have sides.
    between : float
        Share of the brains that are warped a random part of the way towards a third one, by the network's first run:
        shapes that no training brain has.
    gamma : float
        Raise each image to the power ``exp(s)``, s normal with this standard deviation.
    bias : float
        Multiply each image by the exponential of a smooth random field of this standard deviation.
    warp : float
        Deform each volume by the exponential of a smooth random velocity field of this standard deviation, voxels.
    both_orders : bool
        Put every pair into the batch in both orders.
    halvings : int
        Times that the packed volumes are halved before use: an ablation on 2 mm voxels costs an eighth.
    """

    train: tuple[DatasetConfig, ...] = ()
    validation: tuple[DatasetConfig, ...] = ()
    pack: str = "pack"
    template: str = "MNI152NLin2009aSym"
    label_table: str = "structures28"
    flip: bool = True
    flip_apart: bool = False
    between: float = 0.0
    gamma: float = 0.1
    bias: float = 0.0
    warp: float = 0.0
    both_orders: bool = False
    halvings: int = 0

    def __post_init__(self) -> None:
        for name in ("gamma", "bias", "warp", "halvings"):
            _expect(getattr(self, name) >= 0, f"data.{name}", "a number of at least 0", getattr(self, name))
        _expect(0 <= self.between <= 1, "data.between", "a share from 0 to 1", self.between)


@dataclass(frozen=True)
class LossConfig:
    """The objective (paper eq. 2-8).

    Parameters
    ----------
    similarity : {"global", "local", "local+global"}
        See ``mmln_pipeline.network.losses.similarity_loss``.
    window : int or sequence of int
        Edge in voxels of the local similarity's window; of several windows, the mean counts.
    smoothing : float or sequence of float
        Regularisation parameter k of eq. 5: one for all levels, or one a level.
    volume : float
        Weight of the mean squared logarithm of the whole map's volume change so far.
    tissue : float
        Weight of one minus the soft Dice over the brightness classes of ``mmln_pipeline.network.tissues.tissue_maps``.
    dice : float
        Weight of one minus the soft Dice over the structures of `data.label_table`, for pairs with labels; 0 trains
        without labels.
    cortex : float
        Weight of one minus the soft Dice over the parcels of the cortex, some of them a step; for pairs with labels in
        Neuromorphometrics' numbering.
    alpha, beta, theta : float
        Weights of the slice branch at levels 1 and 2, and of the core branch at level 3; 0 leaves a branch out.
    core : tuple of int
        Size of the core in voxels, in the centre of the grid.
    """

    similarity: str = "global"
    window: int | tuple[int, ...] = 7
    smoothing: float | tuple[float, ...] = 1.0
    volume: float = 0.0
    tissue: float = 0.0
    dice: float = 0.0
    cortex: float = 0.0
    alpha: float = 0.25
    beta: float = 0.5
    theta: float = 0.25
    core: tuple[int, int, int] = (80, 96, 112)

    def __post_init__(self) -> None:
        if self.similarity not in SIMILARITIES:
            expected = ", ".join(map(repr, SIMILARITIES))
            raise ValueError(f"loss.similarity: expected one of {expected}, found {self.similarity!r}")
        for window in (self.window,) if isinstance(self.window, int) else self.window:
            if window % 2 == 0 or window < 3:
                raise ValueError(f"loss.window: expected an odd number of at least 3, found {window}")
        _expect(len(self.core) == 3 and min(self.core) > 0, "loss.core", "three sizes above 0", list(self.core))


@dataclass(frozen=True)
class StageConfig:
    """One stage of the training: some steps that teach one or several levels.

    Each step takes drawn pairs through the network's schedule (without the levels that no stage has taught yet). Every
    run of a level that is taught has its own loss and moves the weights; the next run starts where it ended.

    Parameters
    ----------
    levels : tuple of int
        Levels to train, from 1 (coarsest).
    steps : int
        Drawn batches of pairs.
    frozen_steps : int, optional
        Steps at the beginning during which the losses do not reach the levels that are not taught (default: all).
    window : tuple of int, optional
        Train the finest level on wandering sub-volumes of this size; empty for the whole grid.
    learning_rate : float, optional
        The stage's own; 0 for that of `optimization`.
    once : bool, optional
        Run each level once, whatever the network's schedule: cheaper steps to begin with.
    """

    levels: tuple[int, ...]
    steps: int
    frozen_steps: int = -1
    window: tuple[int, ...] = ()
    learning_rate: float = 0.0
    once: bool = False

    def __post_init__(self) -> None:
        _expect(self.steps >= 1, "stages: steps", "at least 1", self.steps)
        is_size = len(self.window) in (0, 3) and all(n > 0 and n % 2 == 0 for n in self.window)
        _expect(is_size, "stages: window", "three even sizes, or none", list(self.window))
        _expect(self.learning_rate >= 0, "stages: learning_rate", "a number of at least 0", self.learning_rate)

    def is_frozen(self, step: int) -> bool:
        """Return whether a step, from 0, leaves the levels that are not taught as they are."""
        return self.frozen_steps < 0 or step < self.frozen_steps


@dataclass(frozen=True)
class OptimizationConfig:
    """How the weights move.

    Parameters
    ----------
    learning_rate : float
        Adam's.
    schedule : {"constant", "cosine"}
        The paper's fixed rate, or a cosine to a hundredth over each stage, behind a warm-up.
    batch_size : int
        Pairs a step.
    averaging : float
        Decay of the exponential average of the weights that is validated and shipped; 0 for none.
    """

    learning_rate: float = 1e-4
    schedule: str = "constant"
    batch_size: int = 1
    averaging: float = 0.0

    def __post_init__(self) -> None:
        if self.schedule not in ("constant", "cosine"):
            raise ValueError(f"optimization.schedule: expected 'constant' or 'cosine', found {self.schedule!r}")
        _expect(self.learning_rate > 0, "optimization.learning_rate", "a number above 0", self.learning_rate)
        _expect(self.batch_size >= 1, "optimization.batch_size", "at least 1", self.batch_size)
        _expect(0 <= self.averaging < 1, "optimization.averaging", "a decay from 0 to below 1", self.averaging)


@dataclass(frozen=True)
class TrainConfig:
    """A whole training run.

    Parameters
    ----------
    name : str
        Model name on the card.
    output_dir : str
        Folder of checkpoints, log and weights, relative to the configuration file.
    license : str
        Licence of the resulting weights, for the card.
    seed : int
        Seeds the weights, the pairs and the augmentation.
    validate_every, save_every : int
        Steps between validations and between checkpoints.
    initial_weights : str
        Weights to continue from (a bundled name or a .safetensors file); empty to start fresh.
    """

    name: str
    output_dir: str = "run"
    license: str = ""
    seed: int = 0
    validate_every: int = 200
    save_every: int = 100
    initial_weights: str = ""
    network: NetworkConfig = field(default_factory=NetworkConfig)
    data: DataConfig = field(default_factory=DataConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optimization: OptimizationConfig = field(default_factory=OptimizationConfig)
    stages: tuple[StageConfig, ...] = ()

    def __post_init__(self) -> None:
        for name in ("validate_every", "save_every"):
            _expect(getattr(self, name) >= 1, name, "at least 1", getattr(self, name))
        known = set(range(1, self.network.levels + 1))
        for number, stage in enumerate(self.stages, 1):
            if not stage.levels or not set(stage.levels) <= known:
                raise ValueError(
                    f"stages: expected levels among {sorted(known)} in stage {number}, found {list(stage.levels)}"
                )
        if not self.stages:
            raise ValueError("stages: expected at least one [[stages]] table, found none")
        smoothing = self.loss.smoothing
        if isinstance(smoothing, tuple) and len(smoothing) != self.network.levels:
            raise ValueError(f"loss.smoothing: expected {self.network.levels} numbers, found {len(smoothing)}")
        self._check_windows()
        if self.loss.cortex and self.data.label_table not in NEUROMORPHOMETRICS:
            raise ValueError(
                f"loss.cortex: expected labels in Neuromorphometrics' numbering, found {self.data.label_table!r}"
            )
        if self.data.flip_apart and (self.loss.dice or self.loss.cortex):
            raise ValueError("data.flip_apart: expected false with loss.dice or loss.cortex, whose labels have sides")

    def _check_windows(self) -> None:
        """Refuse a window that no level heeds, or that the grid cannot hold."""
        grid = [n >> self.data.halvings for n in self.network.grid]
        for number, stage in enumerate(self.stages, 1):
            if stage.window and self.network.levels not in stage.levels:
                raise ValueError(
                    f"stages: expected the finest level in stage {number}, whose window it is, "
                    f"found {list(stage.levels)}"
                )
            if any(size > n for size, n in zip(stage.window, grid, strict=False)):
                raise ValueError(
                    f"stages: expected a window within the grid {grid} in stage {number}, found {list(stage.window)}"
                )

    def runs(self, stage: int) -> list[int]:
        """Return the levels, from 1, that a step of a stage (from 0) runs one after the other."""
        return self.network.runs(self.taught(stage), self.stages[stage].once)

    def taught(self, stage: int) -> int:
        """Return the finest level, from 1, that some stage up to this one (from 0) teaches."""
        return max(level for s in self.stages[: stage + 1] for level in s.levels)

    def smoothing(self, level: int) -> float:
        """Return the regularisation parameter k of a level, from 1 (coarsest)."""
        k = self.loss.smoothing
        return k[level - 1] if isinstance(k, tuple) else k

    def asdict(self) -> dict[str, Any]:
        """Return the configuration as plain values, for the card and for the check on resuming."""
        return asdict(self)


def load_config(path: str | Path) -> TrainConfig:
    """Read a training configuration.

    Parameters
    ----------
    path : str or Path
        TOML file.

    Returns
    -------
    TrainConfig

    Raises
    ------
    FileNotFoundError
        When the file is missing.
    ValueError
        When it is not TOML, or a table or key is unknown or has a value that cannot be.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"configuration: no such file: {path}")
    try:
        return parse_config(read_toml(path))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def parse_config(content: dict[str, Any]) -> TrainConfig:
    """Make a training configuration from plain values, as its file or a checkpoint has them.

    Parameters
    ----------
    content : dict
        Keys that are absent get their defaults.

    Returns
    -------
    TrainConfig

    Raises
    ------
    ValueError
        When a table or key is unknown or has a value that cannot be.
    """
    parts: dict[str, Any] = {"data": parse_data(find_table(content, "data"))}
    for key, kind in (("network", NetworkConfig), ("loss", LossConfig), ("optimization", OptimizationConfig)):
        parts[key] = to_dataclass(kind, find_table(content, key), key)
    parts["stages"] = tuple(to_dataclass(StageConfig, entry, "stages") for entry in find_tables(content, "stages"))
    return to_dataclass(TrainConfig, content | parts)


def parse_data(table: dict[str, Any]) -> DataConfig:
    """Make the part that says what is trained on from plain values; absent keys get their defaults.

    Raises
    ------
    ValueError
        When a key is unknown or has a value that cannot be.
    """
    data = dict(table)
    for key in ("train", "validation"):
        data[key] = tuple(
            to_dataclass(DatasetConfig, entry, f"data.{key}") for entry in find_tables(data, key, "data.")
        )
    return to_dataclass(DataConfig, data, "data")


def find_table(content: dict[str, Any], key: str) -> dict[str, Any]:
    """Return a table of a file, empty where there is none."""
    found = content.get(key, {})
    if not isinstance(found, dict):
        raise ValueError(f"{key}: expected a table, [{key}], found {found!r}")
    return found


def find_tables(content: dict[str, Any], key: str, above: str = "") -> Sequence[dict[str, Any]]:
    """Return the tables of one name, [[...]], of a file or of a table in it."""
    found = content.get(key, [])
    if not isinstance(found, list | tuple) or not all(isinstance(entry, dict) for entry in found):
        raise ValueError(f"{above}{key}: expected tables, [[{above}{key}]], found {found!r}")
    return found


def _expect(is_met: bool, name: str, expected: str, found: Any) -> None:
    """Refuse a value by its name."""
    if not is_met:
        raise ValueError(f"{name}: expected {expected}, found {found}")
