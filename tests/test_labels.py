"""Label tables: the bundled ones and those that users bring."""

import numpy as np
import pytest

from mmln_pipeline.atlas.labels import LabelTable, load_dseg_table, load_label_table, measure_volumes, structures28


def test_structures28_in_both_systems():
    table = structures28()
    assert len(table) == 28
    assert table["Cerebellar-Vermis"] == (71, 72, 73)
    assert table["Left-Hippocampus"] == (48,)
    freesurfer = structures28("freesurfer")
    assert set(table) - set(freesurfer) == {"Cerebellar-Vermis"}
    assert freesurfer["Left-Hippocampus"] == (17,)
    assert load_label_table("structures28") == table
    assert load_label_table("structures28:freesurfer") == freesurfer


def test_neuromorphometrics_names_every_number_of_structures28():
    names = load_label_table("neuromorphometrics")
    assert len(names) == 142
    assert names["Right Accumbens Area"] == (23,)
    assert set(structures28().numbers) <= set(names.numbers)
    assert names.numbers == tuple(sorted(names.numbers))


def test_unknown_system():
    with pytest.raises(ValueError, match="Unknown label system 'aal'"):
        structures28("aal")
    with pytest.raises(ValueError, match="Unknown label system 'aal'"):
        load_label_table("structures28:aal")


def write(path, text):
    path.write_text(text, encoding="utf-8")
    return path


def test_bids_table_with_background_and_blank_cells(tmp_path):
    path = write(
        tmp_path / "atlas_dseg.tsv",
        "index\tname\tcolor\n0\tBackground\t#000\n1\tGM\t#111\n2\tWM\t\nn/a\tX\t\n",
    )
    table = load_label_table(path)
    assert dict(table) == {"GM": (1,), "WM": (2,)}
    assert table.name == "atlas_dseg.tsv"


def test_rows_and_commas_merge(tmp_path):
    path = write(tmp_path / "merged.tsv", "structure\tlabels\nVermis\t71,72\nVermis\t73\n")
    assert load_label_table(path)["Vermis"] == (71, 72, 73)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("number\ttitle\n1\tGM\n", "columns 'name' and 'index'"),
        ("name,index\nGM,1\n", "columns 'name' and 'index'"),
        ("", "columns 'name' and 'index'"),
        ("name\tindex\n", "names no structure"),
        ("name\tindex\nGM\tone\n", "line 2, column 'index': expected whole numbers"),
        ("name\tindex\nGM\t1\nWM\t1\n", "number 1 belongs to both 'GM' and 'WM'"),
        ("name\tindex\nGM\t-3\n", "positive label numbers"),
    ],
)
def test_bad_tables_say_what_is_wrong(tmp_path, text, message):
    with pytest.raises(ValueError, match=message):
        load_label_table(write(tmp_path / "bad.tsv", text))


def test_binary_file_and_missing_file(tmp_path):
    path = tmp_path / "image.tsv"
    path.write_bytes(b"\xff\xfe\x00\x81")
    with pytest.raises(ValueError, match="cannot be read as a TSV"):
        load_label_table(path)
    with pytest.raises(FileNotFoundError, match=r"missing\.tsv.*structures28"):
        load_label_table(tmp_path / "missing.tsv")


def test_table_is_a_mapping():
    table = LabelTable("two", {"b": (2,), "a": (7, 1)})
    assert list(table) == ["b", "a"]
    assert table.numbers == (1, 2, 7)


def test_dseg_table_keeps_its_columns(tmp_path):
    path = tmp_path / "dseg.tsv"
    path.write_text("index\tname\tcolor\n0\tBackground\tn/a\n3\tn/a\t#ff0000\n")
    table = load_dseg_table(path)
    assert table.columns.tolist() == ["index", "name", "color"]
    assert table["index"].tolist() == [0, 3] and table["name"].tolist() == ["Background", "n/a"]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("number\tname\n1\tA\n", "expected columns index and name, found number, name"),
        ("index\tname\n1.5\tA\n", "expected whole numbers as index"),
        ("index\tname\nx\tA\n", "expected whole numbers as index"),
        ("index\tname\n1\tA\n1\tB\n", "expected each index once, found 1 twice"),
        ("", "expected tab-separated text"),
    ],
)
def test_wrong_dseg_tables(tmp_path, content, words):
    path = tmp_path / "dseg.tsv"
    path.write_text(content)
    with pytest.raises(ValueError, match=f"label table {path}: {words}"):
        load_dseg_table(path)


def test_volumes_add_up(rng):
    labels = rng.integers(0, 5, (7, 8, 9))
    table = measure_volumes(labels, 0.343, {1: "One", 7: "Seven"})
    assert table["index"].tolist() == [1, 2, 3, 4, 7] and table["name"].tolist()[-1] == "Seven"
    assert table["voxels"].sum() == np.count_nonzero(labels) and table["voxels"].tolist()[-1] == 0
    np.testing.assert_allclose(table["volume_mm3"], table["voxels"] * 0.343, atol=1e-4)
