"""The study: configuration errors, leakage, a whole run of every row, resuming, tables and figures byte for byte."""

from __future__ import annotations

import itertools
import json
import shutil
import tempfile
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import tomli_w

from mmln_pipeline import cli
from mmln_pipeline.atlas.labels import structures28
from mmln_pipeline.bids_app.work_folder import sole_use
from mmln_pipeline.machine.toml import read_toml
from mmln_pipeline.network.architecture import NetworkConfig
from mmln_pipeline.network.model import MMLN
from mmln_pipeline.space.grids import GRID_SHAPE
from mmln_pipeline.study import compare, protocol
from mmln_pipeline.study.configuration import load_study
from mmln_pipeline.study.methods.initial import Initial
from mmln_pipeline.study.people import draw_pairs, find_scans
from mmln_pipeline.study.results import costs, read_results
from mmln_pipeline.study.significance import holm
from mmln_pipeline.training import pack
from mmln_pipeline.training.datasets import Source
from mmln_pipeline.weights import save_model

CONFIGS = Path(__file__).parents[1] / "configs"
NARROW = {"lapirn": {"channels": 4}, "cir-dm": {"channels": 4}, "voxelmorph": {"channels": 8}}
"""Options that make a network cheap."""
TRAINING = {"volumes": ["elsewhere_sub-01"], "steps": {"1": 1}, "hours": {"1": 0.1}}
"""Of the tiny weights' card."""
SMALL = tuple(n // 4 for n in GRID_SHAPE)
CONFIG = """
name = "tiny"
reference = "Ours"
atlases = 1
pairs = 2
halvings = 2
{more}
[[rows]]
name = "Initial"
method = "{method}"
[[rows]]
name = "Ours"
method = "initial"
tables = [1, 2, 3, 4]
[[sets]]
name = "brains"
path = "brains"
labels = "{labels}"
split = "test"
{tables}
"""


def make_scan(number):
    """Return a brain of 4 mm voxels, axes L I A, and its labels: balls that lie a little elsewhere in each brain."""
    rng = np.random.default_rng(number)
    place = np.stack(np.meshgrid(*(np.linspace(-1.3, 1.3, n) for n in SMALL), indexing="ij"))
    place = place + 0.08 * rng.standard_normal((3, 1, 1, 1)) * np.cos(2 * place[::-1])
    brain = (place**2).sum(0) < 1
    texture = 0.6 + 0.2 * np.sin(5 * place[0]) * np.cos(4 * place[1]) + 0.1 * np.sin(6 * place[2])
    labels = np.zeros(SMALL, np.int16)
    for numbers in structures28().values():
        centre = np.random.default_rng(numbers[0]).uniform(-0.55, 0.55, (3, 1, 1, 1))
        labels[((place - centre) ** 2).sum(0) < 0.03] = numbers[0]
    return np.where(brain, texture, 0).astype(np.float32), np.where(brain, labels, 0)


def prepare(folder, source):
    """Write a scan as the packer leaves it, on its full grid, without the minute that this takes."""
    folder.mkdir(exist_ok=True)
    arrays = {"image": np.round(255 * nib.load(source.image).get_fdata()).astype(np.uint8)}
    arrays["labels"] = np.asarray(nib.load(source.labels).dataobj)
    arrays = {name: array.repeat(4, 0).repeat(4, 1).repeat(4, 2) for name, array in arrays.items()}
    mark = pack._fingerprint(source, "MNI152NLin2009aSym")
    np.savez_compressed(folder / f"{source.name}.npz", fingerprint=np.array(mark), **arrays)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A dataset of five people, one of them scanned twice, and its scans prepared for test and training."""
    root = tmp_path_factory.mktemp("study")
    rows = ["participant_id\tsession_id\tsplit"]
    scans = [("01", "1"), ("02", "1"), ("02", "2"), ("03", "1"), ("04", "1"), ("05", "1")]
    index = {"train": [], "validation": []}
    for number, (person, session) in enumerate(scans):
        stem = f"sub-{person}/ses-{session}/anat/sub-{person}_ses-{session}"
        paths = root / f"brains/{stem}_T1w.nii.gz", root / f"brains/derivatives/seg/{stem}_dseg.nii.gz"
        for array, path in zip(make_scan(number), paths, strict=True):
            path.parent.mkdir(parents=True)
            nib.save(nib.Nifti1Image(array, np.diag([-4.0, 4.0, 4.0, 1])), path)
        split = "train" if person in ("04", "05") else "test"
        rows.append(f"sub-{person}\tses-{session}\t{split}")
        source = Source(f"brains_sub-{person}_ses-{session}", f"brains_sub-{person}", *paths)
        prepare(root / ("pack" if split == "train" else "study-scans"), source)
        if split == "train":
            index["train"].append({"name": source.name, "person": source.person})
    (root / "brains/split.tsv").write_text("\n".join(rows) + "\n")
    (root / "pack/pack.json").write_text(json.dumps(index))
    return root


def write_config(place, name="study.toml", method="initial", labels="derivatives/seg", more="", tables=""):
    path = place / name
    path.write_text(CONFIG.format(method=method, labels=labels, more=more, tables=tables))
    return path


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"method": "elastix"}, ["unknown method 'elastix'", "Initial"]),
        ({"more": "atlas = 2"}, ["unknown key 'atlas'"]),
        ({"labels": ""}, ["labels", "brains"]),
        ({"labels": "derivatives/other"}, ["no *_dseg.nii.gz", "sub-01_ses-1_T1w"]),
        ({"tables": '[[data.train]]\npath = "brains"'}, ["brains_sub-01", "one split"]),
        ({"tables": '[[data.train]]\npath = "copies"'}, ["brains_sub-01", "data.train"]),
        ({"tables": '[figures]\nflow = ["Theirs"]'}, ["figures.flow", "'Theirs'"]),
        ({"tables": 'label_table = "structures28:freesurfer"'}, ["dseg.nii.gz", "structures28"]),
        ({"tables": '[[rows]]\nname = "ours"\nmethod = "initial"'}, ["different names", "'Ours'"]),
        ({"more": "atlases = 9"}, ["not valid TOML"]),
        ({"tables": "cortex = true"}, ["cortex"]),
    ],
)
def test_what_is_wrong_is_one_line_before_any_work(place, capsys, changes, named):
    if "copies" in str(changes):  # another dataset, the same brains
        shutil.copytree(place / "brains", place / "copies", dirs_exist_ok=True)
    config = write_config(place, "wrong.toml", **changes)
    assert cli.main(["compare", str(config), "--output-dir", str(place / "wrong")]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert all(part in lines[0] for part in named), lines[0]
    assert not (place / "wrong").exists()


@pytest.mark.parametrize(("folder", "way"), [("/tmp", "forkserver"), ("/scratch" * 9, "spawn")])
def test_processes_start_wherever_temporary_files_are(monkeypatch, folder, way):
    """Python 3.11 names the fork server's socket after that folder, and systems take some 100 characters."""
    monkeypatch.setattr(tempfile, "tempdir", folder)
    assert protocol._fresh_processes().get_start_method() == way


def test_two_runs_of_a_study_at_once_are_refused(place, capsys):
    config, output = write_config(place), place / "taken"
    with sole_use(output):
        assert cli.main(["compare", str(config), "--output-dir", str(output)]) == 2
    assert f"output_dir {output}: another run is at work there" in capsys.readouterr().err
    assert not (output / "work").exists()


def test_weights_that_saw_a_test_person_are_refused(place, monkeypatch):
    study = write_config(place)
    monkeypatch.setattr("mmln_pipeline.study.people.learned_from", lambda *_: ["brains_sub-02_ses-1"])
    with pytest.raises(ValueError, match=r"'Initial' .* brains_sub-02"):
        compare.check_study(study)


def test_pairs_are_of_two_people_and_the_same_in_every_run(place):
    study = load_study(write_config(place))
    scans = find_scans(study, place)["brains"]
    assert len(scans) == 4
    pairs = draw_pairs(study, study.sets[0], scans)
    assert pairs == draw_pairs(study, study.sets[0], scans)
    assert len({pair.fixed for pair in pairs}) == 1
    assert all(pair.fixed[:13] != pair.moving[:13] for pair in pairs)


def test_a_step_down_of_p_values():
    assert holm([0.01, float("nan"), 0.04, 0.03])[::2] == pytest.approx([0.03, 0.06])
    assert holm([0.9, 0.8]) == [1.0, 1.0]


@pytest.fixture(scope="module")
def finished(place):
    """A run of the rows of the smoke test, on tiny brains, with narrow networks and tiny bundled weights."""
    content = read_toml(CONFIGS / "study-smoke.toml")
    model = place / "tiny.safetensors"
    save_model(MMLN(NetworkConfig(channels=2, slices=(), grid=SMALL)), model, {"name": "tiny", "training": TRAINING})
    paper = read_toml(CONFIGS / "paper.toml")
    paper["network"]["channels"] = 4
    (place / "paper.toml").write_text(tomli_w.dumps(paper))
    for row in content["rows"]:
        options = row.setdefault("options", {})
        options |= {"model": str(model)} if "model" in options else {}
        options |= NARROW.get(row["method"], {})
    test_set, data = content["sets"][0], content["data"]
    test_set |= {"path": "brains", "labels": "derivatives/seg", "cortex": False}
    data["train"][0] |= {"path": "brains", "labels": "derivatives/seg"}
    for part in (test_set, data["train"][0]):
        del part["split_table"]
    content |= {"prepared": "study-scans", "output_dir": "smoke", "budget": {"steps": 3}}
    data["pack"] = "pack"
    config = place / "smoke.toml"
    config.write_text(tomli_w.dumps(content))
    outcome = compare.run_study(config, nprocs=2)
    assert not outcome.failed
    return config, outcome


def test_a_run_leaves_results_tables_and_figures(place, finished):
    config, outcome = finished
    folder = place / "smoke"
    names = {path.name for path in outcome.written}
    assert {"results.tsv", "tables.md", "table1.tex", "table4.tex", "statistics.tsv"} <= names
    assert {"figure3.png", "figure4.svg", "figure5.png", "figure6.svg"} <= names
    results = read_results(folder)
    rows = [row.name for row in load_study(config).rows if row.name not in outcome.skipped]
    assert {"Initial", "SyN", "LapIRN", "MMLN"} <= set(rows)
    assert list(results["row"].unique()) == rows
    assert len(results) == 2 * len(rows)
    assert results["call"].tolist() == [1, 2] * len(rows)
    still = results[results["row"] == "Initial"]
    assert (still["dice"] == still["dice_before"]).all()
    learned = results[results["row"].isin(["LapIRN", "MMLN", "LapIRN with core"])]
    assert learned["gradient_updates"].gt(2).all()
    assert learned["training_memory_mb"].gt(50).all()
    assert learned["provenance"].str.contains("2 scans").all()
    for row in rows:
        assert 50 < costs(results, row, ["oasis"])["peak_memory_mb"] < 8000
    assert not (folder / "work").exists()


def test_tables_and_figures_come_back_byte_for_byte_from_the_results(place, finished, tmp_path):
    config, outcome = finished
    shutil.copytree(place / "smoke" / "slices", tmp_path / "slices")
    shutil.copy(place / "smoke" / "results.tsv", tmp_path)
    assert cli.main(["compare", str(config), "--reports-only", "--output-dir", str(tmp_path)]) == 0
    for path in outcome.written:
        assert (tmp_path / path.name).read_bytes() == path.read_bytes(), path.name


def test_the_committed_study_comes_back_byte_for_byte_from_its_results(tmp_path):
    """Figures 3 and 5 show brains: their slices are not committed."""
    committed = CONFIGS.parent / "docs" / "study"
    shutil.copy(committed / "results.tsv", tmp_path)
    assert cli.main(["compare", str(CONFIGS / "study.toml"), "--reports-only", "--output-dir", str(tmp_path)]) == 0
    written = {path.name for path in tmp_path.iterdir()}
    assert {"tables.md", "table1.tex", "table2.tex", "table3.tex", "table4.tex", "statistics.tsv"} <= written
    assert {"figure4.svg", "figure6.svg"} <= written
    for name in sorted(written):
        assert (tmp_path / name).read_bytes() == (committed / name).read_bytes(), name


class Inline:
    """In place of a process pool: the work is done here, unless the process is to die."""

    dies = False

    def __init__(self, *_, **__):
        protocol._state.clear()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        protocol._state.clear()

    def submit(self, work, *arguments):
        future = Future()
        if self.dies:
            future.set_exception(BrokenProcessPool("gone"))
        else:
            future.set_result(work(*arguments))
        return future


def test_a_second_run_touches_no_pair_and_a_pair_that_is_gone_is_made_again(place, finished, capsys, monkeypatch):
    config, _ = finished
    monkeypatch.setattr(protocol, "ProcessPoolExecutor", Inline)
    monkeypatch.setattr(compare, "write_report", lambda *_: [])
    paths = sorted((place / "smoke" / "pairs").rglob("*.json"))
    before = {path: path.stat().st_mtime_ns for path in paths}
    paths[0].unlink()
    outcome = compare.run_study(config)
    assert not outcome.failed
    after = {path: path.stat().st_mtime_ns for path in paths}
    assert [path for path in paths if before[path] != after[path]] == paths[:1]
    assert "registering pairs: 1/1" in capsys.readouterr().out


@pytest.mark.parametrize("dies", [False, True])
def test_a_pair_that_fails_is_named_and_costs_no_other(place, monkeypatch, capsys, dies):
    config = write_config(place, "failing.toml", more=f'output_dir = "failing-{dies}"')
    monkeypatch.setattr(protocol, "ProcessPoolExecutor", Inline)
    monkeypatch.setattr(compare, "write_report", lambda *_: [])
    monkeypatch.setattr(Inline, "dies", dies)
    whole = Initial.displacement
    calls = itertools.count()

    def displacement(self, fixed, moving):
        return whole(self, fixed, moving) if next(calls) % 2 else np.zeros(3)

    monkeypatch.setattr(Initial, "displacement", displacement)
    code = cli.main(["compare", str(config)])
    failed = [line for line in capsys.readouterr().err.splitlines() if "no scores" in line]
    assert code == 1
    if dies:
        assert len(failed) == 4
        assert all("killed" in line for line in failed)
    else:
        assert len(failed) == 2
        assert all("finite displacements" in line for line in failed)
        assert len(read_results(place / "failing-False")) == 2
        assert costs(read_results(place / "failing-False"), "Ours", ["brains"])["is_warm"]


@pytest.mark.realdata
def test_the_smoke_test_of_the_study_runs_as_it_stands(data_root, tmp_path):
    for name in ("study-smoke.toml", "study-smoke_split.tsv", "paper.toml"):
        text = (CONFIGS / name).read_text().replace("../../shared/data", str(data_root)).replace('"../runs/', '"runs/')
        (tmp_path / name).write_text(text)
    outcome = compare.run_study(tmp_path / "study-smoke.toml", nprocs=2)
    assert not outcome.failed
    names = {path.name for path in outcome.written}
    assert {"results.tsv", "statistics.tsv", "tables.md", "table1.tex", "figure3.png", "figure6.svg"} <= names
    rows = [row for row in load_study(tmp_path / "study-smoke.toml").rows if row.name not in outcome.skipped]
    assert len(read_results(outcome.written[0].parent)) == 2 * len(rows)
