"""Raw heads: the atlas method on a made head and a real one, and the choice of a method by node, workflow and app."""

import json
import sys

import nibabel as nb
import numpy as np
import pytest
from nibabel.affines import apply_affine, from_matvec
from scipy import ndimage
from scipy.spatial.transform import Rotation
from tiny_bids import describe, make_brain, one_error, write_image

from mmln_pipeline.atlas.templates import load_template
from mmln_pipeline.images.volumes import conform, load_image, load_labels, looks_skull_stripped
from mmln_pipeline.interfaces import BrainExtraction
from mmln_pipeline.interfaces.brain_extraction import SYNTHSTRIP, choose_stripper
from mmln_pipeline.linear import skullstrip
from mmln_pipeline.scores.metrics import dice
from mmln_pipeline.space.grids import Grid, new_image
from mmln_pipeline.workflows import init_preproc_wf, write_boilerplate

# Turn, stretch and shift of the made head, template world to its own.
PLACED = from_matvec(Rotation.from_euler("xyz", (20, -8, 10), degrees=True).as_matrix() * 0.95, (12.0, -30.0, 25.0))


@pytest.fixture(scope="module")
def template():
    return load_template()


@pytest.fixture(scope="module")
def head(template):
    """The template's brain in fluid, skull, scalp and a neck, unevenly lit, with its brain mask; axes P S R."""
    box = apply_affine(PLACED @ template.mask.affine, np.argwhere(np.asanyarray(template.mask.dataobj)))
    low, high = box.min(axis=0) - (24, 24, 54), box.max(axis=0) + 24
    axes = np.array([[0.0, 0, 3], [-3, 0, 0], [0, 3, 0]])  # columns: where a step along I, J, K leads
    shape = tuple(np.ceil((high - low)[[1, 2, 0]] / 3).astype(int))
    grid = Grid(shape, from_matvec(axes, (low[0], high[1], low[2])))
    inverse = np.linalg.inv(PLACED)
    data = 100 * np.asanyarray(conform(template.image, grid, inverse).dataobj)
    mask = np.asanyarray(conform(template.mask, grid, inverse, "nearest").dataobj) > 0
    world = np.moveaxis(apply_affine(grid.affine, np.moveaxis(np.indices(shape), 0, -1)), -1, 0)
    middle = world[:, mask].mean(axis=1)
    neck = (np.hypot(world[0] - middle[0], world[1] - middle[1] + 20) < 45) & (world[2] < world[2][mask].min() + 10)
    rim = ndimage.distance_transform_edt(~mask, sampling=3)
    shells = np.select([rim <= 3, rim <= 8, rim <= 15, neck], [25, 4, 110, 60], 0)
    data = np.where(mask, data, shells) * (1 + 0.003 * (world[1] - middle[1]))
    noise = np.random.default_rng(0).normal(0, 2, shape)
    return new_image((7 * (data + noise)).astype(np.int16), grid), new_image(mask.astype(np.uint8), grid)


def overlap(mask, truth):
    return dice(*(np.asanyarray(image.dataobj).astype(np.int32) for image in (mask, truth)), labels=[1])["1"]


def test_brain_of_a_made_head(head):
    image, truth = head
    assert not looks_skull_stripped(image)
    mask = skullstrip.find_brain(image)
    data = np.asanyarray(mask.dataobj)
    assert Grid.of(image).matches(mask) and data.dtype == np.uint8 and set(np.unique(data)) == {0, 1}
    assert overlap(mask, truth) > 0.95
    assert ndimage.label(data)[1] == 1 and np.array_equal(ndimage.binary_fill_holes(data), data > 0)


def test_mask_follows_the_head_not_its_grid_or_scale(head, template):
    """Turned axes and other units of intensity leave the mask in the same place; zero and below are air."""
    image, truth = head
    mask = skullstrip.mask_from_affine(image, template, PLACED)
    assert overlap(mask, truth) > 0.95
    turned = nb.as_closest_canonical(image)
    data = turned.get_fdata(dtype=np.float32)
    other = skullstrip.mask_from_affine(new_image(np.where(data > 0, 0.01 * data, -5.0), turned), template, PLACED)
    assert overlap(nb.as_closest_canonical(mask), other) > 0.98


def test_no_human_brain_is_said(head, template):
    image, _ = head
    small = from_matvec(np.eye(3) * 0.2, PLACED[:3, 3])
    with pytest.raises(ValueError, match=r"expected a brain 48 mm thick or more, found \d+ mm"):
        skullstrip.mask_from_affine(image, template, small)


@pytest.mark.realdata
def test_brain_of_a_real_head(data_root):
    path = data_root / "fsheads/sub-06/anat/sub-06_T1w.nii.gz"
    if not path.is_file():
        pytest.skip(f"{path} is absent")
    truth = load_labels(data_root / "fsheads/derivatives/freesurfer/sub-06/anat/sub-06_desc-brain_mask.nii.gz")
    assert overlap(skullstrip.find_brain(load_image(path)), truth) > 0.95


# ----------------------------------------------------------------------------------------- the interface


@pytest.fixture
def files(tmp_path, monkeypatch):
    """A stripped brain, the same as a raw head, and its mask; no SynthStrip on the PATH; nodes run in the folder."""
    brain = make_brain()
    mask = nb.Nifti1Image((brain.get_fdata() > 0).astype(np.uint8), brain.affine)
    raw = nb.Nifti1Image(brain.get_fdata(dtype=np.float32) + 5, brain.affine)
    paths = {"folder": tmp_path}
    for name, image in {"brain": brain, "head": raw, "mask": mask}.items():
        paths[name] = str(tmp_path / f"{name}.nii.gz")
        nb.save(image, paths[name])
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    return paths


@pytest.fixture
def atlas(monkeypatch):
    """Replace the atlas method by a threshold; return the seeds it is called with."""
    seeds = []

    def threshold(image, seed=0):
        seeds.append(seed)
        return new_image((np.asanyarray(image.dataobj) > 5).astype(np.uint8), image), np.eye(4)

    monkeypatch.setattr(skullstrip, "locate_brain", threshold)
    return seeds


def put_synthstrip(folder, script="nb.save(mask, target)"):
    """Write a stand-in for FreeSurfer's command: what is brighter than 5 is brain."""
    folder.mkdir()
    lines = [
        f"#!{sys.executable}",
        "import sys, numpy as np, nibabel as nb",
        "source, target = (sys.argv[sys.argv.index(flag) + 1] for flag in ('-i', '-m'))",
        "image = nb.load(source)",
        "mask = nb.Nifti1Image((image.get_fdata() > 5).astype(np.uint8), image.affine)",
        script,
    ]
    (folder / SYNTHSTRIP).write_text("\n".join(lines) + "\n")
    (folder / SYNTHSTRIP).chmod(0o755)


def extracted(path, **settings):
    out = BrainExtraction(in_file=path, **settings).run().outputs
    mask = nb.load(out.out_mask).get_fdata()
    assert np.all(nb.load(out.out_file).get_fdata()[mask == 0] == 0) and out.seconds > 0
    return mask, out.source


def expected(files):
    return nb.load(files["mask"]).get_fdata()


@pytest.mark.parametrize("method", ["auto", "skip", "synthstrip", "atlas"])
def test_a_given_mask_goes_before(files, method):
    mask, source = extracted(files["head"], in_mask=files["mask"], method=method)
    np.testing.assert_array_equal(mask, expected(files))
    assert source == "given"


@pytest.mark.parametrize("method", ["auto", "skip"])
def test_a_stripped_image_is_taken_as_it_is(files, tmp_path, method):
    put_synthstrip(tmp_path / "bin")
    mask, source = extracted(files["brain"], method=method)
    np.testing.assert_array_equal(mask, expected(files))
    assert source == "the image was stripped already"


@pytest.mark.parametrize("method", ["auto", "atlas"])
def test_raw_head_without_synthstrip(files, atlas, method):
    mask, source = extracted(files["head"], method=method, random_seed=3)
    np.testing.assert_array_equal(mask, expected(files))
    assert source == "estimated by the template (atlas method)" and atlas == [3]


@pytest.mark.parametrize("method", ["auto", "synthstrip"])
def test_raw_head_with_synthstrip(files, tmp_path, method):
    put_synthstrip(tmp_path / "bin")
    mask, source = extracted(files["head"], method=method)
    np.testing.assert_array_equal(mask, expected(files))
    assert source == "estimated by SynthStrip"


def test_the_workflow_s_choice_holds(files, tmp_path, atlas):
    put_synthstrip(tmp_path / "bin")
    assert "atlas" in extracted(files["head"], stripper="atlas")[1]


def test_asked_for_methods_strip_whatever_comes(files, atlas):
    assert "atlas" in extracted(files["brain"], method="atlas")[1]


def test_choice_of_the_stripper(files, tmp_path):
    assert choose_stripper() == "atlas" and choose_stripper("skip") == "skip"
    with pytest.raises(ValueError, match="expected FreeSurfer's mri_synthstrip on the PATH, found none"):
        choose_stripper("synthstrip")
    put_synthstrip(tmp_path / "bin")
    assert choose_stripper() == choose_stripper("synthstrip") == "synthstrip"


def test_masks_that_cannot_be_right_are_refused(files, tmp_path):
    put_synthstrip(tmp_path / "bin", "nb.save(nb.Nifti1Image(np.ones((7, 8, 9), np.uint8), np.eye(4)), target)")
    with pytest.raises(ValueError, match=r"mask\.nii\.gz: expected the grid.*\(7, 8, 9\)"):
        extracted(files["head"], method="synthstrip")


def test_failing_synthstrip_is_told(files, tmp_path):
    put_synthstrip(tmp_path / "bin", "sys.exit('no licence')")
    with pytest.raises(RuntimeError, match=r"head\.nii\.gz: mri_synthstrip exited with code 1: no licence"):
        extracted(files["head"], method="synthstrip")


def test_head_without_a_brain_is_named(files, monkeypatch):
    def fail(image, seed=0):
        raise ValueError("affine alignment failed")

    monkeypatch.setattr(skullstrip, "locate_brain", fail)
    with pytest.raises(ValueError, match=r"head\.nii\.gz: looks like a raw head, but no brain.*--derivatives"):
        extracted(files["head"])


# ------------------------------------------------------------------------------------- workflow and BIDS App


def test_methods_text_names_the_method(files, tmp_path):
    def text(**settings):
        return write_boilerplate(init_preproc_wf(bias_correction=False, **settings))[0]

    assert "was skull-stripped already" in text(skull_strip="skip")
    assert "MNI152NLin2009aSym template" in text() and "taken as they were" in text()
    assert "taken as they were" not in text(skull_strip="atlas") and "given brain mask" in text(has_mask=True)
    put_synthstrip(tmp_path / "bin")
    assert "with SynthStrip [1]" in text() and "Hoopes" in text()


@pytest.fixture
def heads(files):
    """A raw dataset with a head and a brain."""
    folder = write_image(nb.load(files["head"]), files["folder"] / "raw/sub-01/anat/sub-01_T1w.nii.gz").parents[2]
    write_image(nb.load(files["brain"]), folder / "sub-02/anat/sub-02_T1w.nii.gz")
    describe(folder)
    (folder / "README").write_text("An ellipsoid with and without a rim.\n")
    return folder


def test_dry_run_names_the_method(heads, command, capsys):
    assert command("--dry-run", bids=heads) == 0
    said = capsys.readouterr().out
    assert "mask: none given: the image's own where it is stripped, else atlas (--skull-strip auto)" in said
    put_synthstrip(heads.parent / "bin")
    assert command("--dry-run", bids=heads) == 0
    assert "else synthstrip (--skull-strip auto)" in capsys.readouterr().out
    assert command("--dry-run", "--skull-strip", "atlas", bids=heads) == 0
    assert "mask: none given: atlas (--skull-strip atlas)" in capsys.readouterr().out


def test_app_strips_heads_only(heads, command):
    put_synthstrip(heads.parent / "bin")
    assert command("--no-bias-correction", "--init", "identity", bids=heads) == 0
    found = {"01": "estimated by SynthStrip", "02": "the image was stripped already"}
    for subject, source in found.items():
        record = heads.parent / f"out/sub-{subject}/anat/sub-{subject}_desc-registration_qc.json"
        assert json.loads(record.read_text())["brain_mask"] == source
        assert source in (heads.parent / f"out/sub-{subject}.html").read_text()
    assert "SynthStrip" in (heads.parent / "out/logs/CITATION.md").read_text()


def test_head_that_cannot_be_stripped_fails_with_the_mend(heads, command, capsys, monkeypatch):
    def fail(image, seed=0):
        raise ValueError("affine alignment failed")

    monkeypatch.setattr(skullstrip, "locate_brain", fail)
    assert command("--participant-label", "01", bids=heads) == 1
    assert "no brain was found in it (affine alignment failed): give a brain mask by --derivatives" in one_error(capsys)
