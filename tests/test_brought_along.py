"""--apply-to: series, images and surfaces in T1w space come to the template under BIDS names, and nothing else does."""

import json

import nibabel as nb
import numpy as np
import pytest
from nibabel.affines import apply_affine
from scipy.ndimage import center_of_mass
from tiny_bids import SHAPE, describe, make_brain, one_error, settings, write_image

from mmln_pipeline.bids_app.run import main
from mmln_pipeline.space.transforms import read_transform

BOLD = "sub-01/func/sub-01_task-rest_space-T1w_desc-preproc_bold.nii.gz"
PIAL = "sub-01/anat/sub-01_hemi-L_pial.surf.gii"


def make_datasets(root):
    """A T1w image, and of another program a series in its space, one in a space of its own, an image and a surface."""
    describe(root / "raw")
    describe(root / "prep", "derivative")
    brain = make_brain(2)
    write_image(brain, root / "raw/sub-01/anat/sub-01_T1w.nii.gz")
    affine = brain.affine @ np.diag([2, 2, 2, 1])
    data = np.stack([(n + 1) * brain.get_fdata()[::2, ::2, ::2] for n in range(3)], axis=-1)
    series = nb.Nifti1Image(data.astype(np.float32), affine)
    series.header.set_zooms((2, 2, 2, 1.5))
    write_image(series, root / "prep" / BOLD)
    (root / "prep" / BOLD.replace(".nii.gz", ".json")).write_text('{"RepetitionTime": 1.5, "TaskName": "rest"}')
    write_image(series, root / "prep" / BOLD.replace("_space-T1w", ""))
    write_image(brain, root / "prep/sub-01/anat/sub-01_space-T1w_desc-preproc_T2w.nii.gz")
    write_image(brain, root / "prep/sub-01/anat/sub-01_space-T1w_desc-preproc_T1w.nii.gz")
    points = apply_affine(brain.affine, np.array([[12, 14, 16], [14, 14, 16], [12, 18, 16]])).astype(np.float32)
    arrays = [
        nb.gifti.GiftiDataArray(points, intent="NIFTI_INTENT_POINTSET"),
        nb.gifti.GiftiDataArray(np.array([[0, 1, 2]], np.int32), intent="NIFTI_INTENT_TRIANGLE"),
    ]
    nb.save(nb.gifti.GiftiImage(darrays=arrays), root / "prep" / PIAL)


@pytest.fixture
def app(place, tmp_path):
    make_datasets(tmp_path)

    def run(*options):
        folders = [tmp_path / "raw", tmp_path / "out", "participant", "-w", tmp_path / "work"]
        return main([str(part) for part in (*folders, *settings(place), "--sloppy", *options)])

    return run


def test_everything_comes_to_the_template(app, tmp_path, place):
    prep = f"prep={tmp_path / 'prep'}"
    assert app("-d", prep, "--apply-to", "bold", "T2w", "pial") == 0
    out = tmp_path / "out"
    bold = nb.load(out / "sub-01/func/sub-01_task-rest_space-tiny_desc-preproc_bold.nii.gz")
    assert bold.shape == (*(n // 2 for n in SHAPE), 3) and bold.header.get_zooms() == pytest.approx((2, 2, 2, 1.5))
    template = nb.load(place / "tpl-tiny_T1w.nii.gz")
    places = [
        apply_affine(image.affine, center_of_mass(data > 100))
        for image, data in ((template, template.get_fdata()), (bold, bold.get_fdata()[..., 0]))
    ]
    assert np.linalg.norm(places[0] - places[1]) < 1
    sidecar = json.loads((out / "sub-01/func/sub-01_task-rest_space-tiny_desc-preproc_bold.json").read_text())
    assert sidecar["RepetitionTime"] == 1.5 and sidecar["Sources"][0] == f"bids:prep:{BOLD}"
    t2w = nb.load(out / "sub-01/anat/sub-01_space-tiny_desc-preproc_T2w.nii.gz")
    assert t2w.shape == template.shape
    surface = nb.load(out / "sub-01/anat/sub-01_hemi-L_space-tiny_pial.surf.gii").darrays[0].data
    back = read_transform(out / "sub-01/anat/sub-01_from-tiny_to-T1w_mode-image_xfm.h5")
    expected = back.map_points(nb.load(tmp_path / "prep" / PIAL).darrays[0].data)
    np.testing.assert_allclose(surface, expected, atol=1e-3)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--apply-to", "bold"], "expected a dataset that holds such files in T1w space"),
        (["-d", "prep=PREP", "--apply-to", "flair"], "no such file of these subjects"),
        (["-d", "prep=PREP", "--apply-to", "T1w"], "it would be called like a result of sub-01"),
        (
            ["-d", "prep=PREP", "--apply-to", "task-rest_desc-preproc_bold"],
            "expected space-T1w in its name, found none",
        ),
    ],
)
def test_what_cannot_be_brought_along_is_named(app, tmp_path, options, words, capsys):
    assert app(*(option.replace("PREP", str(tmp_path / "prep")) for option in options)) == 2
    assert words in one_error(capsys)


@pytest.mark.parametrize(
    ("entry", "chosen"),
    [
        ({"task": "rest"}, {"rest"}),
        ({"task": ["rest", "nback"], "run": 1}, {"nback"}),
        ({"run": None}, {"rest"}),
        ({"run": "*", "datatype": "func"}, {"nback"}),
    ],
)
def test_filters_choose_among_them(app, tmp_path, entry, chosen, capsys):
    series = nb.load(tmp_path / "prep" / BOLD)
    write_image(series, tmp_path / "prep" / BOLD.replace("task-rest", "task-nback_run-01"))
    (tmp_path / "filter.json").write_text(json.dumps({"apply_to": entry}))
    options = ["-d", f"prep={tmp_path / 'prep'}", "--bids-filter-file", tmp_path / "filter.json"]
    assert app(*options, "--apply-to", "desc-preproc_bold", "--dry-run") == 0
    said = capsys.readouterr().out
    assert {task for task in ("rest", "nback") if f"task-{task}" in said} == chosen


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ({"task": "motor"}, "no such file of these subjects that --bids-filter-file chooses"),
        ({"tasks": "rest"}, '"apply_to": "tasks": no entity that PyBIDS knows; did you mean task?'),
    ],
)
def test_filters_that_choose_nothing_are_named(app, tmp_path, entry, words, capsys):
    (tmp_path / "filter.json").write_text(json.dumps({"apply_to": entry}))
    options = ["-d", f"prep={tmp_path / 'prep'}", "--bids-filter-file", tmp_path / "filter.json"]
    assert app(*options, "--apply-to", "bold") == 2
    assert words in one_error(capsys)


def test_a_series_that_lies_elsewhere_by_its_header_is_refused(app, tmp_path, capsys):
    series = nb.load(tmp_path / "prep" / BOLD)
    far = series.affine + np.array([[0, 0, 0, 300.0], *[[0] * 4] * 3])
    write_image(nb.Nifti1Image(series.get_fdata(dtype=np.float32), far), tmp_path / "prep" / BOLD)
    assert app("-d", f"prep={tmp_path / 'prep'}", "--apply-to", "desc-preproc_bold") == 2
    assert "as its name says, but by the headers they cover different parts of the space (0% in common)" in one_error(
        capsys
    )


def test_dry_run_names_them(app, tmp_path, capsys):
    assert app("-d", f"prep={tmp_path / 'prep'}", "--apply-to", "desc-preproc_bold", "--dry-run") == 0
    assert f"brought along: {tmp_path / 'prep' / BOLD}" in capsys.readouterr().out
