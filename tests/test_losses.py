"""Losses: known values, flat backgrounds, and the level totals of eq. 6-8."""

from __future__ import annotations

import pytest
import torch

from mmln_pipeline.fields.scales import fold
from mmln_pipeline.fields.warping import voxel_grid
from mmln_pipeline.network.losses import (
    global_correlation_loss,
    level_loss,
    local_correlation,
    local_correlation_loss,
    similarity_loss,
    smoothness_loss,
    soft_dice_loss,
    squared_difference_loss,
    volume_loss,
)

SHAPE = (7, 8, 9)


def test_global_correlation_ignores_scale_and_offset():
    image = torch.rand(2, 1, *SHAPE)
    assert global_correlation_loss(image, 0.3 * image + 0.2) < 1e-5
    assert global_correlation_loss(image, 1 - image) == pytest.approx(2, abs=1e-5)


def test_global_correlation_is_pearsons():
    a, b = torch.rand(1, 1, *SHAPE), torch.rand(1, 1, *SHAPE)
    expected = torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1]
    torch.testing.assert_close(1 - global_correlation_loss(a, b), expected, atol=1e-5, rtol=0)


def test_local_correlation_matches_a_window_by_hand():
    a, b = torch.rand(1, 1, *SHAPE), torch.rand(1, 1, *SHAPE)
    centre = (slice(2, 5), slice(3, 6), slice(4, 7))
    pair = torch.stack([a[(0, 0, *centre)].flatten(), b[(0, 0, *centre)].flatten()])
    expected = torch.corrcoef(pair)[0, 1] ** 2
    torch.testing.assert_close(local_correlation(a, b, 3)[0, 0, 3, 4, 5], expected, atol=1e-3, rtol=0)


def test_windows_hold_what_there_is_of_them():
    a, b = torch.rand(1, 1, *SHAPE), torch.rand(1, 1, *SHAPE)
    corner = torch.stack([a[0, 0, :3, :3, :3].flatten(), b[0, 0, :3, :3, :3].flatten()])
    torch.testing.assert_close(
        local_correlation(a, b, 5)[0, 0, 0, 0, 0], torch.corrcoef(corner)[0, 1] ** 2, atol=1e-3, rtol=0
    )
    whole = local_correlation(a[..., :2], b[..., :2], 5)  # shrunk to 1 along the last axis
    assert whole.shape == (1, 1, *SHAPE[:2], 2) and whole.isfinite().all()


@pytest.mark.parametrize("window", [3, 5, 9])
def test_gradient_of_local_correlation_is_its_slope(window):
    a, b, way = (torch.rand(1, 1, 9, 10, 12) for _ in range(3))
    b.requires_grad_()
    (gradient,) = torch.autograd.grad(local_correlation_loss(a, b, window), b)
    ahead, behind = (local_correlation_loss(a, b.detach() + step * way, window) for step in (0.01, -0.01))
    torch.testing.assert_close((gradient * way).sum(), (ahead - behind) / 0.02, atol=1e-3, rtol=0.02)


@pytest.mark.parametrize(("window", "shape", "first"), [(9, (7, 8, 9), 6), (6, (11, 12, 14), 4)])
def test_wide_and_even_windows_lie_round_blocks(window, shape, first):
    """The block of index 3 along each axis: of 3 voxels in a window of 9, of 2 voxels in one of 6."""
    smooth = torch.nn.functional.interpolate(torch.rand(2, 1, 5, 6, 7), size=(21, 24, 27), mode="trilinear")
    a, b = smooth[:1], smooth[1:]
    coarse = local_correlation(a, b, window)
    assert coarse.shape == (1, 1, *shape)
    centre = (slice(first, first + window),) * 3
    pair = torch.stack([a[(0, 0, *centre)].flatten(), b[(0, 0, *centre)].flatten()])
    torch.testing.assert_close(coarse[0, 0, 3, 3, 3], torch.corrcoef(pair)[0, 1] ** 2, atol=1e-3, rtol=0)


def test_of_several_windows_the_mean_counts():
    a, b = torch.rand(1, 1, *SHAPE), torch.rand(1, 1, *SHAPE)
    expected = sum(local_correlation_loss(a, b, window) for window in (3, 5, 6, 9)) / 4
    torch.testing.assert_close(local_correlation_loss(a, b, (3, 5, 6, 9)), expected)


def test_unasked_a_window_has_an_edge_of_seven_voxels():
    a, b = torch.rand(2, 1, 1, *SHAPE)
    assert torch.equal(local_correlation(a, b), local_correlation(a, b, 7))
    assert local_correlation_loss(a, b) == local_correlation_loss(a, b, 7) == similarity_loss(a, b, "local")


def test_soft_dice_counts_the_structures_that_are_there():
    fixed = torch.zeros(1, 3, *SHAPE)
    fixed[:, 0, 1:5, 1:5, 1:5] = 1
    fixed[:, 1, 5:7, 5:7, 5:7] = 1
    assert soft_dice_loss(fixed, fixed) == pytest.approx(0, abs=1e-6)
    half = fixed.clone()
    half[:, 0, 1:5, 1:5, 1:3] = 0
    assert soft_dice_loss(fixed, half) == pytest.approx((1 - 2 * 32 / (64 + 32)) / 2, abs=1e-6)
    assert soft_dice_loss(fixed, torch.zeros_like(fixed)) == pytest.approx(1, abs=1e-6)
    weight = torch.ones(1, 1, *SHAPE)
    weight[..., :3] = 0  # where they differ
    assert soft_dice_loss(fixed, half, weight) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("level", [0.0, 0.5, 1.0])
def test_local_correlation_is_calm_on_flat_background(level):
    flat = torch.full((1, 1, *SHAPE), level, requires_grad=True)
    noisy = level + torch.randn(1, 1, *SHAPE) / 255
    loss = local_correlation_loss(flat, noisy)
    loss.backward()
    assert 0.99 < loss.item() <= 1.0
    assert torch.isfinite(flat.grad).all()


@pytest.mark.parametrize("window", [3, 9])
def test_what_has_no_weight_enters_no_window(window):
    generator = torch.Generator().manual_seed(0)
    a, b = torch.rand(2, 1, 1, *SHAPE, generator=generator)
    weight = torch.ones(1, 1, *SHAPE)
    lesion = (..., slice(2, 5), slice(3, 6), slice(1, 4))
    weight[lesion] = 0
    changed = b.clone()
    changed[lesion] = 1 - changed[lesion]
    torch.testing.assert_close(
        local_correlation_loss(a, b, window, weight), local_correlation_loss(a, changed, window, weight)
    )
    assert not torch.isclose(local_correlation_loss(a, b, window), local_correlation_loss(a, changed, window))


@pytest.mark.parametrize("is_weighted", [False, True])
def test_samples_of_a_block_count_as_its_voxels(is_weighted):
    a, b, weight = torch.rand(3, 1, 1, 12, 10, 14)
    whole = similarity_loss(a, b, "local+global", (6, 14), weight if is_weighted else None)
    a, b, weight = fold(a), fold(b), fold(weight)
    torch.testing.assert_close(similarity_loss(a, b, "local+global", (3, 7), weight if is_weighted else None), whole)


def test_local_weight_leaves_voxels_out():
    a, b = torch.rand(1, 1, *SHAPE), torch.rand(1, 1, *SHAPE)
    b[..., :3] = a[..., :3]
    weight = torch.zeros(1, 1, *SHAPE)
    weight[..., :1] = 1
    assert local_correlation_loss(a, b, 3, weight) < 1e-3 < local_correlation_loss(a, b, 3)


def test_squared_difference_leaves_out_what_has_no_weight():
    a, weight = torch.rand(1, 1, *SHAPE), torch.ones(1, 1, *SHAPE)
    b = a + 2
    torch.testing.assert_close(squared_difference_loss(a, b), torch.tensor(4.0))
    b[..., :3], weight[..., :3] = 100, 0
    torch.testing.assert_close(squared_difference_loss(a, b, weight), torch.tensor(4.0))
    assert squared_difference_loss(a, b, torch.zeros_like(a)) == 0


def test_similarity_loss_names_what_it_knows():
    image = torch.rand(1, 1, *SHAPE)
    with pytest.raises(ValueError, match=r"expected one of 'global', 'local', 'local\+global', found 'mi'"):
        similarity_loss(image, image, "mi")


def test_of_the_two_correlations_the_global_one_counts_where_either_brain_is():
    fixed, moved = torch.rand(1, 1, *SHAPE), torch.rand(1, 1, *SHAPE)
    fixed[..., :4] = 0
    moved[..., :2] = moved[..., 7:] = 0
    both = similarity_loss(fixed, moved, "local+global", 3)
    brain = global_correlation_loss(fixed[..., 2:], moved[..., 2:])
    torch.testing.assert_close(both, local_correlation_loss(fixed, moved, 3) + brain)
    more = similarity_loss(fixed, moved, "local+global", 3, share=2)
    torch.testing.assert_close(more - both, brain)
    spared = torch.ones_like(fixed)
    spared[..., 8:] = 0
    both = similarity_loss(fixed, moved, "local+global", 3, spared)
    part = global_correlation_loss(fixed[..., 2:8], moved[..., 2:8])
    torch.testing.assert_close(both, local_correlation_loss(fixed, moved, 3, spared) + part)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_smoothness_weighs_axes_alike_in_voxels(axis):
    shape = (40, 40, 40)
    ramp = torch.zeros(1, 3, *shape)
    ramp[:, 1] = 0.5 * voxel_grid(shape)[axis]
    assert smoothness_loss(ramp).item() == pytest.approx(0.25 * 39 / 40, rel=1e-5)


def test_volume_loss_is_blind_to_a_shear_and_even_for_growth_and_shrinking():
    grid = voxel_grid(SHAPE)[None]
    shear, growth = torch.zeros_like(grid), torch.zeros_like(grid)
    shear[:, 0] = 0.5 * grid[:, 1]
    growth[:, 1] = 0.25 * grid[:, 1]
    assert volume_loss(shear) == 0
    grown = torch.log(torch.tensor(1.25)) ** 2 * (SHAPE[1] - 1) / SHAPE[1]  # the last plane has no neighbour
    torch.testing.assert_close(volume_loss(growth), grown)
    torch.testing.assert_close(volume_loss(-growth * 0.8), grown)


@pytest.mark.parametrize(("level", "expected"), [(1, 0.5 + 2 / 4 * 3), (2, 0.5 + 2 / 2 * 3), (3, 0.5 + 2 * 3)])
def test_level_totals(level, expected):
    total = level_loss(level, 3, torch.tensor(0.5), torch.tensor(3.0), 2.0, branch=0.25 * torch.tensor(0.4))
    assert total.item() == pytest.approx(expected + 0.1)
    assert level_loss(level, 3, torch.tensor(0.5), torch.tensor(3.0), 2.0).item() == pytest.approx(expected)
