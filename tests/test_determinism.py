"""The same inputs and seed give the same bytes in another process, and nearly the same on more threads."""

import json
import subprocess
import sys
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from mmln_pipeline import register, weights
from mmln_pipeline.images.volumes import load_image
from mmln_pipeline.network.architecture import NetworkConfig
from mmln_pipeline.network.model import MMLN

SHAPE = (24, 28, 32)
SMALL = (72, 72, 96)
LIA = np.array([[-1.0, 0, 0, 12], [0, 0, 1, -16], [0, -1, 0, 14], [0, 0, 0, 1]])
MACHINE = ("seconds", "peak_memory_mb")
"""What is measured anew in each run."""


def make_brain(seed, shift):
    """A textured ellipsoid in a background of zeros."""
    x = np.moveaxis(np.indices(SHAPE), 0, -1) - (np.array(SHAPE) - 1) / 2 - shift
    texture = 8 * gaussian_filter(np.random.default_rng(seed).normal(size=SHAPE), 2.0)
    data = np.where(((x / (8, 9, 11)) ** 2).sum(-1) < 1, 100 * np.clip(1.2 + texture, 0.2, 3), 0)
    return nib.Nifti1Image(data.astype(np.float32), LIA)


@pytest.fixture
def inputs(tmp_path):
    """Options of a registration that uses all that draws numbers: a network, a linear start and refinement."""
    model = MMLN(NetworkConfig(channels=3, grid=SHAPE))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    weights.save_model(model, tmp_path / "tiny.safetensors", {"name": "tiny"})
    for name, shift in (("fixed", 0.0), ("moving", 1.0)):
        nib.save(make_brain(1, shift), tmp_path / f"{name}.nii.gz")
    files = [f"--fixed={tmp_path / 'fixed.nii.gz'}", f"--moving={tmp_path / 'moving.nii.gz'}"]
    options = ["--init=rigid", "--refine=3", "--device=cpu", "--random-seed=5", "--threads=2"]
    return [*files, f"--model={tmp_path / 'tiny.safetensors'}", *options]


def test_same_seed_same_bytes_in_another_process(inputs, tmp_path):
    folders = [tmp_path / name for name in ("first", "second")]
    program = "import sys; from mmln_pipeline.cli import main; sys.exit(main())"
    command = [sys.executable, "-c", program, "register", *inputs]
    runs = [
        subprocess.Popen([*command, f"--output-dir={folder}"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        for folder in folders
    ]
    said = [run.communicate(timeout=300)[0].decode() for run in runs]
    assert [run.returncode for run in runs] == [0, 0], said
    first, second = ({path.name: path.read_bytes() for path in folder.iterdir()} for folder in folders)
    scores, again = (json.loads(files.pop("metrics.json")) for files in (first, second))
    assert sorted(first) == sorted(second) and len(first) >= 5
    assert [name for name in first if first[name] != second[name]] == []
    assert {k: v for k, v in scores.items() if k not in MACHINE} == {k: v for k, v in again.items() if k not in MACHINE}
    assert np.abs(nib.load(folders[0] / "warp.nii.gz").get_fdata()).max() > 0.1


def as_1mm(path):
    """A scan of 2 mm that is taken for one of 1 mm: half the size, an eighth of the work."""
    image = load_image(path)
    return nib.Nifti1Image(image.dataobj, np.diag([0.5, 0.5, 0.5, 1]) @ image.affine)


@pytest.mark.realdata
def test_threads_move_nothing_by_a_hundredth_voxel(data_root, tmp_path):
    """The bundled weights on two real brains, with a linear start and two steps of refinement."""
    paths = [data_root / f"ixi2mm_train/{name}/anat/{name}_T1w.nii.gz" for name in ("sub-015", "sub-033")]
    if not all(path.is_file() for path in paths):
        pytest.skip(f"{paths[0]} or {paths[1]} is absent")
    real, card = weights.load_model("mmln")
    small = MMLN(replace(weights.read_config("mmln"), grid=SMALL))
    small.load_state_dict(real.state_dict())
    weights.save_model(small, tmp_path / "small.safetensors", {"name": card["name"]})
    pair, before = [as_1mm(path) for path in paths], torch.get_num_threads()
    try:
        options = {"model": tmp_path / "small.safetensors", "refine": 2, "device": "cpu"}
        one = register(*pair, **options, threads=1)
        two = register(*pair, **options, threads=2, init=one.affine)  # whose threads `test_affine.py` looks after
    finally:
        torch.set_num_threads(before)
    assert np.abs(one.warp.offsets_mm).max() > 2  # voxels of 1 mm
    for name in ("transform", "inverse"):
        fields = (getattr(result, name).displacement(one.moved).offsets_mm for result in (one, two))
        assert np.abs(np.subtract(*fields)).max() < 0.01
