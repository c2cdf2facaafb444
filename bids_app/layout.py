"""Queries of the raw dataset and of derivatives: which scans there are, and their masks and labels."""

import json
import re
import warnings
from collections.abc import Mapping
from pathlib import Path

from bids.layout import BIDSLayout, BIDSLayoutIndexer, Query
from bids_validator import BIDSValidator

from mmln_pipeline.bids_app.config import Config
from mmln_pipeline.bids_app.parser import UsageError
from mmln_pipeline.workflows import Scan

BASE_FILTERS = {
    "t1w": {"datatype": "anat", "suffix": "T1w", "extension": [".nii.gz", ".nii"]},
    "mask": {"datatype": "anat", "suffix": "mask", "desc": "brain", "extension": [".nii.gz", ".nii"]},
    "dseg": {"datatype": "anat", "suffix": "dseg", "extension": [".nii.gz", ".nii"]},
}
NATIVE_SPACES = (None, "T1w", "orig")
OTHER_FOLDERS = re.compile(r"^/(?!sub-)[^/]+/|/(func|dwi|fmap|perf|pet|eeg|meg|ieeg|beh|motion|nirs|micr)(/|$)")


def find_scans(config: Config) -> tuple[list[Scan], list[str]]:
    """Find the T1w images that a run asks for, with their masks and labels.

    Parameters
    ----------
    config : Config
        Settings of the run.

    Returns
    -------
    scans : list of Scan
        Sorted by file name.
    skipped : list of str
        Subjects without a T1w image (only when no label asked for them).

    Raises
    ------
    UsageError
        The dataset is none, a label or a filter finds no T1w image, or several masks or label images fit
        a scan.
    """
    filters = _read_filters(config.bids_filter_file)
    if not config.skip_bids_validation:
        _check_description(config.bids_dir)
    subjects = sorted(path.name[4:] for path in config.bids_dir.glob("sub-*") if path.is_dir())
    missing = [label for label in config.participant_label if label not in subjects]
    if missing:
        raise UsageError(f"--participant-label {' '.join(missing)}: no folder sub-{missing[0]} in {config.bids_dir}")
    images = _query(_index_raw(config), filters["t1w"] | _labels(config, filters["t1w"]), "t1w")
    _check_found(config, images, subjects)
    if not config.skip_bids_validation:
        _check_names(config.bids_dir, images)
    others = {name: _index_derivative(name, path) for name, path in config.derivatives.items()}
    scans = [_to_scan(image, others, filters) for image in images]
    found = {scan.subject for scan in scans}
    wanted = config.participant_label or subjects
    return scans, [label for label in wanted if label not in found]


def _read_filters(path: Path | None) -> dict[str, dict]:
    """Merge a filter file with the base filters; null and "*" become PyBIDS's NONE and ANY."""
    filters = {kind: dict(base) for kind, base in BASE_FILTERS.items()}
    if path is None:
        return filters
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"--bids-filter-file {path}: {error.strerror}") from error
    except ValueError as error:
        raise UsageError(f"--bids-filter-file {path}: not valid JSON: {error}") from error
    if not isinstance(content, dict) or not all(isinstance(item, dict) for item in content.values()):
        raise UsageError(f'--bids-filter-file {path}: expected {{"t1w": {{ENTITY: VALUE}}}}')
    if not set(content) & set(filters):
        raise UsageError(
            f"--bids-filter-file {path}: expected one of {', '.join(filters)}, found {', '.join(content) or 'nothing'}"
        )
    words = {None: Query.NONE, "*": Query.ANY}
    for kind in set(content) & set(filters):
        for entity, value in content[kind].items():
            filters[kind][entity] = value if isinstance(value, list) else words.get(value, value)
    return filters


def _labels(config: Config, filters: Mapping) -> dict:
    """Return the filters that the label options make; a filter file's session goes before theirs."""
    labels: dict = {}
    if config.participant_label:
        labels["subject"] = list(config.participant_label)
    if config.session_label and "session" not in filters:
        labels["session"] = list(config.session_label)
    return labels


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


def _check_names(root: Path, images: list) -> None:
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


def _query(layout: BIDSLayout, filters: Mapping, kind: str) -> list:
    try:
        return sorted(layout.get(**filters), key=lambda image: Path(image.path).name)
    except (ValueError, TypeError) as error:
        raise UsageError(f'--bids-filter-file: "{kind}": {str(error).splitlines()[0]}') from error


def _check_found(config: Config, images: list, subjects: list[str]) -> None:
    """Raise where something that was asked for has no T1w image."""
    narrowed = " with these sessions and filters" if config.session_label or config.bids_filter_file else ""
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


def _to_scan(image, others: Mapping[str, BIDSLayout], filters: Mapping[str, dict]) -> Scan:
    """Join a T1w image with the one mask and the one label image that fit it."""
    entities = image.get_entities()
    return Scan(
        subject=entities["subject"],
        session=entities.get("session"),
        t1w=Path(image.path),
        mask=_find_companion(image, others, "mask", filters["mask"]),
        dseg=_find_companion(image, others, "dseg", filters["dseg"]),
    )


def _find_companion(image, others: Mapping[str, BIDSLayout], kind: str, filters: Mapping) -> Path | None:
    """Find the mask or labels in the space of a T1w image; its entities must be the image's."""
    own = {key: value for key, value in image.get_entities().items() if key not in ("suffix", "extension", "datatype")}
    fitting = []
    for layout in others.values():
        for candidate in _query(layout, {**filters, "subject": own["subject"]}, kind):
            entities = candidate.get_entities()
            same = all(entities.get(key) == own.get(key) for key in (*own, "session", "run", "acquisition"))
            if same and entities.get("space") in NATIVE_SPACES:
                fitting.append(Path(candidate.path))
    if len(fitting) > 1:
        raise UsageError(
            f"{Path(image.path).name}: {len(fitting)} files fit as {kind} ({fitting[0]}, {fitting[1]}): "
            f'choose by "{kind}" in --bids-filter-file'
        )
    return fitting[0] if fitting else None
