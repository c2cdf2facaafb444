"""One verdict on a registration, pass, look or fail, with reasons: scores against a table of stated thresholds.

The thresholds are wide on purpose. A pass says that nothing points to a failure, not that every gyrus fits; scores of
similarity and overlap cannot say that (Rohlfing 2012). Three levels are what human raters agree on (Benhajali 2020).

References
----------
Benhajali et al., A standardized protocol for efficient and reliable quality control of brain registration in
functional MRI studies, Frontiers in Neuroinformatics 2020.
Christensen and Johnson, Consistent image registration, IEEE TMI 2001.
Klein et al., Evaluation of 14 nonlinear deformation algorithms applied to human brain MRI registration,
NeuroImage 2009.
Leow et al., Statistical properties of Jacobian maps and the realization of unbiased large-deformation nonlinear image
registration, IEEE TMI 2007.
Liu et al., On finite difference Jacobian computation in deformable image registration, IJCV 2024.
Rohlfing, Image similarity and tissue overlaps as surrogates for image registration accuracy: widely used but
unreliable, IEEE TMI 2012.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

KeyPath = tuple[str, ...]

VERDICTS = ("pass", "look", "fail")
"""From good to bad."""
MAX_DOUBTS = 3
"""So many scores in doubt at once are a failure: a brain upside down has no score that fails alone but its labels'."""


@dataclass(frozen=True)
class Check:
    """A score and the limits that it must keep.

    Attributes
    ----------
    name : str
        What is measured, with its unit.
    path : tuple of str
        Keys of the score, outer to inner.
    look, fail : float
        Limits beyond which somebody should look, and beyond which the result should not be used. Where `fail` is the
        smaller one the score must not be too small, else not too large.
    meaning : str
        What may be the matter beyond the limits.
    source : str
        Why the limits are what they are.
    before : tuple of str
        Where given, the difference to this score is judged.
    is_needed : bool
        Whether a score that was measured and has no value is a failure.
    """

    name: str
    path: KeyPath
    look: float
    fail: float
    meaning: str
    source: str
    before: KeyPath = ()
    is_needed: bool = False

    @property
    def limits(self) -> str:
        """The limits in words, such as "look below 0.95, fail below 0.9"."""
        side = "below" if self.fail < self.look else "above"
        limits = {"look": self.look, "fail": self.fail}
        return ", ".join(f"{verdict} {side} {limit:g}" for verdict, limit in limits.items() if math.isfinite(limit))

    def judge(self, scores: Mapping[str, Any]) -> tuple[str, str]:
        """Return the verdict on this score alone, and the reason for it (empty for a pass)."""
        if self.path[0] not in scores:
            return "pass", ""
        value, start = look_up(scores, self.path), look_up(scores, self.before) if self.before else 0.0
        if not is_number(value) or not is_number(start):
            return ("fail", f"{self.name} could not be measured: {self.meaning}") if self.is_needed else ("pass", "")
        value -= start
        is_floor = self.fail < self.look
        for verdict, limit in (("fail", self.fail), ("look", self.look)):
            if (value < limit) if is_floor else (value > limit):
                side = "below" if is_floor else "above"
                # As many digits as tell the two apart: not "0.62 is above 0.62".
                digits = next((n for n in range(3, 9) if float(f"{value:.{n}g}") != limit), 9)
                return verdict, f"{self.name} {value:.{digits}g} is {side} {limit:g}: {self.meaning}"
        return "pass", ""


CHECKS = (
    Check(
        name="brain overlap (Dice of the moved and the fixed brain)",
        path=("brain_overlap", "after"),
        look=0.95,
        fail=0.90,
        meaning="a part of a brain is missing, a mask is wrong, or the alignment failed",
        source="0.99 on good pairs, 0.88 after an affine 25 degrees off, 0.74 with half a brain",
        is_needed=True,
    ),
    Check(
        name="brain on the border of the image, cm2",
        path=("brain_cut_cm2",),
        look=15.0,
        fail=80.0,
        meaning="the field of view cuts a part of the brain off, and the warp makes it up",
        source="0 on whole heads, a few where the neck ends, 43 for a scan without vertex, about 130 for half a brain",
    ),
    Check(
        name="flat face of the brain, cm2",
        path=("brain_flat_cm2",),
        look=15.0,
        fail=80.0,
        meaning="a part of the brain was cut off along a plane (defacing, stitching), and the warp makes it up",
        source="under 4 on whole brains at 1 mm, 12 at 2 mm (114 scans); 19 to 29 with 10 mm cut off, 34 to 48 with 20",
    ),
    Check(
        name="correlation of intensities in the brain",
        path=("similarity", "brain_correlation", "after"),
        look=0.75,
        fail=0.50,
        meaning="the brains do not fit, or the images differ in contrast (below 0: inverted; no value: constant)",
        source="0.89 and more on good pairs of T1w images, 0.57 after an affine 25 degrees off, 0.36 with half a brain",
        is_needed=True,
    ),
    Check(
        name="local correlation in the brain",
        path=("similarity", "local_correlation", "after"),
        look=0.40,
        fail=0.25,
        meaning="the images share little structure: noise, an artefact, or no T1w contrast",
        source="0.77 and more on good pairs, 0.18 for noise in the shape of a brain",
        is_needed=True,
    ),
    *(
        Check(
            name=f"contrast of the {image} image (interquartile range per median)",
            path=("contrast", image),
            look=0.15,
            fail=0.05,
            meaning="the image is nearly constant in the brain: a mask, or saturated",
            source="0.3 to 0.5 for T1w brains, 0 for a mask",
            is_needed=True,
        )
        for image in ("fixed", "moving")
    ),
    Check(
        name="change of the local correlation by the warp",
        path=("similarity", "local_correlation", "after"),
        before=("similarity", "local_correlation", "before"),
        look=-0.05,
        fail=-0.15,
        meaning="the warp made the fit worse",
        source="a warp is there to raise it (by 0.5 on good pairs); repeating a scan may leave it as it is",
    ),
    Check(
        name="mean Dice of the labels",
        path=("dice",),
        look=0.40,
        fail=0.20,
        meaning="labels of left and right are swapped, numbered otherwise, or the alignment failed",
        source="affine alignment alone reaches 0.4 to 0.6 on structures and regions (Klein 2009)",
    ),
    Check(
        name="change of the mean Dice by the warp",
        path=("dice",),
        before=("dice_before",),
        look=-0.01,
        fail=-0.10,
        meaning="the warp took structures apart that the affine had aligned",
        source="a warp raises it (by 0.2 on good pairs); half a brain lost 0.22",
    ),
    Check(
        name="non-diffeomorphic volume (NDV) of the brain, %",
        path=("ndv_percent_brain",),
        look=0.1,
        fail=1.0,
        meaning="the warp folds, and tissue is lost or doubled there",
        source="0 by construction with the topology strict; below 0.04 for the bare network on good pairs (Liu 2024)",
    ),
    Check(
        name="SD of the log-Jacobian in the brain",
        path=("sdlogj",),
        look=0.65,
        fail=1.20,
        meaning="the warp squeezes and stretches far more than brains differ, or it makes up for a wrong alignment",
        source="0.49 to 0.56 (oasis) and 0.61 to 0.64 (ds002748) on good training scans, 0.67 and 0.77 after an affine "
        "10 and 25 degrees off (Leow 2007)",
    ),
    Check(
        name="inverse consistency error, mm",
        path=("inverse_consistency_mm",),
        look=0.5,
        fail=2.0,
        meaning="forward and inverse transform disagree",
        source="half a voxel and two voxels of the 1 mm grid; 0.20 to 0.27 on good pairs (Christensen 2001)",
    ),
    Check(
        name="volume ratio of the affine (image per template)",
        path=("affine", "volume_ratio"),
        look=0.45,
        fail=0.3,
        meaning="the image's brain is far too small: voxel size, species, or part of a head (below 0: mirrored)",
        source="adult brains measure 0.55 to 1.1 of the MNI template, infants 0.3 to 0.6",
    ),
    Check(
        name="volume ratio of the affine (image per template)",
        path=("affine", "volume_ratio"),
        look=1.7,
        fail=3.0,
        meaning="the image's brain is far too large: voxel size, skull or neck taken for brain",
        source="the largest adult brains are 1.7 times the smallest",
    ),
    Check(
        name="anisotropy of the affine (largest per smallest scale)",
        path=("affine", "anisotropy"),
        look=1.35,
        fail=1.8,
        meaning="the affine squeezes one direction: part of a brain is missing, or a voxel size is wrong",
        source="widths, lengths and heights of adult brains differ by 20% at most against each other",
    ),
    Check(
        name="distance between the places where NiBabel and ITK read an input to lie, mm",
        path=("headers", "itk_distance_mm"),
        look=0.1,
        fail=math.inf,
        meaning="sform and qform of its header differ, and ANTs or ITK will not find it where this program did",
        source="0 where the header says one thing; float32 leaves less than 0.01",
    ),
    Check(
        name="inputs whose header ITK refuses",
        path=("headers", "itk_refuses"),
        look=0.5,
        fail=math.inf,
        meaning="ANTs or ITK cannot read them; the header is sheared, or holds no orientation",
        source="0 for whole headers",
    ),
    Check(
        name="rotation of the affine, degrees",
        path=("affine", "rotation_degrees"),
        look=45.0,
        fail=math.inf,
        meaning="the head lies unusually in the scanner, or the orientation in the header is wrong",
        source="nobody lies in a scanner like that; phantoms and wrong headers do",
    ),
)
"""Every threshold, with its reason. Good pairs: OASIS scans, aligned to the MNI template; broken ones were made from
them, and `tests/test_qc.py` repeats them on small volumes."""


def judge(scores: Mapping[str, Any]) -> dict[str, Any]:
    """Judge a registration by its scores.

    Parameters
    ----------
    scores : mapping
        As in ``metrics.json``; checks of scores that are not there are left out.

    Returns
    -------
    dict
        ``verdict`` ("pass", "look" or "fail": the worst of all checks) and ``reasons`` (list of str, the worst first).
    """
    found = [("pass", ""), *(check.judge(scores) for check in CHECKS)]
    doubts = sum(verdict == "look" for verdict, _ in found)
    if doubts >= MAX_DOUBTS:
        found.insert(0, ("fail", f"{doubts} scores at once are doubtful"))
    found.sort(key=lambda item: -VERDICTS.index(item[0]))  # keeps the order of the table within a verdict
    return {"verdict": found[0][0], "reasons": [reason for _, reason in found if reason]}


def look_up(content: Mapping[str, Any], path: KeyPath) -> Any:
    """Return a nested value, or None where a key is missing.

    Examples
    --------
    >>> look_up({"seconds": {"total": 3.0}}, ("seconds", "total"))
    3.0
    >>> look_up({"dice": None}, ("dice", "mean")) is None
    True
    """
    value: Any = content
    for key in path:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def is_number(value: Any) -> bool:
    """Tell whether a value is a finite number (True and False are none)."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
