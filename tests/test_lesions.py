"""A lesion steers neither the affine nor the refinement, and lands on the right voxels in any orientation."""

import nibabel as nib
import numpy as np
import pytest
import torch
from nibabel.affines import apply_affine
from nibabel.orientations import axcodes2ornt, io_orientation, ornt_transform
from scipy.ndimage import gaussian_filter
from scipy.spatial.transform import Rotation

from mmln_pipeline import register, weights
from mmln_pipeline.cli import main
from mmln_pipeline.images.brain import Brain
from mmln_pipeline.linear.affine import estimate_affine
from mmln_pipeline.network.architecture import NetworkConfig
from mmln_pipeline.registration import steps
from mmln_pipeline.space.grids import Grid, new_image

SHAPE = (24, 28, 32)
SHIFT = (2.0, -1.0, 3.0)  # voxels of the network grid
LIA = np.array([[-1.0, 0, 0, 12.0], [0, 0, 1, -16.0], [0, -1, 0, 14.0], [0, 0, 0, 1]])
CENTRE = np.array([11.0, 15.0, 18.0])  # the lesion's, voxels of the moving grid


def ball(centre, radius):
    return np.linalg.norm(np.moveaxis(np.indices(SHAPE), 0, -1) - centre, axis=-1) < radius


def brain(rng):
    texture = gaussian_filter(rng.normal(size=SHAPE), 2)
    inside = np.linalg.norm((np.moveaxis(np.indices(SHAPE), 0, -1) - (12, 14, 16)) / (8, 10, 12), axis=-1) < 1
    return np.where(inside, 100 + 30 * texture / texture.std(), 0).clip(0).astype(np.float32)


class Shift(torch.nn.Module):
    """Answer every pair with one constant velocity."""

    config = NetworkConfig(grid=SHAPE)

    def forward(self, fixed, moving, finest=True):
        return (torch.tensor(SHIFT).view(1, 3, 1, 1, 1).expand(1, 3, *fixed.shape[2:]).clone(),)


@pytest.fixture
def refined(monkeypatch):
    """Stand in for weights, grid and refinement; return the list of weights that refining was given."""
    seen = []

    def refine(fixed, moving, velocities, iterations, weight=None, **options):
        seen.append(weight)
        return tuple(velocities)

    monkeypatch.setattr(weights, "load_model", lambda name, device: (Shift(), {"name": "shift", "sha256": "0" * 64}))
    monkeypatch.setattr(steps, "taper", lambda velocity, shape: velocity)
    monkeypatch.setattr(steps.descent, "refine", refine)
    return seen


def turned(image, degrees=15):
    """The image and its lesion on a grid turned about its centre, as an oblique acquisition would show them."""
    turn = Rotation.from_euler("xyz", (degrees, -5, 8), degrees=True).as_matrix() @ LIA[:3, :3]
    centre = apply_affine(LIA, (np.array(SHAPE) - 1) / 2)
    grid = Grid(SHAPE, nib.affines.from_matvec(turn, centre - turn @ ((np.array(SHAPE) - 1) / 2)))
    return steps.volumes.conform(image, grid)


@pytest.mark.parametrize("axes", ["LIA", "LAS", "oblique"])
def test_refinement_ignores_the_lesion_on_the_fixed_grid(refined, rng, axes):
    fixed = nib.Nifti1Image(brain(rng), LIA)
    moving, lesion = nib.Nifti1Image(brain(rng), LIA), nib.Nifti1Image(ball(CENTRE, 4).astype(np.float32), LIA)
    if axes == "oblique":
        moving, lesion = turned(moving), turned(lesion)
    else:
        turn = ornt_transform(io_orientation(LIA), axcodes2ornt(tuple(axes)))
        moving, lesion = moving.as_reoriented(turn), lesion.as_reoriented(turn)
    mask = new_image((lesion.get_fdata() >= 0.5).astype(np.uint8), lesion)
    register(fixed, moving, init="identity", moving_lesion=mask, refine=2, topology="off", device="cpu")
    ignored = refined[0][0, 0].numpy() == 0
    expected = ball(CENTRE - SHIFT, 4)  # the fixed voxels whose window meets the lesion
    assert ignored[expected].mean() > 0.97
    assert np.abs(np.argwhere(ignored).mean(0) - (CENTRE - SHIFT)).max() < 0.5
    assert ignored.sum() < ball(CENTRE - SHIFT, 9).sum()


def test_without_lesion_every_voxel_counts(refined, rng):
    image = nib.Nifti1Image(brain(rng), LIA)
    register(image, image, init="identity", refine=2, topology="off", device="cpu")
    assert refined == [None]


def test_affine_ignores_the_lesion(rng):
    shape = (48, 56, 52)
    index = np.moveaxis(np.indices(shape), 0, -1)
    texture = gaussian_filter(rng.normal(size=shape), 3)
    inside = np.linalg.norm((index - (24, 28, 26)) / (16, 20, 17), axis=-1) < 1
    data = np.where(inside, 100 + 40 * texture / texture.std(), 0).clip(0).astype(np.float32)
    spot = index[..., 1] > 32
    affine = nib.affines.from_matvec(np.eye(3), (-24, -28, -26))
    fixed = nib.Nifti1Image(data, affine)
    # What grew there looks like the rest of the brain, pushed outwards.
    moving = nib.Nifti1Image(np.where(spot, np.roll(data, 5, axis=1), data), affine)
    lesion = nib.Nifti1Image(spot.astype(np.uint8), affine)
    corners = np.array([[x, y, z] for x in (-16, 16) for y in (-20, 20) for z in (-17, 17)])
    errors = [
        np.abs(apply_affine(estimate_affine(Brain(fixed), Brain(moving, lesion=given)), corners) - corners).max()
        for given in (None, lesion)
    ]
    assert errors[1] < 0.5 * errors[0]


def test_lesion_off_its_image_is_refused(rng, tmp_path, capsys):
    paths = {name: tmp_path / f"{name}.nii.gz" for name in ("fixed", "moving", "lesion")}
    for path in paths.values():
        nib.save(nib.Nifti1Image(brain(rng), LIA), path)
    nib.save(nib.Nifti1Image(np.ones((7, 8, 9), np.uint8), LIA), paths["lesion"])
    options = [f"--{name}={paths[name]}" for name in ("fixed", "moving")]
    options += [f"--moving-lesion={paths['lesion']}", f"--output-dir={tmp_path / 'out'}", "--device=cpu"]
    assert main(["register", *options]) == 2
    said = capsys.readouterr().err
    assert "moving lesion mask" in said and str(paths["lesion"]) in said and "moving image" in said


def test_seed_reaches_numpy_torch_and_itk(refined, rng, monkeypatch):
    asked = {}

    def estimate(fixed, moving, kind, seed):
        asked.update(seed=seed)
        return np.eye(4)

    monkeypatch.setattr(steps.affine, "estimate_affine", estimate)
    image = nib.Nifti1Image(brain(rng), LIA)
    draws = []
    for seed in (7, 7, 8):
        register(image, image, refine=0, topology="off", device="cpu", random_seed=seed)
        assert asked["seed"] == seed
        draws.append((np.random.rand(), torch.rand(1).item()))
    assert draws[0] == draws[1] and draws[0][0] != draws[2][0] and draws[0][1] != draws[2][1]
