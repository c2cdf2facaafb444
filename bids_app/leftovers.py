"""Masks and labels that were given and belong to no image: each is named with the entity that differs."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from bids.layout import BIDSLayout, Query

from mmln_pipeline.bids_app.arguments import UsageError
from mmln_pipeline.bids_app.companions import KINDS, LESIONS, Companions, compare, lesion_endings, possible_images
from mmln_pipeline.bids_app.filters import IMAGES, Filters
from mmln_pipeline.bids_app.indexing import File, Listing, entities_of, find_files, read_entities
from mmln_pipeline.bids_app.invocation import Config

SHORT = {"session": "ses", "acquisition": "acq", "reconstruction": "rec", "ceagent": "ce", "segmentation": "seg"}
"""How file names spell entities that PyBIDS calls otherwise."""

SUFFIXES = {
    **dict.fromkeys(("mask", "brainmask"), "mask"),
    **dict.fromkeys(("dseg", "aseg", "seg", "labels", "parcellation"), "dseg"),
}
"""How the names of masks and of labels end, and what others than BIDS write there."""


class Leftover(NamedTuple):
    """One file that belongs to no image.

    Attributes
    ----------
    path : Path
        The file.
    kind : {"mask", "dseg", "lesion"}
        What it is by its name.
    about : tuple of str
        What differs: entities, by PyBIDS's names.
    reason : str
        What was expected and what was found.
    """

    path: Path
    kind: str
    about: tuple[str, ...]
    reason: str


def name_leftovers(
    config: Config,
    layouts: Mapping[str, BIDSLayout],
    listings: Mapping[str, Listing],
    companions: Companions,
    filters: Filters,
    brought: Collection[Path] = (),
) -> list[str]:
    """Name the masks and labels that belong to no image of the raw dataset.

    Parameters
    ----------
    config : Config
        Settings of the run.
    layouts : mapping of str to BIDSLayout
        The raw dataset, `raw`, of which only lesion masks count, and derivative datasets by their names.
    listings : mapping of str to Listing
        What lies in the derivative datasets.
    companions : Companions
        What belongs to which image.
    filters : Filters
        What counts as a mask or as labels.
    brought : collection of Path, default ()
        What is brought along with the images.

    Returns
    -------
    list of str
        One line for each dataset and way in which files differ.

    Raises
    ------
    UsageError
        Nothing of a derivative dataset belongs to any image.
    """
    used = set(brought) | {
        path
        for images in companions.siblings.values()
        for image in images
        for kind in KINDS
        for path in companions.fitting(image, kind)
    }
    lines = []
    for name, layout in layouts.items():
        listing = listings.get(name)
        candidates = list(_find_candidates(config, layout, listing))
        rest = [(file, kind) for file, kind in candidates if file.path not in used]
        left = [_explain(file, kind, listing, companions, filters) for file, kind in rest]
        is_used = any(path.is_relative_to(layout.root) for path in brought)
        if name != "raw" and len(left) == len(candidates) and not is_used:
            lines += _doubt(config, name, left)
        lines += _describe(name, left)
    return lines


def _find_candidates(config: Config, layout: BIDSLayout, listing: Listing | None) -> Iterator[tuple[File, str]]:
    """Yield what is a mask or labels by its name, and its kind; lesion masks that nobody asked for are passed over."""
    wanted = tuple(f"_{ending}" for ending in lesion_endings(config))
    passed = list(listing.passed_over(config.participant_label)) if listing else []
    root, known = Path(layout.root), entities_of(layout) if passed else []
    elsewhere = [File(root / name, read_entities(name, known)) for name in passed]
    for file in [*find_files(layout, suffix=Query.ANY), *elsewhere]:
        suffix, stem = file.entities["suffix"], file.path.name.split(".")[0]
        if stem.endswith((*wanted, *LESIONS)):
            if stem.endswith(wanted):
                yield file, "lesion"
        elif suffix in SUFFIXES and listing:
            yield file, SUFFIXES[suffix]


def _explain(file: File, kind: str, listing: Listing | None, companions: Companions, filters: Filters) -> Leftover:
    """Say what keeps a file from belonging to an image."""
    about, reason = _find_reason(file, kind, companions, filters)
    place = file.path.parent.relative_to(listing.root).as_posix() if listing else ""
    if listing and place in listing.passed:
        about, reason = ("place",), f"lies in {place}: expected {_spell('sub', file.entities.get('subject'))}/anat"
    return Leftover(file.path, kind, about, reason)


def _find_reason(file: File, kind: str, companions: Companions, filters: Filters) -> tuple[tuple[str, ...], str]:
    extension = file.entities["extension"]
    if extension not in IMAGES:
        return ("extension",), f"expected {' or '.join(IMAGES)}, found {extension}: convert it"
    for key, wanted in filters.queries.get(kind, {}).items():
        if not _meets(file.entities.get(key), wanted):
            expected = " or ".join(_spell(key, value) for value in _listed(wanted))
            mend = f'rename it, or choose it by "{kind}" in --bids-filter-file'
            return (key,), f"expected {expected}, found {_spell(key, file.entities.get(key))}: {mend}"
    siblings = companions.siblings.get(file.entities.get("subject", ""), [])
    if not siblings:
        return ("subject",), f"there is no T1w image of {_spell('sub', file.entities.get('subject'))}"
    nearest = min(siblings, key=lambda image: tuple(map(len, reversed(compare(file.entities, image.entities)))))
    left_out, other = compare(file.entities, nearest.entities)
    if other:
        pairs = [f"{_spell(key, file.entities[key])}, not {_spell(key, nearest.entities.get(key))}" for key in other]
        return other, f"{'; '.join(pairs)} as {nearest.path.name}"
    meant = possible_images(file, siblings)
    if left_out and len(meant) > 1:
        missing = " and ".join(_spell(key, None) for key in left_out)
        return left_out, f"{missing}: {meant[0].path.name} or {meant[1].path.name} could be meant"
    return (), f"another file is nearer to {nearest.path.name}"


def _listed(wanted: object) -> list:
    return list(wanted) if isinstance(wanted, list | tuple) else [wanted]


def _meets(value: object, wanted: object) -> bool:
    """Tell whether an entity meets one entry of a query."""
    asked = _listed(wanted)
    if value is None:
        return None in asked or Query.NONE in asked
    return Query.ANY in asked or str(value) in map(str, asked)


def _spell(key: str, value: object) -> str:
    """Write an entity as file names do."""
    name = SHORT.get(key, key)
    if value in (None, Query.NONE):
        return f"no {name}"
    return f"{name}-*" if value is Query.ANY else f"{name}-{value}"


def _doubt(config: Config, name: str, left: Sequence[Leftover]) -> list[str]:
    """Refuse a dataset of which nothing fits; where it is of other subjects than those asked for, say so."""
    cause = f"{left[0].path.name}: {left[0].reason}" if left else "it holds no mask and no labels"
    asked = {f"sub-{label}" for label in config.participant_label}
    subjects = {path.name for path in config.bids_dir.glob("sub-*")} - asked
    path = config.derivatives[name]
    if not asked or not any(found.name.split("_")[0] in subjects for found in path.glob("sub-*")):
        raise UsageError(f"--derivatives {name}={path}: nothing of it fits an image: {cause}")
    return [] if left else [f"{name}: no mask and no labels of {', '.join(sorted(asked))}"]


def _describe(name: str, leftovers: Sequence[Leftover]) -> list[str]:
    """Name leftovers; those that differ alike are counted."""
    groups: dict[tuple, list[Leftover]] = {}
    for leftover in leftovers:
        groups.setdefault((leftover.kind, leftover.about), []).append(leftover)
    lines = []
    for (kind, _), alike in groups.items():
        more = f" (and {len(alike) - 1} more such files)" if len(alike) > 1 else ""
        lines.append(f"{name}: {KINDS[kind]} not used: {alike[0].path.name}: {alike[0].reason}{more}")
    return lines
