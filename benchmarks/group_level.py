"""Measure what the group level costs: seconds of CPU and memory, at a thousand and ten thousand images.

    PYTHONPATH=tests python benchmarks/group_level.py --output benchmarks/results/group_level.md

registers one tiny subject with 28 labels, puts its results under the names of many, with scores of their own, and sums
them up. The pages of the subjects are as large as that of the tiny one.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import nibabel as nb
import numpy as np
from faults import make_data
from scale import LABELS, finish, start
from tiny_bids import describe, make_brain, write_image

COUNTS = (1_000, 10_000)
LINKED = (".nii.gz", ".svg", ".h5")
"""Files that are the same for all subjects; the others hold the subject's name."""


def make_labels(path: Path) -> None:
    """Cut the tiny brain into labels of one size."""
    brain = make_brain()
    inside = brain.get_fdata() > 0
    labels = np.zeros(brain.shape, np.uint8)
    labels[inside] = np.arange(inside.sum()) * LABELS // inside.sum() + 1
    write_image(nb.Nifti1Image(labels, brain.affine), path)


def register_one(folder: Path) -> Path:
    """Register a tiny subject, and return the output directory."""
    make_data(folder)
    describe(folder / "labels", "derivative")
    make_labels(folder / "labels/sub-01/anat/sub-01_dseg.nii.gz")
    make_labels(folder / "tpl-tiny_seg-core_dseg.nii.gz")
    names = "".join(f"{label}\tPart {label}\n" for label in range(1, LABELS + 1))
    (folder / "tpl-tiny_seg-core_dseg.tsv").write_text(f"index\tname\n{names}")
    options = [
        "--template",
        folder / "tpl-tiny_T1w.nii.gz",
        "--template-dseg",
        folder / "tpl-tiny_seg-core_dseg.nii.gz",
    ]
    options += ["-d", f"labels={folder / 'labels'}", "--model", folder / "tiny.safetensors", "--refine", "0"]
    folders = [folder / "raw", folder / "one", "participant", "-w", folder / "work", "--participant-label", "01"]
    command = [sys.executable, "-m", "mmln_pipeline.bids_app", *folders, *options, "--nprocs", "1", "--device", "cpu"]
    subprocess.run(list(map(str, command)), check=True, stdout=subprocess.DEVNULL, cwd=tempfile.gettempdir())
    return folder / "one"


def multiply(one: Path, raw: Path, out: Path, count: int) -> None:
    """Put the results of the subject under the names of many."""
    describe(raw)
    out.mkdir()
    generator = np.random.default_rng(0)
    for path in one.iterdir():
        if path.is_file() and not path.name.startswith("sub-01"):
            os.link(path, out / path.name)
    own = [path for path in one.rglob("*sub-01*") if path.is_file()]
    for number in range(1, count + 1):
        name = f"sub-{number:05}"
        (raw / name / "anat").mkdir(parents=True)
        for path in own:
            target = out / str(path.relative_to(one)).replace("sub-01", name)
            target.parent.mkdir(parents=True, exist_ok=True)
            if path.name.endswith(LINKED):
                os.link(path, target)
                continue
            text = path.read_text().replace("sub-01", name)
            is_record = path.name.endswith("_qc.json")
            target.write_text(json.dumps(shake(json.loads(text), generator)) if is_record else text)


def shake(record: Any, generator: np.random.Generator) -> Any:
    """Change each number of a record that is no count by some hundredths."""
    if isinstance(record, dict):
        return {key: shake(value, generator) for key, value in record.items()}
    return abs(record + generator.normal(0, 0.03)) if isinstance(record, float) else record


def main() -> None:
    """Measure, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="table to write")
    options = parser.parse_args()
    lines = ["| images | CPU-seconds | MB |", "|---:|---:|---:|"]
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        one = register_one(root / "data")
        for count in COUNTS:
            raw, out = root / f"raw-{count}", root / f"out-{count}"
            multiply(one, raw, out, count)
            template = root / "data/tpl-tiny_T1w.nii.gz"
            command = ["-m", "mmln_pipeline.bids_app", raw, out, "group", "--template", template]
            seconds, megabytes = finish(start(Path(sys.executable), command))
            lines.append(f"| {count:,} | {seconds:,.0f} | {megabytes:,.0f} |")
            print(lines[-1], flush=True)
    options.output.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
