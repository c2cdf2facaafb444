"""Network weights: the bundled models, their cards, and loading them by name or path."""

from __future__ import annotations

import hashlib
import json
from datetime import date
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from mmln_pipeline.machine.files import atomic_path, write_text
from mmln_pipeline.network.model import MMLN, NetworkConfig

FOLDER = Path(__file__).parent


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
        When the name is unknown, the file is not safetensors, or its checksum is not the card's.
    FileNotFoundError
        When a path is given and the weights or their card are missing.
    """
    path = resolve_model(name_or_path)
    card = _read_card(path)
    found = checksum(path)
    if found != card["sha256"]:
        raise ValueError(f"model: {path} has SHA-256 {found[:12]}..., its card says {card['sha256'][:12]}...")
    model = MMLN(NetworkConfig(**card["network"]))
    try:
        with safe_open(path, framework="pt") as tensors:
            model.load_state_dict({key: tensors.get_tensor(key) for key in tensors.keys()})  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"model: {path} is not a safetensors file: {error}") from error
    return model.eval().to(device), card


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
    return [number for number, level in enumerate(model.levels, 1) if not level.head.weight.any()]


def checksum(path: Path) -> str:
    """Return a file's SHA-256 in hexadecimal."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _read_card(path: Path) -> dict[str, Any]:
    card = path.with_suffix(".json")
    try:
        content: dict[str, Any] = json.loads(card.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"model card {card}: not JSON: {error}") from error
    missing = sorted({"name", "sha256", "network"} - set(content))
    if missing:
        raise ValueError(f"model card {card}: no {missing[0]!r}")
    return content
