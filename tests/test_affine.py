"""Affine alignment recovers known transforms, the same one each time; affines come from files."""

import numpy as np
import pytest
import SimpleITK as sitk
from nibabel.affines import apply_affine, from_matvec
from scipy.ndimage import gaussian_filter
from scipy.spatial.transform import Rotation

from mmln_pipeline.images.brain import Brain
from mmln_pipeline.images.volumes import brain_mask, load_image
from mmln_pipeline.linear import affine
from mmln_pipeline.linear.affine import estimate_affine, load_affine
from mmln_pipeline.machine import devices
from mmln_pipeline.space.displacements import DisplacementField
from mmln_pipeline.space.grids import Grid, new_image
from mmln_pipeline.space.itk import save_affine
from mmln_pipeline.space.transforms import Transform


def fake_brain(rng, shape=(52, 62, 56), spacing=(1.1, 1.0, 1.2)):
    """Return an uneven textured egg on zeros, a small animal's brain, LPS axes."""
    index = np.moveaxis(np.indices(shape), 0, -1) - np.array(shape) / 2
    radii = np.array((18.0, 24.0, 17.0)) * (1 + 0.15 * np.tanh(index[..., 1:2] / 10))
    inside = np.square(index / radii).sum(-1) < 1
    texture = gaussian_filter(rng.normal(size=shape), 3)
    data = np.where(inside, 100 + 40 * texture / texture.std() + index[..., 0], 0).clip(0)
    matrix = np.diag((-spacing[0], -spacing[1], spacing[2]))
    return new_image(data.astype(np.float32), Grid(shape, from_matvec(matrix, (70.0, 90.0, -80.0))))


def known_matrix(image, degrees, scale, shift):
    """Return a rotation and scaling about the middle of an image, with a shift, fixed to moving."""
    linear = Rotation.from_euler("xyz", degrees, degrees=True).as_matrix() * scale
    centre = apply_affine(image.affine, np.array(image.shape) / 2)
    return from_matvec(linear, centre - linear @ centre + np.array(shift)), centre


def corner_error(found, known, fixed):
    """Return how far apart, mm, two transforms put the corners of the fixed brain's bounding box at most."""
    voxels = np.argwhere(np.asanyarray(brain_mask(fixed).dataobj))
    low, high = voxels.min(0), voxels.max(0)
    corners = np.stack(np.meshgrid(*zip(low, high, strict=True), indexing="ij"), -1).reshape(-1, 3)
    points = apply_affine(fixed.affine, corners)
    return np.linalg.norm(apply_affine(found, points) - apply_affine(known, points), axis=1).max()


def made_pair(moving, degrees, scale, shift, shape, spacing):
    """Return a fixed image that the known matrix maps to `moving`, and the matrix."""
    known, centre = known_matrix(moving, degrees, scale, shift)
    linear = np.diag(spacing)
    grid = Grid(shape, from_matvec(linear, centre - linear @ (np.array(shape) / 2)))
    return Transform((known,)).resample(moving, grid), known


@pytest.mark.parametrize(
    ("kind", "degrees", "scale", "shift"),
    [("affine", (15, -10, 12), 1.1, (8, -6, 5)), ("rigid", (-12, 10, 5), 1.0, (-8, 5, 5))],
)
def test_known_transform_is_recovered(rng, kind, degrees, scale, shift):
    moving = fake_brain(rng)
    fixed, known = made_pair(moving, degrees, scale, shift, (60, 58, 62), (1.2, 1.3, 1.2))
    before = np.array(fixed.dataobj), np.array(moving.dataobj)
    found = estimate_affine(Brain(fixed), Brain(moving), kind)
    assert corner_error(found, known, fixed) < 0.75
    if kind == "rigid":
        np.testing.assert_allclose(found[:3, :3] @ found[:3, :3].T, np.eye(3), atol=1e-9)
    np.testing.assert_array_equal(np.asanyarray(fixed.dataobj), before[0])
    np.testing.assert_array_equal(np.asanyarray(moving.dataobj), before[1])


def test_same_seed_same_matrix_whatever_the_threads(rng):
    moving = fake_brain(rng)
    fixed, _ = made_pair(moving, (5, 0, 3), 1.0, (4, 4, 0), (60, 58, 62), (1.2, 1.3, 1.2))
    found = []
    for count in (2, 1):
        with devices.threads(count):
            found.append(estimate_affine(Brain(fixed), Brain(moving), "rigid", seed=7))
            assert sitk.ProcessObject.GetGlobalDefaultNumberOfThreads() == count
    np.testing.assert_array_equal(*found)


def test_a_start_is_taken_where_it_lays_the_brains_onto_each_other(rng, monkeypatch):
    moving = fake_brain(rng)
    fixed, known = made_pair(moving, (15, -10, 12), 1.1, (8, -6, 5), (60, 58, 62), (1.2, 1.3, 1.2))
    near, _ = known_matrix(fixed, (2, -2, 1), 1.01, (1, 0, -1))
    far, _ = known_matrix(fixed, (0, 0, 0), 1.0, (20, 10, 0))
    searched = []
    search = affine._search
    monkeypatch.setattr(affine, "_search", lambda *args: searched.append(args) or search(*args))
    for start, expected in ((near, 0), (far, 1)):
        found = estimate_affine(Brain(fixed), Brain(moving), start=known @ start)
        assert corner_error(found, known, fixed) < 0.75 and len(searched) == expected


def test_masks_single_out_the_brain(rng):
    moving = fake_brain(rng)
    fixed, known = made_pair(moving, (8, -6, 4), 1.0, (5, -4, 3), (60, 58, 62), (1.2, 1.3, 1.2))
    masks = brain_mask(fixed), brain_mask(moving)
    head = np.array(fixed.dataobj)
    head[2:6] = 200
    found = estimate_affine(Brain(new_image(head, fixed), masks[0]), Brain(moving, masks[1]), "rigid")
    assert corner_error(found, known, fixed) < 0.75


def test_bad_requests_are_named(rng):
    image = fake_brain(rng)
    with pytest.raises(ValueError, match="expected one of affine, rigid; found 'similarity'"):
        estimate_affine(Brain(image), Brain(image), "similarity")
    with pytest.raises(ValueError, match="expected 0 or more, found -1"):
        estimate_affine(Brain(image), Brain(image), seed=-1)
    empty = new_image(np.zeros(image.shape, np.uint8), image)
    with pytest.raises(ValueError, match="moving mask: expected a brain, found all"):
        estimate_affine(Brain(image), Brain(image, empty, name="moving"))
    other = new_image(np.ones((5, 6, 7), np.uint8), Grid((5, 6, 7), np.eye(4)))
    with pytest.raises(ValueError, match=r"fixed mask must lie on the grid .* found \(5, 6, 7\)"):
        estimate_affine(Brain(image, other, name="fixed"), Brain(image))


def test_an_impossible_result_is_refused(rng):
    image = fake_brain(rng)
    plank = np.zeros(image.shape, np.float32)
    plank[2:50, 30:32, 27:29] = 100
    with pytest.raises(ValueError, match=r"affine alignment failed: expected"):
        estimate_affine(Brain(image), Brain(new_image(plank, image)), "rigid")


def test_load_affine_joins_linear_parts(tmp_path):
    first, second = np.diag([2.0, 2.0, 2.0, 1.0]), from_matvec(np.eye(3), (1.0, 2.0, 3.0))
    np.testing.assert_allclose(load_affine(Transform((first, second)).save(tmp_path / "a.h5")), second @ first)
    np.testing.assert_allclose(load_affine(save_affine(second, tmp_path / "a.mat")), second)


def test_load_affine_refuses_a_warp(tmp_path):
    field = DisplacementField(np.zeros((5, 6, 7, 3), np.float32), np.eye(4))
    path = Transform((field, np.eye(4))).save(tmp_path / "warp.h5")
    with pytest.raises(ValueError, match=r"warp\.h5: expected linear transforms only"):
        load_affine(path)
    with pytest.raises(FileNotFoundError, match=r"absent\.mat"):
        load_affine(tmp_path / "absent.mat")


@pytest.mark.realdata
def test_known_transform_of_a_real_brain_is_recovered(data_root):
    path = data_root / "oasis/sub-OAS10083/ses-01/anat/sub-OAS10083_ses-01_T1w.nii.gz"
    if not path.is_file():
        pytest.skip(f"{path} is absent")
    moving = load_image(path)
    fixed, known = made_pair(moving, (15, -10, 18), 1.1, (20, -8, 5), (150, 190, 170), (1.0, 1.0, 1.0))
    assert corner_error(estimate_affine(Brain(fixed), Brain(moving)), known, fixed) < 1.5
