"""Registration of tiny pairs with a stand-in network whose answer is known, and of real brains."""

import json
import os
import time
from dataclasses import replace
from unittest.mock import Mock, call

import ants
import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
import torch
from nibabel.orientations import axcodes2ornt, io_orientation, ornt_transform

import mmln_pipeline
from mmln_pipeline import register, weights
from mmln_pipeline.fields.integration import taper
from mmln_pipeline.fields.topology import enforce
from mmln_pipeline.images import volumes
from mmln_pipeline.images.brain import Brain
from mmln_pipeline.machine import devices
from mmln_pipeline.network.architecture import NetworkConfig
from mmln_pipeline.registration import steps as registration
from mmln_pipeline.registration.pair import load_pair
from mmln_pipeline.registration.settings import Settings
from mmln_pipeline.scores import evaluation
from mmln_pipeline.space.displacements import displacement_to_voxels
from mmln_pipeline.space.grids import Grid
from mmln_pipeline.space.itk import save_affine
from mmln_pipeline.space.transforms import Transform, read_transform

KEYS = {
    *("dice", "dice_per_label", "folding_percent", "folding_percent_brain", "ndv_percent", "tc", "sdlogj"),
    *("hd95_mm", "seconds", "peak_memory_mb", "device", "model", "version"),
}
SECONDS = {"load", "affine", "network", "refine", "save", "total"}
SHAPE = (24, 28, 32)
SHIFT = (2.0, -1.0, 3.0)  # voxels of the network grid
CARD = {"name": "shift", "sha256": "0" * 64, "network": {}}


def lia_affine(origin=(12.0, 14.0, -16.0)):
    """Voxel to world of a 1 mm grid with axes L, I, A."""
    affine = np.array([[-1.0, 0, 0, 0], [0, 0, 1, 0], [0, -1, 0, 0], [0, 0, 0, 1]])
    affine[:3, 3] = origin[0], origin[2], origin[1]
    return affine


def brain(centre, shape=SHAPE):
    """A smooth ellipsoid with texture, zero outside, as float32."""
    x = np.stack(np.meshgrid(*(np.arange(n) for n in shape), indexing="ij"))
    offset = (x - np.reshape(centre, (3, 1, 1, 1))) / np.reshape((7, 8, 9), (3, 1, 1, 1))
    radius = np.sqrt((offset**2).sum(0))
    texture = 1 + 0.3 * np.sin(2 * offset[0] + 1) * np.cos(3 * offset[1]) + 0.2 * offset[2]
    return np.where(radius < 1, 100 * texture * (1.2 - radius), 0).astype(np.float32)


def reorient(image, axes):
    """The same image with its array axes in another order or direction."""
    return image.as_reoriented(ornt_transform(io_orientation(image.affine), axcodes2ornt(axes)))


def dseg_of(image):
    data = np.asarray(image.dataobj)
    return nib.Nifti1Image((data > 0).astype(np.uint8) + (data > 90).astype(np.uint8), image.affine)


@pytest.mark.parametrize("masked", [True, False])
def test_background_does_not_bleed_into_a_resampled_brain(masked):
    data = np.zeros(SHAPE, np.float32)
    data[6:16, 8:18, 8:20] = 100
    image, mask = (nib.Nifti1Image(a, lia_affine()) for a in (data, (data > 0).astype(np.uint8)))
    if masked:
        image = nib.Nifti1Image(data + 50, image.affine)  # a head round it
    askew = np.eye(4)
    askew[:3, 3] = 0.3, 0.4, -0.3
    values = registration._brain_on_grid(Brain(image, mask if masked else None), Grid.of(image), askew)
    np.testing.assert_allclose(values[values > 0], 150 if masked else 100, rtol=1e-5)
    assert (values > 0).sum() == pytest.approx(mask.get_fdata().sum(), rel=0.05)


@pytest.fixture
def pair():
    """Fixed and moving brain in one world, the moving one shifted by SHIFT voxels along L, I, A."""
    centre = np.array([12.0, 14.0, 15.0])
    affine = lia_affine()
    fixed = nib.Nifti1Image(brain(centre), affine)
    moving = nib.Nifti1Image(brain(centre + SHIFT), affine)
    return fixed, moving


class Shift(torch.nn.Module):
    """Answer every pair with one constant velocity, and remember what it was given."""

    config = NetworkConfig(grid=SHAPE)

    def forward(self, fixed, moving, finest=True):
        self.seen = fixed, moving
        self.finest = finest
        velocity = torch.tensor(SHIFT).view(1, 3, 1, 1, 1).expand(1, 3, *fixed.shape[2:])
        return (velocity.clone(),)


@pytest.fixture
def network(monkeypatch):
    """Replace the weights by `Shift` and the network grid by a small one."""
    model = Shift()
    monkeypatch.setattr(weights, "load_model", lambda name, device: (model, CARD))
    # So small a grid is all border, where the warp fades, and is repaired where it does not.
    monkeypatch.setattr(registration, "taper", lambda velocity, shape: velocity)
    monkeypatch.setattr(
        registration.topology, "enforce", lambda u: replace(enforce(torch.zeros_like(u)), displacement=u)
    )
    return model


def test_the_name_is_the_function():
    assert callable(mmln_pipeline.register)
    assert mmln_pipeline.register is register
    assert mmln_pipeline.RegistrationResult.__module__ == "mmln_pipeline.registration.result"


def test_identity_on_the_network_grid_resamples_nothing(pair, network):
    fixed, moving = pair
    result = register(fixed, moving, init="identity", refine=0, device="cpu")
    seen_fixed, seen_moving = (tensor[0, 0].numpy() for tensor in network.seen)
    for seen, image in ((seen_fixed, fixed), (seen_moving, moving)):
        np.testing.assert_array_equal(seen, volumes.normalize_intensity(np.asarray(image.dataobj)))
    assert len(result.transform.parts) == 1, "identity adds no affine"
    np.testing.assert_allclose(result.moved.get_fdata(), fixed.get_fdata(), atol=0.5)
    np.testing.assert_allclose(result.jacobian.get_fdata()[4:-4, 4:-4, 4:-4], 1.0, atol=1e-4)


def test_the_warp_joins_the_identity_at_the_border_of_the_networks_grid(pair, network, monkeypatch):
    monkeypatch.setattr(registration, "taper", taper)
    monkeypatch.setattr(registration.topology, "enforce", enforce)
    result = register(*pair, init="identity", refine=0, device="cpu")
    offsets = displacement_to_voxels(result.transform.parts[0])
    np.testing.assert_allclose(offsets[:, 12, 14, 16], SHIFT, atol=0.01)
    for axis in range(3):
        for face in (0, -1):
            assert np.abs(offsets.take(face, axis + 1)).max() == 0
    points = nib.affines.apply_affine(lia_affine(), np.argwhere(np.ones(SHAPE)))
    there_and_back = result.inverse.map_points(result.transform.map_points(points))
    assert np.linalg.norm(there_and_back - points, axis=1).mean() < 0.1
    assert result.metrics["inverse_consistency_mm"] < 0.01


@pytest.mark.parametrize("axes", ["RAS", "LPS", "SAR"])
def test_any_orientation_of_either_image(pair, network, axes):
    fixed, moving = reorient(pair[0], axes), reorient(pair[1], axes[::-1])
    result = register(fixed, moving, init="identity", refine=0, device="cpu")
    assert result.moved.shape == fixed.shape
    np.testing.assert_allclose(result.moved.affine, fixed.affine)
    np.testing.assert_allclose(result.moved.get_fdata(), fixed.get_fdata(), atol=0.5)
    assert result.warp.offsets_mm.shape == (*fixed.shape, 3)


def test_points_map_from_fixed_to_moving_and_back(pair, network):
    fixed, moving = pair
    result = register(fixed, moving, init="identity", refine=0, device="cpu")
    start = np.array([[12.0, 14.0, 15.0]])
    there = nib.affines.apply_affine(fixed.affine, start)
    landed = result.transform.map_points(there)
    expected = nib.affines.apply_affine(moving.affine, start + SHIFT)
    np.testing.assert_allclose(landed, expected, atol=1e-3)
    np.testing.assert_allclose(result.inverse.map_points(landed), there, atol=1e-3)


def test_affine_start_joins_the_warp(pair, network, tmp_path):
    fixed, moving = pair
    matrix = np.eye(4)
    matrix[:3, 3] = (5.0, -4.0, 2.0)
    displaced = nib.Nifti1Image(np.asarray(moving.dataobj), matrix @ moving.affine)
    save_affine(matrix, tmp_path / "start.mat")
    for init in (matrix, tmp_path / "start.mat", str(tmp_path / "start.mat")):
        result = register(fixed, displaced, init=init, refine=0, device="cpu")
        np.testing.assert_allclose(result.affine, matrix, atol=1e-5)
        np.testing.assert_allclose(result.moved.get_fdata(), fixed.get_fdata(), atol=0.5)
    assert len(result.transform.parts) == 2


@pytest.mark.filterwarnings("ignore::mmln_pipeline.registration.result.QualityWarning")
def test_the_scores_before_are_those_of_the_affine_alone(pair, network):
    fixed, moving = pair
    matrix = np.eye(4)
    matrix[:3, 3] = lia_affine()[:3, :3] @ SHIFT
    labelled = {"fixed_dseg": dseg_of(fixed), "moving_dseg": dseg_of(moving)}
    scores = register(fixed, moving, init=matrix, refine=0, device="cpu", **labelled).metrics
    assert scores["dice_before"] > 0.99 > scores["dice"], "the network's shift comes on top"


def test_estimated_start_gets_kind_masks_and_seed(pair, network, monkeypatch):
    fixed, moving = pair
    asked = {}

    def estimate(fixed, moving, kind, seed):
        asked.update(fixed=fixed, moving=moving, kind=kind, seed=seed)
        return np.eye(4)

    monkeypatch.setattr(registration.affine, "estimate_affine", estimate)
    mask = dseg_of(fixed)
    register(fixed, moving, init="rigid", fixed_mask=mask, refine=0, device="cpu", random_seed=7)
    assert asked["kind"] == "rigid" and asked["seed"] == 7
    assert asked["fixed"].mask is not None and asked["moving"].mask is None


def test_masks_strip_what_the_network_sees_but_not_what_is_resampled(pair, network):
    fixed, moving = pair
    head = moving.get_fdata(dtype=np.float32) + 40
    mask = nib.Nifti1Image((moving.get_fdata() > 0).astype(np.uint8), moving.affine)
    result = register(
        fixed, nib.Nifti1Image(head, moving.affine), init="identity", moving_mask=mask, refine=0, device="cpu"
    )
    seen = network.seen[1][0, 0].numpy()
    assert (seen[np.asarray(mask.dataobj) == 0] == 0).all()
    core = (slice(6, -6),) * 3
    np.testing.assert_allclose(result.moved.get_fdata()[core], fixed.get_fdata()[core] + 40, atol=0.5)


def test_scores_with_labels(pair, network):
    fixed, moving = pair
    result = register(
        fixed,
        moving,
        init="identity",
        fixed_dseg=dseg_of(fixed),
        moving_dseg=dseg_of(moving),
        refine=0,
        device="cpu",
    )
    scores = result.metrics
    assert set(scores) >= KEYS and set(scores["seconds"]) >= SECONDS
    assert scores["dice"] > 0.99 > scores["dice_before"]
    assert set(scores["dice_per_label"]) == {"1", "2"}
    assert scores["tc"] == pytest.approx(1.0, abs=0.01)
    assert scores["hd95_mm"] == 0.0
    assert scores["folding_percent"] == scores["folding_percent_brain"] == scores["ndv_percent"] == 0.0
    assert scores["sdlogj"] == pytest.approx(0.0, abs=1e-4)
    assert scores["similarity"]["global_correlation"]["after"] > scores["similarity"]["global_correlation"]["before"]
    assert scores["inverse_consistency_mm"] < 0.1
    assert scores["model"] == "shift" and scores["model_sha256"] == CARD["sha256"]
    assert scores["version"] == mmln_pipeline.__version__ and scores["device"] == "cpu"
    assert scores["peak_memory_mb"] > 10
    assert result.moved_dseg.get_data_dtype() == np.uint8


def test_scores_without_labels_are_null(pair, network):
    scores = register(*pair, init="identity", refine=0, device="cpu").metrics
    assert set(scores) >= KEYS
    assert [scores[key] for key in ("dice", "dice_per_label", "tc", "hd95_mm")] == [None] * 4
    assert scores["folding_percent_brain"] == 0.0


def test_label_table_merges_and_names(pair, network, tmp_path):
    fixed, moving = pair
    table = tmp_path / "table.tsv"
    table.write_text("name\tlabels\nBrain\t1,2\nElsewhere\t9\n")
    labelled = {"fixed_dseg": dseg_of(fixed), "moving_dseg": dseg_of(moving)}
    scores = register(fixed, moving, init="identity", labels=table, refine=0, device="cpu", **labelled).metrics
    assert set(scores["dice_per_label"]) == {"Brain"}
    with pytest.raises(ValueError, match=r"structures28.*another label system"):
        register(fixed, moving, init="identity", labels="structures28", refine=0, **labelled)
    with pytest.raises(ValueError, match="needs labels to score"):
        register(fixed, moving, init="identity", labels="structures28", refine=0)


def test_refinement_gets_the_pair_and_its_velocities_count(pair, network, monkeypatch):
    calls = []

    def refine(fixed, moving, velocities, iterations, weight, **options):
        calls.append(iterations)
        assert fixed.shape == moving.shape == (1, 1, *SHAPE)
        return tuple(0 * velocity for velocity in velocities)

    monkeypatch.setattr(registration.descent, "refine", refine)
    result = register(*pair, init="identity", refine=3, device="cpu")
    np.testing.assert_allclose(result.moved.get_fdata(), pair[1].get_fdata(), atol=1e-3)
    assert not network.finest
    register(*pair, init="identity", refine=0, device="cpu")
    assert network.finest
    assert calls == [3]


def test_saved_files_are_read_by_other_tools(pair, network, tmp_path):
    fixed, moving = reorient(pair[0], "RAS"), reorient(pair[1], "LPS")
    result = register(fixed, moving, init="identity", moving_dseg=dseg_of(moving), refine=0, device="cpu")
    paths = result.save(tmp_path / "new" / "out")
    images = {f"{name}.nii.gz" for name in ("moved", "moved_dseg", "warp", "jacobian")}
    others = {"forward_xfm.h5", "inverse_xfm.h5", "metrics.json"}
    assert {path.name for path in (tmp_path / "new" / "out").iterdir()} == images | others
    for image, name in ((fixed, "fixed"), (moving, "moving")):
        nib.save(image, tmp_path / f"{name}.nii.gz")
    ours = result.moved.get_fdata()

    fixed_ants, moving_ants = (ants.image_read(str(tmp_path / f"{n}.nii.gz")) for n in ("fixed", "moving"))
    for transform in (paths["transform"], paths["warp"]):
        theirs = ants.apply_transforms(fixed_ants, moving_ants, [str(transform)]).numpy()
        assert np.abs(theirs - ours)[fixed.get_fdata() > 0].mean() < 0.005 * np.ptp(ours)
    fixed_itk, moving_itk = (sitk.ReadImage(str(tmp_path / f"{n}.nii.gz")) for n in ("fixed", "moving"))
    resampled = sitk.Resample(moving_itk, fixed_itk, sitk.ReadTransform(str(paths["transform"])))
    theirs = sitk.GetArrayFromImage(resampled).transpose(2, 1, 0)
    assert np.abs(theirs - ours)[fixed.get_fdata() > 0].mean() < 0.005 * np.ptp(ours)


def test_saved_metrics_are_json_with_all_seconds(pair, network, monkeypatch, tmp_path):
    monkeypatch.setattr(
        "mmln_pipeline.registration.pair.load_pair", lambda *images: time.sleep(0.2) or load_pair(*images)
    )
    result = register(*pair, init="identity", refine=0, device="cpu")
    paths = result.save(tmp_path)
    result.save(tmp_path)
    assert not (tmp_path / "moved_dseg.nii.gz").exists()
    saved = json.loads(paths["metrics"].read_text())
    assert set(saved) >= KEYS
    seconds = saved["seconds"]
    assert all(seconds[name] > 0 for name in SECONDS) and seconds["load"] > 0.2, "reading counts"
    parts = sum(value for name, value in seconds.items() if name != "total")
    assert parts == pytest.approx(seconds["total"], abs=0.5)


def test_progress_names_every_stage(pair, network):
    told = []
    register(*pair, init="identity", refine=0, device="cpu", progress=lambda *step: told.append(step))
    assert [stage for stage, done, _ in told if done == 0] == [
        *("load", "affine", "network", "refine", "integrate", "topology", "resample", "score")
    ]


def test_progress_counts_the_steps_of_refining(pair, network):
    told = []
    register(*pair, init="identity", refine=4, device="cpu", progress=lambda *step: told.append(step))
    steps = [(done, total) for stage, done, total in told if stage == "refine"]
    assert steps[0] == (0, 1) and (1, 8) in steps and steps[-1] == (1, 1)
    assert all(done <= total for done, total in steps)


def test_threads_reach_torch_and_itk(pair, network, monkeypatch):
    asked, variable = [], "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS"
    monkeypatch.setattr(torch, "set_num_threads", asked.append)
    monkeypatch.setenv(variable, "1")
    own = sitk.ProcessObject.GetGlobalDefaultNumberOfThreads()
    with devices.itk_threads(own):
        for threads in (None, own + 1):
            register(*pair, init="identity", refine=0, device="cpu", threads=threads)
            assert os.environ[variable] == str(threads or 1)
            assert sitk.ProcessObject.GetGlobalDefaultNumberOfThreads() == (threads or own)
    assert asked == [own + 1]


def test_images_of_different_worlds_are_refused(pair, network):
    fixed, moving = pair
    far = nib.Nifti1Image(np.asarray(moving.dataobj), lia_affine((300.0, 300.0, 300.0)))
    with pytest.raises(ValueError, match=r"do not overlap with init 'identity'.*--init affine"):
        register(fixed, far, init="identity", refine=0, device="cpu")


def test_labels_off_their_image_are_refused(pair, network, tmp_path):
    fixed, moving = pair
    path = tmp_path / "labels.nii.gz"
    nib.save(nib.Nifti1Image(np.ones((5, 6, 7), np.uint8), np.eye(4)), path)
    with pytest.raises(ValueError, match=r"fixed dseg .*labels\.nii\.gz.*\(24, 28, 32\).*\(5, 6, 7\)"):
        register(fixed, moving, init="identity", fixed_dseg=path)
    shifted = nib.Nifti1Image(np.ones(SHAPE, np.uint8), lia_affine((13.0, 14.0, -16.0)))
    with pytest.raises(ValueError, match=r"moving mask must lie on the grid of the moving image"):
        register(fixed, moving, init="identity", moving_mask=shifted)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"refine": -1}, "refine: expected auto or a whole number"),
        ({"refine": "often"}, "refine: expected auto or a whole number"),
        ({"threads": 0}, "threads: expected a whole number from 1"),
        ({"random_seed": -1}, "random_seed: expected a whole number from 0"),
        ({"device": "tpu"}, "device.*tpu"),
        ({"init": np.eye(3)}, "init: expected a finite 4 x 4 matrix"),
        ({"fixed": "missing.nii.gz"}, r"fixed.*missing\.nii\.gz"),
        ({"init": "start.mat"}, r"start\.mat"),
        ({"model": "absent-model"}, "absent-model"),
    ],
)
def test_bad_options_fail_before_work(pair, monkeypatch, options, message):
    monkeypatch.setattr(registration.affine, "estimate_affine", lambda *a, **k: pytest.fail("work began"))
    arguments = {"fixed": pair[0], "moving": pair[1], **options}
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        register(arguments.pop("fixed"), arguments.pop("moving"), **arguments)


def test_cuda_absent_is_said(pair):
    if torch.cuda.is_available():
        pytest.skip("this machine has CUDA")
    with pytest.raises(ValueError, match="cuda"):
        register(*pair, device="cuda")


@pytest.fixture
def full_gpu(monkeypatch):
    """A GPU that no context fits in."""
    monkeypatch.setattr(devices, "resolve_device", lambda name: torch.device("cuda:0"))
    monkeypatch.setattr(torch.cuda, "init", Mock(side_effect=RuntimeError("CUDA error: out of memory")))


def test_a_gpu_out_of_memory_leaves_the_pair_to_the_cpu_and_says_so(pair, network, full_gpu, tmp_path):
    with pytest.warns(UserWarning, match="cuda:0 has too little memory left: registered on the CPU"):
        result = register(*pair, init="identity", refine=0, device="cuda:0")
    found = json.loads(result.save(tmp_path, ["metrics"])["metrics"].read_text())
    assert (found["device"], found["out_of_memory"]) == ("cpu", "cuda:0")
    np.testing.assert_allclose(result.moved.get_fdata(), pair[0].get_fdata(), atol=0.5)


def test_another_failure_of_a_gpu_is_raised(pair, network, full_gpu, monkeypatch):
    monkeypatch.setattr(torch.cuda, "init", Mock(side_effect=RuntimeError("CUDA error: unspecified launch failure")))
    with pytest.raises(RuntimeError, match="launch failure"):
        register(*pair, init="identity", refine=0, device="cuda:0")


def test_a_stage_ends_when_the_gpu_has_done_its_work(monkeypatch):
    wait = Mock()
    monkeypatch.setattr(torch.cuda, "synchronize", wait)
    for name in ("cuda:1", "cpu"):
        with registration._Clock(0.0, None, torch.device(name)).stage("network"):
            pass
    wait.assert_called_once_with(torch.device("cuda:1"))


def test_the_counts_of_a_gpu_are_reset_when_it_is_ready(monkeypatch):
    gpu = Mock()
    monkeypatch.setattr(torch.cuda, "init", gpu.init)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", gpu.reset)
    registration._prepare_machine(Settings(device="cuda:1"), torch.device("cuda:1"))
    assert gpu.mock_calls == [call.init(), call.reset(torch.device("cuda:1"))]


def test_output_directory_that_is_a_file(pair, network, tmp_path):
    result = register(*pair, init="identity", refine=0, device="cpu")
    (tmp_path / "taken").write_text("")
    with pytest.raises(ValueError, match="taken"):
        result.save(tmp_path / "taken")


def test_evaluation_of_the_saved_transform_gives_the_same_scores(pair, network, tmp_path):
    fixed, moving = pair
    labelled = {"fixed_dseg": dseg_of(fixed), "moving_dseg": dseg_of(moving)}
    result = register(fixed, moving, init="identity", refine=0, device="cpu", **labelled)
    path = result.save(tmp_path)["transform"]
    scores = evaluation.evaluate_transform(fixed, moving, read_transform(path), **labelled)
    for key in ("dice", "dice_before", "tc", "hd95_mm", "folding_percent_brain", "sdlogj"):
        assert scores[key] == pytest.approx(result.metrics[key], abs=1e-3), key


def test_evaluation_takes_the_affine_out():
    affine = lia_affine()
    fixed = nib.Nifti1Image(brain((12, 14, 15)), affine)
    matrix = np.diag([1.2, 0.9, 1.1, 1.0])
    scores = evaluation.evaluate_transform(fixed, fixed, Transform([matrix]), moving_dseg=dseg_of(fixed))
    assert scores["sdlogj"] == pytest.approx(0.0, abs=1e-3)
    assert scores["folding_percent"] == 0.0
    assert scores["tc"] == 1.0
    np.testing.assert_allclose(
        evaluation.linear_part(Transform([matrix, np.diag([2.0, 2, 2, 1])])), np.diag([2.4, 1.8, 2.2, 1])
    )


def test_jsonable_has_no_nan():
    value = {1: np.float32(0.5), "b": [np.nan, np.inf, np.int8(3)], "c": (np.bool_(True), None, "text")}
    assert evaluation.jsonable(value) == {"1": 0.5, "b": [None, None, 3], "c": [True, None, "text"]}


@pytest.mark.realdata
@pytest.mark.parametrize(("model", "dice"), [("mmln", 0.797), pytest.param("mmln-semi", 0.827, marks=pytest.mark.slow)])
def test_bundled_weights_on_an_aligned_pair(data_root, model, dice):
    """Mean Dice over the 28 structures without refinement, to what half precision and the machine may change."""
    aligned = data_root.parent / "bench" / "aligned"
    if not aligned.is_dir():
        pytest.skip(f"aligned pairs absent: {aligned} is no folder")
    files = {
        f"{role}{suffix}": aligned / f"{person}_{kind}.nii.gz"
        for role, person in (("fixed", "1003"), ("moving", "1101"))
        for suffix, kind in (("", "T1w"), ("_dseg", "dseg"))
    }
    scores = register(**files, model=model, init="identity", labels="structures28", refine=0, device="cpu").metrics
    assert scores["dice_before"] == pytest.approx(0.608, abs=0.001)
    assert scores["dice"] == pytest.approx(dice, abs=0.005)
    assert scores["folding_percent"] == scores["ndv_percent"] == 0
