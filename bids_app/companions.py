"""Masks, labels and lesion masks of T1w images: which files fit, and whether they lie in the images' space."""

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import nibabel as nib
from bids.layout import BIDSLayout

from mmln_pipeline.bids_app.arguments import UsageError
from mmln_pipeline.bids_app.filters import IMAGES, File, Filters
from mmln_pipeline.bids_app.invocation import Config
from mmln_pipeline.images.same_space import why_not_same_space
from mmln_pipeline.images.volumes import UNREADABLE

NATIVE_SPACES = (None, "T1w", "orig")
OPTIONAL = ("run", "acquisition", "reconstruction", "ceagent", "part")
"""Entities that the name of a lesion mask may leave out, however many images have them."""
IDENTITY = ("session", "task", *OPTIONAL, "echo", "flip", "inv", "mt", "chunk")
"""Entities that tell the images of a subject apart."""
LESIONS = ("label-lesion_roi", "label-lesion_mask")
"""How the names of lesion masks end where no ending is given."""


class Difference(NamedTuple):
    """Where the entities of a mask or labels differ from an image's: what is left out, and what is another."""

    left_out: frozenset[str]
    other: frozenset[str]


def compare(entities: Mapping, image: Mapping) -> Difference:
    """Compare the entities of a mask or labels with those of an image of the same subject.

    Parameters
    ----------
    entities, image : mapping
        Values by PyBIDS's names of entities.

    Returns
    -------
    Difference

    Examples
    --------
    >>> compare({"acquisition": "x"}, {"session": "1"})
    Difference(left_out=frozenset({'session'}), other=frozenset({'acquisition'}))
    """
    differing = [key for key in IDENTITY if entities.get(key) != image.get(key)]
    other = [key for key in differing if key in entities]
    if entities.get("space") not in NATIVE_SPACES:
        other.append("space")
    return Difference(frozenset(differing) - frozenset(other), frozenset(other))


def choose(
    image: File, candidates: Sequence[File], siblings: Sequence[File], optional: Collection[str] = ()
) -> list[Path]:
    """Choose the files that belong to an image.

    No entity of theirs is another than the image's. One may be left out where no other image of the subject can be
    meant; a file that leaves out less goes before.

    Parameters
    ----------
    image : File
        The T1w image.
    candidates : sequence of File
        Masks or labels of its subject.
    siblings : sequence of File
        All T1w images of its subject, asked for or not.
    optional : collection of str, default ()
        Entities that may be left out in any case.

    Returns
    -------
    list of Path
        More than one where it is in doubt.
    """
    fitting = defaultdict(list)
    for candidate in candidates:
        left_out, other = compare(candidate.entities, image.entities)
        meant = [sibling for sibling in siblings if not compare(candidate.entities, sibling.entities).other]
        if not other and (len(meant) < 2 or left_out <= frozenset(optional)):
            fitting[len(left_out)].append(candidate.path)
    return fitting[min(fitting)] if fitting else []


def find_companion(
    image: File, siblings: Sequence[File], others: Mapping[str, BIDSLayout], kind: str, filters: Filters
) -> Path | None:
    """Find the brain mask or the labels of a T1w image.

    Parameters
    ----------
    image : File
        The T1w image.
    siblings : sequence of File
        All T1w images of its subject, asked for or not.
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
    subject = image.entities["subject"]
    candidates = [file for layout in others.values() for file in filters.find(layout, kind, subject=subject)]
    return _only(choose(image, candidates, siblings), image, kind, f'choose by "{kind}" in --bids-filter-file')


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
        self.by_subject: dict[str, list[File]] = defaultdict(list)
        names = tuple(f"_{ending}{extension}" for ending in lesion_endings(config) for extension in IMAGES)
        for layout in layouts if names else ():
            for found in layout.get(datatype="anat", extension=IMAGES):
                if found.path.endswith(names):
                    file = File(Path(found.path), found.get_entities())
                    self.by_subject[file.entities["subject"]].append(file)

    @property
    def file(self) -> Path | None:
        """The one file that was named."""
        return Path(self.wanted) if Path(self.wanted).is_file() else None

    def find(self, image: File, siblings: Sequence[File]) -> Path | None:
        """Find the lesion mask of a T1w image.

        Parameters
        ----------
        image : File
            The T1w image.
        siblings : sequence of File
            All T1w images of its subject, asked for or not.

        Returns
        -------
        Path or None

        Raises
        ------
        UsageError
            Several files fit, or the one that does lies in another space.
        """
        candidates = self.by_subject.get(image.entities["subject"], [])
        fitting = choose(image, candidates, siblings, OPTIONAL) if self.file is None else [self.file]
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


def lesion_endings(config: Config) -> tuple[str, ...]:
    """Return how the names of lesion masks end, without an extension; nothing where none are looked for.

    Examples
    --------
    >>> lesion_endings(Config(Path("raw"), Path("out"), lesion_mask="*_label-lesion_roi.nii.gz"))
    ('label-lesion_roi',)
    """
    text = config.lesion_mask
    if text == "auto":
        return LESIONS
    if text == "skip" or Path(text).is_file():
        return ()
    for extension in IMAGES:
        text = text.removesuffix(extension)
    return (text.lstrip("*_"),)


def _only(fitting: Sequence[Path], image: File, kind: str, mend: str) -> Path | None:
    """Return the one file that fits, after a look at its header."""
    if len(fitting) > 1:
        raise UsageError(f"{image.path.name}: {len(fitting)} files fit as {kind} ({fitting[0]}, {fitting[1]}): {mend}")
    if not fitting:
        return None
    try:
        reason = why_not_same_space(nib.load(fitting[0]), nib.load(image.path))
    except UNREADABLE:
        return fitting[0]  # what cannot be read fails alone, when its turn comes
    if reason:
        raise UsageError(
            f"{kind} {fitting[0]}: expected the space of {image.path}, but {reason}: resample it, or mend the headers"
        )
    return fitting[0]
