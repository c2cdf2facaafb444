"""Labels and masks of another grid land on the right voxels, or are refused with both names."""

import nibabel as nib
import numpy as np
import pytest
from nibabel.orientations import axcodes2ornt, io_orientation, ornt_transform
from scipy.spatial.transform import Rotation

from mmln_pipeline.images.same_space import labels_on_grid, why_not_same_space
from mmln_pipeline.space.grids import Grid, space_code

SHAPE = (13, 15, 17)


def make(shape=SHAPE, affine=None, code=1, value=0):
    affine = np.diag([2.0, 2.0, 2.0, 1.0]) if affine is None else affine
    image = nib.Nifti1Image(np.full(shape, value, np.uint8), affine)
    image.set_sform(affine, code)
    image.set_qform(affine, code)
    return image


def oblique(image, degrees=20):
    """An empty image that covers another's field of view, turned about its centre, in half its voxels."""
    turn = Rotation.from_euler("xyz", (degrees, -10, 5), degrees=True).as_matrix()
    centre = nib.affines.apply_affine(image.affine, (np.array(image.shape) - 1) / 2)
    shape = tuple(3 * n for n in image.shape)
    return make(shape, nib.affines.from_matvec(turn, centre - turn @ ((np.array(shape) - 1) / 2)))


def paint(image, centre, radius):
    """Mark the voxels within a radius (mm) of a point of the world."""
    points = nib.affines.apply_affine(image.affine, np.stack(np.indices(image.shape), -1))
    np.asanyarray(image.dataobj)[np.linalg.norm(points - centre, axis=-1) < radius] = 1
    return image


@pytest.mark.parametrize("axes", ["LIA", "LAS", "oblique"])
def test_masks_land_on_the_right_voxels(axes):
    reference = make()
    centre, radius = (8.0, 18.0, 22.0), 5.0
    expected = paint(make(), centre, radius).get_fdata()
    if axes == "oblique":
        mask = paint(oblique(reference), centre, radius)
    else:
        turn = ornt_transform(io_orientation(reference.affine), axcodes2ornt(tuple(axes)))
        mask = paint(make().as_reoriented(turn), centre, radius)
    found = labels_on_grid(mask, reference, "mask", "image").get_fdata()
    overlap = 2 * (found * expected).sum() / (found.sum() + expected.sum())
    assert overlap == 1 if axes != "oblique" else overlap > 0.9


def test_the_space_is_the_sforms_or_else_the_qforms():
    image = make(code=4)
    image.set_sform(image.affine, 0)
    assert space_code(image) == 4
    image.set_sform(image.affine, 2)
    assert space_code(image) == 2


def test_grids_of_one_voxel_are_grids_and_those_of_none_are_not():
    assert Grid((1, 2, 3), np.eye(4)).shape == (1, 2, 3)
    with pytest.raises(ValueError, match=r"expected 3 positive sizes, found \(0, 2, 3\)"):
        Grid((0, 2, 3), np.eye(4))


@pytest.mark.parametrize(("off", "is_aligned"), [(0.0, True), (9e-5, True), (2e-4, False)])
def test_axes_of_1_mm_may_be_off_by_rounding(off, is_aligned):
    affine = np.eye(4)[[2, 0, 1, 3]]
    affine[0, 0] = off
    assert Grid((3, 4, 5), affine).is_axis_aligned_1mm() is is_aligned


def test_one_grid_is_one_space_whatever_the_codes():
    assert why_not_same_space(make(code=4), make(code=1)) is None


@pytest.mark.parametrize(
    ("codes", "words"),
    [((1, 0), "names no space"), ((4, 1), "name different spaces (codes 4 and 1)"), ((3, 4), "different spaces")],
)
def test_headers_that_do_not_share_a_space(codes, words):
    other = make((9, 10, 11), np.diag([3.0, 3.0, 3.0, 1.0]), codes[0], value=1)
    assert words in why_not_same_space(other, make(code=codes[1]))
    with pytest.raises(ValueError, match=r"a\.nii: expected the space of b\.nii, but .*: resample it"):
        labels_on_grid(other, make(code=codes[1]), "a.nii", "b.nii")


@pytest.mark.parametrize("codes", [(1, 2), (4, 4)])
def test_headers_that_share_a_space(codes):
    assert why_not_same_space(make((9, 10, 11), np.diag([3.0, 3.0, 3.0, 1.0]), codes[0]), make(code=codes[1])) is None


def test_another_part_of_the_world():
    far = make((9, 10, 11))
    far.set_sform(far.affine + np.array([[0, 0, 0, 500.0]] + [[0] * 4] * 3), 1)
    assert "0% in common" in why_not_same_space(far, make())


def test_larger_field_of_view_is_fine():
    affine = np.eye(4)
    affine[:3, 3] = -20
    assert why_not_same_space(make((64, 64, 64), affine), make()) is None


def test_labels_outside_the_image():
    affine = np.eye(4)
    affine[:3, 3] = -20
    outside = make((64, 64, 64), affine)
    np.asanyarray(outside.dataobj)[0, 0, 0] = 1
    with pytest.raises(ValueError, match=r"nothing of it lies inside b\.nii"):
        labels_on_grid(outside, make(), "a.nii", "b.nii")
