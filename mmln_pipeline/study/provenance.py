"""Where the weights of a row come from: what their card tells of the training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mmln_pipeline.study.methods import LearnedMethod, Method
from mmln_pipeline.weights import FOLDER


def read_training(model: str, root: Path) -> dict[str, Any]:
    """Return what the card of some weights tells of their training.

    Parameters
    ----------
    model : str
        A bundled name, or a file beside whose weights lies a card.
    root : Path
        Folder that relative paths start from.

    Returns
    -------
    dict
        Empty without a card.
    """
    bundled = FOLDER / f"{model}.json"
    card = bundled if bundled.is_file() else (root / model).with_suffix(".json")
    if not card.is_file():
        return {}
    content = json.loads(card.read_text(encoding="utf-8"))
    return dict(content.get("training") or {}) if isinstance(content, dict) else {}


def learned_from(method: Method, root: Path) -> list[str]:
    """Return the names of the volumes that the card of a method's weights lists, of training and of validation."""
    runs = _runs(method, root)
    return [str(name) for run in runs for key in ("volumes", "validation") for name in run.get(key) or []]


def training_facts(method: Method, root: Path) -> dict[str, float | None]:
    """Return how long a method's weights were trained, and how much memory that took, as far as their card tells.

    Parameters
    ----------
    method : Method
    root : Path
        Folder that relative paths start from.

    Returns
    -------
    dict
        ``gradient_updates``, ``training_seconds`` and ``training_memory_mb``; None where nothing is known.
    """
    runs = _runs(method, root)
    parts = [part for run in runs for part in (run, *(run.get("stages") or [])) if isinstance(part, dict)]
    peaks = [float(part["peak_memory_mb"]) for part in parts if part.get("peak_memory_mb") is not None]
    hours, seconds = _total(runs, "hours"), [run["seconds"] for run in runs if "seconds" in run]
    return {
        "gradient_updates": _updates(runs),
        "training_seconds": sum(seconds) if seconds else None if hours is None else 3600 * hours,
        "training_memory_mb": max(peaks, default=None),
    }


def weights_file(method: Method, root: Path) -> Path | None:
    """Return the weights that a row names, bundled or of a file; None for a method without."""
    if not isinstance(method, LearnedMethod) or not method.is_trained:
        return None
    bundled = FOLDER / f"{method.settings.model}.safetensors"
    return bundled if bundled.is_file() else root / str(method.settings.model)


def _runs(method: Method, root: Path) -> list[dict[str, Any]]:
    """Return the runs that made a method's weights, the first one first."""
    if not isinstance(method, LearnedMethod) or not method.is_trained:
        return []
    training = read_training(str(method.settings.model), root)
    return [*training.get("before", []), training] if training else []


def _updates(runs: list[dict[str, Any]]) -> float | None:
    """Return the updates of a training: its steps, unless MMLN ran levels again, each of which is an update then."""
    schedules = [run.get("config", {}).get("network", {}).get("schedule", []) for run in runs]
    runs_again = any(len(set(schedule)) < len(schedule) for schedule in schedules)
    is_told = not runs_again and all("config" in run or "optimization" in run for run in runs)
    return _total(runs, "steps") if is_told else None


def _total(runs: list[dict[str, Any]], key: str) -> float | None:
    """Return the sum of what each run spent, on all its stages."""
    found = [value for run in runs for value in (run.get(key) or {}).values()]
    return sum(found) if found else None
