"""Templates: the embedded one without network, files, TemplateFlow's cache, and clear refusals."""

import socket

import nibabel as nib
import numpy as np
import pytest

from mmln_pipeline.atlas.templates import EMBEDDED, load_template, template_name
from mmln_pipeline.images.volumes import looks_skull_stripped, network_grid, save_image
from mmln_pipeline.space.grids import Grid, new_image


@pytest.fixture
def brain():
    """Return a small ball-shaped brain, uint8."""
    shape = (21, 24, 22)
    distance = np.linalg.norm(np.moveaxis(np.indices(shape), 0, -1) - np.array(shape) / 2, axis=-1)
    data = np.where(distance < 7, 150 - 5 * distance, 0).astype(np.uint8)
    return new_image(data, Grid(shape, np.diag([-4.0, -4.0, 4.0, 1.0])))


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """Return an empty TemplateFlow cache."""
    monkeypatch.setenv("TEMPLATEFLOW_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def embedded():
    """Return the embedded template, loaded once."""
    return load_template()


def test_embedded_template_needs_no_network(monkeypatch):
    def refuse(*_):
        raise OSError("no network in this test")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    assert load_template(EMBEDDED).name == "MNI152NLin2009aSym"


def test_embedded_template_is_a_stripped_brain_at_1mm(embedded):
    assert embedded.image.shape == (197, 233, 189)
    np.testing.assert_allclose(nib.affines.voxel_sizes(embedded.image.affine), 1.0)
    assert embedded.image.get_data_dtype() == np.float32
    assert embedded.image.header["sform_code"] == 4
    assert looks_skull_stripped(embedded.image)
    mask = np.asanyarray(embedded.mask.dataobj)
    assert mask.dtype == np.uint8
    assert 1.8e6 < mask.sum() < 2.0e6


def test_tissue_labels_fill_the_brain_in_bids_order(embedded):
    labels = np.asanyarray(embedded.dseg.dataobj)
    image, mask = np.asanyarray(embedded.image.dataobj), np.asanyarray(embedded.mask.dataobj)
    np.testing.assert_array_equal(labels > 0, mask > 0)
    assert embedded.dseg_name == "tissue"
    assert embedded.dseg_table["index"].tolist() == [1, 2, 3]
    grey, white, fluid = (image[labels == number].mean() for number in (1, 2, 3))
    assert white > grey > fluid
    assert (labels == 1).sum() > (labels == 2).sum() > (labels == 3).sum() > 1e5


def test_network_grid_of_the_embedded_template(embedded):
    grid = network_grid(embedded.image, embedded.mask)
    expected = [[-1, 0, 0, 80], [0, 0, 1, -128], [0, -1, 0, 101], [0, 0, 0, 1]]
    np.testing.assert_allclose(grid.affine, expected)


def test_loading_twice_shares_nothing(embedded):
    np.asanyarray(embedded.image.dataobj)[0, 0, 0] = 9.0
    assert np.asanyarray(load_template().image.dataobj)[0, 0, 0] == 0.0
    np.asanyarray(embedded.image.dataobj)[0, 0, 0] = 0.0


@pytest.mark.parametrize(
    ("file", "name"),
    [("tpl-Kids_res-01_T1w.nii.gz", "Kids"), ("my brain_v2.nii", "mybrainv2")],
)
def test_template_from_a_file(tmp_path, brain, file, name):
    template = load_template(save_image(brain, tmp_path / file))
    assert (template.name, template.dseg, template.dseg_name) == (name, None, None)
    assert template.image.get_data_dtype() == np.float32
    np.testing.assert_array_equal(np.asanyarray(template.mask.dataobj), np.asanyarray(brain.dataobj) > 0)


def test_labels_of_ones_own(tmp_path, brain):
    path = save_image(brain, tmp_path / "tpl-Kids_T1w.nii.gz")
    labels = save_image(
        new_image((np.asanyarray(brain.dataobj) > 130).astype(np.int16), brain),
        tmp_path / "tpl-Kids_atlas-Core_dseg.nii.gz",
    )
    (tmp_path / "tpl-Kids_atlas-Core_dseg.tsv").write_text("index\tname\n1\tCore\n")
    template = load_template(path, labels)
    assert template.dseg_name == "Core"
    assert template.dseg_table["name"].tolist() == ["Core"]
    (tmp_path / "tpl-Kids_atlas-Core_dseg.tsv").write_text("number\tname\n1\tCore\n")
    with pytest.raises(ValueError, match="expected columns index and name, found number, name"):
        load_template(path, labels)
    other = save_image(new_image(np.ones((5, 6, 7), np.int16), Grid((5, 6, 7), np.eye(4))), tmp_path / "o.nii")
    with pytest.raises(ValueError, match=r"template labels .*o\.nii: expected the grid of template Kids"):
        load_template(path, other)


def test_templateflow_cache(cache, brain):
    folder = cache / "tpl-Kids"
    save_image(brain, folder / "tpl-Kids_res-01_T1w.nii.gz")
    (folder / "tpl-Kids_res-01_desc-brain_T1w.nii.gz").touch()
    with pytest.raises(ValueError, match="fetch it into the cache"):
        load_template("Kids")
    mask = np.asanyarray(brain.dataobj) > 130
    save_image(new_image(mask.astype(np.uint8), brain), folder / "tpl-Kids_res-01_desc-brain_mask.nii.gz")
    template = load_template("Kids")
    assert template.name == "Kids"
    np.testing.assert_array_equal(np.asanyarray(template.image.dataobj) > 0, mask)
    save_image(brain, folder / "tpl-Kids_res-01_desc-brain_T1w.nii.gz")
    np.testing.assert_array_equal(np.asanyarray(load_template("Kids").mask.dataobj), mask)


def raw_head(brain, rng):
    """The brain in a head: nowhere zero."""
    return new_image(np.asanyarray(brain.dataobj) + rng.integers(1, 20, brain.shape).astype(np.uint8), brain)


def test_mask_makes_a_template_of_a_head(tmp_path, brain, rng):
    """By its name beside the image, or given; the given one goes first."""
    inside = np.asanyarray(brain.dataobj) > 0
    head = save_image(raw_head(brain, rng), tmp_path / "tpl-Kids_res-1_desc-head_T1w.nii.gz")
    save_image(new_image(inside.astype(np.uint8), brain), tmp_path / "tpl-Kids_res-1_desc-brain_mask.nii.gz")
    template = load_template(head)
    np.testing.assert_array_equal(np.asanyarray(template.mask.dataobj) > 0, inside)
    np.testing.assert_array_equal(np.asanyarray(template.image.dataobj) > 0, inside)
    core = np.asanyarray(brain.dataobj) > 130
    mask = save_image(new_image(core.astype(np.uint8), brain), tmp_path / "core.nii.gz")
    np.testing.assert_array_equal(np.asanyarray(load_template(head, mask=mask).mask.dataobj) > 0, core)
    embedded = load_template()
    half = np.asanyarray(embedded.mask.dataobj).copy()
    half[: half.shape[0] // 2] = 0
    mask = save_image(new_image(half, embedded.mask), tmp_path / "half.nii.gz")
    masked = load_template(mask=mask)
    assert masked.name == EMBEDDED and masked.dseg_name == "tissue" and masked.dseg_table is not None
    expected = np.where(half > 0, np.asanyarray(embedded.image.dataobj), 0)
    np.testing.assert_array_equal(np.asanyarray(masked.image.dataobj), expected)


def test_wrong_masks(tmp_path, brain, rng):
    head = save_image(raw_head(brain, rng), tmp_path / "head_T1w.nii.gz")
    cases = {
        "off": (np.ones((5, 6, 7), np.uint8), "expected the image's grid"),
        "full": (np.ones(brain.shape, np.uint8), "found nothing like it inside the mask"),
    }
    for name, (data, words) in cases.items():
        mask = save_image(new_image(data, Grid(data.shape, brain.affine)), tmp_path / f"{name}.nii.gz")
        with pytest.raises(ValueError, match=words) as caught:
            load_template(head, mask=mask)
        assert str(mask) in str(caught.value)
    with pytest.raises(FileNotFoundError, match=r"template mask .*none\.nii: no such file"):
        load_template(head, mask=tmp_path / "none.nii")


def test_label_tables_are_inherited(tmp_path, brain):
    """The closest table that BIDS lets the labels inherit; none from outside their dataset."""
    image = save_image(brain, tmp_path / "set/tpl-Kids/tpl-Kids_T1w.nii.gz")
    labels = new_image((np.asanyarray(brain.dataobj) > 130).astype(np.int16), brain)
    dseg = save_image(labels, tmp_path / "set/tpl-Kids/tpl-Kids_res-1_seg-Core_dseg.nii.gz")

    def names():
        table = load_template(image, dseg).dseg_table
        return None if table is None else table["name"].tolist()

    (tmp_path / "dseg.tsv").write_text("index\tname\n1\toutside\n")
    (tmp_path / "set/dataset_description.json").write_text("{}")
    assert names() is None
    (tmp_path / "set/tpl-Kids/seg-Other_dseg.tsv").write_text("index\tname\n1\tother\n")
    (tmp_path / "set/seg-Core_dseg.tsv").write_text("index\tname\n1\troot\n")
    assert names() == ["root"]
    (tmp_path / "set/tpl-Kids/dseg.tsv").write_text("index\tname\n1\tall\n")
    assert names() == ["all"]
    (tmp_path / "set/tpl-Kids/tpl-Kids_seg-Core_dseg.tsv").write_text("index\tname\n1\tboth\n")
    assert names() == ["both"]
    (tmp_path / "mine.tsv").write_text("index\tname\n1\tmine\n")
    assert load_template(image, dseg, dseg_table=tmp_path / "mine.tsv").dseg_table["name"].tolist() == ["mine"]


def test_bundled_table_serves_its_numbering(tmp_path, brain):
    image = save_image(brain, tmp_path / "tpl-Kids_T1w.nii.gz")
    labels = new_image((np.asanyarray(brain.dataobj) > 130).astype(np.int16), brain)
    dseg = save_image(labels, tmp_path / "seg-neuromorphometrics_dseg.nii.gz")
    table = load_template(image, dseg).dseg_table
    assert table.set_index("index")["name"][48] == "Left Hippocampus"


def test_templateflow_cohorts_resolutions_and_labels(cache, brain, monkeypatch):
    """Through the package, with what is in the cache; files of size 0 are those never fetched."""
    folder = cache / "tpl-Kids/cohort-2"
    mask = new_image((np.asanyarray(brain.dataobj) > 0).astype(np.uint8), brain)
    for number in (1, 2):
        save_image(brain, folder / f"tpl-Kids_cohort-2_res-{number}_T1w.nii.gz")
        save_image(mask, folder / f"tpl-Kids_cohort-2_res-{number}_desc-brain_mask.nii.gz")
    save_image(mask, folder / "tpl-Kids_cohort-2_res-1_label-GM_mask.nii.gz")
    save_image(mask, folder / "tpl-Kids_cohort-2_res-2_dseg.nii.gz")
    save_image(mask, folder / "tpl-Kids_cohort-2_res-1_atlas-Other_dseg.nii.gz")
    (folder.parent / "cohort-1").mkdir()
    (folder.parent / "cohort-1/tpl-Kids_cohort-1_res-1_T1w.nii.gz").touch()
    monkeypatch.setattr(socket.socket, "connect", lambda *_: pytest.fail("network"))
    template = load_template("Kids:cohort-2")
    assert (template.name, template.dseg_name) == ("Kids+2", None)
    assert template_name("Kids:cohort-2:res-2") == "Kids+2"
    assert load_template("Kids:cohort-2:res-2").dseg_name == "tissue"
    for name in ("Kids:cohort-1", "Kids", "Kids:cohort-2:res-3"):
        with pytest.raises(ValueError, match=r"which holds Kids; nothing is downloaded at run time"):
            load_template(name)
    assert not list(folder.parent.glob("cohort-1/*_desc-brain*"))


def test_unknown_missing_and_raw_templates(cache, tmp_path, brain, rng):
    with pytest.raises(ValueError, match=r"template 'Nowhere': expected MNI152NLin2009aSym, a NIfTI file"):
        load_template("Nowhere")
    with pytest.raises(FileNotFoundError, match=r"template .*absent\.nii\.gz: no such file"):
        load_template(tmp_path / "absent.nii.gz")
    with pytest.raises(ValueError, match="raw head; give a stripped template"):
        load_template(save_image(raw_head(brain, rng), tmp_path / "head.nii.gz"))
