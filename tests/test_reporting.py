"""Tests of figures and of the subject's page: any orientation, same bytes, nothing loaded from outside."""

import json
import re
import shutil
import tempfile
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser
from types import SimpleNamespace

import matplotlib.pyplot as plt
import nibabel as nb
import numpy as np
import pytest
from browser import DESKTOP, browser, check_page, needs_chromium
from nibabel.orientations import axcodes2ornt, io_orientation, ornt_transform

from mmln_pipeline.bids_app.finished import _read_record
from mmln_pipeline.reporting import figures, record, shown_scores
from mmln_pipeline.reporting.mosaic import lay_out
from mmln_pipeline.reporting.page import write_subject_report
from mmln_pipeline.scores.quality import CHECKS

__all__ = ["browser"]  # a fixture

SHAPE = (14, 17, 19)
ORIENTATIONS = ("RAS", "LAS", "LPS", "LIA", "SRP")
QC = {
    "template": "MNI152NLin2009aSym",
    "model": "mmln",
    "device": "cpu",
    "version": "0.1.0",
    "dice": 0.765,
    "dice_before": 0.5,
    "dice_per_label": {"left <putamen>": 0.7651, "3": None},
    "tc_per_label": {"left <putamen>": 1.02},
    "folding_percent": 0.0,
    "folding_percent_brain": 0.00432,
    "ndv_percent": 0.0012,
    "tc": 1.01,
    "sdlogj": 0.31,
    "hd95_mm": 2.5,
    "seconds": {"affine_init": 12.0, "network": 4.25, "total": 17.0},
    "peak_memory_mb": 2048.0,
    "versions": {"torch": "2.13.0"},
    "machine": {"processors": 2},
    "t1w": "bids:raw:sub-01/anat/sub-01_T1w.nii.gz",
    "init": "affine",
    "affine": {"rotation_degrees": 12.34, "volume_ratio": 0.8},
    "qc": {"verdict": "look", "reasons": ["brain overlap <low>", "rotation high"]},
}


@pytest.fixture(scope="module")
def brain():
    """Return a blob with texture on an anisotropic RAS grid, brightest on the right, front and top."""
    rng = np.random.default_rng(0)
    grid = np.stack(np.meshgrid(*(np.linspace(-1, 1, size) for size in SHAPE), indexing="ij"))
    data = np.where((grid**2).sum(axis=0) < 0.8, 100 + 60 * grid.sum(axis=0), 0) + 0.0
    data[data > 0] += rng.uniform(0, 20, (data > 0).sum())
    affine = np.diag([2.0, 1.5, 2.5, 1.0])
    affine[:3, 3] = [-13, -11, -20]
    return nb.Nifti1Image(data.astype(np.float32), affine)


def reorient(image, codes):
    """Store an image in another voxel order; its place in the world stays."""
    return image.as_reoriented(ornt_transform(io_orientation(image.affine), axcodes2ornt(codes)))


def rotate(image, degrees=20.0):
    """Turn an image's grid about the z axis of the world."""
    angle = np.deg2rad(degrees)
    turn = np.eye(4)
    turn[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    return nb.Nifti1Image(np.asarray(image.dataobj), turn @ image.affine)


def label(image):
    """Cut a brain into labels 1 to 3 by intensity."""
    data = np.asarray(image.dataobj)
    return nb.Nifti1Image(np.digitize(data, [1, 80, 120]).astype(np.int16), image.affine)


def displacement(image, offsets=(0.0, 0.0, 0.0)):
    """Return a constant field, in mm, on an image's grid."""
    return SimpleNamespace(offsets_mm=np.zeros((*image.shape, 3)) + offsets, affine=image.affine)


def draw_all(image, folder, stem="sub-01"):
    """Draw every figure of an image, with made-up inputs; return the files."""
    folder.mkdir(parents=True, exist_ok=True)
    mask = nb.Nifti1Image((np.asarray(image.dataobj) > 0).astype(np.uint8), image.affine)
    log_jacobian = nb.Nifti1Image(0.01 * np.asarray(image.dataobj) - 1, image.affine)
    other = nb.Nifti1Image(np.asarray(image.dataobj)[::-1], image.affine)
    names = ("space-T_desc-registration_T1w", "space-T_desc-warpgrid_T1w", "space-T_desc-jacobian_T1w",
             "desc-brain_mask", "space-T1w_seg-tissue_dseg")  # fmt: skip
    files = [folder / f"{stem}_{name}.svg" for name in names]
    figures.plot_before_after(image, other, image, files[0], mask=mask)
    figures.plot_warp_grid(image, displacement(image, (1.0, 2.0, 0.0)), files[1])
    figures.plot_log_jacobian(image, log_jacobian, files[2], mask=mask)
    figures.plot_brain_mask(image, mask, files[3])
    figures.plot_labels(image, label(image), files[4], names={1: "grey", 2: "white"})
    return files


def outside_references(text):
    """Return what a browser would load from outside of an HTML or SVG text."""
    found = re.findall(r"""(?<![a-z])src\s*=\s*["']?([^"'\s>]+)|url\(\s*["']?([^"')]+)|@import\s+(\S+)""", text)
    found += re.findall(r"""<(?:link|use|image|object|iframe|script)\b[^>]*href=["']([^"']+)""", text)
    values = [part for item in found for part in ([item] if isinstance(item, str) else item) if part]
    return [value for value in values if not value.startswith(("data:", "#"))]


class Outline(HTMLParser):
    """Collect the parts of a page that the tests look at."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.ids, self.images, self.anchors = [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        self.tags.append(tag)
        self.ids += [attributes["id"]] if "id" in attributes else []
        self.images += [attributes] if tag == "img" else []
        href = attributes.get("href", "") if tag == "a" else ""
        self.anchors += [href[1:]] if href.startswith("#") else []


@pytest.fixture(scope="module")
def drawn(brain, tmp_path_factory):
    """Draw every figure once; return the files."""
    return draw_all(brain, tmp_path_factory.mktemp("drawn"))


def copy_figures(drawn, folder, stem="sub-01"):
    """Give a subject's folder the figures of a scan."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in drawn:
        shutil.copy(path, folder / path.name.replace("sub-01", stem))


@pytest.fixture
def dataset(drawn, tmp_path):
    """Make a derivatives folder with the figures and scores of one subject without sessions."""
    copy_figures(drawn, tmp_path / "sub-01" / "figures")
    (tmp_path / "sub-01" / "anat").mkdir()
    (tmp_path / "sub-01" / "anat" / "sub-01_desc-registration_qc.json").write_text(json.dumps(QC))
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "CITATION.md").write_text("Registered with MMLN <1>. https://doi.org/10.1000/1")
    return tmp_path


@pytest.mark.parametrize("codes", ORIENTATIONS)
def test_mosaic_does_not_depend_on_the_voxel_order(brain, codes):
    reference, turned = lay_out(brain), lay_out(reorient(brain, codes))
    np.testing.assert_allclose(turned.points, reference.points, atol=1e-6)
    np.testing.assert_allclose(turned.sample(reorient(brain, codes)), reference.sample(brain), atol=1e-3)


def test_mosaic_puts_left_on_the_left_and_up_on_top(brain):
    mosaic = lay_out(brain)
    for cell in mosaic.cells:
        points = mosaic.points[cell.rows, cell.columns]
        across, along = {"axial": (0, 1), "coronal": (0, 2), "sagittal": (1, 2)}[cell.plane]
        assert points[0, -1, across] > points[0, 0, across]
        assert points[0, 0, along] > points[-1, 0, along]
    assert [cell.plane for cell in mosaic.cells[::5]] == ["axial", "coronal", "sagittal"]
    assert mosaic.step_mm == 1.5


def test_mosaic_samples_voxels_of_an_isotropic_grid_exactly(rng):
    data = rng.uniform(1, 2, (7, 8, 9)).astype(np.float32)
    image = nb.Nifti1Image(data, np.eye(4))
    mosaic = lay_out(image, cuts=2)
    cell = mosaic.cells[0]
    np.testing.assert_array_equal(mosaic.sample(image)[cell.rows, cell.columns], data[:, ::-1, 3].T)
    assert cell.position_mm == 3


def test_mosaic_slices_lie_inside_the_brain_given_on_another_grid(brain):
    mask = nb.Nifti1Image(np.ones((3, 3, 3), np.uint8), np.array(
        [[1.0, 0, 0, 4], [0, 1, 0, 3], [0, 0, 1, 2], [0, 0, 0, 1]]))  # fmt: skip
    positions = [cell.position_mm for cell in lay_out(brain, mask, cuts=3).cells if cell.plane == "sagittal"]
    assert min(positions) >= 3
    assert max(positions) <= 7


@pytest.mark.parametrize("codes", ["LAS", "LIA", "oblique"])
def test_figures_are_valid_svg_in_every_orientation(brain, codes, tmp_path):
    image = rotate(brain) if codes == "oblique" else reorient(brain, codes)
    for path in draw_all(image, tmp_path):
        text = path.read_text(encoding="utf-8")
        root = ElementTree.fromstring(text)
        assert root.tag == "{http://www.w3.org/2000/svg}svg"
        assert root.get("viewBox")
        assert root.get("width") is None
        assert root.find("{http://www.w3.org/2000/svg}title").text
        assert outside_references(text) == []
        assert path.stat().st_size < 1_000_000
    assert [path.name for path in tmp_path.iterdir() if path.suffix != ".svg" or path.name[0] == "."] == []


def test_figures_have_the_same_bytes_again_and_leave_pyplot_alone(brain, drawn, tmp_path):
    settings = dict(plt.rcParams)
    again = draw_all(brain, tmp_path)
    assert [path.read_bytes() for path in again] == [path.read_bytes() for path in drawn]
    assert plt.get_fignums() == []
    assert dict(plt.rcParams) == settings


def test_figures_of_one_scan_have_no_id_twice(drawn):
    for path in drawn:
        ids = re.findall(r'\bid="([^"]*)"', path.read_text())
        assert len(ids) == len(set(ids))


def test_before_after_has_its_layers_in_order(drawn):
    text = drawn[0].read_text()
    layers = re.findall(r'<g class="layer-(\w+)">', text)
    assert layers == ["fixed", "after", "before", "contour", "frame"]
    assert "animation" in text
    assert text.count('<g class="note-caption">') == 3


def test_warp_grid_of_a_pure_affine_is_straight(brain):
    mosaic = lay_out(brain, cuts=3)
    linear = np.array([[0.1, 0.05, 0.0], [-0.05, 0.0, 0.02], [0.0, 0.0, -0.1]])
    offsets = np.where(mosaic.filled[..., None], np.nan_to_num(mosaic.points) @ linear.T + [3, -2, 1], 0)
    residual = figures._without_affine(mosaic.points, offsets, mosaic.filled)
    np.testing.assert_allclose(residual[mosaic.filled], 0, atol=1e-8)


def test_warp_grid_moves_lines_along_the_displacement(brain):
    mosaic = lay_out(brain, cuts=3)
    still = figures._grid_lines(mosaic, mosaic.sample_displacement(displacement(brain)), 4)
    step = mosaic.step_mm
    moved = figures._grid_lines(mosaic, mosaic.sample_displacement(displacement(brain, (step, 0, 0))), 4)
    axial, coronal = mosaic.cells[0], mosaic.cells[3]
    assert axial.right[0] == coronal.right[0] == 1
    difference = moved[0][:-1] - still[0][:-1]  # a row of the first axial slice: moves to the right by one pixel
    np.testing.assert_allclose(difference, np.tile([1.0, 0.0], (len(difference), 1)), atol=1e-5)


def test_log_jacobian_marks_folds_and_nan(brain, tmp_path):
    data = np.zeros(brain.shape, np.float32)
    smooth = tmp_path / "smooth.svg"
    figures.plot_log_jacobian(brain, nb.Nifti1Image(data, brain.affine), smooth)
    data[4:9] = np.log(1e-9)
    data[9:11] = np.nan
    folded = tmp_path / "folded.svg"
    figures.plot_log_jacobian(brain, nb.Nifti1Image(data, brain.affine), folded)
    assert folded.read_text() != smooth.read_text()


def test_figure_of_a_series_is_an_error_that_names_the_shape(tmp_path):
    series = nb.Nifti1Image(np.ones((4, 5, 6, 2), np.float32), np.eye(4))
    with pytest.raises(ValueError, match=r"3-D image, found shape \(4, 5, 6, 2\)"):
        figures.plot_brain_mask(series, series, tmp_path / "x.svg")


def test_figures_of_an_empty_image_and_mask_are_drawn(tmp_path):
    empty = nb.Nifti1Image(np.zeros((7, 8, 9), np.float32), np.eye(4))
    assert all(path.exists() for path in draw_all(empty, tmp_path))


def test_page_holds_every_section_and_score(dataset):
    page = write_subject_report(dataset, "sub-01", summary={"Found": "1 T1-weighted <image>"})
    text = page.read_text(encoding="utf-8")
    assert page == dataset / "sub-01.html"
    assert text.startswith("<!DOCTYPE html>")
    headings = re.findall(r"<h2[^>]*>([^<]+)</h2>", text)
    assert headings == ["Summary", "Found and done", "Brain mask", "Registration", "Warp grid", "Log-Jacobian",
                        "Labels", "Scores", "Methods", "Errors"]  # fmt: skip
    for value in ("0.765", "0.500", "0.00432", "0.0012", "1.010", "2.50", "2048", "4.2", "torch", "No errors."):
        assert f">{value}<" in text, value
    assert "left &lt;putamen&gt;" in text
    assert "1 T1-weighted &lt;image&gt;" in text
    assert "MMLN &lt;1&gt;" in text


def test_page_is_accessible_and_loads_nothing_from_outside(dataset):
    text = write_subject_report(dataset, "01").read_text(encoding="utf-8")
    page = Outline(text)
    assert outside_references(text) == []
    assert "default-src 'none'" in text
    assert "script" not in page.tags
    assert all(image["alt"] for image in page.images)
    assert len(page.images) == 4
    assert page.tags.count("h1") == page.tags.count("main") == 1
    assert len(page.ids) == len(set(page.ids))
    assert set(page.anchors) <= set(page.ids)


def test_page_is_the_same_again_and_left_untouched(dataset):
    page = write_subject_report(dataset, "01")
    before = (page.read_bytes(), page.stat().st_mtime_ns, page.stat().st_ino)
    write_subject_report(dataset, "01")
    assert (page.read_bytes(), page.stat().st_mtime_ns, page.stat().st_ino) == before
    page.unlink()
    assert write_subject_report(dataset, "01").read_bytes() == before[0]


def test_page_leaves_the_figures_alone(dataset):
    files = sorted(path for path in dataset.rglob("*") if path.is_file())
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in files}
    page = write_subject_report(dataset, "01")
    assert sorted(path for path in dataset.rglob("*") if path.is_file() and path != page) == files
    assert {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in files} == before


def test_page_keeps_sessions_and_runs_apart(drawn, tmp_path):
    stems = ["sub-01_ses-a", "sub-01_ses-b_run-1", "sub-01_ses-b_run-2"]
    for stem in stems:
        copy_figures(drawn, tmp_path / "sub-01" / "figures", stem)
    text = write_subject_report(tmp_path, "01", qc={stem: QC for stem in stems}).read_text(encoding="utf-8")
    page = Outline(text)
    assert len(page.images) == 3 * 4
    assert len(page.ids) == len(set(page.ids))
    assert text.count('role="group"') == 3
    titles = re.findall(r"<h3>\s*(.+?)\s*</h3>", text)
    assert len(titles) == 3 * 7
    assert sum("run" in title for title in titles) == 2 * 7


def test_page_of_a_failed_subject_shows_the_error_and_nothing_else(tmp_path):
    error = "ValueError: mask <x> is empty\nTraceback: <module>"
    text = write_subject_report(tmp_path, "01", errors=[error]).read_text(encoding="utf-8")
    assert "ValueError: mask &lt;x&gt; is empty" in text
    assert "&lt;module&gt;" in text
    assert "1 error<" in text
    assert re.findall(r"<h2[^>]*>([^<]+)</h2>", text) == ["Summary", "Errors"]


def test_page_reads_crash_files_of_nipype(tmp_path):
    crash = tmp_path / "crash-1.txt"
    crash.write_text(
        "Node: sub_01_wf.registration\nWorking directory: work\n\nNode inputs:\n\n"
        "fixed = a.nii\nmoving = b.nii\n\n"
        'Traceback (most recent call last):\n  File "<string>", line 1\nValueError: empty image\n'
    )
    text = write_subject_report(tmp_path, "01", errors=[crash]).read_text(encoding="utf-8")
    assert "sub_01_wf.registration: empty image" in text
    assert "&lt;string&gt;" in text


def test_page_does_not_take_its_scratch_folder_for_a_subject(dataset, tmp_path, monkeypatch):
    scratch = tmp_path / "sub-99" / "ses-7" / "func"
    scratch.mkdir(parents=True)
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    text = write_subject_report(dataset, "01").read_text(encoding="utf-8")
    assert len(Outline(text).images) == 4


def test_page_without_its_folder_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match="output_dir: expected the folder"):
        write_subject_report(tmp_path / "absent", "01")


def test_scores_without_a_value_and_unknown_ones_are_shown():
    rows = shown_scores.score_rows({"dice": None, "tc": 1.0, "dice_before": 0.4})
    assert [(row["before"], row["after"]) for row in rows] == [("0.400", "n/a"), ("–", "1.000")]
    assert shown_scores.other_rows({"dice": 1, "seed": 3, "affine": {"kind": "rigid"}}) == [
        ("seed", "3"), ("affine: kind", "rigid"),
    ]  # fmt: skip


# ------------------------------------------------------------------------------- verdict, group's range, steps


def add_peers(dataset, dices, **changes):
    """Give the dataset scores of further subjects."""
    for number, dice in enumerate(dices, start=2):
        folder = dataset / f"sub-{number:02d}" / "anat"
        folder.mkdir(parents=True)
        record = QC | {"dice": dice} | changes
        (folder / f"sub-{number:02d}_desc-registration_qc.json").write_text(json.dumps(record))


def test_page_begins_with_the_verdict_and_its_reasons(dataset):
    text = write_subject_report(dataset, "01").read_text(encoding="utf-8")
    section = re.search(r'<section id="summary".*?</section>', text, re.DOTALL).group()
    assert re.search(r'class="verdict look">\s*<p><strong>Quality check: look</strong> sub-01', section)
    assert "<li>brain overlap &lt;low&gt;</li>" in section
    assert section.index("Quality check") < section.index("Template")


def test_page_shows_where_a_score_lies_in_the_group(dataset):
    add_peers(dataset, [0.5, 0.6, 0.7, 0.8])
    text = write_subject_report(dataset, "01").read_text(encoding="utf-8")
    assert "Among 5 images: median (range)" in text
    assert "0.700 (0.500 to 0.800)" in text
    assert 'class="dot" style="left:88.3%"' in text  # 0.765 between 0.5 and 0.8
    assert "unusual" not in re.sub(r"<style>.*?</style>", "", text, flags=re.DOTALL)


def test_page_marks_a_score_that_is_unusual_in_the_group(dataset):
    add_peers(dataset, [0.90, 0.91, 0.903, 0.915, 0.901])
    text = write_subject_report(dataset, "01").read_text(encoding="utf-8")
    assert "0.902 (0.765 to 0.915), unusual" in text


def test_page_compares_within_one_template_and_survives_broken_records(dataset):
    add_peers(dataset, [0.5, 0.6, 0.7], template="other")
    broken = dataset / "sub-09" / "anat"
    broken.mkdir(parents=True)
    (broken / "sub-09_desc-registration_qc.json").write_text("{")
    assert "Among" not in write_subject_report(dataset, "01").read_text(encoding="utf-8")


def test_steps_are_told_in_plain_words():
    topology = {"mode": "strict", "rounds": 3, "cells_repaired": 12, "ndv_percent_before": 0.01, "ndv_percent": 0.0}
    more = {"model_sha256": "a" * 64, "refine": "auto", "atlas": "tissue", "topology": topology}
    steps = dict(record.done_rows(QC | more))
    assert steps["Alignment"] == (
        "12 parameters, by mutual information: turned by 12.3 degrees, volume 0.80 of the template's"
    )
    assert steps["Warp"] == "network mmln (SHA-256 aaaaaaaaaaaa), then tuned to this image"
    assert steps["Folds"] == "12 cells repaired in 3 rounds: NDV 0.01% before, 0% after"
    assert steps["Labels"] == "tissue brought to the image; 2 labels of image and template compared"
    off = dict(record.done_rows({"init": "a.mat", "model": "m", "refine": 20, "topology": {"mode": "off"}}))
    assert off == {"Alignment": "given: a.mat", "Warp": "network m, then tuned to this image (20 steps)",
                   "Folds": "not checked (--topology off)"}  # fmt: skip
    machines = record.machine_rows([QC, QC | {"machine": {"processors": 4}}])
    assert machines == [("processors", "2, 4"), ("torch", "2.13.0")]


def test_methods_are_rendered_and_escaped(dataset):
    (dataset / "logs" / "CITATION.md").write_text("# Methods\n\nMade with *mmln* and `<code>`.")
    text = write_subject_report(dataset, "01").read_text(encoding="utf-8")
    assert "<h3>Methods</h3>" in text and "<em>mmln</em>" in text and "<code>&lt;code&gt;</code>" in text


def test_page_links_to_its_neighbours_and_the_groups_that_are_there(dataset):
    (dataset / "group_registration_space-MNI152NLin2009aSym.html").write_text("x")
    text = write_subject_report(dataset, "01", subjects=["00", "01"]).read_text(encoding="utf-8")
    header = text[text.index("<header>") : text.index("<h1>")]
    assert re.findall(r'href="([^"]+)">([^<]+)<', header) == [
        ("sub-00.html", "‹ sub-00"),
        ("group_registration_space-MNI152NLin2009aSym.html", "Group MNI152NLin2009aSym"),
    ]


def test_page_shows_the_limits_of_the_verdict(dataset):
    text = write_subject_report(dataset, "01").read_text(encoding="utf-8")
    row = re.search(r">Dice, mean over labels</th>(.*?)</tr>", text, re.DOTALL).group(1)
    assert "look below 0.4, fail below 0.2; change: look below -0.01, fail below -0.1" in row
    rows = {row["name"]: row for row in shown_scores.score_rows({"brain_overlap": {"after": 0.93}})}
    assert rows["Brain overlap (Dice)"]["verdict"] == "look"


def test_every_score_of_the_verdict_is_on_the_page():
    assert {check.path for check in CHECKS} <= {score.after for score in shown_scores.SCORES}


def test_methods_have_links_and_bibtex(dataset):
    entry = "@article{a,\n    doi = {10.1000/1}\n}"
    (dataset / "logs" / "CITATION.md").write_text("1. A. [doi:10.1000/1](https://doi.org/10.1000/1).")
    (dataset / "logs" / "CITATION.bib").write_text(entry + "\n\n")
    (dataset / "logs" / "CITATION_space-other.bib").write_text(entry + "\n\n@misc{b}\n")
    text = write_subject_report(dataset, "01").read_text(encoding="utf-8")
    assert '<a href="https://doi.org/10.1000/1">' in text and text.count("@article{a,") == 1 and "@misc{b}" in text


# ------------------------------------------------------------------------------------------------- in a browser


@needs_chromium
def test_page_in_a_browser_shows_everything_and_loads_nothing(dataset, browser):
    add_peers(dataset, [0.5, 0.6, 0.7, 0.8])
    check_page(browser, write_subject_report(dataset, "01"))


@needs_chromium
def test_page_is_worked_by_keyboard_without_scripts(dataset, browser):
    browser.open(write_subject_report(dataset, "01"), DESKTOP, script=False)
    order = browser.focus_order()
    stem = "sub-01_space-T_desc-registration_T1w"
    slider = order.index(f"{stem}-after")
    assert order[0] == "skip" and order[slider + 1] == f"{stem}-contour" and order[slider + 2] == "scroll"
    opacity = "getComputedStyle(document.querySelector('.layer-before')).opacity"
    browser.open(write_subject_report(dataset, "01"), DESKTOP)
    for _ in range(slider + 1):
        browser.press("Tab", 9)
    shown = [browser.evaluate(opacity)]
    for _ in range(4):
        browser.press("ArrowRight", 39)
        shown.append(browser.evaluate(opacity))
    assert shown == ["0", "0.25", "0.5", "0.75", "1"]


@pytest.mark.parametrize("content", ["[1]", '{"template": ["a"]}', "[" * 100_000, "{", b"\xff\xfe"])
def test_one_odd_record_is_left_out(tmp_path, content):
    for number, text in enumerate(('{"template": "a"}', content), start=1):
        path = tmp_path / f"sub-{number}/anat/sub-{number}_desc-registration_qc.json"
        path.parent.mkdir(parents=True)
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    assert record.read_records(tmp_path) == {"sub-1": {"template": "a"}}
    if "template" not in str(content):  # the group level takes a list of words for text
        with pytest.raises(ValueError, match=r"registration_qc\.json (cannot be read|names no template)"):
            _read_record(path, path.with_suffix(".tsv"))
