"""A tiny BIDS dataset and runs of the BIDS App on it: what the tests of the app share."""

import json
from pathlib import Path

import nibabel as nb
import numpy as np
import pytest

from mmln_pipeline.bids_app.arguments import parse_args
from mmln_pipeline.bids_app.layout import find_scans
from mmln_pipeline.bids_app.run import main
from mmln_pipeline.network.architecture import NetworkConfig
from mmln_pipeline.network.model import MMLN
from mmln_pipeline.weights import save_model

SHAPE = (24, 28, 32)


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
    content = {"Name": "tiny", "BIDSVersion": "1.11.0", "DatasetType": kind}
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
    save_model(MMLN(NetworkConfig(channels=2, slices=(), grid=SHAPE)), root / "tiny.safetensors", {"name": "tiny"})
    return root


def settings(place):
    """Options that keep a run small."""
    tiny = ["--template", place / "tpl-tiny_T1w.nii.gz", "--model", place / "tiny.safetensors"]
    return [*tiny, "--refine", "0", "--nprocs", "1", "--device", "cpu"]


def override(arguments, options):
    """Arguments without the single-valued options that are given otherwise, and the options that do."""
    kept = list(arguments)
    for name in options:
        if str(name).startswith("--") and name in kept:
            start = kept.index(name)
            del kept[start : start + 2]
    return [*kept, *options]


@pytest.fixture
def command(place, tmp_path):
    """A function that runs the app on the tiny dataset in one process, and returns its exit code."""

    def run(*options, bids="raw", output=None):
        folders = [place / bids, output or tmp_path / "out", "participant", "-w", tmp_path / "work"]
        return main([str(part) for part in (*folders, *override(settings(place), options))])

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
    return root / "out", arguments, main(arguments)


def list_files(folder):
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def list_results(folder):
    """All files but those whose names are made of the run's settings."""
    return {name for name in list_files(folder) if not name.startswith("logs/runs/")}


def committed_files(name):
    """The files that a run should leave, as listed in tests/data."""
    return set((Path(__file__).parent / "data" / f"{name}_files.txt").read_text(encoding="utf-8").split())


def snapshot(folder):
    """All files but the logs, in which each run goes on."""
    paths = [folder / name for name in list_files(folder) if not name.endswith(".log")]
    return {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in paths}


def one_error(capsys):
    """The one line on stderr."""
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1, lines
    return lines[0]


def scan_config(place, *options):
    return parse_args([str(place / "raw"), "/nowhere/out", "participant", *options])


def stems(place, *options):
    return [scan.stem for scan in find_scans(scan_config(place, *options))[0]]
