"""The compared methods: options, what lacks, the way of a known shift, official weights, and a resumed training."""

from __future__ import annotations

import json
import os
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from conftest import DATA_ROOT

from mmln_pipeline.study.methods import METHODS, Budget, LearnedMethod, Surroundings, make_method
from mmln_pipeline.study.methods.frames import Frame
from mmln_pipeline.study.networks.laplacian_pyramid import LapIRN, LapIRNConfig, from_official
from mmln_pipeline.training.config import DataConfig, load_config

BENCH = DATA_ROOT.parent / "bench"
"""Beside the real data."""
SHAPE = (32, 40, 48)
LIA = np.array([[-1, 0, 0, 16], [0, 0, 1, -24], [0, -1, 0, 20], [0, 0, 0, 1]], float)
"""Voxel axes L, I, A, 1 mm."""
SHIFT = (1.5, -1.0, 2.0)
"""Voxels along the array axes, by which the moving ball lies off the fixed one."""


def ball(centre, affine=LIA):
    """An ellipsoid with a bright core on a tiny grid."""
    axes = np.meshgrid(*[np.arange(n) for n in SHAPE], indexing="ij")
    r = np.sqrt(sum(((x - c) / s) ** 2 for x, c, s in zip(axes, centre, (9, 11, 13), strict=True)))
    return nib.Nifti1Image((np.clip(1.2 - r, 0, 0.5) + np.clip(0.6 - r, 0, 0.5)).astype(np.float32), affine)


@pytest.fixture(scope="module")
def pair():
    """A fixed ball, and the same ball shifted."""
    centre = np.array([16.0, 20.0, 24.0])
    return ball(centre), ball(centre + SHIFT)


def core(displacement):
    """Mean displacement in the middle of the fixed ball."""
    return displacement[:, 12:21, 15:26, 18:31].mean((1, 2, 3))


def make(name, **options):
    method = make_method(name, options, Surroundings(device="cpu", threads=1))
    if lacking := method.lacking():
        pytest.skip(lacking)
    return method


@pytest.fixture
def data(tmp_path, rng):
    """A pack of three tiny brains, two of them labelled, and the configuration that reads it."""
    names = []
    for i in range(3):
        image = rng.integers(0, 256, (16, 24, 16)).astype(np.uint8)
        labels = np.zeros(image.shape, np.int16)
        labels[4:8, 4 + i : 12, 4:12] = 47
        image, labels = (array.repeat(2, 0).repeat(2, 1).repeat(2, 2) for array in (image, labels))
        np.savez(tmp_path / f"brain{i}.npz", image=image, **({"labels": labels} if i else {}))
        names.append({"name": f"brain{i}", "person": f"person{i}"})
    (tmp_path / "pack.json").write_text(json.dumps({"train": names, "validation": names}))
    return DataConfig(pack=str(tmp_path), halvings=1)


def test_unknown_names_and_options_are_named():
    with pytest.raises(ValueError, match=r"method: unknown name 'sin'; known are initial, "):
        make_method("sin", {})
    for name in METHODS:
        with pytest.raises(ValueError, match=f"{name}: unknown key 'colour'"):
            make_method(name, {"colour": 1})


def test_what_is_not_installed_is_said_with_the_way_to_install_it(monkeypatch):
    method = make_method("initial", {})
    assert method.lacking() == ""
    monkeypatch.setattr(type(method), "needs", ("no-such-distribution",))
    assert method.lacking() == "no-such-distribution not installed: pip install 'mmln-pipeline[compare]'"


def test_initial_moves_nothing(pair):
    assert not make("initial").register(*pair).any()


def test_a_pair_on_two_grids_is_refused(pair):
    with pytest.raises(ValueError, match="must lie on the grid"):
        make("initial").register(pair[0], ball((16, 20, 24), np.eye(4)))


@pytest.mark.parametrize("size", [(), (24, 40, 56)])
def test_a_frame_turns_images_and_brings_displacements_back(rng, size):
    data = np.zeros(SHAPE, np.float32)
    data[6:26, 8:30, 10:40] = rng.random((20, 22, 30))
    image = nib.Nifti1Image(data, LIA)
    frame = Frame.of(image, "LPS", size)
    assert frame.view(image).shape == (size or (32, 48, 40))
    index = np.stack(np.meshgrid(*[np.arange(n, dtype=np.float32) for n in frame.view(image).shape], indexing="ij"))
    there = np.stack(
        [
            frame.view(nib.Nifti1Image(x, LIA))
            for x in np.stack(np.meshgrid(*map(np.arange, SHAPE), indexing="ij")).astype(np.float32)
        ]
    )
    # the turned map "go one voxel along the network's axis a" is, on the image's grid, one voxel along its own axis
    for axis in range(3):
        step = np.zeros_like(index)
        step[axis] = 1
        back = frame.restore(step)[:, 16, 20, 24]
        inside = tuple(n // 2 for n in index.shape[1:])
        ahead = tuple(n + (a == axis) for a, n in enumerate(inside))
        assert np.array_equal(back, there[(slice(None), *ahead)] - there[(slice(None), *inside)])
    marked = np.zeros((3, *frame.size), np.float32)
    marked[0] = frame.view(image)
    inner = (slice(6, 26), slice(8, 30), slice(10, 40))
    assert np.array_equal(np.abs(frame.restore(marked)).max(0)[inner], data[inner])


def test_the_official_names_lead_to_the_same_network():
    for config in (LapIRNConfig(8, 8), LapIRNConfig(4, 8, diffeomorphic=False, conditional=True)):
        network = LapIRN(config).eval()
        official = {official_name(name): tensor for name, tensor in network.state_dict().items()}
        again = from_official(official, config.diffeomorphic)
        assert again.config == config
        pair = torch.rand(2, 1, 1, 16, 24, 32)
        code = torch.tensor([[0.3]]) if config.conditional else None
        assert torch.equal(network(*pair, code), again(*pair, code))
    with pytest.raises(ValueError, match="expected the official weights"):
        from_official({"other": torch.zeros(1)}, True)


def official_name(name):
    _, level, rest = name.split(".", 2)
    prefix = ("model_lvl2.model_lvl1.", "model_lvl2.", "")[int(level)]
    rest = rest.replace("encode", "input_encoder_lvl1").replace("decode", "output_lvl1").replace("down", "down_conv")
    parts = rest.replace("norm", "ai").split(".")
    if parts[0] == "blocks":
        parts[:2] = ["resblock_group_lvl1", str(2 * int(parts[1]))]
    return prefix + ".".join(parts)


REFERENCES = [
    pytest.param("lapirn", "LapIRN_diff_fea7.pth", {}, "lapirn_diff"),
    pytest.param("lapirn", "LapIRN_disp_fea7.pth", {"diffeomorphic": False}, "lapirn_disp", marks=pytest.mark.slow),
    *(
        pytest.param(
            "cir-dm",
            "LDR_OASIS_NCC_unit_disp_add_fea4_reg01_10_lite_stagelvl3_60000.pth",
            {"smoothness": smoothness},
            f"clapirn_reg{smoothness}",
            marks=[pytest.mark.slow] * (smoothness != 0.1),
        )
        for smoothness in (0.1, 0.4)
    ),
]


@pytest.mark.realdata
@pytest.mark.parametrize(("name", "weights", "options", "reference"), REFERENCES)
def test_official_weights_give_what_the_official_code_gives(name, weights, options, reference):
    if not BENCH.is_dir():
        pytest.skip(f"official weights absent: {BENCH} is no folder")
    files = {"lapirn": ("reference/lapirn_fixed", "reference/lapirn_moving")}.get(
        name, ("aligned/1003_T1w", "aligned/1101_T1w")
    )
    fixed, moving = (nib.load(BENCH / f"{file}.nii.gz") for file in files)
    moving = nib.Nifti1Image(np.asarray(moving.dataobj), fixed.affine)
    method = make(name, model=str(BENCH / "weights" / weights), **options)
    method.check()
    assert "official weights" in method.provenance
    expected = np.load(BENCH / "reference" / f"{reference}.npz")["displacement_vox"]
    assert np.abs(method.register(fixed, moving)[:, ::4, ::4, ::4] - expected).max() < 0.01


CLASSICAL = {
    "syn": {"iterations": (30, 20)},
    "elastic": {"iterations": (30, 20)},
    "greedy": {"iterations": (30, 20)},
    "fireants": {"scales": (2, 1), "iterations": (30, 20), "python": os.environ.get("MMLN_FIREANTS_PYTHON", "")},
}


@pytest.mark.parametrize("name", CLASSICAL)
def test_a_known_shift_is_found(name, pair):
    found = core(make(name, **CLASSICAL[name]).register(*pair))
    assert np.allclose(found, SHIFT, atol=0.75)


LEARNED = {
    "lapirn": {"channels": 4},
    "cir-dm": {"channels": 4},
    "voxelmorph": {"channels": 8, "diffeomorphic": True},
    "transmorph": {"channels": 8},
    "vit-v-net": {"hidden": 12, "layers": 1, "heads": 2, "mlp": 16},
}


MMLN = """
name = "paper"
[network]
channels = 4
combine = "add"
grid = [32, 48, 32]
[loss]
core = [16, 16, 16]
[[stages]]
levels = [1]
steps = 20
[[stages]]
levels = [2]
steps = 10
frozen_steps = 10
[[stages]]
levels = [3]
steps = 10
"""


@pytest.mark.parametrize(("options", "branches"), [({}, True), ({"slices": False, "core": False}, False)])
def test_mmln_learns_with_or_without_its_strategies(options, branches, data, tmp_path):
    (tmp_path / "paper.toml").write_text(MMLN)
    around = Surroundings(tmp_path, "cpu", 1)
    method = make_method("mmln", {"config": "paper.toml", **options}, around)
    method.check()
    weights = method.train(data, Budget(steps=4, seconds=3600), tmp_path / "run")
    config = load_config(tmp_path / "run" / "config.toml")
    assert [stage.steps for stage in config.stages] == [2, 1, 1]
    assert config.loss.core == (8, 8, 8)
    assert bool(config.loss.theta) == bool(config.loss.alpha) == bool(config.network.slices) == branches
    assert method.train(data, Budget(steps=4), tmp_path / "run") == weights
    trained = method.with_model(weights)
    trained.check()
    assert "4 steps" in trained.provenance
    image = nib.Nifti1Image(np.random.default_rng(0).random((16, 24, 16), np.float32), np.eye(4))
    assert trained.register(image, image).shape == (3, 16, 24, 16)
    with pytest.raises(ValueError, match=r"made for a grid of \(16, 24, 16\)"):
        trained.register(*[nib.Nifti1Image(np.ones((8, 8, 8), np.float32), np.eye(4))] * 2)


def test_mmln_is_the_bundled_model_by_default():
    method = make("mmln")
    method.check()
    assert method.is_trained and "bundled weights mmln, trained on" in method.provenance
    with pytest.raises(ValueError, match="mmln: expected option 'config'"):
        method.train(DataConfig(), Budget(steps=1), Path("unused"))


@pytest.mark.parametrize("name", LEARNED)
def test_a_peer_learns_and_registers(name, data, tmp_path):
    method = make(name, **LEARNED[name])
    assert isinstance(method, LearnedMethod) and not method.is_trained
    with pytest.raises(ValueError, match="expected option 'model'"):
        method.register(*[nib.Nifti1Image(np.ones((8, 8, 8), np.float32), np.eye(4))] * 2)
    steps = 3 if len(method.phases) > 1 else 1
    weights = method.train(data, Budget(steps=steps, seconds=3600), tmp_path / "run")
    assert method.train(data, Budget(steps=steps, seconds=3600), tmp_path / "run") == weights
    trained = method.with_model(weights)
    trained.check()
    assert f"{steps} updates" in trained.provenance
    image = nib.Nifti1Image(np.random.default_rng(0).random((16, 24, 16), np.float32), np.eye(4))
    assert trained.register(image, image).shape == (3, 16, 24, 16)
    other = "cir-dm" if name == "lapirn" else "lapirn"
    with pytest.raises(ValueError, match=f"holds weights of '{name}', expected those of '{other}'"):
        make(other, model=str(weights)).check()


def test_a_stopped_training_goes_on_to_the_bit(data, tmp_path, monkeypatch):
    from mmln_pipeline.study import learning

    method, budget = make("lapirn", **LEARNED["lapirn"]), Budget(steps=4)
    method.train(data, budget, tmp_path / "run")

    def stop_after(step):
        def keep_up(self, phase):
            self._save()
            if self.progress.step == step:
                raise KeyboardInterrupt

        return keep_up

    with monkeypatch.context() as patch:
        for step in (1, 3):
            patch.setattr(learning._Run, "_keep_up", stop_after(step))
            with pytest.raises(KeyboardInterrupt):
                method.train(data, budget, tmp_path / "again")
    method.train(data, budget, tmp_path / "again")
    straight, resumed = (torch.load(tmp_path / run / "checkpoint.pt", weights_only=True) for run in ("run", "again"))
    assert straight["progress"]["finished"] and straight["progress"]["step"] == resumed["progress"]["step"] == 4
    for key in ("network", "averaged"):
        for tensor, same in zip(straight[key].values(), resumed[key].values(), strict=True):
            assert torch.equal(tensor, same)
    assert len((tmp_path / "again" / "log.csv").read_text().splitlines()) == 1 + 4
    with pytest.raises(ValueError, match="made with another configuration: options"):
        make("lapirn", **LEARNED["lapirn"], smoothing=0.5).train(data, budget, tmp_path / "run")
