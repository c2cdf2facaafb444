"""A demonstration without downloads: deform the embedded template, register it back, compare with the truth.

``python -m mmln_pipeline.demo OUTDIR`` makes a BIDS dataset of one simulated subject, runs the BIDS App on it
and prints how far the transforms that it wrote are from the deformation that made the subject.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, cast

import numpy as np
import torch
from nibabel import Nifti1Image
from nibabel.affines import apply_affine, from_matvec
from scipy.ndimage import gaussian_filter
from scipy.signal.windows import tukey
from scipy.spatial.transform import Rotation

from mmln_pipeline import weights
from mmln_pipeline.atlas.templates import EMBEDDED, load_template
from mmln_pipeline.fields.integration import exponentiate
from mmln_pipeline.images.volumes import save_image
from mmln_pipeline.machine.files import write_text
from mmln_pipeline.space.displacements import DisplacementField, displacement_from_voxels
from mmln_pipeline.space.grids import GRID_SHAPE, Grid, new_image
from mmln_pipeline.space.transforms import Transform, read_transform

SUBJECT = "sub-demo"
SEED = 20220609
MARGIN_MM = 12
WALNUT = 4
"""How many times shorter a walnut is than a brain."""
README = """A brain simulated from the MNI ICBM 152 (2009a, symmetric) template that nilearn carries:
deformed by a known random diffeomorphism and a small affine, with a bias field and noise added.
No person was scanned.
"""


def make_velocity(grid: Grid, mask: np.ndarray, rng: np.random.Generator, smoothness: float, size: float) -> np.ndarray:
    """Draw a smooth random stationary velocity field that vanishes at the border of its grid.

    Parameters
    ----------
    grid : Grid
        Where the field lives.
    mask : ndarray of bool, shape (I, J, K)
        Where the speed is set: its 95th percentile there is `size`.
    rng : numpy.random.Generator
        Source of the noise.
    smoothness : float
        Standard deviation of the Gaussian that smooths white noise, mm.
    size : float
        Speed, mm per unit time.

    Returns
    -------
    ndarray, shape (3, I, J, K)
        Voxels per unit time along the grid's axes, float32.
    """
    noise = rng.standard_normal((3, *grid.shape))
    sigma = smoothness / grid.spacing
    taper = np.einsum("i,j,k->ijk", *(tukey(n, alpha=0.3) for n in grid.shape))
    velocity_mm = np.stack([gaussian_filter(component, sigma) for component in noise]) * taper
    velocity_mm *= size / np.percentile(np.linalg.norm(velocity_mm, axis=0)[mask], 95)
    return (velocity_mm / grid.spacing[:, None, None, None]).astype(np.float32)


def make_affine(centre: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Draw a small affine: up to 5 degrees about each axis, 4 % of size and 8 mm of shift.

    Parameters
    ----------
    centre : ndarray, shape (3,)
        Point about which is rotated and scaled, RAS mm.
    rng : numpy.random.Generator
        Source of the numbers.

    Returns
    -------
    ndarray, shape (4, 4)
        RAS mm to RAS mm.
    """
    rotation = Rotation.from_euler("xyz", rng.uniform(-5, 5, 3), degrees=True).as_matrix()
    matrix = rotation @ np.diag(rng.uniform(0.96, 1.04, 3))
    return from_matvec(matrix, centre - matrix @ centre + rng.uniform(-8, 8, 3))


def make_truth(
    mask: Nifti1Image, seed: int = SEED, spacing: int = 2, smoothness: float = 12.0, size: float = 6.0
) -> tuple[Transform, Transform]:
    """Draw the deformation that makes the subject, and its inverse.

    Parameters
    ----------
    mask : Nifti1Image
        Brain mask of the template.
    seed : int, default=20220609
        Seed of the random numbers.
    spacing : int, default=2
        The field keeps every so many voxels of the template along each axis.
    smoothness, size : float
        See :func:`make_velocity`.

    Returns
    -------
    forward, inverse : Transform
        Forward maps points of the template to the subject (warp, then affine), both in RAS mm.
    """
    rng = np.random.default_rng(seed)
    inside = np.asarray(mask.dataobj)[::spacing, ::spacing, ::spacing] > 0
    grid = Grid(inside.shape, mask.affine @ np.diag([spacing, spacing, spacing, 1.0]))
    velocity = torch.from_numpy(make_velocity(grid, inside, rng, smoothness, size))[None]
    warp, inverse_warp = (
        displacement_from_voxels(exponentiate(v)[0].numpy(), grid.affine) for v in (velocity, -velocity)
    )
    affine = make_affine(apply_affine(grid.affine, np.argwhere(inside).mean(0)), rng)
    return Transform([warp, affine]), Transform([np.linalg.inv(affine), inverse_warp])


def simulate_subject(image: Nifti1Image, mask: Nifti1Image, inverse: Transform, seed: int = SEED) -> Nifti1Image:
    """Bring the template to the subject's space and make it look scanned.

    Parameters
    ----------
    image, mask : Nifti1Image
        Template and its brain mask, on one grid.
    inverse : Transform
        Maps points of the subject to the template.
    seed : int, default=20220609
        Seed of the bias field and the noise.

    Returns
    -------
    Nifti1Image
        Skull-stripped T1w image, 16-bit, zero outside the brain, on the template's grid with a margin.
    """
    rng = np.random.default_rng([seed, 1])
    margin = np.ceil(MARGIN_MM / Grid.of(image).spacing).astype(int)
    grid = Grid(np.add(image.shape, 2 * margin), image.affine @ from_matvec(np.eye(3), -margin))
    inside = np.asarray(inverse.resample(mask, grid, interpolation="nearest").dataobj) > 0
    data = inverse.resample(image, grid).get_fdata(dtype=np.float32)
    data = data / data[inside].mean() * _bias_field(grid.shape, rng)
    data += 0.02 * rng.standard_normal(grid.shape)
    return new_image(np.where(inside, data * 500, 0).clip(0).astype(np.int16), grid)


def _bias_field(shape: Sequence[int], rng: np.random.Generator, strength: float = 0.15) -> np.ndarray:
    """Return a smooth multiplicative field about 1: the exponential of a random quadratic."""
    axes = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij", sparse=True)
    powers = [np.ones((1, 1, 1)), *axes]
    exponent = sum(rng.uniform(-1, 1) * a * b for i, a in enumerate(powers) for b in powers[max(i, 1) :])
    return np.exp(strength * exponent / np.abs(exponent).max())


def write_dataset(image: Nifti1Image, bids_dir: Path) -> Path:
    """Write a BIDS dataset of one T1w image.

    Parameters
    ----------
    image : Nifti1Image
        The subject.
    bids_dir : Path
        Folder of the dataset, made if absent.

    Returns
    -------
    Path
        The image's file.
    """
    description = {"Name": "One simulated brain", "BIDSVersion": "1.11.0", "DatasetType": "raw"}
    write_text(bids_dir / "dataset_description.json", json.dumps(description, indent=2) + "\n")
    write_text(bids_dir / "README", README)
    stem = bids_dir / SUBJECT / "anat" / f"{SUBJECT}_T1w"
    write_text(stem.with_suffix(".json"), json.dumps({"Modality": "MR", "SkullStripped": True}, indent=2) + "\n")
    save_image(image, stem.with_suffix(".nii.gz"))
    return stem.with_suffix(".nii.gz")


class Walnut(NamedTuple):
    """A brain of the size of a walnut, for examples that take seconds.

    Attributes
    ----------
    image, mask, dseg : Nifti1Image
        The embedded template, its brain mask and its tissue labels, a quarter as long.
    model : Path
        The bundled weights, with a card that tells of a grid a quarter as long.
    """

    image: Nifti1Image
    mask: Nifti1Image
    dseg: Nifti1Image
    model: Path


def make_walnut(folder: str | Path) -> Walnut:
    """Make the embedded template a quarter as long: four voxels along each axis become one, of 1 mm again.

    Nobody's brain is like that; but all that is done with it takes seconds, and is what is done with a brain.

    Parameters
    ----------
    folder : path
        Where the weights go, as `walnut.safetensors` and `.json`; made if absent.

    Returns
    -------
    Walnut
    """
    template = load_template(EMBEDDED)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    card = json.loads((weights.FOLDER / "mmln.json").read_text(encoding="utf-8"))
    card["network"]["grid"] = [size // WALNUT for size in GRID_SHAPE]
    write_text(folder / "walnut.json", json.dumps(card))
    model = Path(shutil.copy(weights.FOLDER / "mmln.safetensors", folder / "walnut.safetensors"))
    size = np.array(template.image.shape) // WALNUT
    middle = from_matvec(WALNUT * np.eye(3), (WALNUT - 1) / 2 * np.ones(3))
    grid = Grid(tuple(size), np.diag([1 / WALNUT] * 3 + [1.0]) @ template.image.affine @ middle)

    def shrink(image: Nifti1Image) -> np.ndarray:
        data = np.asarray(image.dataobj, dtype=np.float32)[tuple(slice(n * WALNUT) for n in size)]
        return data.reshape([part for n in size for part in (n, WALNUT)]).mean(axis=(1, 3, 5))

    mask = shrink(template.mask) >= 0.5
    dseg = cast(Nifti1Image, template.dseg)  # the embedded template has one
    labels = np.asarray(dseg.dataobj)[tuple(slice(WALNUT // 2, n * WALNUT, WALNUT) for n in size)]
    return Walnut(
        new_image(np.where(mask, shrink(template.image), 0).astype(np.float32), grid),
        new_image(mask.astype(np.uint8), grid),
        new_image(np.where(mask, labels, 0).astype(np.uint8), grid),
        model,
    )


def brain_points(mask: Nifti1Image, step: int = 3) -> np.ndarray:
    """Return the centres of every `step`-th voxel of a mask along each axis, RAS mm, shape (N, 3)."""
    voxels = np.argwhere(np.asarray(mask.dataobj)[::step, ::step, ::step] > 0) * step
    return apply_affine(mask.affine, voxels)


def measure_recovery(points: np.ndarray, truth: Transform, found: Transform, back: Transform) -> dict[str, np.ndarray]:
    """Measure how far each stage is from the truth at points of the brain.

    Parameters
    ----------
    points : ndarray, shape (N, 3)
        Points of the template, RAS mm.
    truth, found : Transform
        Known and estimated map from the template to the subject.
    back : Transform
        Estimated map from the subject to the template.

    Returns
    -------
    dict of str to ndarray, shape (N,)
        Distance in mm with no registration, with the affine part alone and with the whole transform (all
        three in the subject's space), and of the inverse (in the template's).
    """
    target = truth.map_points(points)
    affine = Transform([part for part in found.parts if not isinstance(part, DisplacementField)])
    distance = {
        "no registration": points - target,
        "affine only": affine.map_points(points) - target,
        "affine and warp": found.map_points(points) - target,
        "inverse": back.map_points(target) - points,
    }
    return {stage: np.linalg.norm(offsets, axis=1) for stage, offsets in distance.items()}


def format_recovery(errors: dict[str, np.ndarray]) -> str:
    """Return the table of errors and the recovered shares as text."""
    lines = [f"{'Error against the known deformation, mm':<42}{'mean':>8}{'median':>8}{'95 %':>8}"]
    for stage, error in errors.items():
        mean, median, high = error.mean(), np.median(error), np.percentile(error, 95)
        lines.append(f"  {stage:<40}{mean:>8.2f}{median:>8.2f}{high:>8.2f}")
    before, affine, after = (errors[k].mean() for k in ("no registration", "affine only", "affine and warp"))
    whole, rest = 1 - after / before, 1 - after / affine
    lines.append(f"Recovered: {whole:.0%} of the whole, {rest:.0%} of what the affine leaves")
    return "\n".join(lines)


def run_demo(output_dir: Path) -> int:
    """Simulate, register and compare; print what was found and where it lies.

    Parameters
    ----------
    output_dir : Path
        Gets the folders ``bids``, ``derivatives`` and ``work``, and the true transform.

    Returns
    -------
    int
        Exit code of the BIDS App.
    """
    from mmln_pipeline.bids_app.run import main as run_bids_app

    start = time.perf_counter()
    template = load_template(EMBEDDED)
    truth, inverse = make_truth(template.mask)
    truth.save(output_dir / "truth_xfm.h5")
    subject = write_dataset(simulate_subject(template.image, template.mask, inverse), output_dir / "bids")
    print(f"Simulated {subject} in {time.perf_counter() - start:.0f} s; running mmln-bids on it ...", flush=True)

    start = time.perf_counter()
    derivatives = output_dir / "derivatives"
    folders = [str(output_dir / "bids"), str(derivatives), "participant", "-w", str(output_dir / "work")]
    code = run_bids_app([*folders, "--skull-strip", "skip"])
    if code:
        return code
    print(f"mmln-bids took {time.perf_counter() - start:.0f} s\n")

    anat = derivatives / SUBJECT / "anat"
    forward, backward = (
        anat / f"{SUBJECT}_from-{a}_to-{b}_mode-image_xfm.h5" for a, b in (("T1w", EMBEDDED), (EMBEDDED, "T1w"))
    )
    points = brain_points(template.mask)
    print(format_recovery(measure_recovery(points, truth, read_transform(forward), read_transform(backward))))
    print(f"\nReport:      {derivatives / SUBJECT}.html\nTransforms:  {forward}\n             {backward}")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run the demonstration from the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m mmln_pipeline.demo",
        description="Register a simulated subject and print how much of a known deformation is recovered.",
        epilog="example: python -m mmln_pipeline.demo demo",
    )
    parser.add_argument("output_dir", type=Path, metavar="OUTDIR", help="folder of the dataset and results")
    return run_demo(parser.parse_args(argv).output_dir.resolve())


if __name__ == "__main__":
    sys.exit(main())
