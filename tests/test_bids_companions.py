"""Which masks and labels belong to an image, what is said of the others, and what a file that is not there costs."""

import json
import os
import shutil
import struct
from dataclasses import replace

import nibabel as nb
import numpy as np
import pytest
from nipype.utils.filemanip import indirectory
from tiny_bids import describe, make_brain, scan_config, write_image

from mmln_pipeline.bids_app import indexing, participant_level
from mmln_pipeline.bids_app.arguments import UsageError
from mmln_pipeline.bids_app.layout import find_scans
from mmln_pipeline.interfaces import SubjectReference
from mmln_pipeline.machine.files import why_unreadable
from mmln_pipeline.workflows import init_reference_wf

MASK = nb.Nifti1Image((make_brain().get_fdata() > 0).astype(np.uint8), make_brain().affine)


@pytest.fixture
def dataset(tmp_path):
    """A function that makes a raw dataset and derivatives `m` of these names, and asks for its scans."""

    def find(images, masks, *options):
        for name in images:
            write_image(make_brain(), tmp_path / "raw" / name)
        for name in masks:
            write_image(MASK, tmp_path / "m" / name)
        describe(tmp_path / "raw")
        describe(tmp_path / "m", "derivative")
        return find_scans(scan_config(tmp_path, "-d", f"m={tmp_path / 'm'}", *options))

    return find


PLAIN = ("sub-01/anat/sub-01_T1w.nii.gz",)
RUNS = ("sub-01/anat/sub-01_run-1_T1w.nii.gz", "sub-01/anat/sub-01_run-2_T1w.nii.gz")
SESSIONS = ("sub-01/ses-1/anat/sub-01_ses-1_T1w.nii.gz", "sub-01/ses-2/anat/sub-01_ses-2_T1w.nii.gz")
BRAIN = "sub-01/anat/sub-01_desc-brain_mask.nii.gz"

# ------------------------------------------------------------------------------------- what belongs together


@pytest.mark.parametrize(
    ("images", "mask"),
    [
        (PLAIN, "sub-01/sub-01_desc-brain_mask.nii.gz"),
        (PLAIN, "sub-01_desc-brain_mask.nii"),
        (SESSIONS[:1], BRAIN),
        (SESSIONS[:1], "sub-01/sub-01_ses-1_desc-brain_mask.nii.gz"),
        (RUNS[:1], BRAIN),
        (RUNS[:1], "sub-01/anat/sub-01_run-01_desc-brain_mask.nii.gz"),
        (PLAIN, "sub-01/anat/sub-01_space-T1w_desc-brain_mask.nii.gz"),
        ((*PLAIN, "sub-01/anat/sub-01_acq-x_T1w.nii.gz"), BRAIN),
    ],
)
def test_what_can_only_be_meant_for_one_image_is_used(dataset, tmp_path, images, mask):
    found = dataset(images, [mask])
    assert [scan.mask for scan in found.scans if scan.mask] == [tmp_path / "m" / mask] and not found.unused
    assert len(found.scans) == 1 or [scan.stem for scan in found.scans if scan.mask] == ["sub-01"]


def test_the_nearest_goes_before(dataset, tmp_path):
    own = "sub-01/ses-1/anat/sub-01_ses-1_desc-brain_mask.nii.gz"
    found = dataset(SESSIONS[:1], [BRAIN, own])
    assert found.scans[0].mask == tmp_path / "m" / own
    assert "sub-01_desc-brain_mask.nii.gz: another file is nearer to sub-01_ses-1_T1w.nii.gz" in found.unused[0]


# -------------------------------------------------------------------------------------------- near misses

NEAR = [
    (SESSIONS, BRAIN, "no ses: sub-01_ses-1_T1w.nii.gz or sub-01_ses-2_T1w.nii.gz could be meant"),
    (RUNS, BRAIN, "no run: sub-01_run-1_T1w.nii.gz or sub-01_run-2_T1w.nii.gz could be meant"),
    (PLAIN, "sub-01/anat/sub-01_acq-x_desc-brain_mask.nii.gz", "acq-x, not no acq as sub-01_T1w.nii.gz"),
    (PLAIN, "sub-01/anat/sub-01_mask.nii.gz", "expected desc-brain, found no desc"),
    (PLAIN, "sub-01/anat/sub-01_label-brain_mask.nii.gz", "expected desc-brain, found no desc"),
    (PLAIN, "sub-01/anat/sub-01_desc-brain_mask.mgz", "expected .nii.gz or .nii, found .mgz"),
    (PLAIN, "sub-01/anat/sub-01_desc-brain_mask.NII.GZ", "expected .nii.gz or .nii, found .NII.GZ"),
    (PLAIN, "sub-01/anat/sub-01_dseg.img", "expected .nii.gz or .nii, found .img"),
    (PLAIN, "sub-55/anat/sub-55_desc-brain_mask.nii.gz", "there is no T1w image of sub-55"),
    (SESSIONS[:1], "sub-01/ses-2/anat/sub-01_ses-2_desc-brain_mask.nii.gz", "ses-2, not ses-1 as sub-01_ses-1_T1w"),
    (PLAIN, "sub-01/anat/sub-01_space-MNI_desc-brain_mask.nii.gz", "space-MNI, not no space as sub-01_T1w.nii.gz"),
    (PLAIN, "sub-01/anat/sub-01_chunk-1_dseg.nii.gz", "chunk-1, not no chunk"),
    (PLAIN, "sub-01/anat/sub-01_hemi-L_desc-brain_mask.nii.gz", "expected no hemi, found hemi-L"),
    (PLAIN, "sub-01/anat/sub-01_label-WM_desc-brain_mask.nii.gz", "expected label-brain or no label, found label-WM"),
    (PLAIN, "sub-01/anat/sub-01_brainmask.nii.gz", "expected suffix-mask, found suffix-brainmask"),
    (PLAIN, "sub-01/anat/sub-01_desc-aparc_aseg.nii.gz", "expected suffix-dseg, found suffix-aseg"),
    (PLAIN, "sub-01/func/sub-01_desc-brain_mask.nii.gz", "lies in sub-01/func: expected sub-01/anat"),
    (PLAIN, "anat/sub-01_desc-brain_mask.nii.gz", "lies in anat: expected sub-01/anat"),
    (PLAIN, "masks/sub-01_dseg.nii", "lies in masks: expected sub-01/anat"),
]


@pytest.mark.parametrize(("images", "mask", "words"), NEAR)
def test_near_misses_are_named(dataset, images, mask, words):
    used = "sub-02/anat/sub-02_desc-brain_mask.nii.gz"
    found = dataset([*images, "sub-02/anat/sub-02_T1w.nii.gz"], [mask, used])
    assert [bool(scan.mask) for scan in found.scans][-1:] == [True] and not found.scans[0].mask
    (line,) = found.unused
    assert line.startswith("m: ") and mask.split("/")[-1] in line and words in line


@pytest.mark.parametrize(("images", "mask", "words"), [NEAR[1], NEAR[3], NEAR[8]])
def test_a_dataset_of_which_nothing_fits_is_refused(dataset, tmp_path, images, mask, words):
    with pytest.raises(indexing.UsageError, match=f"--derivatives m={tmp_path / 'm'}: nothing of it fits") as caught:
        dataset(images, [mask])
    assert words in str(caught.value) and mask.split("/")[-1] in str(caught.value)


def test_an_empty_dataset_is_refused(dataset):
    with pytest.raises(indexing.UsageError, match="it holds no mask and no labels"):
        dataset(PLAIN, [])


def test_a_subject_without_mask_where_others_have_one(dataset):
    """One subject a job, as on a cluster: that others have masks is enough."""
    images = [*PLAIN, "sub-02/anat/sub-02_T1w.nii.gz"]
    found = dataset(images, ["sub-02/anat/sub-02_desc-brain_mask.nii.gz"], "--participant-label", "01")
    assert [scan.mask for scan in found.scans] == [None] and found.unused == ["m: no mask and no labels of sub-01"]


def test_files_that_differ_alike_take_one_line(dataset):
    masks = [BRAIN] + [f"sub-01/anat/sub-01_space-{name}_desc-brain_mask.nii.gz" for name in ("A", "B", "C")]
    (line,) = dataset(PLAIN, masks).unused
    assert "space-A" in line and line.endswith("(and 2 more such files)")


def test_what_is_not_asked_for_is_no_leftover(dataset, tmp_path):
    masks = [name.replace("T1w", "desc-brain_mask") for name in SESSIONS]
    assert not dataset(SESSIONS, masks, "--session-label", "1").unused
    filters = tmp_path / "filter.json"
    filters.write_text(json.dumps({"mask": {"desc": "hand"}}))
    write_image(MASK, tmp_path / "m/sub-01/ses-1/anat/sub-01_ses-1_desc-hand_mask.nii.gz")
    (line,) = dataset(SESSIONS, masks, "--bids-filter-file", str(filters)).unused
    assert "expected desc-hand, found desc-brain" in line and "(and 1 more" in line


def test_lesion_masks_that_are_not_used(dataset, tmp_path):
    write_image(MASK, tmp_path / "raw/sub-01/anat/sub-01_label-lesion_roi.nii.gz")
    found = dataset(SESSIONS, [SESSIONS[0].replace("T1w", "desc-brain_mask")])
    assert not any(scan.lesion for scan in found.scans)
    assert found.unused[0].startswith("raw: lesion mask not used: sub-01_label-lesion_roi.nii.gz: no ses: ")
    assert not dataset(SESSIONS, [], "--lesion-mask", "skip").unused


# ------------------------------------------------------------------------------------ files that are not there


@pytest.fixture
def three(tmp_path):
    """A dataset of three subjects with masks."""
    for label in ("01", "02", "03"):
        write_image(make_brain(int(label)), tmp_path / f"raw/sub-{label}/anat/sub-{label}_T1w.nii.gz")
        write_image(MASK, tmp_path / f"m/sub-{label}/anat/sub-{label}_desc-brain_mask.nii.gz")
    describe(tmp_path / "raw")
    describe(tmp_path / "m", "derivative")
    return tmp_path


def drop(path, how):
    """Leave of a file what DataLad and others leave."""
    path.unlink()
    if how == "link":
        path.symlink_to("../../.git/annex/objects/aa/bb/MD5E-s9--0.nii.gz/MD5E-s9--0.nii.gz")
    elif how == "loop":
        path.symlink_to(path.name)
    else:
        path.write_bytes(
            {"annex": b"/annex/objects/MD5E-s9--0\n", "lfs": b"version https://git-lfs\n", "empty": b""}[how]
        )


@pytest.mark.parametrize("name", ["raw/sub-02/anat/sub-02_T1w.nii.gz", "m/sub-02/anat/sub-02_desc-brain_mask.nii.gz"])
@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("link", "is a dangling link, its content is not here: in a DataLad dataset, `datalad get {path}`"),
        ("loop", "cannot be read"),
        ("annex", "`datalad get {path}` (git-annex)"),
        ("lfs", "`git lfs pull`"),
        ("empty", "is empty"),
    ],
)
def test_what_is_not_there_is_named_before(three, name, how, words):
    drop(three / name, how)
    found = find_scans(scan_config(three, "-d", f"m={three / 'm'}"))
    assert list(found.failed) == ["sub-02"] and len(found.scans) == 3
    reason = found.failed["sub-02"]
    assert words.format(path=three / name) in reason and (three / name).name in reason


BAD_HEADERS = {
    "sform": (280, "<f", float("nan")),
    "singular": (296, "<4f", 1.0, 0.0, 0.0, 0.0),
    "sizes": (42, "<h", -24),
    "plane": (40, "<h", 2),
    "nothing": (40, "<h", 0),
}
"""What headers hold by which no image lies anywhere: offset in the file, type and values."""


@pytest.mark.parametrize("bad", BAD_HEADERS)
@pytest.mark.parametrize("kind", ["image", "mask", "dseg"])
def test_headers_without_a_grid_cost_their_subjects_alone(three, bad, kind):
    name = {"image": "raw/sub-02/anat/sub-02_T1w", "mask": "m/sub-02/anat/sub-02_desc-brain_mask"}.get(
        kind, "m/sub-02/anat/sub-02_dseg"
    )
    content = bytearray(MASK.to_bytes())
    content[254:256] = struct.pack("<h", 1)  # the sform counts
    offset, form, *values = BAD_HEADERS[bad]
    struct.pack_into(form, content, offset, *values)
    (three / f"{name}.nii.gz").unlink(missing_ok=True)
    (three / f"{name}.nii").write_bytes(content)
    found = find_scans(scan_config(three, "-d", f"m={three / 'm'}"))
    assert list(found.failed) == ["sub-02"] and len(found.scans) == 3
    assert f"{name.split('/')[-1]}.nii: cannot be read (" in found.failed["sub-02"]


def test_lost_images_cost_their_subjects_alone(three, command, capsys, monkeypatch):
    """One is a dangling link from the start, one goes after the checks."""
    drop(three / "raw/sub-02/anat/sub-02_T1w.nii.gz", "link")
    write_image(MASK, three / "m/sub-01/anat/sub-01_dseg.nii.gz")
    options = ["-d", f"m={three / 'm'}", "--init", "identity", "--no-bias-correction"]
    assert command(*options, "--dry-run", bids=three / "raw") == 1
    said = capsys.readouterr().out
    assert (
        "Would register 2 images" in said and "sub-02: would FAIL: T1w image sub-02_T1w.nii.gz: is a dangling" in said
    )
    build = participant_level.build_workflow

    def build_and_lose(*arguments):
        drop(three / "m/sub-03/anat/sub-03_desc-brain_mask.nii.gz", "link")
        return build(*arguments)

    monkeypatch.setattr(participant_level, "build_workflow", build_and_lose)
    assert command(*options, bids=three / "raw") == 1
    said = capsys.readouterr()
    assert "1 of 3 images done" in said.out and "Traceback" not in said.out + said.err
    lines = [line for line in said.err.splitlines() if "FAILED" in line]
    assert [line.split(":")[0] for line in lines] == ["sub-02", "sub-03"] and all(
        "datalad get" in line for line in lines
    )
    out = three / "out"
    assert (out / "sub-01/anat/sub-01_desc-registration_qc.json").is_file()
    assert "datalad get" in (out / "sub-02.html").read_text() and not list(out.glob("sub-0[23]/anat"))


def test_folders_that_cannot_be_entered(three, command, capsys):
    (three / "raw/sub-04").symlink_to("nowhere", target_is_directory=True)
    shutil.rmtree(three / "m/sub-03/anat")
    (three / "m/sub-03/anat").symlink_to("../nowhere", target_is_directory=True)
    (three / "raw/sub-05").mkdir()
    found = find_scans(scan_config(three, "-d", f"m={three / 'm'}"))
    assert [scan.stem for scan in found.scans] == ["sub-01", "sub-02", "sub-03"]
    assert set(found.failed) == {"sub-03", "sub-04"} and all("datalad get" in why for why in found.failed.values())
    assert list(found.skipped) == ["sub-05"] and "datalad get -n" in found.skipped["sub-05"]
    assert command("--participant-label", "01", "04", "--dry-run", bids=three / "raw") == 1
    assert "sub-04: would FAIL" in capsys.readouterr().out


def test_a_folder_without_permission(three, monkeypatch):
    """The user of these tests may be allowed everything: the system's answer is made up."""
    closed = three / "raw/sub-02/anat"
    walk = indexing.os.walk

    def walk_some(top, followlinks, onerror):
        for folder, folders, files in walk(top, followlinks=followlinks):
            if folder == str(closed):
                onerror(PermissionError(13, "Permission denied", folder))
            else:
                yield folder, folders, files

    monkeypatch.setattr(indexing.os, "walk", walk_some)
    found = find_scans(scan_config(three))
    assert found.failed == {"sub-02": f"{closed}: cannot be entered (Permission denied)"} and not found.skipped


def test_a_scan_whose_workflow_cannot_be_built_fails_alone(three, place):
    options = ["--template", str(place / "tpl-tiny_T1w.nii.gz"), "--model", str(place / "tiny.safetensors")]
    config = scan_config(three, *options)
    first, second, _ = find_scans(config).scans
    method, failed = participant_level.prepare_method(config), {}
    odd = replace(first, mask=3)
    workflow = participant_level.build_workflow(config, method, [odd, second], failed)
    assert list(failed) == ["sub-01"] and isinstance(failed["sub-01"], TypeError)
    assert workflow.get_node("sub_02_wf") and not workflow.get_node("sub_01_wf")
    with pytest.raises(TypeError):
        participant_level.build_workflow(config, method, [odd])


def test_reasons_for_files_that_cannot_be_read(tmp_path):
    path = tmp_path / "x.nii.gz"
    assert why_unreadable(path) == "no such file"
    path.mkdir()
    assert "cannot be read" in why_unreadable(path)
    os.mkfifo(tmp_path / "pipe.nii.gz")
    assert why_unreadable(tmp_path / "pipe.nii.gz") == "is no regular file"


# ------------------------------------------------------------------------------------------------- hemispheres


def lesion(half):
    data = np.asanyarray(MASK.dataobj).copy()
    data[slice(12, None) if half == "L" else slice(0, 12)] = 0
    return nb.Nifti1Image(data, MASK.affine)


def test_lesion_masks_of_both_hemispheres_are_joined(dataset, tmp_path):
    names = [f"sub-01/anat/sub-01_hemi-{half}_label-lesion_roi.nii.gz" for half in "LR"]
    for name, half in zip(names, "LR", strict=True):
        write_image(lesion(half), tmp_path / "raw" / name)
    found = dataset(PLAIN, [BRAIN])
    (scan,) = found.scans
    assert [scan.lesion, scan.lesion_other] == [tmp_path / "raw" / name for name in names] and not found.unused
    inputs = init_reference_wf(scan=scan).get_node("inputnode").inputs
    reference = SubjectReference(in_files=inputs.t1w, in_lesions=inputs.lesion)
    with indirectory(tmp_path):
        joined = nb.load(reference.run().outputs.out_lesion)
    np.testing.assert_array_equal(np.asanyarray(joined.dataobj), np.asanyarray(MASK.dataobj))
    assert scan.files["right lesion mask of sub-01_T1w.nii.gz"].endswith("hemi-R_label-lesion_roi.nii.gz")


def test_one_hemisphere_is_enough_and_three_masks_are_too_many(dataset, tmp_path):
    write_image(lesion("R"), tmp_path / "raw/sub-01/anat/sub-01_hemi-R_label-lesion_roi.nii.gz")
    (scan,) = dataset(PLAIN, [BRAIN]).scans
    assert scan.lesion.name.startswith("sub-01_hemi-R") and scan.lesion_other is None
    for name in ("hemi-L_label-lesion_roi", "label-lesion_roi"):
        write_image(lesion("L"), tmp_path / f"raw/sub-01/anat/sub-01_{name}.nii.gz")
    with pytest.raises(UsageError, match="3 files fit as lesion mask"):
        dataset(PLAIN, [BRAIN])
