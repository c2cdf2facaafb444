"""Training: configuration errors, the pack, pairs, and a resumed run that continues to the bit."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from dataclasses import replace
from unittest.mock import Mock

import nibabel as nib
import numpy as np
import pytest
import torch
from tiny_bids import SHAPE as TINY
from tiny_bids import make_brain, write_image

from mmln_pipeline.atlas import templates
from mmln_pipeline.atlas.labels import structures28
from mmln_pipeline.fields.warping import warp
from mmln_pipeline.network.architecture import NetworkConfig
from mmln_pipeline.network.model import MMLN
from mmln_pipeline.training import loop, pack, processes, train, validation
from mmln_pipeline.training.augmentation import augment
from mmln_pipeline.training.config import DataConfig, DatasetConfig, StageConfig, load_config
from mmln_pipeline.training.data import Volume, draw_pair, load_pack, validation_pairs
from mmln_pipeline.training.datasets import check_source, find_sources
from mmln_pipeline.training.loop import Trainer, draw_window
from mmln_pipeline.weights import load_model, save_model

SHAPE = (32, 40, 48)

CONFIG = """
name = "tiny"
output_dir = "run"
license = "CC0"
validate_every = 2
save_every = 2
[network]
channels = 4
[data]
pack = "pack"
[loss]
similarity = "{similarity}"
window = 3
core = [16, 20, 24]
[optimization]
learning_rate = 1e-3
schedule = "cosine"
averaging = 0.9
batch_size = {batch}
[[stages]]
levels = [1]
steps = 4
[[stages]]
levels = [2]
steps = 3
frozen_steps = 1
[[stages]]
levels = [1, 3]
steps = 3
window = [16, 20, 24]
"""


@pytest.fixture
def project(tmp_path, rng):
    """Return a folder with a configuration and a pack of three tiny brains, two of them labelled."""
    pack = tmp_path / "pack"
    pack.mkdir()
    names = []
    for i in range(3):
        image = rng.integers(0, 256, SHAPE).astype(np.uint8)
        image[:3] = 0
        labels = np.zeros(SHAPE, np.int16)
        labels[8:16, 8 + i : 20, 8:24], labels[16:24, 8:20, 8:24] = 47, 48
        np.savez(pack / f"brain{i}.npz", image=image, **({"labels": labels} if i else {}))
        names.append({"name": f"brain{i}", "person": f"person{i}"})
    (pack / "pack.json").write_text(json.dumps({"train": names, "validation": names}))
    config = tmp_path / "config.toml"
    config.write_text(CONFIG.format(similarity="global", batch=1))
    return config


def read_log(run):
    """Rows of a run's log, but for the time and the memory that each step took."""
    return [row.split(",")[:-2] for row in (run / "log.csv").read_text().splitlines()]


def test_training_writes_weights_card_and_log(project):
    weights = train(project, device="cpu")
    model, card = load_model(weights)
    assert model.config.channels == 4
    assert card["license"] == "CC0"
    best = card["scores"]["validation"]
    assert "1" in best and all(scores["dice"] <= best[max(best)]["dice"] for scores in best.values())
    assert set(card["training"]["steps"]) >= set(best)
    rows = (project.parent / "run" / "log.csv").read_text().splitlines()
    assert len(rows) == 1 + 4 + 3 + 3


def test_a_resumed_run_continues_to_the_bit(project, monkeypatch):
    project.write_text(CONFIG.format(similarity="local", batch=2))
    train(project, device="cpu")
    straight = torch.load(project.parent / "run" / "checkpoint.pt", weights_only=True)
    (project.parent / "run").rename(project.parent / "straight")

    straight_log = read_log(project.parent / "straight")
    for _ in range(11):  # a clock that has always run out: every call takes one step
        train(project, minutes=1e-9, device="cpu")
    resumed = torch.load(project.parent / "run" / "checkpoint.pt", weights_only=True)
    assert resumed["progress"]["stage"] == 2
    assert resumed["progress"]["step"] == 3
    for name, tensor in straight["model"].items():
        assert torch.equal(tensor, resumed["model"][name]), name
    assert read_log(project.parent / "run") == straight_log
    for name, tensor in straight["averaged"].items():
        assert torch.equal(tensor, resumed["averaged"][name]), name


def test_resuming_with_another_configuration_is_refused(project):
    train(project, minutes=1e-9, device="cpu")
    project.write_text(project.read_text().replace("window = 3", "window = 5"))
    with pytest.raises(ValueError, match=r"checkpoint\.pt was made with another configuration: loss"):
        train(project, device="cpu")


def test_a_stage_begins_with_the_best_weights_and_leaves_the_levels_before_it_alone_while_frozen(project):
    project.write_text(project.read_text().replace("steps = 4", "steps = 1"))
    run, weights = project.parent / "run", []
    for _ in range(3):
        train(project, minutes=1e-9, device="cpu")
        weights.append(torch.load(run / "checkpoint.pt", weights_only=True)["model"])
    _, frozen, moved = weights
    best = load_model(run / "tiny.safetensors")[0].state_dict()
    assert {name.split(".")[1] for name in best if not torch.equal(frozen[name], best[name])} == {"1"}
    assert {name.split(".")[1] for name in best if not torch.equal(moved[name], frozen[name])} == {"0", "1"}


def test_the_learning_rate_rises_to_the_configured_one_and_falls_to_a_hundredth(project):
    trainer = Mock(config=load_config(project))
    plan = StageConfig((1,), steps=1000)
    rates = [Trainer._learning_rate(trainer, step, plan) / 1e-3 for step in range(1000)]
    assert rates[0] == pytest.approx(1 / 50) and rates[24] == pytest.approx(1 / 2, rel=0.01)
    assert rates.index(max(rates)) == 49 and max(rates) == pytest.approx(1, rel=0.01)
    assert rates[500] == pytest.approx(0.505) and rates[-1] == pytest.approx(0.01, rel=0.01)
    project.write_text(project.read_text().replace("cosine", "constant"))
    constant = Mock(config=load_config(project))
    assert Trainer._learning_rate(constant, 0, plan) == 1e-3
    assert Trainer._learning_rate(constant, 0, replace(plan, learning_rate=2e-3)) == 2e-3


def test_the_memory_of_averaged_weights_grows_to_the_configured_one(project):
    trainer, old, new = Mock(config=load_config(project)), torch.tensor([1.0]), torch.tensor([0.0])
    kept = [float(Trainer._average(trainer, old, new, count)) for count in (0, 8, 79, 81, 1000)]
    assert kept == pytest.approx([0.1, 0.5, 80 / 89, 0.9, 0.9])


def test_training_lowers_the_loss(project):
    text = project.read_text().replace("steps = 4", "steps = 30").replace("1e-3", "3e-3")
    project.write_text(text)
    train(project, device="cpu")
    rows = np.loadtxt(project.parent / "run" / "log.csv", delimiter=",", skiprows=1)
    level1 = rows[rows[:, 0] == 1][:, 3]
    assert level1[-8:].mean() < level1[:8].mean()


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            'similarity = "global"',
            'similarity = "mi"',
            r"config\.toml: loss.similarity: expected .* found 'mi'",
        ),
        ("window = 3", "window = 4", "an odd number of at least 3, found 4"),
        ("channels = 4", "chanels = 4", "network: unknown key 'chanels'"),
        ('schedule = "cosine"', 'schedule = "step"', "optimization.schedule: expected .* found 'step'"),
        ('name = "tiny"', "", "name"),
        ("[network]", "[network", r"config\.toml"),
        ("levels = [1]", "levels = [4]", r"levels among \[1, 2, 3\] in stage 1, found \[4\]"),
        ("window = 3", "window = 3\nsmoothing = [1.0, 2.0]", "expected 3 numbers, found 2"),
        ("channels = 4", "channels = 4\nschedule = [1, 3]", "network.schedule: expected .* found"),
        ("steps = 4", "steps = 4\nlearning_rate = -1.0", "stages: learning_rate: expected a number of at least 0"),
        ("steps = 4", "steps = 0", "stages: steps: expected at least 1, found 0"),
        ("window = [16, 20, 24]", "window = [16, 20, 25]", "stages: window: expected three even sizes, or none"),
        ("window = [16, 20, 24]", "window = [16, 20, 400]", r"a window within the grid \[160, 192, 224\] in stage 3"),
        ("levels = [1, 3]", "levels = [1, 2]", "expected the finest level in stage 3, whose window it is"),
        ("validate_every = 2", "validate_every = 0", "validate_every: expected at least 1, found 0"),
        ("batch_size = 1", "batch_size = 0", "optimization.batch_size: expected at least 1, found 0"),
        ("averaging = 0.9", "averaging = 1.0", "optimization.averaging: expected a decay from 0 to below 1"),
        ('pack = "pack"', "between = 2.0", "data.between: expected a share from 0 to 1, found 2.0"),
        ('pack = "pack"', '[[data.train]]\npath = "x"\nsplit_table = "y"', "split_table: expected a split to choose"),
        ("[loss]", "flip_apart = true\n[loss]\ndice = 1.0", "data.flip_apart: expected false with loss.dice"),
    ],
)
def test_bad_configurations_are_named(project, old, new, message):
    project.write_text(project.read_text().replace(old, new, 1))
    with pytest.raises(ValueError, match=message):
        load_config(project)


def test_missing_inputs_are_named(project, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nothing\.toml"):
        load_config(tmp_path / "nothing.toml")
    with pytest.raises(FileNotFoundError, match="no such folder"):
        find_sources(DatasetConfig(path="nowhere"), tmp_path)
    (tmp_path / "pack" / "pack.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"no pack\.json"):
        train(project, device="cpu")


def test_sources_follow_split_and_labels(tmp_path):
    for subject, session in (("sub-01", "ses-01"), ("sub-01", "ses-02"), ("sub-02", "ses-01")):
        for root, suffix in ((tmp_path, "T1w"), (tmp_path / "derivatives" / "atlas", "dseg")):
            path = root / subject / session / "anat" / f"{subject}_{session}_{suffix}.nii.gz"
            path.parent.mkdir(parents=True)
            path.touch()
    (tmp_path / "split.tsv").write_text(
        "participant_id\tsession_id\tsplit\nsub-01\tses-02\ttrain\nsub-02\tses-01\ttest\n"
    )
    (source,) = find_sources(DatasetConfig(path=".", labels="derivatives/atlas", split="train"), tmp_path)
    assert source.name.endswith("sub-01_ses-02")
    assert source.labels is not None and source.labels.name == "sub-01_ses-02_dseg.nii.gz"
    assert len(find_sources(DatasetConfig(path="."), tmp_path)) == 3
    with pytest.raises(FileNotFoundError, match="split 'none'"):
        find_sources(DatasetConfig(path=".", split="none"), tmp_path)


def test_pairs_are_two_people_and_depend_on_the_seed_alone(project):
    brains = load_pack(project.parent / "pack", "train", torch.device("cpu"))
    first, again = (draw_pair(brains, DataConfig(), np.random.default_rng([0, 1, 2])) for _ in range(2))
    assert torch.equal(first.fixed, again.fixed) and torch.equal(first.moving, again.moving)
    assert not torch.equal(first.fixed, first.moving)
    assert first.fixed.min() >= 0 and first.fixed.max() <= 1
    assert {(f.name, m.name) for f, m in validation_pairs(brains)} == {
        ("brain1", "brain2"),
        ("brain2", "brain1"),
    }


def test_a_stage_may_run_each_level_once(project):
    config = load_config(project)
    config = replace(config, network=replace(config.network, schedule=(1, 1, 2, 1, 2, 3), combine="compose"))
    plan = StageConfig((2,), 1)
    assert replace(config, stages=(plan,)).runs(0) == [1, 1, 2, 1, 2]
    once = replace(config, stages=(replace(plan, once=True),))
    assert once.runs(0) == [1, 2]

    brains = load_pack(project.parent / "pack", "validation", torch.device("cpu"))
    model, run = MMLN(config.network), []
    model.run_level = lambda level, *given: run.append(level) or MMLN.run_level(model, level, *given)
    validation.Selection.choose(brains, brains, structures28(), once).score(model.eval(), 2, once=True)
    assert set(zip(run[::2], run[1::2], strict=True)) == {(1, 2)}


def test_of_many_people_each_is_paired_with_the_next_ones():
    scans = [Volume(f"scan{n}", f"person{n}", *2 * [torch.zeros(1, 2, 2, 2)]) for n in range(8)]
    pairs = [(int(f.name[-1]), int(m.name[-1])) for f, m in validation_pairs(scans)]
    assert len(pairs) == len(set(pairs)) == 20
    assert pairs[:9] == [*((n, (n + 1) % 8) for n in range(8)), (0, 2)]


def test_brains_go_towards_another_and_are_mirrored_each_on_its_own(project):
    brains = load_pack(project.parent / "pack", "train", torch.device("cpu"))
    seen = []

    def align(fixed, moving):
        seen.append((fixed, moving))
        return torch.ones(1, 3, *(n // 4 for n in SHAPE))

    config = DataConfig(gamma=0, flip=False, between=1.0)
    pair = draw_pair(brains, config, np.random.default_rng(0), align)
    for (goal, brain), image in zip(seen, (pair.fixed, pair.moving), strict=True):
        assert not torch.equal(goal, brain)
        # a constant velocity of 1 on a quarter's grid shifts by 4 voxels at most; the part of it is drawn
        inner = (..., slice(2, -6), slice(2, -6), slice(2, -6))
        way = torch.linspace(0.2, 0.8, 61) * 4
        shifts = [warp(brain, torch.full((1, 3, *SHAPE), float(w)))[inner].sub(image[inner]).abs().max() for w in way]
        assert min(shifts) < 0.05 < brain[inner].sub(image[inner]).abs().max()

    config = DataConfig(gamma=0, flip_apart=True)
    mirrored = set()
    for seed in range(20):
        pair = draw_pair(brains, config, np.random.default_rng(seed))
        plain = [any(torch.equal(x[0], v.image / 255) for v in brains) for x in (pair.fixed, pair.moving)]
        mirrored.add(tuple(not p for p in plain))
    assert len(mirrored) == 4


def test_a_pack_is_halved_with_its_labels(project):
    whole, halved = (load_pack(project.parent / "pack", "train", torch.device("cpu"), n)[1] for n in (0, 1))
    assert halved.image.shape[1:] == halved.labels.shape[1:]
    assert halved.image[0, 1, 2, 3] == round(float(whole.image[0, 2:4, 4:6, 6:8].float().mean()))
    assert torch.equal(halved.labels, whole.labels[:, ::2, ::2, ::2])


def test_both_orders_of_a_pair_and_a_bound_on_volumes_train(project):
    project.write_text(project.read_text().replace("window = 3", "window = 3\ndice = 1.0\nvolume = 1e4"))
    project.write_text(project.read_text().replace("[data]", "[data]\nboth_orders = true\nbetween = 1.0"))
    for _ in range(2):
        train(project, minutes=1e-9, device="cpu")
    header, *rows = (line.split(",") for line in (project.parent / "run" / "log.csv").read_text().splitlines())
    untrained, moved = (float(row[header.index("volume")]) for row in rows)
    assert untrained == 0 < moved


def test_labels_are_mirrored_with_their_image_and_steer_the_dice_loss(project):
    brains = load_pack(project.parent / "pack", "train", torch.device("cpu"))[1:]
    plain, mirrored = None, None
    for seed in range(20):
        pair = draw_pair(brains, DataConfig(gamma=0), np.random.default_rng(seed))
        assert pair.labels is not None
        source = brains[0] if torch.equal(pair.labels[0].sum(), brains[0].labels.sum()) else brains[1]
        if torch.equal(pair.fixed[0], source.image / 255):
            plain = torch.equal(pair.labels[0][0], source.labels)
        else:
            mirrored = torch.equal(pair.labels[0][0], source.labels.flip(1))
    assert plain and mirrored

    project.write_text(project.read_text().replace("window = 3", "window = 3\ndice = 1.0\ncortex = 1.0"))
    train(project, minutes=1e-9, device="cpu")
    header = (project.parent / "run" / "log.csv").read_text().splitlines()[0]
    assert header.endswith(",dice,cortex,seconds,peak_memory_mb")


def test_augmentation_changes_brightness_and_shape_apart_and_leaves_what_is_off(rng):
    image = torch.zeros(1, 1, *SHAPE)
    image[0, 0, 4:-4, 4:-4, 4:-4] = 0.5
    labels = (image > 0).short()
    for config in (DataConfig(gamma=0), DataConfig(gamma=0, bias=0.3), DataConfig(gamma=0, warp=2.0)):
        new, numbers = augment(image, labels, config, rng)
        assert new.shape == image.shape and numbers.dtype == labels.dtype
        assert torch.equal(new, image) == (not config.bias and not config.warp)
        assert torch.equal(numbers, labels) == (not config.warp)
        if config.bias:
            assert torch.equal(new > 0, image > 0) and 0.3 < new[image > 0].min() < new.max() == 1
        if config.warp:  # both move alike
            assert ((new > 0.25) == (numbers > 0)).float().mean() > 0.99


def test_windows_stay_inside_with_even_starts(rng):
    for _ in range(50):
        window = draw_window(SHAPE, (16, 20, 24), rng)
        assert all(s.start % 2 == 0 and s.stop <= n for s, n in zip(window, SHAPE, strict=True))
        assert tuple(s.stop - s.start for s in window) == (16, 20, 24)


def test_a_run_killed_before_its_first_checkpoint_begins_its_log_again(project):
    train(project, minutes=1e-9, device="cpu")
    (project.parent / "run" / "checkpoint.pt").unlink()
    train(project, minutes=1e-9, device="cpu")
    assert [row[:2] for row in read_log(project.parent / "run")[1:]] == [["1", "1"]]


def test_a_run_killed_between_checkpoints_repeats_its_steps_once(project):
    train(project, minutes=1e-9, device="cpu")
    log = project.parent / "run" / "log.csv"
    with log.open("a") as lines:
        lines.write("1,2,0.1,1,1,1,1\n")  # a step logged, then the run was killed before a checkpoint
    train(project, minutes=1e-9, device="cpu")
    steps = [row.split(",")[1] for row in log.read_text().splitlines()[1:]]
    assert steps == ["1", "2"]


def test_a_checkpoint_without_the_weights_that_it_goes_back_to_is_refused(project):
    project.write_text(project.read_text().replace("validate_every = 2", "validate_every = 1"))
    train(project, minutes=1e-9, device="cpu").unlink()
    with pytest.raises(FileNotFoundError, match=r"checkpoint\.pt wants the weights .* found no .*tiny\.safetensors"):
        train(project, device="cpu")


def test_a_gradient_that_is_not_finite_ends_training_by_name(project, monkeypatch):
    monkeypatch.setattr(Trainer, "_learning_rate", lambda *_: math.nan)
    with pytest.raises(ValueError, match=r"a finite gradient, found nan in stage 1 behind step 1 .*learning_rate"):
        train(project, device="cpu")
    assert not list((project.parent / "run").glob("*.safetensors"))


@pytest.mark.parametrize(("grid", "precision"), [((40, 48, 56), "bf16-mixed"), ((32, 48, 56), "32-true")])
def test_small_volumes_are_not_taken_in_bfloat16(project, monkeypatch, grid, precision):
    monkeypatch.setattr(processes, "has_fast_bfloat16", lambda device: True)
    config = load_config(project)
    config = replace(config, network=replace(config.network, grid=grid))
    assert processes.start_fabric(torch.device("cpu"), config)._precision.precision == precision


def test_a_checkpoint_brought_here_alone_goes_on(project):
    train(project, minutes=1e-9, device="cpu")
    (project.parent / "run" / "log.csv").unlink()
    train(project, minutes=1e-9, device="cpu")
    assert [row[:2] for row in read_log(project.parent / "run")[1:]] == [["1", "2"]]


# ------------------------------------------------------------------------------------- what becomes of a stage


def test_a_stage_that_does_not_help_is_dropped_by_name(project, monkeypatch, capsys):
    ranks = iter([0.1, 0.5, 0.6, 0.3, 0.4, 0.7, 0.7])  # before, two a stage for two stages, of the third
    monkeypatch.setattr(validation, "validate", lambda *_: {"dice": next(ranks), "sdlogj": 0.0})
    verdicts, write = [], loop.save_card

    def save_card(model, path, card):
        verdicts.append([stage["verdict"] for stage in card["training"]["stages"]])
        write(model, path, card)

    monkeypatch.setattr(loop, "save_card", save_card)
    weights = train(project, device="cpu")
    assert verdicts == [["kept", "to come", "to come"], ["kept", "dropped", "to come"], ["kept", "dropped", "kept"]]
    said = capsys.readouterr().out
    assert "weights are chosen by mean Dice (structures28:neuromorphometrics) on validation pairs" in said
    assert "before training: dice 0.1000" in said
    assert "stage 1 kept: dice 0.6000, dice 0.1000 before it" in said
    assert "stage 2 DROPPED: its best dice 0.4000 does not beat dice 0.6000; level 2 as before" in said
    assert "tiny.safetensors: level 2, 3 adds nothing, its last convolution is zero" in said
    assert "stage 3 kept: dice 0.7000, dice 0.6000 before it" in said
    _, card = load_model(weights)
    stages = card["training"]["stages"]
    assert [stage["verdict"] for stage in stages] == ["kept", "dropped", "kept"]
    assert [stage["best"]["dice"] for stage in stages] == [0.6, 0.4, 0.7]
    assert card["silent_levels"] == [2] and card["scores"]["start"]["dice"] == 0.1
    assert all(stage["seconds_per_step"] > 0 and stage["peak_memory_mb"] > 50 for stage in stages)


def test_a_first_stage_that_spoils_the_weights_it_started_from_is_dropped(project, monkeypatch, capsys):
    text = project.read_text().replace("[network]", 'initial_weights = "start.safetensors"\n[network]')
    project.write_text(text[: text.index("[[stages]]\nlevels = [2]")])
    monkeypatch.chdir(project.parent)
    start = MMLN(load_config(project).network)
    torch.nn.init.constant_(start.levels[0].head.weight, 1e-3)
    save_model(start, project.parent / "start.safetensors", {"name": "start"})
    ranks = iter([0.8, 0.5, 0.5])
    monkeypatch.setattr(validation, "validate", lambda *_: {"dice": next(ranks)})
    model, card = load_model(train(project, device="cpu"))
    assert torch.equal(model.levels[0].head.weight, start.levels[0].head.weight)
    assert "stage 1 DROPPED: its best dice 0.5000 does not beat dice 0.8000" in capsys.readouterr().out
    assert card["scores"]["validation"] == {} and card["silent_levels"] == [2, 3]


def test_weights_to_start_from_are_checked_before_packing(project):
    project.write_text(project.read_text().replace("[network]", 'initial_weights = "mmln"\n[network]'))
    (project.parent / "pack" / "pack.json").unlink()
    with pytest.raises(ValueError, match=r"initial_weights: expected those of the network .*'channels': 4"):
        train(project, device="cpu")


def test_without_labels_the_loss_chooses(project, capsys):
    folder = project.parent / "pack"
    index = json.loads((folder / "pack.json").read_text())
    for path in folder.glob("*.npz"):
        with np.load(path) as arrays:
            image = arrays["image"]
        np.savez(path, image=image)
    for others, source in (index["validation"], "validation"), ([], "training"):
        (folder / "pack.json").write_text(json.dumps(index | {"validation": others}))
        train(project, minutes=1e-9, device="cpu", resume=False)
        said = capsys.readouterr().out
        assert f"weights are chosen by loss on {source} pairs" in said and "before training: loss " in said


def test_the_loss_that_chooses_is_measured_alike_at_every_level(project):
    brains = load_pack(project.parent / "pack", "train", torch.device("cpu"))
    config, model = load_config(project), MMLN(NetworkConfig(channels=4))
    one, all_three = (validation.validate_by_loss(model, brains, levels, config) for levels in (1, 3))
    assert one == pytest.approx(all_three)  # an untrained network moves nothing at any level
    torch.nn.init.normal_(model.levels[0].head.weight, std=1.0)
    assert validation.validate_by_loss(model, brains, 1, config)["loss"] > one["loss"]


# ------------------------------------------------------------------------------- refused by name, before packing


@pytest.mark.parametrize("variable", ["WORLD_SIZE", "SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE"])
def test_several_processes_that_know_nothing_of_each_other_are_refused(project, monkeypatch, variable):
    monkeypatch.setenv(variable, "2")
    with pytest.raises(ValueError, match=f"expected one process, or several of torchrun, found 2 \\({variable} of "):
        train(project, device="cpu")
    monkeypatch.setenv(variable, "1")
    train(project, minutes=1e-9, device="cpu")


def test_processes_without_a_gpu_each_are_refused(monkeypatch):
    for name, value in (("TORCHELASTIC_RUN_ID", "x"), ("WORLD_SIZE", "2"), ("LOCAL_WORLD_SIZE", "2")):
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(ValueError, match="2 processes of torchrun on this machine want a GPU each, found cuda of 1"):
        processes.check_starter(torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    processes.check_starter(torch.device("cuda"))
    with pytest.raises(ValueError, match="found cuda:1 of 2"):
        processes.check_starter(torch.device("cuda:1"))


def test_two_processes_of_which_one_dies_equal_one_with_twice_the_batch(project, tmp_path, monkeypatch):
    """The second one is killed behind the first checkpoint; torchrun begins again, from there."""
    monkeypatch.setattr(processes, "has_fast_bfloat16", lambda device: False)  # whose rounding tells batches apart
    text = CONFIG.format(similarity="local", batch=1).replace("steps = 3", "steps = 1")
    project.write_text(text)
    script = tmp_path / "dies.py"
    script.write_text(DIES_ONCE)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--max-restarts=1"]
    command = [*torchrun, "--rdzv-backend=c10d", "--rdzv-endpoint=127.0.0.1:0", str(script), str(project)]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "died").is_file()
    run = project.parent / "run"
    shared, log = torch.load(run / "checkpoint.pt", weights_only=True)["averaged"], read_log(run)
    assert load_model(run / "tiny.safetensors")[1]["training"]["processes"] == 2
    run.rename(tmp_path / "shared")
    project.write_text(text.replace("batch_size = 1", "batch_size = 2"))
    train(project, device="cpu")
    alone = torch.load(run / "checkpoint.pt", weights_only=True)["averaged"]
    for name, tensor in alone.items():
        assert torch.allclose(tensor, shared[name], atol=1e-4), name
    assert [row[:2] for row in read_log(run)] == [row[:2] for row in log]  # each step once, by one process
    losses = [[float(row[3]) for row in rows[1:]] for rows in (log, read_log(run))]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


DIES_ONCE = """
import os, signal, sys
from pathlib import Path
from mmln_pipeline.training import loop, processes

step, died = loop.Trainer._step, Path(__file__).with_name("died")

def die_once(trainer, *given):
    if trainer.fabric.global_rank == 1 and trainer.progress.step == 3 and not died.exists():
        died.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return step(trainer, *given)

loop.Trainer._step = die_once
processes.has_fast_bfloat16 = lambda device: False
loop.train(sys.argv[1], device="cpu")
"""


def test_a_job_of_several_tasks_that_starts_one_process_trains(project, monkeypatch):
    for name, value in (("SLURM_JOB_ID", "7"), ("SLURM_NTASKS", "2"), ("SLURM_JOB_NAME", "train")):
        monkeypatch.setenv(name, value)
    train(project, minutes=1e-9, device="cpu")


STRUCTURES = {"neuromorphometrics": (4, 11, 23, 30, 31, 32), "freesurfer": (4, 5, 10, 11, 12, 13, 17, 18)}


@pytest.fixture
def dataset(tmp_path, monkeypatch):
    """Return a function that writes a dataset of tiny brains, and one that writes a configuration of it."""
    monkeypatch.setattr(pack, "pack_volume", lambda *_: pytest.fail("packed before all was checked"))
    monkeypatch.setattr(pack.joblib, "cpu_count", lambda: 1)
    monkeypatch.setattr(pack, "load_template", lambda name: name)

    def write(subjects, folder="brains", numbers=STRUCTURES["neuromorphometrics"], entities=("",)):
        for subject in subjects:
            for more in entities:
                stem = f"{subject}/anat/{subject}{more}"
                write_image(make_brain(), tmp_path / folder / f"{stem}_T1w.nii.gz")
                if numbers:
                    labels = np.resize(np.int16(numbers), TINY)
                    write_image(
                        nib.Nifti1Image(labels, np.eye(4)), tmp_path / folder / f"labels/{stem}_desc-x_dseg.nii.gz"
                    )
        return tmp_path / folder

    def configure(*tables, loss="", data=""):
        text = f'name = "three"\n[data]\npack = "pack"\n{data}\n'
        for split, folder, more in tables:
            text += f'[[data.{split}]]\npath = "{folder}"\n{more}\n'
        path = tmp_path / "config.toml"
        path.write_text(f"{text}[loss]\n{loss}\n[[stages]]\nlevels = [1]\nsteps = 1\n")
        return path

    return write, configure


LABELS = 'labels = "labels"'


def test_too_few_people_are_named_before_packing(dataset):
    write, configure = dataset
    write(["sub-01"], "one", entities=("_run-1", "_run-2"))
    write(["sub-01", "sub-02"], "two", numbers=())
    for tables, loss, message in (
        ([("train", "one", "")], "", "training data: expected scans of at least two people.* found one_sub-01_run-2"),
        ([("train", "two", ""), ("validation", "one", "")], "", "validation data: expected scans of at least two"),
        (
            [("train", "two", ""), ("validation", "one", LABELS), ("validation", "two", "")],
            "",
            "expected each person in one split, found two_sub-01, two_sub-02 in both",
        ),
        ([("train", "two", "")], "dice = 1.0", "loss.dice: training data with labels: .* found none"),
        ([("train", "two", "")], "cortex = 1.0", "loss.cortex: training data with labels: .* found none"),
    ):
        with pytest.raises(ValueError, match=message):
            train(configure(*tables, loss=loss), device="cpu")
    write(["sub-01"], "few", numbers=())
    with pytest.raises(ValueError, match=r"validation data with labels: .* found one_sub-01_run-2"):
        train(configure(("train", "two", ""), ("validation", "one", LABELS), ("validation", "few", "")), device="cpu")


def test_foreign_numbers_are_named_with_the_table_that_fits(dataset):
    write, configure = dataset
    write(["sub-01", "sub-02"], numbers=STRUCTURES["freesurfer"])
    config = configure(("train", "brains", LABELS))
    message = "sub-01_desc-x_dseg.nii.gz: expected the structures of structures28:neuromorphometrics, found 2 of 28; "
    with pytest.raises(ValueError, match=f"{message}'structures28:freesurfer' as data.label_table finds 7"):
        train(config, device="cpu")
    for table in ("structures28:freesurfer", "own.tsv"):
        (config.parent / "own.tsv").write_text("index\tname\n5\tFive\n")
        config = configure(("train", "brains", LABELS), data=f'label_table = "{table}"')
        with pytest.raises(pytest.fail.Exception, match="packed"):
            train(config, device="cpu")
    (config.parent / "own.tsv").write_text("index\tname\n77\tNone\n")
    with pytest.raises(ValueError, match=r"expected the structures of own\.tsv, found 0 of 1"):
        train(config, device="cpu")
    with pytest.raises(FileNotFoundError, match=r"Label table 'absent.tsv' is not a file"):
        train(configure(("train", "brains", LABELS), data='label_table = "absent.tsv"'), device="cpu")
    with pytest.raises(ValueError, match=r"loss.cortex: expected labels in Neuromorphometrics' numbering, found 'own"):
        train(configure(("train", "brains", LABELS), loss="cortex = 1.0", data='label_table = "own.tsv"'), device="cpu")


def test_scans_that_would_be_taken_for_one_another_are_named(dataset):
    write, configure = dataset
    write(["sub-01"], "a/brains")
    write(["sub-01"], "b/brains")
    with pytest.raises(ValueError, match="share the name brains_sub-01"):
        train(configure(("train", "a/brains", ""), ("train", "b/brains", "")), device="cpu")
    folder = write(["sub-01", "sub-02"], entities=("_run-1", "_run-2"))
    assert len({source.name for source in find_sources(DatasetConfig("brains", "labels"), folder.parent)}) == 4
    labels = folder / "labels" / "sub-01" / "anat"
    (labels / "sub-01_run-2_desc-x_dseg.nii.gz").unlink()
    with pytest.raises(FileNotFoundError, match=r"no \*_dseg\.nii\.gz of sub-01_run-2_T1w"):
        train(configure(("train", "brains", LABELS)), device="cpu")
    (labels / "sub-01_run-2_desc-x_dseg.nii.gz").touch()
    (labels / "sub-01_run-2_desc-y_dseg.nii.gz").touch()
    with pytest.raises(ValueError, match=r"expected one .* found sub-01_run-2_desc-x_dseg.nii.gz, sub-01_run-2_desc-y"):
        train(configure(("train", "brains", LABELS)), device="cpu")


def test_scans_that_cannot_be_used_are_named_before_packing(dataset, monkeypatch):
    write, configure = dataset
    folder = write(["sub-01", "sub-02"], numbers=())
    config = configure(("train", "brains", ""))
    image = folder / "sub-02" / "anat" / "sub-02_T1w.nii.gz"
    write_image(nib.Nifti1Image(make_brain().get_fdata() + 100, np.eye(4)), image)
    with pytest.raises(ValueError, match=r"sub-02_T1w.nii.gz: expected a skull-stripped brain"):
        train(config, device="cpu")
    image.write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"sub-02_T1w.nii.gz: cannot be read"):
        train(config, device="cpu")
    image.unlink()
    write(["sub-02"], numbers=())
    monkeypatch.setattr(pack, "load_template", templates.load_template)
    with pytest.raises(ValueError, match="nowhere"):
        train(configure(("train", "brains", ""), data='template = "nowhere"'), device="cpu")


def test_a_split_table_may_lie_elsewhere_and_names_scans_that_are_missing(tmp_path):
    for subject in ("sub-01", "sub-02"):
        path = tmp_path / "brains" / subject / "anat" / f"{subject}_T1w.nii.gz"
        path.parent.mkdir(parents=True)
        path.touch()
    table = tmp_path / "chosen.tsv"
    table.write_text("participant_id\tsplit\nsub-01\tvalidation\nsub-02\ttrain\n")
    chosen = DatasetConfig("brains", split="validation", split_table="chosen.tsv")
    assert [source.name for source in find_sources(chosen, tmp_path)] == ["brains_sub-01"]
    table.write_text(table.read_text() + "sub-03\tvalidation\n")
    with pytest.raises(FileNotFoundError, match=r"1 scans of split 'validation' have no T1w image in .*brains: sub-03"):
        find_sources(chosen, tmp_path)
    table.write_text("subject\tsplit\nsub-01\tvalidation\n")
    with pytest.raises(ValueError, match=r"columns participant_id and split in .*chosen\.tsv, found subject, split"):
        find_sources(chosen, tmp_path)


def test_all_processors_work_and_labels_count_for_what_is_packed(dataset, monkeypatch):
    write, _ = dataset
    folder = write(["sub-01", "sub-02"])
    monkeypatch.undo()  # workers are other processes, which take the real functions
    monkeypatch.setattr(pack.joblib, "cpu_count", lambda: 2)
    first, second = find_sources(DatasetConfig("brains", "labels"), folder.parent)
    with pytest.raises(ValueError, match=r"sub-02_desc-x_dseg\.nii\.gz: expected whole numbers"):
        write_image(nib.Nifti1Image(np.full(TINY, 0.5, np.float32), np.eye(4)), second.labels)
        pack._for_each(lambda source: check_source(source, structures28()), [first, second], "checking scans")
    before = pack._fingerprint(first, "t")
    write(["sub-01"], numbers=(4, 11))
    assert pack._fingerprint(first, "t") != before
