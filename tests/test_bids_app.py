"""The BIDS App on a tiny dataset: files, sidecars, resuming, failures, and options that change a run."""

import json
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
from tiny_bids import (
    SHAPE,
    committed_files,
    describe,
    list_results,
    make_brain,
    scan_config,
    snapshot,
    write_image,
)

from mmln_pipeline import __version__
from mmln_pipeline.bids_app import participant_level
from mmln_pipeline.bids_app.arguments import parse_args
from mmln_pipeline.bids_app.layout import find_scans
from mmln_pipeline.bids_app.naming import read_taken
from mmln_pipeline.bids_app.run import main
from mmln_pipeline.interfaces import LoadTemplate

VALIDATOR = shutil.which("bids-validator-deno") or shutil.which(
    "bids-validator-deno", path=str(Path(sys.executable).parent)
)


# ---------------------------------------------------------------------------------------------- a whole run


def test_run_writes_every_file(finished):
    out, _, code = finished
    assert code == 0
    assert list_results(out) == committed_files("participant")


def test_sources_exist(finished, place):
    out, _, _ = finished
    roots = {"": out, "raw": place / "raw", "labels": place / "labels"}
    description = json.loads((out / "dataset_description.json").read_text())
    assert description["DatasetType"] == "derivative"
    assert description["DatasetLinks"] == {name: root.as_uri() for name, root in roots.items() if name}
    assert description["GeneratedBy"][0]["Version"] == __version__
    sidecars = [path for path in out.rglob("sub-*.json") if "_qc" not in path.name]
    assert len(sidecars) == 3 * 8 + 1
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


def test_an_input_replaced_at_equal_size_and_date_is_registered_anew(place, command, tmp_path):
    raw = shutil.copytree(place / "raw", tmp_path / "raw")
    path = raw / "sub-02/anat/sub-02_run-1_T1w.nii.gz"
    image, stat = nb.load(path), path.stat()
    data = image.get_fdata(dtype=np.float32)
    options = ["--participant-label", "02", "--sloppy"]
    seen = []
    for content in (data, np.roll(data, 1, axis=0)):
        nb.save(nb.Nifti1Image(content, image.affine), tmp_path / "new.nii")
        path.with_suffix("").write_bytes((tmp_path / "new.nii").read_bytes())
        path.unlink(missing_ok=True)
        os.utime(path.with_suffix(""), ns=(stat.st_atime_ns, stat.st_mtime_ns))
        assert command(*options, bids=raw) == 0
        record = json.loads((tmp_path / "out/sub-02/anat/sub-02_run-1_desc-registration_qc.json").read_text())
        seen.append(record["input_sha256"]["T1w image of sub-02_run-1_T1w.nii"])
    assert seen[0] != seen[1]


def test_scans_in_chunks_give_what_one_graph_gives(finished, tmp_path, monkeypatch, capsys):
    out, arguments, _ = finished
    monkeypatch.setattr(participant_level, "chunk_size", lambda *_: 1)
    before = snapshot(out)
    assert main(arguments) == 0 and snapshot(out) == before  # one graph's work is taken up
    loads, load = [], LoadTemplate._run_interface
    monkeypatch.setattr(LoadTemplate, "_run_interface", lambda self, *given: loads.append(self) or load(self, *given))
    others = {str(out): str(tmp_path / "out"), str(out.parent / "work"): str(tmp_path / "work")}
    capsys.readouterr()
    assert main([others.get(part, part) for part in arguments]) == 0
    assert len(loads) == 1  # what all scans share
    last = [line for line in capsys.readouterr().out.splitlines() if line.startswith("mmln-bids: ")][-1]
    done, total = last.split()[1].split("/")
    assert 0 < int(done) <= int(total)  # files that are put in their place last have no line
    names = list_results(out)
    assert names == list_results(tmp_path / "out")
    timed = ("_qc.json", "_qc.tsv", ".html", ".toml")  # the last one names the folders
    for name in (name for name in names if not name.endswith(timed)):
        assert (out / name).read_bytes() == (tmp_path / "out" / name).read_bytes(), name


def test_one_scan_of_each_kind_tells_text_and_steps_of_all(place):
    labelled = ["--template-dseg", str(place / "tpl-tiny_seg-core_dseg.nii.gz"), "-d", f"labels={place / 'labels'}"]
    tiny = ["--template", str(place / "tpl-tiny_T1w.nii.gz"), "--model", str(place / "tiny.safetensors")]
    config = scan_config(place, *tiny, *labelled)
    method, scans = participant_level.prepare_method(config), find_scans(config).scans
    scans = [replace(scan, t1w=Path(f"{scan.stem}{number}_T1w.nii.gz")) for number in "12" for scan in scans]
    scans[-1] = replace(scans[-1], along=(place / "raw/sub-03/anat/sub-03_T2w.nii.gz",))
    examples, n_steps = participant_level.build_examples(config, method, [scans])
    whole = participant_level.build_workflow(config, method, scans)
    assert len(examples.list_node_names()) < len(whole.list_node_names())
    assert n_steps == participant_level.count_steps(whole)
    assert participant_level.write_boilerplate(examples) == participant_level.write_boilerplate(whole)


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


def test_sources_are_named_where_they_really_are(finished, tmp_path, monkeypatch):
    raw = shutil.copytree(finished[1][0], tmp_path / "raw")
    path = raw / "dataset_description.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"BIDSVersion": "1.0.2", "DatasetDOI": "doi:10.1/x"}))
    monkeypatch.setenv("APPTAINER_CONTAINER", "/project/mmln.sif")
    monkeypatch.setenv("MMLN_IMAGE", "mmln:7")
    options = ["--boilerplate-only", "--dataset-uri", "raw=https://example.org/ds1"]
    assert main([str(raw), str(tmp_path / "out"), *finished[1][2:], *options]) == 0
    said = json.loads((tmp_path / "out/dataset_description.json").read_text())
    labels = Path(finished[1][-1].removeprefix("labels=")).as_uri()
    assert said["DatasetLinks"] == {"raw": "https://example.org/ds1", "labels": labels}
    assert said["SourceDatasets"] == [{"URL": "https://example.org/ds1", "DOI": "doi:10.1/x"}, {"URL": labels}]
    assert said["BIDSVersion"] == "1.11.0"  # that of the outputs, not of the input
    container = {"Type": "apptainer", "Tag": "mmln:7", "URI": "file:///project/mmln.sif"}
    assert said["GeneratedBy"][0]["Container"] == container


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
    lines = [line for line in said.err.splitlines() if "FAILED" in line]
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


def test_failing_report_is_told(finished, monkeypatch, capsys):
    _, arguments, _ = finished

    def fail(*arguments):
        raise OSError("disk is full")

    monkeypatch.setattr(participant_level, "write_report", fail)
    assert main([*arguments, "--reports-only", "--participant-label", "02"]) == 1
    assert "sub-02.html: FAILED: OSError: disk is full" in capsys.readouterr().err


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
    assert "@article{mmln," in (tmp_path / "out/logs/CITATION.bib").read_text()
    assert not list(tmp_path.glob("out/sub-*"))


def test_low_mem_gives_the_network_all_memory(place):
    def memory(*options):
        config = scan_config(place, "--mem", "20", "--model", str(place / "tiny.safetensors"), *options)
        template = str(place / "tpl-tiny_T1w.nii.gz")
        config = replace(config, template=template)
        method = participant_level.prepare_method(config)
        workflow = participant_level.build_workflow(config, method, find_scans(config)[0])
        return workflow.get_node("sub_02_run_1_wf.to_tiny_wf.registration_wf.registration").mem_gb

    assert memory() == participant_level.NETWORK_GB and memory("--low-mem") == 20


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


# ---------------------------------------------------------------------------- jobs that share an output directory


def test_a_job_reads_its_own_subjects_only(finished, tmp_path, monkeypatch, capsys):
    """Starting and finishing costs the same, however many subjects are finished."""
    out = shutil.copytree(finished[0], tmp_path / "out")
    arguments = [str(out) if part == str(finished[0]) else part for part in finished[1]]
    opened, read_text = [], Path.read_text
    monkeypatch.setattr(Path, "read_text", lambda self, *a, **k: (opened.append(self), read_text(self, *a, **k))[1])
    assert main([*arguments, "--participant-label", "02", "--reports-only"]) == 0
    assert "1 of 1 images done" in capsys.readouterr().out
    assert any(path.is_relative_to(out / "sub-02") for path in opened)
    assert not any(path.is_relative_to(out / "sub-01") for path in opened)


def test_what_an_older_version_left_is_read(finished, tmp_path):
    """Before there was a note of templates, the names had to be read from all results."""
    out = shutil.copytree(finished[0], tmp_path / "out")
    before = read_taken(out)
    (out / "logs/templates.json").unlink()
    assert read_taken(out) == before and before["tiny"].plain and before["tiny"].atlas == "core"


def test_runs_keep_their_own_settings(finished):
    out, arguments, _ = finished
    config = parse_args(arguments)
    assert (out / f"logs/runs/{config.run_name}.toml").read_text() == config.to_toml()
    assert (out / f"logs/runs/{config.run_name}.md").read_text() == (out / "logs/CITATION.md").read_text()
    assert parse_args([*arguments, "--participant-label", "01"]).run_name != config.run_name


def test_unfinished_subjects_are_listed(finished, tmp_path, capsys):
    out = shutil.copytree(finished[0], tmp_path / "out")
    arguments = [str(out) if part == str(finished[0]) else part for part in finished[1]]
    assert main([*arguments, "--list-unfinished"]) == 0
    assert capsys.readouterr().out == ""
    next((out / "sub-01/ses-b/anat").glob("*_xfm.h5")).unlink()
    assert main([*arguments, "--list-unfinished"]) == 0
    assert capsys.readouterr().out == "01\n"
