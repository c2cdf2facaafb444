"""The passes in C against torch's operators: values and gradients, on odd grids, by one and by two threads."""

from __future__ import annotations

import sys
from multiprocessing import get_context

import pytest
import torch
from torch.nn import functional as F

from mmln_pipeline.fields.jacobian import cell_volumes
from mmln_pipeline.fields.scales import dilate, resize_field, smooth
from mmln_pipeline.fields.warping import compose, warp, warp_corners
from mmln_pipeline.machine import native
from mmln_pipeline.network import losses
from mmln_pipeline.network.convolution import Convolution

SIZE = (37, 42, 33)
"""Odd, and large enough that threads share it."""

pytestmark = pytest.mark.skipif(native._library() is None, reason="the package was built without a compiler")


@pytest.fixture(params=[1, 2], ids=["1 thread", "2 threads"])
def _threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(before)


def draw(*shape, seed=0, low=0.0, high=1.0):
    return low + (high - low) * torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def displacement(batch=1, size=SIZE):
    """Offsets of some voxels, over the border too."""
    return resize_field(draw(batch, 3, 6, 6, 6, low=-0.6, high=0.6), size)


def brains(batch=2, samples=4):
    """Two images that are alike, 0 outside."""
    fixed = draw(batch, samples, *SIZE)
    moved = 0.7 * fixed + 0.3 * draw(batch, samples, *SIZE, seed=1)
    fixed[:, :, :9], moved[:, :, :11] = 0, 0
    return fixed, moved


def run(function, inputs, wanted):
    """Return a result and its gradients by the inputs that are `wanted`."""
    inputs = [x.clone().requires_grad_(n in wanted) for n, x in enumerate(inputs)]
    value = function(*inputs)
    weights = draw(*value.shape, seed=9)
    gradients = torch.autograd.grad((value * weights).sum(), [inputs[n] for n in wanted]) if wanted else ()
    return [value.detach(), *gradients]


CASES = {
    "warp": (warp, [draw(2, 4, *SIZE), displacement(2)], (1,)),
    "warp, gradients for both": (warp, [draw(1, 2, *SIZE), displacement()], (0, 1)),
    "warp in a window": (
        lambda image, u: warp(image, u, origin=(3, 0, 2), spacing=2),
        [draw(1, 1, *SIZE), displacement(size=(11, 20, 9))],
        (0, 1),
    ),
    "warp of a plane": (warp, [draw(1, 1, 1, 40, 33), displacement(size=(1, 40, 33))], (1,)),
    "compose": (compose, [displacement(), displacement().flip(2)], (0, 1)),
    "corners": (
        lambda image, u: warp_corners(image, u, [0, 3, 5, 6]),
        [F.interpolate(draw(1, 1, 10, 10, 10), size=(73, 84, 65), mode="trilinear"), displacement()],
        (1,),
    ),
    "smoothness": (losses.smoothness_loss, [displacement(2)], (0,)),
    "volume": (losses.volume_loss, [displacement(2)], (0,)),
    "local correlation": (lambda a, b: losses.local_correlation_loss(a, b, (3, 7)), brains(), (1,)),
    "local and global correlation": (
        lambda a, b: losses.similarity_loss(a, b, "local+global", (3, 7), share=2.0),
        brains(),
        (1,),
    ),
    "similarity of empty images": (
        lambda a, b: losses.similarity_loss(a, b, "local+global", (3, 7)),
        [torch.zeros(1, 1, *SIZE)] * 2,
        (1,),
    ),
    "smooth": (lambda x: smooth(x, 1.5), [draw(2, 3, *SIZE)], ()),
    "smooth far": (lambda x: smooth(x, 3.0, 12), [draw(1, 1, 9, 10, 11)], ()),
    "dilate": (lambda x: dilate((x > 0.999).float(), 2), [draw(1, 1, *SIZE)], ()),
    "cells": (lambda u: torch.stack(cell_volumes(u)), [3 * displacement(2)], ()),
}


@pytest.mark.usefixtures("_threads")
@pytest.mark.parametrize("name", CASES)
def test_agrees_with_the_operators(name, monkeypatch):
    function, inputs, wanted = CASES[name]
    ours = run(function, inputs, wanted)
    monkeypatch.setattr(native, "_library", lambda: None)
    for mine, theirs in zip(ours, run(function, inputs, wanted), strict=True):
        off = (mine - theirs).abs() > 2e-4 * theirs.abs().max().clamp(min=1e-3)
        assert off.float().mean() < 1e-3  # a place at a voxel's centre has two slopes, and rounding chooses


@pytest.mark.usefixtures("_threads")
@pytest.mark.parametrize("channels", [(8, 8), (16, 16), (28, 28), (56, 28), (20, 36), (28, 3), (9, 17)])
@pytest.mark.parametrize("size", [(7, 8, 9), (2, 3, 1), (20, 18, 22)])
def test_convolution_agrees_with_the_operator(channels, size):
    convolution = Convolution(*channels, 3, padding=1, bias=False)
    image = draw(2, channels[0], *size, low=-1)
    assert not convolution._is_minimal(image)  # while gradients are asked for
    expected = convolution(image)
    with torch.no_grad():
        assert convolution._is_minimal(image)
        torch.testing.assert_close(convolution(image), expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("change", [{"stride": 2}, {"in_channels": 5}, {"out_channels": 129}])
def test_convolution_leaves_the_rest_to_the_operator(change):
    options = {"in_channels": 28, "out_channels": 28, "stride": 1} | change
    convolution = Convolution(**options, kernel_size=3, padding=1, bias=False)
    with torch.no_grad():
        assert not convolution._is_minimal(draw(1, options["in_channels"], 4, 4, 4))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_stays_visible(bad):
    u = displacement(size=(6, 7, 8))
    u[0, 1, 3, 3, 3] = bad
    assert not torch.isfinite(compose(u, u)[0, 1, 3, 3, 3])
    inverted, smallest = cell_volumes(u)
    assert not (smallest[0, 2:4, 2:4, 2:4] >= 0).all()
    assert not (inverted[0, 2:4, 2:4, 2:4] == 0).all()


def test_a_forked_process_has_threads_of_its_own():
    image, u = draw(1, 1, *SIZE), displacement()
    expected = warp(image, u).numpy()
    child = get_context("fork").Process(target=lambda: sys.exit(not (warp(image, u).numpy() == expected).all()))
    child.start()
    child.join(60)
    assert child.exitcode == 0
