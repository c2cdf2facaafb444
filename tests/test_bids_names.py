"""Two templates in one output directory: names tell their results apart, and nothing is replaced."""

import json
import shutil
from types import SimpleNamespace

import nibabel as nb
import numpy as np
import pandas as pd
import pytest
from tiny_bids import list_results, make_brain, one_error, override, settings, snapshot, write_image

from mmln_pipeline.bids_app.run import main
from mmln_pipeline.interfaces.saving import SaveDerivative
from mmln_pipeline.reporting.record import read_records

HEAD = "sub-02/anat/sub-02_run-1"


@pytest.fixture(scope="module")
def shared(finished, place, tmp_path_factory):
    """A copy of a finished run with a second template, whose labels have the name of the first's, on one subject.

    It has the output directory, what was there before, the exit code, and a function that runs the second again.
    """
    root = tmp_path_factory.mktemp("shared").resolve()
    out = shutil.copytree(finished[0], root / "out")
    write_image(make_brain(1), root / "tpl-other_T1w.nii.gz")
    labels = nb.Nifti1Image((make_brain(1).get_fdata() > 300).astype(np.uint8), make_brain().affine)
    dseg = write_image(labels, root / "tpl-other_seg-core_dseg.nii.gz")
    (root / "tpl-other_seg-core_dseg.tsv").write_text("index\tname\n1\tKernel\n")

    def run(*options, level="participant"):
        other = ["--participant-label", "02", "--template", root / "tpl-other_T1w.nii.gz", "--template-dseg", dseg]
        chosen = override(override(settings(place), other), options)
        arguments = [place / "raw", out, level, "-w", root / "work", *chosen, "-d", f"labels={place / 'labels'}"]
        return main([str(argument) for argument in arguments])

    before = snapshot(out)
    return SimpleNamespace(out=out, before=before, code=run(), run=run)


def test_nothing_of_the_first_template_is_replaced(shared):
    assert shared.code == 0
    out, after = shared.out, snapshot(shared.out)
    changed = {path.relative_to(out).as_posix() for path, state in shared.before.items() if after[path] != state}
    assert changed == {"sub-02.html", "dataset_description.json", "logs/templates.json"}
    new = list_results(out) - {path.relative_to(out).as_posix() for path in shared.before}
    assert {
        f"{HEAD}_space-other_desc-registration_qc.json",
        f"{HEAD}_space-other_desc-registration_qc.tsv",
        f"{HEAD}_space-T1w_seg-coreother_dseg.nii.gz",
        f"{HEAD}_space-T1w_seg-coreother_volumes.tsv",
        "logs/CITATION_space-other.md",
        "logs/mmln-bids_space-other.toml",
        "seg-coreother_dseg.tsv",
    } <= new
    assert all("other" in name for name in new)
    assert "Kernel" in (out / "seg-coreother_dseg.tsv").read_text()
    assert "to other, tiny" in (out / "dataset_description.json").read_text()


def test_the_page_shows_both(shared):
    page = (shared.out / "sub-02.html").read_text()
    assert "registered to the template tiny" in page and "registered to the template other" in page
    assert set(read_records(shared.out, "02")) == {"sub-02_run-1", "sub-02_run-1_space-other"}


def test_each_template_finds_its_own_results(shared, finished, capsys):
    again = [str(shared.out) if part == str(finished[0]) else part for part in finished[1]]
    assert main([*again, "--dry-run"]) == 0
    assert capsys.readouterr().out.count("(finished before)") == 3
    assert shared.run("--dry-run") == 0
    assert capsys.readouterr().out.count("(finished before)") == 1
    before = snapshot(shared.out)
    assert shared.run() == 0
    assert snapshot(shared.out) == before


def test_group_level_of_each(shared, place, tmp_path):
    out = shutil.copytree(shared.out, tmp_path / "out")
    for template in ("tiny", "other"):
        options = ["group", "-w", tmp_path / "work", "--template", template]
        assert main([str(part) for part in (place / "raw", out, *options)]) == 0
    tables = [pd.read_csv(out / f"group_registration{name}.tsv", sep="\t") for name in ("", "_space-other")]
    assert [list(table["template"]) for table in tables] == [["tiny"] * 3, ["other"]]
    assert (out / "group_registration_space-other.html").is_file()
    assert "Kernel" in (out / "group_registration_space-other.html").read_text()


def test_two_templates_of_one_name(shared, tmp_path, capsys):
    other = write_image(make_brain(2), tmp_path / "tpl-other_T1w.nii.gz")
    assert shared.run("--template", str(other), "--dry-run") == 2
    line = one_error(capsys)
    assert f"--template {other}" in line and "another template that is called other too" in line
    same = write_image(make_brain(1), tmp_path / "moved/tpl-other_T1w.nii.gz")
    assert shared.run("--template", str(same), "--dry-run") == 0


def test_runs_at_once_do_not_replace_each_other(tmp_path):
    """The names are chosen when a run begins; where another one was faster, the file stays."""
    (tmp_path / "x_dseg.json").write_text(json.dumps({"Template": "first"}))
    target = tmp_path / "x_dseg.nii.gz"
    target.write_text("of the first")
    (tmp_path / "new.nii.gz").write_text("of the second")
    save = SaveDerivative(in_file=str(tmp_path / "new.nii.gz"), out_file=str(target), template="second")
    with pytest.raises(ValueError, match="found those of first"):
        save.run()
    assert target.read_text() == "of the first"
    save.inputs.template = "first"
    save.run()
    assert target.read_text() == "of the second"


def test_names_with_the_template_go_before(tmp_path):
    folder = tmp_path / "sub-01/anat"
    folder.mkdir(parents=True)
    for head, template in (("sub-01", "A"), ("sub-01_space-A", "A"), ("sub-01_space-B", "B")):
        (folder / f"{head}_desc-registration_qc.json").write_text(json.dumps({"template": template}))
    assert list(read_records(tmp_path)) == ["sub-01_space-A", "sub-01_space-B"]
