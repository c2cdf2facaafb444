"""Network weights: the bundled models, their cards, and loading them by name or path."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import date
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from mmln_pipeline.machine.files import atomic_path, checksum, write_text
from mmln_pipeline.machine.toml import to_dataclass
from mmln_pipeline.network.architecture import NetworkConfig
from mmln_pipeline.network.model import MMLN

FOLDER = Path(__file__).parent
OPEN = "mmln-open"
"""The bundled weights without a restriction of use."""


def list_models() -> list[dict[str, Any]]:
    """Return the cards of the bundled models, each with its ``path``, sorted by name."""
    return [_read_card(path) | {"path": str(path)} for path in sorted(FOLDER.glob("*.safetensors"))]


def resolve_model(name_or_path: str | Path) -> Path:
    """Find a model's weights without loading them.

    Parameters
    ----------
    name_or_path : str or Path
        Name of a bundled model, or a ``.safetensors`` file with its ``.json`` card beside it.

    Returns
    -------
    Path

    Raises
    ------
    ValueError
        When no bundled model has the name.
    FileNotFoundError
        When a path is given and the weights or their card are missing.
    """
    name = str(name_or_path)
    if name.endswith(".safetensors"):
        path = Path(name)
        for needed in (path, path.with_suffix(".json")):
            if not needed.is_file():
                raise FileNotFoundError(f"model: no such file: {needed}")
        return path
    path = FOLDER / f"{name}.safetensors"
    if not path.is_file():
        known = ", ".join(p.stem for p in sorted(FOLDER.glob("*.safetensors"))) or "none"
        raise ValueError(f"model: unknown name {name!r}; bundled are {known}, or give the path of a .safetensors file")
    return path


def restriction(name: str, licence: str) -> str:
    """Say in a line what weights may not be used for.

    Parameters
    ----------
    name : str
        Of the model.
    licence : str
        As its card states it.

    Returns
    -------
    str
        Empty where the licence restricts no use.
    """
    if "-NC" not in licence:
        return ""
    return f"the weights {name} are for non-commercial use ({licence}); {OPEN}, by --model, is for any use"


def read_licence(name_or_path: str | Path) -> str:
    """Return the licence that the card of a model states, or an empty text; see :func:`resolve_model`."""
    return str(_read_card(resolve_model(name_or_path))["license"])


def read_config(name_or_path: str | Path) -> NetworkConfig:
    """Read the shape of a model's network from its card.

    Parameters
    ----------
    name_or_path : str or Path
        See :func:`resolve_model`.

    Returns
    -------
    NetworkConfig

    Raises
    ------
    ValueError, FileNotFoundError
        When there is no such model, or its card lacks something or describes another network.
    """
    path = resolve_model(name_or_path)
    return _parse_config(_read_card(path), path)


def load_model(name_or_path: str | Path, device: torch.device | str = "cpu") -> tuple[MMLN, dict[str, Any]]:
    """Load a network and its card.

    Parameters
    ----------
    name_or_path : str or Path
        See :func:`resolve_model`.
    device : torch.device or str, default="cpu"

    Returns
    -------
    model : MMLN
        In evaluation mode.
    card : dict
        ``name``, ``license``, ``sha256``, ``network``, ``training``, ``scores``, ``version``.

    Raises
    ------
    ValueError
        When the name is unknown, the card lacks something or describes another network, or the file is not
        safetensors, holds numbers that are not finite, or has another checksum than its card's.
    FileNotFoundError
        When a path is given and the weights or their card are missing.
    """
    path = resolve_model(name_or_path)
    card = _read_card(path)
    found = checksum(path)
    if found != card["sha256"]:
        raise ValueError(f"model: {path} has SHA-256 {found[:12]}..., its card says {card['sha256'][:12]}...")
    config = _parse_config(card, path)
    with torch.device("meta"):  # shapes alone: they are compared before memory is taken
        expected = {name: tuple(own.shape) for name, own in MMLN(config).state_dict().items()}
    tensors = _read_tensors(path, expected)
    model = MMLN(config)
    model.load_state_dict(tensors)
    return model.eval().to(device), card


def _parse_config(card: Mapping[str, Any], path: Path) -> NetworkConfig:
    """Return the shape of the network that a card, that of the weights at a path, describes."""
    try:
        return to_dataclass(NetworkConfig, card["network"], "network")
    except ValueError as error:
        raise ValueError(f"model card {path.with_suffix('.json')}: {error}") from error


def _read_tensors(path: Path, expected: Mapping[str, tuple[int, ...]]) -> dict[str, torch.Tensor]:
    """Read the weights of a network whose tensors have the shapes expected."""
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"model: {path} is not a safetensors file: {error}") from error
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    for name in sorted({*expected, *found}):
        if expected.get(name) != found.get(name):
            shapes = (str(shapes.get(name, "no such tensor")) for shapes in (expected, found))
            raise ValueError("model: {}: {}: expected, by its card, {}, found {}".format(path, name, *shapes))
        if not tensors[name].isfinite().all():
            raise ValueError(f"model: {path}: {name}: expected finite numbers, found others")
    return tensors


def save_model(model: MMLN, path: Path, card: dict[str, Any]) -> None:
    """Write a network's weights and their card, atomically.

    Parameters
    ----------
    model : MMLN
    path : Path
        ``.safetensors`` file; the card goes beside it as ``.json``.
    card : dict
        What the training knows; network, checksum, code version and date are added.
    """
    with atomic_path(path) as temporary:
        temporary.write_bytes(save({key: value.contiguous().cpu() for key, value in model.state_dict().items()}))
    save_card(model, path, card)


def save_card(model: MMLN, path: Path, card: dict[str, Any]) -> None:
    """Write the card of weights that are on the disk, atomically.

    Parameters
    ----------
    model : MMLN
        As saved.
    path : Path
        ``.safetensors`` file.
    card : dict
        As for :func:`save_model`.
    """
    from mmln_pipeline import __version__

    full = card | {
        "network": model.config.asdict(),
        "silent_levels": silent_levels(model),
        "sha256": checksum(path),
        "version": __version__,
        "date": date.today().isoformat(),
    }
    write_text(path.with_suffix(".json"), json.dumps(full, indent=1) + "\n")


def silent_levels(model: MMLN) -> list[int]:
    """Return the levels, from 1, that add nothing, since their last convolution is still zero."""
    return [level for level in range(1, model.config.levels + 1) if not model.subnet(level).head.weight.any()]


def _read_card(path: Path) -> dict[str, Any]:
    """Read the card beside weights; what is read of it later must be there, in its form."""
    card = path.with_suffix(".json")
    try:
        content: Any = json.loads(card.read_text(encoding="utf-8-sig"))
    except ValueError as error:  # of decoding, or json.JSONDecodeError
        raise ValueError(f"model card {card}: not JSON: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"model card {card}: expected an object, found {content!r}")
    for key, kind, words in (("network", dict, "an object"), ("name", str, "text"), ("sha256", str, "text")):
        if key not in content:
            raise ValueError(f"model card {card}: no {key!r}")
        if not isinstance(content[key], kind):
            raise ValueError(f"model card {card}: {key}: expected {words}, found {content[key]!r}")
    return content | {"license": str(content.get("license") or "")}
