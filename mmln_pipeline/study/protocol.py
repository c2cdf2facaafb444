"""The protocol: a method registers pairs in a process of its own; each pair is scored alike and written at once."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from multiprocessing import get_all_start_methods, get_context
from multiprocessing.context import BaseContext
from pathlib import Path
from typing import Any

from mmln_pipeline.bids_app.workers import start_worker
from mmln_pipeline.machine.environment import prepare_environment
from mmln_pipeline.machine.files import checksum, write_text
from mmln_pipeline.study.configuration import Row, StudyConfig, TestSet, load_study, slug
from mmln_pipeline.study.methods import LearnedMethod, Method, Surroundings
from mmln_pipeline.study.people import Pair
from mmln_pipeline.study.provenance import training_facts, weights_file

PROTOCOL = "pairs/1"
"""Name of what is done to a pair and measured; a change of it makes every row stale."""
THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS",
)
PRELOADED = ["torch", "nibabel", "mmln_pipeline.scores.evaluation", "mmln_pipeline.study.planes"]
"""What every process of a study needs."""
LONGEST_TEMPORARY = 70
"""Characters of the path of temporary files with which a socket's name there is short enough for any system (104)."""


@dataclass(frozen=True)
class Task:
    """Pairs for one method to register, one after the other.

    Parameters
    ----------
    config : Path
        The study's configuration file.
    output_dir : Path
    row : str
    seed : int
    pairs : tuple of Pair
    model : str
        Weights that were trained for this study, where there are.
    is_trained_here : bool
        Whether such weights are to be trained first.
    """

    config: Path
    output_dir: Path
    row: str
    seed: int
    pairs: tuple[Pair, ...]
    model: str = ""
    is_trained_here: bool = False


def row_folder(output_dir: Path, row: str, seed: int) -> Path:
    """Return the folder of a row's pairs."""
    return output_dir / "pairs" / f"{slug(row)}_seed-{seed}"


def pair_path(output_dir: Path, row: str, seed: int, pair: Pair) -> Path:
    """Return the file of a pair's scores; a ``.txt`` of the same stem says why there are none."""
    return row_folder(output_dir, row, seed) / slug(pair.test_set) / f"{pair.fixed}__{pair.moving}.json"


def slices_path(output_dir: Path, row: str, seed: int) -> Path:
    """Return the file of the slices that figures show of a row."""
    return output_dir / "slices" / f"{slug(row)}_seed-{seed}.npz"


def model_folder(output_dir: Path, row: str, seed: int) -> Path:
    """Return the folder of the weights that a row learns in this study."""
    return output_dir / "models" / f"{slug(row)}_seed-{seed}"


def fingerprint(study: StudyConfig, row: Row, seed: int, pair: Pair, root: Path) -> str:
    """Return the checksum of all that a pair's scores depend on, but for the machine.

    Parameters
    ----------
    study : StudyConfig
    row : Row
    seed : int
    pair : Pair
    root : Path
        Folder that relative paths start from.
    """
    made_from: dict[str, Any] = {
        "protocol": PROTOCOL,
        "row": [row.method, dict(row.options), row.halvings, seed],
        "study": [study.halvings, study.threads, study.device, study.data.template],
        "set": asdict(study.test_set(pair.test_set)) | {"path": "", "atlases": None},
        "scans": [_content(root / study.prepared / f"{name}.npz") for name in (pair.fixed, pair.moving)],
    }
    weights = weights_file(row.make(Surroundings(root)), root)
    files = [root / value for value in row.options.values() if isinstance(value, str) and value]
    made_from["files"] = [_content(path) for path in (*files, *([weights] if weights else []))]
    if row.is_learned and weights is None:
        made_from["training"] = [asdict(study.data), None if study.budget is None else asdict(study.budget)]
    return hashlib.sha256(json.dumps(made_from, sort_keys=True, default=str).encode()).hexdigest()[:16]


def _content(path: Path) -> str:
    return checksum(path) if path.is_file() else ""


def is_done(path: Path, mark: str) -> bool:
    """Tell whether a pair's scores are there, made from what there is today."""
    if not path.is_file():
        return False
    return json.loads(path.read_text(encoding="utf-8")).get("fingerprint") == mark


def run_task(task: Task, shown: Pair, threads: int) -> None:
    """Register and score the pairs of a task, each in a process that is this task's own.

    So its peak of memory is that method's, and its second pair finds a warm method. A pair that fails leaves its cause
    in place of its scores, and a process that dies takes no other pair with it.

    Parameters
    ----------
    task : Task
    shown : Pair
        The pair whose slices are kept for the figures.
    threads : int
        Processor threads.
    """
    os.environ.update(dict.fromkeys(THREAD_VARIABLES, str(threads)))  # which libraries read as they are loaded
    left = list(task.pairs)
    while left:
        with _one_process() as pool:
            while left:
                pair = left.pop(0)
                try:
                    pool.submit(_register_pair, task, pair, pair == shown).result()
                except BrokenProcessPool:
                    fail(task, pair, "the process was killed, most often for want of memory")
                    break


def _one_process() -> ProcessPoolExecutor:
    """Return a pool of one process, which ends with this one, however that ends."""
    quiet = os.getcwd(), logging.CRITICAL, False
    return ProcessPoolExecutor(1, mp_context=_fresh_processes(), initializer=start_worker, initargs=quiet)


def _fresh_processes() -> BaseContext:
    """Return what starts processes that know nothing of this one's memory, where it can without loading libraries anew.

    A server that has loaded them forks each process. It is spoken to through a socket in the folder of temporary files,
    whose path systems limit.
    """
    if "forkserver" not in get_all_start_methods() or len(tempfile.gettempdir()) > LONGEST_TEMPORARY:
        return get_context("spawn")
    context = get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    return context


def fail(task: Task, pair: Pair, cause: str) -> None:
    """Leave the cause of a failure in the place of a pair's scores."""
    path = pair_path(task.output_dir, task.row, task.seed, pair)
    write_text(path.with_suffix(".txt"), " ".join(cause.split()) + "\n")


def train_row(config: Path, output_dir: Path, name: str, seed: int) -> str:
    """Train a row from scratch, or go on where that stopped, in a process of its own.

    Parameters
    ----------
    config : Path
        The study's configuration file.
    output_dir : Path
    name : str
        The row.
    seed : int

    Returns
    -------
    str
        The weights.
    """
    os.environ.update(dict.fromkeys(THREAD_VARIABLES, str(load_study(config).threads)))
    with _one_process() as pool:
        return pool.submit(_train, config, output_dir, name, seed).result()


def _train(config: Path, output_dir: Path, name: str, seed: int) -> str:
    prepare_environment()
    from mmln_pipeline.machine.devices import set_threads

    study, root = load_study(config), config.resolve().parent
    set_threads(study.threads)
    method = study.row(name).make(Surroundings(root, study.device, study.threads, seed))
    assert isinstance(method, LearnedMethod) and study.budget is not None  # checked before the work began
    return str(method.train(study.data, study.budget, model_folder(output_dir, name, seed)))


_state: dict[str, Any] = {}
"""Of this process: the method, which is warm from the second call on, and the calls so far."""


def _register_pair(task: Task, pair: Pair, is_shown: bool) -> None:
    """Register and score one pair, in the process of a task, and write its scores."""
    prepare_environment()
    root = task.config.resolve().parent
    try:
        study = load_study(task.config)
        row = study.row(task.row)
        if not _state:
            surroundings = Surroundings(root, study.device, study.threads, task.seed)
            method = row.make(surroundings)
            if task.model and isinstance(method, LearnedMethod):
                method = method.with_model(task.model)
            _state.update(method=method, call=0)
        scores = _measure(study, row, task, pair, root, is_shown)
    except Exception as error:
        fail(task, pair, f"{type(error).__name__}: {error}")
        return
    path = pair_path(task.output_dir, task.row, task.seed, pair)
    write_text(path, json.dumps(scores, indent=1, allow_nan=False) + "\n")
    path.with_suffix(".txt").unlink(missing_ok=True)


def _measure(study: StudyConfig, row: Row, task: Task, pair: Pair, root: Path, is_shown: bool) -> dict[str, Any]:
    """Register a pair and return its scores, and what they were made with."""
    import torch

    from mmln_pipeline import __version__
    from mmln_pipeline.machine.devices import peak_memory_mb, set_threads
    from mmln_pipeline.scores.evaluation import jsonable
    from mmln_pipeline.study.planes import keep_slices
    from mmln_pipeline.study.preparation import load_prepared, load_table

    set_threads(study.threads)
    torch.manual_seed(task.seed)
    fixed, moving = (load_prepared(root / study.prepared / f"{name}.npz", study) for name in (pair.fixed, pair.moving))
    extra = (study.halvings if row.halvings is None else row.halvings) - study.halvings
    small = fixed.halved(extra).to_nifti(), moving.halved(extra).to_nifti()
    method: Method = _state["method"]
    _state["call"] += 1
    seconds, found = _time(lambda: method.register(*small))
    peak = peak_memory_mb()  # before the scores, which cost the same for all
    displacement = _resize(found, fixed.image.shape)
    moved = warp_labels(moving.labels, displacement)
    scores = score_pair(displacement, (fixed, moving), moved, study.test_set(pair.test_set), root)
    if is_shown:
        table = load_table(study.test_set(pair.test_set), root)
        keep_slices(slices_path(task.output_dir, task.row, task.seed), displacement, (fixed, moving), moved, table)
    facts = {
        "fingerprint": fingerprint(study, row, task.seed, pair, root),
        "method": row.method,
        "row": row.name,
        "seed": task.seed,
        "set": pair.test_set,
        "fixed": pair.fixed,
        "moving": pair.moving,
        "voxel_mm": 2 ** (study.halvings + extra),
        "scored_voxel_mm": 2**study.halvings,
        "seconds": seconds,
        "call": _state["call"],
        "peak_memory_mb": peak,
        "threads": study.threads,
        "provenance": method.provenance,
        "version": __version__,
    }
    return jsonable(facts | scores | training_facts(method, root))


def _time(work: Callable[[], Any]) -> tuple[float, Any]:
    """Return the seconds that some work takes, and its result."""
    begin = time.perf_counter()
    result = work()
    return time.perf_counter() - begin, result


def _resize(found: Any, shape: tuple[int, ...]) -> Any:
    """Bring a displacement onto the study's grid, shape (1, 3, I, J, K), as a tensor."""
    import torch

    from mmln_pipeline.fields.scales import resize_field

    return resize_field(torch.from_numpy(found)[None], shape)


def score_pair(displacement: Any, pair: Any, moved: Any, test_set: TestSet, root: Path) -> dict[str, Any]:
    """Score a displacement on the study's grid.

    Parameters
    ----------
    displacement : Tensor, shape (1, 3, I, J, K)
        Voxels of the grid, fixed to moving.
    pair : tuple of PreparedScan
        Fixed and moving scan, on that grid.
    moved : ndarray of int, shape (I, J, K)
        The moving labels, warped.
    test_set : TestSet
        Its structures are scored.
    root : Path
        Folder that relative paths start from.

    Returns
    -------
    dict
        What `mmln_pipeline.scores.evaluation.score_labels` and `score_field` give, and ``dice_cortex``.
    """
    from mmln_pipeline.scores import evaluation, metrics
    from mmln_pipeline.study.preparation import CORTEX, load_table

    fixed, moving = pair
    table = load_table(test_set, root)
    scores = evaluation.score_labels(fixed.labels, moving.labels, moved, fixed.grid.affine, table)
    scores |= evaluation.score_field(displacement, fixed.brain)
    cortex = list(CORTEX) if test_set.cortex else []
    scores["dice_cortex"] = metrics.label_mean(metrics.dice(fixed.labels, moved, cortex)) if cortex else None
    return scores


def warp_labels(labels: Any, displacement: Any) -> Any:
    """Take labels through a displacement, nearest neighbour.

    Parameters
    ----------
    labels : ndarray of int, shape (I, J, K)
    displacement : Tensor, shape (1, 3, I, J, K)

    Returns
    -------
    ndarray of int, shape (I, J, K)
    """
    import numpy as np
    import torch

    from mmln_pipeline.fields.warping import warp

    numbers, codes = np.unique(labels, return_inverse=True)  # float32 would not hold every number
    volume = torch.from_numpy(codes.reshape(labels.shape).astype(np.float32))[None, None]
    return numbers[warp(volume, displacement, mode="nearest")[0, 0].numpy().astype(int)]
