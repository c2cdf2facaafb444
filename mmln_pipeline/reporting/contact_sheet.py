"""The contact sheet of a group: every image in template space at a glance, to be rated by keys, in one HTML file."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import groupby
from typing import NamedTuple

import nibabel as nb
import numpy as np
from contourpy import contour_generator
from markupsafe import Markup
from nibabel import Nifti1Image
from nibabel.affines import voxel_sizes
from numpy.typing import NDArray
from PIL import Image

from mmln_pipeline.reporting.rendering import render_page

PIXEL_MM = 1.5
"""Size of a pixel of a thumbnail: three planes of a head are about 400 pixels wide, and 8 kB."""
MARGIN_MM = 6.0
"""Left free round the brain."""
BESIDE_MIDDLE = 0.1
"""How far the sagittal plane lies beside the middle of the brain, as a share of its width: not in the fissure."""
TISSUE_LEVEL = 0.6
"""Of the mean image's 99th percentile: about the border of the white matter."""


class _Frame(NamedTuple):
    """A box in the RAS order of a grid, and the sagittal, coronal and axial plane in voxels of the box."""

    box: tuple[slice, ...]
    planes: tuple[int, ...]


@dataclass
class Thumbnails:
    """Three planes of each image of a group, seen one after the other.

    Attributes
    ----------
    pictures : dict of str to str
        JPEG as data URI, by the image's name.
    frame : _Frame or None
        Where the planes lie, by the first image: in template space all brains lie alike.
    """

    pictures: dict[str, str] = field(default_factory=dict)
    frame: _Frame | None = None

    def add(self, name: str, image: Nifti1Image) -> None:
        """Take the planes of an image, values 0 to 1, on the grid that all share."""
        canonical = nb.as_closest_canonical(image)
        self.frame = self.frame or _frame(canonical)
        buffer = io.BytesIO()
        picture = Image.fromarray(np.round(255 * np.clip(self._lay_out(canonical), 0, 1)).astype(np.uint8))
        picture.save(buffer, format="JPEG", quality=70)
        self.pictures[name] = "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")

    def outline(self, mean: Nifti1Image, brain: Nifti1Image) -> Markup:
        """Draw what all thumbnails are compared with: the borders of the mean brain and of its brightest tissue.

        Parameters
        ----------
        mean : Nifti1Image
            The mean image, on the grid of the thumbnails.
        brain : Nifti1Image
            Where at least half of the images have signal (non-zero).

        Returns
        -------
        Markup
            A symbol of SVG, `outline`, in pixels of a thumbnail.
        """
        picture, mask = (self._lay_out(nb.as_closest_canonical(image)) for image in (mean, brain))
        inside = picture[mask > 0.5]
        tissue = TISSUE_LEVEL * float(np.percentile(inside, 99)) if inside.size else np.inf
        paths = [_trace(mask, 0.5), _trace(np.where(mask > 0.5, picture, 0), tissue)]
        height, width = picture.shape
        drawn = "".join(
            f'<path class="{name}" d="{path}"/>' for name, path in zip(("brain", "tissue"), paths, strict=True)
        )
        return Markup(f'<symbol id="outline" viewBox="0 0 {width} {height}">{drawn}</symbol>')

    def _lay_out(self, canonical: Nifti1Image) -> NDArray[np.float32]:
        """Put the three planes side by side: axial, coronal, sagittal, the left of the brain on the left."""
        frame = self.frame or _frame(canonical)
        spacing = voxel_sizes(canonical.affine)
        data = np.asarray(canonical.dataobj, dtype=np.float32)[frame.box]
        parts = []
        for axis in (2, 1, 0):
            across, along = (other for other in range(3) if other != axis)
            plane = np.take(data, frame.planes[axis], axis=axis).T[::-1]
            size = [
                max(1, round(plane.shape[1 - n] * spacing[other] / PIXEL_MM)) for n, other in enumerate((across, along))
            ]
            parts.append(np.asarray(Image.fromarray(plane).resize(size, Image.Resampling.BILINEAR)))
        sheet = np.zeros((max(len(part) for part in parts), sum(part.shape[1] for part in parts)), np.float32)
        left = 0
        for part in parts:
            top = (len(sheet) - len(part)) // 2
            sheet[top : top + len(part), left : left + part.shape[1]] = part
            left += part.shape[1]
        return sheet


def _frame(canonical: Nifti1Image) -> _Frame:
    """Choose box and planes by what is not zero; all of an empty image."""
    shape = np.array(canonical.shape[:3])
    inside = np.argwhere(np.asarray(canonical.dataobj) > 0)
    low, high = (inside.min(axis=0), inside.max(axis=0)) if len(inside) else (np.zeros(3, int), shape - 1)
    free = np.ceil(MARGIN_MM / voxel_sizes(canonical.affine)).astype(int)
    first, last = np.maximum(low - free, 0), np.minimum(high + free, shape - 1)
    box = tuple(slice(int(a), int(b) + 1) for a, b in zip(first, last, strict=True))
    shares = np.array([0.5 + BESIDE_MIDDLE, 0.5, 0.5])
    return _Frame(box, tuple(np.round(low + shares * (high - low) - first).astype(int).tolist()))


def _trace(picture: NDArray, level: float) -> str:
    """Return the lines of a level as path data of SVG; pixels begin at their corners."""
    lines = contour_generator(z=picture).lines(level)
    return "".join("M" + "L".join(f"{x + 0.5:.1f} {y + 0.5:.1f}" for x, y in line) for line in lines if len(line) > 4)


def render_contact_sheet(
    title: str,
    data: Mapping[str, object],
    thumbnails: Thumbnails,
    outline: Markup,
    scans: list[str],
    verdicts: Mapping[str, str],
    links: Mapping[str, str],
    group_page: str,
) -> str:
    """Compose the page.

    Parameters
    ----------
    title : str
        Its title.
    data : mapping
        What its script reads (`interactive.collect`).
    thumbnails : Thumbnails
        The pictures.
    outline : Markup
        What lies over each of them.
    scans : list of str
        All images of the group, in the order of `data`; those of one subject stand side by side.
    verdicts, links : mapping of str to str
        Verdict and address of the report, by image.
    group_page : str
        Address of the group's page.

    Returns
    -------
    str
        HTML.
    """
    numbered = [(at, scan) for at, scan in enumerate(scans) if scan in thumbnails.pictures]
    subjects = [(subject, list(own)) for subject, own in groupby(numbered, key=lambda item: item[1].split("_")[0])]
    return render_page(
        "contact_sheet.html",
        scripts=("filters.js", "sheet.js"),
        data=data,
        title=title,
        subjects=subjects,
        pictures=thumbnails.pictures,
        outline=outline,
        verdicts=verdicts,
        links=links,
        group_page=group_page,
        missing=[scan for scan in scans if scan not in thumbnails.pictures],
    )
