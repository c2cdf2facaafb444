"""Fields: units, directions, inverses and folds, on odd and anisotropic grids."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter, map_coordinates
from scipy.spatial.transform import Rotation

from mmln_pipeline.fields.integration import correct_inverse, exponentiate, integrate, taper
from mmln_pipeline.fields.jacobian import cell_volumes, gradient, jacobian_determinant, ndv
from mmln_pipeline.fields.scales import downsample, fold, halve_shape, resize_field, resize_image, smooth
from mmln_pipeline.fields.warping import compose, voxel_grid, warp, warp_corners

SHAPE = (7, 8, 9)


def smooth_velocity(shape, amplitude=1.0, seed=0, batch=1):
    """Return a smooth random velocity field that vanishes towards the border, in voxels."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(batch, 3, 3, 3, 3, generator=generator)
    field = resize_image(coarse, shape)
    for _ in range(2):
        field = torch.nn.functional.avg_pool3d(field, 5, stride=1, padding=2)
    for axis, n in enumerate(shape):
        bump = torch.sin(torch.linspace(0, math.pi, n)).view([-1 if a == axis + 2 else 1 for a in range(5)])
        field = field * bump
    return amplitude * field / field.abs().max()


def test_warp_by_zero_is_identity():
    image = torch.rand(2, 1, *SHAPE)
    torch.testing.assert_close(warp(image, torch.zeros(2, 3, *SHAPE)), image, atol=1e-5, rtol=0)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_warp_pulls_along_the_named_axis(axis):
    image = torch.rand(1, 1, *SHAPE)
    shift = torch.zeros(1, 3, *SHAPE)
    shift[:, axis] = 1.0
    inside = (..., *(slice(0, n - 1) for n in SHAPE))
    expected = image.roll(-1, dims=axis + 2)
    torch.testing.assert_close(warp(image, shift)[inside], expected[inside], atol=1e-5, rtol=0)


def test_warp_agrees_with_scipy():
    image, field = torch.rand(1, 1, *SHAPE), smooth_velocity(SHAPE)
    position = (voxel_grid(SHAPE) + field[0]).numpy()
    expected = map_coordinates(image[0, 0].numpy(), position, order=1, mode="nearest")
    np.testing.assert_allclose(warp(image, field)[0, 0].numpy(), expected, atol=1e-4)


def test_warp_of_a_window_is_the_window_of_the_warp():
    image, field = torch.rand(1, 1, 12, 14, 10), smooth_velocity((12, 14, 10))
    window = (slice(2, 8), slice(4, 12), slice(2, 6))
    part = warp(image, field[(..., *window)], origin=(2, 4, 2))
    torch.testing.assert_close(part, warp(image, field)[(..., *window)], atol=1e-5, rtol=0)


@pytest.mark.parametrize("shape", [(12, 10, 14), (11, 10, 13)])
def test_corners_of_blocks_are_those_of_the_whole_warp(shape):
    image = torch.rand(1, 1, *shape)
    displacement = smooth_velocity(halve_shape(shape))
    upsampled = 2 * resize_image(displacement, [2 * n for n in displacement.shape[2:]])
    whole = fold(warp(image, upsampled[(..., *(slice(n) for n in shape))]))
    inner = (..., *(slice(n // 2) for n in shape))
    for corners in ([0, 3, 5, 6], [1, 2, 4, 7], [7]):
        torch.testing.assert_close(warp_corners(image, displacement, corners)[inner], whole[:, corners][inner])


def test_compose_adds_translations_and_orders_maps():
    a, b = torch.full((1, 3, *SHAPE), 0.5), torch.full((1, 3, *SHAPE), -0.25)
    torch.testing.assert_close(compose(a, b), torch.full((1, 3, *SHAPE), 0.25))
    outer, inner = (smooth_velocity((16, 18, 20), seed=s) for s in (1, 2))
    smooth = resize_image(torch.rand(1, 1, 4, 4, 4), (16, 18, 20))
    twice = warp(warp(smooth, outer), inner)
    assert (warp(smooth, compose(outer, inner)) - twice).abs().mean() < 0.01


def test_inverse_consistency_below_a_tenth_of_a_voxel():
    shape = (24, 28, 32)
    velocity = smooth_velocity(shape, amplitude=2.5)
    there, back = exponentiate(velocity), exponentiate(-velocity)
    inside = (..., slice(2, -2), slice(2, -2), slice(2, -2))
    assert compose(there, back)[inside].norm(dim=1).max() < 0.1
    assert compose(back, there)[inside].norm(dim=1).max() < 0.1


@pytest.mark.parametrize("sizes", [[(12, 14, 16), (24, 28, 32)], [(24, 28, 32), (12, 14, 16)]])
def test_integrate_inverts_a_sequence(sizes):
    velocities = [smooth_velocity(size, amplitude=1.0, seed=i) for i, size in enumerate(sizes)]
    there, back = integrate(velocities, (24, 28, 32)), integrate(velocities, (24, 28, 32), inverse=True)
    inside = (..., slice(2, -2), slice(2, -2), slice(2, -2))
    assert compose(there, back)[inside].norm(dim=1).max() < 0.1


def test_velocities_are_integrated_by_seven_squarings():
    centre = torch.tensor([3.0, 4.0, 5.0]).view(1, 3, 1, 1, 1)
    inwards = math.log(0.8) * (voxel_grid((7, 9, 11)) - centre)  # linear, so that interpolation is exact
    shrunk = (1 + math.log(0.8) / 2**7) ** 2**7
    assert shrunk == pytest.approx(0.8, abs=2e-4)
    torch.testing.assert_close(exponentiate(inwards), (shrunk - 1) / math.log(0.8) * inwards, atol=1e-5, rtol=0)


def test_integrate_composes_the_finest_velocity_first():
    a, b = (smooth_velocity(SHAPE, amplitude=1.5, seed=seed) for seed in (1, 2))
    there, back = integrate([a, b], SHAPE), integrate([a, b], SHAPE, inverse=True)
    torch.testing.assert_close(there, compose(exponentiate(a), exponentiate(b)))
    torch.testing.assert_close(back, compose(exponentiate(-b), exponentiate(-a)))
    assert (there - compose(exponentiate(b), exponentiate(a))).abs().max() > 0.01


def test_correct_inverse_leaves_a_quarter_of_what_coarse_fields_leave():
    shape = (24, 28, 32)
    velocities = [smooth_velocity((12, 14, 16), amplitude=1.0, seed=i) for i in range(2)]
    there, back = integrate(velocities, shape), integrate(velocities, shape, inverse=True)
    corrected = correct_inverse(back, there)
    left = compose(there, corrected).norm(dim=1).mean() / compose(there, back).norm(dim=1).mean()
    assert 0.2 < left < 0.33  # not nothing: an exact inverse would be rough
    assert ndv(corrected).sum() == 0


def test_smooth_keeps_a_constant_and_agrees_with_scipy():
    field = torch.rand(2, 3, *SHAPE)
    torch.testing.assert_close(smooth(torch.ones(1, 1, *SHAPE), 1.0), torch.ones(1, 1, *SHAPE))
    expected = gaussian_filter(field.numpy(), 1.0, mode="nearest", radius=(0, 0, 3, 3, 3))
    np.testing.assert_allclose(smooth(field, 1.0).numpy(), expected, atol=1e-5)


def test_integrate_refuses_nothing():
    with pytest.raises(ValueError, match="at least one"):
        integrate([], SHAPE)


def test_resize_field_rescales_each_axis_by_its_own_factor():
    field = torch.ones(1, 3, *SHAPE)
    assert resize_field(field, SHAPE) is resize_image(field, SHAPE) is field
    resized = resize_field(field, (14, 8, 27))
    for axis, factor in enumerate((2.0, 1.0, 3.0)):
        torch.testing.assert_close(resized[:, axis], torch.full_like(resized[:, axis], factor))


@pytest.mark.parametrize("size", [(24, 28, 32), (12, 14, 16)])
def test_taper_joins_the_identity_at_the_border_and_keeps_the_middle(size):
    faded = taper(torch.ones(1, 3, *size), (24, 28, 32))
    factor = 24 / size[0]
    assert faded[0, :, 0].abs().max() == faded[0, 0, -1].abs().max() == faded[0, ..., -1].abs().max() == 0
    assert faded[0, 0, -2].max() == pytest.approx(factor / 4)
    middle = int(4 / factor)
    assert (faded[..., middle:-middle, middle:-middle, middle:-middle] == 1).all()


def test_downsample_and_upsample_share_voxel_centres():
    ramp = voxel_grid((8, 12, 16))[None]
    halved = downsample(ramp)  # the centre of coarse voxel j is 2 j + 0.5
    torch.testing.assert_close(halved, 2 * voxel_grid((4, 6, 8))[None] + 0.5)
    again = resize_image(halved, (8, 12, 16))[..., 1:-1, 1:-1, 1:-1]
    torch.testing.assert_close(again, ramp[..., 1:-1, 1:-1, 1:-1])


def test_downsample_keeps_the_last_voxel_of_odd_sizes():
    assert downsample(torch.rand(1, 1, *SHAPE)).shape[2:] == halve_shape(SHAPE) == (4, 4, 5)


def test_folding_keeps_every_voxel_in_its_block():
    image = torch.arange(2 * 2 * 3 * 4 * 5.0).view(2, 2, 3, 4, 5)
    folded = fold(image)
    assert folded.shape == (2, 16, 2, 2, 3)
    torch.testing.assert_close(folded[1, :8, 0, 1, 1].view(2, 2, 2), image[1, 0, 0:2, 2:4, 2:4])
    for copy in folded[1, 8:, 1, 0, 0].view(2, 2, 2):  # an odd size is filled up by its border
        torch.testing.assert_close(copy, image[1, 1, 2, 0:2, 0:2])


def test_gradient_of_a_ramp_is_one_along_its_axis():
    ramp = voxel_grid(SHAPE)[None]
    slope = gradient(ramp)[..., :-1, :-1, :-1]
    torch.testing.assert_close(slope, torch.eye(3).view(1, 3, 3, 1, 1, 1).expand_as(slope))


def test_jacobian_of_a_scaling_is_its_volume_factor():
    scaling = torch.tensor([0.1, 0.2, -0.3]).view(1, 3, 1, 1, 1) * voxel_grid(SHAPE)
    torch.testing.assert_close(jacobian_determinant(scaling), torch.full((1, *SHAPE), 1.1 * 1.2 * 0.7))
    assert ndv(scaling).abs().max() == 0


def test_a_mirrored_axis_is_wholly_inverted():
    mirror = torch.zeros(1, 3, *SHAPE)
    mirror[:, 0] = -2 * voxel_grid(SHAPE)[0]
    assert (jacobian_determinant(mirror) < 0).all()
    torch.testing.assert_close(ndv(mirror), torch.ones(1, 6, 7, 8), atol=1e-4, rtol=0)


def test_cell_volumes_do_not_depend_on_the_blocks(monkeypatch):
    field = 2 * torch.randn(2, 3, *SHAPE)
    whole = cell_volumes(field)
    for planes, cells in ((1, 9), (2, 40), (3, 2**20)):
        monkeypatch.setattr("mmln_pipeline.fields.jacobian._BLOCK_PLANES", planes)
        monkeypatch.setattr("mmln_pipeline.fields.jacobian._BLOCK_CELLS", cells)
        for part, expected in zip(cell_volumes(field), whole, strict=True):
            assert torch.equal(part, expected)
    inverted, smallest = whole
    assert torch.equal(inverted > 0, smallest < 0) and torch.equal(inverted, ndv(field))


def test_the_smallest_volume_of_a_scaling_is_its_factor():
    scaling = torch.tensor([0.1, 0.2, -0.3]).view(1, 3, 1, 1, 1) * voxel_grid(SHAPE)
    torch.testing.assert_close(cell_volumes(scaling)[1], torch.full((1, 6, 7, 8), 1.1 * 1.2 * 0.7))


@pytest.mark.parametrize("corner", [*product((0, 1), repeat=3)])
def test_a_corner_pushed_inwards_is_the_smallest_tetrahedron(corner):
    pushed = torch.zeros(1, 3, 2, 2, 2)
    pushed[(0, slice(None), *corner)] = 0.25 * (1 - 2 * torch.tensor(corner))
    inverted, smallest = cell_volumes(pushed)
    assert smallest.item() == pytest.approx(1 - 3 * 0.25) and inverted == 0


@pytest.mark.parametrize("degrees", [60, 120])
def test_a_twisted_cell_folds_in_its_middle(degrees):
    """The corners keep their volumes, the tetrahedron between them has the angle's cosine of its own, a third."""
    turn = torch.eye(2) - torch.tensor(Rotation.from_euler("z", degrees, degrees=True).as_matrix()[:2, :2]).float()
    twist = torch.zeros(1, 3, 2, 2, 2)
    twist[0, :2, :, :, 1] = torch.einsum("ab,bij->aij", -turn, voxel_grid((2, 2)) - 0.5)
    inverted, smallest = cell_volumes(twist)
    cosine = math.cos(math.radians(degrees))
    assert smallest.item() == pytest.approx(cosine, abs=1e-6)
    assert inverted.item() == pytest.approx(max(0, -cosine) / 3, abs=1e-6)


def test_ndv_sees_a_fold_that_central_differences_miss():
    field = torch.zeros(1, 3, *SHAPE)
    field[0, 0, 3, 4, 4] = 1.5  # one voxel jumps over its neighbour
    assert (jacobian_determinant(field) > 0).all()
    assert ndv(field).sum() > 0


def test_batch_equals_single():
    velocity = smooth_velocity(SHAPE, batch=2)
    both = exponentiate(velocity)
    for i in range(2):
        torch.testing.assert_close(both[i : i + 1], exponentiate(velocity[i : i + 1]))
        torch.testing.assert_close(ndv(both)[i : i + 1], ndv(both[i : i + 1]))


@pytest.mark.parametrize("shape", [(12, 8, 9), (11, 6, 9)])
def test_threads_do_not_change_a_warp(shape):
    image, field = torch.rand(1, 2, *shape), 2 + smooth_velocity(shape)  # some of it looks beyond the border
    threads = torch.get_num_threads()
    results = []
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        results.append(warp(image, field))
    torch.set_num_threads(threads)
    assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])


def test_fields_stay_on_the_device_of_their_velocity():
    elsewhere = torch.zeros(1, 3, *SHAPE, device="meta")
    for made in (
        voxel_grid(SHAPE, elsewhere.device),
        integrate([elsewhere, taper(elsewhere, SHAPE)], (14, 16, 18)),
        correct_inverse(elsewhere, elsewhere),
        jacobian_determinant(elsewhere),
    ):
        assert made.device == elsewhere.device
