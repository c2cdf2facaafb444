"""One reference from several images of a subject: poses recovered, no image preferred, robust to a bad one."""

import nibabel as nib
import numpy as np
import pytest
from nibabel.affines import apply_affine
from scipy.spatial.transform import Rotation

from mmln_pipeline.linear.reference import build_reference, combine_masks
from mmln_pipeline.space.grids import Grid
from mmln_pipeline.space.transforms import Transform

SHAPE = (24, 28, 32)


def brain():
    """A textured ellipsoid off the centre of a 1 mm grid, zero outside."""
    x = np.stack(np.meshgrid(*(np.arange(n) for n in SHAPE), indexing="ij"))
    offset = (x - np.reshape((12, 14, 16), (3, 1, 1, 1))) / np.reshape((8, 9, 11), (3, 1, 1, 1))
    radius = np.sqrt((offset**2).sum(0))
    texture = 1 + 0.5 * np.sin(3 * offset[0] + 1) * np.cos(3 * offset[1]) + 0.4 * offset[2] + 0.2 * offset[0]
    affine = np.eye(4)
    affine[:3, 3] = -12, -14, -16
    return nib.Nifti1Image(np.where(radius < 1, 100 * texture * (1.4 - radius), 0).astype(np.float32), affine)


def pose(degrees, shift):
    matrix = np.eye(4)
    matrix[:3, :3] = Rotation.from_euler("xyz", degrees, degrees=True).as_matrix()
    matrix[:3, 3] = shift
    return matrix


def seen_at(image, matrix, gain=1.0):
    """The image of the same brain after it moved: a point p of it is found at matrix @ p."""
    moved = Transform((np.linalg.inv(matrix),)).resample(image, image)
    return nib.Nifti1Image(np.asarray(moved.dataobj) * np.float32(gain), moved.affine)


def error_mm(matrix, expected):
    """Largest distance between two transforms over the brain."""
    corners = np.array([[x, y, z] for x in (-8, 8) for y in (-9, 9) for z in (-11, 11)])
    return np.abs(apply_affine(matrix, corners) - apply_affine(expected, corners)).max()


POSES = (pose((0, 0, 0), (0, 0, 0)), pose((4, -3, 5), (1.0, -1.5, 0.5)), pose((-3, 2, 4), (-1.0, 0.5, 1.0)))


def test_first_keeps_the_first_images_space():
    first = brain()
    images = [first, *(seen_at(first, matrix, gain) for matrix, gain in zip(POSES[1:], (3.0, 0.5), strict=True))]
    reference = build_reference(images)
    assert Grid.of(first).matches(reference.image)
    assert max(error_mm(*pair) for pair in zip(reference.matrices, POSES, strict=True)) < 0.5
    assert np.corrcoef(reference.image.get_fdata().ravel(), first.get_fdata().ravel())[0, 1] > 0.99


def test_one_image_is_its_own_reference():
    first = brain()
    np.testing.assert_allclose(build_reference([first]).image.get_fdata(), first.get_fdata(), rtol=1e-4)


def test_unbiased_prefers_no_image():
    first = brain()
    images = [first, seen_at(first, POSES[1])]
    one = build_reference(images, "unbiased")
    other = build_reference(images[::-1], "unbiased")
    for mine, theirs in zip(one.matrices, other.matrices[::-1], strict=True):
        assert error_mm(mine, theirs) < 0.3
    halves = [np.asarray(matrix[:3, 3]) for matrix in one.matrices]
    assert np.abs(np.mean(halves, axis=0)).max() < 0.3, "the reference lies in the middle"
    relative = one.matrices[1] @ np.linalg.inv(one.matrices[0])
    assert error_mm(relative, POSES[1]) < 0.5
    seen = Transform((np.linalg.inv(one.matrices[0]),)).resample(one.image, first)
    assert np.corrcoef(seen.get_fdata().ravel(), first.get_fdata().ravel())[0, 1] > 0.98


def test_median_withstands_a_spoilt_run(rng):
    first = brain()
    spoilt = nib.Nifti1Image(first.get_fdata(dtype=np.float32).copy(), first.affine)
    spoilt.get_fdata(dtype=np.float32)[10:14, 12:16, 14:18] = 0
    reference = build_reference([first, first, spoilt])
    assert error_mm(reference.matrices[2], np.eye(4)) < 0.2
    mean = reference.image.get_fdata()[11:13, 13:15, 15:17].mean()
    assert mean == pytest.approx(first.get_fdata()[11:13, 13:15, 15:17].mean(), rel=0.05)


def test_images_have_no_say_where_they_do_not_reach():
    first = brain()
    part = first.slicer[:, :, :20]
    reference = build_reference([first, part], masks=None)
    upper = reference.image.get_fdata()[:, :, 24:]
    assert upper.max() == pytest.approx(first.get_fdata()[:, :, 24:].max(), rel=0.1)


def test_masks_steer_and_vote():
    first = brain()
    images = [first, seen_at(first, POSES[1])]
    masks = [nib.Nifti1Image((image.get_fdata() > 30).astype(np.uint8), image.affine) for image in images]
    reference = build_reference(images, masks=masks)
    assert error_mm(reference.matrices[1], POSES[1]) < 0.5
    voted = combine_masks(masks, reference.matrices, reference.image).get_fdata()
    expected = masks[0].get_fdata()
    assert 2 * (voted * expected).sum() / (voted.sum() + expected.sum()) > 0.95
    spot = nib.Nifti1Image(np.zeros(SHAPE, np.uint8), first.affine)
    np.asanyarray(spot.dataobj)[5:8, 5:8, 5:8] = 1
    empty = nib.Nifti1Image(np.zeros(SHAPE, np.uint8), first.affine)
    same = [np.eye(4)] * 3
    assert combine_masks([spot, empty, empty], same, first, "any").get_fdata().sum() == 27
    assert combine_masks([spot, empty, empty], same, first).get_fdata().sum() == 0


@pytest.mark.parametrize(("images", "kind"), [([], "first-lex"), (["x"], "middle")])
def test_wrong_input(images, kind):
    with pytest.raises(ValueError, match="expected images and one of first-lex, unbiased"):
        build_reference(images, kind)
