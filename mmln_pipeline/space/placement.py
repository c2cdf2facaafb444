"""Where an image lies by its header: its unit in mm, and whether ITK (ANTs, SimpleITK) reads the same as NiBabel.

This program goes by NiBabel: the sform where its code is set, else the qform, else the image centred on the origin.
ITK takes the sform for code 1 (or without a qform) and if its axes are at right angles, else the qform, else the first
voxel at the origin; versions differ, so that the one that is installed is asked.
"""

from __future__ import annotations

import itertools
import os
import warnings
from collections.abc import Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import SimpleITK as sitk
from nibabel import Nifti1Image
from nibabel.affines import apply_affine

from mmln_pipeline.machine.reading import UNREADABLE
from mmln_pipeline.space.grids import affine_in_mm
from mmln_pipeline.space.itk import affine_from_sitk

TOLERANCE_MM = 0.1
"""Readings that lie closer at all corners are one: what float32 leaves of a rotation."""
USED = "NiBabel"
"""Whose reading counts."""


class HeaderWarning(UserWarning):
    """Programs place an image differently by its header: what they write will not fit together."""


@dataclass(frozen=True)
class Placement:
    """Where two programs put an image whose header they read differently.

    Attributes
    ----------
    path : Path
        The file.
    form : str
        What of the header counts here, such as "sform (code 2)".
    other : str
        What the header holds besides.
    largest_mm, centre_mm : float or None
        How far apart NiBabel and ITK put the image's farthest corner and its centre; None where ITK refuses it.
    """

    path: Path
    form: str
    other: str
    largest_mm: float | None = None
    centre_mm: float | None = None

    def describe(self) -> str:
        """Say in a line what differs, and which reading is used."""
        if self.largest_mm is None:
            apart = f"ITK (ANTs, SimpleITK) refuses the header ({self.other})"
        else:
            apart = (
                f"NiBabel and ITK (ANTs, SimpleITK) place it up to {self.largest_mm:.1f} mm apart, "
                f"{self.centre_mm:.1f} mm at its centre ({self.other})"
            )
        return f"{apart}; used: {USED}'s {self.form}"


def find_placement(path: str | os.PathLike[str]) -> Placement | None:
    """Ask NiBabel and ITK where an image lies.

    Parameters
    ----------
    path : path-like
        An image that NiBabel can open; only the header is read.

    Returns
    -------
    Placement or None
        None where both agree to within 0.1 mm, for formats that ITK does not know (.mgz), and for files that cannot
        be read or used.
    """
    try:
        image: Any = nib.load(path)
    except UNREADABLE:
        return None  # whoever reads it says so
    if not isinstance(image, Nifti1Image) or not _is_grid(image):
        return None
    sform, qform = int(image.header["sform_code"]), int(image.header["qform_code"])
    form = f"sform (code {sform})" if sform else f"qform (code {qform})" if qform else "guess, centred on the origin"
    other = f"sform code {sform}, qform code {qform}"
    try:
        itk = _read_with_itk(path)
    except RuntimeError as error:
        return Placement(Path(path), form, str(error).strip().splitlines()[-1])
    affine, last = affine_in_mm(image), np.array(image.shape[:3]) - 1
    points = np.array([last / 2, *itertools.product(*zip((0, 0, 0), last, strict=True))])
    apart = np.linalg.norm(apply_affine(affine, points) - apply_affine(itk, points), axis=1)
    if apart.max() <= TOLERANCE_MM:
        return None
    return Placement(Path(path), form, other, float(apart.max()), float(apart[0]))


def find_placements(paths: Mapping[str, str | os.PathLike[str]]) -> dict[str, Placement]:
    """Ask NiBabel and ITK where some images lie.

    Parameters
    ----------
    paths : mapping of str to path-like
        By what the image is called.

    Returns
    -------
    dict of str to Placement
        Those that the two read differently, by the same names.
    """
    found = {name: find_placement(path) for name, path in paths.items()}
    return {name: placement for name, placement in found.items() if placement is not None}


def warn_of_placement(path: str | os.PathLike[str], name: str) -> None:
    """Find where NiBabel and ITK place an image, and warn where they differ.

    Parameters
    ----------
    path : path-like
        The image.
    name : str
        How to call it in the warning.

    Warns
    -----
    HeaderWarning
        If NiBabel and ITK differ.
    """
    placement = find_placement(path)
    if placement is not None:
        warnings.warn(f"{name} {path}: {placement.describe()}", HeaderWarning, stacklevel=2)


def score_headers(found: Mapping[str, Placement]) -> dict[str, Any]:
    """Say how the headers of some images are read.

    Parameters
    ----------
    found : mapping of str to Placement
        As of `find_placements`.

    Returns
    -------
    dict
        ``used`` (whose reading counts), ``itk_distance_mm`` (the largest one found, 0 where both agree),
        ``itk_refuses`` (number of images that ITK cannot place) and ``doubts`` (text, or None).
    """
    texts = [f"{name} {placement.path.name}: {placement.describe()}" for name, placement in found.items()]
    return {
        "used": USED,
        "itk_distance_mm": max((placement.largest_mm or 0.0 for placement in found.values()), default=0.0),
        "itk_refuses": sum(placement.largest_mm is None for placement in found.values()),
        "doubts": "; ".join(texts) or None,
    }


def _is_grid(image: Nifti1Image) -> bool:
    """Tell whether a header holds a grid; of others, ITK writes to the terminal."""
    affine = np.asarray(image.affine)
    has_sizes = image.ndim >= 3 and min(image.shape[:3]) > 0
    return has_sizes and bool(np.isfinite(affine).all()) and np.linalg.det(affine) != 0


def _read_with_itk(path: str | os.PathLike[str]) -> np.ndarray:
    """Return the affine, RAS+ mm, that ITK makes of a NIfTI header; RuntimeError where it refuses it."""
    reader = sitk.ImageFileReader()
    reader.SetImageIO("NiftiImageIO")
    reader.SetFileName(os.fspath(path))
    with _quiet_itk():
        reader.ReadImageInformation()
    return affine_from_sitk(reader)


@contextmanager
def _quiet_itk():
    """Keep ITK from writing to the terminal what a warning of ours says better."""
    shown = sitk.ProcessObject.GetGlobalWarningDisplay()
    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    try:
        yield
    finally:
        sitk.ProcessObject.SetGlobalWarningDisplay(shown)
