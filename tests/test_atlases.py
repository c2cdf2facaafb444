"""Templates of the BIDS App: files with masks, images of the dataset, tables of several atlases, and refusals."""

import json
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import nibabel as nb
import numpy as np
import pandas as pd
import pytest
from tiny_bids import describe, list_files, make_brain, one_error, snapshot, write_image

from mmln_pipeline.atlas.sources import read_template_table
from mmln_pipeline.bids_app.run import main
from mmln_pipeline.scores.metrics import dice

VALIDATOR = shutil.which("bids-validator-deno") or shutil.which(
    "bids-validator-deno", path=str(Path(sys.executable).parent)
)
QUICK = ("--init", "identity", "--no-bias-correction")


def make_labels(shift=0.0, numbers=(4, 9)):
    """Two halves of the bright part of the brain."""
    brain = make_brain(shift)
    data = np.where(brain.get_fdata() > 150, numbers[0], 0)
    data[:, :, 16:] = np.where(data[:, :, 16:] > 0, numbers[1], 0)
    return nb.Nifti1Image(data.astype(np.uint8), brain.affine)


@pytest.fixture(scope="module")
def atlases(place):
    """Two labelled atlases and one without labels, with their table; and labels of all scans of the dataset."""
    folder = place / "atlases"
    for name, shift in (("A", 0.0), ("B", 1.0), ("Bare", 2.0)):
        write_image(make_brain(shift), folder / f"images/{name}.nii.gz")
    for name, shift in (("A", 0.0), ("B", 1.0)):
        write_image(make_labels(shift), folder / f"labels/{name}.nii.gz")
    (folder / "names.tsv").write_text("index\tname\n4\tLower\n9\tUpper\n17\tAbsent\n")
    (folder / "table.tsv").write_text(
        "name\timage\tdseg\tdseg_tsv\n"
        "A\timages/A.nii.gz\tlabels/A.nii.gz\tnames.tsv\n"
        "B\timages/B.nii.gz\tlabels/B.nii.gz\tn/a\n"
        "Bare\timages/Bare.nii.gz\t\t\n"
    )
    describe(place / "halves", "derivative")
    for stem, shift in (("sub-01/ses-a/anat/sub-01_ses-a", 0), ("sub-02/anat/sub-02_run-1", 2)):
        write_image(make_labels(shift), place / f"halves/{stem}_seg-halves_dseg.nii.gz")
    (place / "halves/seg-halves_dseg.tsv").write_text("index\tname\n4\tLower\n9\tUpper\n")
    return folder


@pytest.fixture(scope="module")
def several(place, atlases, tmp_path_factory):
    """The output of a run with a table of three atlases on sub-02, and the command's arguments."""
    root = tmp_path_factory.mktemp("several").resolve()
    arguments = [place / "raw", root / "out", "participant", "-w", root / "work", "--participant-label", "02"]
    arguments += ["--template", atlases / "table.tsv", "--model", place / "tiny.safetensors", "--refine", "0"]
    arguments += ["--nprocs", "1", "--device", "cpu", "-d", f"halves={place / 'halves'}", *QUICK]
    arguments = [str(argument) for argument in arguments]
    code = main(arguments)
    return root / "out", arguments, code


# ------------------------------------------------------------------------------------------- several atlases


def test_every_atlas_has_its_files(several):
    out, _, code = several
    assert code == 0
    names = {"desc-brain_mask.nii.gz", "desc-brain_mask.json"}
    for name in ("A", "B", "Bare"):
        names |= {f"from-T1w_to-{name}_mode-image_xfm{end}" for end in (".h5", ".json")}
        names |= {f"from-{name}_to-T1w_mode-image_xfm{end}" for end in (".h5", ".json")}
        parts = ("desc-preproc_T1w", "desc-brain_mask", "desc-jacobian_T1w", "dseg")
        names |= {f"space-{name}_{part}{end}" for part in parts for end in (".nii.gz", ".json")}
        names |= {f"space-{name}_desc-registration_qc{end}" for end in (".json", ".tsv")}
    for name in ("A", "B", "fused"):
        names |= {f"space-T1w_seg-{name}_dseg{end}" for end in (".nii.gz", ".json")}
        names |= {f"space-T1w_seg-{name}_volumes{end}" for end in (".tsv", ".json")}
    names |= {"space-T1w_seg-fused_qc.json"}
    assert list_files(out / "sub-02/anat") == {f"sub-02_run-1_{name}" for name in names}
    figures = {name.removeprefix("sub-02_run-1_") for name in list_files(out / "sub-02/figures")}
    assert {f"space-T1w_seg-{name}_dseg.svg" for name in ("A", "B", "fused")} <= figures
    assert {f"space-{name}_desc-registration_T1w.svg" for name in ("A", "B", "Bare")} <= figures
    assert {path.name for path in out.glob("seg-*")} == {"seg-A_dseg.tsv", "seg-fused_dseg.tsv"}


def test_labels_reach_the_scan_and_are_fused(several, place):
    out, _, _ = several
    truth = nb.load(place / "halves/sub-02/anat/sub-02_run-1_seg-halves_dseg.nii.gz")
    for name in ("A", "B", "fused"):
        labels = nb.load(out / f"sub-02/anat/sub-02_run-1_space-T1w_seg-{name}_dseg.nii.gz")
        assert np.allclose(labels.affine, truth.affine) and labels.get_data_dtype() == np.uint8
        assert set(np.unique(labels.dataobj)) == {0, 4, 9}
    scores = dice(np.asarray(truth.dataobj), np.asarray(labels.dataobj))
    record = json.loads((out / "sub-02/anat/sub-02_run-1_space-T1w_seg-fused_qc.json").read_text())
    assert record["dice_per_label"] == pytest.approx(scores) and record["dice"] > 0.7
    assert record["atlases"] == ["A", "B"] and set(record["tc_per_label"]) == {"4", "9"}
    section = (out / "sub-02.html").read_text().partition('id="fused-labels"')[2].partition("</section>")[0]
    assert f"<td>{record['dice']:.3f}</td>" in section and "<td>A, B</td>" in section


def test_scores_of_each_atlas(several):
    out, _, _ = several
    records = {
        name: json.loads((out / f"sub-02/anat/sub-02_run-1_space-{name}_desc-registration_qc.json").read_text())
        for name in ("A", "B", "Bare")
    }
    for name, record in records.items():
        assert record["template"] == name and record["atlas"] == (None if name == "Bare" else name)
    assert set(records["A"]["dice_per_label"]) == {"4", "9"} and records["A"]["tc"] is not None
    assert records["Bare"]["dice"] is None
    assert records["B"]["dice"] > records["A"]["dice"]  # B is nearer, and the network of the test hardly moves anything


def test_volumes(several):
    out, _, _ = several
    for name in ("A", "fused"):
        head = out / f"sub-02/anat/sub-02_run-1_space-T1w_seg-{name}"
        table = pd.read_csv(f"{head}_volumes.tsv", sep="\t")
        assert table.columns.tolist() == ["index", "name", "voxels", "volume_mm3"]
        assert table["name"].tolist() == ["Lower", "Upper", "Absent"]
        labels = np.asarray(nb.load(f"{head}_dseg.nii.gz").dataobj)
        assert table["voxels"].tolist() == [int((labels == number).sum()) for number in (4, 9, 17)]
        np.testing.assert_allclose(table["volume_mm3"], table["voxels"])  # voxels of 1 mm
        sidecar = json.loads((out / f"{head}_volumes.json").read_text())
        assert sidecar["volume_mm3"]["Units"] == "mm^3" and sidecar["SpatialReference"].startswith("bids:raw:")
    unnamed = pd.read_csv(out / "sub-02/anat/sub-02_run-1_space-T1w_seg-B_volumes.tsv", sep="\t", keep_default_na=False)
    assert unnamed["name"].tolist() == ["n/a", "n/a"]


def test_second_run_changes_nothing_with_several(several):
    out, arguments, _ = several
    before = snapshot(out)
    assert main(arguments) == 0
    assert snapshot(out) == before


def test_sources_of_fused_labels_exist(several, place):
    out, _, _ = several
    sidecar = json.loads((out / "sub-02/anat/sub-02_run-1_space-T1w_seg-fused_dseg.json").read_text())
    roots = {"": out, "raw": place / "raw"}
    for source in sidecar["Sources"]:
        name, relative = source.removeprefix("bids:").split(":", 1)
        assert (roots[name] / relative).is_file(), source
    assert sidecar["Atlas"] == ["A", "B"]
    text = (out / "logs/CITATION.md").read_text()
    assert "templates A, B and Bare" in text and "joint label fusion" in text


@pytest.mark.skipif(VALIDATOR is None, reason="bids-validator-deno is not installed")
def test_validator_finds_no_error_with_several(several):
    result = subprocess.run([VALIDATOR, str(several[0]), "--json"], capture_output=True, text=True)
    issues = json.loads(result.stdout)["issues"]["issues"]
    assert [issue for issue in issues if issue["severity"] == "error"] == []


def test_group_level_of_one_atlas(several, capsys):
    out, arguments, _ = several
    folders = [*arguments[:2], "group"]
    assert main([*folders, "--template", "A", "--participant-label", "02"]) == 0
    table = pd.read_csv(out / "group_registration.tsv", sep="\t")
    assert len(table) == 1 and (out / "space-A_desc-mean_T1w.nii.gz").is_file()
    volumes = pd.read_csv(out / "group_volumes.tsv", sep="\t")
    assert set(volumes["scan"]) == {"sub-02_run-1"} and {"A", "B", "fused"} <= set(volumes["atlas"])
    capsys.readouterr()
    assert main([*folders, "--template", arguments[arguments.index("--template") + 1]]) == 2
    assert "expected one template, found a table of several" in one_error(capsys)
    for path in out.glob("group_*"):
        path.unlink()


def test_an_image_is_not_its_own_atlas(place, atlases, command, tmp_path, capsys):
    """Leave-one-out: each labelled scan is an atlas for the others."""
    raw = place / "raw"
    first, second = "sub-01/ses-a/anat/sub-01_ses-a", "sub-02/anat/sub-02_run-1"
    table = tmp_path / "own.tsv"
    rows = [
        f"{name}\t{raw / stem}_T1w.nii.gz\t{place / 'halves' / stem}_seg-halves_dseg.nii.gz"
        for name, stem in (("one", first), ("two", second))
    ]
    table.write_text("\n".join(["name\timage\tdseg", *rows]) + "\n")
    assert command("--template", str(table), "--session-label", "a", *QUICK) == 0
    files = list_files(tmp_path / "out/sub-01/ses-a/anat")
    assert "sub-01_ses-a_space-T1w_seg-two_dseg.nii.gz" in files
    assert not [name for name in files if "one" in name or "fused" in name]


# ----------------------------------------------------------------------------------- an image of the dataset


def test_subject_as_template(place, atlases, command, tmp_path, capsys):
    assert command("--template", "sub-02", "-d", f"halves={place / 'halves'}", *QUICK) == 0
    said = capsys.readouterr().out
    assert "sub-02_run-1: skipped, is the template" in said and "2 of 2 images done" in said
    head = tmp_path / "out/sub-01/ses-a/anat/sub-01_ses-a"
    labels = nb.load(f"{head}_space-T1w_seg-halves_dseg.nii.gz")
    assert set(np.unique(labels.dataobj)) == {0, 4, 9}
    record = json.loads(head.with_name(f"{head.name}_desc-registration_qc.json").read_text())
    assert record["template"] == "sub02" and record["atlas"] == "halves" and record["dice"] is not None
    sidecar = json.loads(head.with_name(f"{head.name}_space-sub02_desc-preproc_T1w.json").read_text())
    assert sidecar["SpatialReference"] == (place / "raw/sub-02/anat/sub-02_run-1_T1w.nii.gz").as_uri()
    assert (tmp_path / "out/seg-halves_dseg.tsv").read_text().splitlines()[1] == "4\tLower"
    assert not (tmp_path / "out/sub-02").exists()
    assert main([str(place / "raw"), str(tmp_path / "out"), "group", "--template", "sub-02"]) == 0
    assert "sub-02" not in capsys.readouterr().out


def test_session_as_template(command, capsys):
    assert command("--template", "sub-01_ses-b", "--dry-run") == 0
    said = capsys.readouterr().out
    assert "Would register 2 images to sub01sesb" in said and "sub-01_ses-b: skipped, is the template" in said


def test_subject_template_uses_its_mask(place, command, tmp_path, capsys, rng):
    """A raw head of the dataset serves as template once a mask of it is given."""
    raw = tmp_path / "raw"
    describe(raw)
    head = nb.Nifti1Image(
        make_brain().get_fdata(dtype=np.float32) + 20 + rng.random(make_brain().shape, np.float32), np.eye(4)
    )
    write_image(head, raw / "sub-01/anat/sub-01_T1w.nii.gz")
    write_image(nb.Nifti1Image(make_brain(1).get_fdata(), np.eye(4)), raw / "sub-02/anat/sub-02_T1w.nii.gz")
    options = ("--template", "sub-01", "--participant-label", "02", "--dry-run")
    assert command(*options, bids=raw) == 2
    assert "found what looks like a raw head; give a stripped template or its brain mask" in one_error(capsys)
    masks = tmp_path / "masks"
    describe(masks, "derivative")
    mask = nb.Nifti1Image((make_brain().get_fdata() > 0).astype(np.uint8), np.eye(4))
    path = write_image(mask, masks / "sub-01/anat/sub-01_desc-brain_mask.nii.gz")
    assert command(*options, "-d", f"masks={masks}", bids=raw) == 0
    assert command(*options, "--template-mask", str(path), bids=raw) == 0


def test_changed_template_is_registered_to_anew(place, command, tmp_path):
    """Nipype sees that a file it was given has changed; the mask beside a template it does not know of."""
    brain = make_brain(1).get_fdata()
    path = write_image(make_brain(1), tmp_path / "tpl-mine_T1w.nii.gz")
    options = ("--template", str(path), "--participant-label", "02", *QUICK)
    record = tmp_path / "out/sub-02/anat/sub-02_run-1_desc-registration_qc.json"
    overlaps = []
    for threshold in (100, 0):
        mask = nb.Nifti1Image((brain > threshold).astype(np.uint8), make_brain().affine)
        write_image(mask, tmp_path / "tpl-mine_desc-brain_mask.nii.gz")
        assert command(*options) == 0
        overlaps.append(json.loads(record.read_text())["brain_overlap"]["after"])
    assert overlaps[0] != overlaps[1]


# ---------------------------------------------------------------------------------------------- exit code 2


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--template", "sub-77"], "--template sub-77: no such subject or session: no folder"),
        (["--template", "sub-01_ses-z"], "no such subject or session"),
        (["--template", "sub-0!1"], "expected sub-LABEL or sub-LABEL_ses-LABEL"),
        (["--template", "sub-03"], "no T1w image of sub-03"),
        (["--template", "sub-02", "--participant-label", "02"], "is the only image asked for"),
        (["--template", "MNI152NLin9999"], "nothing is downloaded at run time"),
        (["--template", "no/such:thing"], "expected MNI152NLin2009aSym, a NIfTI file (.nii, .nii.gz), sub-LABEL"),
        (["--template", "/no/table.tsv"], "template table /no/table.tsv: no such file"),
        (["--template-mask", "/no/mask.nii.gz"], "--template-mask /no/mask.nii.gz: no such file"),
    ],
)
def test_wrong_template(command, tmp_path, monkeypatch, capsys, options, words):
    monkeypatch.setenv("TEMPLATEFLOW_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(socket.socket, "connect", lambda *_: pytest.fail("network"))
    assert command(*options) == 2
    assert words in one_error(capsys)
    assert not (tmp_path / "out").exists() and not (tmp_path / "work").exists() and not (tmp_path / "cache").exists()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "expected tab-separated text"),
        ("name\timage\n", "expected a row an atlas, found none"),
        ("name\tdseg\nA\tlabels/A.nii.gz\n", "expected the tab-separated columns name and image"),
        ("name\timage\tdsegs\nA\timages/A.nii.gz\tx\n", "(look at: dsegs)"),
        ("name\timage\nA_1\timages/A.nii.gz\n", "line 2: expected a name of letters and digits only"),
        ("name\timage\nfused\timages/A.nii.gz\n", "found 'fused'"),
        ("name\timage\nA\timages/A.nii.gz\nA\timages/B.nii.gz\n", "expected each name once, found 'A' 2 times"),
        ("name\timage\nA\timages/none.nii.gz\n", "images/none.nii.gz: no such file"),
        ("name\timage\nA\t\n", "line 2 (A): expected an image (.nii, .nii.gz), found ''"),
        ("name\timage\tmask\nA\timages/A.nii.gz\tnone.nii\n", "mask"),
        ("name\timage\tdseg_tsv\nA\timages/A.nii.gz\tnames.tsv\n", "expected a dseg for the dseg_tsv, found none"),
        ("name\timage\tdseg\nA\timages/A.nii.gz\tlabels/off.nii.gz\n", "expected the grid of template"),
        ("name\timage\tdseg\tdseg_tsv\nA\timages/A.nii.gz\tlabels/A.nii.gz\twrong.tsv\n", "columns index and name"),
        (
            "name\timage\tdseg\tdseg_tsv\nA\timages/A.nii.gz\tlabels/A.nii.gz\tnames.tsv\n"
            "B\timages/B.nii.gz\tlabels/B.nii.gz\tother.tsv\n",
            "label tables of A and B: expected one name for label 4, found 'Lower' and 'Elsewhere'",
        ),
    ],
)
def test_wrong_table(atlases, command, tmp_path, capsys, content, words):
    write_image(nb.Nifti1Image(np.ones((7, 8, 9), np.uint8), np.eye(4)), atlases / "labels/off.nii.gz")
    (atlases / "wrong.tsv").write_text("number\tname\n4\tLower\n")
    (atlases / "other.tsv").write_text("index\tname\n4\tElsewhere\n")
    path = atlases / f"{tmp_path.name}.tsv"
    path.write_text(content)
    assert command("--template", str(path)) == 2
    assert words in one_error(capsys)
    assert not (tmp_path / "out").exists() and not (tmp_path / "work").exists()


def test_options_that_belong_into_the_table(atlases, command, capsys):
    for option in ("mask", "dseg"):
        path = atlases / "labels/A.nii.gz"
        assert command("--template", str(atlases / "table.tsv"), f"--template-{option}", str(path)) == 2
        assert f"--template-{option}: expected as the column {option}" in one_error(capsys)


def test_paths_start_at_the_table(atlases, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    sources = read_template_table(atlases / "table.tsv")
    assert [source.name for source in sources] == ["A", "B", "Bare"]
    assert sources[0].dseg == atlases / "labels/A.nii.gz" and sources[1].dseg_table is None
    assert sources[2].load().dseg_name is None and sources[0].load().dseg_name == "A"
