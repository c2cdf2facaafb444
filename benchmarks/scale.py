"""Measure what many subjects cost before the first registration, and at the group level: seconds of CPU and memory.

    python benchmarks/scale.py --against OTHER/.venv/bin/python --output benchmarks/results/scale.md

makes a dataset of tiny images in a temporary folder, and runs on it another checkout and this one, side by side.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import nibabel as nib
import numpy as np

SUBJECTS = 10_000
BUILT = 300
"""Subjects whose first step is waited for in the other checkout, which may build all of them before it."""
GROUP = (20, 60)
"""Label images whose agreement is measured."""
SHAPE, LABELS = (193, 229, 193), 28
AGREE = """
import sys
from pathlib import Path
from mmln_pipeline.group.agreement import label_agreement
label_agreement({path.name: path for path in sorted(Path(sys.argv[1]).iterdir())[: int(sys.argv[2])]})
"""
Cost = tuple[float, float]
"""CPU-seconds and peak MB."""


def make_dataset(root: Path, count: int) -> None:
    """Make subjects with one tiny image each, which all share."""
    root.mkdir()
    (root / "dataset_description.json").write_text(json.dumps({"Name": "many", "BIDSVersion": "1.10.0"}))
    image = root.parent / f"{root.name}.nii.gz"
    voxels = np.random.default_rng(0).random((9, 10, 11), dtype=np.float32)
    nib.save(nib.Nifti1Image(voxels, np.diag([20, 20, 20, 1])), image)
    for number in range(1, count + 1):
        folder = root / f"sub-{number:05}" / "anat"
        folder.mkdir(parents=True)
        os.link(image, folder / f"sub-{number:05}_T1w.nii.gz")


def make_labels(folder: Path, count: int) -> None:
    """Make label images of a head's size: one brain, moved by up to three voxels along each axis."""
    folder.mkdir()
    axes = np.meshgrid(*(np.linspace(-1, 1, n, dtype=np.float32) for n in SHAPE), indexing="ij")
    generator = np.random.default_rng(0)
    nearest, labels = np.full(SHAPE, np.inf, np.float32), np.zeros(SHAPE, np.int16)
    for label, seed in enumerate(generator.uniform(-0.6, 0.6, (LABELS, 3)).astype(np.float32), 1):
        distance = sum((axis - place) ** 2 for axis, place in zip(axes, seed, strict=True))
        closer = distance < nearest
        nearest[closer], labels[closer] = distance[closer], label
    labels[sum(axis**2 for axis in axes) > 0.6] = 0
    for number in range(count):
        moved = np.roll(labels, generator.integers(-3, 4, 3), (0, 1, 2))
        nib.save(nib.Nifti1Image(moved, np.eye(4)), folder / f"sub-{number:05}_dseg.nii.gz")


def start(python: Path, command: Sequence[object]) -> subprocess.Popen:
    """Start a checkout's Python on one thread, where no other package of that name lies."""
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "cwd": tempfile.gettempdir()}
    return subprocess.Popen([str(python), *map(str, command)], env=os.environ | {"OMP_NUM_THREADS": "1"}, **quiet)


def finish(process: subprocess.Popen) -> Cost:
    """Wait for a process, and return what it cost."""
    _, _, used = os.wait4(process.pid, 0)
    return used.ru_utime + used.ru_stime, used.ru_maxrss / 1024


def plan(python: Path, raw: Path, *options: str) -> Cost:
    """Plan a dataset from nothing."""
    folders = [raw, raw.parent / "out", "participant", "-w", raw.parent / "work"]
    return finish(start(python, ["-m", "mmln_pipeline.bids_app", *folders, "--dry-run", *options]))


def begin(python: Path, raw: Path) -> Cost:
    """Run until the first step of the first scan has begun."""
    with tempfile.TemporaryDirectory(dir=raw.parent) as folder:
        work = Path(folder, "work")
        folders = [raw, Path(folder, "out"), "participant", "-w", work, "--nprocs", "2", "--device", "cpu"]
        process = start(python, ["-m", "mmln_pipeline.bids_app", *folders])
        while process.poll() is None and not any(work.glob("mmln_*/sub_*/*/*/_report")):
            time.sleep(0.2)
        process.terminate()
        return finish(process)


def agree(python: Path, folder: Path, count: int) -> Cost:
    """Measure the agreement of labels."""
    return finish(start(python, ["-c", AGREE, folder, count]))


def main() -> None:
    """Measure, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--against", type=Path, required=True, help="Python of the other checkout")
    parser.add_argument("--output", type=Path, required=True, help="table to write")
    options = parser.parse_args()
    lines = ["| | CPU-seconds before | and now | MB before | and now |", "|---|---:|---:|---:|---:|"]
    with tempfile.TemporaryDirectory() as folder:
        few, some, many, labels = (Path(folder, name) for name in ("few", "some", "many", "labels"))
        for root, count in ((few, 2), (some, BUILT), (many, SUBJECTS)):
            make_dataset(root, count)
        make_labels(labels, max(GROUP))
        one = ("--participant-label", "00001")
        tasks: dict[str, Callable[[Path], Cost]] = {
            "plan 1 subject of 2": lambda python: plan(python, few, *one),
            f"plan 1 subject of {SUBJECTS:,}": lambda python: plan(python, many, *one),
            f"plan {SUBJECTS:,} subjects": lambda python: plan(python, many),
            f"begin the first step of {BUILT} subjects": lambda python: begin(python, some),
            **{f"agreement of {n} label images": partial(agree, folder=labels, count=n) for n in GROUP},
        }
        for name, task in tasks.items():
            before, now = task(options.against), task(Path(sys.executable))
            lines.append(f"| {name} | {before[0]:.0f} | {now[0]:.0f} | {before[1]:,.0f} | {now[1]:,.0f} |")
            print(lines[-1], flush=True)
        now = begin(Path(sys.executable), many)  # the other one would build the graph of all for a quarter of an hour
        lines.append(f"| begin the first step of {SUBJECTS:,} subjects | | {now[0]:.0f} | | {now[1]:,.0f} |")
    options.output.write_text("\n".join(lines) + "\n")
    print(options.output.read_text())


if __name__ == "__main__":
    main()
