"""The demo's parts on tiny volumes: the truth is invertible and of the stated size, the dataset valid."""

import json

import nibabel as nib
import numpy as np
import pytest

from mmln_pipeline import demo
from mmln_pipeline.space.grids import Grid, new_image
from mmln_pipeline.space.transforms import Transform, read_transform

SIZES = {"spacing": 1, "smoothness": 10.0, "size": 4.0}


@pytest.fixture
def mask():
    """An ellipsoid on a small grid of anisotropic voxels with flipped axes."""
    affine = np.diag([-3.0, 2.0, 2.5, 1.0])
    affine[:3, 3] = 40, -30, -20
    shape = (28, 36, 31)
    centred = [np.linspace(-1.6, 1.6, n) for n in shape]
    inside = sum(a**2 for a in np.meshgrid(*centred, indexing="ij", sparse=True)) < 1
    return new_image(inside.astype(np.uint8), Grid(shape, affine))


def test_truth_and_its_inverse_cancel(mask):
    points = demo.brain_points(mask, step=2)
    forward, inverse = demo.make_truth(mask, **SIZES)
    error = np.linalg.norm(inverse.map_points(forward.map_points(points)) - points, axis=1)
    assert np.percentile(error, 95) < 0.2


def test_truth_has_the_stated_size_without_its_affine(mask):
    points = demo.brain_points(mask, step=1)
    warp = Transform(demo.make_truth(mask, **SIZES)[0].parts[:1])
    moved = np.linalg.norm(warp.map_points(points) - points, axis=1)
    assert 3.0 < np.percentile(moved, 95) < 5.0


def test_truth_depends_on_the_seed_alone(mask):
    points = demo.brain_points(mask)
    first, same, other = (demo.make_truth(mask, seed=s, **SIZES)[0].map_points(points) for s in (1, 1, 2))
    np.testing.assert_array_equal(first, same)
    assert np.abs(first - other).max() > 1


def test_truth_survives_its_file(mask, tmp_path):
    points = demo.brain_points(mask)
    forward, _ = demo.make_truth(mask, **SIZES)
    forward.save(tmp_path / "truth_xfm.h5")
    np.testing.assert_allclose(
        read_transform(tmp_path / "truth_xfm.h5").map_points(points), forward.map_points(points), atol=1e-3
    )


def test_subject_is_the_deformed_template(mask):
    image = new_image(np.asarray(mask.dataobj, np.float32), mask)
    forward, inverse = demo.make_truth(mask, **SIZES)
    subject = demo.simulate_subject(image, mask, inverse)
    centre = demo.brain_points(mask, step=1).mean(0)
    voxels = np.argwhere(np.asarray(subject.dataobj) > 0)
    found = nib.affines.apply_affine(subject.affine, voxels).mean(0)
    expected = forward.map_points(demo.brain_points(mask, step=1)).mean(0)
    assert np.linalg.norm(found - expected) < 1 < np.linalg.norm(found - centre)
    assert subject.get_data_dtype() == np.int16


def test_dataset_has_what_bids_asks_for(mask, tmp_path):
    path = demo.write_dataset(mask, tmp_path / "bids")
    assert path.relative_to(tmp_path).as_posix() == "bids/sub-demo/anat/sub-demo_T1w.nii.gz"
    assert nib.load(path).shape == mask.shape
    assert json.loads(path.with_name("sub-demo_T1w.json").read_text())["SkullStripped"] is True
    assert json.loads((tmp_path / "bids" / "dataset_description.json").read_text())["DatasetType"] == "raw"
    assert (tmp_path / "bids" / "README").exists()


def test_recovery_is_whole_for_the_truth_itself(mask):
    forward, inverse = demo.make_truth(mask, **SIZES)
    errors = demo.measure_recovery(demo.brain_points(mask), forward, forward, inverse)
    assert errors["no registration"].mean() > errors["affine only"].mean() > 1
    assert errors["affine and warp"].max() == 0
    assert "Recovered: 100% of the whole, 100% of what the affine leaves" in demo.format_recovery(errors)


def test_help_ends_with_an_example(capsys):
    with pytest.raises(SystemExit) as stop:
        demo.main(["--help"])
    assert stop.value.code == 0
    assert capsys.readouterr().out.rstrip().endswith("example: python -m mmln_pipeline.demo demo")
