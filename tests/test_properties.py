"""Properties that hold for every input: 48 axis orders, oblique grids, voxels of 0.5 to 5 mm, every type of number."""

import itertools

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from nibabel.affines import apply_affine, from_matvec
from nibabel.orientations import axcodes2ornt, inv_ornt_aff
from scipy.spatial.transform import Rotation

from mmln_pipeline.images.brain import make_unsigned
from mmln_pipeline.images.volumes import conform, load_image, load_labels, normalize_intensity
from mmln_pipeline.space.displacements import DisplacementField
from mmln_pipeline.space.grids import GRID_AXES, Grid, new_image
from mmln_pipeline.space.itk import save_displacement
from mmln_pipeline.space.transforms import Transform, read_transform

ORDERS = ["".join(axes) for pairs in itertools.permutations(("LR", "PA", "IS")) for axes in itertools.product(*pairs)]
INTEGERS = [np.dtype(f"{kind}{size}") for kind in "iu" for size in (1, 2, 4, 8)]
FLOATS = [np.dtype("f4"), np.dtype("f8")]
VOXEL_MM = (0.5, 5.0)


def check(examples):
    """The profile of this file: the same examples in each run, as few as tell something, and no search for smaller."""
    phases = (Phase.explicit, Phase.generate)
    return settings(max_examples=examples, derandomize=True, database=None, deadline=None, phases=phases)


# ------------------------------------------------------------------------------------------------ what is drawn

orders = st.sampled_from(ORDERS)
turns = st.tuples(*[st.floats(-45, 45)] * 3)
spacings = st.tuples(*[st.floats(*VOXEL_MM)] * 3)
places = st.tuples(*[st.floats(-120, 120)] * 3)
seeds = st.integers(0, 2**32 - 1)


def grid_of(axes, turn, spacing, middle, shape):
    """Return a grid whose axes point to `axes`, then turned by angles about R, A, S, its middle at a place (mm)."""
    directions = inv_ornt_aff(axcodes2ornt(axes), (1, 1, 1))[:3, :3]
    matrix = Rotation.from_euler("xyz", turn, degrees=True).as_matrix() @ directions @ np.diag(spacing)
    return Grid(shape, from_matvec(matrix, np.array(middle) - matrix @ ((np.array(shape) - 1) / 2)))


@st.composite
def grids(draw, shape=(9, 11, 8), middle=None):
    """Draw a grid of any axes, turn and voxel size."""
    return grid_of(draw(orders), draw(turns), draw(spacings), draw(places) if middle is None else middle, shape)


@st.composite
def affines(draw):
    """Draw a turn with scales, shears and a shift."""
    turn = Rotation.from_euler("xyz", draw(turns), degrees=True).as_matrix()
    shear = np.eye(3) + np.triu(np.reshape(draw(st.tuples(*[st.floats(-0.1, 0.1)] * 9)), (3, 3)), 1)
    scales = np.diag(draw(st.tuples(*[st.floats(0.7, 1.4)] * 3)))
    return from_matvec(turn @ shear @ scales, draw(places))


def network_like(middle, shape=(17, 19, 15), spacing=1.0):
    """Return an upright grid with the network's axes."""
    return grid_of(GRID_AXES, (0, 0, 0), (spacing,) * 3, middle, shape)


def voxels_of(grid):
    """Return every voxel's index, shape (N, 3)."""
    return np.moveaxis(np.indices(grid.shape), 0, -1).reshape(-1, 3)


def points_of(grid):
    """Return every voxel's centre, RAS+ mm, shape (N, 3)."""
    return apply_affine(grid.affine, voxels_of(grid))


def wavy_field(grid, seed):
    """Return a field of waves at least 60 voxels long, up to 3 mm high."""
    rng = np.random.default_rng(seed)
    waves = rng.uniform(-0.06, 0.06, (3, 3)) @ voxels_of(grid).T + rng.uniform(0, 6, (3, 1))
    return DisplacementField(3 * np.sin(waves).T.reshape(*grid.shape, 3), grid.affine)


def file_error_mm(field):
    """Return by how much a file may differ: rounding to 1/8192 mm, and the steps between voxels times 1/512."""
    return 1e-4 + max(float(np.abs(np.diff(field.offsets_mm, axis=axis)).max()) for axis in range(3)) / 512


def inner_points(grid, seed):
    """Draw points between the outermost voxel centres of a grid, RAS+ mm."""
    share = np.random.default_rng(seed).uniform(0, 1, (50, 3))
    return apply_affine(grid.affine, share * (np.array(grid.shape) - 1))


# ------------------------------------------------------------------------------------------------ onto a grid


@pytest.mark.parametrize("axes", ORDERS)
@check(2)
@given(turn=turns, spacing=spacings, middle=places)
def test_conform_puts_each_world_point_where_it_belongs(axes, turn, spacing, middle):
    """Values that are linear in the world come out exactly, and equal to those of the same image in RAS."""
    upright = grid_of("RAS", turn, spacing, middle, (13, 9, 11))
    slopes = np.array([0.7, -1.1, 0.4])
    values = (points_of(upright) @ slopes).reshape(upright.shape).astype(np.float32)
    image = new_image(values, upright)
    turned = image.as_reoriented(nib.orientations.ornt_transform(axcodes2ornt("RAS"), axcodes2ornt(axes)))
    target = network_like(middle)
    results = [np.asanyarray(conform(one, target).dataobj) for one in (image, turned)]
    np.testing.assert_allclose(results[0], results[1], atol=2e-3)
    index = apply_affine(np.linalg.inv(upright.affine), points_of(target)).reshape(*target.shape, 3)
    inside = ((index > 0) & (index < np.array(upright.shape) - 1)).all(-1)
    assert inside.any()
    expected = (points_of(target) @ slopes).reshape(target.shape)
    np.testing.assert_allclose(results[1][inside], expected[inside], atol=2e-3)


@check(32)
@given(grid=grids(), matrix=affines(), shift=st.tuples(*[st.floats(-8, 8)] * 3))
def test_nearest_takes_the_nearest_voxel(grid, matrix, shift):
    """Each voxel holds its own number: what comes out names the voxel that was read, which is within half a step."""
    numbers = np.arange(1, np.prod(grid.shape) + 1, dtype=np.int32).reshape(grid.shape)
    start = apply_affine(np.linalg.inv(matrix), apply_affine(grid.affine, (np.array(grid.shape) - 1) / 2))
    target = network_like(start + shift)
    found = np.asanyarray(conform(new_image(numbers, grid), target, matrix, "nearest").dataobj)
    index = apply_affine(np.linalg.inv(grid.affine) @ matrix, points_of(target))
    read = found.ravel() > 0
    voxels = np.stack(np.unravel_index(found.ravel()[read] - 1, grid.shape), -1)
    assert np.abs(voxels - index[read]).max(initial=0) <= 0.5 + 1e-4
    size = np.array(grid.shape)
    assert not read[((index < -0.5 - 1e-4) | (index > size - 0.5 + 1e-4)).any(-1)].any()
    assert read[((index > -0.5 + 1e-4) & (index < size - 0.5 - 1e-4)).all(-1)].all()


@check(12)
@given(
    axes=orders,
    turn=turns,
    spacing=spacings,
    shift=st.tuples(*[st.floats(-0.5, 0.5)] * 3),
    interpolation=st.sampled_from(["nearest", "label"]),
)
def test_labels_there_and_back_keep_their_volume(axes, turn, spacing, shift, interpolation):
    """A voxel deeper in a ball, or farther from it, than the steps of both grids keeps its label; volume within 5%."""
    shape = tuple(int(np.ceil(40 / step)) + 3 for step in spacing)
    grid = grid_of(axes, turn, spacing, shift, shape)
    depth = 15 - np.linalg.norm(points_of(grid), axis=1).reshape(shape)
    labels = new_image((7 * (depth > 0)).astype(np.int16), grid)
    there = conform(labels, network_like((0, 0, 0), (45, 45, 45)), interpolation=interpolation)
    back = np.asanyarray(conform(there, labels, interpolation=interpolation).dataobj)
    reach = (np.linalg.norm(spacing) + np.sqrt(3)) / 2
    far = np.abs(depth) > reach
    np.testing.assert_array_equal(back[far], np.asanyarray(labels.dataobj)[far])
    assert np.count_nonzero(back) == pytest.approx(np.count_nonzero(depth > 0), rel=0.05)


# ------------------------------------------------------------------------------------------- transforms and files


@check(15)
@given(grid=grids(), matrix=affines(), second=affines(), seed=seeds)
def test_a_saved_transform_maps_points_alike(grid, matrix, second, seed, tmp_path_factory):
    folder, points = tmp_path_factory.mktemp("xfm"), inner_points(grid, seed)
    field = wavy_field(grid, seed)
    error = file_error_mm(field) * np.linalg.norm(matrix[:3, :3], 2)
    for parts, limit in (((field, matrix), error), ((matrix, second), 1e-9)):
        transform = Transform(parts)
        again = read_transform(transform.save(folder / "x.h5"))
        np.testing.assert_allclose(again.map_points(points), transform.map_points(points), atol=limit)
    warp = Transform((field,))
    for path in (warp.save(folder / "warp.h5"), save_displacement(field, folder / "warp.nii.gz")):
        again = read_transform(path)  # at its voxels a file is nearer: there only rounding counts
        np.testing.assert_allclose(again.map_points(points_of(grid)), warp.map_points(points_of(grid)), atol=2e-4)


@check(15)
@given(grid=grids(), matrix=affines(), seed=seeds)
def test_itk_maps_points_alike(grid, matrix, seed, tmp_path_factory):
    path, points = tmp_path_factory.mktemp("xfm") / "x.h5", inner_points(grid, seed)
    field = wavy_field(grid, seed)
    transform = Transform((field, matrix))
    composite, flip = sitk.ReadTransform(str(transform.save(path))), np.array([-1, -1, 1])
    by_itk = [flip * composite.TransformPoint((flip * point).tolist()) for point in points]
    error = file_error_mm(field) * np.linalg.norm(matrix[:3, :3], 2)
    np.testing.assert_allclose(by_itk, transform.map_points(points), atol=error)


@check(25)
@given(matrices=st.lists(affines(), min_size=1, max_size=4), seed=seeds)
def test_an_affine_chain_there_and_back_is_the_identity(matrices, seed):
    points = np.random.default_rng(seed).uniform(-120, 120, (20, 3))
    there, back = Transform(matrices), Transform([np.linalg.inv(matrix) for matrix in reversed(matrices)])
    np.testing.assert_allclose(back.map_points(there.map_points(points)), points, atol=1e-6)
    inverse, flip = there.to_sitk().GetInverse(), np.array([-1, -1, 1])
    by_itk = [flip * inverse.TransformPoint((flip * point).tolist()) for point in points]
    np.testing.assert_allclose(back.map_points(points), by_itk, atol=1e-6)


# ------------------------------------------------------------------------------------------------ types of numbers


def some_numbers(dtype, rng, shape=(7, 6, 8)):
    """Draw few numbers of a type, its largest and smallest among them, and fill an image with them."""
    if dtype.kind == "f":
        info = np.finfo(np.float32 if dtype == np.float32 else np.float64)
        numbers = np.array([info.min, -1.5, -info.tiny, 0, info.tiny, 1 / 3, 2**24 + 1, info.max], dtype)
    else:
        info = np.iinfo(dtype)
        limits = np.array([info.min, info.max], dtype)
        numbers = np.append(rng.integers(*limits, 6, dtype, endpoint=True), limits)
    return rng.choice(numbers, shape)


@pytest.mark.parametrize("dtype", [*INTEGERS, *FLOATS], ids=str)
@check(6)
@given(grid=grids((7, 6, 8), (0, 0, 0)), matrix=affines(), seed=seeds, order=st.sampled_from("<>"))
def test_nearest_invents_no_number(dtype, grid, matrix, seed, order):
    rng = np.random.default_rng(seed)
    data = some_numbers(dtype, rng)
    default = rng.choice(data.ravel())
    centre = apply_affine(np.linalg.inv(matrix), (0, 0, 0))
    image = new_image(data.astype(dtype.newbyteorder(order)), grid)
    moved = np.asanyarray(Transform((matrix,)).resample(image, network_like(centre), "nearest", default).dataobj)
    assert moved.dtype == dtype
    assert set(moved.ravel().tolist()) <= {*data.ravel().tolist(), default.item()}


@pytest.mark.parametrize("dtype", [*INTEGERS, *FLOATS], ids=str)
@check(6)
@given(grid=grids((7, 6, 8)), seed=seeds, order=st.sampled_from("<>"))
def test_a_file_of_any_type_is_read_alike(dtype, grid, seed, order, tmp_path_factory):
    """Numbers and place are the file's; labels stay whole."""
    path = tmp_path_factory.mktemp("types") / "image.nii"
    data = np.random.default_rng(seed).integers(0, 100, grid.shape).astype(dtype)
    header = nib.Nifti1Header(endianness=order)
    header.set_data_dtype(dtype)
    header.set_sform(grid.affine, 1)
    header.set_qform(grid.affine, 1)
    nib.save(nib.Nifti1Image(data.astype(dtype.newbyteorder(order)), grid.affine, header, dtype=dtype), path)
    for image in (load_image(path), load_image(path, exact=True), load_labels(path)):
        np.testing.assert_array_equal(np.asanyarray(image.dataobj), data.astype(np.float64))
        assert Grid.of(image).matches(grid)
        assert np.asanyarray(image.dataobj).dtype.isnative


# ------------------------------------------------------------------------------------------------- intensities


@check(50)
@given(scale=st.floats(1e-3, 1e4), seed=seeds, with_mask=st.booleans())
def test_normalised_intensities_do_not_depend_on_the_scale(scale, seed, with_mask):
    rng = np.random.default_rng(seed)
    data = np.where(rng.random((9, 8, 7)) < 0.5, rng.uniform(1, 100, (9, 8, 7)), 0)
    mask = rng.random(data.shape) < 0.8 if with_mask else None
    plain, scaled = normalize_intensity(data, mask), normalize_intensity(scale * data, mask)
    np.testing.assert_allclose(scaled, plain, atol=1e-5)
    assert plain.min() == 0 and plain.max() == 1
    assert not plain[data == 0].any()  # zero stays zero: the scale has no offset
    brighter = normalize_intensity(np.where(data > 0, data + 100, 0), mask)
    assert brighter[plain > 0].min() > 0.5


@check(30)
@given(scale=st.floats(1e-2, 1e3), mean=st.floats(0.3, 0.7), seed=seeds)
def test_signed_images_are_lifted_alike_whatever_their_scale_and_mean(scale, mean, seed):
    """As after a z-score: the same brain above zero, up to the scale, in a background of one value."""
    rng = np.random.default_rng(seed)
    brain = np.zeros((12, 11, 10), bool)
    brain[2:-2, 2:-2, 2:-2] = True
    data = np.where(brain, rng.uniform(0, 1, brain.shape), -1.0)
    grid = Grid(brain.shape, np.eye(4))
    lifted = [
        normalize_intensity(make_unsigned(new_image((factor * (data - offset)).astype(np.float32), grid)).get_fdata())
        for factor, offset in ((1.0, 0.5), (scale, mean))
    ]
    np.testing.assert_allclose(lifted[0], lifted[1], atol=1e-4)
    assert not lifted[1][~brain].any() and (lifted[1][brain] > 0).mean() > 0.98
