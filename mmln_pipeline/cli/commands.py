"""What each ``mmln`` command does: check, call the core, save, print a short plain summary."""

from __future__ import annotations

import argparse
import json
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any


def run_evaluate(options: argparse.Namespace) -> None:
    """Score a transform and write the scores."""
    from mmln_pipeline import __version__
    from mmln_pipeline.cli.registering import resolve_fixed
    from mmln_pipeline.machine.files import write_text
    from mmln_pipeline.registration import pair as inputs
    from mmln_pipeline.scores import evaluation, quality
    from mmln_pipeline.space.other_tools import read_any

    start = time.perf_counter()
    output = _check_output_file(options.output, (".json",), "--output")
    resolve_fixed(options)
    pair = inputs.load_pair(
        options.fixed,
        options.moving,
        options.fixed_dseg,
        options.moving_dseg,
        options.labels,
        options.fixed_mask,
    )
    transform = read_any(options.transform, pair.fixed.image, pair.moving.image)
    scores = evaluation.evaluate_transform(
        pair.fixed.image,
        pair.moving.image,
        transform,
        pair.fixed_dseg,
        pair.moving_dseg,
        pair.labels,
        pair.fixed.mask,
    )
    scores["headers"] = pair.headers
    scores |= {
        "qc": quality.judge(scores),
        "transform": Path(options.transform).name,
        "seconds": {"total": time.perf_counter() - start},
        "version": __version__,
    }
    scores = evaluation.jsonable(scores)
    write_text(output, json.dumps(scores, indent=2, allow_nan=False) + "\n")
    print_scores(scores)
    print(f"Written to {output}")


def run_train(options: argparse.Namespace) -> None:
    """Train from a configuration file."""
    from mmln_pipeline.machine.devices import resolve_device

    if find_spec("lightning") is None:
        raise ValueError("mmln train: expected the package lightning, found none: pip install 'mmln-pipeline[train]'.")
    from mmln_pipeline import training

    if not Path(options.config).is_file():
        raise FileNotFoundError(f"Configuration '{options.config}' is not a file; give the path of a TOML file.")
    resolve_device(options.device)
    training.train(options.config, minutes=options.minutes, device=options.device, resume=True)


def run_compare(options: argparse.Namespace) -> int:
    """Run a study and write its tables and figures; 1 where a pair has no scores."""
    from mmln_pipeline.study import compare

    config = Path(options.config)
    output_dir = None if options.output_dir is None else Path(options.output_dir).resolve()
    if options.reports_only:
        outcome = compare.report_study(config, output_dir)
    else:
        plugin = None if options.use_plugin is None else compare.read_plugin(Path(options.use_plugin))
        outcome = compare.run_study(config, output_dir, options.nprocs, plugin)
    for path in outcome.written:
        print(f"Written {path}")
    for name, cause in outcome.failed.items():
        print(f"mmln: no scores of {name}: {cause}", file=sys.stderr)
    return 1 if outcome.failed else 0


def run_models(options: argparse.Namespace) -> None:
    """Print the bundled models, as a table or as JSON."""
    from mmln_pipeline import weights

    cards = weights.list_models()
    if options.json:
        print(json.dumps(cards, indent=2, default=str))
        return
    if not cards:
        print("No model is bundled with this installation; 'mmln train' makes one.")
    for card in cards:
        print(card["name"])
        for name, value in _card_lines(card):
            print(f"  {name:<10} {value}")


def _card_lines(card: dict[str, Any]) -> list[tuple[str, str]]:
    return [
        ("licence", card.get("license") or "not stated"),
        ("training", _sum_up(card.get("training") or {})),
        ("scores", _flat(card.get("scores") or {})),
        ("sha256", card["sha256"]),
        ("card", str(Path(card["path"]).with_suffix(".json"))),
    ]


def _sum_up(training: dict[str, Any]) -> str:
    """Say how much training went into a model: the run that made it, and those that it continued from."""
    runs = [*training.get("before", []), training]
    steps, hours = (sum(sum(run.get(name, {}).values()) for run in runs) for name in ("steps", "hours"))
    return f"{len(training.get('volumes', []))} volumes, {steps:,} steps, {hours:.1f} h"


def _flat(value: Any) -> str:
    """Put a part of a card on one line."""
    if isinstance(value, dict):
        return ", ".join(f"{name} {_flat(item)}" for name, item in value.items()) or "none"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def print_scores(scores: dict[str, Any]) -> None:
    """Print the scores that are there, one a line, and a warning where the quality check did not pass."""
    from mmln_pipeline.registration.result import describe_doubt

    if scores["dice"] is not None:
        count = len(scores["dice_per_label"])
        before = "" if scores["dice_before"] is None else f", {scores['dice_before']:.3f} before the warp"
        print(f"Dice       {scores['dice']:.3f} (mean of {count} structures{before})")
        print(f"HD95       {_number(scores['hd95_mm'], '.2f', ' mm')}")
    if scores["tc"] is not None:
        print(f"TC         {scores['tc']:.3f}")
    brain, whole = scores["folding_percent_brain"], scores["folding_percent"]
    print(f"Folds      {_number(brain, '.4f', '%')} of the brain, {_number(whole, '.4f', '%')} of the grid")
    print(f"NDV        {_number(scores['ndv_percent'], '.4f', '%')} of the grid")
    print(f"Quality    {scores['qc']['verdict']}")
    doubt = describe_doubt(scores)
    if doubt:
        print(f"mmln: warning: {doubt}", file=sys.stderr)


def _number(value: float | None, form: str, unit: str) -> str:
    return "n/a" if value is None else f"{value:{form}}{unit}"


def _check_output_file(path: str, suffixes: tuple[str, ...], option: str) -> Path:
    output = Path(path)
    if not output.name.endswith(suffixes):
        raise ValueError(f"{option}: expected a name that ends in {' or '.join(suffixes)}, found '{path}'.")
    if output.is_dir():
        raise ValueError(f"{option}: '{path}' is a folder; give the name of a file.")
    return output
