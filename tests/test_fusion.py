"""Joint label fusion: what it must return by definition, and that it beats voting where an atlas is bad."""

import numpy as np
import pytest
import SimpleITK as sitk
from scipy import ndimage

from mmln_pipeline.atlas import fusion
from mmln_pipeline.atlas.fusion import joint_label_fusion
from mmln_pipeline.scores.metrics import dice, label_mean

SHAPE = (23, 26, 29)


def simulate(rng, shifts, noise=0.05):
    """A labelled image, and atlases of it that are misaligned by smooth random displacements (mean size in voxels)."""
    grid = np.stack(np.meshgrid(*(np.linspace(-1, 1, n) for n in SHAPE), indexing="ij"))
    radius = np.sqrt((grid**2).sum(0))
    labels = np.select([radius < 0.35, radius < 0.6, (radius < 0.85) & (grid[0] > 0), radius < 0.85], [4, 9, 2, 3], 0)
    brightness = np.array([0.0, 0.0, 0.8, 0.6, 1.0, 0, 0, 0, 0, 0.3])
    clean = ndimage.gaussian_filter(brightness[labels], 0.5)
    target = clean + noise * rng.standard_normal(SHAPE)
    images, segmentations = [], []
    for size in shifts:
        offset = np.stack([ndimage.gaussian_filter(rng.standard_normal(SHAPE), 4) for _ in range(3)])
        places = np.indices(SHAPE) + offset * size / np.sqrt((offset**2).sum(0)).mean()
        moved = ndimage.map_coordinates(clean, places, order=1, mode="nearest")
        images.append(moved * 1.7 + 0.2 + noise * rng.standard_normal(SHAPE))  # another scanner
        segmentations.append(ndimage.map_coordinates(labels, places, order=0, mode="nearest"))
    return target, labels, images, segmentations


def majority(segmentations):
    votes = sitk.LabelVoting([sitk.GetImageFromArray(array.astype(np.uint8)) for array in segmentations], 0)
    return sitk.GetArrayFromImage(votes)


def score(truth, labels):
    return label_mean(dice(truth, labels))


def test_beats_majority_voting_with_a_bad_atlas(rng):
    target, truth, images, segmentations = simulate(rng, (1.0, 1.0, 5.0))
    fused = score(truth, joint_label_fusion(target, images, segmentations))
    assert fused > score(truth, majority(segmentations)) + 0.03
    assert fused > max(score(truth, labels) for labels in segmentations) + 0.03


def test_atlases_that_err_alike_count_once(rng):
    """Two copies of a bad atlas outvote a good one in a majority, and not here."""
    target, truth, images, segmentations = simulate(rng, (0.7, 4.0))
    images, segmentations = [*images, images[1]], [*segmentations, segmentations[1]]
    assert score(truth, joint_label_fusion(target, images, segmentations)) > score(truth, majority(segmentations)) + 0.1


def test_search_helps_misaligned_atlases(rng):
    target, truth, images, segmentations = simulate(rng, (1.5, 1.5, 1.5), noise=0.02)
    without, with_search = (
        score(truth, joint_label_fusion(target, images, segmentations, radius)) for radius in (0, 1)
    )
    assert with_search > without


def test_agreement_is_kept_and_labels_are_never_invented(rng):
    target, _, images, segmentations = simulate(rng, (1.0, 2.0, 2.0))
    fused = joint_label_fusion(target, images, segmentations)
    assert fused.dtype == np.int32 and fused.shape == SHAPE
    same = (segmentations[0] == segmentations[1]) & (segmentations[0] == segmentations[2])
    np.testing.assert_array_equal(fused[same], segmentations[0][same])
    assert set(np.unique(fused)) <= set(np.unique(segmentations))
    equal = joint_label_fusion(target, images[:2], [segmentations[0]] * 2)
    np.testing.assert_array_equal(equal, segmentations[0])


def test_flat_images_make_a_majority_vote(rng):
    segmentations = [rng.integers(0, 2, (7, 8, 9)) for _ in range(3)]
    flat = np.ones((7, 8, 9))
    fused = joint_label_fusion(flat, [flat] * 3, segmentations, search_radius=0)
    np.testing.assert_array_equal(fused, np.sum(segmentations, axis=0) >= 2)


def test_weights_by_the_equation(rng):
    errors = np.abs(rng.standard_normal((3, 5, 11))).astype(np.float32)
    weights = fusion._weights(errors)
    for voxel in range(5):
        matrix = (errors[:, voxel] @ errors[:, voxel].T / 11) ** 2 + fusion.ALPHA * np.eye(3)
        expected = np.linalg.inv(matrix) @ np.ones(3)
        np.testing.assert_allclose(weights[voxel], expected / expected.sum(), rtol=1e-5)


def test_brightness_of_an_atlas_does_not_matter(rng):
    target, _, images, segmentations = simulate(rng, (1.0, 2.0))
    fused = joint_label_fusion(target, images, segmentations)
    scaled = joint_label_fusion(3000 * target, [90 * images[0] + 4, images[1]], segmentations)
    assert (fused == scaled).mean() > 0.999


def test_chunks_change_nothing(rng, monkeypatch):
    target, _, images, segmentations = simulate(rng, (1.0, 2.0))
    whole = joint_label_fusion(target, images, segmentations)
    monkeypatch.setattr(fusion, "CHUNK_BYTES", 40_000)
    np.testing.assert_array_equal(joint_label_fusion(target, images, segmentations), whole)


def test_search_finds_a_shifted_patch(rng):
    """An atlas that is off by one voxel is brought back by the search."""
    image = rng.standard_normal((12, 13, 14)).astype(np.float32)
    shifted = np.roll(image, (1, 0, -1), axis=(0, 1, 2))
    voxels = np.ravel_multi_index(([6, 5], [6, 7], [6, 8]), image.shape)
    expected = np.ravel_multi_index(([7, 6], [6, 7], [5, 7]), image.shape)
    np.testing.assert_array_equal(fusion._match(image, shifted, voxels, 1), expected)


def test_as_good_as_ants(rng):
    ants = pytest.importorskip("ants")
    target, truth, images, segmentations = simulate(rng, (1.0, 2.0, 5.0))
    to_ants = lambda array: ants.from_numpy(np.ascontiguousarray(array, dtype=np.float32))  # noqa: E731
    theirs = ants.joint_label_fusion(
        to_ants(target),
        to_ants(np.ones(SHAPE)),
        [to_ants(image) for image in images],
        label_list=[to_ants(labels) for labels in segmentations],
        rad=2,
        r_search=1,
        beta=2,
        rho=0.1,
    )["segmentation"].numpy()
    assert score(truth, joint_label_fusion(target, images, segmentations)) > score(truth, theirs) - 0.01


@pytest.mark.parametrize(
    ("number", "shape", "radius", "words"),
    [
        (1, SHAPE, 1, "expected two atlases or more, each an image and its labels, found 1 images"),
        (2, (7, 8, 9), 1, "expected all volumes on one 3-D grid, found the shapes"),
        (2, SHAPE, -1, "search radius: expected 0 voxels or more, found -1"),
    ],
)
def test_wrong_input(number, shape, radius, words):
    with pytest.raises(ValueError, match=words):
        joint_label_fusion(np.ones(SHAPE), [np.ones(SHAPE)] * number, [np.ones(shape, int)] * number, radius)
