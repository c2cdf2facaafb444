"""Refinement: it lowers the mismatch, stays invertible, minds its budget and its weight."""

from __future__ import annotations

import pytest
import torch

from mmln_pipeline.fields.integration import exponentiate, integrate
from mmln_pipeline.fields.jacobian import ndv
from mmln_pipeline.fields.scales import resize_image
from mmln_pipeline.fields.warping import compose, warp
from mmln_pipeline.network.losses import local_correlation_loss, soft_dice_loss, squared_difference_loss, volume_loss
from mmln_pipeline.network.tissues import depth_map, tissue_maps
from mmln_pipeline.refinement.descent import refine
from mmln_pipeline.refinement.parameters import RefinementSettings

SHAPE = (24, 28, 32)


@pytest.fixture
def pair():
    """Return a textured pair with a known smooth deformation, and a zero start."""
    generator = torch.Generator().manual_seed(0)
    moving = resize_image(torch.rand(1, 1, 9, 10, 11, generator=generator), SHAPE)
    velocity = resize_image(torch.randn(1, 3, 3, 3, 3, generator=generator), SHAPE)
    return warp(moving, exponentiate(velocity)), moving, (torch.zeros(1, 3, 6, 7, 8),)


def test_it_lowers_the_loss_and_stays_invertible(pair):
    fixed, moving, start = pair
    fields = refine(fixed, moving, start, 30)
    displacement = integrate(fields, SHAPE)
    before = local_correlation_loss(fixed, moving, 5)
    after = local_correlation_loss(fixed, warp(moving, displacement), 5)
    assert after < 0.6 * before
    assert ndv(displacement).sum() == 0
    back = integrate(fields, SHAPE, inverse=True)
    assert compose(displacement, back).norm(dim=1).mean() < 0.1


def test_volume_changes_are_held_back(pair):
    changes = []
    for weight in (0.0, 1.0):
        settings = RefinementSettings(volume=weight)
        changes.append(volume_loss(integrate(refine(*pair, 20, settings=settings), SHAPE)))
    assert changes[1] < 0.7 * changes[0]


def brain(first):
    """Return three nested tissues, one face of which lies where asked."""
    image = torch.zeros(1, 1, *SHAPE)
    for depth, value in enumerate((0.3, 0.6, 0.9)):
        image[..., first + depth : -4 - depth, 4 + depth : -4 - depth, 4 + depth : -4 - depth] = value
    return image


def test_what_has_no_weight_steers_nothing_however_dark():
    fixed, moving, start = brain(6), brain(8), (torch.zeros(1, 3, 6, 7, 8),)
    weight, hole = torch.ones_like(fixed), fixed.clone()
    weight[..., 14:18, 12:16, 14:18] = 0
    hole[weight == 0] = 0.3
    whole, lesioned = (integrate(refine(image, moving, start, 6, weight), SHAPE) for image in (fixed, hole))
    assert whole.abs().max() > 0.5
    torch.testing.assert_close(lesioned, whole, atol=0.02, rtol=0)


def test_the_tissues_surfaces_are_brought_together():
    """One face lies six voxels off, flat inside: little of it in a window's sight, all of it in that of depth."""
    fixed, moving = brain(6), brain(12)
    start = (torch.zeros(1, 3, 6, 7, 8),)
    apart = []
    for weight in (0.0, 0.05):
        settings = RefinementSettings(depth=weight)
        moved = warp(moving, integrate(refine(fixed, moving, start, 5, settings=settings), SHAPE))
        apart.append(squared_difference_loss(depth_map(tissue_maps(fixed)), depth_map(tissue_maps(moved))))
    assert apart[1] < 0.7 * apart[0]


def test_tissues_are_laid_over_each_other_however_bright():
    fixed, moving = brain(6), brain(8) ** 2
    start = (torch.zeros(1, 3, 6, 7, 8),)
    apart = []
    for weight in (0.0, 0.6):
        settings = RefinementSettings(tissues=weight)
        moved = warp(tissue_maps(moving), integrate(refine(fixed, moving, start, 10, settings=settings), SHAPE))
        apart.append(soft_dice_loss(tissue_maps(fixed), moved))
    assert apart[1] < 0.9 * apart[0]


def test_zero_iterations_return_the_input(pair):
    fixed, moving, start = pair
    assert refine(fixed, moving, start, 0) == start


def test_nothing_leaks_from_one_pair_into_the_next(pair):
    fixed, moving, start = pair
    first = refine(fixed, moving, start, 4)[-1]
    refine(moving, fixed, start, 4)
    torch.testing.assert_close(refine(fixed, moving, start, 4)[-1], first, atol=0, rtol=0)


def test_an_aligned_pair_stays_as_it_is(pair):
    fixed, _, start = pair
    displacement = integrate(refine(fixed, fixed, start, 8), SHAPE)
    assert displacement.abs().max() < 0.2


def test_progress_and_errors(pair):
    fixed, moving, start = pair
    lines = []
    refine(fixed, moving, start, 4, progress=lines.append)
    assert len(lines) == 8 and "1/4 at 12x14x16" in lines[0] and "4/4 at 24x28x32" in lines[7]
    for bad in ("fast", -1):
        with pytest.raises(ValueError, match="refine: expected 'auto' or a number"):
            refine(fixed, moving, start, bad)


def test_settings_are_checked_where_they_are_made_and_set_the_course(pair):
    lines = []
    refine(*pair, progress=lines.append, settings=RefinementSettings(iterations=2))
    assert len(lines) == 4 and "2/2 at 24x28x32" in lines[3]
    patient = []
    refine(*pair, 12, progress=patient.append, settings=RefinementSettings(patience=2, gain=0.9))
    assert len(patient) == 2 * 6  # the first step counts as a gain, three warm up, two are no gain
    with pytest.raises(ValueError, match=r"refinement\.volume: expected a number of at least 0, found -1"):
        RefinementSettings(volume=-1)
    for windows in ((), (3, 4), (1,)):
        with pytest.raises(ValueError, match=r"refinement\.windows: expected odd numbers of at least 3"):
            RefinementSettings(windows=windows)
    with pytest.raises(TypeError):
        RefinementSettings((3, 7))
