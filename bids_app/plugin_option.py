"""Nipype's plugin and its arguments, as `--use-plugin` names them: checked before any work."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from nipype.pipeline import plugins

from mmln_pipeline.bids_app.arguments import UsageError
from mmln_pipeline.machine.options import check_options, option
from mmln_pipeline.machine.toml import parse_toml, to_dataclass

POOL = "MultiProc"
"""The plugin that `WorkerPool` stands in for."""


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


@dataclass(frozen=True)
class PoolArguments:
    """Arguments of MultiProc; those left out follow the run's own settings."""

    n_procs: int | None = option(None, lowest=1, help="processors in all")
    memory_gb: float | None = option(None, above=0, help="memory, GB")
    n_gpu_procs: int | None = option(None, lowest=0, help="threads of the nodes on a GPU at a time")
    raise_insufficient: bool | None = option(None, help="whether a node that asks for more is an error")

    def __post_init__(self) -> None:
        check_options(self)


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
    known = sorted(key.removesuffix("Plugin") for key in vars(plugins) if key.endswith("Plugin"))
    if name not in known:
        raise ValueError(f"plugin: expected one of {', '.join(known)}, found {name!r}")
    if not isinstance(arguments, dict) or not all(isinstance(key, str) for key in arguments):
        raise ValueError(f"plugin_args: expected arguments by their names, found {arguments!r}")
    if name == POOL:
        pool = to_dataclass(PoolArguments, arguments, "plugin_args")
        arguments = {key: value for key, value in asdict(pool).items() if value is not None}
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
