"""The group level on made-up derivatives: table, page and images, outliers, what is missing, idempotence."""

import base64
import json
import re
import shutil
import subprocess
import sys
from functools import partial
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import nibabel as nb
import numpy as np
import pandas as pd
import pytest
from browser import browser, check_page, needs_chromium

from mmln_pipeline.bids_app.finished import find_doubts
from mmln_pipeline.bids_app.run import main
from mmln_pipeline.group.averaging import average_images
from mmln_pipeline.group.statistics import RunningMoments, robust_distances
from mmln_pipeline.group.volume_table import write_volumes
from mmln_pipeline.reporting.group_table import GroupTable, flatten, page_rows
from mmln_pipeline.reporting.page import write_subject_report

__all__ = ["browser"]  # a fixture

SHAPE = (7, 8, 9)
AFFINE = np.diag([2.0, 2.0, 2.0, 1.0])
T1W, JACOBIAN = "space-tiny_desc-preproc_T1w.nii.gz", "space-tiny_desc-jacobian_T1w.nii.gz"
QC = "desc-registration_qc"
GROUP_FILES = {
    *("group_registration.tsv", "group_registration.html", "group_contact_sheet.html", ".bidsignore"),
    *(f"space-tiny_desc-{kind}_T1w{end}" for kind in ("mean", "meanjacobian", "sdjacobian")
      for end in (".nii.gz", ".json")),
}  # fmt: skip
VALIDATOR = shutil.which("bids-validator-deno") or shutil.which(
    "bids-validator-deno", path=str(Path(sys.executable).parent)
)


def describe(folder, kind):
    content = {"Name": "made up", "BIDSVersion": "1.11.0", "DatasetType": kind}
    if kind == "derivative":
        content["GeneratedBy"] = [{"Name": "mmln-pipeline"}]
    folder.mkdir(parents=True)
    (folder / "dataset_description.json").write_text(json.dumps(content))


def make_record(number, **changes):
    """Scores of a usual scan; each differs a little from the others."""
    step = 0.001 * (number % 4)
    return {
        "subject": f"{number:02d}",
        "session": None,
        "t1w": f"bids:raw:sub-{number:02d}/anat/sub-{number:02d}_T1w.nii.gz",
        "template": "tiny",
        "dice": 0.8 + step,
        "dice_per_label": {"1": 0.9 - step, "2": 0.7 + step},
        "dice_before": 0.6 + step,
        "tc": 1.0 + step,
        "hd95_mm": None,
        "folding_percent_brain": 0.0,
        "similarity": {"global_correlation": {"before": 0.8, "after": 0.95 - step}},
        "qc": {"verdict": "pass", "reasons": []},
        "model": "mmln",
        "device": "cpu",
        "seconds": {"network": 4.0, "total": 60.0 + number},
        "input_sha256": {f"T1w image of sub-{number:02d}_T1w.nii.gz": "0" * 64, "template": "0" * 64},
        "versions": {"torch": "2.13.0"},
    } | changes


def save(data, path, affine=AFFINE):
    path.parent.mkdir(parents=True, exist_ok=True)
    nb.save(nb.Nifti1Image(np.asarray(data, np.float32), affine), path)
    sidecar = {
        "SpatialReference": "file:///tpl-tiny_T1w.nii.gz",
        "SkullStripped": True,
        "Description": "x",
        "Sources": [],
    }
    path.with_name(path.name.removesuffix(".nii.gz") + ".json").write_text(json.dumps(sidecar))


def brain(number):
    """A block whose brightness differs between scans."""
    data = np.zeros(SHAPE)
    data[2:5, 2:6, 2:7] = 100.0 * number
    return data


def add_scan(root, stem, number, **changes):
    """Write the results of one scan."""
    subject, session = stem.split("_")[0], re.search(r"ses-[a-z]+", stem)
    head = root / "out" / subject / (session.group() if session else "") / "anat"
    save(brain(number), head / f"{stem}_{T1W}")
    save(np.full(SHAPE, 0.1 * number), head / f"{stem}_{JACOBIAN}")
    (head / f"{stem}_{QC}.json").write_text(json.dumps(make_record(number, **changes)))
    raw = root / "raw" / head.relative_to(root / "out") / f"{stem}_T1w.nii.gz"
    raw.parent.mkdir(parents=True, exist_ok=True)
    raw.write_bytes(b"raw image")
    (root / "out" / f"{subject}.html").write_text("<!DOCTYPE html><title>x</title>")
    return head


def build(root):
    """Six subjects (the last with two sessions), a seventh without results, and names of the labels."""
    describe(root / "raw", "raw")
    describe(root / "out", "derivative")
    for number in range(1, 6):
        add_scan(root, f"sub-{number:02d}", number)
    for session in "ab":
        add_scan(root, f"sub-06_ses-{session}", 6, session=session)
    (root / "raw/sub-07/anat").mkdir(parents=True)
    (root / "raw/sub-07/anat/sub-07_T1w.nii.gz").write_bytes(b"raw image")
    sites = [f"sub-{number:02d}\t{'Lyon' if number % 2 else 'Bonn'}\t{20 + number}" for number in range(1, 7)]
    (root / "raw/participants.tsv").write_text("\n".join(["participant_id\tsite\tage", *sites]) + "\n")
    (root / "out/seg-tiny_dseg.tsv").write_text("index\tname\n1\tLeft <one>\n")
    return root


@pytest.fixture
def root(tmp_path):
    """The made-up datasets, for one test."""
    return build(tmp_path)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The datasets after a run of the group level; for tests that only read."""
    root = build(tmp_path_factory.mktemp("finished"))
    before = list_files(root)
    assert run_group(root) == 0
    assert list_files(root) - before == {f"out/{name}" for name in GROUP_FILES}
    return root


def run_group(root, *options):
    """Run the group level, for the template `tiny` unless the options name another; return the exit code."""
    template = [] if "--template" in options else ["--template", "tiny"]
    return main([str(root / "raw"), str(root / "out"), "group", "-w", str(root / "work"), *template, *options])


@pytest.fixture
def command(root):
    """A function that runs the group level on the made-up datasets."""
    return partial(run_group, root)


def list_files(folder):
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def snapshot(folder):
    return {name: ((folder / name).stat().st_mtime_ns, (folder / name).read_bytes()) for name in list_files(folder)}


def read_table(root):
    return pd.read_csv(root / "out/group_registration.tsv", sep="\t", dtype={"participant_id": str}).set_index("scan")


def read_page(root):
    return (root / "out/group_registration.html").read_text(encoding="utf-8")


def read_mean(root, kind):
    return nb.load(root / f"out/space-tiny_desc-{kind}_T1w.nii.gz").get_fdata()


class Outline(HTMLParser):
    """Collect what a page would load, and its links, headings and ids."""

    def __init__(self, text):
        super().__init__()
        self.sources, self.links, self.ids, self.images, self.tags = [], [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        self.tags.append(tag)
        self.sources += [value for key, value in attrs if key in ("src", "srcset", "data", "poster", "action")]
        self.sources += [attributes["href"]] if tag == "link" else []
        self.links += [attributes["href"]] if tag == "a" else []
        self.ids += [attributes["id"]] if "id" in attributes else []
        self.images += [attributes] if tag == "img" else []


# -------------------------------------------------------------------------------------------- statistics


def test_running_moments_are_those_of_all_arrays_at_once(rng):
    arrays = 1e4 + rng.normal(size=(9, *SHAPE))
    moments = RunningMoments(SHAPE)
    for array in arrays:
        moments.add(array)
    np.testing.assert_allclose(moments.mean, arrays.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(moments.sd, arrays.std(axis=0, ddof=1), rtol=1e-9)
    with pytest.raises(ValueError, match=r"expected shape \(7, 8, 9\), found \(9, 8, 7\)"):
        moments.add(arrays[0].T)
    with pytest.raises(ValueError, match="at least 2 arrays, found 0"):
        _ = RunningMoments(SHAPE).sd


def test_volumes_of_all_images_come_into_one_table(tmp_path):
    names = {"sub-01": ("A", "fused"), "sub-02_ses-x": ("A",)}
    paths = {
        scan: [tmp_path / f"{scan}_space-T1w_seg-{atlas}_volumes.tsv" for atlas in own] for scan, own in names.items()
    }
    for path in [path for own in paths.values() for path in own]:
        path.write_text("index\tname\tvoxels\tvolume_mm3\n1\tn/a\t7\t7.5\n2\tCore\t3\t3.25\n")
    paths["sub-02_ses-x"].append(tmp_path / "sub-02_ses-x_space-T1w_seg-B_volumes.tsv")
    paths["sub-02_ses-x"][1].write_text("index\tname\n1\tCore\n")
    refused = write_volumes(paths, tmp_path / "all.tsv")
    table = pd.read_csv(tmp_path / "all.tsv", sep="\t", keep_default_na=False)
    assert table["atlas"].tolist() == ["A", "A", "fused", "fused", "A", "A"]
    assert table["session_id"].tolist()[-1] == "ses-x" and table["participant_id"].tolist()[0] == "sub-01"
    assert table["name"].tolist()[:2] == ["n/a", "Core"] and table["volume_mm3"].sum() == 3 * 10.75
    assert refused == {"sub-02_ses-x_space-T1w_seg-B_volumes.tsv": "cannot be read (no column voxels)"}


def test_robust_distances_of_normal_numbers_are_standard_scores(rng):
    values = rng.normal(3, 2, 20001)
    np.testing.assert_allclose(robust_distances(values), (values - 3) / 2, atol=0.1)


@pytest.mark.parametrize("values", [[], [4.0], [1.0] * 6, [1.0, 1.0, 1.0 + 1e-15, 1.0, 1.0 - 1e-15]])
def test_robust_distances_of_equal_numbers_are_zero(values):
    assert not robust_distances(values).any()


def test_average_takes_the_most_common_grid_and_names_the_rest(tmp_path):
    for number in (1, 2, 3):
        save(brain(number), tmp_path / f"{number}.nii.gz")
    save(brain(9), tmp_path / "moved.nii.gz", np.diag([2.0, 2.0, 2.1, 1.0]))
    save(np.where(brain(1), np.nan, 0), tmp_path / "nan.nii.gz")
    (tmp_path / "text.nii.gz").write_text("no image")
    names = ("moved", "1", "nan", "2", "text", "absent", "3")
    average = average_images({name: tmp_path / f"{name}.nii.gz" for name in names})
    assert average.names == ("1", "2", "3")
    assert "another grid" in average.refused["moved"] and "60 of 504 voxels are NaN" in average.refused["nan"]
    assert all("cannot be read" in average.refused[name] for name in ("text", "absent"))
    np.testing.assert_allclose(average.mean.get_fdata(), brain(2))
    np.testing.assert_allclose(average.sd.get_fdata(), brain(1))
    np.testing.assert_array_equal(average.brain.get_fdata(), brain(1) > 0)


def test_average_of_one_or_no_image(tmp_path):
    save(brain(1), tmp_path / "1.nii.gz")
    one = average_images({"1": tmp_path / "1.nii.gz"})
    assert one.mean is not None and one.sd is None
    assert average_images({}).mean is None


def test_few_or_close_values_have_no_outlier():
    values = [0.8, 0.8001, 0.8002, 0.8003, 0.81]
    assert [o.scan for o in table_of(values).outliers] == []  # far in MADs, but by less than matters
    values[4] = 0.7
    (outlier,) = table_of(values).outliers
    assert (outlier.scan, outlier.score.after, outlier.distance < -3) == ("sub-4", ("dice",), True)
    assert table_of(values[1:]).outliers == []


def table_of(values):
    return GroupTable({f"sub-{number}": {"dice": value} for number, value in enumerate(values)})


def test_records_become_rows():
    flat = flatten({"versions": {"torch": "2"}, "a": {"b": True, "c": float("inf")}, "qc": {"verdict": "look"}})
    assert flat == {"a_b": 1, "a_c": None, "qc_verdict": "look"}
    table = GroupTable(
        {"sub-1": flat | {"t1w": "bids:raw:a"}, "sub-2": {"a_b": 0, "qc_verdict": "pass", "note": "a\tb"}}
    )
    assert table.columns == ["a_b", "qc_verdict", "t1w", "note"]
    assert table.to_tsv().splitlines()[2] == "sub-2\tn/a\tsub-2\t0\tpass\tn/a\ta b\tn/a"
    columns, rows = page_rows(table)
    assert columns == ["QC"] and next(rows) == ("sub-1", [("look", "1")])
    assert table.verdicts == {"pass": ["sub-2"], "look": ["sub-1"]}


# ---------------------------------------------------------------------------------------------- a whole run


def test_second_run_changes_nothing(root, command, capsys):
    assert command() == 0
    said = capsys.readouterr().out
    assert "sub-07: no results" in said and "images: 7; outliers: none" in said and "group_registration.html" in said
    before = snapshot(root)
    assert command() == 0
    assert snapshot(root) == before


def test_table_has_a_row_a_scan_and_every_score(finished):
    table = read_table(finished)
    assert list(table.index) == [*(f"sub-{n:02d}" for n in range(1, 6)), "sub-06_ses-a", "sub-06_ses-b"]
    assert (
        table.loc["sub-06_ses-b", "participant_id"] == "sub-06" and table.loc["sub-06_ses-b", "session_id"] == "ses-b"
    )
    assert pd.isna(table.loc["sub-01", "session_id"])
    assert table.loc["sub-02", "dice"] == 0.802 and table.loc["sub-02", "dice_per_label_2"] == 0.702
    assert table.loc["sub-03", "similarity_global_correlation_after"] == 0.95 - 0.003
    assert table.loc["sub-03", "seconds_total"] == 63 and "hd95_mm" not in table
    assert table["outlier_scores"].isna().all()


def test_no_column_is_that_of_one_scan(finished):
    """What a record says of its own files would make the table grow with the square of the scans."""
    table = read_table(finished)
    assert [name for name in table if re.search("sub-|input_sha256", name)] == []


def test_images_are_mean_and_spread(finished):
    numbers = 0.1 * np.array([1, 2, 3, 4, 5, 6, 6])
    np.testing.assert_allclose(read_mean(finished, "meanjacobian"), numbers.mean(), rtol=1e-6)
    np.testing.assert_allclose(read_mean(finished, "sdjacobian"), numbers.std(ddof=1), rtol=1e-6)
    np.testing.assert_allclose(read_mean(finished, "mean"), brain(1) > 0)  # brightness does not count
    assert np.allclose(nb.load(finished / "out/space-tiny_desc-mean_T1w.nii.gz").affine, AFFINE)
    for kind in ("mean", "meanjacobian", "sdjacobian"):
        sidecar = json.loads((finished / f"out/space-tiny_desc-{kind}_T1w.json").read_text())
        assert sidecar["NumberOfImages"] == 7 and sidecar["SpatialReference"] == "file:///tpl-tiny_T1w.nii.gz"
        assert all((finished / "out" / source.removeprefix("bids::")).is_file() for source in sidecar["Sources"])


def test_outliers_are_named_and_linked(root, command, capsys):
    add_scan(root, "sub-03", 3, dice=0.4, folding_percent_brain=0.5)
    (root / "out/sub-02.html").unlink()
    assert command() == 0
    assert "outliers: sub-03\n" in capsys.readouterr().out
    table = read_table(root)
    assert table.loc["sub-03", "outlier_scores"] == "dice,folding_percent_brain"
    assert table["outlier_scores"].notna().sum() == 1
    section = re.search(r'id="outliers">(.*?)</section>', read_page(root), re.DOTALL).group(1)
    assert "more than 3 scaled median absolute deviations" in section
    assert section.count('<a href="sub-03.html">sub-03</a>') == 2 and ">0.400<" in section and ">0.801<" in section
    links = Outline(read_page(root)).links
    assert "sub-06.html" in links and "sub-02.html" not in links


def test_verdicts_are_listed_with_reasons(root, command, capsys):
    add_scan(root, "sub-02", 2, qc={"verdict": "look", "reasons": ["rotation 50 is above 45", "dice <low>"]})
    add_scan(root, "sub-04", 4, qc={"verdict": "fail", "reasons": ["brain overlap"]})
    assert command() == 0
    assert "quality check: 5 pass, 1 look (sub-02), 1 fail (sub-04)\n" in capsys.readouterr().out
    assert read_table(root).loc["sub-02", "qc_reasons"] == "rotation 50 is above 45; dice <low>"
    section = re.search(r'id="quality">(.*?)</section>', read_page(root), re.DOTALL).group(1)
    assert section.index("sub-04") < section.index("sub-02") and '<a href="sub-02.html">' in section
    assert "<li>rotation 50 is above 45</li>" in section and "<li>dice &lt;low&gt;</li>" in section


def test_doubts_of_a_run_are_those_of_its_own_scans():
    doubt = {"qc": {"verdict": "look", "reasons": ["rotation"]}}
    stems = ("sub-1", "sub-1_run-1_space-A", "sub-1_run-1_space-B", "sub-11", "sub-2")
    records = {stem: doubt for stem in stems} | {"sub-1_run-1_space-B": {"qc": {"verdict": "pass", "reasons": []}}}
    scans = [SimpleNamespace(stem="sub-1_run-1"), SimpleNamespace(stem="sub-2"), SimpleNamespace(stem="sub-3")]
    line = "quality check: look: rotation"
    assert find_doubts(records, scans) == [("sub-1_run-1_space-A", line), ("sub-2", line)]


def test_images_that_a_gpu_had_no_room_for_are_told():
    records = {"sub-1": {"device": "cpu", "out_of_memory": "cuda"}, "sub-2": {"device": "cuda"}}
    scans = [SimpleNamespace(stem=stem) for stem in records]
    assert find_doubts(records, scans) == [("sub-1", "cuda had too little memory: registered on cpu")]


def test_results_of_an_older_version_have_no_verdict(root, command, capsys):
    for path in (root / "out").rglob(f"*{QC}.json"):
        content = json.loads(path.read_text())
        path.write_text(json.dumps({key: value for key, value in content.items() if key != "qc"}))
    assert command() == 0
    assert "quality check: not done" in capsys.readouterr().out and "hold no verdicts" in read_page(root)


def test_page_is_whole_and_loads_nothing_from_outside(finished):
    text = read_page(finished)
    page = Outline(text)
    assert all(source.startswith("data:") for source in page.sources)
    assert not re.findall(r"(?:url\(|@import|href=\"http|src=\"http)", re.sub(r'"data:[^"]*"', "", text))
    assert "default-src 'none'" in text and page.tags.count("script") == 2  # the data, and what reads it
    headings = re.findall(r"<h2[^>]*>([^<]+)</h2>", text)
    assert headings == ["Summary", "Quality", "Outliers", "Scores", "Structures", "Images", "Table", "Missing"]
    assert page.tags.count("canvas") == 3 and len(page.images) == 1 + 3 and all(image["alt"] for image in page.images)
    assert "Left &lt;one&gt; (1)" in text and "<one>" not in text
    assert len(page.ids) == len(set(page.ids)) and page.tags.count("h1") == page.tags.count("main") == 1
    assert {link[1:] for link in page.links if link.startswith("#")} <= set(page.ids)
    others = [link for link in page.links if not link.startswith(("#", "data:"))]
    assert others and all((finished / "out" / link).is_file() for link in others)
    (download,) = [link for link in page.links if link.startswith("data:")]
    assert base64.b64decode(download.split(",")[1]) == (finished / "out/group_registration.tsv").read_bytes()


def read_data(root, page):
    """What the script of a page reads."""
    text = (root / "out" / page).read_text(encoding="utf-8")
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', text).group(1))


def test_plots_have_every_value_and_can_be_filtered(finished):
    data, table = read_data(finished, "group_registration.html"), read_table(finished)
    assert data["scans"] == list(table.index) and data["labels"][-1] == ["sub-06", "ses-b"]
    assert data["scores"][0]["values"] == list(table["dice"]) and data["scores"][0]["digits"] == 3
    assert data["scores"][0]["before"] == list(table["dice_before"])
    filters = {one["name"]: one["values"] for one in data["filters"]}
    assert set(filters) == {"Session", "site", "age"}  # all passed: no choice by the verdict
    assert filters["site"] == ["Lyon", "Bonn", "Lyon", "Bonn", "Lyon", "Bonn", "Bonn"]
    assert data["links"][0] == "sub-01.html"


def test_scores_that_all_images_share_are_told_in_a_line(root, command):
    assert command() == 0
    text = re.sub(r"\s+", " ", read_page(root))
    assert "The same for all images: Folded voxels in the brain (%) 0." in text


def test_contact_sheet_shows_every_image_and_sessions_side_by_side(finished):
    text = (finished / "out/group_contact_sheet.html").read_text(encoding="utf-8")
    page = Outline(text)
    assert len(page.images) == 7 and all(image["src"].startswith("data:image/jpeg") for image in page.images)
    assert len({image["src"] for image in page.images}) == 1  # the same block, whatever its brightness
    subjects = re.findall(r'<section class="subject" aria-label="([^"]+)">(.*?)</section>', text, re.DOTALL)
    assert [len(re.findall("<figure", own)) for _, own in subjects] == [1, 1, 1, 1, 1, 2]
    assert all(source.startswith("data:") for source in page.sources) and "default-src 'none'" in text
    assert text.count('<use href="#outline"/>') == 7 and '<path class="brain" d="M' in text
    assert "group_contact_sheet.html" in Outline(read_page(finished)).links and "group_registration.html" in page.links


def test_subject_pages_learn_of_the_group(root, command):
    """Links and ranges are those of the whole group; what else a page says, such as errors, stays."""
    out = root / "out"
    for number in (1, 2):
        write_subject_report(out, f"{number:02d}", group={}, errors=["broken <mask>"])
    assert "Group" not in (out / "sub-02.html").read_text() and "Among" not in (out / "sub-02.html").read_text()
    assert command() == 0
    text = (out / "sub-02.html").read_text(encoding="utf-8")
    assert "Among 7 images: median (range)" in text and "broken &lt;mask&gt;" in text
    links = re.findall(
        r'<a (?:rel="\w+" )?href="([^"]+)">([^<]+)</a>', re.search("<header>.*?</h1>", text, re.S).group()
    )
    assert links == [("sub-01.html", "‹ sub-01"), ("group_registration.html", "Group"), ("sub-03.html", "sub-03 ›")]
    before = snapshot(root)
    assert command() == 0
    assert snapshot(root) == before


@needs_chromium
@pytest.mark.parametrize("page", ["group_registration", "group_contact_sheet"])
def test_page_in_a_browser_shows_everything_and_loads_nothing(finished, browser, page):
    check_page(browser, finished / f"out/{page}.html")


@needs_chromium
def test_plots_name_an_image_and_filters_choose(finished, browser):
    browser.open(finished / "out/group_registration.html")
    browser.evaluate("document.querySelector('canvas').focus()")
    for key in ("ArrowRight", "ArrowRight"):
        browser.press(key, 39)
    assert browser.evaluate("document.getElementById('tip').textContent") == "sub-01: 0.801, pass"
    site = "document.querySelectorAll('#filters select')[1]"
    browser.evaluate(f"{site}.value = '=Bonn'; {site}.dispatchEvent(new Event('input', {{bubbles: true}}))")
    shown = "[...document.querySelectorAll('.sortable tbody tr:not([hidden])')].map(r => r.cells[0].textContent.trim())"
    assert browser.evaluate(shown) == ["sub-02", "sub-04", "sub-06_ses-a", "sub-06_ses-b"]
    assert browser.evaluate("document.querySelector('#filters output').textContent") == "4 of 7 images"


@needs_chromium
def test_images_are_rated_by_keys(finished, browser):
    browser.open(finished / "out/group_contact_sheet.html")
    browser.evaluate("document.querySelector('figure').focus()")
    for key, code in (("p", 80), ("f", 70), ("n", 78)):
        browser.press(key, code)
    browser.call("Input.insertText", text="left\tside")
    browser.press("Enter", 13)
    browser.press("p", 80)
    table = browser.evaluate("decodeURIComponent(document.getElementById('download').href.split(',').slice(1).join())")
    rows = [line.split("\t") for line in table.splitlines()]
    assert rows[0] == ["participant_id", "session_id", "scan", "verdict", "rating", "note"] and len(rows) == 8
    assert [row[4:] for row in rows[1:5]] == [["pass", "n/a"], ["fail", "n/a"], ["pass", "left side"], ["n/a", "n/a"]]
    assert browser.evaluate("document.getElementById('rated').textContent") == "2 pass, 1 fail, of 7 images"


@needs_chromium
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_pages_follow_the_readers_colours(finished, browser, scheme):
    browser.open(finished / "out/group_registration.html")
    browser.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
    paper = browser.evaluate("getComputedStyle(document.body).backgroundColor")
    assert paper == {"light": "rgb(255, 255, 255)", "dark": "rgb(13, 17, 23)"}[scheme]


@needs_chromium
def test_page_sorts_by_keyboard(finished, browser):
    browser.open(finished / "out/group_registration.html")
    headings = browser.evaluate("[...document.querySelectorAll('.sortable button')].map(b => b.textContent)")
    column = headings.index("Dice, mean over labels")
    browser.evaluate(f"document.querySelectorAll('.sortable button')[{column}].focus()")
    values = f"[...document.querySelectorAll('.sortable tbody tr')].map(r => +r.cells[{column}].dataset.value)"
    for is_descending in (False, True):
        browser.press("Enter", 13)
        found = browser.evaluate(values)
        assert found == sorted(found, reverse=is_descending) and len(set(found)) > 3
    assert browser.evaluate("document.querySelectorAll('th[aria-sort=descending]').length") == 1


@needs_chromium
def test_page_is_whole_without_scripts(finished, browser):
    browser.open(finished / "out/group_registration.html", script=False)
    order = browser.focus_order()
    assert order[0] == "skip" and "sub-01" in order and any(name.startswith("download") for name in order)


@pytest.mark.skipif(VALIDATOR is None, reason="bids-validator-deno is not installed")
def test_validator_finds_no_error(finished):
    result = subprocess.run([VALIDATOR, str(finished / "out"), "--json"], capture_output=True, text=True)
    issues = json.loads(result.stdout)["issues"]["issues"]
    assert [issue for issue in issues if issue["severity"] == "error"] == []


# ------------------------------------------------------------------------------------ missing and broken


def test_missing_and_broken_results_are_told_and_stop_nothing(root, command, capsys):
    out = root / "out"
    (out / f"sub-01/anat/sub-01_{JACOBIAN}").unlink()
    (out / f"sub-02/anat/sub-02_{T1W}").write_text("no image")
    save(np.ones((3, 3, 3)), out / f"sub-03/anat/sub-03_{T1W}")
    save(np.full(SHAPE, np.inf), out / f"sub-04/anat/sub-04_{JACOBIAN}")
    (out / f"sub-05/anat/sub-05_{QC}.json").write_text("{")
    (out / f"sub-06/ses-a/anat/sub-06_ses-a_{QC}.json").write_text('{"dice": 1}')
    assert command() == 0
    said, page = capsys.readouterr().out, read_page(root)
    for scan, words in (
        ("sub-01", f"sub-01_{JACOBIAN} is missing"),
        ("sub-02", f"sub-02_{T1W}: cannot be read"),
        ("sub-03", f"sub-03_{T1W}: lies on another grid (3, 3, 3) than most images (7, 8, 9)"),
        ("sub-04", f"sub-04_{JACOBIAN}: 504 of 504 voxels are NaN or infinite"),
        ("sub-05", f"left out: sub-05_{QC}.json cannot be read"),
        ("sub-06_ses-a", f"left out: sub-06_ses-a_{QC}.json names no template"),
        ("sub-07", "no results"),
    ):
        assert f"{scan}: {words}" in said
        assert words in page
    assert "Too few images" not in page and "7 results" in page
    assert list(read_table(root).index) == ["sub-01", "sub-02", "sub-03", "sub-04", "sub-06_ses-b"]
    np.testing.assert_allclose(read_mean(root, "meanjacobian"), 0.1 * (2 + 3 + 6) / 3, rtol=1e-6)


def test_scores_are_read_from_the_table_where_the_json_is_gone(root, command):
    path = root / f"out/sub-01/anat/sub-01_{QC}.json"
    path.unlink()
    head = "subject\ttemplate\tdice\tdice_per_label_1\tmodel\tversions_torch\tinput_sha256_T1w image of x\thd95_mm"
    path.with_suffix(".tsv").write_text(f"{head}\n01\ttiny\t0.75\t0.5\tmmln\t2\t00\tn/a\n")
    assert command() == 0
    row = read_table(root).loc["sub-01"]
    assert row["dice"] == 0.75 and row["dice_per_label_1"] == 0.5
    assert not [name for name in row.index if name.startswith(("versions", "input"))]
    path.with_suffix(".tsv").write_text("template\tdice\n")
    assert command() == 0
    assert "sub-01" not in read_table(root).index and "expected one row, found 0" in read_page(root)


def test_one_scan_has_no_spread_and_an_old_one_is_removed(root, command):
    assert command() == 0
    assert command("--participant-label", "01") == 0
    assert list(read_table(root).index) == ["sub-01"]
    assert not list((root / "out").glob("space-tiny_desc-sdjacobian*"))
    assert "Too few images" in read_page(root)


def test_labels_choose_scans(root, command, capsys):
    assert command("--session-label", "ses-b") == 0
    assert list(read_table(root).index) == ["sub-06_ses-b"]
    assert command("--participant-label", "sub-02", "07") == 0
    assert list(read_table(root).index) == ["sub-02"]
    assert "sub-07: no results" in capsys.readouterr().out


def test_dry_run_writes_nothing(root, command, capsys):
    before = snapshot(root)
    assert command("--dry-run") == 0
    assert snapshot(root) == before
    said = capsys.readouterr().out
    assert "Would sum up 7 images registered to tiny" in said and "space-tiny_desc-mean_T1w.nii.gz" in said


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--template", "other"], "--template other: images in .* are registered to tiny \\(7\\): give that one"),
        (["--template", "MNI152NLin2009aSym"], "registered to tiny"),
        (["--template", "_.nii.gz"], "expected letters or digits"),
        (["--participant-label", "99"], "--participant-label 99: no folder sub-99"),
        (["--participant-label", "07"], "no finished image of the participant level found: sub-07: no results"),
        (["--session-label", "z"], "no finished image"),
        (["--boilerplate-only"], "--boilerplate-only: belongs to the participant level"),
        (["--reports-only"], "--reports-only: belongs"),
        (["--write-graph"], "--write-graph: belongs"),
    ],
)
def test_wrong_usage_is_one_line_before_any_work(root, command, capsys, options, words):
    before = snapshot(root)
    assert command(*options) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("mmln-bids: error:") and re.search(words, line)
    assert snapshot(root) == before


def test_several_templates_are_refused(root, command, capsys):
    add_scan(root, "sub-02", 2, template="other")
    assert command() == 2
    assert "registered to other (1), tiny (6): choose images of one" in capsys.readouterr().err
    assert command("--participant-label", "01", "03") == 0


def test_template_may_be_a_file_that_is_gone(root, command):
    assert command("--template", str(root / "tpl-tiny_T1w.nii.gz")) == 0


def test_empty_or_foreign_output_is_refused(root, command, capsys):
    shutil.rmtree(root / "out")
    assert command() == 2
    assert "no finished image" in capsys.readouterr().err
    describe(root / "out", "raw")
    assert command() == 2
    assert "did not make" in capsys.readouterr().err
