"""The topology guarantee: folds go, all else stays, failure is said; and the options that lead to it."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from mmln_pipeline import TopologyError, register, weights
from mmln_pipeline.bids_app.arguments import parse_args
from mmln_pipeline.cli import main
from mmln_pipeline.fields import topology
from mmln_pipeline.fields.integration import integrate, taper
from mmln_pipeline.fields.jacobian import cell_volumes, jacobian_determinant, ndv
from mmln_pipeline.fields.scales import resize_image
from mmln_pipeline.fields.topology import FLOOR, enforce
from mmln_pipeline.interfaces import MMLNRegistration
from mmln_pipeline.network.architecture import NetworkConfig
from mmln_pipeline.reporting.crashes import find_cause
from mmln_pipeline.space.displacements import displacement_to_voxels

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


def surrounded(displacement):
    """Return a displacement with the identity round it."""
    return torch.nn.functional.pad(displacement, [1] * 6)


def spike(shape, place, size=5):
    """Return a displacement that is zero but for noise in one small cube, which folds there and nowhere else."""
    displacement = torch.zeros(1, 3, *shape)
    window = tuple(slice(p - size // 2, p - size // 2 + size) for p in place)
    displacement[(..., *window)] = 3 * torch.randn(1, 3, size, size, size, generator=torch.Generator().manual_seed(0))
    return displacement


@pytest.mark.parametrize("inverse", [False, True])
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
def test_folds_go(make, amplitude, inverse):
    before = integrate(*make(amplitude), inverse=inverse)
    assert ndv(before).sum() > 0
    repair = enforce(before)
    assert repair.reached and repair.rounds > 0
    assert ndv(surrounded(repair.displacement)).sum() == 0
    assert cell_volumes(surrounded(repair.displacement))[1].min() >= FLOOR
    assert (jacobian_determinant(repair.displacement) > 0).all()
    assert repair.cells_repaired == int((cell_volumes(surrounded(before))[1] < FLOOR).sum())
    assert repair.ndv_percent_before == pytest.approx(100 * float(ndv(surrounded(before)).mean()), rel=1e-4)
    assert repair.ndv_percent == 0 and repair.ndv.sum() == 0
    assert repair.min_jacobian_before < FLOOR <= repair.min_jacobian
    change = (repair.displacement - before).norm(dim=1).max()
    assert repair.largest_change_voxels == pytest.approx(float(change))
    assert ndv(torch.round(repair.displacement * 8192) / 8192).sum() == 0, "validity outlives the rounding of a file"


def test_a_field_without_folds_is_returned_as_it_is():
    displacement = integrate(pyramid(0.3), SHAPE)
    repair = enforce(displacement)
    assert repair.displacement is displacement
    assert repair.reached and repair.rounds == repair.cells_repaired == repair.largest_change_voxels == 0
    assert repair.min_jacobian == repair.min_jacobian_before > FLOOR
    assert ndv(displacement).equal(repair.ndv)


def test_a_map_joins_the_identity_beyond_its_grid():
    """Smoothing alone moves the outermost voxels, and the map would tear along the border."""
    displacement = torch.zeros(1, 3, *SHAPE)
    displacement[:, 0, -4:-1] = torch.tensor([6.0, 4.0, 2.0])[:, None, None]
    repair = enforce(displacement)
    assert repair.reached and ndv(surrounded(repair.displacement)).sum() == 0
    torn = displacement.clone()
    torn[:, 0, -1] = 2.0
    assert ndv(torn[:, :, -2:]).sum() == 0 < enforce(torn, max_rounds=0).ndv_percent


@pytest.mark.parametrize("place", [(14, 16, 18), (2, 61, 40)])
def test_a_repair_stays_round_its_fold(place):
    shape = (37, 64, 71)
    displacement = integrate([velocity_of((9, 16, 18), 0.3, knots=4, shape=shape)], shape) + spike(shape, place)
    given = displacement.clone()
    repair = enforce(displacement)
    assert repair.reached and ndv(displacement).sum() > 0
    assert torch.equal(displacement, given), "the input is left alone"
    changed = torch.nonzero((repair.displacement - displacement).norm(dim=1)[0])
    assert (changed - torch.tensor(place)).abs().max() <= 24
    smallest = cell_volumes(surrounded(repair.displacement))[1]
    assert repair.ndv.equal(ndv(repair.displacement))
    assert repair.min_jacobian == pytest.approx(float(smallest.min()), abs=1e-4)


def test_windows_hold_every_fold_and_a_margin_and_little_more():
    folds, places, margin = torch.zeros(36, 63, 70, dtype=torch.bool), ((2, 61, 40), (30, 3, 5)), 5
    for place in places:
        folds[place] = True
    windows = topology._find_windows(folds, margin)
    for window, place in zip(windows, places, strict=True):
        for along, p, n in zip(window, place, folds.shape, strict=True):
            assert max(0, p - 8 - margin) <= along.start <= max(0, p - margin)
            assert min(n + 1, p + 2 + margin) <= along.stop <= min(n + 1, p + 9 + margin)


def test_what_cannot_be_reached_is_reported():
    displacement = integrate([velocity_of(SHAPE, 5.0)], SHAPE)
    repair = enforce(displacement, max_rounds=1)
    assert not repair.reached and repair.rounds == 1
    assert 0 < repair.ndv_percent < repair.ndv_percent_before
    untouched = enforce(displacement, max_rounds=0)
    assert not untouched.reached and untouched.displacement is displacement
    displacement[0, 0, 5, 5, 5] = float("nan")
    assert not enforce(displacement).reached


def test_one_field_at_a_time():
    with pytest.raises(ValueError, match=r"topology: expected one field at a time, found 2"):
        enforce(torch.zeros(2, 3, *SHAPE))


class Answering(torch.nn.Module):
    """Answer every pair with the same velocities."""

    def __init__(self, grid, velocities):
        super().__init__()
        self.config, self.velocities = NetworkConfig(grid=grid), velocities

    def forward(self, fixed, moving, finest=True):
        return tuple(self.velocities(tuple(fixed.shape[2:])))


def brain_on(grid, velocities, monkeypatch, folder):
    """Return the path of a brain that fills a part of a grid, which stands in for that of a network so answering."""
    data = np.zeros(grid, np.float32)
    data[3:21, 3:25, 3:29] = 1 + np.random.default_rng(0).random((18, 22, 26), np.float32)
    nib.save(nib.Nifti1Image(data, np.diag([-1.0, -1.0, 1.0, 1.0])), folder / "brain.nii.gz")
    card = {"name": "answering", "sha256": "0" * 64, "network": {}}
    monkeypatch.setattr(weights, "load_model", lambda name, device: (Answering(grid, velocities), card))
    return str(folder / "brain.nii.gz")


@pytest.fixture
def pair(monkeypatch, tmp_path):
    """Paths of two images whose brain needs the whole grid, and whose warp folds."""
    return [brain_on(SHAPE, partial(pyramid, 1.5), monkeypatch, tmp_path)] * 2


def test_a_registration_is_strict_unless_told_otherwise(pair):
    strict = register(*pair, init="identity", refine=0, device="cpu").metrics
    certificate = strict["topology"]
    assert certificate["mode"] == "strict" and certificate["reached"] is True
    assert strict["ndv_percent"] == strict["ndv_percent_brain"] == certificate["ndv_percent"] == 0.0
    assert certificate["cells_repaired"] > 0 and certificate["ndv_percent_before"] > 0
    assert certificate["inverse_reached"] is True and certificate["inverse_ndv_percent"] == 0.0
    assert strict["seconds"]["topology"] > 0
    off = register(*pair, init="identity", refine=0, device="cpu", topology="off").metrics
    assert off["topology"] == {"mode": "off"}
    assert off["ndv_percent"] > 0


def test_the_warp_joins_the_identity_round_the_brains(monkeypatch, tmp_path):
    """Registered is a box round them: at its border, too, the warp of the whole grid may not tear."""
    path = brain_on((40, 48, 56), lambda box: [torch.full((1, 3, *box), 12.0)], monkeypatch, tmp_path)
    warp = register(path, path, init="identity", refine=0, device="cpu").warp
    displacement = torch.from_numpy(displacement_to_voxels(warp))[None]
    assert (displacement == 0).float().mean() > 0.4 and displacement.abs().max() > 1
    assert ndv(displacement).sum() == 0 and (jacobian_determinant(displacement) > 0).all()


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
    assert "unexpected" not in lines[0] and not (tmp_path / "bad").exists()
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
    message = "The warp still folds after 30 rounds"
    assert find_cause(f"Traceback:\n\tmmln_pipeline.result.TopologyError: {message}\n") == message
