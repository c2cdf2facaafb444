"""The quality check on the real network: a panel of moving brains that are none, not whole, or not as they should lie.

Scans of training, by which thresholds may be set. What the check says of each is in `docs/accuracy.md`.
"""

import warnings
from dataclasses import dataclass

import nibabel as nib
import numpy as np
import pytest
from nibabel.affines import apply_affine, from_matvec

from mmln_pipeline import register
from mmln_pipeline.atlas.labels import structures28
from mmln_pipeline.images.volumes import brain_mask, load_image, load_labels
from mmln_pipeline.scores.evaluation import score_field_of_view
from mmln_pipeline.scores.metrics import dice, label_mean
from mmln_pipeline.scores.quality import CHECKS
from mmln_pipeline.space.grids import new_image

FIXED, MOVING = "sub-OAS10080", "sub-OAS10061"
CLOSE = 0.02
"""A warp is right where the Dice of labels is no more than this below that of the undisturbed pair."""


@dataclass(frozen=True)
class Scan:
    """A stripped brain and its labels."""

    image: nib.Nifti1Image
    labels: nib.Nifti1Image

    def with_data(self, data):
        return Scan(new_image(np.asarray(data, np.float32), self.image), self.labels)

    @property
    def data(self):
        return self.image.get_fdata(dtype=np.float32)

    @property
    def world(self):
        """RAS+ mm about the middle of the brain's box, shape (3, I, J, K)."""
        points = apply_affine(self.image.affine, np.moveaxis(np.indices(self.image.shape), 0, -1))
        inside = points[self.data > 0]
        return np.moveaxis(points - (inside.min(0) + inside.max(0)) / 2, -1, 0)


def load_scan(root, subject):
    stem = f"{subject}/ses-01/anat/{subject}_ses-01"
    paths = [root / f"oasis/{stem}_T1w.nii.gz"]
    paths += sorted((root / f"oasis/derivatives/neuromorphometrics/{subject}/ses-01/anat").glob("*_dseg.nii.gz"))
    if len(paths) < 2 or not paths[0].is_file():
        pytest.skip(f"{paths[0]} or its labels are absent")
    return Scan(load_image(paths[0]), load_labels(paths[1]))


def phantom(scan):
    """An ellipsoid of a brain's size, two shells and a little noise."""
    radius = np.sqrt((scan.world**2 / np.reshape((68, 85, 65), (3, 1, 1, 1)) ** 2).sum(0))
    shells = np.select([radius < 0.2, radius < 0.8, radius < 1], [300, 1000, 700], 0)
    noise = np.random.default_rng(0).normal(0, 20, radius.shape)
    return scan.with_data(np.where(radius < 1, shells + noise, 0))


def noise(scan):
    values = np.random.default_rng(0).uniform(50, 150, scan.image.shape)
    return scan.with_data(np.where(scan.data > 0, values, 0))


def one_hemisphere(scan):
    return scan.with_data(np.where(scan.world[0] > 0, scan.data, 0))


def cut_in_front(depth_mm):
    def cut(scan):
        world = scan.world[1]
        return scan.with_data(np.where(world < world[scan.data > 0].max() - depth_mm, scan.data, 0))

    return cut


def moved(linear):
    """Change the header: turn, mirror or scale the head about its middle, labels with it."""

    def move(scan):
        middle = apply_affine(scan.image.affine, (np.array(scan.image.shape) - 1) / 2)
        about = from_matvec(linear, middle - linear @ middle)
        return Scan(*(nib.Nifti1Image(part.dataobj, about @ part.affine) for part in (scan.image, scan.labels)))

    return move


def inverted(scan):
    data = scan.data
    top = 1.1 * np.percentile(data[data > 0], 99.5)
    return scan.with_data(np.where(data > 0, np.clip(top - data, 1, None), 0))


PANEL = {
    "phantom": phantom,
    "noise": noise,
    "one hemisphere": one_hemisphere,
    "10 mm cut in front": cut_in_front(10),
    "20 mm cut in front": cut_in_front(20),
    "40 mm cut in front": cut_in_front(40),
    "upside down": moved(np.diag([-1.0, 1.0, -1.0])),
    "upside down and back to front": moved(np.diag([1.0, -1.0, -1.0])),
    "T2w contrast": inverted,
    "40% of the size": moved(0.4 * np.eye(3)),
    "55% of the size": moved(0.55 * np.eye(3)),
    "70% of the size": moved(0.7 * np.eye(3)),
}

NO_BRAINS = ("phantom", "noise", "one hemisphere", "T2w contrast")
"""What no registration should be used of."""


def judge(fixed, moving):
    """Register and return the verdict ("refused" where it is an error), why, and the mean Dice: 28 structures, all."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the verdict is what is asked for
        try:
            result = register(fixed.image, moving.image, refine=0, device="cpu")
        except ValueError as error:
            return "refused", [str(error)], (0.0, 0.0)
    found = np.asarray(result.transform.resample(moving.labels, fixed.labels, "nearest").dataobj)
    truth = np.asarray(fixed.labels.dataobj)
    overlap = label_mean(dice(truth, found, structures28())), label_mean(dice(truth, found))
    return result.metrics["qc"]["verdict"], result.metrics["qc"]["reasons"], overlap


@pytest.fixture(scope="module")
def pair(data_root):
    return load_scan(data_root, FIXED), load_scan(data_root, MOVING)


@pytest.fixture(scope="module")
def undisturbed(pair):
    """Mean Dice of the labels with both brains as they are."""
    verdict, reasons, overlap = judge(*pair)
    assert verdict == "pass", reasons
    return overlap


@pytest.mark.realdata
@pytest.mark.slow
@pytest.mark.parametrize("name", PANEL)
def test_a_pass_means_a_right_warp(name, pair, undisturbed):
    fixed, moving = pair
    verdict, reasons, overlap = judge(fixed, PANEL[name](moving))
    assert verdict != "pass" or np.subtract(undisturbed, overlap).max() <= CLOSE
    assert name not in NO_BRAINS or verdict in ("fail", "refused"), reasons


@pytest.mark.realdata
def test_a_cut_of_a_real_brain_is_seen(pair):
    def flat_face(scan):
        return score_field_of_view(brain_mask(scan.image))["brain_flat_cm2"]

    limit = next(check.look for check in CHECKS if check.path == ("brain_flat_cm2",))
    moving = pair[1]
    assert flat_face(moving) < 0.5 * limit < limit < flat_face(cut_in_front(10)(moving))
