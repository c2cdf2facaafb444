"""Transforms against independent oracles (SimpleITK, ANTs, nitransforms, plain SciPy) over orientations."""

import ants
import h5py
import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import SimpleITK as sitk
from nibabel.affines import apply_affine, from_matvec
from nibabel.orientations import axcodes2ornt, inv_ornt_aff, ornt_transform
from nitransforms.io.itk import ITKDisplacementsField
from nitransforms.manip import TransformChain
from nitransforms.nonlinear import DenseFieldTransform
from nitransforms.resampling import apply as nitransforms_apply
from scipy.ndimage import gaussian_filter, map_coordinates
from scipy.spatial.transform import Rotation

from mmln_pipeline.atlas.templates import load_template
from mmln_pipeline.images.volumes import network_grid
from mmln_pipeline.space.displacements import DisplacementField, displacement_from_voxels, displacement_to_voxels
from mmln_pipeline.space.grids import Grid, new_image
from mmln_pipeline.space.itk import itk_geometry, save_affine, save_displacement, to_sitk_image
from mmln_pipeline.space.transforms import Transform, read_transform

SHAPE = (23, 19, 17)
SPACING = (1.0, 1.2, 2.0)
ORIENTATIONS = ("RAS", "LAS", "LPS", "LIA", "oblique")


def grid_affine(orientation, shape=SHAPE, spacing=SPACING, centre=(5.0, -7.0, 11.0)):
    """Return the affine of a grid with given axes whose middle lies at `centre`."""
    if orientation == "oblique":
        directions = Rotation.from_euler("xz", (15, 15), degrees=True).as_matrix()
    else:
        turn = ornt_transform(axcodes2ornt("RAS"), axcodes2ornt(orientation))
        directions = inv_ornt_aff(turn, (1, 1, 1))[:3, :3]
    matrix = directions @ np.diag(spacing)
    return from_matvec(matrix, np.array(centre) - matrix @ ((np.array(shape) - 1) / 2))


def smooth_image(rng, affine, shape=SHAPE):
    """Return a smooth blob pattern, zero at the faces, values up to 100."""
    data = gaussian_filter(rng.normal(size=shape), 2.0)
    window = np.ones(shape)
    for axis, size in enumerate(shape):
        window = window * np.expand_dims(np.hanning(size), [a for a in range(3) if a != axis])
    data = (data - data.min()) * window
    return new_image((100 * data / data.max()).astype(np.float32), Grid(shape, affine))


def smooth_field(rng, affine, shape=SHAPE, size_mm=2.5):
    """Return a smooth displacement field with offsets up to `size_mm`."""
    noise = np.stack([gaussian_filter(rng.normal(size=shape), 3.0) for _ in range(3)], -1)
    return DisplacementField((size_mm * noise / np.abs(noise).max()).astype(np.float32), affine)


def some_affine():
    """Return a rotation, scaling, shear and shift, fixed to moving."""
    matrix = Rotation.from_euler("xyz", (6, -4, 8), degrees=True).as_matrix()
    shear = np.array([[1.05, 0.03, 0.0], [0.0, 0.95, -0.02], [0.0, 0.0, 1.02]])
    return from_matvec(matrix @ shear, (2.0, -1.5, 3.0))


@pytest.fixture(params=ORIENTATIONS)
def case(request, rng):
    """Return transform, moving image and fixed grid, for one orientation of the grid; the image's differs."""
    other = ORIENTATIONS[(ORIENTATIONS.index(request.param) + 2) % len(ORIENTATIONS)]
    fixed = Grid(SHAPE, grid_affine(request.param))
    moving_shape = (21, 24, 18)
    moving = smooth_image(rng, grid_affine(other, moving_shape, (1.3, 1.0, 1.6)), moving_shape)
    return Transform((smooth_field(rng, fixed.affine), some_affine())), moving, fixed


def oracle(transform, moving, fixed):
    """Resample with NumPy and SciPy alone, in RAS+ mm: warp, then affine, then one linear interpolation."""
    field, matrix = transform.parts
    index = np.moveaxis(np.indices(fixed.shape), 0, -1).reshape(-1, 3)
    points = apply_affine(fixed.affine, index) + field.offsets_mm.reshape(-1, 3)
    where = apply_affine(np.linalg.inv(moving.affine) @ matrix, points)
    return map_coordinates(moving.get_fdata(), where.T, order=1, mode="constant").reshape(fixed.shape)


def difference(a, b):
    """Return the mean absolute difference as a share of the range of `a`."""
    a, b = np.asarray(a, dtype=float), np.asarray(b, dtype=float)
    return np.abs(a - b).mean() / np.ptp(a)


def to_itk_file(array, affine, path):
    """Write an image that ITK reads by itself, without any code of ours between."""
    nib.save(nib.Nifti1Image(array, affine), path)
    return str(path)


def test_resample_agrees_with_numpy(case):
    transform, moving, fixed = case
    expected = oracle(transform, moving, fixed)
    moved = transform.resample(moving, fixed)
    assert expected.max() > 50
    assert difference(expected, moved.get_fdata()) < 1e-4
    np.testing.assert_allclose(moved.affine, fixed.affine)
    assert moved.get_data_dtype() == np.float32


def test_simpleitk_reads_our_composite(case, tmp_path):
    transform, moving, fixed = case
    ours = transform.resample(moving, fixed).get_fdata()
    transform.save(tmp_path / "x.h5")
    image = sitk.ReadImage(to_itk_file(moving.get_fdata(dtype="f4"), moving.affine, tmp_path / "moving.nii"))
    reference = sitk.ReadImage(to_itk_file(np.zeros(fixed.shape, "f4"), fixed.affine, tmp_path / "fixed.nii"))
    theirs = sitk.Resample(image, reference, sitk.ReadTransform(str(tmp_path / "x.h5")), sitk.sitkLinear, 0.0)
    assert difference(ours, sitk.GetArrayFromImage(theirs).T) < 1e-4


@pytest.mark.parametrize(("interpolation", "theirs"), [("linear", "linear"), ("bspline", "bSpline")])
def test_ants_reads_our_composite(case, tmp_path, interpolation, theirs):
    transform, moving, fixed = case
    ours = transform.resample(moving, fixed, interpolation).get_fdata()
    transform.save(tmp_path / "x.h5")
    image = ants.image_read(to_itk_file(moving.get_fdata(dtype="f4"), moving.affine, tmp_path / "moving.nii"))
    reference = ants.image_read(to_itk_file(np.ones(fixed.shape, "f4"), fixed.affine, tmp_path / "fixed.nii"))
    theirs = ants.apply_transforms(reference, image, [str(tmp_path / "x.h5")], interpolator=theirs)
    assert difference(ours, theirs.numpy()) < 1e-4


def test_nitransforms_reads_our_composite(case, tmp_path):
    transform, moving, fixed = case
    ours = transform.resample(moving, fixed).get_fdata()
    transform.save(tmp_path / "x.h5")
    chain = TransformChain.from_filename(tmp_path / "x.h5", fmt="itk")
    reference = nib.Nifti1Image(np.zeros(fixed.shape, "f4"), fixed.affine)
    theirs = nitransforms_apply(chain, moving, reference=reference, order=1)
    assert difference(ours, np.asanyarray(theirs.dataobj)) < 1e-3


@pytest.fixture(scope="module")
def registered(tmp_path_factory):
    """Return the template, an image off its voxels, and files such as a registration of them writes.

    As the network makes it, the warp lies on the template's voxels, on a grid that is smaller than the template; the
    first file has all of its voxels, the others every second one of the template.
    """
    template = load_template().image
    grid, matrix = network_grid(template), some_affine()
    first = apply_affine(np.linalg.inv(grid.affine) @ template.affine, np.zeros(3)) % 2
    image = smooth_image(np.random.default_rng(0), grid_affine("oblique", (50, 60, 55), (3.9, 3.3, 3.3)), (50, 60, 55))
    warp = wavy_field(coarse(grid, 2, first), size_mm=6.0)
    back = DisplacementField(-warp.offsets_mm, warp.affine)
    parts = {
        "forward": (wavy_field(grid, size_mm=6.0), matrix),
        "inverse": (np.linalg.inv(matrix), back),
        "no affine": (warp,),
    }
    folder = tmp_path_factory.mktemp("registered")
    return template, image, {name: Transform(these).save(folder / f"{name}.h5") for name, these in parts.items()}


def wavy_field(grid, size_mm):
    """Return a field of waves some 63 mm long that vanish at the border of its grid."""
    i, j, k = (np.arange(n, dtype=np.float32) * step for n, step in zip(grid.shape, grid.spacing, strict=True))
    fade = [np.hanning(n).astype(np.float32) for n in grid.shape]
    window = size_mm * fade[0][:, None, None] * fade[1][:, None] * fade[2]
    waves = (window * np.sin(phase + (i[:, None, None] + j[:, None] - k) / 10) for phase in (0, 1, 2))
    return DisplacementField(np.stack(list(waves), -1), grid.affine)


def coarse(image, step, first=0.0):
    """Return a grid over an image that keeps every so many voxels, from a place near the first one."""
    shape = [(n - 1) // step + 1 for n in image.shape]
    return Grid(shape, image.affine @ from_matvec(step * np.eye(3), np.broadcast_to(first, 3)))


@pytest.mark.parametrize(
    ("name", "first"),
    [("forward", 0.0), ("inverse", 0.0), ("inverse", 0.37), ("no affine", 0.0), ("no affine", 0.37)],
)
def test_other_readers_agree_on_the_template(registered, tmp_path, name, first):
    template, image, paths = registered
    moving, own = (template, image) if name == "inverse" else (image, template)
    moving_path = to_itk_file(moving.get_fdata(dtype="f4"), moving.affine, tmp_path / "moving.nii")
    reference = coarse(own, 6 if own is template else 1, first)
    path = to_itk_file(np.ones(reference.shape, "f4"), reference.affine, tmp_path / "reference.nii")
    expected = read_transform(paths[name]).resample(moving, reference).get_fdata()
    assert np.count_nonzero(expected) > 1000
    transform = sitk.ReadTransform(str(paths[name]))
    by_itk = sitk.Resample(sitk.ReadImage(moving_path), sitk.ReadImage(path), transform, sitk.sitkLinear, 0.0)
    assert difference(expected, sitk.GetArrayFromImage(by_itk).T) < 1e-4
    by_ants = ants.apply_transforms(ants.image_read(path), ants.image_read(moving_path), [str(paths[name])])
    assert difference(expected, by_ants.numpy()) < 1e-4
    chain = TransformChain.from_filename(paths[name], fmt="itk")
    by_nitransforms = nitransforms_apply(chain, moving, reference=nib.load(path), order=1)
    assert difference(expected, np.asanyarray(by_nitransforms.dataobj)) < 1e-3


def test_other_readers_agree_on_points_outside_the_field(registered):
    template, _, paths = registered
    ours = read_transform(paths["no affine"])
    chain = TransformChain.from_filename(paths["no affine"], fmt="itk")
    composite = sitk.ReadTransform(str(paths["no affine"]))
    points = apply_affine(template.affine, [(-40, 10, 20), (0, 0, 0), (196, 232, 188), (300, 300, 300)])
    for part in (points, points[:1], points[2:]):  # an index outside the grid would fail, or count from the other side
        np.testing.assert_allclose(chain.map(part), ours.map_points(part), atol=2e-3)
    flip = np.array([-1, -1, 1])
    itk = [flip * composite.TransformPoint((flip * point).tolist()) for point in points]
    np.testing.assert_allclose(itk, ours.map_points(points), atol=1e-4)


def test_saving_again_moves_nothing(tmp_path):
    grid = Grid((24, 20, 22), grid_affine("LIA", (24, 20, 22), (1.0, 1.0, 1.0)))
    transform = Transform((wavy_field(grid, size_mm=2.0),))
    index = np.moveaxis(np.indices(grid.shape), 0, -1).reshape(-1, 3)
    points = apply_affine(grid.affine, index)
    expected, again = transform.map_points(points), transform
    for number in range(3):
        again = read_transform(again.save(tmp_path / f"{number}.h5"))
        np.testing.assert_allclose(again.map_points(points), expected, atol=(number + 1) * 2e-4)


def test_displacement_of_whole_transform(case, tmp_path):
    transform, moving, fixed = case
    field = transform.displacement(fixed)
    np.testing.assert_allclose(field.affine, fixed.affine, atol=1e-5)
    expected = transform.resample(moving, fixed).get_fdata()
    assert difference(expected, Transform((field,)).resample(moving, fixed).get_fdata()) < 1e-4
    path = str(save_displacement(field, tmp_path / "warp.nii.gz"))
    image_path = to_itk_file(moving.get_fdata(dtype="f4"), moving.affine, tmp_path / "moving.nii")
    fixed_path = to_itk_file(np.ones(fixed.shape, "f4"), fixed.affine, tmp_path / "fixed.nii")
    np.testing.assert_array_equal(read_transform(path).parts[0].offsets_mm, field.offsets_mm)
    assert (moving.get_fdata() == sitk.GetArrayFromImage(to_sitk_image(nib.load(image_path))).T).all()
    itk_field = sitk.ReadImage(path, sitk.sitkVectorFloat64)
    by_itk = sitk.Resample(
        sitk.ReadImage(image_path),
        sitk.ReadImage(fixed_path),
        sitk.DisplacementFieldTransform(itk_field),
        sitk.sitkLinear,
    )
    assert difference(expected, sitk.GetArrayFromImage(by_itk).T) < 1e-4
    by_ants = ants.apply_transforms(ants.image_read(fixed_path), ants.image_read(image_path), [path])
    assert difference(expected, by_ants.numpy()) < 1e-4
    by_nitransforms = DenseFieldTransform(ITKDisplacementsField.from_filename(path))
    points = apply_affine(fixed.affine, [(5, 6, 7), (10, 3, 12)])
    np.testing.assert_allclose(by_nitransforms.map(points), transform.map_points(points), atol=1e-3)


def test_points_map_as_in_itk(case, rng):
    transform, _, fixed = case
    index = rng.uniform(-3, np.array(fixed.shape) + 2, size=(60, 3))
    points = apply_affine(fixed.affine, index)
    composite = transform.to_sitk()
    flip = np.array([-1, -1, 1])
    expected = [flip * composite.TransformPoint((flip * p).tolist()) for p in points]
    np.testing.assert_allclose(transform.map_points(points), expected, atol=1e-4)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_fields_end_half_a_voxel_outside_where_itk_ends_them(axis):
    shape = (4, 5, 6)
    transform = Transform((DisplacementField(np.ones((*shape, 3)), np.diag([-1.0, -1.0, 1.0, 1.0])),))
    index = np.full((4, 3), 2.0)
    index[:, axis] = -0.5, -0.51, shape[axis] - 0.5, shape[axis] - 0.51
    flip = np.array([-1, -1, 1])
    expected = [flip * transform.to_sitk().TransformPoint(point) for point in index.tolist()]
    np.testing.assert_allclose(transform.map_points(index * flip), expected)
    assert (transform.map_points(index * flip) - index * flip).any(1).tolist() == [True, False, False, True]


def test_forward_maps_fixed_landmark_to_moving_landmark():
    shift = from_matvec(np.eye(3), (4.0, -3.0, 2.0))
    moving = np.zeros((15, 14, 13), np.float32)
    moving[9, 5, 8] = 1.0
    image = new_image(moving, Grid(moving.shape, np.eye(4)))
    transform = Transform((shift,))
    np.testing.assert_allclose(transform.map_points([(5, 8, 6)]), [(9, 5, 8)])
    assert transform.resample(image, image).get_fdata()[5, 8, 6] == pytest.approx(1.0)


def test_affine_there_and_back_is_identity(rng):
    matrix = some_affine()
    points = rng.normal(scale=50, size=(20, 3))
    there = Transform((matrix,)).map_points(points)
    np.testing.assert_allclose(Transform((np.linalg.inv(matrix),)).map_points(there), points, atol=1e-9)


def test_parts_apply_first_to_last():
    double = np.diag([2.0, 2.0, 2.0, 1.0])
    shift = from_matvec(np.eye(3), (1.0, 0.0, 0.0))
    np.testing.assert_allclose(Transform((double, shift)).map_points([(1, 1, 1)]), [(3, 2, 2)])
    np.testing.assert_allclose(Transform((shift, double)).map_points([(1, 1, 1)]), [(4, 2, 2)])


def test_composite_round_trip(case, tmp_path):
    transform, _, fixed = case
    again = read_transform(transform.save(tmp_path / "x.h5"))
    assert len(again.parts) == 2
    np.testing.assert_allclose(again.parts[1], transform.parts[1], atol=1e-12)
    points = apply_affine(fixed.affine, np.random.default_rng(1).uniform(0, 16, size=(40, 3)))
    np.testing.assert_allclose(again.map_points(points), transform.map_points(points), atol=3e-4)


def test_composite_is_compressed_near_identity_and_reproducible(tmp_path, rng):
    transform = Transform((smooth_field(rng, grid_affine("LIA")), some_affine()))
    paths = [transform.save(tmp_path / name) for name in ("a.h5", "b.h5")]
    assert paths[0].read_bytes() == paths[1].read_bytes()
    with h5py.File(paths[0]) as file:
        values = file["TransformGroup/2/TransformParameters"]
        assert (values.dtype, values.compression) == (np.float32, "gzip")
        np.testing.assert_allclose(file["TransformGroup/2/TransformFixedParameters"][9:], np.eye(3).ravel())
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.h5", "b.h5"]


@pytest.mark.parametrize("suffix", [".mat", ".txt", ".tfm"])
def test_affine_round_trip_and_itk(tmp_path, suffix):
    matrix = some_affine()
    path = save_affine(matrix, tmp_path / f"affine{suffix}")
    np.testing.assert_allclose(read_transform(path).parts[0], matrix, atol=1e-9)
    point = pd.DataFrame({"x": [-10.0], "y": [-20.0], "z": [30.0]})
    mapped = ants.apply_transforms_to_points(3, point, [str(path)])
    expected = apply_affine(matrix, (10.0, 20.0, 30.0)) * (-1, -1, 1)
    np.testing.assert_allclose(mapped[["x", "y", "z"]].to_numpy()[0], expected, atol=1e-3)


def test_reads_other_linear_transforms_of_itk_and_ants(tmp_path):
    euler = sitk.Euler3DTransform((10.0, -5.0, 3.0), 0.1, -0.2, 0.05, (1.0, 2.0, 3.0))
    shift = sitk.TranslationTransform(3, (1.0, -2.0, 0.5))
    composite = sitk.CompositeTransform([shift, euler])
    sitk.WriteTransform(composite, str(tmp_path / "two.h5"))
    flip = np.array([-1, -1, 1])
    expected = flip * composite.TransformPoint((-4.0, 6.0, 8.0))
    mapped = read_transform(tmp_path / "two.h5").map_points([(4.0, -6.0, 8.0)])
    np.testing.assert_allclose(mapped, [expected], atol=1e-9)
    by_ants = ants.new_ants_transform(transform_type="AffineTransform", precision="double")
    by_ants.set_parameters([1.1, 0.1, 0, -0.1, 0.9, 0.05, 0, 0.02, 1, 3, -4, 5])
    by_ants.set_fixed_parameters([10.0, 20.0, 30.0])
    ants.write_transform(by_ants, str(tmp_path / "ants.mat"))
    mapped = read_transform(tmp_path / "ants.mat").map_points([(4.0, -6.0, 8.0)])
    np.testing.assert_allclose(mapped, [flip * by_ants.apply_to_point((-4.0, 6.0, 8.0))], atol=1e-4)


def test_empty_transform_is_identity(tmp_path, rng):
    image = smooth_image(rng, grid_affine("LPS"))
    np.testing.assert_allclose(Transform().resample(image, image).get_fdata(), image.get_fdata(), atol=1e-4)
    path = Transform().save(tmp_path / "identity.h5")
    np.testing.assert_allclose(read_transform(path).map_points([(1, 2, 3)]), [(1, 2, 3)])


def test_voxel_offsets_keep_their_meaning_on_anisotropic_axes():
    affine = grid_affine("LIA", (7, 8, 9))
    u_vox = np.zeros((3, 7, 8, 9), np.float32)
    u_vox[1] = 2.0
    field = displacement_from_voxels(u_vox, affine)
    # Two voxels of 1.2 mm along I are 2.4 mm towards the feet.
    np.testing.assert_allclose(field.offsets_mm[3, 4, 5], (0, 0, -2.4), atol=1e-6)
    np.testing.assert_allclose(displacement_to_voxels(field), u_vox, atol=1e-6)
    start = apply_affine(affine, (3, 2, 4))
    np.testing.assert_allclose(field.map_points(start[None]), [apply_affine(affine, (3, 4, 4))], atol=1e-5)


def test_fields_are_made_of_anything_like_arrays_and_keep_their_own(rng):
    affine, u_vox = grid_affine("LIA", (4, 5, 6)), rng.normal(size=(3, 4, 5, 6))
    expected = displacement_from_voxels(u_vox, affine)
    field = displacement_from_voxels(u_vox.tolist(), affine.tolist())
    np.testing.assert_array_equal(field.offsets_mm, expected.offsets_mm)
    assert (field.offsets_mm.dtype, field.affine.dtype) == (np.float32, np.float64)
    affine[:] = 0
    np.testing.assert_array_equal(expected.affine, field.affine)


@pytest.mark.parametrize("interpolation", ["linear", "nearest", "bspline", "lanczos", "label"])
def test_inputs_are_not_changed(rng, tmp_path, interpolation):
    affine = grid_affine("LAS", (7, 8, 9))
    field = smooth_field(rng, affine, (7, 8, 9))
    offsets, data = field.offsets_mm.copy(), rng.integers(0, 4, (7, 8, 9)).astype(np.int16)
    image, matrix = new_image(data, Grid(data.shape, affine)), some_affine()
    transform = Transform((field, matrix))
    transform.resample(image, image, interpolation)
    transform.save(tmp_path / "x.h5")
    save_displacement(field, tmp_path / "x.nii.gz")
    np.testing.assert_array_equal(field.offsets_mm, offsets)
    np.testing.assert_array_equal(matrix, some_affine())
    assert image.dataobj is data


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int32, np.float32, ">i2"])
@pytest.mark.parametrize("interpolation", ["nearest", "label"])
def test_labels_keep_type_and_values(rng, dtype, interpolation):
    data = rng.choice([0, 3, 77], size=(9, 8, 7)).repeat(2, 0).repeat(2, 1).astype(dtype)
    image = new_image(data, Grid(data.shape, grid_affine("LPS", data.shape)))
    moved = Transform((some_affine(),)).resample(image, Grid(data.shape, grid_affine("RAS")), interpolation)
    assert set(np.unique(np.asanyarray(moved.dataobj))) <= {0, 3, 77}
    assert np.asanyarray(moved.dataobj).dtype == np.dtype(dtype).newbyteorder("=")
    same = Transform().resample(image, image, interpolation)
    np.testing.assert_array_equal(np.asanyarray(same.dataobj), data)


def test_default_value_fills_outside():
    image = new_image(np.ones((5, 6, 7), np.float32), Grid((5, 6, 7), np.eye(4)))
    far = Transform((from_matvec(np.eye(3), (100.0, 0, 0)),)).resample(image, image, default=-7.0)
    assert (far.get_fdata() == -7.0).all()


def test_itk_geometry_is_lps():
    origin, spacing, direction = itk_geometry(Grid((7, 8, 9), grid_affine("LPS", (7, 8, 9))))
    np.testing.assert_allclose(spacing, SPACING)
    np.testing.assert_allclose(np.reshape(direction, (3, 3)), np.eye(3), atol=1e-12)
    centre = np.array(origin) + np.array(spacing) * (3, 3.5, 4)
    np.testing.assert_allclose(centre, (-5.0, 7.0, 11.0))


def test_errors_name_file_and_fault(tmp_path, rng):
    with pytest.raises(FileNotFoundError, match=r"absent\.h5: no such file"):
        read_transform(tmp_path / "absent.h5")
    for name in ("bad.h5", "bad.mat", "bad.txt"):
        (tmp_path / name).write_bytes(b"nothing of the kind")
        with pytest.raises(ValueError, match=rf"{name}: not a readable ITK transform"):
            read_transform(tmp_path / name)
    (tmp_path / "bad.nii.gz").write_bytes(b"nothing of the kind")
    with pytest.raises(ValueError, match="not a readable NIfTI"):
        read_transform(tmp_path / "bad.nii.gz")
    (tmp_path / "x.lta").touch()
    with pytest.raises(ValueError, match=r"\(\.h5, \.nii, \.nii\.gz, \.mat, \.txt, \.tfm\), found another suffix"):
        read_transform(tmp_path / "x.lta")
    nib.save(smooth_image(rng, np.eye(4)), tmp_path / "scalar.nii.gz")
    with pytest.raises(ValueError, match=r"\(I, J, K, 1, 3\), found \(23, 19, 17\)"):
        read_transform(tmp_path / "scalar.nii.gz")
    sitk.WriteTransform(sitk.BSplineTransform(3), str(tmp_path / "spline.tfm"))
    with pytest.raises(ValueError, match="found BSplineTransform"):
        read_transform(tmp_path / "spline.tfm")
    for save in (Transform().save, lambda path: save_affine(np.eye(4), path)):
        with pytest.raises(ValueError, match="suffix"):
            save(tmp_path / "x.nii")
    with pytest.raises(ValueError, match="suffix"):
        save_displacement(smooth_field(rng, np.eye(4)), tmp_path / "x.h5")


def test_errors_name_bad_values(rng):
    image = smooth_image(rng, np.eye(4))
    with pytest.raises(ValueError, match=r"linear, nearest, bspline, lanczos, label; found 'cubic'"):
        Transform().resample(image, image, "cubic")
    with pytest.raises(ValueError, match="expected 3-D"):
        Transform().resample(nib.Nifti1Image(np.ones((3, 3, 3, 2), "f4"), np.eye(4)), image)
    with pytest.raises(ValueError, match="determinant 0"):
        Transform((np.diag([1.0, 0.0, 1.0, 1.0]),))
    with pytest.raises(ValueError, match="found 1 of 1029 not"):
        bad = np.zeros((7, 7, 7, 3), np.float32)
        bad[1, 2, 3, 0] = np.nan
        DisplacementField(bad, np.eye(4))
    with pytest.raises(ValueError, match=r"\(I, J, K, 3\), found"):
        DisplacementField(np.zeros((3, 7, 7, 7)), np.eye(4))
    with pytest.raises(ValueError, match=r"\(3, I, J, K\), found"):
        displacement_from_voxels(np.zeros((7, 7, 7, 3)), np.eye(4))
    with pytest.raises(ValueError, match=r"\(N, 3\), found"):
        Transform().map_points((1.0, 2.0, 3.0))


# -------------------------------------------------------------------------------------------- files of ITK's in HDF5


def itk_composite(path, *members):
    """Write ITK's composite of an affine, a small field and more, by ITK."""
    field = sitk.GetImageFromArray(np.full((4, 5, 6, 3), 0.5), isVector=True)
    chain = [sitk.AffineTransform(3), sitk.DisplacementFieldTransform(field), *members]
    sitk.WriteTransform(sitk.CompositeTransform(chain), str(path))
    return path


def change(path, name, value, member="2"):
    """Put other numbers in the place of a member's; the second is the field."""
    with h5py.File(path, "r+") as file:
        del file[f"TransformGroup/{member}/{name}"]
        file[f"TransformGroup/{member}/{name}"] = value
    return path


@pytest.mark.parametrize("spelling", ["Transform", "Tranform"])
def test_every_linear_kind_of_a_composite_is_read_as_itk_reads_it(tmp_path, rng, spelling):
    kinds = [
        sitk.Euler3DTransform((1.0, 2, 3), 0.1, -0.2, 0.3, (4.0, 5, 6)),
        sitk.VersorRigid3DTransform((0.0, 0, 1), 0.3, (1.0, 2, 3), (3.0, 2, 1)),
        sitk.Similarity3DTransform(1.1, (1.0, 0, 0), 0.2, (0.0, 1, 2), (1.0, 1, 2)),
        sitk.ScaleTransform(3, (1.1, 0.9, 1.2)),
        sitk.TranslationTransform(3, (1 / 3, 0.0, -7.0)),
        sitk.Transform(3, sitk.sitkIdentity),
    ]
    path = itk_composite(tmp_path / "x.h5", *kinds)
    theirs = sitk.ReadTransform(str(path))
    with h5py.File(path, "r+") as file:  # ITK 4, with which many old files were written, spells it so
        for group in list(file["TransformGroup"].values())[1:]:
            for name in ("TransformParameters", "TransformFixedParameters"):
                group.move(name, name.replace("Transform", spelling, 1))
    ours, points, flip = read_transform(path), rng.normal(size=(9, 3)), np.array([-1, -1, 1])
    expected = [np.array(theirs.TransformPoint((point * flip).tolist())) * flip for point in points]
    np.testing.assert_allclose(ours.map_points(points), expected, atol=1e-6)


def test_a_damaged_composite_is_refused_by_us_alone(tmp_path, rng, capfd):
    whole = Transform((smooth_field(rng, np.eye(4)), some_affine())).save(tmp_path / "whole.h5")
    content = whole.read_bytes()
    for name, damaged in {
        "half": content[: len(content) // 2],
        "heap": content[:2000] + bytes(200) + content[2200:],
        "numbers": content[:-3000] + bytes(reversed(content[-3000:-2000])) + content[-2000:],
    }.items():
        (tmp_path / f"{name}.h5").write_bytes(damaged)
        with pytest.raises(ValueError, match=rf"transform .*{name}\.h5: not a readable ITK transform"):
            read_transform(tmp_path / f"{name}.h5")
    assert capfd.readouterr() == ("", "")  # HDF5 would say much


def test_a_field_that_promises_more_than_its_file_holds_takes_no_memory(tmp_path):
    place = [6, 5, 4, 0, 0, 0, 1, 1, 1, 1, 0, 0, 0, 1, 0, 0, 0, 1.0]
    for size in (4000, -6, 5.5, 1e30):
        path = change(itk_composite(tmp_path / "size.h5"), "TransformFixedParameters", [size, *place[1:]])
        with pytest.raises(ValueError, match=r"size\.h5: .* voxels of 1x1x1 mm cannot have 360 numbers"):
            read_transform(path)
    with h5py.File(
        change(itk_composite(path), "TransformFixedParameters", [4000, 4000, 4000, *place[3:]]), "r+"
    ) as file:
        group = file["TransformGroup/2"]
        del group["TransformParameters"]
        group.create_dataset("TransformParameters", (3 * 4000**3,), "f8", chunks=(2**20,))
    with pytest.raises(ValueError, match=r"size\.h5: .*promises 192000000000 numbers .* does not hold them"):
        read_transform(path)


def test_a_field_with_bad_numbers_is_named(tmp_path):
    field = np.zeros((5, 6, 7, 1, 3), np.float32)
    field[1, 2, 3] = np.nan
    image = nib.Nifti1Image(field, np.eye(4))
    image.header.set_intent("vector")
    nib.save(image, tmp_path / "nan.nii.gz")
    with pytest.raises(ValueError, match=r"nan\.nii\.gz: .*expected finite offsets, found 3 of 630 not"):
        read_transform(tmp_path / "nan.nii.gz")
    nans = change(itk_composite(tmp_path / "nan.h5"), "TransformParameters", np.full(12, np.nan), "1")
    with pytest.raises(ValueError, match=r"nan\.h5: .*expected finite parameters of AffineTransform"):
        read_transform(nans)


@pytest.mark.parametrize("intent", ["vector", "displacement vector"])
def test_a_field_means_what_its_intent_code_says_to_itk(intent, tmp_path):
    """ITK takes the numbers under the code for displacements as RAS, those under the one for vectors as LPS."""
    rng = np.random.default_rng(1)
    field = nib.Nifti1Image(rng.uniform(-1, 1, (6, 7, 8, 1, 3)).astype(np.float32), np.diag([-2.0, 2, 2, 1]))
    field.header.set_intent(intent)
    nib.save(field, tmp_path / "field.nii.gz")
    itk = sitk.DisplacementFieldTransform(sitk.Cast(sitk.ReadImage(tmp_path / "field.nii.gz"), sitk.sitkVectorFloat64))
    point = np.array([-4.5, 6.5, 5.0])
    expected = np.array(itk.TransformPoint((point * [-1, -1, 1]).tolist())) * [-1, -1, 1]
    found = read_transform(tmp_path / "field.nii.gz").map_points(point[None])[0]
    np.testing.assert_allclose(found, expected, atol=1e-5)
