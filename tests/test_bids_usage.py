"""Wrong usage and settings of the BIDS App: one line, exit code 2, and nothing written; settings as TOML."""

import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path

import nibabel as nb
import numpy as np
import pytest
from tiny_bids import describe, list_files, one_error, settings, write_image

from mmln_pipeline.bids_app.arguments import parse_args
from mmln_pipeline.bids_app.invocation import SECTIONS, Config, parse_memory, read_toml
from mmln_pipeline.bids_app.run import main
from mmln_pipeline.bids_app.work_folder import temporary_files
from mmln_pipeline.machine.environment import prepare_environment
from mmln_pipeline.machine.files import why_no_folder
from mmln_pipeline.machine.options import find_option
from mmln_pipeline.registration.settings import MAX_SEED

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
        (["--skull-strip", "synthstrip"], "--skull-strip synthstrip: expected FreeSurfer's mri_synthstrip on the PATH"),
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
        (["--config-file", ""], "--config-file: expected a path, found ''"),
        (["--template-mask", ""], "--template-mask: expected a path, found ''"),
        (["-d", "labels="], "expected a folder, found ''"),
        (["--dataset-uri", "raw=/data"], "--dataset-uri: expected NAME=URI, such as raw=https://doi.org/..., found"),
        (["--dataset-uri", "x=file:///data"], "dataset_uri: expected the name of a dataset (raw), found 'x'"),
        (["--dataset-uri", "raw=file:///a", "raw=file:///b"], "--dataset-uri raw: given twice, as file:///a and"),
        (["--use-plugin", "/no/plugin.toml"], "--use-plugin /no/plugin.toml: no such file"),
        (["--no-such-option"], "--no-such-option"),
    ],
)
def test_wrong_usage(command, tmp_path, capsys, monkeypatch, options, words):
    monkeypatch.setenv("PATH", str(tmp_path))  # a FreeSurfer of this machine must not mend anything
    assert command(*options) == 2
    line = one_error(capsys)
    assert line.startswith("mmln-bids: error:") and words in line
    assert not (tmp_path / "out").exists() and not (tmp_path / "work").exists()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("no = [toml", "not valid TOML"),
        ("[who]\nx = 1", "unknown section [who]"),
        (
            "[what]\nderivatives = {raw = '/'}",
            "derivatives: expected names of letters, digits, _ and -, not raw; found 'raw'",
        ),
        ("[what]\nderivatives = {'a/b' = '/'}", "found 'a/b'"),
        ("how = 3", "how: expected a section, [how], found 3"),
        ("[how]\nmodle = 'mmln'", "[how]: unknown key 'modle'; known are bias_correction,"),
        ("[how]\nbias_correction = 'no'", "expected true or false"),
        ("[how]\nskull_strip = 'bet'", "skull_strip: expected auto, skip, synthstrip or atlas, found 'bet'"),
        ("[machine]\nnprocs = -2", "nprocs: expected a whole number from 1, found -2"),
        ("[machine]\nnprocs = true", "config.toml: [machine].nprocs: expected a whole number, found True"),
        ("[machine]\nmem_gb = true", "[machine].mem_gb: expected a number, found True"),
        ("[machine]\nmem_gb = nan", "config.toml: [machine].mem_gb: expected a number above 0, found nan"),
        ("[machine]\nmem_gb = inf", "mem_gb: expected a number above 0, found inf"),
        ("[machine]\nmem_gb = 0", "mem_gb: expected a number above 0, found 0"),
        ("[how]\nrefine = true", "[how].refine: expected text or a whole number, found True"),
        ("[how]\ntemplate_mask = ''", "[how].template_mask: expected a path, found ''"),
        ("[what]\nparticipant_label = '01'", "[what].participant_label: expected a list of text, found '01'"),
        ("[what]\nparticipant_label = [1]", "[what].participant_label: expected a list of text, found [1]"),
        ("[what]\nderivatives = {a = 3}", "[what].derivatives: expected a table of paths, found {'a': 3}"),
    ],
)
def test_wrong_config_file(place, tmp_path, capsys, content, words):
    path = tmp_path / "config.toml"
    path.write_text(content)
    assert main([str(place / "raw"), str(tmp_path / "out"), "participant", "--config-file", str(path)]) == 2
    assert words in one_error(capsys)


@pytest.mark.parametrize(
    ("option", "name", "content", "words"),
    [
        ("--use-plugin", "p.toml", b'plugin = "\xe9"', "p.toml: 'utf-8' codec"),
        ("--config-file", "c.toml", b'[how]\nmodel = "\xe9"', "c.toml: not valid TOML"),
        ("--bids-filter-file", "f.json", b'{"t1w": {"return_type": "file"}}', '"return_type": expected an entity'),
    ],
)
def test_odd_settings_files_end_in_a_line(command, tmp_path, capsys, option, name, content, words):
    (tmp_path / name).write_bytes(content)
    assert command(option, str(tmp_path / name), "--dry-run") == 2
    assert words in one_error(capsys)


def test_an_account_without_a_home(monkeypatch, tmp_path):
    def no_home():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", no_home)
    monkeypatch.setenv("HOME", "")
    prepare_environment()
    assert os.environ["HOME"] == tempfile.gettempdir()


@pytest.mark.parametrize(("before", "after"), [(None, "PASSIVE"), ("ACTIVE", "ACTIVE")])
def test_idle_threads_sleep_unless_the_user_wants_otherwise(monkeypatch, before, after):
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    if before:
        monkeypatch.setenv("OMP_WAIT_POLICY", before)
    prepare_environment()
    assert os.environ["OMP_WAIT_POLICY"] == after


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


BELOW_A_FILE = "cannot be made: {root}/file is a file"
NO_FOLDERS = {
    "file": "expected a folder, found a file",
    "file/out": BELOW_A_FILE,
    "file/a/b": BELOW_A_FILE,
    "/proc/out/a": "/proc cannot be written to (",
    "a" * 300: "cannot be used (File name too long)",
    "a/" * 2500: "cannot be used (File name too long)",
}
"""What no folder can be made of, and why, with the folder that the tests begin in as `root`."""


@pytest.mark.parametrize("path", NO_FOLDERS)
@pytest.mark.parametrize("name", ["OUTPUT_DIR", "--work-dir"])
def test_folders_that_cannot_be_made(place, tmp_path, capsys, path, name):
    (tmp_path / "file").touch()
    before = list_files(tmp_path)
    folders = {"OUTPUT_DIR": tmp_path / "out", "--work-dir": tmp_path / "work", name: tmp_path / path}
    out, work = map(str, folders.values())
    assert main([str(place / "raw"), out, "participant", "-w", work, *map(str, settings(place))]) == 2
    said = one_error(capsys)
    assert f"error: {name} {tmp_path / path}" in said and NO_FOLDERS[path].format(root=tmp_path) in said
    assert list_files(tmp_path) == before and "Traceback" not in said


@pytest.mark.parametrize(
    "options", [["group"], ["participant", "--list-unfinished"], ["participant", "--reports-only"]]
)
def test_no_work_directory_is_asked_for_where_none_is_used(place, finished, tmp_path, monkeypatch, options):
    (tmp_path / "work").touch()
    monkeypatch.chdir(tmp_path)
    out = tmp_path / "out"
    shutil.copytree(finished[0], out)
    own = settings(place)[:2] if options == ["group"] else settings(place)
    assert main([str(place / "raw"), str(out), *options, *map(str, own)]) == 0


def test_folders_that_lead_in_circles(place, tmp_path, capsys):
    (tmp_path / "circle").symlink_to("circle")
    (tmp_path / "gone").symlink_to("nowhere")
    assert why_no_folder(tmp_path / "gone") == "expected a folder, found a dangling link"
    for options in (
        (place / "raw", tmp_path / "circle"),
        (tmp_path / "circle", tmp_path),
        ("a" * 300, tmp_path),
        ("~aaa/x", tmp_path),
    ):
        assert main([*map(str, options), "participant"]) == 2
        said = one_error(capsys)
        assert "circle" in said or "aaa" in said


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
        ("p.json", "[" * 100_000, "p.json: maximum recursion depth"),
        ("p.toml", 'plugin = "Multi"', "plugin: expected one of Condor"),
        ("p.toml", 'plugin = "SGE"\nplugin_args = 3', "plugin_args: expected arguments by their names, found 3"),
        ("p.yml", "plugin: MultiProc\nplugin_args: {n_procs: two}", "plugin_args.n_procs: expected a whole number"),
        ("p.yml", "plugin: MultiProc\nplugin_args: {n_procs: 0}", "n_procs: expected a whole number from 1, found 0"),
        ("p.yml", "plugin: MultiProc\nplugin_args: {nprocs: 2}", "plugin_args: unknown key 'nprocs'; known are"),
    ],
)
def test_wrong_plugin_file(command, tmp_path, capsys, name, content, words):
    (tmp_path / name).write_text(content)
    assert command("--use-plugin", str(tmp_path / name)) == 2
    assert words in one_error(capsys)


def test_verbose_shows_the_traceback(command, capsys):
    assert command("--participant-label", "99", "-v") == 2
    assert "Traceback" in capsys.readouterr().err


# --------------------------------------------------------------------------------------------- settings


def test_parse_memory():
    assert [parse_memory(text) for text in ("16GB", "16", "500 MB", "1.5TiB")] == [16, 16, 0.5, 1500]


def test_sloppy(place):
    config = parse_args([str(place / "raw"), "out", "participant", "--sloppy"])
    assert (config.init, config.refine, config.bias_correction) == ("rigid", 0, False)


@pytest.mark.parametrize(
    ("options", "name", "value"),
    [
        (["--participant-label", "sub-01", "02", "01"], "participant_label", ("01", "02")),
        (["--session-label", "ses-a"], "session_label", ("a",)),
        (["--subject-anatomical-reference", "unbiased"], "subject_anatomical_reference", "unbiased"),
        (["--bids-database-dir", "/db"], "bids_database_dir", Path("/db")),
        (["--skip-bids-validation"], "skip_bids_validation", True),
        (["--template", "NAME"], "template", "NAME"),
        (["--template-dseg", "/labels.nii.gz"], "template_dseg", Path("/labels.nii.gz")),
        (["--skull-strip", "skip"], "skull_strip", "skip"),
        (["--no-bias-correction"], "bias_correction", False),
        (["--init", "rigid"], "init", "rigid"),
        (["--model", "NAME"], "model", "NAME"),
        (["--refine", "7"], "refine", 7),
        (["--topology", "off"], "topology", "off"),
        (["--lesion-mask", "skip"], "lesion_mask", "skip"),
        (["--lesion-mask"], "lesion_mask", "auto"),
        (["--random-seed", "3"], "random_seed", 3),
        (["--nprocs", "3"], "nprocs", 3),
        (["--nprocs", "8", "--omp-nthreads", "2"], "omp_nthreads", 2),
        (["--nprocs", "16"], "omp_nthreads", 8),
        (["--mem", "500 MB"], "mem_gb", 0.5),
        (["--mem_mb", "500"], "mem_gb", 0.5),
        (["--mem-mb=500"], "mem_gb", 0.5),
        (["--participant_label", "01"], "participant_label", ("01",)),
        (["--skip_bids_validator"], "skip_bids_validation", True),
        (["--n_cpus", "3"], "nprocs", 3),
        (["--nthreads=3"], "nprocs", 3),
        (["--list-unfinished"], "list_unfinished", True),
        (["--device", "cuda:1"], "device", "cuda:1"),
        (["--use-plugin", "/p.toml"], "use_plugin", Path("/p.toml")),
        (["--low-mem"], "low_mem", True),
        (["--work-dir", "/scratch"], "work_dir", Path("/scratch")),
        (["--clean-workdir"], "clean_workdir", True),
        (["--dry-run"], "dry_run", True),
        (["--reports-only"], "reports_only", True),
        (["--boilerplate-only"], "boilerplate_only", True),
        (["--write-graph"], "write_graph", True),
        (["--stop-on-first-crash"], "stop_on_first_crash", True),
        (["--resource-monitor"], "resource_monitor", True),
        (["--bids-filter-file", "/f.json"], "bids_filter_file", Path("/f.json")),
        (["-vv"], "verbose", 2),
        (["--dataset-uri", "raw=file:///project/raw"], "dataset_uri", {"raw": "file:///project/raw"}),
    ],
)
def test_options_become_settings(options, name, value):
    assert getattr(parse_args(["/raw", "/out", "participant", *options]), name) == value


@pytest.mark.parametrize(
    ("typed", "meant"), [("--partcipant-label", "--participant-label"), ("--omp-threads=2", "--omp-nthreads")]
)
def test_the_option_that_was_meant_is_named(capsys, typed, meant):
    assert main(["/raw", "/out", "participant", typed]) == 2
    assert f"unknown option {typed.split('=')[0]}; did you mean {meant}? (see" in one_error(capsys)


@pytest.mark.parametrize(
    ("options", "advice"),
    [
        (["--mem", "8GB", "--mem_mb", "9000"], "it takes one value"),
        (["--refine", "5", "--nprocs", "2", "--refine=6"], "it takes one value"),
        (["--participant-label", "01", "--participant_label", "02"], "give all its values at once"),
    ],
)
def test_an_option_given_twice_is_refused(capsys, options, advice):
    assert main(["/raw", "/out", "participant", *options]) == 2
    assert f"{options[0]}: given twice; {advice} (see" in one_error(capsys)


def test_a_misspelt_level_is_answered_with_the_one_that_is_meant(capsys):
    assert main(["raw", "out", "particpant"]) == 2
    assert "; did you mean participant? (see" in one_error(capsys)


def test_datasets_add_up(tmp_path):
    for name in ("one", "two", "three"):
        (tmp_path / name).mkdir()
    options = ["--derivatives", f"a={tmp_path / 'one'}", f"b={tmp_path / 'two'}", "-d", str(tmp_path / "three")]
    found = parse_args(["/raw", "/out", "participant", *options]).derivatives
    assert found == {"a": tmp_path / "one", "b": tmp_path / "two", "three": tmp_path / "three"}


def test_largest_seed(capsys):
    assert parse_args(["/raw", "/out", "participant", "--random-seed", str(MAX_SEED)]).random_seed == MAX_SEED
    assert main(["/raw", "/out", "participant", "--random-seed", str(MAX_SEED + 1)]) == 2
    assert "expected a whole number from 0" in one_error(capsys)


ONE_RUN = {
    "list_unfinished",
    *("bids_dir", "output_dir", "analysis_level", "clean_workdir", "dry_run", "reports_only", "boilerplate_only"),
    "verbose",
}
"""Settings that no file keeps: they belong to one run."""


def other_value(item):
    """A value that the setting does not have by itself."""
    special = {"refine": 5, "write_formats": ("fsl", "x5")}
    if item.name in special:
        return special[item.name]
    if find_option(Config, item.name).has_only_words:
        return find_option(Config, item.name).words[-1]
    known = {
        bool: True,
        int: 7,
        float: 2.5,
        str: 'odd "name" \u00e9',
        Path: Path("/a path"),
        Path | None: Path("/a path"),
        tuple[str, ...]: ("01", "02"),
        Mapping[str, Path]: {"labels": Path("/lab els"), "masks": Path("/m")},
        Mapping[str, str]: {"raw": "https://example.org/raw"},
    }
    value = known[item.type]
    return not item.default if item.type is bool else value


def test_toml_keeps_every_setting(tmp_path):
    """What a run writes, --config-file reads back."""
    items = [item for item in fields(Config) if item.name not in ONE_RUN]
    assert {item.name for item in items} == {name for names in SECTIONS.values() for name in names}
    config = Config(Path("/raw"), Path("/out"), **{item.name: other_value(item) for item in items})
    path = tmp_path / "config.toml"
    path.write_text(config.to_toml(), encoding="utf-8")
    assert Config(config.bids_dir, config.output_dir, **read_toml(path)) == config
    plain = replace(config, sloppy=False)  # which would change other settings
    path.write_text(plain.to_toml(), encoding="utf-8")
    assert parse_args(["/raw", "/out", "participant", "--config-file", str(path)]) == plain


# ------------------------------------------------------------------------------- temporary files


def test_temporary_files_lie_in_the_work_directory(tmp_path, monkeypatch):
    monkeypatch.delenv("TMPDIR", raising=False)
    monkeypatch.delenv("MPLCONFIGDIR", raising=False)
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) == tmp_path)  # a home that is read-only
    before = tempfile.gettempdir()
    with temporary_files(tmp_path):
        scratch = Path(tempfile.gettempdir())
        assert scratch.parent == tmp_path and "-" not in scratch.name
        assert os.environ["TMPDIR"] == os.environ["MPLCONFIGDIR"] == str(scratch)
    assert tempfile.gettempdir() == before and not scratch.exists()
    assert not {"TMPDIR", "MPLCONFIGDIR"} & set(os.environ)


def test_temporary_files_stay_where_the_user_wants_them(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", "/elsewhere")
    with temporary_files(tmp_path):
        assert os.environ["TMPDIR"] == "/elsewhere" and not list(tmp_path.iterdir())
