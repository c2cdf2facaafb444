"""Spoil an image more and more and register it: Dice against the strength of each defect, and what the check says.

The moving image gets a bias field, noise, another contrast, thicker voxels, a turn or a shift, one at a time; the
fixed one stays as it is. Both are skull-stripped and labelled, in the Neuromorphometrics numbering.

What the committed results were made by, with the T1w and dseg of OASIS's sub-OAS10101 (F) and sub-OAS10091 (M), ses-01:
python benchmarks/robustness.py F_T1w.nii.gz F_dseg.nii.gz M_T1w.nii.gz M_dseg.nii.gz --output benchmarks/results
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import matplotlib.pyplot as plt
import nibabel as nib
import numpy as np
import pandas as pd
from nibabel import Nifti1Image
from nibabel.affines import from_matvec
from nibabel.processing import resample_to_output
from scipy import ndimage
from scipy.spatial.transform import Rotation

from mmln_pipeline import register
from mmln_pipeline.atlas.labels import structures28
from mmln_pipeline.machine.files import atomic_path, write_text
from mmln_pipeline.scores.metrics import dice, label_mean
from mmln_pipeline.space.grids import new_image

COLOURS = {"pass": "C2", "look": "C1", "fail": "C3"}


def change(image: Nifti1Image, function: Callable[[np.ndarray], np.ndarray]) -> Nifti1Image:
    """Return an image whose brain's intensities, scaled to [0, 1], went through a function; zero outside."""
    data = image.get_fdata(dtype=np.float32)
    brain = data > 0
    scaled = np.clip(data / np.percentile(data[brain], 99.5), 0, 1)
    return new_image(np.where(brain, np.clip(function(scaled), 1e-3, None), 0).astype(np.float32), image)


def add_bias(image: Nifti1Image, strength: float) -> Nifti1Image:
    """Multiply by a smooth field between exp(-strength) and exp(strength)."""
    knots = np.random.default_rng(0).standard_normal((4, 4, 4))
    field = ndimage.zoom(knots, [n / 4 for n in image.shape], order=3, mode="nearest", grid_mode=True)
    return change(image, lambda x: x * np.exp(strength * field / np.abs(field).max()))


def add_noise(image: Nifti1Image, strength: float) -> Nifti1Image:
    """Add Rician noise of that standard deviation; 1 is the brightest tissue."""
    noise = np.random.default_rng(0).normal(0, strength, (2, *image.shape))
    return change(image, lambda x: np.hypot(x + noise[0], noise[1]))


def raise_to(image: Nifti1Image, strength: float) -> Nifti1Image:
    """Raise to the power of exp(strength)."""
    return change(image, lambda x: x ** np.exp(strength))


def invert(image: Nifti1Image, strength: float) -> Nifti1Image:
    """Blend with the inverted image; from 0.5 on, dark tissue is bright."""
    return change(image, lambda x: (1 - strength) * x + strength * (1 - x))


def coarsen(image: Nifti1Image, strength: float) -> Nifti1Image:
    """Resample to cubic voxels of that size, mm, each the mean of what it covers."""
    width = [np.sqrt(max(0, (strength / zoom) ** 2 - 1)) / np.sqrt(12) for zoom in image.header.get_zooms()]
    smooth = new_image(ndimage.gaussian_filter(image.get_fdata(dtype=np.float32), width), image)
    coarse = resample_to_output(smooth, strength, order=1)
    data = coarse.get_fdata(dtype=np.float32)
    return new_image(np.where(data > 0.05 * data.max(), data, 0).astype(np.float32), coarse)


def turn(image: Nifti1Image, strength: float) -> Nifti1Image:
    """Turn the head in its header by so many degrees about an oblique axis through its centre."""
    axis = np.array([1, 2, 3]) / np.sqrt(14)
    rotation = Rotation.from_rotvec(np.deg2rad(strength) * axis).as_matrix()
    centre = image.affine @ [*(np.array(image.shape) / 2), 1]
    about = from_matvec(rotation, centre[:3] - rotation @ centre[:3])
    return Nifti1Image(image.dataobj, about @ image.affine)


def shift(image: Nifti1Image, strength: float) -> Nifti1Image:
    """Shift the head in its header by so many mm in an oblique direction."""
    return Nifti1Image(image.dataobj, from_matvec(np.eye(3), strength * np.array([2, -1, 2]) / 3) @ image.affine)


SWEEPS = {
    "bias field (log range)": (add_bias, (0.25, 0.5, 1.0), False),
    "noise (SD)": (add_noise, (0.05, 0.1, 0.2), False),
    "contrast (log gamma)": (raise_to, (-1.0, -0.5, 0.5, 1.0), False),
    "inversion": (invert, (0.3, 0.6, 1.0), False),
    "voxel size (mm)": (coarsen, (1.5, 2.0, 3.0), False),
    "turn (degrees)": (turn, (10.0, 20.0, 40.0), True),
    "shift (mm)": (shift, (15.0, 30.0, 60.0), True),
}
"""Name: what spoils the image, the strengths, and whether the labels move with it."""
HARMLESS = {"voxel size (mm)": 1.0}
"""Strength that stands for the image as it is, where that is not 0."""


@dataclass(frozen=True)
class Brain:
    """An image and its labels, in one space but perhaps on two grids."""

    image: Nifti1Image
    labels: Nifti1Image


def spoil(brain: Brain, name: str, strength: float) -> Brain:
    """Return a brain with one defect; where the head moves, its labels move with it."""
    function, _, moves = SWEEPS[name]
    return Brain(function(brain.image, strength), function(brain.labels, strength) if moves else brain.labels)


def score(fixed: Brain, moving: Brain, model: str) -> dict[str, object]:
    """Register and return Dice over the 28 structures and the verdict of the quality check."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the verdict is in the table
        result = register(fixed.image, moving.image, model=model, refine=0)
    moved = result.transform.resample(moving.labels, fixed.labels, "nearest")
    overlap = dice(np.asarray(fixed.labels.dataobj), np.asarray(moved.dataobj), structures28())
    return {"dice28": label_mean(overlap), "qc": result.metrics["qc"]["verdict"]}


def sweep(fixed: Brain, moving: Brain, model: str) -> pd.DataFrame:
    """Return Dice and the verdict for each defect and strength."""
    intact = score(fixed, moving, model)
    rows = []
    for name, (_, strengths, _) in SWEEPS.items():
        rows.append({"defect": name, "strength": HARMLESS.get(name, 0.0), **intact})
        for strength in strengths:
            rows.append({"defect": name, "strength": strength, **score(fixed, spoil(moving, name, strength), model)})
            print(rows[-1], flush=True)
    return pd.DataFrame(rows).sort_values(["defect", "strength"], ignore_index=True)


def plot(table: pd.DataFrame, path: Path) -> None:
    """Draw Dice against strength, a panel a defect; the dots' colour is the verdict."""
    figure, panels = plt.subplots(2, 4, figsize=(10, 5), sharey=True, layout="constrained")
    for axes, (name, rows) in zip(panels.flat, table.groupby("defect", sort=False), strict=False):
        axes.plot(rows["strength"], rows["dice28"], color="0.6", zorder=1)
        axes.scatter(rows["strength"], rows["dice28"], c=rows["qc"].map(COLOURS), zorder=2)
        axes.set(xlabel=name, ylim=(0, 1))
    for axes in panels[:, 0]:
        axes.set_ylabel("mean Dice, 28 structures")
    legend = panels.flat[-1]
    legend.axis("off")
    for verdict, colour in COLOURS.items():
        legend.scatter([], [], c=colour, label=f"quality check: {verdict}")
    legend.legend(loc="center", frameon=False)
    with atomic_path(path) as temporary:
        figure.savefig(temporary)
    plt.close(figure)


def main() -> None:
    """Run the benchmark from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("fixed", "fixed_dseg", "moving", "moving_dseg"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--model", default="mmln", help="name or weights file")
    parser.add_argument("--output", type=Path, required=True, help="folder of robustness{.tsv,.svg}")
    options = parser.parse_args()
    fixed = Brain(nib.load(options.fixed), nib.load(options.fixed_dseg))
    moving = Brain(nib.load(options.moving), nib.load(options.moving_dseg))
    table = sweep(fixed, moving, options.model)
    write_text(options.output / "robustness.tsv", table.to_csv(sep="\t", index=False, float_format="%.4f"))
    plot(table, options.output / "robustness.svg")


if __name__ == "__main__":
    main()
