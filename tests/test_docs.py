"""The documentation: tutorial and examples run as they stand, and no option, file, score or public name is left out."""

import json
import re
import subprocess
import sys
from pathlib import Path

import nibabel as nb
import numpy as np
import pytest
from doc_pages import PAGES, ROOT, find_blocks, run_block, walnut
from nibabel.affines import from_matvec
from scipy.spatial.transform import Rotation
from tiny_bids import SHAPE, committed_files, make_brain

import mmln_pipeline
from mmln_pipeline import interfaces, workflows
from mmln_pipeline.bids_app import arguments as parser
from mmln_pipeline.bids_app import filters
from mmln_pipeline.bids_app.invocation import read_toml
from mmln_pipeline.bids_app.plugin_option import read_plugin
from mmln_pipeline.cli.parser import build_parser as build_cli_parser
from mmln_pipeline.derivatives import filenames
from mmln_pipeline.registration.result import OUTPUTS
from mmln_pipeline.space.displacements import DisplacementField
from mmln_pipeline.space.formats import OTHER_FORMATS
from mmln_pipeline.space.transforms import Transform
from mmln_pipeline.workflows import Scan

# Options of Apptainer, Docker, FreeSurfer, pip, SLURM and torchrun that the pages mention.
FOREIGN = {"--rm", "--network", "--cleanenv", "--net", "--nv", "--gpus", "--env", "--extra-index-url", "--array"}
FOREIGN |= {
    "--max-restarts",
    "--no-python",
    "--nnodes",
    "--nproc-per-node",
    "--ntasks-per-node",
    "--build-arg",
    "--read-only",
    "--containall",
    "--me",
    "--initk",
    "--cpus-per-task",
    "--time",
    "--gres",
    "--partition",
    "--job-name",
    "--output",
    "--bind",
    "--wrap",
}


# ------------------------------------------------------------------------------------------------ tutorial


@pytest.fixture(scope="module")
def tutorial(tmp_path_factory):
    """Folder, names and what each block printed, of the whole tutorial."""
    folder, names = tmp_path_factory.mktemp("tutorial"), {}
    with walnut(folder):
        said = [run_block(*block, names) for block in find_blocks("tutorial", "python", "bash")]
    return folder, names, said


def test_tutorial_runs(tutorial):
    folder, names, said = tutorial
    assert said[0] == "bids/sub-demo/anat/sub-demo_T1w.nii.gz\n"
    assert said[1].startswith("Would register 1 images to MNI152NLin2009aSym") and "mask: none given" in said[1]
    assert said[2].splitlines()[-1].startswith("1 of 1 images done:")
    assert said[3].startswith("pass 0.0\n{'before':")
    found, true = names["transform"].map_points(names["point"]), names["truth"].map_points(names["point"])
    assert np.linalg.norm(found - true) < 2 < np.linalg.norm(true - names["point"])
    for name in ("sub-demo.html", "group_registration.html", "group_registration.tsv"):
        assert (folder / "derivatives" / name).is_file(), name
    assert {path.name for path in (folder / "pair").iterdir()} == set(OUTPUTS.values()) - {"moved_dseg.nii.gz"}


def test_labels_of_the_tutorial_are_those_of_the_run(tutorial):
    own = nb.load(tutorial[0] / "tissue_in_T1w.nii.gz").get_fdata()
    run = nb.load(tutorial[0] / "derivatives/sub-demo/anat/sub-demo_space-T1w_seg-tissue_dseg.nii.gz").get_fdata()
    np.testing.assert_array_equal(own, run)
    assert len(np.unique(run)) > 2


def test_training_on_three_brains_runs(tmp_path):
    """The tutorial of the training page: `make train-pack` before it is left out, and steps are few."""
    (simulate,), ((_, settings),) = find_blocks("training", "python"), find_blocks("training", "toml")
    (run,) = (block for block in find_blocks("training", "bash") if block[1].startswith("mmln train"))
    with walnut(tmp_path):
        run_block(*simulate, {})
        shorter = re.sub(r"steps = \d+", "steps = 2", settings.replace("halvings = 1", "halvings = 0"))
        shorter = shorter.replace("[network]", f"[network]\ngrid = {list(SHAPE)}")
        assert "grid = " in shorter
        Path("three.toml").write_text(shorter)
        said = run_block(*run, {})
    assert "packing scans: 3/3 brains_sub-0" in said
    assert "weights are chosen by loss on training pairs" in said
    assert [len(re.findall(f"stage {number} (?:kept|DROPPED)", said)) for number in (1, 2)] == [1, 1]
    assert "three.safetensors: level 3 adds nothing" in said
    assert (tmp_path / "pair" / "warp.nii.gz").is_file()


# ------------------------------------------------------------------------------------------------ examples


def test_examples_of_conventions_agree(tmp_path, monkeypatch):
    """ANTs, SimpleITK, nitransforms and this package: one image, and one point, from one file."""
    monkeypatch.chdir(tmp_path)
    brain = make_brain()
    turn = Rotation.from_euler("xyz", (10, -6, 8), degrees=True).as_matrix() @ np.diag([-1.0, 1.1, 0.9])
    t1w = nb.Nifti1Image(brain.get_fdata(dtype=np.float32)[1:, :, 2:], from_matvec(turn, (11.0, -13.0, -14.0)))
    offsets = np.stack(np.meshgrid(*(np.sin(np.arange(n) / 5) for n in SHAPE), indexing="ij"), axis=-1)
    xfm = Transform([DisplacementField(offsets, brain.affine), from_matvec(np.diag([1.03, 0.98, 1.0]), (1, -2, 0.5))])
    back = Transform([np.linalg.inv(xfm.parts[1]), DisplacementField(-offsets, brain.affine)])
    nb.save(t1w, "sub-01_T1w.nii.gz")
    nb.save(brain, "template.nii.gz")
    nb.save(nb.Nifti1Image((brain.get_fdata() > 300).astype(np.uint8), brain.affine), "atlas.nii.gz")
    xfm.save("sub-01_from-T1w_to-MNI152NLin2009aSym_mode-image_xfm.h5")
    back.save("sub-01_from-MNI152NLin2009aSym_to-T1w_mode-image_xfm.h5")
    expected = xfm.resample(t1w, brain).get_fdata()

    names, images = {}, 0
    for block in find_blocks("conventions", "python", "bash"):
        run_block(*block, names)
        moved = Path("moved.nii.gz")
        if moved.is_file():
            np.testing.assert_allclose(nb.load(moved).get_fdata(), expected, atol=0.5, err_msg=block[1])
            moved.unlink()
            images += 1
    assert images == 5 and expected.max() > 300
    assert np.abs(nb.load("atlas_in_T1w.nii.gz").affine - t1w.affine).max() < 1e-4
    np.testing.assert_allclose(names["points"], names["same_points"], atol=1e-3)
    np.testing.assert_allclose(names["points"], xfm.map_points([[-24.0, -18.0, -16.0]]), atol=1e-3)


def test_settings_on_the_pages_are_read(tmp_path):
    ((_, text),) = find_blocks("usage", "json")
    (tmp_path / "filter.json").write_text(text)
    assert filters.read_filters(tmp_path / "filter.json").given == json.loads(text)
    ((_, text),) = find_blocks("usage", "toml")
    (tmp_path / "config.toml").write_text(text)
    assert read_toml(tmp_path / "config.toml")["refine"] == 0
    ((_, text),) = find_blocks("faq", "toml")
    (tmp_path / "plugin.toml").write_text(text)
    assert read_plugin(tmp_path / "plugin.toml").arguments == {"n_procs": 8, "memory_gb": 32}
    ((_, text),) = find_blocks("clusters", "toml")
    (tmp_path / "plugin.toml").write_text(text)
    assert read_plugin(tmp_path / "plugin.toml").arguments == {"sbatch_args": "--partition=short", "max_jobs": 200}


# ----------------------------------------------------------------------------------------- nothing left out


def list_parsers():
    """Each parser by its name: that of the app, of `mmln` and of its commands."""
    command_line = build_cli_parser()
    commands = next(action.choices for action in command_line._actions if isinstance(action.choices, dict))
    return [parser.build_parser(), command_line, *commands.values()]


def list_options(of):
    return {name for action in of._actions for name in action.option_strings}


def test_every_option_on_the_pages_exists():
    known = set().union(*map(list_options, list_parsers())) | FOREIGN
    known |= {"--participant_label", "--skip_bids_validator", "--n_cpus", "--nthreads", "--mem_mb"}
    found = {(page, name) for page, text in PAGES.items() for name in re.findall(r"(?<![\w-])--[a-z][\w-]+", text)}
    assert [(page, name) for page, name in sorted(found) if name not in known] == []


def list_names(scan, spaced):
    """Every file of an image, its figures and its group, as the page writes them."""
    paths = [
        *filenames.derivative_paths(scan, "TPL", "ATLAS", spaced=spaced, formats=tuple(OTHER_FORMATS)).values(),
        *filenames.figure_paths(scan, "TPL", "ATLAS").values(),
        *filenames.fused_paths(scan, has_dseg=True).values(),
        *filenames.group_paths("TPL").values(),
        *(filenames.DESCRIPTION, filenames.BIDSIGNORE, filenames.CITATION, filenames.BIBTEX, filenames.CONFIG),
        *(
            f"{filenames.CRASHES}/",
            f"{filenames.RUNS}/",
            filenames.TEMPLATES,
            filenames.GROUP_TABLE,
            filenames.GROUP_REPORT,
            filenames.GROUP_SHEET,
            filenames.GROUP_VOLUMES,
        ),
        *filenames.study_template_paths("NAME", has_dseg=True).values(),
        *(filenames.template_description("NAME"), filenames.template_label_table("NAME")),
        *(filenames.report_name("X"), filenames.atlas_table_name("ATLAS")),
    ]
    return {re.sub(r"^sub-X/.*/sub-X(_run-\d+)?_", "..._", path) for path in paths}


def test_every_output_is_on_the_page():
    run = Scan("X", None, Path("sub-X_run-1_T1w.nii.gz"), dseg=Path("dseg.nii.gz"), lesion=Path("lesion.nii.gz"))
    bold = Path("fmriprep/sub-X/func/sub-X_task-rest_space-T1w_desc-preproc_bold.nii.gz")
    scan = Scan("X", None, run.t1w, run.mask, run.dseg, run.lesion, along=(bold,), others=(run,))
    names = list_names(scan, spaced=False) | list_names(scan, spaced=True)
    text = PAGES["outputs"]
    assert [name for name in sorted(names) if f"| `{name}` |" not in text] == []
    told = {name for name in re.findall(r"^\| `([^`]+)` \|", text, re.MULTILINE) if re.search(r"\.\w+$", name)}
    assert sorted(told - names - set(OUTPUTS.values())) == []
    assert [name for name in OUTPUTS.values() if f"`{name}`" not in text] == []


@pytest.mark.parametrize("run", ["participant", "averaged"])
def test_every_file_of_a_run_is_on_the_page(run):
    rows = re.findall(r"^\| `([^`]+)` \|(?: j \|)?", PAGES["outputs"], re.MULTILINE)
    told = {name for name in rows if "." in name}
    told |= {re.sub(r"(\.nii\.gz|\.tsv|\.h5)$", ".json", name) for name in told}
    files = {re.sub(r"^.*/sub-\d+(_ses-\w)?(_run-\d)?_", "..._", path) for path in committed_files(run)}
    files = {re.sub("tiny", "TPL", name).replace("seg-core", "seg-ATLAS") for name in files}
    files = {re.sub(r"sub-\d+\.html", "sub-X.html", name) for name in files}
    assert sorted(files - told) == []


def test_every_score_is_on_the_page(tutorial):
    folder, text = tutorial[0], PAGES["outputs"]
    for name in ("pair/metrics.json", "derivatives/sub-demo/anat/sub-demo_desc-registration_qc.json"):
        scores = json.loads((folder / name).read_text())
        assert [key for key in scores if f"`{key}`" not in text] == []


# -------------------------------------------------------------------------------------------------- building


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The built pages; a warning fails the build, as in `make docs`, which runs the examples too."""
    pytest.importorskip("sphinx")
    folder = tmp_path_factory.mktemp("site")
    options = [
        "--quiet",
        "--fail-on-warning",
        "--keep-going",
        "--nitpicky",
        "-D",
        "plot_gallery=0",
        "-d",
        str(folder / "doctrees"),
    ]
    command = [sys.executable, "-m", "sphinx", *options, str(ROOT / "docs"), str(folder / "html")]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return {path.stem: path.read_text(encoding="utf-8") for path in (folder / "html").glob("*.html")}


def test_every_option_is_described(site):
    for one in list_parsers():
        prefix = one.prog.replace(" ", "-")
        absent = [name for name in list_options(one) if f'id="{prefix}-{name}"' not in site["options"]]
        assert absent == [], one.prog


def test_every_public_name_is_described(site):
    names = [f"mmln_pipeline.{name}" for name in mmln_pipeline.__all__ if name != "__version__"]
    names += [f"mmln_pipeline.interfaces.{name}" for name in interfaces.__all__]
    assert [name for name in names if f'id="{name}"' not in site["api"]] == []
    builders = [name for name in workflows.__all__ if name.startswith("init_")]
    assert [name for name in builders if f'id="mmln_pipeline.workflows.{name}"' not in site["workflows"]] == []
    assert [name for name in builders if f"Graph of {name.removeprefix('init_')}" not in site["workflows"]] == []


def test_pages_need_no_network(site):
    for page, html in site.items():
        loaded = re.findall(r'<(?:script|img|link|iframe|source)\b[^>]*?(?:src|href)="((?:https?:)?//[^"]*)"', html)
        assert loaded == [], page
    assert "<math" in site["method"]


def test_links_of_the_readme_lead_somewhere():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    links = [link.split("#")[0] for link in re.findall(r"\]\((?!https?:)([^)]+)\)", text)]
    assert links and [link for link in links if not (ROOT / link).exists()] == []


# -------------------------------------------------------------------------------------------------- the house


def test_architecture_names_what_exists():
    text = PAGES["architecture"]
    named = re.findall(r"`((?:mmln_pipeline|workflows|bids_app|docs)[\w/.]*)`", text)
    assert len(named) > 30 and [name for name in named if not (ROOT / name).exists()] == []
    wings = {f"mmln_pipeline/{path.parent.name}" for path in (ROOT / "mmln_pipeline").glob("*/__init__.py")}
    assert (
        sorted(wings - {"mmln_pipeline/" + name for name in re.findall(r"^\| `mmln_pipeline/(\w+)` \|", text, re.M)})
        == []
    )


def test_tests_that_the_pages_name_exist():
    named = {name for text in PAGES.values() for name in re.findall(r"`(test_\w+)`", text)}
    sources = [path.read_text(encoding="utf-8") for path in (ROOT / "tests").glob("*.py")]
    written = {name for source in sources for name in re.findall(r"def (test_\w+)\(", source)}
    assert len(named) >= 10 and sorted(named - written) == []


def test_no_two_modules_share_a_name():
    paths = [path for folder in ("mmln_pipeline", "workflows", "bids_app") for path in (ROOT / folder).rglob("*.py")]
    names = [path.name for path in paths if path.name != "__init__.py"]
    assert sorted({name for name in names if names.count(name) > 1}) == []
