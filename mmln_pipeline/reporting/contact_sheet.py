"""The contact sheet of a group: every image in template space at a glance, to be rated by keys, in one HTML file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path

import numpy as np
from contourpy import contour_generator
from markupsafe import Markup
from nibabel import Nifti1Image
from numpy.typing import NDArray

from mmln_pipeline.images.thumbnails import Frame, frame_brain, lay_out_planes, to_data_uri
from mmln_pipeline.reporting.rendering import write_page

TISSUE_LEVEL = 0.6
"""Of the mean image's 99th percentile: about the border of the white matter."""


@dataclass
class Thumbnails:
    """Three planes of each image of a group, seen one after the other.

    Attributes
    ----------
    pictures : dict of str to str
        JPEG as data URI, by the image's name.
    frame : Frame or None
        Where the planes lie, by the first image: in template space all brains lie alike.
    """

    pictures: dict[str, str] = field(default_factory=dict)
    frame: Frame | None = None

    def add(self, name: str, image: Nifti1Image) -> None:
        """Take the planes of an image, values 0 to 1, on the grid that all share."""
        self.frame = self.frame or frame_brain(image)
        self.pictures[name] = to_data_uri(lay_out_planes(image, self.frame))

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
        frame = self.frame or frame_brain(mean)
        picture, mask = (lay_out_planes(image, frame) for image in (mean, brain))
        inside = picture[mask > 0.5]
        tissue = TISSUE_LEVEL * float(np.percentile(inside, 99)) if inside.size else np.inf
        paths = [_trace(mask, 0.5), _trace(np.where(mask > 0.5, picture, 0), tissue)]
        height, width = picture.shape
        drawn = "".join(
            f'<path class="{name}" d="{path}"/>' for name, path in zip(("brain", "tissue"), paths, strict=True)
        )
        return Markup(f'<symbol id="outline" viewBox="0 0 {width} {height}">{drawn}</symbol>')


def _trace(picture: NDArray, level: float) -> str:
    """Return the lines of a level as path data of SVG; pixels begin at their corners."""
    lines = [np.asarray(line) for line in contour_generator(z=picture).lines(level)]
    return "".join("M" + "L".join(f"{x + 0.5:.1f} {y + 0.5:.1f}" for x, y in line) for line in lines if len(line) > 4)


def write_contact_sheet(
    path: Path,
    title: str,
    data: Mapping[str, object],
    thumbnails: Thumbnails,
    outline: Markup,
    scans: list[str],
    verdicts: Mapping[str, str],
    links: Mapping[str, str],
    group_page: str,
) -> None:
    """Write the page, unless it is there as it should be.

    Parameters
    ----------
    path : Path
        The page.
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
    """
    numbered = [(at, scan) for at, scan in enumerate(scans) if scan in thumbnails.pictures]
    subjects = [(subject, list(own)) for subject, own in groupby(numbered, key=lambda item: item[1].split("_")[0])]
    write_page(
        path,
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
