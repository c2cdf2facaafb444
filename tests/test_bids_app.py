"""The BIDS App on a tiny dataset: exit codes, files, sidecars, resuming, failures, and every option."""

import json
import logging
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import nibabel as nb
import numpy as np
import pandas as pd
import pytest
from nipype.interfaces.utility import Function
from nipype.pipeline import engine as pe

from mmln_pipeline import __version__, volumes
from mmln_pipeline.bids_app import execution, participant
from mmln_pipeline.bids_app.config import Config, read_toml
from mmln_pipeline.bids_app.execution import run_workflow
from mmln_pipeline.bids_app.layout import find_scans
from mmln_pipeline.bids_app.parser import parse_args, parse_memory
from mmln_pipeline.bids_app.run import main
from mmln_pipeline.network import MMLN, NetworkConfig
from mmln_pipeline.weights import save_model

SHAPE = (24, 28, 32)
VALIDATOR = shutil.which("bids-validator-deno") or shutil.which(
    "bids-validator-deno", path=str(Path(sys.executable).parent)
)


def make_brain(shift=0.0):
    """A textured ellipsoid on a 1 mm RAS grid, zero outside."""
    x = np.stack(np.meshgrid(*(np.arange(n) for n in SHAPE), indexing="ij")).astype(float)
    offset = (x - np.reshape([12 + shift, 14, 16], (3, 1, 1, 1))) / np.reshape((8, 9, 11), (3, 1, 1, 1))
    radius = np.sqrt((offset**2).sum(0))
    texture = 1 + 0.3 * np.sin(2 * offset[0] + 1) * np.cos(3 * offset[1]) + 0.2 * offset[2]
    data = np.where(radius < 1, 400 * texture * (1.3 - radius), 0).astype(np.float32)
    affine = np.eye(4)
    affine[:3, 3] = -12, -14, -16
    return nb.Nifti1Image(data, affine)


def write_image(image, path):
    path.parent.mkdir(parents=True, exist_ok=True)
    nb.save(image, path)
    return path


def describe(folder, kind="raw"):
    content = {"Name": "tiny", "BIDSVersion": "1.10.0", "DatasetType": kind}
    if kind == "derivative":
        content["GeneratedBy"] = [{"Name": "hand"}]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "dataset_description.json").write_text(json.dumps(content))


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A raw dataset (sub-01 with two sessions, sub-02, sub-03 without T1w), labels, template and model."""
    root = tmp_path_factory.mktemp("place").resolve()
    describe(root / "raw")
    (root / "raw" / "README").write_text("Synthetic ellipsoids.\n")
    for number, session in enumerate(("a", "b")):
        stem = f"raw/sub-01/ses-{session}/anat/sub-01_ses-{session}_T1w.nii.gz"
        write_image(make_brain(number), root / stem)
    write_image(make_brain(2), root / "raw/sub-02/anat/sub-02_run-1_T1w.nii.gz")
    write_image(make_brain(2), root / "raw/sub-03/anat/sub-03_T2w.nii.gz")
    labels = root / "labels"
    describe(labels, "derivative")
    dseg = make_brain(2)
    dseg = nb.Nifti1Image((dseg.get_fdata() > 300).astype(np.uint8), dseg.affine)
    write_image(dseg, labels / "sub-02/anat/sub-02_run-1_dseg.nii.gz")
    template = write_image(make_brain(), root / "tpl-tiny_T1w.nii.gz")
    atlas = nb.Nifti1Image((nb.load(template).get_fdata() > 300).astype(np.uint8), nb.load(template).affine)
    write_image(atlas, root / "tpl-tiny_seg-core_dseg.nii.gz")
    (root / "tpl-tiny_seg-core_dseg.tsv").write_text("index\tname\n1\tCore\n")
    save_model(MMLN(NetworkConfig(channels=2, slices=())), root / "tiny.safetensors", {"name": "tiny"})
    return root


@pytest.fixture(autouse=True)
def _tiny_grid(monkeypatch):
    monkeypatch.setattr(volumes, "GRID_SHAPE", SHAPE)


def settings(place):
    """Options that keep a run small."""
    tiny = ["--template", place / "tpl-tiny_T1w.nii.gz", "--model", place / "tiny.safetensors"]
    return [*tiny, "--refine", "0", "--nprocs", "1", "--device", "cpu"]


@pytest.fixture
def command(place, tmp_path):
    """A function that runs the app on the tiny dataset in one process, and returns its exit code."""

    def run(*options, bids="raw", output=None):
        folders = [place / bids, output or tmp_path / "out", "participant", "-w", tmp_path / "work"]
        return main([str(part) for part in (*folders, *settings(place), *options)])

    return run


@pytest.fixture(scope="module")
def finished(place, tmp_path_factory):
    """The output of a whole run: its folder, the command's arguments and its exit code."""
    root = tmp_path_factory.mktemp("finished").resolve()
    arguments = [place / "raw", root / "out", "participant", "-w", root / "work", *settings(place)]
    arguments += [
        "--template-dseg",
        place / "tpl-tiny_seg-core_dseg.nii.gz",
        "-d",
        f"labels={place / 'labels'}",
    ]
    arguments = [str(argument) for argument in arguments]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(volumes, "GRID_SHAPE", SHAPE)
        code = main(arguments)
    return root / "out", arguments, code


def list_files(folder):
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def snapshot(folder):
    paths = [folder / name for name in list_files(folder)]
    return {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in paths}


def one_error(capsys):
    """The one line on stderr."""
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1, lines
    return lines[0]


# ---------------------------------------------------------------------------------------------- a whole run


def test_run_writes_every_file(finished):
    out, _, code = finished
    assert code == 0
    expected = {
        *("dataset_description.json", ".bidsignore", "logs/CITATION.md", "logs/mmln-bids.toml"),
        *("sub-01.html", "sub-02.html", "seg-core_dseg.tsv"),
    }
    scans = ("sub-01/ses-a/anat/sub-01_ses-a", "sub-01/ses-b/anat/sub-01_ses-b", "sub-02/anat/sub-02_run-1")
    images = ("space-tiny_desc-preproc_T1w", "space-tiny_desc-brain_mask", "desc-brain_mask")
    images += ("space-tiny_desc-jacobian_T1w", "space-T1w_seg-core_dseg")
    for head in scans:
        names = [f"{name}{ending}" for name in images for ending in (".nii.gz", ".json")]
        for source, target in (("T1w", "tiny"), ("tiny", "T1w")):
            names += [f"from-{source}_to-{target}_mode-image_xfm{ending}" for ending in (".h5", ".json")]
        names += ["desc-registration_qc.json", "desc-registration_qc.tsv"]
        expected |= {f"{head}_{name}" for name in names}
        figures = ("desc-brain_mask", "space-tiny_desc-registration_T1w", "space-tiny_desc-warpgrid_T1w")
        figures += ("space-tiny_desc-jacobian_T1w", "space-T1w_seg-core_dseg")
        subject, stem = head.split("/")[0], head.split("/")[-1]
        expected |= {f"{subject}/figures/{stem}_{figure}.svg" for figure in figures}
    expected |= {f"sub-02/anat/sub-02_run-1_space-tiny_dseg{ending}" for ending in (".nii.gz", ".json")}
    assert list_files(out) == expected


def test_sources_exist(finished, place):
    out, _, _ = finished
    roots = {"": out, "raw": place / "raw", "labels": place / "labels"}
    description = json.loads((out / "dataset_description.json").read_text())
    assert description["DatasetType"] == "derivative"
    assert description["DatasetLinks"] == {name: root.as_uri() for name, root in roots.items() if name}
    assert description["GeneratedBy"][0]["Version"] == __version__
    sidecars = [path for path in out.rglob("sub-*.json") if "_qc" not in path.name]
    assert len(sidecars) == 3 * 7 + 1
    for path in sidecars:
        content = json.loads(path.read_text())
        assert content["SpatialReference"] and len(content["ModelSHA256"]) == 64
        for source in content["Sources"]:
            name, relative = source.removeprefix("bids:").split(":", 1)
            assert (roots[name] / relative).is_file(), source
    t1w = json.loads((out / "sub-02/anat/sub-02_run-1_space-tiny_desc-preproc_T1w.json").read_text())
    assert t1w["SkullStripped"] is True
    assert t1w["SpatialReference"] == (place / "tpl-tiny_T1w.nii.gz").as_uri()


def test_images_have_the_right_grid(finished, place):
    out, _, _ = finished
    head = out / "sub-02/anat/sub-02_run-1"
    template = nb.load(place / "tpl-tiny_T1w.nii.gz")
    native = nb.load(place / "raw/sub-02/anat/sub-02_run-1_T1w.nii.gz")
    for name in ("space-tiny_desc-preproc_T1w", "space-tiny_desc-brain_mask", "space-tiny_desc-jacobian_T1w"):
        image = nb.load(f"{head}_{name}.nii.gz")
        assert image.shape == template.shape and np.allclose(image.affine, template.affine)
    for name in ("desc-brain_mask", "space-T1w_seg-core_dseg"):
        image = nb.load(f"{head}_{name}.nii.gz")
        assert image.shape == native.shape and np.allclose(image.affine, native.affine)
    brain = nb.load(f"{head}_space-tiny_desc-brain_mask.nii.gz").get_fdata()
    expected = template.get_fdata() > 0
    assert 2 * (expected * brain).sum() / (expected.sum() + brain.sum()) > 0.95


def test_scores_are_recorded(finished):
    out, _, _ = finished
    record = json.loads((out / "sub-02/anat/sub-02_run-1_desc-registration_qc.json").read_text())
    assert record["subject"] == "02" and record["template"] == "tiny" and record["model"] == "tiny"
    assert record["device"] == "cpu" and record["dice"] > 0.9 and record["tc"] == pytest.approx(1, abs=0.1)
    assert record["folding_percent_brain"] == 0
    assert {"brain_extraction", "bias_correction", "affine_init", "network", "total"} <= set(record["seconds"])
    assert "torch" in record["versions"]
    table = pd.read_csv(out / "sub-02/anat/sub-02_run-1_desc-registration_qc.tsv", sep="\t")
    assert len(table) == 1 and table["dice"][0] == record["dice"]
    other = json.loads((out / "sub-01/ses-a/anat/sub-01_ses-a_desc-registration_qc.json").read_text())
    assert other["session"] == "a" and other["dice"] is None


def test_second_run_changes_nothing(finished):
    out, arguments, _ = finished
    before = snapshot(out)
    assert main(arguments) == 0
    assert snapshot(out) == before


def test_deleted_derivative_comes_back(finished):
    out, arguments, _ = finished
    path = out / "sub-02/anat/sub-02_run-1_desc-brain_mask.nii.gz"
    before = path.read_bytes()
    path.unlink()
    assert main(arguments) == 0
    assert path.read_bytes() == before


def test_reports_only(finished, capsys):
    out, arguments, _ = finished
    (out / "sub-01.html").unlink()
    assert main([*arguments, "--reports-only"]) == 0
    assert "sub-01_ses-b" in (out / "sub-01.html").read_text()


def test_run_without_labels_keeps_their_link(finished, tmp_path):
    out = shutil.copytree(finished[0], tmp_path / "out")
    arguments = finished[1][: finished[1].index("-d")]
    assert main([arguments[0], str(out), *arguments[2:], "--boilerplate-only"]) == 0
    assert set(json.loads((out / "dataset_description.json").read_text())["DatasetLinks"]) == {
        "raw",
        "labels",
    }


@pytest.mark.skipif(VALIDATOR is None, reason="bids-validator-deno is not installed")
def test_validator_finds_no_error(finished):
    result = subprocess.run([VALIDATOR, str(finished[0]), "--json"], capture_output=True, text=True)
    issues = json.loads(result.stdout)["issues"]["issues"]
    assert [issue for issue in issues if issue["severity"] == "error"] == []


def test_settings_of_a_run_can_be_used_again(finished, tmp_path):
    out, arguments, _ = finished
    again = parse_args([*arguments[:3], "--config-file", str(out / "logs/mmln-bids.toml")])
    assert again == parse_args(arguments)
    typed = parse_args([*arguments[:3], "--config-file", str(out / "logs/mmln-bids.toml"), "--refine", "7"])
    assert typed == replace(again, refine=7)


# ------------------------------------------------------------------------------------- failing subjects


def break_images(raw):
    """Write five subjects broken in five ways; return the word each message must have, by subject."""
    paths = {name: raw / f"sub-{name}/anat/sub-{name}_T1w.nii.gz" for name in ("nan", "4d", "zero", "text", "cut")}
    data = np.ones(SHAPE, np.float32)
    write_image(nb.Nifti1Image(data * np.where(np.arange(SHAPE[2]) == 5, np.nan, 1), np.eye(4)), paths["nan"])
    write_image(nb.Nifti1Image(np.ones((*SHAPE, 2), np.float32), np.eye(4)), paths["4d"])
    write_image(nb.Nifti1Image(data * 0, np.eye(4)), paths["zero"])
    write_image(make_brain(), paths["text"]).write_text("not an image")
    path = write_image(make_brain(), paths["cut"])
    path.write_bytes(path.read_bytes()[:2000])
    return {"nan": "finite", "4d": "3-D", "zero": "zero", "text": "cannot be read", "cut": "cannot be read"}


def test_broken_images_fail_alone(command, tmp_path, capsys):
    raw = tmp_path / "raw"
    describe(raw)
    write_image(make_brain(1), raw / "sub-01/anat/sub-01_T1w.nii.gz")
    causes = break_images(raw)
    assert command("--init", "identity", "--no-bias-correction", bids=raw) == 1
    said = capsys.readouterr()
    assert "Traceback" not in said.out + said.err
    assert "1 of 6 images done" in said.out
    lines = said.err.strip().splitlines()
    assert len(lines) == 5
    for subject, cause in causes.items():
        (line,) = [line for line in lines if line.startswith(f"sub-{subject}: FAILED")]
        assert cause in line and f"sub-{subject}_T1w.nii.gz" in line
        assert cause in (tmp_path / f"out/sub-{subject}.html").read_text()
    assert (tmp_path / "out/sub-01/anat/sub-01_desc-registration_qc.json").is_file()


def test_stop_on_first_crash(command, tmp_path, capsys):
    raw = tmp_path / "raw"
    describe(raw)
    causes = break_images(raw)
    assert command("--stop-on-first-crash", bids=raw) == 1
    lines = [line for line in capsys.readouterr().err.splitlines() if "FAILED" in line]
    assert len(lines) == len(causes) and sum("not finished" in line for line in lines) == 4


def test_raw_head_fails_with_the_mend(command, tmp_path, capsys, rng):
    raw = tmp_path / "raw"
    describe(raw)
    head = nb.Nifti1Image(rng.uniform(50, 100, SHAPE).astype(np.float32), np.eye(4))
    write_image(head, raw / "sub-01/anat/sub-01_T1w.nii.gz")
    assert command(bids=raw) == 1
    assert "looks like a raw head" in one_error(capsys)


def test_failing_report_is_told(finished, monkeypatch, capsys):
    _, arguments, _ = finished

    def fail(config, subject, errors=()):
        raise OSError("disk is full")

    monkeypatch.setattr(participant, "write_report", fail)
    assert main([*arguments, "--reports-only", "--participant-label", "02"]) == 1
    assert "sub-02.html: FAILED: OSError: disk is full" in capsys.readouterr().err


# ------------------------------------------------------------------------------- usage: exit code 2


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--participant-label", "99"], "--participant-label 99: no folder sub-99"),
        (["--participant-label", "sub-03"], "--participant-label 03: no T1w image of sub-03"),
        (["--session-label", "z"], "no T1w image"),
        (["--template", "NoSuchTemplate"], "NoSuchTemplate"),
        (["--template", "/no/such/file.nii.gz"], "/no/such/file.nii.gz"),
        (["--model", "nomodel"], "nomodel"),
        (["--template-dseg", "/no/dseg.nii.gz"], "--template-dseg /no/dseg.nii.gz: no such file"),
        (["--device", "cuda:7"], "cuda:7"),
        (["--device", "tpu"], "tpu"),
        (["--skull-strip", "synthstrip"], "--skull-strip synthstrip is not available in this version"),
        (["--skull-strip", "atlas"], "--skull-strip atlas is not available in this version"),
        (["--lesion-mask", "x"], "--lesion-mask is not available in this version"),
        (["--skull-strip", "wrong"], "--skull-strip"),
        (["--refine", "-1"], "--refine"),
        (["--refine", "some"], "--refine"),
        (["--nprocs", "0"], "--nprocs"),
        (["--omp-nthreads", "3"], "omp_nthreads: expected at most nprocs (1), found 3"),
        (["--mem", "lots"], "--mem"),
        (["--random-seed", "x"], "--random-seed"),
        (["-d", "labels=/no/such/folder"], "/no/such/folder"),
        (["--bids-filter-file", "/no/filter.json"], "--bids-filter-file /no/filter.json: no such file"),
        (["--config-file", "/no/config.toml"], "--config-file /no/config.toml: no such file"),
        (["--use-plugin", "/no/plugin.toml"], "--use-plugin /no/plugin.toml: no such file"),
        (["--no-such-option"], "--no-such-option"),
    ],
)
def test_wrong_usage(command, tmp_path, capsys, options, words):
    assert command(*options) == 2
    line = one_error(capsys)
    assert line.startswith("mmln-bids: error:") and words in line
    assert not (tmp_path / "out").exists() and not (tmp_path / "work").exists()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("no = [toml", "not valid TOML"),
        ("[who]\nx = 1", "unknown section [who]"),
        ("[how]\nmodle = 'mmln'", "unknown setting 'modle'"),
        ("[how]\nbias_correction = 'no'", "expected true or false"),
        ("[how]\nskull_strip = 'atlas'", "skull_strip: expected one of auto, skip"),
        ("[machine]\nnprocs = -2", "nprocs: expected at least 1"),
    ],
)
def test_wrong_config_file(place, tmp_path, capsys, content, words):
    path = tmp_path / "config.toml"
    path.write_text(content)
    assert main([str(place / "raw"), str(tmp_path / "out"), "participant", "--config-file", str(path)]) == 2
    assert words in one_error(capsys)


@pytest.mark.parametrize("inside", ["", "sub-01", "out", "derivatives"])
def test_output_in_the_raw_dataset(place, command, capsys, inside):
    before = list_files(place / "raw")
    assert command(output=place / "raw" / inside) == 2
    assert "lies in the raw dataset" in one_error(capsys)
    assert list_files(place / "raw") == before


def test_output_below_derivatives_is_fine(place, command):
    assert command("--dry-run", output=place / "raw/derivatives/mmln") == 0
    assert not (place / "raw/derivatives").exists()


def test_work_dir_in_the_raw_dataset(place, command, capsys):
    assert command("-w", str(place / "raw/work")) == 2
    assert "--work-dir" in one_error(capsys)


def test_output_of_another_program(command, tmp_path, capsys):
    describe(tmp_path / "out", "derivative")
    assert command() == 2
    assert "did not make" in one_error(capsys)


def test_no_dataset(command, tmp_path, capsys):
    assert command(bids=tmp_path / "nothing") == 2
    assert "no such folder" in one_error(capsys)
    (tmp_path / "empty").mkdir()
    assert command(bids=tmp_path / "empty") == 2
    assert "dataset_description.json is missing" in one_error(capsys)
    assert command("--skip-bids-validation", bids=tmp_path / "empty") == 2
    assert "no folder sub-*" in one_error(capsys)


def test_template_labels_off_the_grid(place, command, tmp_path, capsys):
    path = write_image(nb.Nifti1Image(np.ones((7, 8, 9), np.uint8), np.eye(4)), tmp_path / "off_dseg.nii.gz")
    assert command("--template-dseg", str(path)) == 2
    assert "expected the grid of template tiny" in one_error(capsys)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("p.toml", "plugin = [", "--use-plugin"),
        ("p.json", '{"n_procs": 2}', "expected plugin = NAME"),
        ("p.yml", "plugin: MultiProc\nother: 1", "plugin and plugin_args only"),
        ("p.txt", "plugin", "expected a file ending in"),
    ],
)
def test_wrong_plugin_file(command, tmp_path, capsys, name, content, words):
    (tmp_path / name).write_text(content)
    assert command("--use-plugin", str(tmp_path / name)) == 2
    assert words in one_error(capsys)


def test_resource_monitor_needs_psutil(command, capsys, monkeypatch):
    monkeypatch.setattr(participant, "find_spec", lambda name: None)
    assert command("--resource-monitor") == 2
    assert "pip install psutil" in one_error(capsys)


def test_verbose_shows_the_traceback(command, capsys):
    assert command("--participant-label", "99", "-v") == 2
    assert "Traceback" in capsys.readouterr().err


# --------------------------------------------------------------------------------- options that do something


def test_version_and_help(capsys):
    assert main(["--version"]) == 0
    assert __version__ in capsys.readouterr().out
    assert main(["--help"]) == 0
    assert "example:" in capsys.readouterr().out


def test_runs_as_a_module():
    command = [sys.executable, "-m", "mmln_pipeline.bids_app", "--version"]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert __version__ in result.stdout


def test_dry_run_writes_nothing(place, command, tmp_path, capsys):
    assert command("--dry-run", "-d", f"labels={place / 'labels'}") == 0
    said = capsys.readouterr().out
    assert "Would register 3 images to tiny" in said and "sub-03: skipped, no T1w image" in said
    assert str(place / "labels/sub-02/anat/sub-02_run-1_dseg.nii.gz") in said
    assert not (tmp_path / "out").exists() and not (tmp_path / "work").exists()


def test_boilerplate_only(command, tmp_path):
    assert command("--boilerplate-only") == 0
    assert "# References" in (tmp_path / "out/logs/CITATION.md").read_text()
    assert not list(tmp_path.glob("out/sub-*"))


def test_parse_memory():
    assert [parse_memory(text) for text in ("16GB", "16", "500 MB", "1.5TiB")] == [16, 16, 0.5, 1500]


def test_sloppy(place):
    config = parse_args([str(place / "raw"), "out", "participant", "--sloppy"])
    assert (config.init, config.refine, config.bias_correction) == ("rigid", 0, False)


def test_toml_round_trip(tmp_path):
    config = Config(
        Path("/raw"),
        Path("/out"),
        participant_label=("01", "02"),
        derivatives={"labels": Path("/lab els")},
        refine=5,
        mem_gb=2.5,
        template='odd "name"',
        work_dir=Path("/work"),
    )
    path = tmp_path / "config.toml"
    path.write_text(config.to_toml(), encoding="utf-8")
    assert Config(config.bids_dir, config.output_dir, **read_toml(path)) == config


def scan_config(place, *options):
    return parse_args([str(place / "raw"), "/nowhere/out", "participant", *options])


def stems(place, *options):
    return [scan.stem for scan in find_scans(scan_config(place, *options))[0]]


def test_labels_choose_scans(place):
    assert stems(place) == ["sub-01_ses-a", "sub-01_ses-b", "sub-02_run-1"]
    assert find_scans(scan_config(place))[1] == ["03"]
    assert stems(place, "--participant-label", "sub-02") == ["sub-02_run-1"]
    assert stems(place, "--session-label", "ses-b") == ["sub-01_ses-b"]
    assert stems(place, "--participant-label", "01", "--session-label", "a") == ["sub-01_ses-a"]


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        ({"t1w": {"session": None}}, ["sub-02_run-1"]),
        ({"t1w": {"session": "*"}}, ["sub-01_ses-a", "sub-01_ses-b"]),
        ({"t1w": {"session": ["b"]}}, ["sub-01_ses-b"]),
        ({"t1w": {"run": 1}}, ["sub-02_run-1"]),
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
        ('{"t1w": {"session": "zz"}}', "no T1w image with these sessions and filters"),
    ],
)
def test_wrong_filter_file(command, tmp_path, capsys, content, words):
    path = tmp_path / "filter.json"
    path.write_text(content)
    assert command("--bids-filter-file", str(path)) == 2
    assert words in one_error(capsys)


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


def test_low_mem_gives_the_network_all_memory(place):
    def memory(*options):
        config = scan_config(place, "--mem", "20", "--model", str(place / "tiny.safetensors"), *options)
        template = str(place / "tpl-tiny_T1w.nii.gz")
        config = replace(config, template=template)
        method = participant.prepare_method(config)
        workflow = participant.build_workflow(config, method, find_scans(config)[0])
        return workflow.get_node("sub_02_run_1_wf.registration_wf.registration").mem_gb

    assert memory() == participant.NETWORK_GB and memory("--low-mem") == 20


def test_options_of_a_run(command, tmp_path):
    stale = tmp_path / "work" / f"mmln_{__version__.replace('.', '_')}_wf" / "stale"
    stale.mkdir(parents=True)
    other = tmp_path / "work" / "other"
    other.mkdir()
    plugin = tmp_path / "plugin.toml"
    plugin.write_text('plugin = "Linear"\n')
    options = (
        "--participant-label",
        "02",
        "--init",
        "identity",
        "--no-bias-correction",
        "--random-seed",
        "3",
    )
    assert command(*options, "--clean-workdir", "--write-graph", "--use-plugin", str(plugin)) == 0
    assert not stale.exists() and other.exists()
    assert list((tmp_path / "work").rglob("graph*.dot"))
    record = json.loads((tmp_path / "out/sub-02/anat/sub-02_run-1_desc-registration_qc.json").read_text())
    assert record["random_seed"] == 3 and record["init"] == "identity"
    assert "bias_correction" not in record["seconds"]


# -------------------------------------------------------------------------------------- worker processes


def identify():
    """Return this process's id."""
    import os

    return os.getpid()


def die():
    """End this process as the system does when memory runs out."""
    import os
    import signal

    os.kill(os.getpid(), signal.SIGKILL)


def make_function(function, name):
    return pe.Node(Function(function=function, output_names=["out"]), name=name)


def run_functions(tmp_path, nodes, nprocs=2):
    workflow = pe.Workflow(name="functions_wf", base_dir=str(tmp_path / "work"))
    workflow.add_nodes(nodes)
    config = Config(tmp_path / "raw", tmp_path / "out", nprocs=nprocs, work_dir=tmp_path / "work")
    return workflow, run_workflow(workflow, config, [])


def test_several_processes(tmp_path, monkeypatch):
    made = []

    class Recorded(execution.WorkerPool):
        def _collect(self, taskid, future):
            super()._collect(taskid, future)
            made.append(self._taskresult[taskid]["result"].outputs.out)

    monkeypatch.setattr(execution, "WorkerPool", Recorded)
    _, failures = run_functions(tmp_path, [make_function(identify, name) for name in ("one", "two", "three")])
    assert failures == {} and len(made) == 3 and os.getpid() not in made


def test_one_processor_stays_in_this_process(tmp_path):
    config = Config(tmp_path, tmp_path / "out", nprocs=1)
    assert isinstance(execution._make_runner(config, {}), execution.LinearPlugin)


def test_killed_worker_is_a_failure(tmp_path):
    node = make_function(die, "dying")
    other = make_function(identify, "other")
    _, failures = run_functions(tmp_path, [node, other])
    crash = "\n".join(path.read_text() for path in (tmp_path / "out/logs/crash").glob("*.txt"))
    assert "dying" in crash and "BrokenProcessPool" in crash
    assert failures == {}  # no scan was part of it


def test_failures_are_told_by_scan(tmp_path):
    text = "Node: mmln_wf.sub_02_wf.preproc_wf.bias\n\nTraceback\n\tValueError: T1w x.nii: empty\n"
    first, second = tmp_path / "crash-1.txt", tmp_path / "crash-2.txt"
    first.write_text(text)
    second.write_text("Node: mmln_wf.load_template\n\nBrokenProcessPool: a process died\n")
    found = execution._read_failures([first], ["sub_01_wf", "sub_02_wf"])
    assert {name: failure.cause for name, failure in found.items()} == {"sub_02_wf": "T1w x.nii: empty"}
    found = execution._read_failures([second], ["sub_01_wf", "sub_02_wf"])
    assert set(found) == {"sub_01_wf", "sub_02_wf"} and "killed" in found["sub_01_wf"].cause


def test_nipype_never_calls_home(tmp_path):
    code = "import mmln_pipeline.bids_app.participant, os; assert os.environ['NIPYPE_NO_ET']"
    subprocess.run([sys.executable, "-c", code], check=True)
    execution.configure_nipype(Config(tmp_path, tmp_path / "out"))
    assert logging.getLogger("nipype.workflow").level == logging.CRITICAL
