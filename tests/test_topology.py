"""The topology guarantee: folds go, all else stays, failure is said; and the options that lead to it."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from mmln_pipeline import TopologyError, register, registration, topology, weights
from mmln_pipeline.bids_app.execution import _find_cause
from mmln_pipeline.bids_app.parser import parse_args
from mmln_pipeline.cli import main
from mmln_pipeline.fields import cell_volumes, compose, integrate, jacobian_determinant, ndv, resize_image, taper
from mmln_pipeline.grids import Grid
from mmln_pipeline.interfaces import MMLNRegistration
from mmln_pipeline.topology import FLOOR, enforce

SHAPE = (24, 28, 32)


def velocity_of(size, amplitude, seed=0, knots=6, shape=SHAPE):
    """Return a random velocity of one level that is smooth down to a few voxels and fades at the border."""
    coarse = torch.randn(1, 3, knots, knots, knots, generator=torch.Generator().manual_seed(seed))
    return taper(amplitude * resize_image(coarse, size), shape)


def pyramid(amplitude, shape=SHAPE):
    """Return velocities at a quarter, half and the full size."""
    sizes = [tuple(n // d for n in shape) for d in (4, 2, 1)]
    return [
        velocity_of(size, amplitude * (1 + level) / 3, level, 3 + 3 * level, shape) for level, size in enumerate(sizes)
    ]


def spike(shape, place, size=5):
    """Return a velocity that is zero but for noise in one small cube, which folds there and nowhere else."""
    velocity = torch.zeros(1, 3, *shape)
    window = tuple(slice(p - size // 2, p - size // 2 + size) for p in place)
    velocity[(..., *window)] = 3 * torch.randn(1, 3, size, size, size, generator=torch.Generator().manual_seed(0))
    return velocity


@pytest.mark.parametrize("amplitude", [1.5, 3.0])
@pytest.mark.parametrize(
    "make",
    [
        pytest.param(lambda a: (pyramid(a), SHAPE), id="pyramid"),
        pytest.param(lambda a: ([velocity_of(SHAPE, 1.5 * a)], SHAPE), id="one level"),
        pytest.param(lambda a: ([velocity_of((12, 14, 16), 1.5 * a, knots=8)], SHAPE), id="half size"),
        pytest.param(
            lambda a: ([velocity_of((9, 10, 11), a, 1, 3), velocity_of((17, 19, 21), a, 2)], (17, 19, 21)),
            id="odd sizes",
        ),
    ],
)
def test_folds_go_from_both_maps(make, amplitude):
    velocities, shape = make(amplitude)
    before, before_inverse = integrate(velocities, shape), integrate(velocities, shape, inverse=True)
    assert ndv(before).sum() > 0
    repair = enforce(velocities, shape)
    certificate = repair.certificate
    assert certificate.reached and certificate.rounds > 0
    for displacement in (repair.forward, repair.inverse):
        assert ndv(displacement).sum() == 0 and cell_volumes(displacement)[1].min() >= FLOOR
    assert (jacobian_determinant(repair.forward) > 0).all()
    assert certificate.cells_repaired == int((cell_volumes(before)[1] < FLOOR).sum())
    assert certificate.ndv_percent_before == pytest.approx(100 * float(ndv(before).mean()), rel=1e-4)
    assert certificate.inverse_ndv_percent_before == pytest.approx(100 * float(ndv(before_inverse).mean()), rel=1e-4)
    assert certificate.ndv_percent == certificate.inverse_ndv_percent == 0
    assert certificate.min_jacobian_before < FLOOR <= certificate.min_jacobian
    assert certificate.largest_change_voxels == pytest.approx(float((repair.forward - before).norm(dim=1).max()))
    torch.testing.assert_close(integrate(repair.velocities, shape), repair.forward, atol=1e-3, rtol=0)
    torch.testing.assert_close(integrate(repair.velocities, shape, inverse=True), repair.inverse, atol=1e-3, rtol=0)


def test_a_field_without_folds_is_returned_as_it_is():
    velocities = pyramid(0.3)
    maps = integrate(velocities, SHAPE), integrate(velocities, SHAPE, inverse=True)
    repair = enforce(velocities, SHAPE, maps)
    assert all(a is b for a, b in zip(repair.velocities, velocities, strict=True))
    assert repair.forward is maps[0] and repair.inverse is maps[1]
    certificate = repair.certificate
    assert certificate.reached and certificate.rounds == certificate.cells_repaired == 0
    assert certificate.largest_change_voxels == 0
    assert certificate.min_jacobian == certificate.min_jacobian_before > FLOOR
    assert ndv(repair.forward).equal(repair.ndv)


def test_a_repair_stays_round_its_fold():
    shape = (64, 72, 80)
    calm = velocity_of((16, 18, 20), 0.3, knots=4, shape=shape)
    steep = spike(shape, (14, 16, 18))
    velocities = [calm, steep]
    given = [velocity.clone() for velocity in velocities]
    before = integrate(velocities, shape)
    repair = enforce(velocities, shape)
    assert repair.certificate.reached and ndv(before).sum() > 0
    assert all(torch.equal(a, b) for a, b in zip(velocities, given, strict=True)), "the input is left alone"
    changed = torch.nonzero((repair.forward - before).norm(dim=1)[0] > 1e-4)
    assert (changed - torch.tensor([14, 16, 18])).abs().max() <= 16
    far = (..., slice(40, None), slice(40, None), slice(40, None))
    assert torch.equal(repair.forward[far], before[far]) and torch.equal(repair.velocities[1][far], steep[far])
    torch.testing.assert_close(integrate(repair.velocities, shape), repair.forward, atol=1e-3, rtol=0)
    torch.testing.assert_close(integrate(repair.velocities, shape, inverse=True), repair.inverse, atol=1e-3, rtol=0)


def test_windows_hold_their_folds_and_are_smaller_than_the_grid():
    shape = (64, 72, 80)
    velocities = [torch.zeros(1, 3, 16, 18, 20), spike(shape, (14, 16, 18))]
    folds = [cell_volumes(integrate(velocities, shape, inverse=i))[1][0] < FLOOR for i in (False, True)]
    (region,) = topology._find_regions(velocities, folds, topology.PASSES[0], everything=False)
    inner, inside = region.inner(shape), torch.zeros_like(folds[0])
    inside[inner] = True
    assert (inside | ~(folds[0] | folds[1])).all()
    assert all(s.start % 4 == 0 and (s.stop % 4 == 0 or s.stop == n) for s, n in zip(region.outer, shape, strict=True))
    assert np.prod([s.stop - s.start for s in region.outer]) < 0.5 * np.prod(shape)


def test_the_inverse_stays_the_inverse():
    velocities = pyramid(1.5)
    maps = integrate(velocities, SHAPE), integrate(velocities, SHAPE, inverse=True)
    repair = enforce(velocities, SHAPE, maps)
    before, after = (compose(*pair).norm(dim=1) for pair in (maps, (repair.forward, repair.inverse)))
    assert repair.certificate.rounds > 0
    assert after.mean() < before.mean() and after.max() < before.max()


def test_validity_outlives_the_rounding_of_a_file():
    repair = enforce(pyramid(3.0), SHAPE)
    for displacement in (repair.forward, repair.inverse):
        assert ndv(torch.round(displacement * 8192) / 8192).sum() == 0


def test_what_cannot_be_reached_is_reported():
    velocities = [velocity_of(SHAPE, 5.0)]
    repair = enforce(velocities, SHAPE, max_rounds=1)
    certificate = repair.certificate
    assert not certificate.reached and certificate.rounds == 1
    assert 0 < certificate.ndv_percent < certificate.ndv_percent_before
    untouched = enforce(velocities, SHAPE, max_rounds=0)
    assert not untouched.certificate.reached and untouched.velocities[0] is velocities[0]
    velocities[0][0, 0, 5, 5, 5] = float("nan")
    assert not enforce(velocities, SHAPE).certificate.reached


def test_one_pair_at_a_time():
    with pytest.raises(ValueError, match=r"topology: expected one pair at a time, found \[2\]"):
        enforce([torch.zeros(2, 3, *SHAPE)], SHAPE)


class Folding(torch.nn.Module):
    """Answer every pair with a velocity that folds."""

    def forward(self, fixed, moving):
        return tuple(pyramid(1.5))


@pytest.fixture
def pair(monkeypatch, tmp_path):
    """Paths of two images on a small grid that stands in for the network's, with `Folding` as the network."""
    data = np.zeros(SHAPE, np.float32)
    data[3:-3, 3:-3, 3:-3] = 1 + np.random.default_rng(0).random((18, 22, 26), np.float32)
    affine = np.diag([-1.0, -1.0, 1.0, 1.0])
    nib.save(nib.Nifti1Image(data, affine), tmp_path / "brain.nii.gz")
    card = {"name": "folding", "sha256": "0" * 64, "network": {}}
    monkeypatch.setattr(weights, "load_model", lambda name, device: (Folding(), card))
    monkeypatch.setattr(registration.volumes, "network_grid", lambda fixed, mask=None: Grid(SHAPE, affine))
    return str(tmp_path / "brain.nii.gz"), str(tmp_path / "brain.nii.gz")


def test_a_registration_is_strict_unless_told_otherwise(pair):
    strict = register(*pair, init="identity", refine=0, device="cpu").metrics
    certificate = strict["topology"]
    assert certificate["mode"] == "strict" and certificate["reached"] is True
    assert strict["ndv_percent"] == strict["ndv_percent_brain"] == certificate["ndv_percent"] == 0.0
    assert certificate["cells_repaired"] > 0 and certificate["ndv_percent_before"] > 0
    assert strict["seconds"]["topology"] > 0
    off = register(*pair, init="identity", refine=0, device="cpu", topology="off").metrics
    assert off["topology"] == {"mode": "off"}
    assert off["ndv_percent"] == pytest.approx(certificate["ndv_percent_before"])


def test_an_unknown_option_is_refused(pair):
    with pytest.raises(ValueError, match="topology: expected strict or off, found 'loose'"):
        register(*pair, init="identity", topology="loose")


def test_the_command_says_that_it_failed(pair, monkeypatch, capsys, tmp_path):
    arguments = ["register", "--fixed", pair[0], "--moving", pair[1], "--init", "identity", "--refine", "0"]
    assert main([*arguments, "--output-dir", str(tmp_path / "good")]) == 0
    saved = json.loads((tmp_path / "good" / "metrics.json").read_text())
    assert saved["topology"]["reached"] is True and saved["ndv_percent"] == 0
    enforce_all = topology.enforce
    monkeypatch.setattr(topology, "enforce", lambda *arguments: enforce_all(*arguments, max_rounds=0))
    capsys.readouterr()
    assert main([*arguments, "--output-dir", str(tmp_path / "bad")]) == 1
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("mmln: error:")]
    assert len(lines) == 1 and "still folds after 0 rounds" in lines[0] and "--topology off" in lines[0]
    assert "unexpected" not in lines[0] and not list((tmp_path / "bad").iterdir())
    assert main([*arguments, "--output-dir", str(tmp_path / "off"), "--topology", "off"]) == 0
    with pytest.raises(TopologyError, match="still folds"):
        register(*pair, init="identity", refine=0, device="cpu")


def test_nipype_and_the_bids_app_pass_the_option_on(pair, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    node = MMLNRegistration(fixed=pair[0], moving=pair[1], init="identity", refine=0, device="cpu", topology="off")
    scores = json.loads(Path(node.run().outputs.metrics).read_text())
    assert scores["topology"] == {"mode": "off"}
    assert MMLNRegistration().inputs.topology == "strict"
    arguments = [str(tmp_path), str(tmp_path / "out"), "participant"]
    assert parse_args(arguments).topology == "strict"
    assert parse_args([*arguments, "--topology", "off"]).topology == "off"
    message = "The warp still folds after 12 rounds"
    assert _find_cause(f"Traceback:\n\tmmln_pipeline.result.TopologyError: {message}\n") == message
