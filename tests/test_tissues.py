"""Tissue maps: three classes by brightness, whatever the contrast; nothing outside the brain. Depth in voxels."""

from __future__ import annotations

import pytest
import torch

from mmln_pipeline.network.tissues import REACH, depth_map, tissue_maps


@pytest.fixture
def shells():
    """Return a brain of three noisy tissues in an empty image, and where each tissue is."""
    generator = torch.Generator().manual_seed(3)
    image, where = torch.zeros(1, 1, 15, 16, 17), torch.zeros(1, 3, 15, 16, 17)
    for k, (margin, value) in enumerate([(2, 0.2), (4, 0.5), (6, 0.8)]):
        inner = (..., slice(margin, -margin), slice(margin, -margin), slice(margin, -margin))
        image[inner] = value
        where[inner] = 0
        where[:, k : k + 1][inner] = 1
    return image + 0.02 * torch.randn(image.shape, generator=generator) * (image > 0), where


def test_every_tissue_gets_its_map(shells):
    image, where = shells
    torch.testing.assert_close(tissue_maps(image), where, atol=0.05, rtol=0)


def test_brightness_and_scale_do_not_matter(shells):
    image, _ = shells
    torch.testing.assert_close(tissue_maps(0.3 * image), tissue_maps(image), atol=1e-3, rtol=0)
    both = tissue_maps(torch.cat([image, image.flip(2)]))
    torch.testing.assert_close(both[1:], both[:1].flip(2), atol=1e-3, rtol=0)


def test_shares_sum_to_one_in_the_brain(shells):
    image, _ = shells
    torch.testing.assert_close(tissue_maps(image).sum(1, keepdim=True), (image > 0).float())


@pytest.mark.parametrize("image", [torch.zeros(1, 1, 4, 5, 6), torch.ones(1, 1, 4, 5, 6)])
def test_an_image_without_contrast_has_no_tissues(image):
    assert not tissue_maps(image).any()
    assert not depth_map(tissue_maps(image)).any()


def test_depth_is_the_signed_distance_to_fluid_and_background(shells):
    image, _ = shells  # tissue begins 4 voxels from the edge
    depth = depth_map(tissue_maps(image))
    assert depth.shape == image.shape and depth.dtype == torch.float32
    along = depth[0, 0, :, 8, 8]
    assert along[:8].tolist() == [-4, -3, -2, -1, 1, 2, 3, 4] and along[8:].equal(along[:7].flip(0))
    far = depth_map(tissue_maps(torch.nn.functional.pad(image, (20,) * 6)))
    assert far.min() == -REACH


def test_depth_does_not_mind_brightness(shells):
    image, _ = shells
    assert depth_map(tissue_maps(0.3 * image)).equal(depth_map(tissue_maps(image)))
