"""Queries of the raw dataset: which scans there are, of which images they are made, and which are left out."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from bids.layout import BIDSLayout
from bids_validator import BIDSValidator
from pathspec import GitIgnoreSpec

from mmln_pipeline.bids_app.arguments import UsageError
from mmln_pipeline.bids_app.companions import Lesions, find_companion
from mmln_pipeline.bids_app.description import read_description
from mmln_pipeline.bids_app.filters import File, Filters, read_filters
from mmln_pipeline.bids_app.indexing import DERIVATIVES, RAW, Listing, list_files, open_index
from mmln_pipeline.bids_app.invocation import Config
from mmln_pipeline.derivatives.filenames import BIDSIGNORE, DESCRIPTION
from mmln_pipeline.derivatives.scans import common_stem
from mmln_pipeline.workflows import Scan

UNVALIDATED = "or use --skip-bids-validation"
UNIFORM = ("_UNIT1.nii.gz", "_UNIT1.nii")


def find_scans(config: Config) -> tuple[list[Scan], dict[str, str]]:
    """Find the T1w images that a run asks for, with their masks and labels.

    Parameters
    ----------
    config : Config
        Settings of the run.

    Returns
    -------
    scans : list of Scan
        Sorted by file name; one for each session, or (`subject_anatomical_reference`) for each subject.
    skipped : dict of str to str
        Why a subject (`sub-X`), a session (`sub-X_ses-Y`) or a file is left out.

    Raises
    ------
    UsageError
        The dataset is none, a label or a filter finds no T1w image, or masks or labels of a scan are in doubt.
    """
    filters = read_filters(config.bids_filter_file)
    if not config.skip_bids_validation:
        _check_description(config.bids_dir)
    subjects = sorted(path.name[4:] for path in config.bids_dir.glob("sub-*") if path.is_dir() or path.is_symlink())
    missing = [label for label in config.participant_label if label not in subjects]
    if missing:
        raise UsageError(f"--participant-label {' '.join(missing)}: no folder sub-{missing[0]} in {config.bids_dir}")
    # A kept index has all subjects: it serves the runs of each.
    listing = list_files(config.bids_dir, () if config.bids_database_dir else config.participant_label)
    raw, labels = open_index(listing, RAW, config.bids_database_dir), _labels(config, filters)
    known = filters.find_all(raw, "t1w")
    left_out = _find_left_out(config, known)
    images = [image for image in filters.find(raw, "t1w", **labels) if image.path not in left_out]
    details = {subject: _explain(subject, listing, left_out) for subject in subjects}
    _check_found(config, images, details, _blame(filters, raw, labels) if not images else "")
    others = {name: _index_derivative(config, name, path) for name, path in config.derivatives.items()}
    siblings = _by_subject(image for image in known if image.path not in left_out)
    lesions = Lesions(config, [raw, *others.values()])
    scans = [_to_scan(image, siblings, others, filters, lesions) for image in images]
    lesions.check_found([scan.lesion for scan in scans])
    skipped = {path.name: reason for path, reason in left_out.items()} | _find_skipped(config, images, details)
    return join_scans(scans, config.subject_anatomical_reference), skipped


def join_scans(scans: Sequence[Scan], reference: str) -> list[Scan]:
    """Join the images that give one result: the runs of a session, or all images of a subject.

    Images that differ in another entity, such as `acq`, have results of their own.

    Parameters
    ----------
    scans : sequence of Scan
        One for each image, sorted by file name.
    reference : {"sessionwise", "first-lex", "unbiased"}
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
        others = [replace(other, lesion=None) if other.lesion == first.lesion else other for other in others]
        joined.append(replace(first, session=session, others=tuple(others), reference=kind))
    return joined


def _to_scan(
    image: File,
    siblings: Mapping[str, Sequence[File]],
    others: Mapping[str, BIDSLayout],
    filters: Filters,
    lesions: Lesions,
) -> Scan:
    """Join a T1w image with its mask, its labels and its lesion mask."""
    subject = image.entities["subject"]
    own = siblings.get(subject, ())
    return Scan(
        subject=subject,
        session=image.entities.get("session"),
        t1w=image.path,
        mask=find_companion(image, own, others, "mask", filters),
        dseg=find_companion(image, own, others, "dseg", filters),
        lesion=lesions.find(image, own),
    )


def _by_subject(images: Iterable[File]) -> dict[str, list[File]]:
    found: dict[str, list[File]] = {}
    for image in images:
        found.setdefault(image.entities["subject"], []).append(image)
    return found


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


def _find_left_out(config: Config, images: Sequence[File]) -> dict[Path, str]:
    """Say which images are none of the dataset's: those that it ignores, and stray names."""
    path = config.bids_dir / BIDSIGNORE
    ignored = GitIgnoreSpec.from_lines(path.read_text(encoding="utf-8-sig").splitlines() if path.is_file() else ())
    validator = None if config.skip_bids_validation else BIDSValidator()
    left_out = {}
    for image in images:
        name = image.path.relative_to(config.bids_dir).as_posix()
        if ignored.match_file(name):
            left_out[image.path] = f"listed in {BIDSIGNORE}"
        elif validator is not None and not validator.is_bids(f"/{name}"):
            left_out[image.path] = f"not a BIDS file name: rename it, {UNVALIDATED}"
    return left_out


def _index_derivative(config: Config, name: str, path: Path) -> BIDSLayout:
    try:
        read_description(path)
        return open_index(list_files(path, config.participant_label), DERIVATIVES)
    except UsageError as error:
        raise UsageError(f"--derivatives {name}={path}: {error}") from error


def _explain(subject: str, listing: Listing, left_out: Mapping[Path, str]) -> str:
    """Say what a subject has in place of T1w images; nothing where that is nothing of note."""
    closed = [f"{name}: {reason}" for name, reason in listing.closed.items() if name.split("/")[0] == f"sub-{subject}"]
    names = listing.of_subject(subject)
    closed += [f"{path.name}: {reason}" for path, reason in left_out.items() if path.name.startswith(f"sub-{subject}_")]
    uniform = [Path(name).name for name in names if name.endswith(UNIFORM)]
    if uniform:
        closed.append(f"only UNIT1, the uniform image of MP2RAGE: {uniform[0]}: make a T1w image of it")
    return f" ({closed[0]})" if closed else ""


def _check_found(config: Config, images: Sequence[File], details: Mapping[str, str], blame: str) -> None:
    """Raise where something that was asked for has no T1w image."""
    narrowed = _narrowed(config) + blame
    found = {image.entities["subject"] for image in images}
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


def _find_skipped(config: Config, images: Sequence[File], details: Mapping[str, str]) -> dict[str, str]:
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
                skipped[f"sub-{subject}_ses-{session}"] = reason if session in there else "no such session"
    return skipped
