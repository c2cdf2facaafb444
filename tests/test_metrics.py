"""Scores against hand-computed values, on small odd-shaped arrays."""

import numpy as np
import pytest
from scipy import ndimage

from mmln_pipeline.atlas.labels import LabelTable
from mmln_pipeline.scores import metrics

SHAPE = (7, 8, 9)


@pytest.fixture
def cubes():
    """Two 4 x 4 x 4 cubes of label 5, one voxel apart along the second axis."""
    a, b = np.zeros((2, *SHAPE), dtype=np.uint8)
    a[1:5, 1:5, 1:5] = 5
    b[1:5, 2:6, 1:5] = 5
    return a, b


def test_dice_by_hand(cubes):
    a, b = cubes
    assert metrics.dice(a, b) == {"5": pytest.approx(0.75)}
    assert metrics.dice(a, a) == {"5": 1.0}


def test_dice_skips_what_both_lack_and_counts_what_one_lacks(cubes):
    a, b = cubes
    b = b.copy()
    b[6, 7, 8] = 9
    assert metrics.dice(a, b, [5, 9, 11]) == {"5": pytest.approx(0.75), "9": 0.0}
    assert metrics.dice(a, b, [0, 9]) == {"9": 0.0}, "the background is never scored"
    assert metrics.dice(a, b, {"Background": (0,), "Corner": (9,)}) == {"Corner": 0.0}


def test_dice_merges_the_numbers_of_one_structure():
    a = np.zeros(SHAPE, dtype=np.int16)
    b = np.zeros(SHAPE, dtype=np.int16)
    a[:2], a[2:4] = 71, 72
    b[:1], b[1:4] = 71, 73
    table = LabelTable("vermis", {"Vermis": (71, 72, 73), "Absent": (4,)})
    assert metrics.dice(a, b, table) == {"Vermis": 1.0}


def test_large_and_floating_label_numbers(cubes):
    a, b = cubes
    big = np.int64(614454277)
    assert metrics.dice(a * (big // 5), b * (big // 5)) == {str(big // 5 * 5): pytest.approx(0.75)}
    assert metrics.dice(a.astype(np.float32), b) == {"5": pytest.approx(0.75)}


def test_different_grids_are_refused(cubes):
    a, _ = cubes
    for score in (metrics.dice, metrics.tc, metrics.hd95, metrics.global_correlation):
        with pytest.raises(ValueError, match=r"\(7, 8, 9\) and \(9, 8, 7\)"):
            score(a, a.transpose())
    with pytest.raises(ValueError, match="mask has shape"):
        metrics.folding_percent(np.ones(SHAPE), np.ones((9, 8, 7)))


def test_tc_is_volume_after_over_before():
    before = np.zeros(SHAPE, dtype=np.uint8)
    after = np.zeros(SHAPE, dtype=np.uint8)
    before[:4], before[4:6] = 1, 2
    after[:2], after[6:] = 1, 3
    assert metrics.tc(before, after) == {"1": 0.5, "2": 0.0}


def test_hd95_of_shifted_cubes_is_in_mm(cubes):
    a, b = cubes
    assert metrics.hd95(a, b) == {"5": pytest.approx(1.0)}
    assert metrics.hd95(a, b, spacing=(1.0, 2.5, 1.0)) == {"5": pytest.approx(2.5, abs=0.3)}
    assert metrics.hd95(a, a) == {"5": 0.0}
    assert metrics.hd95(a, np.zeros_like(a)) == {}


def test_hd95_crops_do_not_change_the_distance():
    rng = np.random.default_rng(0)
    noise = ndimage.gaussian_filter(rng.normal(size=(2, 21, 23, 25)), (0, 2, 2, 2))
    a, b = (noise > 0.02).astype(np.uint8)
    a[:2] = a[:, :, -1] = b[:, :3] = 0
    spacing = (1.0, 1.2, 0.8)

    def surface_points(mask):
        return np.argwhere(mask & ~ndimage.binary_erosion(mask)) * spacing

    p, q = surface_points(a == 1), surface_points(b == 1)
    distances = np.linalg.norm(p[:, None] - q[None], axis=-1)
    expected = np.percentile(np.concatenate([distances.min(axis=1), distances.min(axis=0)]), 95)
    assert metrics.hd95(a, b, spacing=spacing)["1"] == pytest.approx(expected)


def test_label_mean():
    assert metrics.label_mean({"a": 0.5, "b": 1.0}) == 0.75
    assert metrics.label_mean({}) is None


def test_folding_with_mask_and_without_border():
    jacobian = np.ones(SHAPE)
    jacobian[0, 0, 0], jacobian[3, 3, 3] = -1.0, 0.0
    mask = np.zeros(SHAPE)
    mask[3, 3, :4] = 1
    inner = (SHAPE[0] - 2) * (SHAPE[1] - 2) * (SHAPE[2] - 2)
    assert metrics.folding_percent(jacobian) == pytest.approx(200 / jacobian.size)
    assert metrics.folding_percent(jacobian, mask) == pytest.approx(25.0)
    assert metrics.folding_percent(jacobian, border=1) == pytest.approx(100 / inner)
    assert metrics.folding_percent(jacobian, np.zeros(SHAPE)) is None
    assert metrics.folding_percent([[[-1.0, 1.0]]], [[[1, 0]]]) == 100, "lists will do"


def test_ndv_percent():
    ndv = np.zeros(SHAPE)
    ndv[1, 2, 3] = 0.5
    assert metrics.ndv_percent(ndv) == pytest.approx(50 / ndv.size)
    assert metrics.ndv_percent(ndv, ndv > 0) == pytest.approx(50.0)
    assert metrics.ndv_percent(ndv, np.zeros(SHAPE)) is None


def test_sdlogj_clips_and_stays_inside_the_mask():
    jacobian = np.full(SHAPE, np.e)
    jacobian[:3] = 1.0
    mask = np.zeros(SHAPE)
    mask[2:4] = 1
    assert metrics.sdlogj(jacobian, mask) == pytest.approx(0.5)
    assert metrics.sdlogj(np.full(SHAPE, 2.0)) == pytest.approx(0.0, abs=1e-12)
    single = np.random.default_rng(0).random(SHAPE, dtype=np.float32)
    assert metrics.sdlogj(single) == pytest.approx(np.log(single.astype(np.float64)).std(), rel=1e-12)
    assert metrics.sdlogj(np.array([[[-1.0, 1.0]]])) == pytest.approx(-np.log(1e-9) / 2)
    assert metrics.sdlogj(jacobian, np.zeros(SHAPE)) is None


def test_sdlogj_of_learn2reg_adds_three_and_drops_two_layers():
    shape = (8, 9, 10)
    field = np.random.default_rng(3).normal(0, 1.5, (3, *shape))  # of many folds
    along = np.stack([[(np.roll(c, -1, a) - np.roll(c, 1, a)) / 2 for a in range(3)] for c in field])
    jacobian = np.linalg.det(np.moveaxis(along, (0, 1), (-2, -1)) + np.eye(3))
    inner = (jacobian[2:-2, 2:-2, 2:-2] + 3).clip(0.000000001, 1000000000)
    assert metrics.sdlogj_learn2reg(jacobian) == pytest.approx(np.log(inner).std())
    mask = np.zeros(shape)
    mask[2:4, 3:5, 4:6] = mask[0] = 1
    assert metrics.sdlogj_learn2reg(jacobian, mask) == pytest.approx(np.log(inner[:2, 1:3, 2:4]).std())
    assert metrics.sdlogj_learn2reg(np.ones((4, 9, 9))) is None


def test_global_correlation_ignores_gain_and_offset():
    image = np.random.default_rng(1).random(SHAPE)
    assert metrics.global_correlation(image, 3 * image + 2) == pytest.approx(1.0)
    assert metrics.global_correlation(image, -image) == pytest.approx(-1.0)
    assert metrics.global_correlation(image, np.ones(SHAPE)) is None
    assert metrics.global_correlation(image, image, np.zeros(SHAPE)) is None


@pytest.mark.parametrize("window", [3, 5])
def test_local_correlation_is_the_square_of_pearsons_in_the_window(window):
    a, b = np.random.default_rng(1).random((2, *SHAPE))
    mask = np.zeros(SHAPE)
    mask[3, 4, 5] = 1
    inside = tuple(slice(n - window // 2, n + window // 2 + 1) for n in (3, 4, 5))
    expected = np.corrcoef(a[inside].ravel(), b[inside].ravel())[0, 1] ** 2
    assert metrics.local_correlation(a, b, mask, window) == pytest.approx(expected)


def test_local_correlation_is_finite_on_flat_background():
    rng = np.random.default_rng(2)
    image = np.zeros((15, 17, 19), dtype=np.float32)
    image[5:12, 5:12, 5:14] = rng.random((7, 7, 9))
    assert metrics.local_correlation(image, 2 * image + 1) == pytest.approx(1.0, abs=1e-6)
    other = np.where(image > 0, rng.random(image.shape), 0)
    assert 0 < metrics.local_correlation(image, other, image > 0) < 0.9
    assert metrics.local_correlation(image, np.zeros_like(image)) is None
    assert metrics.local_correlation(image, image, np.zeros_like(image)) is None


def test_local_correlation_of_a_crop_is_that_of_the_whole():
    rng = np.random.default_rng(3)
    a, b = rng.random((2, 30, 31, 32))
    mask = np.zeros(a.shape, dtype=bool)
    mask[12:16, 13:17, 14:18] = True
    assert metrics.local_correlation(a, b, mask) == pytest.approx(
        metrics.local_correlation(a[4:24, 5:25, 6:26], b[4:24, 5:25, 6:26], mask[4:24, 5:25, 6:26])
    )


def test_inverse_consistency_of_a_known_translation():
    forward = np.array([0.5, 1.5, -1.0]).reshape(3, 1, 1, 1) * np.ones((3, *SHAPE))
    mask = np.zeros(SHAPE)
    mask[2:5, 2:5, 2:5] = 1
    assert metrics.inverse_consistency(forward, -forward, mask) == pytest.approx(0.0, abs=1e-12)
    assert metrics.inverse_consistency(forward, 0 * forward, mask) == pytest.approx(np.linalg.norm((0.5, 1.5, 1)))
    far = metrics.inverse_consistency(forward, 0 * forward, mask, (1, 2, 3))
    assert far == pytest.approx(np.linalg.norm((0.5, 3, 3)))
    assert metrics.inverse_consistency(forward, forward, np.zeros(SHAPE)) is None
