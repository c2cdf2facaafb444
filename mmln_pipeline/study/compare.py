"""The study from its configuration to tables and figures: check, prepare, train and register, collect, write."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import nipype
from nipype.pipeline import engine as pe
from nipype.pipeline import plugins

from mmln_pipeline.bids_app.plugin_option import POOL, Plugin, read_plugin
from mmln_pipeline.bids_app.signals import stop_on_signals
from mmln_pipeline.bids_app.work_folder import sole_use
from mmln_pipeline.bids_app.workers import WorkerPool, set_loudness
from mmln_pipeline.machine.devices import resolve_device
from mmln_pipeline.machine.files import existing_part
from mmln_pipeline.machine.progress import progress_bar
from mmln_pipeline.reporting.crashes import read_crash
from mmln_pipeline.study.configuration import Row, StudyConfig, load_study
from mmln_pipeline.study.methods import LearnedMethod, Surroundings
from mmln_pipeline.study.nodes import init_preparation, init_registrations
from mmln_pipeline.study.people import Pair, Scans, check_people, choose_pairs, draw_pairs, find_scans
from mmln_pipeline.study.preparation import check_scans, prepared_path
from mmln_pipeline.study.protocol import Task, fingerprint, is_done, pair_path
from mmln_pipeline.study.report import write_report
from mmln_pipeline.study.results import collect, write_results

__all__ = ["Outcome", "Plan", "check_study", "read_plugin", "report_study", "run_study"]

QUIET = 50
"""Level of Nipype's loggers: what fails is told at the end."""


@dataclass(frozen=True)
class Outcome:
    """What came of a study.

    Parameters
    ----------
    written : tuple of Path
        Results, tables and figures.
    skipped : mapping of str to str
        Rows that were left out, and why.
    failed : mapping of str to str
        Pairs without scores, and why.
    """

    written: tuple[Path, ...]
    skipped: Mapping[str, str] = field(default_factory=dict)
    failed: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Plan:
    """All that is to be done.

    Parameters
    ----------
    config : Path
        Configuration file.
    study : StudyConfig
    output_dir : Path
    scans : mapping of str to sequence of Source
        Of each test set.
    pairs : mapping of str to list of Pair
        Of each test set.
    skipped : mapping of str to str
        Rows that lack something, and what.
    """

    config: Path
    study: StudyConfig
    output_dir: Path
    scans: Scans
    pairs: Mapping[str, list[Pair]]
    skipped: Mapping[str, str]

    @property
    def root(self) -> Path:
        """Folder that relative paths start from."""
        return self.config.parent

    @property
    def shown(self) -> Pair:
        """The pair that figures show: the first one of the first set."""
        return self.pairs[self.study.sets[0].name][0]

    def wanted(self) -> Iterator[tuple[Row, int, Pair]]:
        """Yield every registration: row, seed, pair."""
        for row in self.study.rows:
            if row.name in self.skipped:
                continue
            for seed in row.seeds:
                for test_set in self.study.sets_of(row):
                    for pair in choose_pairs(row, self.pairs[test_set.name]):
                        yield row, seed, pair


def check_study(config: Path, output_dir: Path | None = None) -> Plan:
    """Check all that can be known before any work.

    Parameters
    ----------
    config : Path
        Configuration file.
    output_dir : Path, optional
        Instead of the configuration's.

    Returns
    -------
    Plan

    Raises
    ------
    FileNotFoundError, ValueError
        One line that names what is wrong: a key, method, option, file, label, or a person in two splits.
    """
    config = config.resolve()
    study, root = load_study(config), config.parent
    resolve_device(study.device)
    target = (root / study.output_dir if output_dir is None else output_dir).resolve()
    if not existing_part(target).is_dir():
        raise NotADirectoryError(f"output folder: {existing_part(target)} is a file")
    skipped: dict[str, str] = {}
    for row in study.rows:
        method = row.make(Surroundings(root, study.device, study.threads))
        if reason := method.lacking():
            skipped[row.name] = reason
            continue
        method.check()
        is_untrained = isinstance(method, LearnedMethod) and not method.is_trained
        if is_untrained and (study.budget is None or not study.data.train):
            raise ValueError(f"rows: {row.name!r} is to be trained: expected [budget] and [[data.train]], found none")
    scans = find_scans(study, root)
    check_people(study, scans, root)
    for test_set in study.sets:
        check_scans(study, test_set, scans[test_set.name], root)
    pairs = {test_set.name: draw_pairs(study, test_set, scans[test_set.name]) for test_set in study.sets}
    return Plan(config, study, target, scans, pairs, skipped)


def run_study(config: Path, output_dir: Path | None = None, nprocs: int = 1, plugin: Plugin | None = None) -> Outcome:
    """Run a study, or what is left of it, and write its results, tables and figures.

    Parameters
    ----------
    config : Path
        Configuration file.
    output_dir : Path, optional
        Instead of the configuration's.
    nprocs : int, default=1
        Processors in all; each registration takes the study's threads.
    plugin : Plugin, optional
        Nipype's, in place of processes on this machine.

    Returns
    -------
    Outcome

    Raises
    ------
    FileNotFoundError, ValueError
        As of `check_study`, before any work.
    """
    plan = check_study(config, output_dir)
    for name, reason in plan.skipped.items():
        print(f"mmln compare: {name} is left out: {reason}", flush=True)
    work_dir = plan.output_dir / "work"
    with stop_on_signals(), sole_use(plan.output_dir, "output_dir"), _quiet_nipype(work_dir):
        causes = _prepare(plan, work_dir, nprocs, plugin) or _register(plan, work_dir, nprocs, plugin)
    marks = {(row.name, seed, pair): _mark(plan, row, seed, pair) for row, seed, pair in plan.wanted()}
    results = collect(plan.output_dir, marks)
    failed = _failures(plan, causes)
    written = []
    if len(results):
        written.append(write_results(plan.study, results, plan.output_dir))
        written += write_report(plan.study, plan.output_dir)
    return Outcome(tuple(written), plan.skipped, failed)


def report_study(config: Path, output_dir: Path | None = None) -> Outcome:
    """Write a study's tables and figures again from its results, without any data."""
    study = load_study(config)
    folder = config.resolve().parent / study.output_dir if output_dir is None else output_dir
    return Outcome(tuple(write_report(study, folder)))


def _mark(plan: Plan, row: Row, seed: int, pair: Pair) -> str:
    return fingerprint(plan.study, row, seed, pair, plan.root)


def _prepare(plan: Plan, work_dir: Path, nprocs: int, plugin: Plugin | None) -> list[str]:
    """Prepare the scans that take part; return why some could not be."""
    needed = {name for _, _, pair in plan.wanted() for name in (pair.fixed, pair.moving)}
    chosen = [(group, scan) for group, scans in plan.scans.items() for scan in scans if scan.name in needed]
    names = [(group, scan.name) for group, scan in chosen]
    targets = [prepared_path(scan, plan.study, plan.root) for _, scan in chosen]
    workflow = init_preparation(plan.config, plan.study, names, work_dir)
    return _run(workflow, "preparing scans", targets, nprocs, plugin)


def _register(plan: Plan, work_dir: Path, nprocs: int, plugin: Plugin | None) -> list[str]:
    """Train and register what is left; return why some nodes failed."""
    tasks = _list_tasks(plan)
    targets = [pair_path(plan.output_dir, task.row, task.seed, pair) for task in tasks for pair in task.pairs]
    for target in targets:
        target.unlink(missing_ok=True)
        target.with_suffix(".txt").unlink(missing_ok=True)
    if not tasks:
        return []
    workflow = init_registrations(plan.study, tasks, plan.shown, work_dir)
    return _run(workflow, "registering pairs", targets, nprocs, plugin)


def _list_tasks(plan: Plan) -> list[Task]:
    """Group the pairs that are left by row, seed and fixed image: a node each."""
    groups: dict[tuple[str, int, str, str], list[Pair]] = {}
    for row, seed, pair in plan.wanted():
        if not is_done(pair_path(plan.output_dir, row.name, seed, pair), _mark(plan, row, seed, pair)):
            groups.setdefault((row.name, seed, pair.test_set, pair.fixed), []).append(pair)
    tasks = []
    for (name, seed, _, _), pairs in groups.items():
        method = plan.study.row(name).make(Surroundings(plan.root))
        is_untrained = isinstance(method, LearnedMethod) and not method.is_trained
        tasks.append(Task(plan.config, plan.output_dir, name, seed, tuple(pairs), is_trained_here=is_untrained))
    return tasks


def _failures(plan: Plan, causes: Sequence[str]) -> dict[str, str]:
    """Return the pairs without scores, and why."""
    failed = {}
    for row, seed, pair in plan.wanted():
        path = pair_path(plan.output_dir, row.name, seed, pair)
        if not path.is_file():
            note = path.with_suffix(".txt")
            cause = note.read_text(encoding="utf-8").strip() if note.is_file() else "; ".join(causes[:1])
            failed[f"{row.name}, seed {seed}: {pair.moving} to {pair.fixed}"] = cause or "not tried"
    return failed


def _run(workflow: pe.Workflow, label: str, targets: Sequence[Path], nprocs: int, plugin: Plugin | None) -> list[str]:
    """Run a workflow to its end, whatever fails, and show how many files are there; return the causes of failures."""
    crashes = Path(workflow.base_dir) / "crashes"
    runner = _make_runner(nprocs, plugin)
    with _watch(label, targets):
        try:
            workflow.run(plugin=runner)
        except Exception as error:  # Nipype raises a node's error again once the others are done
            causes = [read_crash(path).cause for path in sorted(crashes.glob("crash-*.txt"))]
            return causes or [f"{type(error).__name__}: {error}"]
        finally:
            if isinstance(runner, WorkerPool):
                runner.stop()
    return []


def _make_runner(nprocs: int, plugin: Plugin | None) -> plugins.base.PluginBase:
    """Choose the plugin: the one asked for, else this process for one processor, and worker processes for more."""
    name, given = plugin or Plugin("Linear" if nprocs == 1 else POOL, {})
    if name != POOL:
        return getattr(plugins, f"{name}Plugin")(plugin_args=dict(given))
    return WorkerPool(plugin_args={"n_procs": nprocs, "raise_insufficient": False, "log_level": QUIET, **given})


@contextmanager
def _quiet_nipype(work_dir: Path) -> Iterator[None]:
    """Let Nipype work in a folder that is this run's own: what is done is known by the study's own files."""
    shutil.rmtree(work_dir, ignore_errors=True)
    (work_dir / "crashes").mkdir(parents=True)
    nipype.config.update_config(
        {
            "execution": {
                "crashdump_dir": str(work_dir / "crashes"),
                "crashfile_format": "txt",
                "stop_on_first_crash": "false",
                "poll_sleep_duration": "0.2",
                "check_version": "false",
            }
        }
    )
    set_loudness(QUIET)
    yield
    shutil.rmtree(work_dir, ignore_errors=True)


@contextmanager
def _watch(label: str, targets: Sequence[Path]) -> Iterator[None]:
    """Show how many of some files, or notes of failure in their place, are there, and how long the rest will take."""
    began, is_over = time.monotonic(), threading.Event()
    with progress_bar(label, len(targets)) as advance:
        waiting = list(targets)

        def look() -> None:
            for path in [path for path in waiting if path.is_file() or path.with_suffix(".txt").is_file()]:
                waiting.remove(path)
                done = len(targets) - len(waiting)
                left = (time.monotonic() - began) / done * len(waiting)
                advance(f"{path.parent.parent.name} {path.stem}, {_duration(left)} left")

        def look_on() -> None:
            while not is_over.wait(1.0):
                look()

        watcher = threading.Thread(target=look_on, name="watch-study", daemon=True)
        watcher.start()
        try:
            yield
        finally:
            is_over.set()
            watcher.join()
            look()


def _duration(seconds: float) -> str:
    """Return a duration in the unit that fits.

    Examples
    --------
    >>> _duration(42), _duration(600), _duration(9000)
    ('42 s', '10 min', '2.5 h')
    """
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
