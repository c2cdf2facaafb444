"""What the BIDS App finds in datasets: scans, sessions, masks, labels, and what it refuses there."""

import json
from dataclasses import replace

import nibabel as nb
import numpy as np
import pytest
from tiny_bids import describe, make_brain, one_error, scan_config, stems, write_image

from mmln_pipeline.bids_app.arguments import parse_args
from mmln_pipeline.bids_app.layout import find_scans


def test_labels_choose_scans(place):
    assert stems(place) == ["sub-01_ses-a", "sub-01_ses-b", "sub-02_run-1"]
    assert find_scans(scan_config(place))[1] == {"sub-03": "no T1w image"}
    assert stems(place, "--participant-label", "sub-02") == ["sub-02_run-1"]
    assert stems(place, "--session-label", "ses-b") == ["sub-01_ses-b"]
    assert stems(place, "--participant-label", "01", "--session-label", "a") == ["sub-01_ses-a"]


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        ({"t1w": {"session": None}}, ["sub-02_run-1"]),
        ({"t1w": {"session": "*"}}, ["sub-01_ses-a", "sub-01_ses-b"]),
        ({"t1w": {"session": ["b"]}}, ["sub-01_ses-b"]),
        ({"t1w": {"session": [None, "b"]}}, ["sub-01_ses-b", "sub-02_run-1"]),
        ({"t1w": {"session": "Query.NONE"}}, ["sub-02_run-1"]),
        ({"t1w": {"run": 1}}, ["sub-02_run-1"]),
        ({"t1w": {"subject": "01", "session": "a"}, "bold": {"task": "rest"}}, ["sub-01_ses-a"]),
    ],
)
def test_filter_file(place, tmp_path, filters, expected):
    path = tmp_path / "filter.json"
    path.write_text(json.dumps(filters))
    assert stems(place, "--bids-filter-file", str(path)) == expected


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "not valid JSON"),
        ("[1]", "expected"),
        ('{"bold": {}}', "expected one of t1w"),
        ('{"t1w": {"sesion": "a"}}', "sesion"),
        ('{"t1w": {"suffix": "UNIT1"}}', '"suffix": expected "T1w", found "UNIT1"'),
        ('{"t1w": {"session": []}}', '"t1w": "session": expected what to take, found an empty list'),
        ('{"t1w": {"session": {"a": 1}}}', '"t1w": "session": expected text'),
        ('{"t1w": {"session": "zz"}}', "no T1w image with these sessions and filters"),
        ('{"t1w": {"session": "zz", "run": null}}', '"t1w": {"session": "zz"}'),
    ],
)
def test_wrong_filter_file(command, tmp_path, capsys, content, words):
    path = tmp_path / "filter.json"
    path.write_text(content)
    assert command("--bids-filter-file", str(path)) == 2
    line = one_error(capsys)
    assert words in line and f"--bids-filter-file {path}" in line


def test_masks_and_labels_are_matched(place, tmp_path):
    masks = tmp_path / "masks"
    describe(masks, "derivative")
    mask = nb.Nifti1Image((make_brain().get_fdata() > 0).astype(np.uint8), make_brain().affine)
    own = write_image(mask, masks / "sub-01/ses-b/anat/sub-01_ses-b_desc-brain_mask.nii.gz")
    write_image(mask, masks / "sub-01/ses-b/anat/sub-01_ses-b_space-MNI_desc-brain_mask.nii.gz")
    sources = ["-d", f"masks={masks}", f"labels={place / 'labels'}"]
    scans = find_scans(scan_config(place, *sources))[0]
    assert [scan.mask for scan in scans] == [None, own, None]
    assert [scan.dseg and scan.dseg.name for scan in scans] == [None, None, "sub-02_run-1_dseg.nii.gz"]


@pytest.mark.realdata
def test_real_sessions_and_labels(data_root):
    labels = data_root / "oasis/derivatives/neuromorphometrics"
    options = ["-d", f"labels={labels}", "--participant-label", "OAS10101", "OAS10395"]
    scans = find_scans(parse_args([str(data_root / "oasis"), "/nowhere/out", "participant", *options]))[0]
    assert [scan.stem for scan in scans] == [
        f"sub-{subject}_ses-{session}" for subject in ("OAS10101", "OAS10395") for session in ("01", "02")
    ]
    assert all(scan.dseg.name == f"{scan.stem}_seg-neuromorphometrics_dseg.nii.gz" for scan in scans)


def test_ambiguous_labels(place, command, tmp_path, capsys):
    labels = tmp_path / "more"
    describe(labels, "derivative")
    for name in ("one", "two"):
        write_image(make_brain(), labels / f"sub-02/anat/sub-02_run-1_seg-{name}_dseg.nii.gz")
    assert command("-d", f"more={labels}") == 2
    assert "2 files fit as dseg" in one_error(capsys)
    filters = tmp_path / "filter.json"
    filters.write_text('{"dseg": {"segmentation": "two"}}')
    assert command("-d", f"more={labels}", "--bids-filter-file", str(filters), "--dry-run") == 0


def test_database_is_kept(place, tmp_path):
    folder = tmp_path / "database"
    assert len(stems(place, "--bids-database-dir", str(folder))) == 3
    assert any(folder.iterdir())
    assert stems(place, "--bids-database-dir", str(folder), "--participant-label", "02") == ["sub-02_run-1"]


def test_bad_file_name(place, tmp_path, command, capsys):
    raw = tmp_path / "raw"
    describe(raw)
    write_image(make_brain(), raw / "sub-01/anat/sub-01_odd-x_T1w.nii.gz")
    assert command(bids=raw) == 2
    assert "not a BIDS file name" in one_error(capsys)
    assert command("--skip-bids-validation", "--dry-run", bids=raw) == 0


# ------------------------------------------------------------------------------------- sessions and runs


@pytest.fixture
def longitudinal(tmp_path):
    """A dataset of one subject: session a with two runs and a scan of another contrast, b with one, c without T1w."""
    raw = tmp_path / "long/raw"
    describe(raw)
    names = ("ses-a/anat/sub-01_ses-a_run-1_T1w", "ses-a/anat/sub-01_ses-a_run-2_T1w", "ses-b/anat/sub-01_ses-b_T1w")
    for name in (*names, "ses-a/anat/sub-01_ses-a_acq-fast_T1w", "ses-c/anat/sub-01_ses-c_T2w"):
        write_image(make_brain(), raw / f"sub-01/{name}.nii.gz")
    return tmp_path / "long"


def test_one_result_for_each_session(longitudinal):
    scans, skipped = find_scans(scan_config(longitudinal))[:2]
    assert {scan.stem: [image.t1w.name for image in scan.images] for scan in scans} == {
        "sub-01_ses-a_acq-fast": ["sub-01_ses-a_acq-fast_T1w.nii.gz"],
        "sub-01_ses-a": ["sub-01_ses-a_run-1_T1w.nii.gz", "sub-01_ses-a_run-2_T1w.nii.gz"],
        "sub-01_ses-b": ["sub-01_ses-b_T1w.nii.gz"],
    }
    assert {scan.folder for scan in scans} == {"sub-01/ses-a/anat", "sub-01/ses-b/anat"}
    assert skipped == {"sub-01_ses-c": "no T1w image"}


@pytest.mark.parametrize("reference", ["first-lex", "unbiased"])
def test_one_result_for_each_subject(longitudinal, reference):
    scans, skipped = find_scans(scan_config(longitudinal, "--subject-anatomical-reference", reference))[:2]
    fast, scan = scans
    assert (fast.stem, fast.folder, len(fast.images)) == ("sub-01_ses-a_acq-fast", "sub-01/ses-a/anat", 1)
    assert (scan.stem, scan.session, scan.folder, scan.reference) == ("sub-01", None, "sub-01/anat", reference)
    assert [image.stem for image in scan.images] == ["sub-01_ses-a_run-1", "sub-01_ses-a_run-2", "sub-01_ses-b"]
    assert list(skipped) == ["sub-01_ses-c"]


def test_sessions_that_are_asked_for(longitudinal):
    describe_second = make_brain()
    write_image(describe_second, longitudinal / "raw/sub-02/ses-a/anat/sub-02_ses-a_T1w.nii.gz")
    scans, skipped = find_scans(scan_config(longitudinal, "--session-label", "b"))[:2]
    assert [scan.stem for scan in scans] == ["sub-01_ses-b"]
    assert skipped == {"sub-02": "no T1w image with these sessions and filters"}
    scans, skipped = find_scans(scan_config(longitudinal, "--session-label", "a", "b"))[:2]
    assert skipped == {"sub-02_ses-b": "no such session"}


def test_session_without_anatomy_is_named(longitudinal, command, capsys):
    assert command("--dry-run", bids=longitudinal / "raw") == 0
    said = capsys.readouterr().out
    assert "Would register 3 images" in said and "sub-01_ses-c: skipped, no T1w image" in said
    assert "reference: average of 2 images, first-lex" in said and "sub-01_ses-a_run-2_T1w.nii.gz" in said


def test_two_files_of_one_image(longitudinal, command, capsys):
    write_image(make_brain(), longitudinal / "raw/sub-01/ses-b/anat/sub-01_ses-b_T1w.nii")
    assert command(bids=longitudinal / "raw") == 2
    line = one_error(capsys)
    assert "sub-01_ses-b_T1w.nii.gz and " in line and "sub-01_ses-b_T1w.nii: two files of one image" in line


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        ({}, ["chunk-1", "chunk-2", "echo-1", "echo-2", "rec-dis", "rec-nd"]),
        ({"reconstruction": "dis"}, ["rec-dis"]),
        ({"echo": 2}, ["echo-2"]),
        ({"echo": "1", "chunk": None}, ["echo-1"]),
        ({"chunk": [1, 2]}, ["chunk-1", "chunk-2"]),
        ({"echo": None, "chunk": None, "reconstruction": ["nd"]}, ["rec-nd"]),
    ],
)
def test_parts_and_variants_have_results_of_their_own(tmp_path, filters, expected):
    describe(tmp_path / "raw")
    for name in ("rec-dis", "rec-nd", "echo-1", "echo-2", "chunk-1", "chunk-2"):
        write_image(make_brain(), tmp_path / f"raw/sub-01/anat/sub-01_{name}_T1w.nii.gz")
    path = tmp_path / "filter.json"
    path.write_text(json.dumps({"t1w": filters}))
    assert stems(tmp_path, "--bids-filter-file", str(path)) == [f"sub-01_{name}" for name in expected]


def test_subjects_with_nothing_but_a_uniform_image_are_named(tmp_path, command, capsys):
    describe(tmp_path / "raw")
    write_image(make_brain(), tmp_path / "raw/sub-01/anat/sub-01_T1w.nii.gz")
    for name in ("UNIT1", "inv-1_part-mag_MP2RAGE"):
        write_image(make_brain(), tmp_path / f"raw/sub-02/anat/sub-02_{name}.nii.gz")
    write_image(make_brain(), tmp_path / "raw/sub-03/ses-a/anat/sub-03_ses-a_T1w.nii.gz")
    write_image(make_brain(), tmp_path / "raw/sub-03/ses-b/anat/sub-03_ses-b_UNIT1.nii.gz")
    assert command("--dry-run", bids=tmp_path / "raw") == 0
    said = capsys.readouterr().out
    assert "sub-03_ses-b: skipped, no T1w image (only UNIT1, the uniform image of MP2RAGE: sub-03_ses-b_UNIT1" in said
    line = "sub-02: skipped, no T1w image (only UNIT1, the uniform image of MP2RAGE: sub-02_UNIT1.nii.gz"
    assert line in said
    assert command("--participant-label", "02", bids=tmp_path / "raw") == 2
    assert "no T1w image of sub-02 (only UNIT1" in one_error(capsys)


# ------------------------------------------------------------------------- masks and labels that do not fit


def masked(root, image, *names, code=2):
    """A derivative dataset with a brain mask made of an image, under each of the names."""
    describe(root, "derivative")
    mask = nb.Nifti1Image((image.get_fdata() > 0).astype(np.uint8), image.affine)
    mask.set_sform(mask.affine, code)
    return [write_image(mask, root / name) for name in names]


def test_conflicting_masks(command, tmp_path, capsys):
    name = "sub-02/anat/sub-02_run-1_desc-brain_mask.nii.gz"
    (one,) = masked(tmp_path / "one", make_brain(), name)
    (two,) = masked(tmp_path / "two", make_brain(), name)
    assert command("-d", f"one={tmp_path / 'one'}", f"two={tmp_path / 'two'}") == 2
    line = one_error(capsys)
    assert "sub-02_run-1_T1w.nii.gz: 2 files fit as mask" in line and str(one) in line and str(two) in line


@pytest.mark.parametrize("kind", ["mask", "dseg"])
def test_labels_of_another_space(place, command, tmp_path, capsys, kind):
    name = f"sub-02/anat/sub-02_run-1_{'desc-brain_mask' if kind == 'mask' else 'dseg'}.nii.gz"
    (path,) = masked(tmp_path / "other", make_brain(2).slicer[2:, :, :], name, code=4)
    assert command("-d", f"other={tmp_path / 'other'}") == 2
    line = one_error(capsys)
    assert f"{kind} {path}" in line and "sub-02_run-1_T1w.nii.gz" in line and "name different spaces" in line


def test_labels_of_another_grid_in_the_same_space(place, command, tmp_path):
    masked(tmp_path / "other", make_brain(2).slicer[2:, :, :], "sub-02/anat/sub-02_run-1_dseg.nii.gz", code=1)
    assert command("--dry-run", "-d", f"other={tmp_path / 'other'}") == 0


@pytest.mark.parametrize("datasets", [["x={0}", "x={1}"], ["-d", "x={1}"]])
def test_two_datasets_of_one_name(place, command, tmp_path, capsys, datasets):
    for name in ("one", "two"):
        describe(tmp_path / name, "derivative")
    options = ["-d", "x={0}", *datasets] if datasets[0] == "-d" else ["-d", *datasets]
    assert command(*(option.format(tmp_path / "one", tmp_path / "two") for option in options)) == 2
    line = one_error(capsys)
    assert "--derivatives x: given twice" in line and str(tmp_path / "two") in line


# ----------------------------------------------------------------------------------------- lesion masks


@pytest.fixture
def lesions(place, tmp_path):
    """The tiny dataset with a lesion mask of sub-01's session b, and the mask's path."""
    import shutil

    raw = shutil.copytree(place / "raw", tmp_path / "lesions/raw")
    mask = make_brain(1)
    mask = nb.Nifti1Image((mask.get_fdata() > 500).astype(np.uint8), mask.affine)
    path = write_image(mask, raw / "sub-01/ses-b/anat/sub-01_ses-b_label-lesion_roi.nii.gz")
    return tmp_path / "lesions", path


def found_lesions(root, *options):
    return [scan.lesion for scan in find_scans(scan_config(root, *options))[0]]


def test_lesion_masks_are_found(lesions, tmp_path):
    root, path = lesions
    assert found_lesions(root) == [None, path, None]
    assert found_lesions(root, "--lesion-mask") == [None, path, None]
    assert found_lesions(root, "--lesion-mask", "skip") == [None, None, None]
    assert found_lesions(root, "--lesion-mask", "*_label-lesion_roi.nii.gz") == [None, path, None]
    assert found_lesions(root, "--participant-label", "02", "--lesion-mask", str(path)) == [path]
    drawn = tmp_path / "drawn"
    (other,) = masked(drawn, make_brain(2), "sub-02/anat/sub-02_desc-stroke_mask.nii.gz")
    assert found_lesions(root, "-d", f"drawn={drawn}", "--lesion-mask", "desc-stroke_mask") == [None, None, other]


def test_lesion_mask_of_several_runs_belongs_to_the_first(tmp_path):
    describe(tmp_path / "raw")
    for run in (1, 2):
        write_image(make_brain(), tmp_path / f"raw/sub-01/anat/sub-01_run-{run}_T1w.nii.gz")
    path = write_image(make_brain(), tmp_path / "raw/sub-01/anat/sub-01_label-lesion_roi.nii.gz")
    (scan,) = find_scans(scan_config(tmp_path))[0]
    assert [image.lesion for image in scan.images] == [path, None]
    assert replace(scan, others=()).has("lesion")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--lesion-mask", "no-such_mask"], "--lesion-mask no-such_mask: no such file, and no lesion mask"),
        (["--lesion-mask", "{path}"], "one file, but 3 images"),
    ],
)
def test_wrong_lesion_mask(lesions, command, capsys, options, words):
    root, path = lesions
    assert command(*(option.format(path=path) for option in options), bids=root / "raw") == 2
    assert words in one_error(capsys)


def test_lesion_mask_of_another_space(lesions, command, capsys):
    root, path = lesions
    far = nb.Nifti1Image(np.ones((9, 9, 9), np.uint8), np.diag([2.0, 2.0, 2.0, 1.0]) + np.eye(4, k=3) * 400)
    write_image(far, path)
    assert command(bids=root / "raw") == 2
    line = one_error(capsys)
    assert f"lesion mask {path}" in line and "sub-01_ses-b_T1w.nii.gz" in line and "expected the space of" in line


def test_conflicting_lesion_masks(lesions, command, capsys):
    root, path = lesions
    write_image(make_brain(1), path.parent / "sub-01_ses-b_label-lesion_mask.nii.gz")
    assert command(bids=root / "raw") == 2
    assert "2 files fit as lesion mask" in one_error(capsys)
