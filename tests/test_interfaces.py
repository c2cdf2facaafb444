"""The Nipype interfaces on tiny images: each one's outputs, and what it says about wrong input."""

import json
from pathlib import Path

import nibabel as nb
import numpy as np
import pytest
import SimpleITK as sitk
from nipype.pipeline import engine as pe

from mmln_pipeline import interfaces
from mmln_pipeline.interfaces.saving import put_file, put_text
from mmln_pipeline.network.architecture import NetworkConfig
from mmln_pipeline.network.model import MMLN
from mmln_pipeline.space.displacements import DisplacementField
from mmln_pipeline.space.itk import save_affine, save_displacement
from mmln_pipeline.space.transforms import Transform, read_transform
from mmln_pipeline.weights import save_model

SHAPE = (24, 28, 32)


def make_brain(shift=0.0):
    """A textured ellipsoid on a 1 mm RAS grid, zero outside."""
    x = np.stack(np.meshgrid(*(np.arange(n) for n in SHAPE), indexing="ij")).astype(float)
    centre = np.reshape([12 + shift, 14, 16], (3, 1, 1, 1))
    offset = (x - centre) / np.reshape((8, 9, 11), (3, 1, 1, 1))
    radius = np.sqrt((offset**2).sum(0))
    texture = 1 + 0.3 * np.sin(2 * offset[0] + 1) * np.cos(3 * offset[1]) + 0.2 * offset[2]
    data = np.where(radius < 1, 400 * texture * (1.3 - radius), 0).astype(np.float32)
    affine = np.diag([1.0, 1, 1, 1])
    affine[:3, 3] = -12, -14, -16
    return nb.Nifti1Image(data, affine)


@pytest.fixture
def files(tmp_path, monkeypatch):
    """Fixed and moving brain, mask and labels as files; nodes run in the folder."""
    folder = tmp_path / "in"
    folder.mkdir()
    fixed, moving = make_brain(), make_brain(2.0)
    mask = nb.Nifti1Image((moving.get_fdata() > 0).astype(np.uint8), moving.affine)
    dseg = nb.Nifti1Image((moving.get_fdata() > 0).astype(np.uint8) * 2, moving.affine)
    paths = {}
    for name, image in {"fixed": fixed, "moving": moving, "mask": mask, "dseg": dseg}.items():
        paths[name] = str(folder / f"{name}.nii.gz")
        nb.save(image, paths[name])
    monkeypatch.chdir(tmp_path)
    return paths


@pytest.fixture
def model(tmp_path):
    """A network that leaves every image where it is."""
    path = tmp_path / "tiny.safetensors"
    save_model(MMLN(NetworkConfig(channels=2, slices=(), grid=SHAPE)), path, {"name": "tiny", "license": "none"})
    return str(path)


def test_conform_and_normalize(files, model):
    save_affine(np.array([[1.0, 0, 0, 2], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]), "shift.mat")
    conformed = interfaces.ConformGrid(
        in_file=files["moving"], reference=files["fixed"], in_xfm=str(Path("shift.mat").absolute()), model=model
    ).run()
    image = nb.load(conformed.outputs.out_file)
    assert image.shape == SHAPE
    assert nb.aff2axcodes(image.affine) == ("L", "I", "A")
    fixed = interfaces.ConformGrid(in_file=files["fixed"], model=model).run().outputs.out_file
    np.testing.assert_allclose(image.get_fdata(), nb.load(fixed).get_fdata(), atol=2)
    scaled = interfaces.NormalizeIntensity(in_file=conformed.outputs.out_file).run().outputs.out_file
    data = nb.load(scaled).get_fdata()
    assert data.min() == 0 and data.max() == 1


def test_correct_bias_keeps_the_grid(files):
    out = interfaces.CorrectBias(in_file=files["moving"], in_mask=files["mask"]).run().outputs
    image = nb.load(out.out_file)
    assert image.shape == SHAPE and np.isfinite(image.get_fdata()).all() and out.seconds > 0


@pytest.mark.parametrize(
    ("name", "core"), [("CorrectBias", "images.volumes.correct_bias"), ("AffineInit", "linear.affine.estimate_affine")]
)
def test_itk_runs_on_the_node_s_threads(files, monkeypatch, name, core):
    seen = []

    def count(*images, **settings):
        seen.append(sitk.ProcessObject.GetGlobalDefaultNumberOfThreads())
        return nb.load(files["moving"]) if name == "CorrectBias" else np.eye(4)

    monkeypatch.setattr(f"mmln_pipeline.{core}", count)
    before = sitk.ProcessObject.GetGlobalDefaultNumberOfThreads()
    images = {"in_file": files["moving"]} if name == "CorrectBias" else {key: files[key] for key in ("fixed", "moving")}
    getattr(interfaces, name)(**images, num_threads=before + 2).run()
    assert seen == [before + 2] and sitk.ProcessObject.GetGlobalDefaultNumberOfThreads() == before


@pytest.mark.parametrize("kind", ["identity", "rigid"])
def test_affine_init(files, kind):
    out = interfaces.AffineInit(fixed=files["fixed"], moving=files["moving"], kind=kind).run().outputs
    (matrix,) = read_transform(out.out_xfm).parts
    expected = 0 if kind == "identity" else 2
    assert matrix[0, 3] == pytest.approx(expected, abs=0.3)


def test_registration_writes_every_output(files, model):
    node = interfaces.MMLNRegistration(
        fixed=files["fixed"],
        moving=files["moving"],
        moving_dseg=files["dseg"],
        init="identity",
        model=model,
        refine=0,
        device="cpu",
    )
    out = node.run().outputs
    names = set(out.get()) - {"log_jacobian"}
    assert all(Path(getattr(out, name)).parent == Path.cwd() for name in names)
    determinant, logarithm = nb.load(out.jacobian).get_fdata(), nb.load(out.log_jacobian).get_fdata()
    np.testing.assert_allclose(np.log(determinant), logarithm, atol=1e-5)
    metrics = json.loads(Path(out.metrics).read_text())
    assert metrics["model"] == "tiny" and metrics["device"] == "cpu"
    np.testing.assert_allclose(nb.load(out.moved).get_fdata(), nb.load(files["moving"]).get_fdata(), atol=1e-3)
    assert set(np.unique(nb.load(out.moved_dseg).get_fdata())) == {0, 2}


def test_threads_and_scheduling_do_not_change_the_hash(files):
    def hashed(**settings):
        inputs = interfaces.MMLNRegistration(fixed=files["fixed"], moving=files["moving"], **settings).inputs
        return inputs.get_hashval(hash_method="content")[1]

    assert hashed() == hashed(num_threads=4, use_gpu=True)
    assert hashed() != hashed(random_seed=1)
    assert hashed() != hashed(model_sha256="ab")


def test_gpu_trait_makes_a_gpu_node():
    assert pe.Node(interfaces.MMLNRegistration(use_gpu=True), name="registration").is_gpu_node()


def test_apply_transform(files):
    save_affine(np.array([[1.0, 0, 0, 2], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]), "shift.mat")
    apply = interfaces.ApplyMMLNTransform(
        in_file=files["dseg"], reference=files["fixed"], transform=str(Path("shift.mat").absolute())
    )
    apply.inputs.interpolation = "nearest"
    moved = nb.load(apply.run().outputs.out_file)
    expected = nb.load(files["fixed"]).get_fdata() > 0
    assert set(np.unique(moved.get_fdata())) == {0, 2}
    assert np.mean((moved.get_fdata() > 0) != expected) < 0.01
    same = interfaces.ApplyMMLNTransform(in_file=files["moving"], reference=files["fixed"]).run().outputs
    np.testing.assert_allclose(nb.load(same.out_file).get_fdata(), nb.load(files["moving"]).get_fdata(), atol=1e-3)


def test_evaluation_measures_and_records(files):
    save_affine(np.array([[1.0, 0, 0, 2], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]), "shift.mat")
    evaluate = interfaces.EvaluateRegistration(
        fixed=files["fixed"],
        moving=files["moving"],
        transform=str(Path("shift.mat").absolute()),
        moving_dseg=files["dseg"],
    )
    out = evaluate.run().outputs
    record = json.loads(Path(out.out_json).read_text())
    assert record == out.scores
    assert record["similarity"]["global_correlation"]["after"] > 0.99
    assert record["folding_percent"] == 0 and record["tc"] == pytest.approx(1, abs=0.05)
    assert {"python", "torch", "nibabel"} <= set(record["versions"])
    header, row = Path(out.out_tsv).read_text().splitlines()
    assert dict(zip(header.split("\t"), row.split("\t"), strict=True))["versions_torch"]


def test_record_joins_the_registration_with_what_came_before(files):
    Path("metrics.json").write_text('{"dice": 0.5, "topology": null, "seconds": {"network": 2.0}}')
    record = interfaces.RecordRegistration(
        metrics=str(Path("metrics.json").absolute()),
        brain_mask="given",
        seconds_affine=3.0,
        facts={"subject": "01", "atlas": None},
    )
    out = record.run().outputs
    assert json.loads(Path(out.out_json).read_text()) == out.scores
    assert list(out.scores)[:4] == ["subject", "atlas", "brain_mask", "dice"]
    assert out.scores["dice"] == 0.5 and out.scores["seconds"] == {"affine_init": 3.0, "network": 2.0, "total": 5.0}
    header, row = Path(out.out_tsv).read_text().splitlines()
    table = dict(zip(header.split("\t"), row.split("\t"), strict=True))
    assert table["subject"] == "01" and table["atlas"] == "n/a" and table["versions_torch"]


def test_plots(files):
    field = DisplacementField(np.zeros((*SHAPE, 3), np.float32), nb.load(files["fixed"]).affine)
    save_displacement(field, "warp.nii.gz")
    nb.save(nb.Nifti1Image(np.zeros(SHAPE, np.float32), nb.load(files["fixed"]).affine), "logj.nii.gz")
    plot = interfaces.PlotRegistration(
        fixed=files["fixed"],
        before=files["moving"],
        after=files["fixed"],
        warp=str(Path("warp.nii.gz").absolute()),
        log_jacobian=str(Path("logj.nii.gz").absolute()),
        moving=files["moving"],
        moving_mask=files["mask"],
    )
    drawn = plot.run().outputs.get()
    assert drawn.pop("seconds") > 0 and len(drawn) == 4
    labels = interfaces.PlotLabels(in_file=files["moving"], in_dseg=files["dseg"], label_names={2: "brain"}).run()
    drawn["out_labels"] = labels.outputs.out_file
    assert labels.outputs.seconds > 0
    assert all("<svg" in Path(path).read_text() for path in drawn.values())
    stripped = Path(drawn["out_mask"]).read_text()
    plot.inputs.moving_head = files["fixed"]
    assert Path(plot.run().outputs.out_mask).read_text() != stripped, "the mask is drawn on the head where it is given"


def test_put_writes_only_what_differs(tmp_path):
    source, target = tmp_path / "source", tmp_path / "folder" / "target"
    source.write_text("one")
    assert put_file(source, target) and not put_file(source, target)
    before = target.stat().st_mtime_ns
    assert not put_text("one", target) and target.stat().st_mtime_ns == before
    assert put_text("two", target) and put_file(source, target)
    assert target.read_text() == "one" and [path.name for path in target.parent.iterdir()] == ["target"]


def test_save_derivative_restores_a_deleted_file(tmp_path):
    source, target = tmp_path / "in.nii.gz", tmp_path / "out" / "sub-01_T1w.nii.gz"
    source.write_bytes(b"data")
    node = pe.Node(
        interfaces.SaveDerivative(in_file=str(source), out_file=str(target), metadata={"SkullStripped": True}),
        name="save",
        base_dir=str(tmp_path / "work"),
    )
    node.run()
    sidecar = target.with_name("sub-01_T1w.json")
    assert json.loads(sidecar.read_text()) == {"SkullStripped": True}
    times = target.stat().st_mtime_ns, sidecar.stat().st_mtime_ns
    node.run()
    assert (target.stat().st_mtime_ns, sidecar.stat().st_mtime_ns) == times
    target.unlink()
    node.run()
    assert target.read_bytes() == b"data"


def test_load_template(files):
    out = interfaces.LoadTemplate(template=files["fixed"], dseg=files["dseg"]).run().outputs
    np.testing.assert_array_equal(nb.load(out.image).get_fdata(), nb.load(files["fixed"]).get_fdata())
    assert nb.load(out.mask).get_fdata().any() and nb.load(out.dseg).get_fdata().max() == 2


def test_unreadable_input_is_named(files):
    Path(files["moving"]).write_bytes(b"this is no image")
    with pytest.raises(ValueError, match=r"moving\.nii\.gz"):
        interfaces.BrainExtraction(in_file=files["moving"]).run()


def test_transform_of_registration_is_read_back(files, model):
    out = interfaces.MMLNRegistration(
        fixed=files["fixed"], moving=files["moving"], init="identity", model=model, refine=0, device="cpu"
    ).run()
    points = np.array([[0.0, 0, 0], [2, -3, 4]])
    forward = read_transform(out.outputs.forward_xfm)
    assert isinstance(forward, Transform)
    np.testing.assert_allclose(forward.map_points(points), points, atol=1e-3)
