"""Checks of a run's settings before any work, and what they find out: template, atlas, weights, device."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from mmln_pipeline import __version__
from mmln_pipeline.bids_app.config import Config, tomllib
from mmln_pipeline.bids_app.parser import UsageError
from mmln_pipeline.devices import resolve_device
from mmln_pipeline.templates import load_template
from mmln_pipeline.weights import load_model
from mmln_pipeline.workflows import Provenance


@dataclass(frozen=True)
class Method:
    """What a run's settings mean on this machine.

    Attributes
    ----------
    provenance : Provenance
        Names, links and checksums for the sidecars.
    atlas : str or None
        Name of the template's labels.
    atlas_table : str or None
        Their numbers and names as the text of a TSV.
    label_names : mapping of int to str
        The same for figures.
    compare_labels : bool
        Whether the scans' labels can be scored against the template's.
    device : str
        `cpu` or `cuda:N`.
    """

    provenance: Provenance
    atlas: str | None
    atlas_table: str | None
    label_names: Mapping[int, str]
    compare_labels: bool
    device: str


def check_paths(config: Config) -> None:
    """Check the folders and files that the options name.

    Raises
    ------
    UsageError
        A folder or file is missing, or an output would land in the raw dataset.
    """
    if not config.bids_dir.is_dir():
        raise UsageError(f"BIDS_DIR {config.bids_dir}: no such folder")
    derivatives = config.bids_dir / "derivatives"
    for name, path in (("OUTPUT_DIR", config.output_dir), ("--work-dir", config.work_dir)):
        if path.exists() and not path.is_dir():
            raise UsageError(f"{name} {path}: expected a folder, found a file")
        if path.is_relative_to(config.bids_dir) and derivatives not in path.parents:
            raise UsageError(
                f"{name} {path}: lies in the raw dataset {config.bids_dir}: choose a folder outside it"
                f" or below {derivatives}"
            )
    if config.work_dir == config.output_dir:
        raise UsageError(f"--work-dir {config.work_dir}: is OUTPUT_DIR: choose another folder")
    for name in ("bids_filter_file", "template_dseg", "use_plugin"):
        path = getattr(config, name)
        if path is not None and not path.is_file():
            raise UsageError(f"--{name.replace('_', '-')} {path}: no such file")
    for name, path in config.derivatives.items():
        if not path.is_dir():
            raise UsageError(f"--derivatives {name}={path}: no such folder")


def prepare_method(config: Config) -> Method:
    """Look up template, atlas, weights and device.

    Parameters
    ----------
    config : Config
        Settings whose paths are checked.

    Returns
    -------
    Method

    Raises
    ------
    UsageError
        The template or the model is unknown or unreadable, the labels are not on the template's grid, or
        the device is absent.
    """
    try:
        device = str(resolve_device(config.device))
        card = load_model(config.model, "cpu")[1]
        template = load_template(config.template, config.template_dseg)
    except (ValueError, OSError) as error:
        raise UsageError(str(error)) from error
    is_file = Path(config.template).is_file()
    provenance = Provenance(
        template=template.name,
        spatial_reference=Path(config.template).as_uri() if is_file else template.name,
        links={"raw": config.bids_dir, **config.derivatives},
        model=card["name"],
        model_sha256=card["sha256"],
        version=__version__,
        parameters={
            "init": config.init,
            "refine": config.refine,
            "topology": config.topology,
            "bias_correction": config.bias_correction,
            "random_seed": config.random_seed,
        },
    )
    text, names = _read_table(template.dseg_table)
    return Method(provenance, template.dseg_name, text, names, config.template_dseg is not None, device)


def _read_table(table) -> tuple[str | None, dict[int, str]]:
    """Return a BIDS label table (columns index and name) as text and as a dictionary."""
    if table is None:
        return None, {}
    names = {int(index): str(name) for index, name in zip(table["index"], table["name"], strict=True)}
    return table.to_csv(sep="\t", index=False, na_rep="n/a", lineterminator="\n"), names


def read_plugin(path: Path) -> dict:
    """Read Nipype's plugin and its arguments.

    Parameters
    ----------
    path : Path
        TOML, JSON or YAML file with `plugin` and `plugin_args`.

    Returns
    -------
    dict
        Arguments of Nipype's `Workflow.run`.

    Raises
    ------
    UsageError
        The file cannot be read, or names no plugin.
    """
    text = path.read_text(encoding="utf-8")
    try:
        content = _parse_settings(text, path.suffix.lower())
    except ValueError as error:
        raise UsageError(f"--use-plugin {path}: {error}") from error
    if not isinstance(content, dict) or not isinstance(content.get("plugin"), str):
        raise UsageError(f"--use-plugin {path}: expected plugin = NAME (and plugin_args)")
    unknown = set(content) - {"plugin", "plugin_args"}
    if unknown or not isinstance(content.get("plugin_args", {}), dict):
        raise UsageError(f"--use-plugin {path}: expected plugin and plugin_args only, found {', '.join(content)}")
    return {"plugin": content["plugin"], "plugin_args": dict(content.get("plugin_args", {}))}


def _parse_settings(text: str, suffix: str):
    """Parse TOML, JSON or YAML by the file's ending; raise ValueError where it is not that."""
    if suffix == ".toml":
        return tomllib.loads(text)
    if suffix == ".json":
        return json.loads(text)
    if suffix in (".yml", ".yaml"):
        import yaml

        try:
            return yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise ValueError(f"not valid YAML: {str(error).splitlines()[0]}") from error
    raise ValueError(f"expected a file ending in .toml, .json or .yml, found {suffix!r}")
