"""Masks, labels and lesion masks of T1w images: which files fit, and whether they lie in the images' space."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import cast

import nibabel as nib
from bids.layout import BIDSLayout

from mmln_pipeline.bids_app.arguments import UsageError
from mmln_pipeline.bids_app.filters import IMAGES, Filters
from mmln_pipeline.bids_app.invocation import Config
from mmln_pipeline.images.same_space import why_not_same_space
from mmln_pipeline.images.volumes import UNREADABLE

NATIVE_SPACES = (None, "T1w", "orig")
NO_PLACE = ("suffix", "extension", "datatype")
OPTIONAL = ("run", "acquisition", "reconstruction", "ceagent", "part")
"""Entities that the name of a lesion mask may leave out."""
LESIONS = ("label-lesion_roi", "label-lesion_mask")
"""How the names of lesion masks end where no ending is given."""


def find_companion(image, others: Mapping[str, BIDSLayout], kind: str, filters: Filters) -> Path | None:
    """Find the brain mask or the labels of a T1w image; their entities must be the image's.

    Parameters
    ----------
    image : BIDSFile
        The T1w image.
    others : mapping of str to BIDSLayout
        Derivative datasets.
    kind : {"mask", "dseg"}
        What to find.
    filters : Filters
        What counts as such.

    Returns
    -------
    Path or None

    Raises
    ------
    UsageError
        Several files fit, or the one that does lies in another space.
    """
    own = {key: value for key, value in image.get_entities().items() if key not in NO_PLACE}
    fitting = []
    for layout in others.values():
        for candidate in filters.find(layout, kind, subject=own["subject"]):
            entities = candidate.get_entities()
            same = all(entities.get(key) == own.get(key) for key in (*own, "session", "run", "acquisition"))
            if same and entities.get("space") in NATIVE_SPACES:
                fitting.append(Path(candidate.path))
    return _only(fitting, image, kind, f'choose by "{kind}" in --bids-filter-file')


class Lesions:
    """The lesion masks of a dataset and its derivatives.

    Parameters
    ----------
    config : Config
        Its `lesion_mask` says which: `auto`, `skip`, how their names end, or one file.
    layouts : sequence of BIDSLayout
        Where to look.
    """

    def __init__(self, config: Config, layouts: Sequence[BIDSLayout]) -> None:
        self.wanted = config.lesion_mask
        self.by_subject: dict[str, list] = defaultdict(list)
        if self.wanted == "skip" or self.file is not None:
            return
        endings = LESIONS if self.wanted == "auto" else (_ending(self.wanted),)
        names = tuple(f"_{ending}{extension}" for ending in endings for extension in IMAGES)
        for layout in layouts:
            for found in layout.get(datatype="anat", extension=IMAGES):
                if found.path.endswith(names):
                    self.by_subject[found.get_entities()["subject"]].append(found)

    @property
    def file(self) -> Path | None:
        """The one file that was named."""
        return Path(self.wanted) if Path(self.wanted).is_file() else None

    def find(self, image) -> Path | None:
        """Find the lesion mask of a T1w image.

        Parameters
        ----------
        image : BIDSFile
            The T1w image. The mask's session must be its own; other entities may be left out of the mask's name.

        Returns
        -------
        Path or None

        Raises
        ------
        UsageError
            Several files fit, or the one that does lies in another space.
        """
        own = image.get_entities()
        fitting = [] if self.file is None else [self.file]
        for candidate in self.by_subject.get(own["subject"], ()):
            entities = candidate.get_entities()
            same = all(entities.get(key) in (None, own.get(key)) for key in OPTIONAL)
            if same and entities.get("session") == own.get("session") and entities.get("space") in NATIVE_SPACES:
                fitting.append(Path(candidate.path))
        return _only(fitting, image, "lesion mask", "choose by --lesion-mask ENDING or FILE")

    def check_found(self, found: Sequence[Path | None]) -> None:
        """Refuse what was named and is nobody's, or everybody's.

        Raises
        ------
        UsageError
            No image has a mask of the ending given, or a file was given for several images.
        """
        if self.file is not None and len(found) > 1:
            raise UsageError(
                f"--lesion-mask {self.file}: one file, but {len(found)} images: choose one by --participant-label, or "
                "give how the files' names end"
            )
        if self.wanted not in ("auto", "skip") and not any(found):
            raise UsageError(f"--lesion-mask {self.wanted}: no such file, and no lesion mask whose name ends so")


def _ending(text: str) -> str:
    """Reduce *_label-lesion_roi.nii.gz to label-lesion_roi."""
    for extension in IMAGES:
        text = text.removesuffix(extension)
    return text.lstrip("*_")


def _only(fitting: Sequence[Path], image, kind: str, mend: str) -> Path | None:
    """Return the one file that fits, after a look at its header."""
    if len(fitting) > 1:
        raise UsageError(
            f"{Path(image.path).name}: {len(fitting)} files fit as {kind} ({fitting[0]}, {fitting[1]}): {mend}"
        )
    if not fitting:
        return None
    try:
        found, t1w = (cast(nib.Nifti1Image, nib.load(path)) for path in (fitting[0], image.path))
        reason = why_not_same_space(found, t1w)
    except UNREADABLE:
        return fitting[0]  # what cannot be read fails alone, when its turn comes
    if reason:
        raise UsageError(
            f"{kind} {fitting[0]}: expected the space of {image.path}, but {reason}: resample it, or mend the headers"
        )
    return fitting[0]
