"""Where a dataset lies and what lies in it: entities from below its root, and an index of just its files."""

import json
import os
import shutil
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import nibabel as nb
import numpy as np
import pytest
from tiny_bids import describe, make_brain, one_error, scan_config, stems, write_image

from mmln_pipeline.bids_app.indexing import RAW, list_files, open_index
from mmln_pipeline.bids_app.layout import find_scans

MISLEADING = ("sub-99/ses-7", "func", "motion/part-phase", "space-MNI/task-x_acq-y_run-2/desc-x")


def write_names(root, *names, kind="raw", image=None):
    """A dataset of these images."""
    describe(root, kind)
    return [write_image(image or make_brain(), root / name) for name in names]


def mask():
    brain = make_brain()
    return nb.Nifti1Image((brain.get_fdata() > 0).astype(np.uint8), brain.affine)


# ------------------------------------------------------------------------------------ folders above a dataset


@pytest.mark.parametrize("above", MISLEADING)
def test_folders_above_say_nothing(tmp_path, above):
    root = tmp_path / above
    write_names(root / "raw", "sub-01/anat/sub-01_T1w.nii.gz", "sub-02/ses-1/anat/sub-02_ses-1_T1w.nii.gz")
    own = write_names(root / "m", "sub-01/anat/sub-01_desc-brain_mask.nii.gz", kind="derivative", image=mask())
    own += write_names(root / "m", "sub-01/anat/sub-01_dseg.nii.gz", kind="derivative", image=mask())
    lesion = write_image(mask(), root / "raw/sub-02/ses-1/anat/sub-02_ses-1_label-lesion_roi.nii.gz")
    options = ["-d", f"m={root / 'm'}", "--bids-database-dir", str(root / "index")]
    for _ in range(2):  # the second time from the kept index
        scans, skipped = find_scans(scan_config(root, *options))[:2]
        assert [(scan.subject, scan.session, scan.folder) for scan in scans] == [
            ("01", None, "sub-01/anat"),
            ("02", "1", "sub-02/ses-1/anat"),
        ]
        assert not skipped and [scan.lesion for scan in scans] == [None, lesion]
        assert [scans[0].mask, scans[0].dseg] == own and not scans[1].mask


def test_filters_read_below_the_root(tmp_path):
    root = tmp_path / "acq-fast/ses-7"
    write_names(root / "raw", "sub-01/anat/sub-01_T1w.nii.gz", "sub-01/anat/sub-01_acq-fast_T1w.nii.gz")
    filters = tmp_path / "filter.json"
    filters.write_text('{"t1w": {"acquisition": "fast", "session": null}}', encoding="utf-8-sig")
    assert stems(root, "--bids-filter-file", str(filters)) == ["sub-01_acq-fast"]


def test_linked_and_relative_roots(place, tmp_path, monkeypatch):
    link = tmp_path / "sub-99"
    link.symlink_to(place, target_is_directory=True)
    expected = ["sub-01_ses-a", "sub-01_ses-b", "sub-02_run-1"]
    assert stems(link) == expected
    monkeypatch.chdir(place)
    assert stems(Path(".")) == expected
    assert stems(Path(f"{place}/../{place.name}/")) == expected


def test_linked_subjects_and_loops(tmp_path):
    write_names(tmp_path / "sub-99/store", "sub-01/anat/sub-01_T1w.nii.gz")
    raw = tmp_path / "raw"
    describe(raw)
    (raw / "sub-01").symlink_to(tmp_path / "sub-99/store/sub-01", target_is_directory=True)
    (raw / "sub-01/anat/up").symlink_to(raw, target_is_directory=True)
    (raw / "sub-01/anat/around").symlink_to(tmp_path / "sub-99/store/sub-01", target_is_directory=True)
    assert stems(tmp_path) == ["sub-01"]


# ------------------------------------------------------------------------------------------------ kept index


@pytest.fixture
def growing(tmp_path):
    """A dataset of two subjects, its folder, and the options that keep an index."""
    write_names(tmp_path / "raw", *(f"sub-{label}/anat/sub-{label}_T1w.nii.gz" for label in ("01", "02")))
    return tmp_path, ["--bids-database-dir", str(tmp_path / "index")]


def test_index_follows_the_dataset(growing):
    root, options = growing
    assert stems(root, *options) == ["sub-01", "sub-02"]
    write_image(make_brain(), root / "raw/sub-03/anat/sub-03_T1w.nii.gz")
    assert stems(root, *options) == ["sub-01", "sub-02", "sub-03"]
    shutil.rmtree(root / "raw/sub-01")
    assert stems(root, *options) == ["sub-02", "sub-03"]
    (root / "raw/sub-02/anat/sub-02_T1w.nii.gz").rename(root / "raw/sub-02/anat/sub-02_acq-x_T1w.nii.gz")
    assert stems(root, *options) == ["sub-02_acq-x", "sub-03"]


def test_index_of_another_dataset(growing):
    root, options = growing
    assert stems(root, *options) == ["sub-01", "sub-02"]
    write_names(root / "other/raw", "sub-07/anat/sub-07_T1w.nii.gz")
    assert stems(root / "other", *options) == ["sub-07"]
    shutil.copytree(root / "raw", root / "copy/raw")
    (scan, _) = find_scans(scan_config(root / "copy", *options))[0]
    assert scan.t1w == root / "copy/raw/sub-01/anat/sub-01_T1w.nii.gz"


@pytest.mark.parametrize("length", [0, 100, 5000])
def test_half_an_index_is_not_trusted(growing, length):
    root, options = growing
    assert len(stems(root, *options)) == 2
    (kept,) = (root / "index").rglob("*.sqlite")
    os.truncate(kept, length)
    shutil.copy(kept, root / "index" / kept.name)  # where PyBIDS itself looks
    assert stems(root, *options) == ["sub-01", "sub-02"]


def test_folder_of_the_index_cannot_be_used(growing, command, capsys):
    root, _ = growing
    (root / "file").write_text("")
    assert command("--bids-database-dir", str(root / "file/index"), "--dry-run", bids=root / "raw") == 2
    assert f"--bids-database-dir {root / 'file/index'}: cannot be used: Not a directory" in one_error(capsys)


def _open_and_count(root):
    return len(open_index(list_files(root / "raw"), RAW, root / "index").get(suffix="T1w"))


def test_runs_that_start_at_once_share_an_index(growing):
    root, _ = growing
    with ProcessPoolExecutor(3) as pool:
        assert list(pool.map(_open_and_count, [root] * 6)) == [2] * 6
    (folder,) = (root / "index").iterdir()
    assert sorted(path.name for path in folder.iterdir()) == [".lock", "layout_index.sqlite"]


# ---------------------------------------------------------------------------- descriptions, names, ignored files


@pytest.mark.parametrize("dataset", ["raw", "m"])
def test_description_with_a_byte_order_mark(growing, command, dataset):
    root, _ = growing
    write_names(root / "m", "sub-01/anat/sub-01_desc-brain_mask.nii.gz", kind="derivative", image=mask())
    path = root / dataset / "dataset_description.json"
    path.write_text(path.read_text(), encoding="utf-8-sig")
    assert command("-d", f"m={root / 'm'}", "--dry-run", bids=root / "raw") == 0


@pytest.mark.parametrize(
    ("content", "words"),
    [("[1]", "expected a JSON object"), ("{", "not valid JSON"), (b"\xff\xfe{", "not valid JSON"), ("", "is empty")],
)
@pytest.mark.parametrize("dataset", ["raw", "m"])
def test_odd_description(growing, command, capsys, dataset, content, words):
    root, _ = growing
    describe(root / "m", "derivative")
    path = root / dataset / "dataset_description.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    assert command("-d", f"m={root / 'm'}", "--dry-run", bids=root / "raw") == 2
    line = one_error(capsys)
    assert words in line and str(path) in line


@pytest.mark.parametrize("kept", [False, True])
def test_a_folder_in_the_place_of_the_description(growing, command, capsys, kept):
    root, _ = growing
    path = root / "raw/dataset_description.json"
    path.unlink()
    path.mkdir()
    options = ["--bids-database-dir", root / "index"] if kept else []
    assert command("--dry-run", "--skip-bids-validation", *options, bids=root / "raw") == 2
    assert str(path) in one_error(capsys)


def test_makers_of_any_shape(growing, command, capsys):
    """PyBIDS refuses some of them; nothing ends in a traceback."""
    root, _ = growing
    write_names(root / "m", "sub-01/anat/sub-01_desc-brain_mask.nii.gz", kind="derivative", image=mask())
    for makers in ("me", [], [1], [{"Version": "1"}]):
        content = {"Name": "m", "BIDSVersion": "1.11.0", "DatasetType": "derivative", "GeneratedBy": makers}
        (root / "m/dataset_description.json").write_text(json.dumps(content))
        code = command("-d", f"m={root / 'm'}", "--dry-run", bids=root / "raw")
        assert code == 0 or str(root / "m/dataset_description.json") in one_error(capsys)


def test_stray_names_are_passed_over(growing, command, capsys):
    root, _ = growing
    write_image(make_brain(), root / "raw/sub-01/anat/sub-01_odd-x_T1w.nii.gz")
    write_image(make_brain(), root / "raw/sub-01/anat/sub-02_T1w.nii.gz")
    write_image(make_brain(), root / "raw/sub-03/anat/sub-03_odd-x_T1w.nii.gz")
    (root / "raw/sub-02/anat/sub-02_\udcff_T1w.nii.gz").write_bytes(b"")
    assert command("--dry-run", bids=root / "raw") == 0
    said = capsys.readouterr().out
    assert "Would register 2 images" in said and "sub-03: skipped, no T1w image (sub-03_odd-x_T1w.nii.gz: not" in said
    assert "sub-01_odd-x_T1w.nii.gz: skipped, not a BIDS file name" in said
    assert "sub-02_T1w.nii.gz: skipped, not a BIDS file name" in said


def test_labels_with_signs(growing):
    root, _ = growing
    for label in ("a-b", "a-c", "\u00e9"):
        write_image(make_brain(), root / f"raw/sub-{label}/anat/sub-{label}_T1w.nii.gz")
    scans, skipped = find_scans(scan_config(root, "--skip-bids-validation"))[:2]
    assert [scan.stem for scan in scans] == ["sub-01", "sub-02"]
    assert "expected labels of letters and digits" in skipped["sub-a-b_T1w.nii.gz"]
    assert "sub-\u00e9" in skipped


def test_bidsignore(growing, command, capsys):
    root, _ = growing
    for run in (1, 2):
        write_image(make_brain(), root / f"raw/sub-03/anat/sub-03_run-{run}_T1w.nii.gz")
    lesion = write_image(mask(), root / "raw/sub-01/anat/sub-01_label-lesion_roi.nii.gz")
    (root / "raw/.bidsignore").write_text("# bad\nsub-02/\n*_run-2_T1w.nii.gz\n*lesion_roi.nii.gz\n!*keep*\n")
    scans, skipped = find_scans(scan_config(root))[:2]
    assert [scan.stem for scan in scans] == ["sub-01", "sub-03_run-1"]
    assert scans[0].lesion == lesion  # BIDS does not know lesion masks: that they are ignored is no word on them
    assert skipped["sub-02_T1w.nii.gz"] == "listed in .bidsignore" and "listed in .bidsignore" in skipped["sub-02"]
    assert command("--participant-label", "02", bids=root / "raw") == 2
    assert "no T1w image of sub-02 (sub-02_T1w.nii.gz: listed in .bidsignore)" in one_error(capsys)
