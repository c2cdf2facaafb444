"""Set a GPU beside the CPU of the same build and machine: warps, seconds, memory, and images an hour of `mmln-bids`.

Meant to take at most 8 minutes on one GPU and 16 cores (`--images` says how many heads); the table is written again
after every row, so that a run that is cut short leaves what it has. Bars: the network under 60 ms, refined under 2 s,
20 times the images an hour of two cores. Idle threads sleep as in the package's commands where OMP_WAIT_POLICY says so.

Example:
OMP_WAIT_POLICY=PASSIVE python benchmarks/gpu.py ../shared/bench --heads ../shared/data/fsheads
    --output benchmarks/results
Where there is no GPU, to try the script itself: --device cpu --repetitions 1, without --heads.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import shlex
import shutil
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from speed import measure

from mmln_pipeline import QualityWarning, RegistrationResult, register
from mmln_pipeline.images import volumes
from mmln_pipeline.machine import devices
from mmln_pipeline.machine.files import write_text
from mmln_pipeline.network.model import MMLN
from mmln_pipeline.space.displacements import displacement_to_voxels
from mmln_pipeline.weights import load_model

WARM_UP = 3
"""Calls on a GPU that come before those that count: libraries are loaded, and choose their algorithms."""
MODES: dict[str, int | str] = {"network only": 0, "refined": "auto"}
STAGES = ("network", "refine", "topology", "resample", "score", "total")
"""Of a registration's seconds, those that are told."""


class Table:
    """Rows of what was measured on a device and on the CPU, written to a file as they come."""

    def __init__(self, path: Path, device: str) -> None:
        self.path, self.device = path, device
        self.rows: list[dict[str, Any]] = []

    def add(self, what: str, here: float, cpu: float = math.nan, faster: float = math.nan) -> None:
        """Add a row: the values of the device and of the CPU, and how many times as fast the device is."""
        self.rows.append({"what": what, self.device: here, "CPU": cpu, "times as fast": faster})
        frame = pd.DataFrame(self.rows).astype(object)
        table = frame.where(frame.notna(), None).to_markdown(index=False, floatfmt=".4g", missingval="")
        name = torch.cuda.get_device_name() if self.device == "cuda" else "no GPU"
        note = f"{name}; {count_cores()} cores, {platform.machine()}; PyTorch {torch.__version__}. Times are medians."
        write_text(self.path, f"{table}\n\n{note}\n")
        print({key: value for key, value in self.rows[-1].items() if value == value}, flush=True)


def count_cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0))


def find_pair(bench: Path) -> dict[str, Path]:
    """Return the images of a bench folder's first pair, and their labels where both have some."""
    pair = pd.read_csv(bench / "pairs.tsv", sep="\t", dtype=str).iloc[0]
    roles = ("fixed", "moving")
    labels = {f"{role}_dseg": bench / "aligned" / f"{pair[role]}_dseg.nii.gz" for role in roles}
    images = {role: bench / "aligned" / f"{pair[role]}_T1w.nii.gz" for role in roles}
    return images | (labels if all(path.is_file() for path in labels.values()) else {})


# ------------------------------------------------------------------------------------------------ registrations


def register_often(pair: dict[str, Path], times: int, **settings: Any) -> tuple[RegistrationResult, dict[str, float]]:
    """Register a pair several times; return the last result, and the median seconds of each stage."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", QualityWarning)  # the warps are compared, whatever they are worth
        results = [register(**pair, init="identity", **settings) for _ in range(times)]
    seconds = [result.metrics["seconds"] for result in results]
    return results[-1], {stage: statistics.median(each[stage] for each in seconds) for stage in STAGES}


def compare_registrations(table: Table, pair: dict[str, Path], model: str, times: int) -> None:
    """Register on the device and on the CPU: how far the warps are apart, labels, seconds and memory."""
    first, _ = register_often(pair, 1, model=model, refine=0, device=table.device)  # libraries are loaded
    inside = first.fixed.get_fdata() > 0
    for mode, refine in MODES.items():
        here, seconds = register_often(pair, times, model=model, refine=refine, device=table.device)
        cpu, cpu_seconds = register_often(pair, 1, model=model, refine=refine, device="cpu")
        there, expected = (displacement_to_voxels(result.warp) for result in (here, cpu))
        apart = np.linalg.norm(there - expected, axis=0)[inside]
        table.add(f"{mode}: warps apart in the brain, median, voxels", float(np.median(apart)))
        table.add(f"{mode}: warps apart in the brain, largest, voxels", float(apart.max()))
        if here.metrics["dice"] is not None:
            table.add(f"{mode}: Dice", here.metrics["dice"], cpu.metrics["dice"])
        for stage in STAGES:
            if cpu_seconds[stage] >= 1e-3:
                ratio = cpu_seconds[stage] / seconds[stage]
                table.add(f"{mode}: {stage}, s", seconds[stage], cpu_seconds[stage], ratio)
        if "peak_gpu_memory_mb" in here.metrics:
            table.add(f"{mode}: peak memory of the GPU, MiB", here.metrics["peak_gpu_memory_mb"])


# ------------------------------------------------------------------------------------------------ the network alone


def load_tensors(pair: dict[str, Path], model: MMLN) -> list[torch.Tensor]:
    """Return both images on the network's whole grid, shape (1, 1, I, J, K): the largest box of any brains."""
    images = [volumes.load_image(pair[role], role) for role in ("fixed", "moving")]
    grid = volumes.network_grid(images[0], shape=model.config.grid)
    arrays = [volumes.normalize_intensity(volumes.conform(image, grid).get_fdata()) for image in images]
    return [torch.from_numpy(array)[None, None] for array in arrays]


def predict(model: MMLN, images: Sequence[torch.Tensor], finest: bool) -> tuple[torch.Tensor, ...]:
    """Run the network as a registration does: without refinement it runs the finest level, too."""
    with torch.no_grad(), devices.autocast(images[0].device):
        return model(*images, finest=finest)


def time_call(call: Callable[[], object], device: torch.device, times: int) -> float:
    """Return the median milliseconds of a call, the device's work included."""
    warm_up, seconds = WARM_UP if device.type == "cuda" else 1, []
    for _ in range(warm_up + times):
        begin = time.perf_counter()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - begin)
    return 1000 * statistics.median(seconds[warm_up:])


def capture(call: Callable[[], object]) -> Callable[[], object]:
    """Record a call's kernels as a CUDA graph, and return what launches them all at once."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph.replay


def time_network(table: Table, pair: dict[str, Path], name: str, times: int) -> None:
    """Time the network alone, as registrations call it; on a GPU as a CUDA graph too."""
    of_cpu: dict[str, float] = {}
    for device in map(torch.device, dict.fromkeys(("cpu", table.device))):
        model, _ = load_model(name, device)
        images = [image.to(device) for image in load_tensors(pair, model)]
        for what, finest in (("before refinement", False), ("all levels", True)):
            call, is_gpu = partial(predict, model, images, finest), device.type == "cuda"
            taken = time_call(call, device, times if is_gpu else 1)
            cpu = of_cpu.setdefault(what, taken)
            if device.type == table.device:
                table.add(f"network, {what}, ms", taken, cpu, cpu / taken)
            if is_gpu:
                try:
                    taken = time_call(capture(call), device, times)
                except RuntimeError as error:  # what cannot be captured shall not cost the rest
                    print(f"no CUDA graph: {error}", file=sys.stderr)
                else:
                    table.add(f"network, {what}, as a CUDA graph, ms", taken, cpu, cpu / taken)


# ------------------------------------------------------------------------------------------------ mmln-bids


def make_dataset(folder: Path, heads: Sequence[Path], count: int) -> Path:
    """Make a dataset of so many subjects from heads, which take turns."""
    folder.mkdir()
    (folder / "dataset_description.json").write_text(json.dumps({"Name": "heads", "BIDSVersion": "1.10.0"}))
    for number in range(count):
        path = folder / f"sub-{number + 1:03}" / "anat" / f"sub-{number + 1:03}_T1w.nii.gz"
        path.parent.mkdir(parents=True)
        shutil.copyfile(heads[number % len(heads)], path)
    return folder


def count_images_an_hour(heads: Sequence[Path], count: int, cores: int, threads: int, options: Sequence[str]) -> float:
    """Run `mmln-bids` on so many heads and cores, from command to exit, and return the images an hour."""
    chosen = ",".join(map(str, sorted(os.sched_getaffinity(0))[:cores]))
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        raw = make_dataset(folder / "raw", heads, count)
        folders = [str(raw), str(folder / "out"), "participant", "-w", str(folder / "work")]
        command = ["taskset", "-c", chosen, sys.executable, "-m", "mmln_pipeline.bids_app", *folders]
        command += ["--nprocs", str(cores), "--omp-nthreads", str(threads), *options]
        return 3600 * count / measure(command, threads)["seconds"]


def compare_throughput(table: Table, heads: Sequence[Path], options: argparse.Namespace) -> None:
    """Run `mmln-bids` with the device and all cores, and on two cores alone."""
    further = ["--model", options.model, *shlex.split(options.bids_options)]
    count, few = options.images
    cores, two = count_cores(), min(2, count_cores())
    here = count_images_an_hour(heads, count, cores, options.omp_nthreads, ["--device", table.device, *further])
    table.add(f"mmln-bids, images an hour ({count} on {cores} cores)", here)
    cpu = count_images_an_hour(heads, few, two, two, ["--device", "cpu", *further])
    table.add(f"mmln-bids, images an hour ({few} on {two} cores)", math.nan, cpu, here / cpu)


def main() -> None:
    """Run the benchmark from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bench", type=Path, help="folder of pairs.tsv and aligned/ID_T1w.nii.gz; the first pair counts")
    parser.add_argument("--output", type=Path, required=True, help="folder of gpu.md")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--model", default="mmln", help="name of weights, or their file")
    parser.add_argument("--repetitions", type=int, default=20, help="of the network (default: 20)")
    parser.add_argument("--heads", type=Path, help="BIDS folder of raw heads for mmln-bids; none: without that part")
    parser.add_argument("--images", type=int, nargs=2, default=(32, 2), help="heads on the device, and on two cores")
    parser.add_argument("--omp-nthreads", type=int, default=4, help="threads of a step beside the GPU (default: 4)")
    parser.add_argument("--bids-options", default="", help="further options of mmln-bids, as one text")
    options = parser.parse_args()
    devices.resolve_device(options.device)
    table, pair = Table(options.output / "gpu.md", options.device), find_pair(options.bench)
    heads = sorted(options.heads.glob("sub-*/**/*_T1w.nii.gz")) if options.heads else []
    if options.heads and not heads:
        raise FileNotFoundError(f"--heads {options.heads}: no sub-*/**/*_T1w.nii.gz")
    time_network(table, pair, options.model, options.repetitions)
    compare_registrations(table, pair, options.model, min(3, options.repetitions))
    if heads:
        compare_throughput(table, heads, options)
    print(table.path.read_text())


if __name__ == "__main__":
    main()
