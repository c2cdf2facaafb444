"""Queries of the raw dataset: which scans there are, of which images they are made, and which are left out."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from bids.layout import BIDSLayout
from bids_validator import BIDSValidator
from pathspec import GitIgnoreSpec

from mmln_pipeline.bids_app.arguments import UsageError
from mmln_pipeline.bids_app.brought_along import add_files
from mmln_pipeline.bids_app.companions import KINDS, Companions, why_unusable
from mmln_pipeline.bids_app.description import read_description
from mmln_pipeline.bids_app.filters import Filters, read_filters
from mmln_pipeline.bids_app.indexing import DERIVATIVES, RAW, File, Listing, is_of_subject, list_files, open_index
from mmln_pipeline.bids_app.invocation import Config
from mmln_pipeline.bids_app.leftovers import name_leftovers
from mmln_pipeline.derivatives.filenames import BIDSIGNORE, DESCRIPTION
from mmln_pipeline.derivatives.scans import common_stem
from mmln_pipeline.machine.files import why_unreadable
from mmln_pipeline.workflows import Scan

UNVALIDATED = "or use --skip-bids-validation"
UNIFORM = ("_UNIT1.nii.gz", "_UNIT1.nii")


class Found(NamedTuple):
    """What a run's dataset holds.

    Attributes
    ----------
    scans : list of Scan
        Sorted by file name; one for each session, or (`subject_anatomical_reference`) for each subject.
    skipped : dict of str to str
        Why a subject (`sub-X`), a session (`sub-X_ses-Y`) or a file is left out.
    failed : dict of str to str
        Why a scan, by its stem, or what lies in a folder cannot be registered: a file that is not there, for one.
    unused : list of str
        Which masks and labels belong to no image, and why.
    """

    scans: list[Scan]
    skipped: dict[str, str]
    failed: dict[str, str]
    unused: list[str]


def find_scans(config: Config) -> Found:
    """Find the T1w images that a run asks for, with their masks and labels.

    Parameters
    ----------
    config : Config
        Settings of the run.

    Returns
    -------
    Found

    Raises
    ------
    UsageError
        The dataset is none, a label or a filter finds no T1w image, masks or labels of a scan are in doubt, or
        nothing of a derivative dataset belongs to any image.
    """
    filters = read_filters(config.bids_filter_file)
    if not config.skip_bids_validation:
        _check_description(config.bids_dir)
    subjects = _list_subjects(config)
    # A kept index has all subjects: it serves the runs of each.
    listing = list_files(config.bids_dir, () if config.bids_database_dir else config.participant_label)
    raw, labels = open_index(listing, RAW, config.bids_database_dir), _labels(config, filters)
    known = filters.find_all(raw, "t1w")
    left_out = {**listing.strays, **_find_left_out(config, known)}
    known = [image for image in known if _below(config, image) not in left_out]
    images = [image for image in filters.find(raw, "t1w", **labels) if _below(config, image) not in left_out]
    details = {subject: _explain(config, subject, listing, left_out) for subject in subjects}
    _check_found(config, images, listing, details, _blame(filters, raw, labels) if not images else "")

    listings = {name: _list_derivative(config, name) for name in config.derivatives}
    layouts = {"raw": raw} | {name: open_index(own, DERIVATIVES) for name, own in listings.items()}
    companions = Companions(config, layouts, filters, known)
    scans, unreadable = _to_scans(images, companions)
    scans = add_files(config, join_scans(scans, config.subject_anatomical_reference), filters)
    failed = _find_failed(scans, unreadable, [listing, *listings.values()]) | _find_closed(config, listing, scans)
    skipped = {Path(name).name: reason for name, reason in left_out.items()} | _find_skipped(
        config, images, listing, details
    )
    return Found(
        scans,
        {name: reason for name, reason in skipped.items() if name not in failed},
        failed,
        name_leftovers(config, layouts, listings, companions, filters, [path for scan in scans for path in scan.along]),
    )


def _list_subjects(config: Config) -> list[str]:
    """List the labels of the subjects that have a folder; raise where one that is asked for has none."""
    found = [config.bids_dir / f"sub-{label}" for label in config.participant_label]
    missing = [path.name[4:] for path in found if not (path.is_dir() or path.is_symlink())]
    if missing:
        raise UsageError(f"--participant-label {' '.join(missing)}: no folder sub-{missing[0]} in {config.bids_dir}")
    every = (path for path in config.bids_dir.glob("sub-*") if path.is_dir() or path.is_symlink())
    return list(config.participant_label) or sorted(path.name[4:] for path in every)


def join_scans(scans: Sequence[Scan], reference: str) -> list[Scan]:
    """Join the images that give one result: the runs of a session, or all images of a subject.

    Images that differ in another entity, such as `acq`, have results of their own.

    Parameters
    ----------
    scans : sequence of Scan
        One for each image, sorted by file name.
    reference : str
        As in `Config.subject_anatomical_reference`.

    Returns
    -------
    list of Scan

    Raises
    ------
    UsageError
        Two files hold the same image.
    """
    groups: dict[str, list[Scan]] = {}
    for scan in scans:
        groups.setdefault(common_stem(scan.stem, over_sessions=reference != "sessionwise"), []).append(scan)
    joined = []
    for first, *others in groups.values():
        same = next((other for other in others if other.stem == first.stem), None)
        if same is not None:
            raise UsageError(f"{same.t1w} and {first.t1w}: two files of one image: remove one")
        session = first.session if {scan.session for scan in others} <= {first.session} else None
        kind = "unbiased" if reference == "unbiased" else "first-lex"
        # A lesion mask that names no run is drawn on the first one.
        others = [
            replace(other, lesion=None, lesion_other=None) if other.lesion == first.lesion else other
            for other in others
        ]
        joined.append(replace(first, session=session, others=tuple(others), reference=kind))
    return joined


def _to_scans(images: Sequence[File], companions: Companions) -> tuple[list[Scan], dict[Path, str]]:
    """Join each T1w image with its mask, its labels and its lesion mask; say which images cannot be read with them."""
    found: list[dict[str, Any]] = [{kind: companions.find(image, kind) for kind in KINDS} for image in images]
    companions.check_lesions([own["lesion"] for own in found])
    scans, failed = [], {}
    for image, own in zip(images, found, strict=True):
        scans.append(Scan(image.entities["subject"], image.entities.get("session"), image.path, **own))
        reason = why_unusable(image.path, own)
        if reason is not None:
            failed[image.path] = reason
    return scans, failed


def _find_failed(scans: Sequence[Scan], failed: Mapping[Path, str], listings: Sequence[Listing]) -> dict[str, str]:
    """Say why scans fail, by their stems: one of their images, or a folder of masks, cannot be read."""
    reasons = {}
    for scan in scans:
        own = [failed[image.t1w] for image in scan.images if image.t1w in failed]
        own += [reason for listing in listings for reason in _closed_to(listing, scan.subject)]
        if own:
            reasons[scan.stem] = own[0]
    return reasons


def _find_closed(config: Config, listing: Listing, scans: Sequence[Scan]) -> dict[str, str]:
    """Say which subjects without any scan have a folder that cannot be entered."""
    found = {scan.subject for scan in scans}
    subjects = {name.split("/")[0].removeprefix("sub-") for name in listing.closed} - found
    asked = sorted(label for label in subjects if label in (config.participant_label or subjects))
    return {f"sub-{label}": _closed_to(listing, label)[0] for label in asked}


def _closed_to(listing: Listing, subject: str) -> list[str]:
    return [f"{listing.root / name}: {why}" for name, why in listing.closed.items() if is_of_subject(name, subject)]


def _below(config: Config, image: File) -> str:
    return image.path.relative_to(config.bids_dir).as_posix()


def _labels(config: Config, filters: Filters) -> dict:
    """Return the filters that the label options make; a filter file's session goes before theirs."""
    labels: dict = {}
    if config.participant_label:
        labels["subject"] = list(config.participant_label)
    if config.session_label and "session" not in filters.queries["t1w"]:
        labels["session"] = list(config.session_label)
    return labels


def _blame(filters: Filters, layout: BIDSLayout, labels: Mapping) -> str:
    """Name the entries of the filter file without which there would be images."""
    entries = filters.given.get("t1w", {})
    found = [entity for entity in entries if filters.without("t1w", entity).find(layout, "t1w", **labels)]
    shown = ", ".join(f'"{entity}": {json.dumps(entries[entity])}' for entity in found or entries)
    return f' (--bids-filter-file {filters.path}: "t1w": {{{shown}}})' if shown else ""


def _check_description(root: Path) -> None:
    mend = f"add it, {UNVALIDATED}"
    description = read_description(root, mend)
    absent = [key for key in ("Name", "BIDSVersion") if key not in description]
    if absent:
        raise UsageError(f"{root / DESCRIPTION}: {' and '.join(absent)} missing: {mend}")


def _find_left_out(config: Config, images: Sequence[File]) -> dict[str, str]:
    """Say which images, by their paths in the dataset, are none of its: those that it ignores, and stray names."""
    ignored = _read_ignored(config.bids_dir / BIDSIGNORE)
    validator = None if config.skip_bids_validation else BIDSValidator()
    left_out = {}
    for image in images:
        name = _below(config, image)
        if config.participant_label and not any(is_of_subject(name, label) for label in config.participant_label):
            continue
        if ignored.match_file(name):
            left_out[name] = f"listed in {BIDSIGNORE}"
        elif validator is not None and not validator.is_bids(f"/{name}"):
            left_out[name] = f"not a BIDS file name: rename it, {UNVALIDATED}"
        elif not _is_at_home(name, image):
            left_out[name] = "expected labels of letters and digits, the same in the name as in the folders above it"
    return left_out


def _read_ignored(path: Path) -> GitIgnoreSpec:
    """Read a list of ignored files; none is an empty one."""
    if not (path.exists() or path.is_symlink()):
        return GitIgnoreSpec([])
    try:
        return GitIgnoreSpec.from_lines(path.read_text(encoding="utf-8-sig", errors="replace").splitlines())
    except (OSError, ValueError) as error:
        raise UsageError(f"{path}: {why_unreadable(path) or error}") from error


def _is_at_home(name: str, image: File) -> bool:
    """Tell whether an image lies in the folders that its name says."""
    session = image.entities.get("session")
    labels = [f"sub-{image.entities.get('subject')}"] + ([f"ses-{session}"] if session else [])
    return name.startswith(f"{'/'.join(labels)}/") and image.path.name.startswith(f"{'_'.join(labels)}_")


def _list_derivative(config: Config, name: str) -> Listing:
    path = config.derivatives[name]
    try:
        read_description(path)
        return list_files(path, config.participant_label)
    except UsageError as error:
        raise UsageError(f"--derivatives {name}={path}: {error}") from error


def _explain(config: Config, subject: str, listing: Listing, left_out: Mapping[str, str]) -> str:
    """Say what a subject has in place of T1w images; nothing where that is nothing of note."""
    reasons = _closed_to(listing, subject)
    reasons += [f"{Path(name).name}: {why}" for name, why in left_out.items() if is_of_subject(name, subject)]
    names = listing.of_subject(subject)
    reasons += _find_uniform(names)
    folder = config.bids_dir / f"sub-{subject}"
    if not names and not reasons and folder.is_dir() and not any(folder.iterdir()):
        reasons.append(f"its folder is empty: in a DataLad dataset, `datalad get -n {folder}` brings what is in it")
    return f" ({reasons[0]})" if reasons else ""


def _find_uniform(names: Sequence[str]) -> list[str]:
    """Say that uniform images stand in the place of a T1w image, where some do."""
    uniform = [Path(name).name for name in names if name.endswith(UNIFORM)]
    return [f"only UNIT1, the uniform image of MP2RAGE: {name}: make a T1w image of it" for name in uniform[:1]]


def _check_found(
    config: Config, images: Sequence[File], listing: Listing, details: Mapping[str, str], blame: str
) -> None:
    """Raise where something that was asked for has no T1w image."""
    narrowed = _narrowed(config) + blame
    found = {image.entities["subject"] for image in images}
    if images:  # a subject whose folder is closed fails by itself
        found |= {name.split("/")[0].removeprefix("sub-") for name in listing.closed}
    missing = [label for label in config.participant_label if label not in found]
    if missing:
        first = f"no T1w image of sub-{missing[0]}{narrowed}{details[missing[0]]}"
        raise UsageError(f"--participant-label {' '.join(missing)}: {first}")
    sessions = {image.entities.get("session") for image in images}
    missing = [label for label in config.session_label if label not in sessions]
    if missing and images:
        raise UsageError(f"--session-label {' '.join(missing)}: no T1w image of ses-{missing[0]}")
    if not images:
        detail = next(filter(None, details.values()), "")
        what = f"{len(details)} subjects, but no T1w image{narrowed}{detail}" if details else "no folder sub-*"
        raise UsageError(f"{config.bids_dir}: {what}")


def _narrowed(config: Config) -> str:
    return " with these sessions and filters" if config.session_label or config.bids_filter_file else ""


def _find_skipped(
    config: Config, images: Sequence[File], listing: Listing, details: Mapping[str, str]
) -> dict[str, str]:
    """Say which subjects and which of their sessions have no T1w image that is asked for."""
    entities = [image.entities for image in images]
    found = {(own["subject"], own.get("session")) for own in entities}
    subjects = {own["subject"] for own in entities}
    reason = f"no T1w image{_narrowed(config)}"
    skipped = {}
    for subject in config.participant_label or details:
        if subject not in subjects:
            skipped[f"sub-{subject}"] = reason + details[subject]
            continue
        there = sorted(path.name[4:] for path in (config.bids_dir / f"sub-{subject}").glob("ses-*") if path.is_dir())
        for session in config.session_label or there:
            if (subject, session) not in found:
                folder = f"sub-{subject}/ses-{session}/"
                uniform = _find_uniform([name for name in listing.of_subject(subject) if name.startswith(folder)])
                why = "".join([reason, *(f" ({cause})" for cause in uniform)])
                skipped[f"sub-{subject}_ses-{session}"] = why if session in there else "no such session"
    return skipped
