"""Training: configuration errors, the pack, pairs, and a resumed run that continues to the bit."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from mmln_pipeline.fields.warping import warp
from mmln_pipeline.training import train
from mmln_pipeline.training.augmentation import augment
from mmln_pipeline.training.config import DataConfig, DatasetConfig, load_config
from mmln_pipeline.training.data import draw_pair, find_sources, load_pack, validation_pairs
from mmln_pipeline.training.loop import draw_window
from mmln_pipeline.weights import load_model

SHAPE = (
    32,
    40,
    48,
)  # below 16 x 20 x 24, bfloat16 weight gradients of the half-size grid are wrong on some CPUs

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

    straight_log = (project.parent / "straight" / "log.csv").read_text()
    for _ in range(20):  # a clock that has always run out: every call takes one step
        train(project, minutes=1e-9, device="cpu")
    resumed = torch.load(project.parent / "run" / "checkpoint.pt", weights_only=True)
    assert resumed["progress"]["stage"] == 2
    assert resumed["progress"]["step"] == 3
    for name, tensor in straight["model"].items():
        assert torch.equal(tensor, resumed["model"][name]), name
    assert (project.parent / "run" / "log.csv").read_text() == straight_log
    for name, tensor in straight["averaged"].items():
        assert torch.equal(tensor, resumed["averaged"][name]), name


def test_resuming_with_another_configuration_is_refused(project):
    train(project, minutes=1e-9, device="cpu")
    project.write_text(project.read_text().replace("window = 3", "window = 5"))
    with pytest.raises(ValueError, match=r"checkpoint\.pt was made with another configuration: loss"):
        train(project, device="cpu")


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
    volumes = load_pack(project.parent / "pack", "train", torch.device("cpu"))
    first, again = (draw_pair(volumes, DataConfig(), np.random.default_rng([0, 1, 2])) for _ in range(2))
    assert torch.equal(first.fixed, again.fixed) and torch.equal(first.moving, again.moving)
    assert not torch.equal(first.fixed, first.moving)
    assert first.fixed.min() >= 0 and first.fixed.max() <= 1
    assert {(f.name, m.name) for f, m in validation_pairs(volumes)} == {
        ("brain1", "brain2"),
        ("brain2", "brain1"),
    }


def test_brains_go_towards_another_and_are_mirrored_each_on_its_own(project):
    volumes = load_pack(project.parent / "pack", "train", torch.device("cpu"))
    seen = []

    def align(fixed, moving):
        seen.append((fixed, moving))
        return torch.ones(1, 3, *(n // 4 for n in SHAPE))

    config = DataConfig(gamma=0, flip=False, between=1.0)
    pair = draw_pair(volumes, config, np.random.default_rng(0), align)
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
        pair = draw_pair(volumes, config, np.random.default_rng(seed))
        plain = [any(torch.equal(x[0], v.image / 255) for v in volumes) for x in (pair.fixed, pair.moving)]
        mirrored.add(tuple(not p for p in plain))
    assert len(mirrored) == 4


def test_a_pack_is_halved_with_its_labels(project):
    whole, halved = (load_pack(project.parent / "pack", "train", torch.device("cpu"), n)[1] for n in (0, 1))
    assert halved.image.shape[1:] == halved.labels.shape[1:]
    assert halved.image[0, 1, 2, 3] == round(float(whole.image[0, 2:4, 4:6, 6:8].float().mean()))
    assert torch.equal(halved.labels, whole.labels[:, ::2, ::2, ::2])


def test_both_orders_of_a_pair_and_a_bound_on_volumes_train(project):
    project.write_text(project.read_text().replace("window = 3", "window = 3\ndice = 1.0\nvolume = 0.1"))
    project.write_text(project.read_text().replace("[data]", "[data]\nboth_orders = true\nbetween = 1.0"))
    train(project, minutes=1e-9, device="cpu")
    header, row = (line.split(",") for line in (project.parent / "run" / "log.csv").read_text().splitlines())
    assert float(row[header.index("volume")]) >= 0


def test_labels_are_mirrored_with_their_image_and_steer_the_dice_loss(project):
    volumes = load_pack(project.parent / "pack", "train", torch.device("cpu"))[1:]
    plain, mirrored = None, None
    for seed in range(20):
        pair = draw_pair(volumes, DataConfig(gamma=0), np.random.default_rng(seed))
        assert pair.labels is not None
        source = volumes[0] if torch.equal(pair.labels[0].sum(), volumes[0].labels.sum()) else volumes[1]
        if torch.equal(pair.fixed[0], source.image / 255):
            plain = torch.equal(pair.labels[0][0], source.labels)
        else:
            mirrored = torch.equal(pair.labels[0][0], source.labels.flip(1))
    assert plain and mirrored

    project.write_text(project.read_text().replace("window = 3", "window = 3\ndice = 1.0\ncortex = 1.0"))
    train(project, minutes=1e-9, device="cpu")
    header = (project.parent / "run" / "log.csv").read_text().splitlines()[0]
    assert header.endswith(",dice,cortex")


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


def test_a_run_killed_between_checkpoints_repeats_its_steps_once(project):
    train(project, minutes=1e-9, device="cpu")
    log = project.parent / "run" / "log.csv"
    with log.open("a") as lines:
        lines.write("1,2,0.1,1,1,1,1\n")  # a step logged, then the run was killed before a checkpoint
    train(project, minutes=1e-9, device="cpu")
    steps = [row.split(",")[1] for row in log.read_text().splitlines()[1:]]
    assert steps == ["1", "2"]
