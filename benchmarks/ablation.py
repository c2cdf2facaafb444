"""Train and score variants of a small recipe that differ in one thing each: what every part of the method brings.

A run that has finished is not repeated, and one that was stopped goes on. Every run's configuration, log, weights and
card stay in the folder of runs; the tables say what each variant reached on the validation pairs.

Example: python benchmarks/ablation.py configs/ablation.toml --runs runs/ablation --output benchmarks/results
"""

from __future__ import annotations

import argparse
import platform
import time
from pathlib import Path
from typing import Any

import pandas as pd
import tomli_w
import torch

from mmln_pipeline.machine.devices import autocast
from mmln_pipeline.machine.files import write_text
from mmln_pipeline.machine.toml import read_toml
from mmln_pipeline.network.model import MMLN
from mmln_pipeline.training import train
from mmln_pipeline.training.config import TrainConfig, load_config
from mmln_pipeline.training.data import load_pack, validation_pairs
from mmln_pipeline.training.validation import validate
from mmln_pipeline.weights import load_model

CPU = torch.device("cpu")


def list_runs(plan: dict[str, Any], root: Path) -> list[tuple[str, int, dict[str, Any]]]:
    """Return each variant's name, seed and configuration, the base first; paths become absolute."""
    plan["base"]["data"]["pack"] = str((root / plan["base"]["data"]["pack"]).resolve())
    variants = {"base": {}, **plan["variants"]}
    return [
        (name, seed, merge(plan["base"], changes) | {"seed": seed})
        for seed in plan["seeds"]
        for name, changes in variants.items()
    ]


def merge(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Return a configuration with some values of its tables, or all its stages, replaced.

    Examples
    --------
    >>> merge({"name": "a", "loss": {"theta": 0, "beta": 1}}, {"loss": {"theta": 2}})
    {'name': 'a', 'loss': {'theta': 2, 'beta': 1}}
    """
    return base | {key: base.get(key, {}) | value if key != "stages" else value for key, value in changes.items()}


def folder_name(name: str, seed: int) -> str:
    """Return a run's folder.

    Examples
    --------
    >>> folder_name("added velocities (paper)", 2)
    'added-velocities-paper-2'
    """
    return "-".join(["".join(c for c in word if c.isalnum()) for word in name.split()] + [str(seed)])


@torch.no_grad()
def score(model: MMLN, config: TrainConfig) -> dict[str, float]:
    """Return the means over the validation pairs, and how long the network takes for one pair once it has run.

    Levels that are never taught are left out.
    """
    volumes = load_pack(Path(config.data.pack), "validation", CPU, config.data.halvings)
    levels = max(level for stage in config.stages for level in stage.levels)
    fixed, moving = (volume.image[None].float() / 255 for volume in validation_pairs(volumes)[0])
    with autocast(CPU):
        scores = validate(model, volumes, levels)
        begin = time.perf_counter()
        model.run(fixed, moving, levels)
    return scores | {"seconds": time.perf_counter() - begin}


def main() -> None:
    """Run the ablation from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("plan", type=Path, help="TOML file: seeds, [base] and [variants.NAME] with what they change")
    parser.add_argument("--runs", type=Path, required=True, help="folder of the trained runs")
    parser.add_argument("--output", type=Path, required=True, help="folder of ablation{.tsv,.md}")
    options = parser.parse_args()
    plan = read_toml(options.plan)
    rows: list[dict[str, Any]] = []
    for name, seed, settings in list_runs(plan, options.plan.parent):
        path = options.runs / folder_name(name, seed) / "config.toml"
        write_text(path, tomli_w.dumps(settings))
        model, _ = load_model(train(path, device="cpu"))
        config = load_config(path)
        if not rows:
            rows.append({"variant": "untrained", "seed": seed, **score(MMLN(config.network), config)})
        rows.append({"variant": name, "seed": seed, **score(model, config)})
        print({k: round(v, 4) if isinstance(v, float) else v for k, v in rows[-1].items()}, flush=True)
    frame = pd.DataFrame(rows)
    write_text(options.output / "ablation.tsv", frame.to_csv(sep="\t", index=False, float_format="%.5f"))
    means = frame.drop(columns="seed").groupby("variant", sort=False).mean()
    spread = frame.groupby("variant", sort=False)["dice"].agg(lambda values: values.max() - values.min())
    means.insert(1, "dice_range", spread)
    machine = f"{platform.machine()}, {torch.get_num_threads()} threads, PyTorch {torch.__version__}"
    note = f"Means over the validation pairs and seeds {plan['seeds']}; dice_range: between the seeds. {machine}.\n"
    write_text(options.output / "ablation.md", means.to_markdown(floatfmt=".4f") + f"\n\n{note}")
    print(means.to_markdown(floatfmt=".4f"))


if __name__ == "__main__":
    main()
