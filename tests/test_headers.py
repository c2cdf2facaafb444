"""What the header says: where programs place an image, its unit, signed intensities, and files that are damaged."""

import gzip
import struct
import warnings

import nibabel as nib
import numpy as np
import pytest
from nilearn.datasets import load_mni152_brain_mask, load_mni152_template
from tiny_bids import SHAPE, make_brain, write_image

from mmln_pipeline import register
from mmln_pipeline.cli import main
from mmln_pipeline.images.brain import Brain, make_unsigned
from mmln_pipeline.images.volumes import load_image, load_labels, normalize_intensity, save_image
from mmln_pipeline.interfaces import BrainExtraction
from mmln_pipeline.registration.pair import load_pair
from mmln_pipeline.scores.quality import judge
from mmln_pipeline.space.displacements import DisplacementField
from mmln_pipeline.space.grids import Grid, new_image
from mmln_pipeline.space.itk import save_affine, save_displacement
from mmln_pipeline.space.placement import HeaderWarning, find_placement, find_placements, score_headers
from mmln_pipeline.space.transforms import Transform, read_transform

TURN = np.array([[0.97, -0.26, 0, 4.0], [0.26, 0.97, 0, -3.0], [0, 0, 1, 2.0], [0, 0, 0, 1.0]])


def write(path, sform_code, qform_code, qform=None, units="mm", sform=None):
    """A small brain whose header holds these forms."""
    brain = make_brain()
    image = nib.Nifti1Image(brain.get_fdata(dtype=np.float32), brain.affine)
    image.header.set_xyzt_units(units)
    image.set_sform(brain.affine if sform is None else sform, sform_code)
    image.set_qform(brain.affine if qform is None else qform, qform_code)
    nib.save(image, path)
    return path


# ------------------------------------------------------------------------------------------- where it lies


@pytest.mark.parametrize(
    ("sform_code", "qform_code", "form"),
    [(2, 1, "sform (code 2)"), (4, 1, "sform (code 4)"), (0, 0, "guess, centred on the origin")],
)
def test_forms_that_programs_read_differently(tmp_path, sform_code, qform_code, form):
    path = write(tmp_path / "a.nii.gz", sform_code, qform_code, TURN @ make_brain().affine)
    with pytest.warns(HeaderWarning, match=r"NiBabel and ITK .* mm at its centre"):
        image = load_image(path)
    np.testing.assert_allclose(image.affine, nib.load(path).affine, atol=1e-5)
    placement = find_placement(path)
    assert placement.form == form and placement.centre_mm > 1
    headers = score_headers(find_placements({"T1w": path}))
    assert headers["itk_distance_mm"] == placement.largest_mm and form in headers["doubts"]
    verdict = judge({"headers": headers})
    assert verdict["verdict"] == "look" and "NiBabel and ITK" in verdict["reasons"][0]


def test_sheared_sform_beside_a_qform(tmp_path):
    shear = np.eye(4)
    shear[0, 1] = 0.2
    affine = make_brain().affine
    path = write(tmp_path / "a.nii", 1, 1, affine, sform=shear @ affine)
    with pytest.warns(HeaderWarning):
        load_image(path)
    assert find_placement(path).largest_mm is None or find_placement(path).largest_mm > 0.5


@pytest.mark.parametrize("codes", [(1, 1), (0, 1), (1, 0), (4, 4)])
def test_headers_that_say_one_thing(tmp_path, codes):
    path = write(tmp_path / "a.nii.gz", *codes)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_image(path)
    headers = score_headers(find_placements({"T1w": path}))
    assert headers["itk_distance_mm"] == 0 and headers["doubts"] is None
    assert judge({"headers": headers})["verdict"] == "pass"


@pytest.mark.parametrize(("units", "factor"), [("micron", 1000.0), ("meter", 0.001), ("mm", 1.0), ("unknown", 1.0)])
def test_units_are_applied(tmp_path, units, factor):
    affine = make_brain().affine
    scaled = np.diag([factor, factor, factor, 1.0]) @ affine
    path = write(tmp_path / "a.nii", 1, 1, scaled, units, scaled)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", HeaderWarning)
        image = load_image(path)
        pair = load_pair(nib.load(path), nib.load(path))
    np.testing.assert_allclose(image.affine, affine, atol=1e-3)
    np.testing.assert_allclose(pair.moving.image.affine, affine, atol=1e-3)


def test_a_unit_that_cannot_be_is_named(tmp_path):
    """Numbers in mm, called metres: its brain would be as large as a hill."""
    path = write(tmp_path / "a.nii", 1, 1, make_brain().affine, "meter")
    with pytest.raises(ValueError, match=r"a\.nii: expected voxels of 0\.01 to 20 mm, found 1e\+03 x .*xyzt_units"):
        BrainExtraction(in_file=path).run(cwd=tmp_path)
    with pytest.raises(ValueError, match="fixed image: expected voxels of"):
        register(nib.load(path), make_brain(), init="identity")


@pytest.mark.parametrize("broken", [np.full((4, 4), np.nan), np.diag([1.0, 0, 1, 1])])
def test_where_no_header_says_a_place_nobody_is_asked(tmp_path, capfd, broken):
    path = write(tmp_path / "a.nii", 1, 1)
    content = bytearray(path.read_bytes())
    struct.pack_into("<12f", content, 280, *broken[:3].ravel())
    path.write_bytes(content)
    assert find_placement(path) is None and capfd.readouterr() == ("", "")


def test_every_command_tells(tmp_path, capsys):
    path = write(tmp_path / "a.nii.gz", 2, 1, TURN @ make_brain().affine)
    save_affine(np.eye(4), tmp_path / "x.mat")
    options = ["--transform", str(tmp_path / "x.mat"), "--reference", str(path), "--output", str(tmp_path / "o.nii")]
    assert main(["apply", *options, str(path)]) == 0
    said = capsys.readouterr().err
    assert "mmln: warning: input image" in said and "mmln: warning: reference image" in said and ".py" not in said
    options = ["--fixed", str(path), "--moving", str(path), "--transform", str(tmp_path / "x.mat")]
    assert main(["evaluate", *options, "--output", str(tmp_path / "m.json")]) == 0
    assert "NiBabel and ITK" in (tmp_path / "m.json").read_text()


def test_app_tells_and_records(place, command, tmp_path, capsys):
    t1w = place / "raw/sub-02/anat/sub-02_run-1_T1w.nii.gz"
    own = nib.load(t1w)
    own.set_sform(own.affine, 2)
    own.set_qform(TURN @ own.affine, 1)
    nib.save(nib.Nifti1Image(own.get_fdata(dtype=np.float32), None, own.header), t1w)
    assert command("--dry-run", "--participant-label", "02") == 0
    said = capsys.readouterr().err
    assert f"mmln-bids: warning: T1w image of {t1w.name}: {t1w}: NiBabel and ITK" in said


# -------------------------------------------------------------------------------------- what the numbers say


@pytest.mark.parametrize("kind", ["brain", "whole", "scaled"])
def test_signed_images_keep_their_brain(kind):
    brain = make_brain()
    data = brain.get_fdata(dtype=np.float32)
    inside = data > 0
    signed = {
        "brain": np.where(inside, (data - data[inside].mean()) / data[inside].std(), 0),  # background 0
        "whole": (data - data.mean()) / data.std(),  # background a negative constant
        "scaled": np.where(inside, data / data.max() - 0.5, -0.5),
    }[kind].astype(np.float32)
    image = new_image(signed, brain)
    for mask in (None, new_image(inside.astype(np.uint8), brain)):
        seen = Brain(image, mask)
        scaled = normalize_intensity(np.asarray(seen.intensities.dataobj), seen.inside)
        assert (scaled[inside] == 0).mean() < 0.01 and (scaled[~inside] == 0).all()
        assert np.corrcoef(scaled[inside], data[inside])[0, 1] > 0.999
        if kind != "brain":  # zero is known: the background's
            np.testing.assert_allclose(scaled, normalize_intensity(data, inside), atol=1e-3)


def test_a_stripped_brain_is_known_as_such_after_a_z_score(tmp_path):
    image, mask_image = load_mni152_template(resolution=2), load_mni152_brain_mask(resolution=2)
    inside = np.asanyarray(mask_image.dataobj) > 0
    data = image.get_fdata(dtype=np.float32)
    signed = np.where(inside, (data - data[inside].mean()) / data[inside].std(), 0).astype(np.float32)
    save_image(new_image(signed, image), tmp_path / "zscored.nii.gz")
    found = BrainExtraction(in_file=tmp_path / "zscored.nii.gz").run(cwd=tmp_path).outputs
    assert "stripped" in found.source
    mask = np.asanyarray(load_image(found.out_mask).dataobj) > 0
    assert (mask & inside).sum() / (mask | inside).sum() > 0.98
    assert (load_image(found.out_file).get_fdata()[inside] == 0).mean() < 0.01
    template = Brain(image, mask_image)
    like_template = BrainExtraction(in_file=tmp_path / "zscored.nii.gz", dark_share=template.measure_dark_share())
    lifted = Brain(load_image(like_template.run(cwd=tmp_path).outputs.out_file))
    assert lifted.measure_dark_share() == pytest.approx(template.measure_dark_share(), abs=0.005)


def test_a_brain_without_a_zero_gets_that_of_other_brains():
    signed = np.zeros((20, 20, 20), np.float32)
    signed[4:16, 4:16, 4:16] = np.linspace(-2, 3, 12**3).reshape(12, 12, 12)
    lifted = make_unsigned(new_image(signed, Grid(signed.shape, np.eye(4)))).get_fdata()
    low, high = np.percentile(lifted[lifted > 0], (0.5, 99.5))
    assert low / high == pytest.approx(0.17, abs=0.005)
    plain = Brain(new_image(np.where(signed != 0, signed + 5, 0), Grid(signed.shape, np.eye(4))))
    same = Brain(new_image(signed, plain.image)).like(plain)
    np.testing.assert_allclose(same.intensities.get_fdata(), plain.image.get_fdata(), atol=0.05)
    assert plain.like(same) is plain


@pytest.mark.parametrize(("filling", "share"), [(-10.0, 0.17), (-1000.0, 0.17), (-2.0, 0.17), (-3.0, 0.2)])
def test_a_background_that_was_filled_in_is_no_zero(filling, share):
    """A z-scored brain in a background that a program filled in; and one whose background was moved with it."""
    signed = np.full((20, 20, 20), filling, np.float32)
    signed[4:16, 4:16, 4:16] = np.linspace(-2, 2, 12**3).reshape(12, 12, 12)
    lifted = make_unsigned(new_image(signed, Grid(signed.shape, np.eye(4)))).get_fdata()
    low, high = np.percentile(lifted[lifted > 0], (0.5, 99.5))
    assert low / high == pytest.approx(share, abs=0.01) and not lifted[0].any()


def test_a_signed_head_keeps_the_background_as_its_zero(rng):
    """Its air is hardly brighter; lifted, it would pass for a brain."""
    head = np.full((20, 20, 20), -1000, np.float32)
    head[2:18, 2:18, 2:18] = -999 + 1500 * rng.uniform(0, 1, (16, 16, 16)) ** 3
    lifted = Brain(new_image(head, Grid(head.shape, np.eye(4)))).intensities.get_fdata()
    np.testing.assert_allclose(lifted, head + 1000, atol=1e-3)


def test_plain_images_stay_as_they_are():
    brain = make_brain()
    assert make_unsigned(brain) is brain
    data = brain.get_fdata(dtype=np.float32)
    data[0, 0, :3] = -1e-3  # as resampling leaves
    ringing = new_image(data, brain)
    assert make_unsigned(ringing) is ringing


@pytest.mark.parametrize("interpolation", ["nearest", "label"])
@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int32, np.uint32, np.int64, np.float32, np.float64])
def test_no_label_is_made_up(tmp_path, rng, interpolation, dtype):
    """Allen's and FreeSurfer's numbers lie above 2**24, beyond which single precision is too coarse."""
    top = {np.uint8: 255, np.int16: 32767, np.float32: 2**24}.get(dtype, 2**30 + 1)
    numbers = np.array([0, 7, top - 1, top], dtype=dtype)
    labels = nib.Nifti1Image(numbers[rng.integers(0, 4, SHAPE)], np.eye(4), dtype=dtype)
    nib.save(labels, tmp_path / "labels.nii.gz")
    save_affine(np.array([[1, 0.02, 0, 0.4], [0, 1, 0, -0.3], [0, 0, 1, 0.2], [0, 0, 0, 1.0]]), tmp_path / "x.mat")
    output = tmp_path / "out.nii.gz"
    options = ["--transform", str(tmp_path / "x.mat"), "--reference", str(tmp_path / "labels.nii.gz")]
    options += ["--output", str(output), "--interpolation", interpolation]
    assert main(["apply", *options, str(tmp_path / "labels.nii.gz")]) == 0
    assert set(np.unique(nib.load(output).dataobj)) <= {float(number) for number in numbers}


def test_a_slope_within_rounding_of_one_is_none(tmp_path):
    data = np.arange(np.prod(SHAPE), dtype=np.int32).reshape(SHAPE) % 1000
    image = nib.Nifti1Image(data, np.eye(4))
    image.header.set_slope_inter(1.0000001, 0)
    nib.save(image, tmp_path / "a.nii.gz")
    np.testing.assert_array_equal(load_labels(tmp_path / "a.nii.gz").dataobj, data)


# ------------------------------------------------------------------------------------------- damaged files


def damage(path):
    """Turn one bit of the checksum at the end of a gzip file."""
    content = bytearray(path.read_bytes())
    content[-8] ^= 1
    path.write_bytes(content)
    return path


def test_a_wrong_checksum_is_refused(tmp_path, capsys):
    image = damage(write_image(make_brain(), tmp_path / "a.nii.gz"))
    field = DisplacementField(np.zeros((*SHAPE, 3), np.float32), make_brain().affine)
    save_displacement(field, tmp_path / "field.nii.gz")
    damage(tmp_path / "field.nii.gz")
    for load in (load_image, load_labels):
        with pytest.raises(ValueError, match=r"a\.nii\.gz: cannot be read \(CRC check failed"):
            load(image)
    with pytest.raises(ValueError, match=r"field\.nii\.gz: not a readable NIfTI file \(CRC check failed"):
        read_transform(tmp_path / "field.nii.gz")
    assert main(["register", "--fixed", str(image), "--moving", str(image), "--output-dir", str(tmp_path / "o")]) == 2
    assert "a.nii.gz" in capsys.readouterr().err


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_a_header_that_promises_too_much_is_refused_before_memory_is_taken(tmp_path, suffix):
    path = write_image(make_brain(), tmp_path / "a.nii")
    content = bytearray(path.read_bytes())
    content[42:48] = struct.pack("<3h", 30000, 30000, 30000)  # dim[1:4]: some 100 TB
    path = tmp_path / f"b{suffix}"
    path.write_bytes(gzip.compress(content) if suffix == ".nii.gz" else content)
    with pytest.raises(ValueError, match=r"its header promises \d+ bytes, found \d+"):
        load_image(path)


def test_a_mask_a_hair_off_its_image_passes_or_fails_before_work(tmp_path):
    brain = make_brain()
    for shift, passes in ((0.005, True), (0.02, False)):
        affine = brain.affine.copy()
        affine[0, 3] += shift
        mask = nib.Nifti1Image((brain.get_fdata() > 0).astype(np.uint8), affine)
        if passes:
            assert load_pair(brain, brain, moving_mask=mask).moving.inside.any()
            continue
        with pytest.raises(ValueError, match=r"moving mask must lie on the grid .* up to 0\.02 mm away"):
            load_pair(brain, brain, moving_mask=mask)


def test_resampling_far_away_leaves_background():
    labels = nib.Nifti1Image(np.full(SHAPE, 2**30, np.int64), np.eye(4), dtype=np.int64)
    moved = Transform([np.array([[1, 0, 0, 500.0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])]).resample(
        labels, labels, "nearest"
    )
    assert not np.asanyarray(moved.dataobj).any()
