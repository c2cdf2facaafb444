"""Reading, checking, conforming and normalising images; and files that are whole or not there."""

import gzip
import struct

import nibabel as nib
import numpy as np
import pytest
from nibabel.affines import apply_affine, from_matvec
from nibabel.orientations import axcodes2ornt, inv_ornt_aff, ornt_transform
from scipy.ndimage import binary_fill_holes, gaussian_filter
from scipy.spatial.transform import Rotation

from mmln_pipeline.images import volumes
from mmln_pipeline.images.volumes import (
    brain_mask,
    conform,
    correct_bias,
    fill_holes,
    load_image,
    load_labels,
    looks_skull_stripped,
    network_grid,
    normalize_intensity,
    save_image,
)
from mmln_pipeline.machine.files import atomic_path, write_text
from mmln_pipeline.space.grids import GRID_AXES, GRID_SHAPE, Grid, new_image

SHAPE = (7, 8, 9)


def write(path, data, affine=None):
    """Write an image with nibabel alone."""
    nib.save(nib.Nifti1Image(data, np.eye(4) if affine is None else affine), path)
    return path


def ball(shape=(40, 44, 36), radius=12.0, spacing=2.0, centre=None):
    """Return a ball of tissue, brighter inside, on zeros."""
    centre = np.array(shape) / 2 if centre is None else centre
    distance = np.linalg.norm(np.moveaxis(np.indices(shape), 0, -1) - centre, axis=-1)
    data = np.where(distance < radius, 100 + 40 * np.cos(distance / 3), 0).astype(np.float32)
    return new_image(data, Grid(shape, np.diag([spacing, spacing, spacing, 1.0])))


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_save_then_load(tmp_path, rng, suffix):
    data = rng.integers(1, 200, SHAPE).astype(np.int16)
    affine = from_matvec(np.diag((-1.0, 1.2, 2.0)), (3, 4, 5))
    path = save_image(new_image(data, Grid(SHAPE, affine)), tmp_path / "sub" / f"a{suffix}")
    image = load_image(path)
    np.testing.assert_array_equal(np.asanyarray(image.dataobj), data)
    np.testing.assert_allclose(image.affine, affine)
    assert image.get_data_dtype() == np.int16
    assert image.header["qform_code"] == image.header["sform_code"] == 1


def test_saving_twice_gives_the_same_bytes(tmp_path, rng):
    image = new_image(rng.random(SHAPE).astype(np.float32), Grid(SHAPE, np.eye(4)))
    first = save_image(image, tmp_path / "a.nii.gz").read_bytes()
    assert gzip.decompress(first) == gzip.decompress(save_image(image, tmp_path / "b.nii.gz").read_bytes())
    assert first == save_image(image, tmp_path / "a.nii.gz").read_bytes()


def test_load_squeezes_trailing_axes_and_reads_mgz(tmp_path, rng):
    data = rng.random((*SHAPE, 1)).astype(np.float32)
    assert load_image(write(tmp_path / "a.nii.gz", data)).shape == SHAPE
    nib.save(nib.MGHImage(data[..., 0], np.diag([-1.0, 1.0, 2.0, 1.0])), tmp_path / "a.mgz")
    image = load_image(tmp_path / "a.mgz")
    assert isinstance(image, nib.Nifti1Image)
    np.testing.assert_allclose(image.affine, np.diag([-1.0, 1.0, 2.0, 1.0]))


def test_scaled_integers_become_float32(tmp_path):
    image = nib.Nifti1Image(np.arange(504, dtype=np.int16).reshape(SHAPE), np.eye(4))
    image.header.set_slope_inter(0.5, 1.0)
    image.to_filename(tmp_path / "a.nii")
    loaded = load_image(tmp_path / "a.nii")
    assert np.asanyarray(loaded.dataobj).dtype == np.float32
    np.testing.assert_allclose(loaded.get_fdata(), nib.load(tmp_path / "a.nii").get_fdata())


def test_sform_wins_over_a_conflicting_qform(tmp_path):
    image = nib.Nifti1Image(np.ones(SHAPE, np.float32), np.eye(4))
    image.set_qform(np.diag([-1.0, -1.0, 1.0, 1.0]), 1)
    image.set_sform(from_matvec(np.eye(3), (1, 2, 3)), 1)
    nib.save(image, tmp_path / "a.nii")
    loaded = load_image(tmp_path / "a.nii")
    np.testing.assert_allclose(loaded.get_sform(), from_matvec(np.eye(3), (1, 2, 3)))
    np.testing.assert_allclose(loaded.get_qform(), loaded.get_sform(), atol=1e-6)


def test_missing_unreadable_and_foreign_files(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"fixed image .*absent\.nii: no such file"):
        load_image(tmp_path / "absent.nii", "fixed image")
    (tmp_path / "bad.nii.gz").write_bytes(b"not an image")
    with pytest.raises(ValueError, match=r"fixed image .*bad\.nii\.gz: cannot be read"):
        load_image(tmp_path / "bad.nii.gz", "fixed image")
    (tmp_path / "empty.nii.gz").touch()
    with pytest.raises(ValueError, match="cannot be read"):
        load_image(tmp_path / "empty.nii.gz")
    (tmp_path / "a.png").touch()
    with pytest.raises(ValueError, match=r"expected one of \.nii, \.nii\.gz, \.mgz, found '\.png'"):
        load_image(tmp_path / "a.png")


@pytest.mark.parametrize(("where", "number", "words"), [(4, 0, "Dimensions"), (20, 77, "KeyError 77")])
def test_freesurfer_headers_that_nibabel_refuses(tmp_path, where, number, words):
    nib.save(nib.MGHImage(np.ones(SHAPE, np.float32), np.eye(4)), tmp_path / "a.mgz")
    content = bytearray(gzip.decompress((tmp_path / "a.mgz").read_bytes()))
    struct.pack_into(">i", content, where, number)
    (tmp_path / "a.mgz").write_bytes(gzip.compress(content))
    with pytest.raises(ValueError, match=rf"fixed image .*a\.mgz: cannot be read \({words}"):
        load_image(tmp_path / "a.mgz", "fixed image")


def test_short_memory_is_not_the_files_fault(tmp_path, rng, monkeypatch):
    def read(path):
        raise MemoryError

    path = write(tmp_path / "a.nii.gz", rng.random((3, 4, 5)).astype(np.float32))
    monkeypatch.setattr(volumes, "read_whole", read)
    with pytest.raises(ValueError, match=r"a\.nii\.gz: cannot be read \(MemoryError\); give the run more memory"):
        load_image(path)


def test_truncated_file(tmp_path, rng):
    path = write(tmp_path / "a.nii.gz", rng.random((20, 20, 20)).astype(np.float32))
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(ValueError, match=r"a\.nii\.gz: cannot be read"):
        load_image(path)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (np.ones((7, 8, 9, 4), np.float32), r"expected one 3-D volume, found shape \(7, 8, 9, 4\)"),
        (np.ones((7, 8), np.float32), r"expected one 3-D volume, found shape \(7, 8\)"),
        (np.zeros(SHAPE, np.int16), "found all 504 voxels zero"),
        (np.where(np.arange(504).reshape(SHAPE) < 3, np.nan, 1.0), "found 3 of 504 voxels NaN or infinite"),
        (np.ones(SHAPE, np.complex64), "expected one number a voxel, found type complex64"),
    ],
)
def test_bad_contents_are_named_with_their_numbers(tmp_path, data, message):
    with pytest.raises(ValueError, match=message):
        load_image(write(tmp_path / "a.nii", data))


def test_singular_affine(tmp_path):
    image = nib.Nifti1Image(np.ones(SHAPE, np.float32), np.eye(4))
    image.header.set_sform(np.diag([1.0, 0.0, 1.0, 1.0]), 1)
    image.header.set_qform(np.eye(4), 0)
    header = image.header.copy()
    nib.Nifti1Image(np.ones(SHAPE, np.float32), None, header).to_filename(tmp_path / "a.nii")
    with pytest.raises(ValueError, match=r"a\.nii: affine: expected an invertible .* determinant 0"):
        load_image(tmp_path / "a.nii")


def test_labels_are_whole_numbers(tmp_path):
    data = np.arange(504).reshape(SHAPE)
    for dtype, expected in (("f4", "i4"), ("f8", "i4"), ("i2", "i2"), ("i8", "i4"), ("u1", "u1")):
        nib.save(nib.Nifti1Image(data.astype(dtype), np.eye(4), dtype=dtype), tmp_path / "a.nii")
        labels = np.asanyarray(load_labels(tmp_path / "a.nii").dataobj)
        assert labels.dtype == np.dtype(expected)
        np.testing.assert_array_equal(labels, data.astype(dtype))
    write(tmp_path / "a.nii", np.where(data == 3, 2.5, data).astype(np.float32))
    with pytest.raises(ValueError, match="found 1 of 504 voxels with fractions"):
        load_labels(tmp_path / "a.nii")
    write(tmp_path / "a.nii", (data * 1e10).astype(np.float64))
    labels = np.asanyarray(load_labels(tmp_path / "a.nii").dataobj)
    assert labels.dtype == np.int64
    np.testing.assert_array_equal(labels, data * 10**10)
    large = np.where(data == 3, 2**64 - 1, data.astype(np.uint64))
    nib.save(nib.Nifti1Image(large, np.eye(4), dtype=np.uint64), tmp_path / "a.nii")
    np.testing.assert_array_equal(np.asanyarray(load_labels(tmp_path / "a.nii").dataobj), large)
    write(tmp_path / "a.nii", (data * 1e17).astype(np.float64))
    with pytest.raises(ValueError, match="expected labels of at most 64 bits"):
        load_labels(tmp_path / "a.nii")


def test_save_refuses_other_suffixes(tmp_path):
    with pytest.raises(ValueError, match="suffix"):
        save_image(ball(), tmp_path / "a.img")


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = write_text(tmp_path / "new" / "a.json", "old")
    with pytest.raises(RuntimeError), atomic_path(path) as temporary:
        assert temporary.parent == path.parent and temporary.name.endswith("a.json")
        temporary.write_text("half")
        raise RuntimeError
    assert path.read_text() == "old"
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize(("text", "is_same"), [("old", True), ("new", False)])
def test_a_file_that_would_not_change_can_be_left(tmp_path, text, is_same):
    path = write_text(tmp_path / "a.json", "old")
    before = path.stat().st_ino
    with atomic_path(path, keep_same=True) as temporary:
        temporary.write_text(text)
    assert path.read_text() == text and (path.stat().st_ino == before) == is_same
    assert list(tmp_path.iterdir()) == [path]


def test_brain_mask_fills_holes_and_drops_specks_and_traces():
    image = ball()
    data = np.array(image.dataobj)
    whole = data > 0
    data[20, 22, 18] = 0
    data[0, 0, 0] = 50
    data[~whole & (data == 0)] = 0.01
    data[20, 22, 18] = 0
    mask = brain_mask(new_image(data, image))
    assert mask.get_data_dtype() == np.uint8
    np.testing.assert_array_equal(np.asanyarray(mask.dataobj), whole)


def test_skull_stripped_or_not(rng):
    brain = ball(radius=14.0, spacing=4.0)
    assert looks_skull_stripped(brain)
    data = np.array(brain.dataobj)
    assert not looks_skull_stripped(new_image(data + 10 * rng.random(data.shape).astype("f4"), brain))
    distance = np.linalg.norm(np.moveaxis(np.indices(data.shape), 0, -1) - np.array(data.shape) / 2, axis=-1)
    head = np.where((distance > 14) & (distance < 17), 5, data)
    head = np.where((distance >= 17) & (distance < 18), 180, head).astype(np.float32)
    assert not looks_skull_stripped(new_image(head, brain))
    assert not looks_skull_stripped(ball((40, 44, 36), 16.0, 6.0))


def test_network_grid_is_its_own():
    affine = from_matvec([[-1, 0, 0], [0, 0, 1], [0, -1, 0]], (79.5, -128.5, 100.5))
    data = np.zeros(GRID_SHAPE, np.uint8)
    data[3:9, 4:8, 5:10] = 1
    image = new_image(data, Grid(GRID_SHAPE, affine))
    np.testing.assert_array_equal(network_grid(image).affine, image.affine)
    turned = new_image(data, Grid(GRID_SHAPE, np.eye(4)))
    assert network_grid(turned).axes == GRID_AXES


@pytest.mark.parametrize("axes", ["RAS", "LPS", "PSR", "LIA"])
def test_network_grid_only_moves_voxels_of_1mm_images(axes, rng):
    turn = ornt_transform(axcodes2ornt("RAS"), axcodes2ornt(axes))
    shape = (31, 34, 40)
    affine = from_matvec(inv_ornt_aff(turn, shape)[:3, :3], (10.25, -3.5, 7.125))
    data = np.zeros(shape, np.float32)
    data[4:20, 6:30, 8:33] = 1 + rng.random((16, 24, 25))
    image = new_image(data, Grid(shape, affine))
    grid = network_grid(image)
    assert (grid.shape, grid.axes) == (GRID_SHAPE, GRID_AXES)
    conformed = np.asanyarray(conform(image, grid).dataobj)
    np.testing.assert_allclose(np.sort(conformed[conformed > 0]), np.sort(data[data > 0]), rtol=1e-5)
    voxels = np.argwhere(conformed > 0)
    middle = (voxels.min(0) + voxels.max(0)) / 2
    assert np.abs(middle - (np.array(GRID_SHAPE) - 1) / 2).max() <= 0.5


def test_network_grid_of_oblique_anisotropic_image_is_centred_and_upright():
    matrix = Rotation.from_euler("xy", (15, 15), degrees=True).as_matrix() @ np.diag((0.8, 1.2, 2.0))
    image = ball((30, 28, 20), 8.0, centre=(18, 12, 9))
    image = new_image(np.asanyarray(image.dataobj), Grid(image.shape, from_matvec(matrix, (30, 40, -50))))
    grid = network_grid(image)
    np.testing.assert_allclose(np.abs(grid.affine[:3, :3]), [[1, 0, 0], [0, 0, 1], [0, 1, 0]], atol=1e-12)
    brain = np.argwhere(np.asanyarray(brain_mask(image).dataobj))
    index = apply_affine(np.linalg.inv(grid.affine) @ image.affine, brain)
    np.testing.assert_allclose((index.min(0) + index.max(0)) / 2, (np.array(GRID_SHAPE) - 1) / 2, atol=1e-6)


def test_network_grid_follows_the_mask():
    image = ball()
    mask = np.zeros(image.shape, np.uint8)
    mask[2:5, 3:6, 4:7] = 1
    grid = network_grid(image, new_image(mask, image))
    centre = apply_affine(np.linalg.inv(grid.affine), (6.0, 8.0, 10.0))
    np.testing.assert_allclose(centre, (np.array(GRID_SHAPE) - 1) / 2, atol=0.51)
    with pytest.raises(ValueError, match="fixed mask: expected a brain, found none of 63360 voxels"):
        network_grid(image, new_image(mask * 0, image))
    with pytest.raises(ValueError, match=r"fixed mask: expected the image's grid, .* found \(39"):
        network_grid(image, new_image(mask[1:], Grid((39, 44, 36), np.eye(4))))


def test_conform_pulls_through_the_affine():
    image = ball(spacing=1.0)
    shift = from_matvec(np.eye(3), (3.0, -2.0, 1.0))
    moved = np.asanyarray(conform(image, image, shift).dataobj)
    np.testing.assert_allclose(moved[10:30, 10:30, 10:30], image.get_fdata()[13:33, 8:28, 11:31], rtol=1e-4)


def test_conform_on_the_same_grid_copies():
    image = ball()
    same = conform(image, image)
    np.testing.assert_array_equal(np.asanyarray(same.dataobj), np.asanyarray(image.dataobj))
    assert not np.shares_memory(np.asanyarray(same.dataobj), np.asanyarray(image.dataobj))
    labels = new_image((np.asanyarray(image.dataobj) > 0).astype(np.int16), image)
    assert conform(labels, image, interpolation="nearest").get_data_dtype() == np.int16
    assert conform(labels, image).get_data_dtype() == np.float32


def test_normalize_intensity():
    data = np.zeros((10, 11, 12), np.int16)
    data[2:8, 2:8, 2:8] = np.arange(1, 217).reshape(6, 6, 6)
    data[0, 0, 0] = -5
    before = data.copy()
    scaled = normalize_intensity(data)
    assert scaled.dtype == np.float32
    assert (scaled.min(), scaled.max()) == (0.0, 1.0)
    assert scaled[0, 0, 0] == 0
    np.testing.assert_allclose(scaled[2, 2, 2], 1 / np.percentile(np.arange(1, 217), 99.5), rtol=1e-5)
    np.testing.assert_array_equal(data, before)
    mask = np.zeros(data.shape, bool)
    mask[2:4] = True
    masked = normalize_intensity(data, mask)
    assert not masked[4:].any()
    np.testing.assert_allclose(masked[2, 2, 2], 1 / np.percentile(data[2:4][data[2:4] > 0], 99.5), rtol=1e-5)
    with pytest.raises(ValueError, match="found none in 1320 voxels"):
        normalize_intensity(-np.abs(data))
    with pytest.raises(ValueError, match=r"expected the image's shape \(10, 11, 12\), found \(9, 11, 12\)"):
        normalize_intensity(data, mask[1:])


def test_correct_bias_flattens_a_ramp(rng):
    clean = ball((40, 44, 36), 15.0)
    tissue = np.where(np.asanyarray(clean.dataobj) > 0, 100.0, 0.0)
    texture = 1 + 0.05 * gaussian_filter(rng.normal(size=tissue.shape), 1)
    ramp = np.linspace(0.6, 1.4, 40)[:, None, None]
    biased = new_image((tissue * texture * ramp).astype(np.float32), clean)
    before = np.array(biased.dataobj)
    corrected = correct_bias(biased)
    inside = tissue > 0
    values = np.asanyarray(corrected.dataobj)
    spread_before, spread = (np.std(a[inside]) / np.mean(a[inside]) for a in (before, values))
    assert spread < 0.4 * spread_before
    assert values.dtype == np.float32
    assert not values[~inside].any()
    np.testing.assert_allclose(corrected.affine, biased.affine)
    np.testing.assert_array_equal(np.asanyarray(biased.dataobj), before)


def test_grid_refuses_what_is_no_grid():
    with pytest.raises(ValueError, match="3 positive sizes"):
        Grid((7, 8), np.eye(4))
    with pytest.raises(ValueError, match=r"4 x 4 matrix, found shape \(3, 3\)"):
        Grid(SHAPE, np.eye(3))
    with pytest.raises(ValueError, match="finite"):
        Grid(SHAPE, np.full((4, 4), np.nan))
    with pytest.raises(ValueError, match="last row"):
        Grid(SHAPE, np.ones((4, 4)))


def test_new_image_keeps_space_codes_and_sheared_affines():
    template = new_image(np.ones(SHAPE, np.float32), Grid(SHAPE, np.eye(4)))
    template.set_sform(template.affine, 4)
    assert new_image(np.ones(SHAPE, np.float32), template).header["qform_code"] == 4
    sheared = np.array([[1, 0.3, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]])
    image = new_image(np.ones(SHAPE, np.float32), Grid(SHAPE, sheared))
    assert image.header["qform_code"] == 0
    np.testing.assert_allclose(image.affine, sheared)


@pytest.mark.realdata
def test_real_heads_and_brains_are_told_apart(data_root):
    brain = data_root / "oasis/sub-OAS10083/ses-01/anat/sub-OAS10083_ses-01_T1w.nii.gz"
    head = data_root / "ixi2mm/sub-013/anat/sub-013_T1w.nii.gz"
    if not (brain.is_file() and head.is_file()):
        pytest.skip(f"{brain} or {head} is absent")
    assert looks_skull_stripped(load_image(brain))
    assert not looks_skull_stripped(load_image(head))


@pytest.mark.parametrize("share", [0.2, 0.5, 0.7, 0.9])
def test_filled_holes_are_scipys(share):
    """Also where a hole touches the border, and where the region is all or nothing."""
    region = np.random.default_rng(3).random((12, 9, 14)) < share
    assert np.array_equal(fill_holes(region), binary_fill_holes(region))
    for constant in (np.zeros((3, 4, 5), bool), np.ones((3, 4, 5), bool)):
        assert np.array_equal(fill_holes(constant), constant)
