"""Options of the BIDS App that change what is registered: runs, sessions, lesion masks; and that each has a test."""

import json
from pathlib import Path

import nibabel as nb
import numpy as np
import pytest
from nibabel.affines import apply_affine, from_matvec
from scipy.spatial.transform import Rotation
from tiny_bids import SHAPE, committed_files, describe, list_results, make_brain, settings, write_image

from mmln_pipeline.bids_app.arguments import build_parser, parse_args
from mmln_pipeline.bids_app.finished import find_results
from mmln_pipeline.bids_app.run import main
from mmln_pipeline.space.grids import Grid
from mmln_pipeline.space.transforms import Transform, read_transform

CENTRE, RADIUS = np.array([3.0, -2.0, 4.0]), 3.5  # the lesion's, mm
MOVED = from_matvec(Rotation.from_euler("xyz", (4, -3, 5), degrees=True).as_matrix(), (1.0, -1.5, 0.5))


def test_every_option_has_a_test():
    """Each option of the parser is named by a test of the app."""
    files = [path.read_text(encoding="utf-8") for path in Path(__file__).parent.glob("t*.py")]
    text = "\n".join(file for file in files if "mmln_pipeline.bids_app" in file or "tiny_bids" in file)
    options = [action.option_strings for action in build_parser()._actions if action.option_strings]
    assert len(options) > 30
    assert [names for names in options if not any(f'"{name}"' in text for name in names)] == []


def test_transforms_in_other_formats_are_asked_for_by_name(tmp_path, capsys):
    config = parse_args([str(tmp_path), str(tmp_path / "out"), "participant", "--write-formats", "fsl", "x5"])
    assert tuple(config.write_formats) == ("fsl", "x5")
    with pytest.raises(SystemExit) as end:
        parse_args([str(tmp_path), str(tmp_path / "out"), "participant", "--write-formats", "afni"])
    assert end.value.code == 2 and "afni" in capsys.readouterr().err


# ----------------------------------------------------------------------------------- runs and lesion masks


def draw_lesion():
    """A ball at CENTRE on an oblique grid of half the voxel size that covers the brain."""
    turn = Rotation.from_euler("xyz", (12, -8, 5), degrees=True).as_matrix() / 2
    shape = (64, 64, 64)
    affine = from_matvec(turn, -turn @ ((np.array(shape) - 1) / 2))
    distance = np.linalg.norm(apply_affine(affine, np.stack(np.indices(shape), -1)) - CENTRE, axis=-1)
    return nb.Nifti1Image((distance < RADIUS).astype(np.uint8), affine)


@pytest.fixture(scope="module")
def averaged(place, tmp_path_factory):
    """Raw dataset, output and command of a run on one subject with two runs and a lesion mask."""
    root = tmp_path_factory.mktemp("averaged").resolve()
    describe(root / "raw")
    (root / "raw/README").write_text("Synthetic ellipsoids.\n")
    first = make_brain()
    second = Transform((np.linalg.inv(MOVED),)).resample(first, first)
    second = nb.Nifti1Image(2 * np.where(second.get_fdata() > 60, second.get_fdata(), 0), second.affine)
    for number, image in enumerate((first, second), start=1):
        write_image(image, root / f"raw/sub-01/anat/sub-01_run-{number}_T1w.nii.gz")
    write_image(draw_lesion(), root / "raw/sub-01/anat/sub-01_label-lesion_roi.nii.gz")
    arguments = [root / "raw", root / "out", "participant", "-w", root / "work", *settings(place)]
    arguments += ["--lesion-mask", "auto", "--no-bias-correction"]
    arguments = [str(argument) for argument in arguments]
    assert main(arguments) == 0
    return root / "raw", root / "out", arguments


def test_runs_become_one_result(averaged):
    _, out, _ = averaged
    assert list_results(out) == committed_files("averaged")
    record = json.loads((out / "sub-01/anat/sub-01_desc-registration_qc.json").read_text())
    assert record["images_averaged"] == 2
    found = read_transform(out / "sub-01/anat/sub-01_run-2_from-orig_to-T1w_mode-image_xfm.h5")
    points = np.array([[x, y, z] for x in (-6.0, 6.0) for y in (-7.0, 7.0) for z in (-9.0, 9.0)])
    assert np.abs(found.map_points(points) - apply_affine(MOVED, points)).max() < 0.7
    first = nb.load(out.parent / "raw/sub-01/anat/sub-01_run-1_T1w.nii.gz")
    assert Grid.of(first).matches(nb.load(out / "sub-01/anat/sub-01_desc-preproc_T1w.nii.gz"))


def test_sidecars_of_an_average(averaged):
    _, out, _ = averaged
    reference = "bids::sub-01/anat/sub-01_desc-preproc_T1w.nii.gz"
    raw = [f"bids:raw:sub-01/anat/sub-01_run-{number}_T1w.nii.gz" for number in (1, 2)]
    mask = json.loads((out / "sub-01/anat/sub-01_desc-brain_mask.json").read_text())
    assert mask["SpatialReference"] == reference and mask["RawSources"] == raw
    assert json.loads((out / "sub-01/anat/sub-01_desc-preproc_T1w.json").read_text())["Sources"] == raw
    assert reference in json.loads((out / "sub-01/anat/sub-01_space-tiny_desc-preproc_T1w.json").read_text())["Sources"]
    lesion = json.loads((out / "sub-01/anat/sub-01_space-tiny_label-lesion_mask.json").read_text())
    assert lesion["Sources"][0] == "bids:raw:sub-01/anat/sub-01_label-lesion_roi.nii.gz"
    assert "averaged (mean of two, median of more)" in (out / "logs/CITATION.md").read_text()


def test_lesion_lands_on_the_right_voxels(averaged):
    _, out, _ = averaged
    lesion = nb.load(out / "sub-01/anat/sub-01_space-tiny_label-lesion_mask.nii.gz")
    forward = read_transform(out / "sub-01/anat/sub-01_from-T1w_to-tiny_mode-image_xfm.h5")
    points = apply_affine(lesion.affine, np.stack(np.indices(lesion.shape), -1).reshape(-1, 3))
    distance = np.linalg.norm(forward.map_points(points) - CENTRE, axis=-1)
    is_marked = lesion.get_fdata().ravel() > 0
    assert is_marked[distance < RADIUS - 1].all() and not is_marked[distance > RADIUS + 1].any()
    assert is_marked.sum() > 50


def test_lesion_is_drawn(averaged):
    _, out, _ = averaged
    figure = (out / "sub-01/figures/sub-01_desc-brain_mask.svg").read_text()
    assert "Brain mask and lesion mask" in figure and "lesion mask filled in blue" in figure


def test_group_level_knows_averages(averaged):
    _, _, arguments = averaged
    results = find_results(parse_args(arguments), "tiny")
    assert list(results.records) == ["sub-01"] and results.missing == []


def test_dry_run_of_an_average(averaged, capsys):
    raw, _, arguments = averaged
    assert main([*arguments, "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert f"lesion mask: {raw}/sub-01/anat/sub-01_label-lesion_roi.nii.gz" in said
    assert "reference: average of 2 images, first-lex" in said and "(finished before)" in said


# ------------------------------------------------------------------------------------------- sessions


@pytest.mark.parametrize("reference", ["first-lex", "unbiased"])
def test_one_reference_for_all_sessions(place, command, tmp_path, reference):
    options = ("--participant-label", "01", "--subject-anatomical-reference", reference)
    assert command(*options, "--no-bias-correction", "--init", "identity") == 0
    out = tmp_path / "out"
    assert not list(out.glob("sub-01/ses-*/anat/*qc.json"))
    image = nb.load(out / "sub-01/anat/sub-01_desc-preproc_T1w.nii.gz")
    names = [f"sub-01/ses-{name}/anat/sub-01_ses-{name}_from-orig_to-T1w_mode-image_xfm.h5" for name in "ab"]
    first, second = (read_transform(out / name).parts[0] for name in names)
    moved = (second @ np.linalg.inv(first))[:3, 3]  # session b's brain lies 1 mm further along x
    assert np.abs(moved - (1, 0, 0)).max() < 0.3
    if reference == "first-lex":
        assert np.array_equal(first, np.eye(4)) and image.shape == SHAPE
    else:
        assert np.abs((first + second)[:3, 3]).max() < 0.3, "the reference lies in the middle"
    assert (out / "sub-01.html").is_file() and (out / "sub-01/anat/sub-01_desc-registration_qc.json").is_file()
