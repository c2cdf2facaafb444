"""Where a registration's time goes: seconds and CPU-seconds of each stage, beside what the machine can do.

Of the network, what its convolutions multiply and add and the bytes that they read and write once. The machine: a
product of matrices in float32 and bfloat16, and a copy of memory, on as many threads.

Example: python benchmarks/stages.py ../shared/bench --threads 2 --output benchmarks/results/stages.md
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor, nn

from mmln_pipeline import register
from mmln_pipeline.machine import devices
from mmln_pipeline.machine.files import write_text
from mmln_pipeline.weights import load_model

SIDE, COPIED = 2048, 2**28
"""Rows of the matrices, and bytes, by which the machine is measured."""


class Marks:
    """Notes when each stage of a registration begins."""

    def __init__(self) -> None:
        self.rows: list[tuple[str, float, float]] = []

    def __call__(self, stage: str, done: int = 0, total: int = 0) -> None:
        """Note the first report of a stage."""
        if not self.rows or self.rows[-1][0] != stage:
            self.rows.append((stage, time.perf_counter(), time.process_time()))

    def table(self) -> pd.DataFrame:
        """Return the seconds and CPU-seconds between the notes, a row a stage."""
        frame = pd.DataFrame(self.rows, columns=["stage", "seconds", "CPU-seconds"])
        spent = frame[["seconds", "CPU-seconds"]].diff().shift(-1)
        return pd.concat([frame["stage"], spent], axis=1)[:-1]


def best_of(call: Callable[[], object], times: int = 5) -> float:
    """Return the seconds of the fastest call."""
    seconds = []
    for _ in range(times):
        begin = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - begin)
    return min(seconds)


def measure_machine() -> dict[str, float]:
    """Return GFLOP/s of products in either precision, and GB/s of a copy, read and written."""
    speeds = {}
    for dtype, name in ((torch.float32, "float32"), (torch.bfloat16, "bfloat16")):
        matrix = torch.rand(SIDE, SIDE).to(dtype)
        speeds[f"{name} product, GFLOP/s"] = 2 * SIDE**3 / best_of(lambda matrix=matrix: matrix @ matrix) / 1e9
    source = torch.rand(COPIED // 4)
    target = torch.empty_like(source)
    speeds["copy, GB/s"] = 2 * COPIED / best_of(lambda: target.copy_(source)) / 1e9
    return speeds


def count_convolutions(fixed: Tensor, moving: Tensor, finest: bool) -> dict[str, float]:
    """Return what the convolutions of the network multiply and add, and read and write once in float32."""
    model = load_model("mmln")[0]
    counted = {"GFLOP": 0.0, "GB": 0.0}

    def count(module: nn.Conv3d | nn.ConvTranspose3d, inputs: tuple[Tensor], output: Tensor) -> None:
        wide = output if isinstance(module, nn.Conv3d) else inputs[0]
        counted["GFLOP"] += 2 * wide.numel() / wide.shape[1] * module.weight.numel() / 1e9
        counted["GB"] += 4 * (inputs[0].numel() + output.numel()) / 1e9

    for module in model.levels.modules():
        if isinstance(module, nn.Conv3d | nn.ConvTranspose3d):
            module.register_forward_hook(count)
    with torch.no_grad():
        model(fixed, moving, finest)
    return counted


def profile(fixed: Path, moving: Path, refine: int | str, threads: int) -> pd.DataFrame:
    """Register a pair and write its files; return the table of its stages."""
    marks = Marks()
    marks("load")
    result = register(fixed, moving, init="identity", refine=refine, threads=threads, device="cpu", progress=marks)
    marks("save")
    with tempfile.TemporaryDirectory() as folder:
        result.save(folder)
        marks("end")
    return marks.table()


def main() -> None:
    """Run the benchmark from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bench", type=Path, help="folder of pairs.tsv and aligned/ID_T1w.nii.gz")
    parser.add_argument("--output", type=Path, required=True, help="Markdown file")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--pairs", type=int, default=3, help="how many pairs; medians are written")
    options = parser.parse_args()
    devices.set_threads(options.threads)
    text = [f"{name}: {speed:.0f}" for name, speed in measure_machine().items()]
    lines = [f"{options.threads} threads; " + ", ".join(text), ""]
    pairs = pd.read_csv(options.bench / "pairs.tsv", sep="\t", dtype=str)[: options.pairs]
    for refine, what in ((0, "Network only"), ("auto", "Refined")):
        tables = [
            profile(
                *(options.bench / "aligned" / f"{name}_T1w.nii.gz" for name in (pair.fixed, pair.moving)),
                refine,
                options.threads,
            )
            for pair in pairs.itertuples()
        ]
        table = pd.concat(tables).groupby("stage", sort=False).median()
        table.loc["all"] = table.sum()
        grid = torch.zeros(1, 1, 160, 192, 224)
        counted = count_convolutions(grid, grid, finest=refine == 0)
        amounts = ", ".join(f"{amount:.0f} {unit}" for unit, amount in counted.items())
        lines.append(f"**{what}**, medians of {len(tables)} pairs; the network's convolutions, whole grid: {amounts}")
        lines += ["", table.reset_index().to_markdown(index=False, floatfmt=".2f"), ""]
    write_text(options.output, "\n".join(lines))
    print("\n".join(lines))


if __name__ == "__main__":
    main()
