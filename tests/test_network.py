"""The network: identity at the start, gradients between its branches, shared core weights, odd shapes."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mmln_pipeline.fields.integration import integrate
from mmln_pipeline.fields.scales import downsample
from mmln_pipeline.network.architecture import NetworkConfig
from mmln_pipeline.network.core import central_window, register_core
from mmln_pipeline.network.model import MMLN
from mmln_pipeline.network.slices import register_slices, splice, to_slices
from mmln_pipeline.training.config import LossConfig, StageConfig, TrainConfig
from mmln_pipeline.training.objective import RunObjective, class_shares

SHAPE = (16, 20, 24)


CYCLE = (1, 1, 2, 1, 2, 3)


def tiny(combine="compose", slices=("axial",), seed=0, **options):
    """Return a small network whose last convolutions are no longer zero."""
    torch.manual_seed(seed)
    model = MMLN(NetworkConfig(channels=4, combine=combine, slices=slices, **options))
    for name, parameter in model.named_parameters():
        if "head" in name:
            torch.nn.init.normal_(parameter, std=0.02)
    return model


@pytest.fixture
def pair():
    torch.manual_seed(1)
    return torch.rand(1, 1, *SHAPE), torch.rand(1, 1, *SHAPE)


@pytest.mark.parametrize("combine", ["compose", "add"])
def test_an_untrained_network_returns_the_identity(pair, combine):
    model = MMLN(NetworkConfig(channels=4, combine=combine))
    assert integrate(model(*pair), SHAPE).abs().max() == 0


def test_number_of_fields(pair):
    assert len(tiny("compose")(*pair)) == 3
    (velocity,) = tiny("add")(*pair)
    assert velocity.shape == (1, 3, *SHAPE)


@pytest.mark.parametrize("finest_field", ["full", "half"])
@pytest.mark.parametrize("schedule", [(), CYCLE, (1, 2, 3, 3)])
@pytest.mark.parametrize("combine", ["compose", "add"])
def test_integrated_velocities_are_the_last_runs_field(pair, combine, schedule, finest_field):
    model = tiny(combine, schedule=schedule, finest_field=finest_field)
    with torch.no_grad():
        expected = model.run(*pair)[-1].displacement
        torch.testing.assert_close(integrate(model(*pair), expected.shape[2:]), expected, atol=1e-3, rtol=0)
    assert expected.shape[2:] == (SHAPE if finest_field == "full" else (8, 10, 12))


@pytest.mark.parametrize(("symmetric", "turns"), [((), False), ((1,), True)])
def test_exchanging_the_images_turns_a_symmetric_levels_velocity_round(pair, symmetric, turns):
    model = tiny(schedule=CYCLE, symmetric=symmetric)
    with torch.no_grad():
        there, back = (model.run(*images, finest=1)[0].residual for images in (pair, pair[::-1]))
    assert torch.allclose(there, -back, atol=1e-6) is turns


def test_a_symmetric_level_answers_with_half_the_difference(pair):
    with torch.no_grad():
        plain = [tiny().run_level(1, *images).residual for images in (pair, pair[::-1])]
        answer = tiny(symmetric=(1,)).run_level(1, *pair).residual
    torch.testing.assert_close(answer, (plain[0] - plain[1]) / 2)


def test_symmetric_levels_keep_the_pairs_of_a_batch_apart(pair):
    model = tiny(symmetric=(1, 2, 3), schedule=CYCLE)
    with torch.no_grad():
        outputs = model.run(*pair)
        batch = model.run(torch.cat([pair[1], pair[0]]), torch.cat([pair[0], pair[1]]))
    assert [out.features.shape[0] for out in outputs] == [1] * len(CYCLE)
    assert [out.level for out in outputs] == list(CYCLE)
    for one, two in zip(outputs, batch, strict=True):
        torch.testing.assert_close(two.residual[1:], one.residual, atol=1e-4, rtol=0)
        torch.testing.assert_close(two.features[1:], one.features, atol=1e-4, rtol=0)


def test_a_coarser_run_keeps_the_finer_field(pair):
    model = tiny(schedule=(1, 2, 1, 2, 3))
    with torch.no_grad():
        outputs = model.run(*pair)
    assert [out.level for out in outputs] == [1, 2, 1, 2, 3]
    assert outputs[2].residual.shape[2:] == (4, 5, 6)
    assert outputs[2].displacement.shape == outputs[1].displacement.shape


def test_features_only_rise(pair):
    model = tiny(schedule=(1, 2, 1, 2, 3, 2, 3))
    with torch.no_grad():
        outputs = model.run(*pair)
    received = [None if out.carried is None else out.carried.shape[2:] for out in outputs]
    assert received == [None, (4, 5, 6), None, (4, 5, 6), (8, 10, 12), None, (8, 10, 12)]


def test_without_a_level_its_runs_are_left_out(pair):
    model = tiny(schedule=CYCLE)
    assert model.config.runs(2) == [1, 1, 2, 1, 2]
    assert [out.level for out in model.run(*pair, finest=1)] == [1, 1, 1]
    with torch.no_grad():
        every, coarse = model(*pair), model(*pair, finest=False)
    assert len(every) == 6
    assert len(coarse) == 5
    torch.testing.assert_close(coarse[0], every[0])


@pytest.mark.parametrize(("finest_field", "shape"), [("full", (13, 18, 23)), ("half", (7, 9, 12))])
def test_odd_shapes_run(finest_field, shape):
    model = tiny(schedule=CYCLE, finest_field=finest_field)
    with torch.no_grad():
        fields = model(torch.rand(1, 1, 13, 18, 23), torch.rand(1, 1, 13, 18, 23))
    assert fields[-1].shape == (1, 3, *shape)


def test_batch_equals_single(pair):
    model = tiny()
    fixed, moving = torch.rand(2, 1, *SHAPE), torch.rand(2, 1, *SHAPE)
    with torch.no_grad():
        both = model(fixed, moving)
        for i in range(2):
            for joint, alone in zip(both, model(fixed[i : i + 1], moving[i : i + 1]), strict=True):
                torch.testing.assert_close(joint[i : i + 1], alone, atol=1e-4, rtol=1e-4)


def test_bfloat16_agrees_with_float32(pair):
    model = tiny()
    with torch.no_grad():
        exact = integrate(model(*pair), SHAPE)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            half = integrate(model(*pair), SHAPE)
    assert half.dtype == torch.float32
    assert (exact - half).abs().max() < 0.05 * exact.abs().max() + 0.01


@pytest.mark.parametrize("level", [1, 2])
@pytest.mark.parametrize("slices", [("axial",), ("sagittal", "axial", "coronal")])
def test_the_slice_loss_alone_reaches_the_3d_weights(pair, level, slices):
    model = tiny(slices=slices)
    pairs = model.pyramid(*pair)
    before = model.run_level(1, *pairs[1]) if level > 1 else None
    out = model.run_level(level, *pairs[level], before)
    for displacement in register_slices(model, *pairs[level], out, before):
        model.zero_grad()
        displacement.square().sum().backward(retain_graph=True)
        assert model.subnet(level).decode.weight.grad.abs().sum() > 0
        assert model.subnet(level).encode[0].weight.grad.abs().sum() > 0


def test_slices_do_not_move_through_their_plane(pair):
    model = tiny(slices=("axial",))
    fixed, moving = model.pyramid(*pair)[1]
    (displacement,) = register_slices(model, fixed, moving, model.run_level(1, fixed, moving))
    assert displacement[:, 1].abs().max() == 0
    assert displacement[:, 0].abs().max() > 0


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_slicing_and_splicing_are_inverse(axis):
    field = torch.rand(2, 3, 7, 8, 9)
    in_plane = torch.cat([field[:, :axis], field[:, axis + 1 :]], dim=1)
    again = splice(to_slices(in_plane, axis), axis, batch=2)
    expected = field.clone()
    expected[:, axis] = 0
    torch.testing.assert_close(again, expected)


def test_the_core_branch_uses_the_finest_levels_weights(pair):
    model = tiny()
    with torch.no_grad():
        before = model.run(*pair, finest=2)[-1]
    displacement, core = register_core(model, *pair, before, (8, 12, 12))
    assert core == central_window(SHAPE, (8, 12, 12))
    displacement.square().sum().backward()
    touched = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    assert touched == {name for name, _ in model.named_parameters() if name.startswith("levels.2")}


@pytest.mark.parametrize("finest_field", ["full", "half"])
def test_a_window_as_large_as_the_grid_changes_nothing(pair, finest_field):
    model = tiny(schedule=CYCLE, finest_field=finest_field)
    pairs = model.pyramid(*pair)
    with torch.no_grad():
        before = model.run(*pair, finest=2)[-1]
        whole = model.run_level(3, *pairs[3], before)
        windowed = model.run_level(3, *pairs[3], before, window=tuple(slice(0, n) for n in SHAPE))
    torch.testing.assert_close(whole.displacement, windowed.displacement)


def grown(model):
    """Return which levels' weights have a gradient."""
    return {int(name.split(".")[1]) + 1 for name, p in model.named_parameters() if p.grad is not None and p.grad.any()}


@pytest.mark.parametrize("combine", ["compose", "add"])
@pytest.mark.parametrize("level", [1, 2, 3])
def test_the_objective_trains_its_level_and_whatever_gave_it_its_start(pair, level, combine):
    model = tiny(combine)
    stages = (StageConfig(levels=(1,), steps=1),)
    objective = RunObjective(
        model, TrainConfig("tiny", network=model.config, loss=LossConfig(core=(8, 12, 12)), stages=stages)
    )
    pairs = model.pyramid(*pair)
    for frozen in (True, False):
        model.zero_grad()
        with torch.set_grad_enabled(not frozen):
            before = model.run(*pair, finest=level - 1)[-1] if level > 1 else None
        losses, _ = objective(*pairs[level], level, before)
        losses["loss"].backward()
        assert grown(model) == ({level} if frozen else set(range(1, level + 1)))
        assert losses["branch"] > 0 and losses["dice"] == 0


@pytest.mark.parametrize(("weight", "its_level"), [("alpha", 1), ("beta", 2), ("theta", 3)])
def test_each_branch_has_its_level_and_weight(pair, weight, its_level):
    model, branches = tiny(), []
    for size in (0.5, 1.0):
        loss = LossConfig(core=(8, 12, 12), **{"alpha": 0, "beta": 0, "theta": 0} | {weight: size})
        config = TrainConfig("tiny", network=model.config, loss=loss, stages=(StageConfig(levels=(1,), steps=1),))
        before, objective, pairs = None, RunObjective(model, config), model.pyramid(*pair)
        for level in (1, 2, 3):
            with torch.no_grad():
                losses, before = objective(*pairs[level], level, before)
            branches.append((level, float(losses["branch"])))
    found = {level: [value for other, value in branches if other == level] for level in (1, 2, 3)}
    assert 0 < 2 * found[its_level][0] == pytest.approx(found[its_level][1])
    assert all(values == [0, 0] for level, values in found.items() if level != its_level)


def test_what_wants_labels_waits_for_them(pair):
    loss = LossConfig(tissue=1.0, dice=1.0, cortex=1.0)
    model = tiny()
    config = TrainConfig("tiny", network=model.config, loss=loss, stages=(StageConfig(levels=(1,), steps=1),))
    maps = RunObjective(model, config).maps(*pair, None, np.random.default_rng(0))
    assert [set(maps[level]) for level in (1, 2, 3)] == [{"tissue"}] * 3


@pytest.mark.parametrize("finest_field", ["full", "half"])
@pytest.mark.parametrize("run", range(len(CYCLE)))
def test_every_run_of_a_cycle_can_be_trained(pair, run, finest_field):
    model = tiny(schedule=CYCLE, finest_field=finest_field)
    config = TrainConfig(
        "tiny",
        network=model.config,
        loss=LossConfig(similarity="local", window=3, theta=0, tissue=1.0, dice=1.0, cortex=1.0),
        stages=(StageConfig(levels=(1,), steps=1),),
    )
    labels = torch.zeros(1, 1, *SHAPE, dtype=torch.int16)
    labels[..., 4:12, 4:12, 4:12] = 47
    labels[..., :3] = 154
    labels[..., -3:] = 46  # a label of neither
    level, pairs = CYCLE[run], model.pyramid(*pair)
    window = tuple(slice(2, n - 2) for n in SHAPE) if level == 3 else None
    before = None
    with torch.no_grad():
        for earlier in CYCLE[:run]:
            before = model.run_level(earlier, *pairs[earlier], before)
    objective = RunObjective(model, config)
    assert len(objective.parcels) == 98
    objective.parcels = [(154,)]  # the only one here, so it is drawn
    maps = objective.maps(*pair, (labels, labels.roll(1, 2)), np.random.default_rng(0))
    losses, _ = objective(*pairs[level], level, before, window, maps[level])
    losses["loss"].backward()
    assert grown(model) == {level}
    assert 0 < losses["dice"] < 1 and 0 < losses["tissue"] < 1 and 0 < losses["cortex"] < 1


def test_class_shares_are_the_halved_masks_of_merged_labels():
    labels = torch.randint(-1, 9, (2, 1, *SHAPE))
    shares = class_shares(labels, [(1,), (3, 5), (4,)])
    masks = labels == 1, (labels == 3) | (labels == 5), labels == 4
    expected = torch.cat([downsample(mask.float()) for mask in masks], 1)
    torch.testing.assert_close(shares, expected)


def test_configuration_names_what_it_knows():
    with pytest.raises(ValueError, match="expected 'compose' or 'add', found 'sum'"):
        NetworkConfig(combine="sum")
    with pytest.raises(ValueError, match="oblique"):
        NetworkConfig(slices=("oblique",))
    with pytest.raises(ValueError, match=r"network.symmetric: expected levels 1 to 3, found \[4\]"):
        NetworkConfig(symmetric=(1, 4))
