"""The quality check: its rules on made-up scores, and its verdicts on good and on deliberately broken registrations."""

import json
import math
import warnings

import nibabel as nib
import numpy as np
import pytest
from scipy.ndimage import gaussian_filter
from scipy.spatial.transform import Rotation

from mmln_pipeline import QualityWarning, register
from mmln_pipeline.cli import main
from mmln_pipeline.network.architecture import NetworkConfig
from mmln_pipeline.network.model import MMLN
from mmln_pipeline.registration.result import describe_doubt
from mmln_pipeline.scores import evaluation, quality
from mmln_pipeline.space.transforms import Transform
from mmln_pipeline.weights import save_model

SHAPE = (40, 44, 48)
GOOD = {
    "brain_cut_cm2": 0.0,
    "brain_flat_cm2": 2.0,
    "brain_overlap": {"before": 0.96, "after": 0.99},
    "similarity": {
        "brain_correlation": {"before": 0.6, "after": 0.95},
        "local_correlation": {"before": 0.25, "after": 0.78},
    },
    "contrast": {"fixed": 0.4, "moving": 0.4},
    "dice": 0.78,
    "dice_before": 0.58,
    "ndv_percent_brain": 0.0002,
    "sdlogj": 0.5,
    "inverse_consistency_mm": 0.25,
    "affine": {"volume_ratio": 0.75, "rotation_degrees": 12.0, "anisotropy": 1.1},
    "headers": {"itk_distance_mm": 0.0, "itk_refuses": 0},
}


def change(path, value):
    """Good scores with another value in one place."""
    scores = json.loads(json.dumps(GOOD))
    inner = scores
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    return scores


# ----------------------------------------------------------------------------------------------------- the rules


def test_good_scores_pass_without_a_reason():
    assert quality.judge(GOOD) == {"verdict": "pass", "reasons": []}


@pytest.mark.parametrize("check", quality.CHECKS, ids=lambda check: f"{check.path[-1]}-{check.look:g}")
def test_each_limit_holds_on_its_own(check):
    start = quality.look_up(GOOD, check.before) if check.before else 0.0
    step = 1e-6 if check.fail > check.look else -1e-6
    for limit, verdict in ((check.look, "look"), (check.fail, "fail")):
        if math.isinf(limit):
            continue
        inside, beyond = (
            quality.Check.judge(check, change(check.path, start + limit + sign * step)) for sign in (-1, 1)
        )
        assert quality.VERDICTS.index(inside[0]) < quality.VERDICTS.index(beyond[0]) and beyond[0] == verdict
        assert check.name in beyond[1] and check.meaning in beyond[1] and f"{limit:g}" in beyond[1]
        shown = beyond[1].removeprefix(check.name).split(" is ")[0]
        assert float(shown) != limit, "not 0.62 is above 0.62"


def test_every_check_says_why():
    for check in quality.CHECKS:
        assert check.source and check.meaning and check.look != check.fail


def test_the_worst_verdict_wins_and_its_reason_comes_first():
    verdict = quality.judge(change(("sdlogj",), 0.8) | {"dice": 0.1})
    assert verdict["verdict"] == "fail" and len(verdict["reasons"]) == 3
    assert "mean Dice" in verdict["reasons"][0] and "log-Jacobian" in verdict["reasons"][-1]


def test_three_doubts_at_once_are_a_failure():
    scores = change(("sdlogj",), 0.8) | {"inverse_consistency_mm": 0.6}
    assert quality.judge(scores)["verdict"] == "look"
    scores["brain_overlap"] = {"after": 0.94}
    verdict = quality.judge(scores)
    assert verdict["verdict"] == "fail" and len(verdict["reasons"]) == 4
    assert verdict["reasons"][0] == "3 scores at once are doubtful"


def test_scores_that_were_not_measured_are_left_out_and_those_without_a_value_fail():
    assert quality.judge({"dice": None, "dice_before": None})["verdict"] == "pass"
    assert quality.judge({})["verdict"] == "pass"
    verdict = quality.judge(change(("similarity", "brain_correlation", "after"), None))
    assert verdict["verdict"] == "fail" and "could not be measured" in verdict["reasons"][0]


def test_doubt_is_one_line():
    text = describe_doubt({"qc": quality.judge(change(("sdlogj",), 0.8))})
    assert text.startswith("quality check: look: SD of the log-Jacobian") and "\n" not in text
    assert describe_doubt({"qc": quality.judge(GOOD)}) == describe_doubt({}) == ""


def test_affine_is_described():
    turn = Rotation.from_euler("z", 30, degrees=True).as_matrix()
    scores = evaluation.score_affine(nib.affines.from_matvec(turn @ np.diag([1.2, 1.0, 0.8])))["affine"]
    assert scores["volume_ratio"] == pytest.approx(0.96) and scores["anisotropy"] == pytest.approx(1.5)
    assert scores["rotation_degrees"] == pytest.approx(30)
    mirrored = evaluation.score_affine(np.diag([-1.0, 1, 1, 1]))["affine"]
    assert mirrored["volume_ratio"] == -1 and mirrored["rotation_degrees"] == pytest.approx(180, abs=180)


# ------------------------------------------------------------------------------------------- broken registrations


def make_brain(seed=1):
    """A brain-like blob: asymmetric outline, texture of two scales, labels 1 (left) and 2 (right) and 3 (core)."""
    rng = np.random.default_rng(seed)
    x = np.stack(np.meshgrid(*(np.linspace(-1, 1, n) for n in SHAPE), indexing="ij"))
    radius = np.sqrt((x[0] / 0.65) ** 2 + (x[1] / (0.75 + 0.1 * x[2])) ** 2 + (x[2] / (0.6 - 0.1 * x[1])) ** 2)
    texture = 3 * gaussian_filter(rng.normal(size=SHAPE), 1.5) + 6 * gaussian_filter(rng.normal(size=SHAPE), 3.0)
    data = np.where(radius < 1, 100 * np.clip(1.2 + texture, 0.2, 3), 0).astype(np.float32)
    labels = np.where(radius < 1, 1 + (x[0] > 0), 0) + 0
    labels[radius < 0.3] = 3
    affine = nib.affines.from_matvec(np.eye(3), -np.array(SHAPE) / 2)
    return nib.Nifti1Image(data, affine), nib.Nifti1Image(labels.astype(np.uint8), affine)


def with_data(image, data):
    return nib.Nifti1Image(np.asarray(data, dtype=image.get_data_dtype()), image.affine)


def cut(image):
    """Lose the front half."""
    data = np.asarray(image.dataobj).copy()
    data[:, data.shape[1] // 2 :] = 0
    return with_data(image, data)


def rescale(image, factor):
    """Claim another voxel size."""
    return nib.Nifti1Image(np.asarray(image.dataobj), np.diag([factor] * 3 + [1]) @ image.affine)


def turn(degrees, shift):
    matrix = np.eye(4)
    matrix[:3, :3] = Rotation.from_euler("xyz", degrees, degrees=True).as_matrix()
    matrix[:3, 3] = shift
    return matrix


@pytest.fixture
def run(tmp_path):
    """A function that registers a pair, with a network that leaves every image where it is; returns the verdict."""
    still = MMLN(NetworkConfig(channels=2, slices=(), grid=SHAPE))
    save_model(still, tmp_path / "still.safetensors", {"name": "still"})

    def run(moving, moving_dseg=None, init="identity"):
        fixed, fixed_dseg = make_brain()
        labelled = {} if moving_dseg is None else {"fixed_dseg": fixed_dseg, "moving_dseg": moving_dseg}
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            options = {"init": init, "model": tmp_path / "still.safetensors", "refine": 0, "device": "cpu"}
            result = register(fixed, moving, **options, **labelled)
        verdict = result.metrics["qc"]
        said = [str(warning.message) for warning in caught if warning.category is QualityWarning]
        assert said == ([] if verdict["verdict"] == "pass" else [describe_doubt(result.metrics)])
        return verdict["verdict"], "; ".join(verdict["reasons"])

    return run


def test_a_good_registration_passes(run, rng):
    brain, labels = make_brain()
    data = np.asarray(brain.dataobj)
    noisy = with_data(brain, np.where(data > 0, 2 * data + rng.normal(0, 5, SHAPE), 0).clip(0))
    assert run(noisy, labels) == ("pass", "")


def test_a_wrong_affine_fails(run):
    verdict, reasons = run(*make_brain(), init=turn([40, 10, 0], [0, 4, 0]))
    assert verdict == "fail" and "correlation of intensities" in reasons


def test_a_mirroring_affine_fails(run):
    verdict, reasons = run(make_brain()[0], init=np.diag([-1.0, 1, 1, 1]))
    assert verdict == "fail" and "mirrored" in reasons


def test_left_and_right_flipped_fail_by_their_labels(run):
    brain, labels = (with_data(image, np.asarray(image.dataobj)[::-1]) for image in make_brain())
    verdict, reasons = run(brain, labels)
    assert verdict == "fail" and "labels of left and right are swapped" in reasons


def test_half_a_brain_fails(run):
    verdict, reasons = run(*(cut(image) for image in make_brain()))
    assert verdict == "fail" and "a part of a brain is missing" in reasons


def test_a_constant_image_fails(run):
    brain = make_brain()[0]
    verdict, reasons = run(with_data(brain, 50.0 * (np.asarray(brain.dataobj) > 0)))
    assert verdict == "fail" and "contrast of the moving image" in reasons


def test_inverted_contrast_fails(run):
    brain = make_brain()[0]
    data = np.asarray(brain.dataobj)
    verdict, reasons = run(with_data(brain, np.where(data > 0, data.max() + 10 - data, 0)))
    assert verdict == "fail" and "below 0: inverted" in reasons


def test_noise_fails(run, rng):
    brain = make_brain()[0]
    data = np.asarray(brain.dataobj)
    verdict, reasons = run(with_data(brain, np.where(data > 0, rng.uniform(50, 150, SHAPE), 0)))
    assert verdict == "fail" and "correlation of intensities" in reasons


@pytest.mark.parametrize(("factor", "verdict"), [(1.0, "pass"), (1.25, "look"), (1.5, "fail"), (0.75, "look")])
def test_another_species_size_is_told_by_the_affine(run, factor, verdict):
    found, reasons = run(*(rescale(image, factor) for image in make_brain()), init="affine")
    assert found == verdict, reasons
    assert verdict == "pass" or "volume ratio" in reasons


def test_a_tool_s_transform_is_judged_alike():
    fixed, labels = make_brain()
    still = evaluation.evaluate_transform(fixed, fixed, Transform([]), labels, labels)
    wrong = evaluation.evaluate_transform(fixed, fixed, Transform([turn([40, 10, 0], [0, 4, 0])]), labels, labels)
    assert still["qc"]["verdict"] == "pass" and wrong["qc"]["verdict"] == "fail"


def test_the_command_warns(run, tmp_path, capsys):
    fixed, moving = make_brain()[0], cut(make_brain()[0])
    for name, image in (("fixed", fixed), ("moving", moving)):
        nib.save(image, tmp_path / f"{name}.nii.gz")
    arguments = [f"--{name}={tmp_path / name}.nii.gz" for name in ("fixed", "moving")]
    model = tmp_path / "still.safetensors"
    assert main(["register", *arguments, "--output-dir", str(tmp_path / "out"), "--init", "identity", "--refine", "0",
                 "--device", "cpu", "--model", str(model)]) == 0  # fmt: skip
    said = capsys.readouterr()
    assert "Quality    fail" in said.out and "mmln: warning: quality check: fail: brain overlap" in said.err
    assert json.loads((tmp_path / "out/metrics.json").read_text())["qc"]["verdict"] == "fail"


def test_a_brain_that_the_field_of_view_cuts_is_seen():
    data = np.zeros((20, 30, 40), np.uint8)
    data[4:14, 5:25, 6:] = 1
    image = nib.Nifti1Image(data, np.diag([-2.0, 3.0, 1.0, 1.0]))
    assert evaluation.score_field_of_view(image)["brain_cut_cm2"] == pytest.approx(10 * 20 * 2 * 3 / 100)
    data[..., -1] = 0
    assert evaluation.score_field_of_view(nib.Nifti1Image(data, image.affine))["brain_cut_cm2"] == 0.0


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("end", [1, -1])
def test_a_brain_that_ends_in_a_plane_is_seen(axis, end):
    sizes, voxel = np.array([68.0, 85.0, 65.0]), np.array([1.0, 1.5, 3.0])
    shape = np.ceil(2 * sizes / voxel).astype(int) + 6
    world = (np.moveaxis(np.indices(shape), 0, -1) - (shape - 1) / 2) * voxel
    whole = ((world / sizes) ** 2).sum(-1) < 1

    def flat_face(brain):
        image = nib.Nifti1Image(brain.astype(np.uint8), np.diag([*-voxel, 1.0]))
        return evaluation.score_field_of_view(image)["brain_flat_cm2"]

    assert flat_face(whole) < 3
    kept = 0.8 * sizes[axis]
    area = np.pi * np.prod(np.delete(sizes, axis)) * (1 - 0.8**2) / 100
    found = flat_face(whole & (end * world[..., axis] < kept))
    assert found == pytest.approx(area, rel=0.25) and found > 30
