"""Results and images as Python has them: short words, notebooks, nilearn, nitransforms, TorchIO, arrays."""

import re

import nibabel as nib
import numpy as np
import pytest
import torchio
from nibabel.affines import from_matvec
from nitransforms.linear import Affine
from nitransforms.resampling import apply
from tiny_bids import SHAPE, make_brain

from mmln_pipeline import register
from mmln_pipeline.images.objects import as_source
from mmln_pipeline.network.architecture import NetworkConfig
from mmln_pipeline.network.model import MMLN
from mmln_pipeline.space.other_tools import from_nitransforms
from mmln_pipeline.space.transforms import Transform
from mmln_pipeline.weights import save_model


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """Weights of a network as small as the brains."""
    path = tmp_path_factory.mktemp("model") / "tiny.safetensors"
    save_model(MMLN(NetworkConfig(channels=2, slices=(), grid=SHAPE)), path, {"name": "tiny"})
    return path


@pytest.fixture(scope="module")
def result(model):
    """A registration of two small brains, the linear start from nitransforms, the moving one from an array."""
    moving = make_brain(1.0)
    return register(
        make_brain(),
        (moving.get_fdata(), moving.affine),
        moving_dseg=(moving.get_fdata() > 300, moving.affine),
        init=Affine(from_matvec(np.eye(3), (0.5, 0, 0))),
        model=model,
        refine=2,
        device="cpu",
    )


def test_a_result_is_told_in_a_line(result):
    scores = r"(pass|look|fail), local correlation [\d.-]+, NDV, % 0, seconds [\d.]+"
    assert re.fullmatch(rf"<RegistrationResult: {scores}, on 24x28x32 voxels>", repr(result))
    assert re.fullmatch(
        r"<Transform: DisplacementField: 24x28x32 voxels, up to [\d.]+ mm, then affine>", repr(result.transform)
    )
    assert repr(Transform(())) == "<Transform: identity>"
    assert re.fullmatch(r"<DisplacementField: 24x28x32 voxels, up to [\d.]+ mm>", repr(result.warp))


def test_a_notebook_shows_verdict_and_planes(result):
    html = result._repr_html_()
    assert re.findall(r"<th[^>]*>([^<]+)<", html) == ["fixed", "before (affine only)", "after"]
    pictures = re.findall(r'src="(data:image/jpeg;base64,[^"]+)"', html)
    assert len(pictures) == len(set(pictures)) == 3 and len(html) < 40_000
    assert f"Quality check: {result.metrics['qc']['verdict']}" in html


@pytest.mark.parametrize("view", ["moved", "before", "fixed", "log_jacobian"])
def test_a_result_is_plotted_by_nilearn(result, view, tmp_path):
    display = result.plot(view, cut_coords=(0, 0, 0))
    display.savefig(tmp_path / "plot.png")
    display.close()
    assert (tmp_path / "plot.png").stat().st_size > 5000
    with pytest.raises(ValueError, match="view: expected one of moved, before, fixed, log_jacobian, found 'after'"):
        result.plot("after")


def test_before_is_the_affine_alone(result):
    expected = Transform((result.affine,)).resample(result.moving, result.fixed)
    np.testing.assert_array_equal(result.before.dataobj, expected.dataobj)


def test_nitransforms_resamples_as_we_do(result):
    theirs = apply(result.to_nitransforms(), result.moving, reference=result.fixed, order=1)
    np.testing.assert_allclose(theirs.get_fdata(), result.moved.get_fdata(), atol=1.0)
    back = from_nitransforms(result.to_nitransforms())
    points = [[0.0, 1.0, 2.0], [-3.0, 2.0, 4.0]]
    np.testing.assert_allclose(back.map_points(points), result.transform.map_points(points), atol=1e-4)


def test_torchio_takes_and_gives_images(result, model):
    subject = result.to_torchio()
    assert set(subject) == {"fixed", "moved", "jacobian", "moved_dseg"} and subject.spatial_shape == SHAPE
    np.testing.assert_array_equal(subject["moved"].numpy()[0], result.moved.get_fdata())
    np.testing.assert_allclose(subject["moved"].affine, result.moved.affine)
    image = as_source(torchio.ToCanonical()(subject["moved"]), "moving image")
    np.testing.assert_array_equal(image.get_fdata(), result.moved.get_fdata())
    two = torchio.ScalarImage(tensor=np.ones((2, 3, 4, 5), np.float32))
    with pytest.raises(ValueError, match="fixed image: expected one channel, found 2"):
        as_source(two, "fixed image")


@pytest.mark.parametrize(
    ("source", "found"),
    [
        (np.ones((3, 4, 5)), r"found an array of shape \(3, 4, 5\) without an affine"),
        (3.0, "found float"),
        ((np.ones((3, 4, 5)), np.eye(3)), "moving image: affine"),
        ((np.array(["a"]), np.eye(4)), "expected an array of numbers"),
    ],
)
def test_what_is_no_image_is_refused_by_name(source, found, model):
    with pytest.raises(ValueError, match=rf"moving image.*{found}" if "moving" not in found else found):
        register(make_brain(), source, model=model, device="cpu")


@pytest.mark.parametrize(
    ("dtype", "kept"), [(bool, np.uint8), (np.int64, np.int32), (np.float64, np.float32), (np.int16, np.int16)]
)
def test_arrays_come_in_types_that_nifti_knows(dtype, kept):
    array = (np.arange(60).reshape(3, 4, 5) % 2).astype(dtype)
    image = as_source((array, np.diag([1.0, 2.0, 3.0, 1.0])), "x")
    assert image.get_data_dtype() == kept and np.array_equal(image.dataobj, array)
    assert as_source(nib.MGHImage(np.ones((3, 4, 5), np.float32), np.eye(4)), "x").shape == (3, 4, 5)


@pytest.mark.parametrize("small", ["fixed", "moving"])
def test_a_brain_of_another_species_is_refused_by_name(small, model):
    """A macaque's brain is a tenth of a human's, whatever its template is called."""
    pair = {name: make_brain() for name in ("fixed", "moving")}
    tenth = np.diag([0.45, 0.45, 0.45, 1.0])
    pair[small] = nib.Nifti1Image(pair[small].dataobj, tenth @ pair[small].affine)
    with pytest.raises(
        ValueError, match=rf"{small} image: expected a brain of at least 0.43 cm3, found 0.3: .*species"
    ):
        register(**pair, model=model, device="cpu")


@pytest.mark.parametrize("flat", ["fixed", "moving"])
def test_an_image_of_one_intensity_is_refused_by_name(flat, model):
    pair = {name: make_brain() for name in ("fixed", "moving")}
    pair[flat] = nib.Nifti1Image(np.full(pair[flat].shape, 5, np.float32), pair[flat].affine)
    with pytest.raises(ValueError, match=rf"{flat} image: expected an image of a brain, found 5 in all \d+ voxels"):
        register(**pair, model=model, device="cpu")


def test_a_warp_is_no_linear_start(result, model):
    with pytest.raises(ValueError, match="init: expected a linear transform, found <Transform: DisplacementField"):
        register(make_brain(), make_brain(1.0), init=result.transform, model=model, device="cpu")
