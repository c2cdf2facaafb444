"""`mmln apply`: chains, series, points, surfaces and tractograms, each beside ANTs, ITK or NiBabel."""

import ants
import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import SimpleITK as sitk
from nibabel.affines import apply_affine, from_matvec
from nibabel.streamlines import Tractogram, TrkFile
from scipy.ndimage import gaussian_filter
from scipy.spatial.transform import Rotation

from mmln_pipeline.cli import main
from mmln_pipeline.space.displacements import DisplacementField
from mmln_pipeline.space.grids import Grid, new_image
from mmln_pipeline.space.inversion import InversionWarning
from mmln_pipeline.space.itk import save_affine, save_displacement
from mmln_pipeline.space.transforms import Transform, read_chain, read_transform

FIXED = Grid((21, 24, 19), from_matvec(np.diag((-2.0, 2.0, 2.2)), (20, -25, -18)))
MOVING = Grid(
    (25, 22, 23), from_matvec(Rotation.from_euler("xz", (8, 5), degrees=True).as_matrix() * 1.9, (-20, -22, -24))
)
FLIP = np.array([-1, -1, 1])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A fixed image, a moving image, labels and a series on its grid, and three transforms between them."""
    folder, rng = tmp_path_factory.mktemp("apply"), np.random.default_rng(3)
    noise = np.stack([gaussian_filter(rng.normal(size=FIXED.shape), 4) for _ in range(3)], -1)
    warp = DisplacementField((3 * noise / np.abs(noise).max()).astype("f4"), FIXED.affine)
    affine = from_matvec(Rotation.from_euler("xyz", (5, -4, 6), degrees=True).as_matrix() * 1.03, (1.5, -2, 1))
    save_displacement(warp, folder / "warp.nii.gz")
    save_affine(affine, folder / "affine.mat")
    save_affine(np.linalg.inv(affine), folder / "back.mat")
    Transform((warp, affine)).save(folder / "both.h5")
    image = (100 * gaussian_filter(rng.normal(size=(*MOVING.shape, 5)), (2, 2, 2, 0))).astype("f4")
    series = new_image(image, MOVING)
    series.header.set_zooms((*MOVING.spacing, 2.5))
    nib.save(series, folder / "series.nii.gz")
    nib.save(new_image(image[..., 0], MOVING), folder / "moving.nii.gz")
    nib.save(new_image((image[..., 0] // 4 + 10).astype(np.int16), MOVING), folder / "labels.nii.gz")
    nib.save(new_image(np.ones(FIXED.shape, "f4"), FIXED), folder / "fixed.nii.gz")
    points = apply_affine(MOVING.affine, rng.uniform(6, 16, (50, 3)))
    pd.DataFrame(points * FLIP, columns=list("xyz")).assign(t=0.0, label=range(50)).to_csv(
        folder / "p.csv", index=False
    )
    return folder


def run(folder, *arguments):
    """Run `mmln apply` in a folder, names of files there as they are."""
    words = [str(folder / word) if (folder / word).exists() or word.startswith("out") else word for word in arguments]
    words = [word.replace("inverse:", f"inverse:{folder}/").replace("[", f"[{folder}/") for word in words]
    return main(["apply", *words])


def data(path):
    return np.asanyarray(nib.load(path).dataobj)


def ants_image(path):
    return ants.image_read(str(path))


def test_a_chain_is_in_the_order_of_ants(folder):
    chain = ["-t", "warp.nii.gz", "-t", "inverse:back.mat"]
    assert run(folder, *chain, "-r", "fixed.nii.gz", "-o", "out_chain.nii.gz", "moving.nii.gz") == 0
    theirs = ants.apply_transforms(
        ants_image(folder / "fixed.nii.gz"),
        ants_image(folder / "moving.nii.gz"),
        [str(folder / "warp.nii.gz"), str(folder / "back.mat")],
        whichtoinvert=[False, True],
    ).numpy()
    np.testing.assert_allclose(data(folder / "out_chain.nii.gz"), theirs, atol=1e-3)
    assert run(folder, "-t", "both.h5", "-r", "fixed.nii.gz", "-o", "out_both.nii.gz", "moving.nii.gz") == 0
    np.testing.assert_allclose(data(folder / "out_both.nii.gz"), theirs, atol=0.02)
    bracket = ["-t", "warp.nii.gz", "-t", "[back.mat,1]"]
    assert run(folder, *bracket, "-r", "fixed.nii.gz", "-o", "out_bracket.nii.gz", "moving.nii.gz") == 0
    np.testing.assert_array_equal(data(folder / "out_bracket.nii.gz"), data(folder / "out_chain.nii.gz"))


def test_an_inverse_undoes_its_transform(folder):
    there = read_transform(folder / "both.h5")
    points = apply_affine(FIXED.affine, np.random.default_rng(0).uniform(3, 15, (80, 3)))
    back = read_chain([f"inverse:{folder}/both.h5"])
    np.testing.assert_allclose(back.map_points(there.map_points(points)), points, atol=2e-3)
    inverse = sitk.InvertDisplacementField(
        sitk.ReadImage(str(folder / "warp.nii.gz"), sitk.sitkVectorFloat64),
        maximumNumberOfIterations=100,
        meanErrorToleranceThreshold=1e-5,
        maxErrorToleranceThreshold=1e-4,
        enforceBoundaryCondition=False,
    )
    by_itk = sitk.DisplacementFieldTransform(inverse)
    expected = [FLIP * by_itk.TransformPoint((FLIP * point).tolist()) for point in points]
    found = read_chain([f"inverse:{folder}/warp.nii.gz"]).to_sitk()
    moved = [FLIP * found.TransformPoint((FLIP * point).tolist()) for point in points]
    np.testing.assert_allclose(moved, expected, atol=0.05)


def test_a_field_that_folds_is_named(rng):
    offsets = np.zeros((9, 9, 9, 3), "f4")
    offsets[:4, ..., 0], offsets[4:, ..., 0] = 6.0, -6.0
    back = Transform((DisplacementField(offsets, np.eye(4)),)).inverse()
    with pytest.warns(InversionWarning, match="of 2 points have none"):
        back.map_points([(4.0, 4.0, 4.0), (3.5, 4.0, 4.0)])


@pytest.mark.parametrize(
    ("ours", "theirs", "tolerance"),
    [("linear", "linear", 1e-3), ("nearest", "nearestNeighbor", 0), ("label", "genericLabel", 0)],
)
def test_series_and_labels_are_those_of_ants(folder, ours, theirs, tolerance):
    for name, imagetype in (("series", 3), ("labels", 0)):
        if (name == "labels" and ours == "linear") or (name == "series" and ours == "label"):
            continue
        output = f"out_{name}_{ours}.nii"
        assert (
            run(
                folder,
                "-t",
                "both.h5",
                "-r",
                "fixed.nii.gz",
                "-n",
                theirs if ours != "linear" else ours,
                "-o",
                output,
                f"{name}.nii.gz",
            )
            == 0
        )
        reference, moving = ants_image(folder / "fixed.nii.gz"), ants_image(folder / f"{name}.nii.gz")
        transforms = [str(folder / "both.h5")]
        expected = ants.apply_transforms(
            reference, moving, transforms, interpolator=theirs, imagetype=imagetype
        ).numpy()
        found = nib.load(folder / output)
        assert found.shape == expected.shape
        different = np.abs(found.get_fdata() - expected) > tolerance
        assert different.mean() < 2e-3, "all but ties"
        if name == "series":
            np.testing.assert_allclose(found.header.get_zooms(), (2.0, 2.0, 2.2, 2.5), rtol=1e-5)


def test_each_volume_is_what_it_is_alone(folder, capsys):
    run(folder, "-t", "both.h5", "-r", "fixed.nii.gz", "-o", "out_s.nii.gz", "series.nii.gz")
    assert "series.nii.gz: 5/5" in capsys.readouterr().out
    transform, series = read_transform(folder / "both.h5"), nib.load(folder / "series.nii.gz")
    alone = transform.resample(series.slicer[..., 3], FIXED)
    np.testing.assert_allclose(data(folder / "out_s.nii.gz")[..., 3], np.asanyarray(alone.dataobj), atol=1e-3)


def test_points_go_where_the_image_goes(folder):
    assert run(folder, "-t", "inverse:both.h5", "-o", "out_p.csv", "p.csv") == 0
    points = pd.read_csv(folder / "p.csv")
    by_ants = ants.apply_transforms_to_points(3, points, [str(folder / "both.h5")])
    found = pd.read_csv(folder / "out_p.csv")
    np.testing.assert_allclose(found[list("xyz")], by_ants[list("xyz")], atol=1e-3)
    assert found["label"].tolist() == list(range(50))


def test_a_landmark_stays_on_its_landmark(folder):
    """The moving image shows one dot; image and point are brought along with the same transform."""
    dot = np.zeros(MOVING.shape, "f4")
    dot[12, 11, 12] = 1
    nib.save(new_image(gaussian_filter(dot, 1.2), MOVING), folder / "dot.nii.gz")
    pd.DataFrame([apply_affine(MOVING.affine, (12, 11, 12))], columns=list("ras")).to_csv(folder / "dot.tsv", sep="\t")
    assert run(folder, "-t", "both.h5", "-r", "fixed.nii.gz", "-o", "out/", "dot.nii.gz", "dot.tsv") == 0
    moved = data(folder / "out/dot.nii.gz")
    centre = (np.indices(moved.shape) * moved).sum((1, 2, 3)) / moved.sum()
    point = pd.read_csv(folder / "out/dot.tsv", sep="\t")[list("ras")].to_numpy()[0]
    np.testing.assert_allclose(point, apply_affine(FIXED.affine, centre), atol=0.5)


def test_surfaces_and_tracts_go_where_ants_takes_their_points(folder, rng):
    points = apply_affine(MOVING.affine, rng.uniform(6, 16, (30, 3)))
    table = pd.DataFrame(points * FLIP, columns=list("xyz"))
    expected = ants.apply_transforms_to_points(3, table, [str(folder / "both.h5")])[list("xyz")].to_numpy() * FLIP
    arrays = [
        nib.gifti.GiftiDataArray(points.astype("f4"), intent="NIFTI_INTENT_POINTSET"),
        nib.gifti.GiftiDataArray(np.array([[0, 1, 2]], "i4"), intent="NIFTI_INTENT_TRIANGLE"),
    ]
    nib.save(nib.GiftiImage(darrays=arrays), folder / "white.surf.gii")
    lines = Tractogram(np.split(points.astype("f4"), [7, 19]), {"fa": [[1.0], [2.0], [3.0]]}, affine_to_rasmm=np.eye(4))
    header = {"voxel_to_rasmm": MOVING.affine, "voxel_sizes": MOVING.spacing, "dimensions": MOVING.shape}
    nib.streamlines.save(TrkFile(lines, header | {"voxel_order": "RAS"}), str(folder / "t.trk"))
    nib.streamlines.save(lines, str(folder / "t.tck"))
    inputs = ["white.surf.gii", "t.trk", "t.tck"]
    assert run(folder, "-t", "inverse:both.h5", "-r", "fixed.nii.gz", "-o", "out/", *inputs) == 0
    surface = nib.load(folder / "out/white.surf.gii")
    np.testing.assert_allclose(surface.agg_data("pointset"), expected, atol=1e-3)
    np.testing.assert_array_equal(surface.agg_data("triangle"), [[0, 1, 2]])
    for name in ("t.trk", "t.tck"):
        moved = nib.streamlines.load(folder / "out" / name)
        assert [len(line) for line in moved.streamlines] == [7, 12, 11]
        np.testing.assert_allclose(np.concatenate(list(moved.streamlines)), expected, atol=1e-3)
    moved = nib.streamlines.load(folder / "out/t.trk")
    np.testing.assert_allclose(moved.header["voxel_to_rasmm"], FIXED.affine, atol=1e-5)
    assert moved.tractogram.data_per_streamline["fa"].ravel().tolist() == [1, 2, 3]


def test_freesurfer_counts_vertices_from_its_centre(folder):
    meta = nib.gifti.GiftiMetaData({"VolGeomC_R": "3", "VolGeomC_A": "-2", "VolGeomC_S": "1"})
    array = nib.gifti.GiftiDataArray(np.zeros((4, 3), "f4"), intent="NIFTI_INTENT_POINTSET", meta=meta)
    nib.save(nib.GiftiImage(darrays=[array]), folder / "fs.surf.gii")
    assert run(folder, "-t", "affine.mat", "-o", "out_fs.surf.gii", "fs.surf.gii") == 0
    expected = read_transform(folder / "affine.mat").inverse().map_points([(3, -2, 1)] * 4)
    moved = nib.load(folder / "out_fs.surf.gii")
    np.testing.assert_allclose(moved.agg_data("pointset"), expected, atol=1e-4)
    assert float(moved.darrays[0].meta["VolGeomC_R"]) == 0


def test_reference_by_name_and_spacing(folder):
    arguments = ["-t", "affine.mat", "-r", "MNI152NLin2009aSym", "--spacing", "8"]
    assert run(folder, *arguments, "-o", "out_mni.mgz", "moving.nii.gz") == 0
    found = nib.load(folder / "out_mni.mgz")
    assert isinstance(found, nib.MGHImage) and found.shape == (25, 29, 24)
    np.testing.assert_allclose(found.header.get_zooms(), (8, 8, 8), atol=1e-4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-t", "both.h5", "-o", "out.nii.gz", "moving.nii.gz"], "--reference: expected the image"),
        (["-t", "both.h5", "-o", "out.nii.gz", "moving.nii.gz", "p.csv"], "--output: expected a folder for 2 inputs"),
        (["-t", "both.h5", "-o", "out.tck", "p.csv"], "a name that ends in .csv or .tsv"),
        (["-t", "both.h5", "-r", "MNI152NLin2009", "-o", "out.nii", "moving.nii.gz"], "template 'MNI152NLin2009'"),
        (["-t", "both.h5", "-o", "p.csv", "p.csv"], "is the input itself"),
        (["-t", "inverse:no.mat", "-o", "out.csv", "p.csv"], "no.mat: no such file"),
        (["-t", "both.h5", "-r", "fixed.nii.gz", "-o", "out.mgz", "series.nii.gz"], "a series needs the suffix"),
    ],
)
def test_wrong_use_is_named(folder, capsys, arguments, message):
    assert run(folder, *arguments) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x\ty\tz\n1\t2\t3\n", "say --points lps or --points ras"),
        ("a\tb\n1\t2\n", "expected the columns x y z"),
        ("r\ta\ts\n1\t2\t3\n1\tno\t3\n", "found ['1', 'no', '3'] in row 2"),
    ],
)
def test_tables_that_cannot_be_read_are_named(folder, capsys, text, message):
    (folder / "bad.tsv").write_text(text)
    assert run(folder, "-t", "both.h5", "-o", "out.tsv", "bad.tsv") == 2
    assert message in capsys.readouterr().err


def test_a_cut_series_leaves_nothing(folder, capsys):
    nib.save(nib.load(folder / "series.nii.gz"), folder / "cut.nii")
    content = (folder / "cut.nii").read_bytes()
    (folder / "cut.nii").write_bytes(content[:-100])
    assert run(folder, "-t", "both.h5", "-r", "fixed.nii.gz", "-o", "out_cut.nii.gz", "cut.nii") == 2
    assert "volume 4 is cut off" in capsys.readouterr().err and not (folder / "out_cut.nii.gz").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["apply", "-t", "a", "-r", "b", "--reference", "c", "-o", "d", "e"], "-r/--reference: given twice"),
        (["evaluate", "-f", "a", "-m", "b", "-t", "c", "-t", "d", "-o", "e"], "-t/--transform: given twice"),
        (["apply", "--transfrom", "a", "-r", "b", "-o", "d", "e"], "--transfrom; did you mean --transform?"),
        (["aply", "-t", "a"], "unknown command aply; did you mean apply?"),
    ],
)
def test_slips_are_named(capsys, arguments, message):
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert end.value.code == 2 and message in capsys.readouterr().err
