"""What a result is made of: one T1w image, or several of one subject, with their masks and labels."""

import re
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from mmln_pipeline.space.placement import Placement, find_placements


@dataclass(frozen=True)
class Scan:
    """One T1-weighted image to register, with what is known about it; or several, to be averaged first.

    Attributes
    ----------
    subject : str
        Label without `sub-`.
    session : str or None
        Label without `ses-`.
    t1w : Path
        The image.
    mask : Path or None
        Brain mask in the image's space.
    dseg : Path or None
        Labels in the image's space.
    lesion : Path or None
        Lesion mask in the image's space.
    lesion_other : Path or None
        That of the other hemisphere, where each has its own: the two are joined.
    along : tuple of Path
        Images, series and surfaces in the image's space, to be brought to the templates with it.
    others : tuple of Scan
        Further images of the same anatomy, such as runs: aligned rigidly and averaged with this one.
    reference : str
        Space of that average, one of `mmln_pipeline.linear.choices.REFERENCES`.
    """

    subject: str
    session: str | None
    t1w: Path
    mask: Path | None = None
    dseg: Path | None = None
    lesion: Path | None = None
    lesion_other: Path | None = None
    along: tuple[Path, ...] = ()
    others: tuple["Scan", ...] = ()
    reference: str = "first-lex"

    @property
    def images(self) -> tuple["Scan", ...]:
        """Return the scans behind the result, each with one image (this one, and the others).

        Examples
        --------
        >>> later = Scan("01", "b", Path("sub-01_ses-b_T1w.nii.gz"))
        >>> mean = Scan("01", None, Path("sub-01_ses-a_T1w.nii.gz"), others=(later,))
        >>> mean.folder, [image.folder for image in mean.images]
        ('sub-01/anat', ['sub-01/ses-a/anat', 'sub-01/ses-b/anat'])
        """
        named = re.search(r"_ses-([^_]+)", self.t1w.name)
        return (replace(self, session=named[1] if named else None, others=()), *self.others)

    def has(self, kind: str) -> bool:
        """Tell whether any of the images has a `mask`, a `dseg` or a `lesion`."""
        return any(getattr(image, kind) for image in self.images)

    @property
    def files(self) -> dict[str, str]:
        """Return the files that are there of all its images, by what they are and whose."""
        kinds = {"T1w image": "t1w", "brain mask": "mask", "labels": "dseg", "lesion mask": "lesion"}
        kinds["right lesion mask"] = "lesion_other"
        return {
            f"{name} of {image.t1w.name}": str(path)
            for image in self.images
            for name, kind in kinds.items()
            if (path := getattr(image, kind)) is not None and path.is_file()
        }

    @cached_property
    def placements(self) -> dict[str, Placement]:
        """Return which of its files NiBabel and ITK place differently, by what they are and whose."""
        return find_placements(self.files)

    @property
    def stem(self) -> str:
        """Return the entities that all file names of the scan begin with, e.g. `sub-01_ses-02_run-1`.

        An average carries those that its images share: no run and, over sessions, no session.

        Examples
        --------
        >>> run = Scan("01", None, Path("sub-01_run-1_T1w.nii.gz"))
        >>> run.stem, Scan("01", None, run.t1w, others=(run,)).stem
        ('sub-01_run-1', 'sub-01')
        """
        stem = re.sub(r"_T1w\.nii(\.gz)?$", "", self.t1w.name)
        return common_stem(stem, over_sessions=self.session is None) if self.others else stem

    @property
    def folder(self) -> str:
        """Return the folder of the derivatives, relative to the output directory."""
        session = f"/ses-{self.session}" if self.session else ""
        return f"sub-{self.subject}{session}/anat"

    @property
    def workflow_name(self) -> str:
        """Return a node name that no other scan has.

        Examples
        --------
        >>> Scan("01", None, Path("sub-01_run-1_T1w.nii.gz")).workflow_name
        'sub_01_run_1_wf'
        """
        return re.sub(r"\W", "_", self.stem) + "_wf"


def common_stem(stem: str, over_sessions: bool = False) -> str:
    """Return the entities that all runs of an image have, or that all its sessions have too.

    Examples
    --------
    >>> common_stem("sub-01_ses-02_run-1"), common_stem("sub-01_ses-02_run-1", over_sessions=True)
    ('sub-01_ses-02', 'sub-01')
    """
    stem = re.sub(r"_run-[^_]+", "", stem)
    return re.sub(r"_ses-[^_]+", "", stem) if over_sessions else stem
