"""The template of a group: where its brains lie on average, as sharp as they are, fit to be given to --template."""

import json
import re
import shutil

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from browser import browser, check_page, needs_chromium
from nibabel.affines import apply_affine, from_matvec
from scipy.ndimage import center_of_mass, gaussian_filter
from scipy.spatial.transform import Rotation
from tiny_bids import list_files, make_brain, one_error, override, settings, snapshot

from mmln_pipeline.atlas.templates import load_template
from mmln_pipeline.bids_app.run import main
from mmln_pipeline.derivatives import filenames
from mmln_pipeline.group.agreement import majority_labels
from mmln_pipeline.group.study_template import (
    Member,
    average_brains,
    centre_affines,
    gradient_energy,
    invert_smooth,
    mean_displacement,
    mean_length_mm,
)
from mmln_pipeline.images.volumes import save_image
from mmln_pipeline.space.displacements import DisplacementField
from mmln_pipeline.space.grids import Grid, new_image
from mmln_pipeline.space.transforms import Transform

__all__ = ["browser"]  # a fixture
SHAPE = (30, 34, 38)
AFFINE = from_matvec(np.array([[0, 0, 1.0], [-1.0, 0, 0], [0, 1.0, 0]]), [-19.0, 15.0, -17.0])
GRID = Grid(SHAPE, AFFINE)
CENTRE = apply_affine(AFFINE, (np.array(SHAPE) - 1) / 2)


def ball(shift):
    """A textured ball whose centre lies at a distance (mm) from the grid's."""
    points = apply_affine(AFFINE, np.stack(np.indices(SHAPE), axis=-1)) - CENTRE - np.asarray(shift, float)
    inside = np.linalg.norm(points, axis=-1) < 9
    return np.where(inside, 100 + 15 * np.sin(points).sum(-1), 0).astype(np.float32)


def write_member(folder, name, shift, factor=1.0):
    data = factor * ball(shift)
    image, mask = (new_image(part, GRID) for part in (data, (data > 0).astype(np.uint8)))
    paths = [save_image(part, folder / f"{name}_{kind}.nii.gz") for part, kind in ((image, "image"), (mask, "mask"))]
    return Member(*paths)


def constant(shift):
    return DisplacementField(np.broadcast_to(np.float32(shift), (*SHAPE, 3)).copy(), AFFINE)


# ------------------------------------------------------------------------------------------------ numerics


def test_affines_keep_their_pose_and_lose_their_mean_stretch(rng):
    turns = [Rotation.from_euler("xyz", rng.normal(0, 10, 3), degrees=True).as_matrix() for _ in range(5)]
    affines = [from_matvec(turn @ np.diag(rng.uniform(0.7, 0.9, 3)), rng.normal(0, 20, 3)) for turn in turns]
    centred = centre_affines(affines, CENTRE)
    volumes = [np.linalg.det(affine[:3, :3]) for affine in centred]
    assert np.prod(volumes) == pytest.approx(1)
    for before, after in zip(affines, centred, strict=True):
        np.testing.assert_allclose(apply_affine(after, CENTRE), apply_affine(before, CENTRE))
    again = centre_affines(centred, CENTRE)
    assert np.abs(np.array(again) - np.array(centred)).max() < 0.02


def test_the_mean_lies_where_the_brains_lie_on_average(tmp_path):
    shifts = [(1.0, 0, 0), (2.0, 3.0, 0), (3.0, 0, -6.0)]
    members = [write_member(tmp_path, str(n), shift, 1 + n) for n, shift in enumerate(shifts)]
    warps = [constant(shift) for shift in shifts]  # from a ball in the middle
    drift = mean_displacement(warps, GRID)
    back = DisplacementField(-drift.offsets_mm, AFFINE)
    mean = average_brains(members, [Transform([back, warp]) for warp in warps], GRID)
    found = apply_affine(AFFINE, center_of_mass(np.asanyarray(mean.mask.dataobj)))
    np.testing.assert_allclose(found - CENTRE, (2, 1, -2), atol=0.05)
    expected = ball((2, 1, -2)) / np.percentile(ball((2, 1, -2))[ball((2, 1, -2)) > 0], 99.5)
    inside = np.asanyarray(mean.mask.dataobj) > 0
    np.testing.assert_allclose(mean.image.get_fdata()[inside], np.clip(expected, 0, 1)[inside], atol=0.01)


def test_the_rim_is_as_bright_as_the_brains_that_reach_it(tmp_path):
    members = [write_member(tmp_path, str(n), (n, 0, 0)) for n in range(3)]
    mean = average_brains(members, [Transform()] * 3, GRID)
    assert mean.image.get_fdata()[np.asanyarray(mean.mask.dataobj) > 0].min() > 0.3
    assert (mean.image.get_fdata()[np.asanyarray(mean.mask.dataobj) == 0] == 0).all()


def test_lesions_have_no_say(tmp_path):
    sound, ill = (write_member(tmp_path, name, (0, 0, 0)) for name in ("sound", "ill"))
    lesion = np.zeros(SHAPE, np.uint8)
    lesion[12:18, 14:20, 16:22] = 1
    data = ball((0, 0, 0))
    save_image(new_image(np.where(lesion, np.float32(1), data), GRID), ill.image)
    ill = Member(ill.image, ill.mask, save_image(new_image(lesion, GRID), tmp_path / "lesion.nii.gz"))
    mean = average_brains([sound, ill], [Transform()] * 2, GRID).image.get_fdata()
    only = average_brains([sound], [Transform()], GRID).image.get_fdata()
    np.testing.assert_allclose(mean[lesion > 0], only[lesion > 0], atol=1e-6)


def test_the_inverse_of_a_mean_undoes_it(rng):
    window = np.minimum.reduce(
        np.meshgrid(*(np.minimum(np.arange(n), n - 1 - np.arange(n)) for n in SHAPE), indexing="ij")
    )
    offsets = np.stack([gaussian_filter(rng.normal(size=SHAPE), 5) for _ in range(3)], -1)
    offsets *= 3 * np.clip(window / 8, 0, 1)[..., None] / np.abs(offsets).max()
    field = DisplacementField(offsets, AFFINE)
    points = apply_affine(AFFINE, rng.uniform(4, 25, (300, 3)))
    back = field.map_points(invert_smooth(field).map_points(points))
    assert (
        np.linalg.norm(back - points, axis=1).max()
        < 0.1
        < np.linalg.norm(field.map_points(points) - points, axis=1).max()
    )


def test_means_of_fields_that_end_where_their_brains_do():
    low, high = ((slice(0, 20),) * 3, (slice(2, 30), slice(3, 34), slice(4, 38)))
    fields = [
        DisplacementField(constant(offset).offsets_mm[window], GRID.cut(window).affine)
        for offset, window in (((1, 0, 0), low), ((0, 2, 0), high))
    ]
    mean = mean_displacement(fields, GRID)
    for voxel, expected in (((3, 4, 5), (0.5, 1, 0)), ((0, 1, 2), (0.5, 0, 0)), ((25, 30, 30), (0, 1, 0))):
        np.testing.assert_allclose(mean.offsets_mm[voxel], expected, atol=1e-6)
    mask = new_image((ball((0, 0, 0)) > 0).astype(np.uint8), GRID)
    both = mean_displacement([constant((1, 0, 0)), constant((0, 2, 0))], GRID)
    assert mean_length_mm(both, mask) == pytest.approx(np.hypot(0.5, 1))
    with pytest.raises(ValueError, match="expected at least one"):
        mean_displacement([], GRID)


def test_gradient_energy_is_that_of_a_ramp_and_falls_with_blur(rng):
    affine = np.diag([2.0, 1.0, 1.0, 1.0])
    ramp = np.broadcast_to(np.linspace(0.01, 1, 12)[:, None, None], (12, 7, 9)).astype(np.float32)
    mask = nib.Nifti1Image(np.ones(ramp.shape, np.uint8), affine)
    expected = ((0.99 / 11) / 2 / np.percentile(ramp, 99.5)) ** 2
    assert gradient_energy(nib.Nifti1Image(ramp, affine), mask) == pytest.approx(expected, rel=1e-3)
    noise = 0.5 + gaussian_filter(rng.normal(size=SHAPE), 1).astype(np.float32)
    whole = new_image(np.ones(SHAPE, np.uint8), GRID)
    sharp, blurred = (new_image(data, GRID) for data in (noise, gaussian_filter(noise, 2)))
    assert gradient_energy(blurred, whole) < 0.5 * gradient_energy(sharp, whole)


def test_the_majority_of_labels(tmp_path):
    rows = [[0, 1, 1, 300, 0], [0, 1, 2, 300, 5], [0, 0, 2, 300, 6], [0, 0, 0, 2, 0]]
    paths = [tmp_path / f"{number}.nii.gz" for number in range(len(rows))]
    for row, path in zip(rows, paths, strict=True):
        nib.save(nib.Nifti1Image(np.array(row, np.int16).reshape(1, 1, 5), np.eye(4)), path)
    found = np.asanyarray(majority_labels(paths).dataobj)
    assert found.ravel().tolist() == [0, 0, 2, 300, 0]  # background wins a tie
    nib.save(nib.Nifti1Image(np.ones((1, 1, 4), np.int16), np.eye(4)), paths[3])
    with pytest.raises(ValueError, match=r"3\.nii\.gz: expected shape \(1, 1, 5\), found \(1, 1, 4\)"):
        majority_labels(paths)


# --------------------------------------------------------------------------------------------------- the app


@pytest.fixture(scope="module")
def built(place, tmp_path_factory):
    """The template of three images, after one iteration: the folder, the command's arguments and its exit code."""
    root = tmp_path_factory.mktemp("built").resolve()
    arguments = [place / "raw", root / "out", "template", "-w", root / "work", *settings(place), "--sloppy"]
    arguments += [
        "-d",
        f"labels={place / 'labels'}",
        "--template-name",
        "mine",
        "--template-iterations",
        1,
        "--template-resolution",
        1,
    ]
    arguments = [str(argument) for argument in arguments]
    return root / "out", arguments, main(arguments)


def test_run_writes_a_template(built, place):
    out, _, code = built
    assert code == 0
    paths = filenames.study_template_paths("mine", has_dseg=True)
    assert {*paths.values(), filenames.template_description("mine")} <= list_files(out)
    template = load_template(out / paths["template"], out / paths["dseg"])
    start = nib.load(place / "tpl-tiny_T1w.nii.gz")
    assert template.name == "mine" and Grid.of(start).matches(template.image) and template.dseg is not None
    overlap = (np.asanyarray(template.mask.dataobj) * (start.get_fdata() > 0)).sum() / (start.get_fdata() > 0).sum()
    assert overlap > 0.9
    table = pd.read_csv(out / paths["convergence"], sep="\t")
    assert table["iteration"].tolist() == [0, 1] and table["brains"].tolist() == [3, 3]
    assert np.isfinite(table["warp_mm"][1]) and (table["gradient_energy"] > 0).all()
    sidecar = json.loads((out / paths["template"].replace(".nii.gz", ".json")).read_text())
    assert len(sidecar["Sources"]) == 3 and sidecar["Iterations"] == 1
    page = (out / paths["page"]).read_text()
    assert "Template mine of 3 brains" in page and "sub-02_run-1" in page and "http" not in page.split("<body>")[1]
    assert "Gradient energy" in page and "Label overlap" not in page  # the labels of one image overlap with none
    assert "averag" in (out / filenames.apart(filenames.CITATION, "mine")).read_text()


def test_a_log_is_kept_and_headers_are_warned_of(built, place, tmp_path, capsys):
    (log,) = (built[0] / "logs/runs").glob("*.log")
    text = log.read_text(encoding="utf-8")
    steps = "begin: mmln-pipeline", r"iteration 1 sub-02_run-1 registration [\d.]+ s$", "end: template mine of 3 images"
    for words in steps:
        assert re.search(rf"INFO    {words}", text, re.MULTILINE), words
    image = nib.load(place / "raw/sub-02/anat/sub-02_run-1_T1w.nii.gz")
    moved = image.affine + np.array([[0, 0, 0, 5.0], *[[0] * 4] * 3])
    image.set_qform(moved, code=1)
    image.set_sform(image.affine, code=2)
    raw = tmp_path / "raw"
    shutil.copytree(place / "raw", raw)
    nib.save(image, raw / "sub-02/anat/sub-02_run-1_T1w.nii.gz")
    assert main([str(raw), str(tmp_path / "out"), *built[1][2:], "--dry-run"]) == 0
    said = capsys.readouterr().err
    assert "mmln-bids: warning: T1w image of sub-02_run-1_T1w.nii.gz" in said and "5.0 mm" in said


@needs_chromium
def test_page_in_a_browser(built, browser):
    page = built[0] / filenames.study_template_paths("mine")["page"]
    check_page(browser, page)
    assert browser.evaluate("document.querySelectorAll('.scroll > img').length") == 3


def test_second_run_changes_nothing(built):
    out, arguments, _ = built
    before = snapshot(out)
    assert main(arguments) == 0
    assert snapshot(out) == before


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--participant-label", "02"], "expected at least 2 images, found 1"),
        (["--template-name", "tiny"], "is the name of --template"),
        (["--template-name", "my-study"], "expected letters and digits, found 'my-study'"),
        (["--reports-only"], "--reports-only: belongs to the participant level"),
    ],
)
def test_wrong_usage(built, options, words, capsys):
    assert main(override(built[1], options)) == 2
    assert words in one_error(capsys)


def test_a_failing_image_is_named_and_there_is_no_template(place, tmp_path, capsys):
    raw = tmp_path / "raw"
    (tmp_path / "raw").mkdir()
    (raw / "dataset_description.json").write_bytes((place / "raw/dataset_description.json").read_bytes())
    for subject in ("01", "02"):
        path = raw / f"sub-{subject}/anat/sub-{subject}_T1w.nii"
        path.parent.mkdir(parents=True)
        nib.save(make_brain(), path)
    path.write_bytes(path.read_bytes()[:2000])
    options = [raw, tmp_path / "out", "template", "-w", tmp_path / "work", *settings(place), "--sloppy"]
    assert main([str(option) for option in options]) == 1
    said = capsys.readouterr().err
    assert "sub-02: FAILED" in said and "sub-01: FAILED" not in said and "no template" in said
    (log,) = (tmp_path / "out/logs/runs").glob("*.log")
    text = log.read_text(encoding="utf-8")
    assert all(line in text for line in said.splitlines()) and "end: no template" in text


def test_dry_run_writes_nothing(built, tmp_path, capsys):
    arguments = [built[1][0], str(tmp_path / "out"), *built[1][2:], "--dry-run"]
    assert main(arguments) == 0
    said = capsys.readouterr().out
    assert "template mine of 3 images in 1 iterations" in said and "tpl-mine/tpl-mine_T1w.nii.gz" in said
    assert not (tmp_path / "out").exists()
