"""Masks, labels and lesion masks of T1w images: which files belong to which image."""

import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import nibabel as nib
from bids.layout import BIDSLayout, Query

from mmln_pipeline.bids_app.arguments import UsageError
from mmln_pipeline.bids_app.filters import IMAGES, Filters
from mmln_pipeline.bids_app.indexing import File, find_files
from mmln_pipeline.bids_app.invocation import Config
from mmln_pipeline.images.same_space import why_not_same_space
from mmln_pipeline.machine.files import why_unreadable
from mmln_pipeline.machine.reading import UNREADABLE, advise, explain
from mmln_pipeline.space.grids import Grid, in_mm

NATIVE_SPACES = (None, "T1w", "orig")
OPTIONAL = ("run", "acquisition", "reconstruction", "ceagent", "part")
"""Entities that the name of a lesion mask may leave out, however many images have them."""
IDENTITY = ("session", "task", *OPTIONAL, "echo", "flip", "inv", "mt", "chunk")
"""Entities that tell the images of a subject apart."""
LESIONS = ("label-lesion_roi", "label-lesion_mask")
"""How the names of lesion masks end where no ending is given."""
KINDS = {"mask": "brain mask", "dseg": "labels", "lesion": "lesion mask", "lesion_other": "right lesion mask"}
"""What may come with an image, in words; a second lesion mask where each hemisphere has its own."""


class Difference(NamedTuple):
    """Where the entities of a mask or labels differ from an image's: what is left out, and what is another."""

    left_out: tuple[str, ...]
    other: tuple[str, ...]


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
    Difference(left_out=('session',), other=('acquisition',))
    """
    differing = [key for key in IDENTITY if entities.get(key) != image.get(key)]
    other = [key for key in differing if key in entities]
    if entities.get("space") not in NATIVE_SPACES:
        other.append("space")
    return Difference(tuple(key for key in differing if key not in other), tuple(other))


def possible_images(candidate: File, siblings: Iterable[File]) -> list[File]:
    """Return the images of a subject that a mask or labels may be meant for: no entity is another than theirs."""
    return [image for image in siblings if not compare(candidate.entities, image.entities).other]


def choose(
    image: File, candidates: Iterable[File], siblings: Sequence[File], optional: Collection[str] = ()
) -> list[Path]:
    """Choose the files that belong to an image.

    No entity of theirs is another than the image's. One may be left out where no other image of the subject can be
    meant; a file that leaves out less goes before.

    Parameters
    ----------
    image : File
        The T1w image.
    candidates : iterable of File
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
        is_meant = set(left_out) <= set(optional) or len(possible_images(candidate, siblings)) == 1
        if not other and is_meant:
            fitting[len(left_out)].append(candidate.path)
    return fitting[min(fitting)] if fitting else []


class Companions:
    """What datasets hold for T1w images.

    Parameters
    ----------
    config : Config
        Its `lesion_mask` says which lesion masks count: `auto`, `skip`, how their names end, or one file.
    layouts : mapping of str to BIDSLayout
        The raw dataset, `raw`, of which lesion masks are taken, and derivative datasets by their names.
    filters : Filters
        What counts as a mask or as labels.
    images : sequence of File
        All T1w images of the dataset, asked for or not.
    """

    def __init__(
        self, config: Config, layouts: Mapping[str, BIDSLayout], filters: Filters, images: Sequence[File]
    ) -> None:
        self.siblings = by_subject(images)
        self._lesion_mask = config.lesion_mask
        others = [layout for name, layout in layouts.items() if name != "raw"]
        self.offered = {
            kind: by_subject(file for layout in others for file in filters.find(layout, kind))
            for kind in ("mask", "dseg")
        }
        endings = lesion_endings(config)
        names = tuple(f"_{ending}{extension}" for ending in endings for extension in IMAGES)
        suffixes = [Query.NONE if "-" in ending.split("_")[-1] else ending.split("_")[-1] for ending in endings]
        query = {"extension": IMAGES, "suffix": suffixes}
        found = [file for layout in layouts.values() if names for file in find_files(layout, **query)]
        self.offered["lesion"] = by_subject(file for file in found if file.path.name.endswith(names))

    @property
    def lesion_file(self) -> Path | None:
        """The one lesion mask that was named."""
        return Path(self._lesion_mask) if Path(self._lesion_mask).is_file() else None

    def fitting(self, image: File, kind: str) -> list[Path]:
        """Return the files of one kind that belong to an image; more than one where it is in doubt."""
        kind = "lesion" if kind == "lesion_other" else kind
        if kind == "lesion" and self.lesion_file is not None:
            return [self.lesion_file]
        subject = image.entities["subject"]
        optional = OPTIONAL if kind == "lesion" else ()
        return choose(image, self.offered[kind].get(subject, ()), self.siblings[subject], optional)

    def find(self, image: File, kind: str) -> Path | None:
        """Return the file of one kind that belongs to an image.

        Parameters
        ----------
        image : File
            The T1w image.
        kind : {"mask", "dseg", "lesion", "lesion_other"}
            What to find. Of lesion masks that differ in nothing but the hemisphere, the left one is `lesion`.

        Returns
        -------
        Path or None

        Raises
        ------
        UsageError
            Several files fit.
        """
        found = self.fitting(image, kind)
        if kind.startswith("lesion") and _are_hemispheres(found):
            return sorted(found)[kind == "lesion_other"]
        if kind == "lesion_other":
            return None
        if len(found) > 1:
            mend = "--lesion-mask ENDING or FILE" if kind == "lesion" else f'"{kind}" in --bids-filter-file'
            called = KINDS[kind] if kind == "lesion" else kind
            raise UsageError(
                f"{image.path.name}: {len(found)} files fit as {called} ({found[0]}, {found[1]}): choose by {mend}"
            )
        return found[0] if found else None

    def check_lesions(self, found: Sequence[Path | None]) -> None:
        """Check that the lesion masks that were asked for are there.

        Parameters
        ----------
        found : sequence of Path or None
            The mask of each image of the run.

        Raises
        ------
        UsageError
            No image has a mask of the ending given, or a file was given for several images.
        """
        if self.lesion_file is not None and len(found) > 1:
            raise UsageError(f"--lesion-mask {self.lesion_file}: one file, but {len(found)} images: choose one image")
        if self._lesion_mask not in ("auto", "skip") and not any(found):
            raise UsageError(f"--lesion-mask {self._lesion_mask}: no such file, and no lesion mask whose name ends so")


def _are_hemispheres(paths: Sequence[Path]) -> bool:
    """Tell whether files are one of each hemisphere, and alike in all else.

    Examples
    --------
    >>> _are_hemispheres([Path("sub-1_hemi-R_mask.nii"), Path("sub-1_hemi-L_mask.nii")])
    True
    """
    sides = [re.search("_hemi-([LR])_", path.name) for path in paths]
    plain = {re.sub("_hemi-[LR]_", "_", path.name) for path in paths}
    return {side[1] for side in sides if side} == {"L", "R"} and len(paths) == 2 and len(plain) == 1


def by_subject(files: Iterable[File]) -> dict[str, list[File]]:
    """Sort files by their subjects; those that name none are left out."""
    found: dict[str, list[File]] = defaultdict(list)
    for file in files:
        if "subject" in file.entities:
            found[file.entities["subject"]].append(file)
    return found


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


def why_unusable(image: Path, companions: Mapping[str, Path | None]) -> str | None:
    """Say why an image cannot be registered with what comes with it: a file is not there or cannot be read.

    Parameters
    ----------
    image : Path
        The T1w image.
    companions : mapping of str to Path or None
        The file of each kind.

    Returns
    -------
    str or None
        One line, or None where all headers can be read.

    Raises
    ------
    UsageError
        A mask or labels lie in another space than the image.
    """
    given = {kind: path for kind, path in companions.items() if path is not None}
    images: dict[Path, Any] = {}
    for name, path in ({"T1w image": image} | {KINDS[kind]: path for kind, path in given.items()}).items():
        reason = why_unreadable(path)
        if reason is None and given:
            try:
                loaded: Any = nib.load(path)
                if len(loaded.shape) < 3:
                    raise ValueError(f"its header has the sizes {loaded.shape}")
                images[path] = in_mm(loaded)
                Grid.of(images[path])  # which raises where sizes or affine are none
            except UNREADABLE as error:
                reason = f"cannot be read ({explain(error)}): {advise(error)}"
        if reason is not None:
            return f"{name} {path.name}: {reason}"
    for kind, path in given.items():
        reason = why_not_same_space(images[path], images[image])
        if reason is not None:
            called = KINDS[kind] if kind.startswith("lesion") else kind
            raise UsageError(
                f"{called} {path}: expected the space of {image}, but {reason}: resample it, or mend the headers"
            )
    return None
