"""Queries of the raw dataset: which scans there are, of which images they are made, and which are left out."""

import json
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from bids.layout import BIDSLayout, BIDSLayoutIndexer
from bids_validator import BIDSValidator

from mmln_pipeline.bids_app.arguments import UsageError
from mmln_pipeline.bids_app.companions import Lesions, find_companion
from mmln_pipeline.bids_app.filters import Filters, read_filters
from mmln_pipeline.bids_app.invocation import Config
from mmln_pipeline.derivatives.scans import common_stem
from mmln_pipeline.workflows import Scan

OTHER_FOLDERS = re.compile(r"^/(?!sub-)[^/]+/|/(func|dwi|fmap|perf|pet|eeg|meg|ieeg|beh|motion|nirs|micr)(/|$)")


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
        Why a subject (`sub-X`) or a session (`sub-X_ses-Y`) is left out.

    Raises
    ------
    UsageError
        The dataset is none, a label or a filter finds no T1w image, or masks or labels of a scan are in doubt.
    """
    filters = read_filters(config.bids_filter_file)
    if not config.skip_bids_validation:
        _check_description(config.bids_dir)
    subjects = sorted(path.name[4:] for path in config.bids_dir.glob("sub-*") if path.is_dir())
    missing = [label for label in config.participant_label if label not in subjects]
    if missing:
        raise UsageError(f"--participant-label {' '.join(missing)}: no folder sub-{missing[0]} in {config.bids_dir}")
    raw, labels = _index_raw(config), _labels(config, filters)
    images = filters.find(raw, "t1w", **labels)
    _check_found(config, images, subjects, _blame(filters, raw, labels) if not images else "")
    if not config.skip_bids_validation:
        _check_names(config.bids_dir, images)
    others = {name: _index_derivative(name, path) for name, path in config.derivatives.items()}
    scans = _to_scans(config, images, [raw, *others.values()], others, filters)
    return join_scans(scans, config.subject_anatomical_reference), _find_skipped(config, images, subjects)


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
        others = [replace(other, lesion=None) if other.lesion == first.lesion else other for other in others]
        joined.append(replace(first, session=session, others=tuple(others), reference=kind))
    return joined


def _to_scans(
    config: Config, images: Sequence, layouts: Sequence[BIDSLayout], others: Mapping[str, BIDSLayout], filters: Filters
) -> list[Scan]:
    """Join each T1w image with its mask, its labels and its lesion mask."""
    lesions = Lesions(config, layouts)
    scans = [
        Scan(
            subject=image.get_entities()["subject"],
            session=image.get_entities().get("session"),
            t1w=Path(image.path),
            mask=find_companion(image, others, "mask", filters),
            dseg=find_companion(image, others, "dseg", filters),
            lesion=lesions.find(image),
        )
        for image in images
    ]
    lesions.check_found([scan.lesion for scan in scans])
    return scans


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
    path = root / "dataset_description.json"
    mend = "add it, or use --skip-bids-validation"
    if not path.is_file():
        raise UsageError(f"{root}: no BIDS dataset, dataset_description.json is missing: {mend}")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UsageError(f"{path}: not valid JSON: {error}") from error
    absent = [key for key in ("Name", "BIDSVersion") if not isinstance(content, dict) or key not in content]
    if absent:
        raise UsageError(f"{path}: {' and '.join(absent)} missing: {mend}")


def _check_names(root: Path, images: Sequence) -> None:
    validator = BIDSValidator()
    for image in images:
        name = "/" + Path(image.path).relative_to(root).as_posix()
        if not validator.is_bids(name):
            raise UsageError(f"{image.path}: not a BIDS file name: rename it, or use --skip-bids-validation")


def _index_raw(config: Config) -> BIDSLayout:
    """Index the anatomical folders: of the subjects asked for, or of all where the index is kept."""
    ignore = [OTHER_FOLDERS]
    if config.participant_label and not config.bids_database_dir:
        wanted = "|".join(re.escape(label) for label in config.participant_label)
        ignore.append(re.compile(rf"^/sub-(?!({wanted})(/|$))"))
    return _index(config.bids_dir, ignore=ignore, database_path=config.bids_database_dir)


def _index_derivative(name: str, path: Path) -> BIDSLayout:
    if not (path / "dataset_description.json").is_file():
        raise UsageError(f"--derivatives {name}={path}: no BIDS dataset, dataset_description.json is missing")
    return _index(path, ignore=[OTHER_FOLDERS], is_derivative=True)


def _index(root: Path, ignore: list, **options) -> BIDSLayout:
    indexer = BIDSLayoutIndexer(validate=False, index_metadata=False, ignore=ignore)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return BIDSLayout(str(root), validate=False, indexer=indexer, **options)
        except (ValueError, OSError) as error:
            raise UsageError(f"{root}: PyBIDS cannot read it: {error}") from error


def _check_found(config: Config, images: Sequence, subjects: list[str], blame: str) -> None:
    """Raise where something that was asked for has no T1w image."""
    narrowed = _narrowed(config) + blame
    found = {image.get_entities()["subject"] for image in images}
    missing = [label for label in config.participant_label if label not in found]
    if missing:
        raise UsageError(f"--participant-label {' '.join(missing)}: no T1w image of sub-{missing[0]}{narrowed}")
    sessions = {image.get_entities().get("session") for image in images}
    missing = [label for label in config.session_label if label not in sessions]
    if missing and images:
        raise UsageError(f"--session-label {' '.join(missing)}: no T1w image of ses-{missing[0]}")
    if not images:
        what = f"{len(subjects)} subjects, but no T1w image{narrowed}" if subjects else "no folder sub-*"
        raise UsageError(f"{config.bids_dir}: {what}")


def _narrowed(config: Config) -> str:
    return " with these sessions and filters" if config.session_label or config.bids_filter_file else ""


def _find_skipped(config: Config, images: Sequence, subjects: Sequence[str]) -> dict[str, str]:
    """Say which subjects and which of their sessions have no T1w image that is asked for."""
    entities = [image.get_entities() for image in images]
    found = {(own["subject"], own.get("session")) for own in entities}
    reason = f"no T1w image{_narrowed(config)}"
    skipped = {}
    for subject in config.participant_label or subjects:
        if not any(own["subject"] == subject for own in entities):
            skipped[f"sub-{subject}"] = reason
            continue
        there = sorted(path.name[4:] for path in (config.bids_dir / f"sub-{subject}").glob("ses-*") if path.is_dir())
        for session in config.session_label or there:
            if (subject, session) not in found:
                skipped[f"sub-{subject}_ses-{session}"] = reason if session in there else "no such session"
    return skipped
