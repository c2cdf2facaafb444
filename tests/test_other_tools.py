"""Other tools' transform files, each read by that side's own library: fslpy, nitransforms."""

from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
from nibabel.affines import apply_affine, from_matvec
from nitransforms.io.lta import FSLinearTransform, VolumeGeometry
from nitransforms.linear import Affine
from nitransforms.nonlinear import DenseFieldTransform
from scipy.ndimage import gaussian_filter
from scipy.spatial.transform import Rotation

from mmln_pipeline.cli import main
from mmln_pipeline.derivatives.scans import Scan
from mmln_pipeline.derivatives.sidecars import Provenance
from mmln_pipeline.derivatives.targets import EMBEDDED_TARGET
from mmln_pipeline.interfaces import ConvertTransform
from mmln_pipeline.space.displacements import DisplacementField
from mmln_pipeline.space.formats import OTHER_FORMATS
from mmln_pipeline.space.grids import Grid, new_image
from mmln_pipeline.space.itk import save_affine, save_displacement
from mmln_pipeline.space.other_tools import RoundingWarning, read_any, write_as
from mmln_pipeline.space.transforms import Transform, read_transform
from mmln_pipeline.workflows.template_wf import init_template_wf

# FSL turns the first axis of images with a positive determinant: each of the two has another sign.
GRIDS = {
    "fixed": Grid((18, 21, 16), from_matvec(np.diag((-2.0, 2.0, 2.2)), (18, -20, -15))),
    "moving": Grid(
        (20, 19, 22), from_matvec(Rotation.from_euler("xz", (8, 5), degrees=True).as_matrix() * 1.8, (-18, -16, -19))
    ),
}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Two images, an affine and a warp with affine between them."""
    folder, rng = tmp_path_factory.mktemp("tools"), np.random.default_rng(4)
    for name, grid in GRIDS.items():
        nib.save(
            new_image((100 + gaussian_filter(rng.normal(size=grid.shape), 2)).astype("f4"), grid),
            folder / f"{name}.nii.gz",
        )
    noise = np.stack([gaussian_filter(rng.normal(size=GRIDS["fixed"].shape), 4) for _ in range(3)], -1)
    warp = DisplacementField((2 * noise / np.abs(noise).max()).astype("f4"), GRIDS["fixed"].affine)
    affine = from_matvec(Rotation.from_euler("xyz", (5, -4, 6), degrees=True).as_matrix() * 1.03, (1.5, -2, 1))
    save_affine(affine, folder / "affine.tfm")
    Transform((warp, affine)).save(folder / "both.h5")
    return folder


@pytest.fixture(scope="module")
def points():
    grid = GRIDS["fixed"]
    voxels = np.random.default_rng(1).integers(2, 14, (40, 3))
    return apply_affine(grid.affine, voxels)


def convert(files, name, output, *more):
    """Run `mmln convert` with both images; return the file."""
    pair = ["-f", str(files / "fixed.nii.gz"), "-m", str(files / "moving.nii.gz")]
    assert main(["convert", "-t", str(files / name), "-o", str(files / output), *pair, *more]) == 0
    return files / output


def images(files):
    return [nib.load(files / f"{name}.nii.gz") for name in ("fixed", "moving")]


def test_fslpy_reads_our_matrix(files, points):
    pytest.importorskip("fsl.transform")
    from fsl.data.image import Image
    from fsl.transform import flirt

    path = convert(files, "affine.tfm", "flirt.mat", "--to", "fsl")
    fixed, moving = (Image(image) for image in images(files))
    back = flirt.fromFlirt(flirt.readFlirt(path), moving, fixed, "world", "world")
    expected = read_transform(files / "affine.tfm").map_points(points)
    np.testing.assert_allclose(apply_affine(np.linalg.inv(back), points), expected, atol=1e-4)
    np.testing.assert_allclose(read_any(path, *images(files)).map_points(points), expected, atol=1e-4)


def test_fslpy_reads_our_warp(files, points):
    pytest.importorskip("fsl.transform")
    from fsl.data.image import Image
    from fsl.transform import fnirt, nonlinear

    path = convert(files, "both.h5", "fnirt.nii.gz", "--to", "fsl")
    fixed, moving = (Image(image) for image in images(files))
    field = fnirt.readFnirt(str(path), moving, fixed)
    expected = read_transform(files / "both.h5").map_points(points)
    np.testing.assert_allclose(field.transform(points, "world", "world"), expected, atol=1e-3)
    np.testing.assert_allclose(read_any(path, *images(files)).map_points(points), expected, atol=1e-3)
    moved = nonlinear.applyDeformation(moving, field, fixed, order=1)  # what applywarp does
    ours = read_transform(files / "both.h5").resample(images(files)[1], images(files)[0]).get_fdata()
    inside = ours[3:-3, 3:-3, 3:-3] > 90
    assert np.abs(moved - ours)[3:-3, 3:-3, 3:-3][inside].max() < 0.05
    again = convert(files, "fnirt.nii.gz", "again.nii.gz")
    np.testing.assert_allclose(read_transform(again).map_points(points), expected, atol=1e-3)


def test_nitransforms_reads_our_lta(files, points):
    path = convert(files, "affine.tfm", "x.lta")
    lta = FSLinearTransform.from_filename(path)
    expected = read_transform(files / "affine.tfm").map_points(points)
    np.testing.assert_allclose(apply_affine(lta.to_ras(), points), expected, atol=1e-4)
    for name, image in zip(("dst", "src"), images(files), strict=True):
        np.testing.assert_allclose(VolumeGeometry(lta[name]).as_affine(), image.affine, atol=1e-4)
    np.testing.assert_allclose(read_any(path, None, None).map_points(points), expected, atol=1e-4)


def test_nitransforms_reads_our_x5(files, points):
    linear, warp = convert(files, "affine.tfm", "linear.x5"), convert(files, "both.h5", "warp.x5")
    for path, kind, name in ((linear, Affine, "affine.tfm"), (warp, DenseFieldTransform, "both.h5")):
        expected = read_transform(files / name).map_points(points)
        np.testing.assert_allclose(kind.from_filename(path, fmt="X5").map(points), expected, atol=1e-3)
        np.testing.assert_allclose(read_any(path, None, None).map_points(points), expected, atol=1e-3)


@pytest.mark.parametrize("kind", OTHER_FORMATS)
def test_the_node_that_converts_and_its_workflow(files, points, kind, tmp_path, monkeypatch):
    pytest.importorskip("fsl.transform")
    monkeypatch.chdir(tmp_path)
    pair = {name: str(files / f"{name}.nii.gz") for name in ("fixed", "moving")}
    out = ConvertTransform(kind=kind, transform=str(files / "both.h5"), **pair).run().outputs.out_file
    expected = read_transform(files / "both.h5").map_points(points)
    np.testing.assert_allclose(read_any(out, *images(files)).map_points(points), expected, atol=1e-3)
    scan, target = Scan("X", None, files / "moving.nii.gz"), replace(EMBEDDED_TARGET, formats=(kind,))
    workflow = init_template_wf(
        scan=scan, target=target, output_dir=tmp_path, provenance=Provenance(target.name, target.name)
    )
    for direction in ("forward", "inverse"):
        node = workflow.get_node(f"derivatives_wf.{direction}_{kind}")
        assert node.inputs.out_file.endswith(OTHER_FORMATS[kind])
        convert = workflow.get_node(f"convert_{direction}_{kind}")
        sources = {data["connect"][0][0] for _, _, data in workflow._graph.in_edges(convert, data=True)}
        assert f"outputnode.{direction}_xfm" in sources


def test_apply_takes_files_that_say_all_by_themselves(files, capsys):
    pytest.importorskip("fsl.transform")
    pair = ["-r", str(files / "fixed.nii.gz"), str(files / "moving.nii.gz")]
    moved = {}
    for name in ("affine.tfm", "own.lta", "own.x5"):
        path = convert(files, "affine.tfm", name) if name != "affine.tfm" else files / name
        assert main(["apply", "-t", str(path), "-o", str(files / "moved.nii.gz"), *pair]) == 0
        moved[name] = nib.load(files / "moved.nii.gz").get_fdata()
    for name in ("own.lta", "own.x5"):
        np.testing.assert_allclose(moved[name], moved["affine.tfm"], atol=1e-2)
    path = convert(files, "affine.tfm", "own.mat", "--to", "fsl")
    assert main(["apply", "-t", str(path), "-o", str(files / "no.nii.gz"), *pair]) == 2
    assert "'mmln convert' makes an ITK file of it" in capsys.readouterr().err


def test_what_a_file_cannot_hold_is_named(files, capsys):
    pair = ["-f", str(files / "fixed.nii.gz"), "-m", str(files / "moving.nii.gz")]
    for output, message in (("y.lta", "expected an affine alone"), ("y.png", "y.png: expected for itk a name")):
        assert main(["convert", "-t", str(files / "both.h5"), "-o", str(files / output), *pair]) == 2
        assert message in capsys.readouterr().err and not (files / output).exists()
    (files / "bad.lta").write_text("type = 1\n")
    assert main(["convert", "-t", str(files / "bad.lta"), "-o", str(files / "y.h5"), *pair]) == 2
    assert "bad.lta: not a readable file of freesurfer" in capsys.readouterr().err


def test_evaluate_takes_warps_of_others_and_tells_of_rounding(files, capsys):
    pytest.importorskip("fsl.transform")
    path = convert(files, "both.h5", "score.nii.gz", "--to", "fsl")
    pair = ["-f", str(files / "fixed.nii.gz"), "-m", str(files / "moving.nii.gz"), "-o", str(files / "s.json")]
    assert main(["evaluate", *pair, "-t", str(path)]) == 0
    assert "Folds" in capsys.readouterr().out
    field = read_transform(files / "both.h5").displacement(GRIDS["fixed"])
    spacing = GRIDS["fixed"].spacing.astype("f4")
    rounded = DisplacementField(np.round(field.offsets_mm / spacing * 10) / 10 * spacing, field.affine)
    save_displacement(rounded, files / "greedy.nii.gz")
    with pytest.warns(RoundingWarning, match="greedy -wp 0"):
        read_any(files / "greedy.nii.gz", None, None)
    save_displacement(field, files / "smooth.nii.gz")
    read_any(files / "smooth.nii.gz", None, None)


def test_a_suffix_of_another_tool_is_refused(files):
    fixed, moving = images(files)
    with pytest.raises(ValueError, match=r"expected for freesurfer a name that ends in \.lta"):
        write_as("freesurfer", Transform(), files / "z.mat", fixed, moving)
