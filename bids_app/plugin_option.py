"""Nipype's plugin and its arguments, as `--use-plugin` names them: checked before any work."""

import json
import shlex
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NamedTuple

from nipype.pipeline import plugins
from nipype.pipeline.plugins.base import GraphPluginBase, SGELikeBatchManagerBase

from mmln_pipeline.bids_app.arguments import UsageError
from mmln_pipeline.bids_app.signals import stop_later
from mmln_pipeline.bids_app.slurm_jobs import PROGRAMS, SlurmError, call, cancel_jobs, list_needs, may_pass
from mmln_pipeline.machine.options import check_options, option
from mmln_pipeline.machine.toml import parse_toml, to_dataclass

POOL = "MultiProc"
"""The plugin that `WorkerPool` stands in for."""
CLUSTER = "SLURM"
"""The plugin that `SlurmJobs` stands in for."""
RESERVED = ("-a", "-e", "-o", "-W", "--array", "--comment", "--error", "--output", "--test-only", "--wait", "--wrap")
"""Arguments of sbatch that are the plugin's own."""


HIDDEN = ("--output=/dev/null", "--job-name=mmln-check")


class Plugin(NamedTuple):
    """A plugin of Nipype's.

    Attributes
    ----------
    name : str
        E.g. `SLURM`.
    arguments : mapping
        Its `plugin_args`.
    """

    name: str
    arguments: Mapping[str, Any]

    @property
    def is_batch(self) -> bool:
        """Whether nodes run as jobs of a scheduler, on machines that are not this one."""
        return issubclass(plugin_class(self.name), SGELikeBatchManagerBase)


@dataclass(frozen=True)
class PoolArguments:
    """Arguments of MultiProc; those left out follow the run's own settings."""

    n_procs: int | None = option(None, lowest=1, help="processors in all")
    memory_gb: float | None = option(None, above=0, help="memory, GB")
    n_gpu_procs: int | None = option(None, lowest=0, help="threads of the nodes on a GPU at a time")
    raise_insufficient: bool | None = option(None, help="whether a node that asks for more is an error")

    def __post_init__(self) -> None:
        check_options(self)


@dataclass(frozen=True)
class ClusterArguments:
    """Arguments of SLURM."""

    sbatch_args: str | None = option(None, free=True, help="added to each job's own, and stronger")
    template: str | None = option(None, free=True, help="begin of each job's script, or the file that holds it")
    max_jobs: int | None = option(None, lowest=1, help="jobs at a time")
    max_tries: int | None = option(None, lowest=0, help="how often sbatch is tried again")
    retry_timeout: float | None = option(None, above=0, help="time between these, s")
    poll_seconds: float | None = option(None, above=0, help="how often squeue is asked")

    def __post_init__(self) -> None:
        check_options(self)
        try:
            given = shlex.split(self.sbatch_args or "")
        except ValueError as error:
            raise ValueError(f"plugin_args.sbatch_args: {error}") from error
        taken = [word for word in given if word.split("=")[0] in RESERVED]
        if taken:
            raise ValueError(f"plugin_args.sbatch_args: {taken[0]} is set for each job: leave it out")


CHECKED = {POOL: PoolArguments, CLUSTER: ClusterArguments}


def plugin_class(name: str) -> type:
    """Return Nipype's plugin of that name."""
    return getattr(plugins, f"{name}Plugin")


def check_cluster(plugin: Plugin, n_procs: int, mem_gb: float, on_gpu: bool, mark: str) -> None:
    """Ask SLURM whether it takes the largest job of a run: one that is held, and cancelled at once.

    `sbatch --test-only` will not do: while all nodes are drained it refuses what `sbatch` takes (SLURM 22.05).

    Parameters
    ----------
    plugin : Plugin
        SLURM and its arguments; others are not asked.
    n_procs, mem_gb, on_gpu
        What the job needs, as in `list_needs`.
    mark : str
        Comment of the job, by which the next run finds it if this one is killed just now.

    Raises
    ------
    UsageError
        Its commands are missing, or it would refuse the job.
    """
    if plugin.name != CLUSTER:
        return
    missing = [name for name in PROGRAMS if shutil.which(name) is None]
    if missing:
        raise UsageError(f"--use-plugin: plugin SLURM needs {', '.join(missing)}, not found on the PATH")
    given = plugin.arguments.get("sbatch_args", "")
    asked = [*list_needs(n_procs, mem_gb, on_gpu, given), *shlex.split(given)]
    try:
        with stop_later():
            answer = call("sbatch", "--hold", "--parsable", f"--comment={mark}", *HIDDEN, *asked, "--wrap=true")
            cancel_jobs([int(answer.split(";")[0])])
    except SlurmError as error:
        if may_pass(error):
            return
        raise UsageError(f"--use-plugin: SLURM refuses sbatch {shlex.join(asked)}: {error}") from error


def read_plugin(path: Path) -> Plugin:
    """Read Nipype's plugin and its arguments.

    Parameters
    ----------
    path : Path
        TOML, JSON or YAML file with `plugin` and `plugin_args`.

    Returns
    -------
    Plugin

    Raises
    ------
    UsageError
        The file cannot be read, or names no plugin that Nipype has, or arguments that it cannot take.
    """
    try:
        content = _parse_settings(path.read_text(encoding="utf-8-sig"), path.suffix.lower())
        return _check_plugin(content)
    except OSError as error:
        raise UsageError(f"--use-plugin {path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:  # text that is not UTF-8 among them
        raise UsageError(f"--use-plugin {path}: {error}") from error


def _check_plugin(content: Any) -> Plugin:
    """Check what a file holds; raise ValueError where it is no plugin."""
    if not isinstance(content, dict) or not isinstance(content.get("plugin"), str):
        raise ValueError("expected plugin = NAME (and plugin_args)")
    name, arguments = content["plugin"], content.get("plugin_args", {})
    if set(content) - {"plugin", "plugin_args"}:
        raise ValueError(f"expected plugin and plugin_args only, found {', '.join(map(str, content))}")
    found = {key.removesuffix("Plugin"): value for key, value in vars(plugins).items() if key.endswith("Plugin")}
    graphs = [key for key, value in found.items() if issubclass(value, GraphPluginBase)]
    if name in graphs:
        meant = name.removesuffix("Graph").removesuffix("DAGMan")
        instead = f": use {meant}" if meant in found and meant not in graphs else ""
        raise ValueError(f"plugin: {name} submits all jobs and leaves, so nobody would see what comes of them{instead}")
    known = sorted(set(found) - {*graphs, "Debug"})
    if name not in known:
        meant = get_close_matches(name.upper(), known, 1) or get_close_matches(name, known, 1)
        hint = f" (did you mean {meant[0]}?)" if meant else ""
        raise ValueError(f"plugin: expected one of {', '.join(known)}, found {name!r}{hint}")
    if not isinstance(arguments, dict) or not all(isinstance(key, str) for key in arguments):
        raise ValueError(f"plugin_args: expected arguments by their names, found {arguments!r}")
    if name in CHECKED:
        checked = to_dataclass(CHECKED[name], arguments, "plugin_args")
        arguments = {key: value for key, value in asdict(checked).items() if value is not None}
    return Plugin(name, arguments)


def _parse_settings(text: str, suffix: str) -> Any:
    """Parse TOML, JSON or YAML by the file's ending; raise ValueError where it is not that."""
    if suffix == ".toml":
        return parse_toml(text.encode())
    if suffix == ".json":
        return json.loads(text)
    if suffix in (".yml", ".yaml"):
        import yaml

        try:
            return yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise ValueError(f"not valid YAML: {str(error).splitlines()[0]}") from error
    raise ValueError(f"expected a file ending in .toml, .json or .yml, found {suffix!r}")
