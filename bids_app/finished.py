"""What the participant level left in the output directory: scores and images of each scan, and what is missing."""

import csv
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from mmln_pipeline.bids_app.arguments import UsageError
from mmln_pipeline.bids_app.invocation import Config
from mmln_pipeline.derivatives.filenames import QC_ENDING, derivative_paths, std_labels_path, volumes_glob
from mmln_pipeline.derivatives.scans import Scan, common_stem
from mmln_pipeline.registration.result import describe_doubt
from mmln_pipeline.reporting.group_table import LEFT_OUT, Value, flatten

IMAGES = ("t1w_std", "log_jacobian")
RAW_ENDINGS = ("_T1w.nii.gz", "_T1w.nii")


@dataclass
class Results:
    """Finished results of the participant level.

    Attributes
    ----------
    records : dict of str to dict
        Flat scores of each scan by its entities, sorted.
    images : dict of str to dict of str to Path
        Files of each kind in `IMAGES`, by scan.
    labels : dict of str to Path
        The labels that came with scans, on the template's grid, where there are any.
    volumes : dict of str to list of Path
        Tables of the volumes of labels, by scan; those of all atlases of the dataset.
    missing : list of (str, str)
        Scan or subject, and what is missing.
    """

    records: dict[str, dict[str, Value]] = field(default_factory=dict)
    images: dict[str, dict[str, Path]] = field(default_factory=lambda: {kind: {} for kind in IMAGES})
    labels: dict[str, Path] = field(default_factory=dict)
    volumes: dict[str, list[Path]] = field(default_factory=dict)
    missing: list[tuple[str, str]] = field(default_factory=list)


def find_results(config: Config, template: str) -> Results:
    """Find the results of all scans that a run asks for.

    Parameters
    ----------
    config : Config
        Settings of the run; the labels of participants and sessions choose scans.
    template : str
        Name of the template.

    Returns
    -------
    Results

    Raises
    ------
    UsageError
        A participant is unknown, no scan is finished, or scans were registered to another template or to
        several.
    """
    expected = {scan.stem: scan for scan in _find_scans(config, config.bids_dir, RAW_ENDINGS)}
    # Where scans were registered to several templates, the names of the scores say to which.
    several = any(config.output_dir.glob(f"sub-*/**/*_space-*{QC_ENDING}"))
    finished = {scan.stem: scan for scan in _find_scans(config, config.output_dir, _result_endings(template))}
    _check_participants(config, {scan.subject for scan in (expected | finished).values()})
    results = Results()
    for stem in sorted(expected | finished):
        if stem in finished:
            _collect(config.output_dir, finished[stem], template, several, results)
        elif f"{stem}_".startswith(f"{config.template}_"):
            continue  # the template is an image of the dataset, and not registered to itself
        elif not finished.keys() & {common_stem(stem), common_stem(stem, over_sessions=True)}:
            results.missing.append((stem, "no results"))
    for label in config.participant_label:
        if not any(scan.subject == label for scan in (expected | finished).values()):
            results.missing.append((f"sub-{label}", "no T1w image and no results"))
    _check_template(config, results, template)
    return results


def find_doubts(records: Mapping[str, Mapping], scans: Sequence[Scan]) -> list[tuple[str, str]]:
    """Find the images of a run that did not pass the quality check, or that the GPU had too little memory for.

    Parameters
    ----------
    records : mapping of str to mapping
        Scores of each image by its entities, of the run and others.
    scans : sequence of Scan
        The finished scans of the run.

    Returns
    -------
    list of (str, str)
        The image, and verdict and reasons, or the devices, in one line.
    """
    stems = tuple(scan.stem for scan in scans)
    own = {name: record for name, record in records.items() if name.split("_space-")[0] in stems}
    found = [(name, text) for name, record in own.items() for text in (describe_doubt(record), _describe_move(record))]
    return [(name, text) for name, text in found if text]


def _describe_move(record: Mapping) -> str:
    """Say which device an image had to leave; nothing where it stayed."""
    left = record.get("out_of_memory")
    return f"{left} had too little memory: registered on {record['device']}" if left else ""


def _result_endings(template: str) -> tuple[str, ...]:
    """Return how the names of the files end that the group level reads; the longest first."""
    scan = Scan("X", None, Path("X_T1w.nii.gz"))
    found = [derivative_paths(scan, template, spaced=spaced) for spaced in (True, False)]
    return tuple(Path(paths[key]).name.removeprefix("X") for paths in found for key in ("qc_json", "qc_tsv", *IMAGES))


def _find_scans(config: Config, root: Path, endings: tuple[str, ...]) -> Iterator[Scan]:
    """Yield the scans that have such files, among the subjects and sessions asked for."""
    for folder in sorted([*root.glob("sub-*/anat"), *root.glob("sub-*/ses-*/anat")]):
        names = [(path.name, ending) for path in sorted(folder.iterdir()) for ending in endings]
        for stem in dict.fromkeys(name.removesuffix(ending) for name, ending in names if name.endswith(ending)):
            found = re.match(r"sub-([^_]+)(?:_ses-([^_]+))?", stem)
            if found is None or "_space-" in stem:  # scores of a registration to another template
                continue
            subject, session = found.groups()
            is_wanted = not config.participant_label or subject in config.participant_label
            if is_wanted and (not config.session_label or session in config.session_label):
                yield Scan(subject, session, Path(f"{stem}_T1w.nii.gz"))


def _check_participants(config: Config, subjects: set[str]) -> None:
    """Refuse labels of subjects that neither dataset has a folder of."""
    folders = {path.name[4:] for root in (config.bids_dir, config.output_dir) for path in root.glob("sub-*")}
    unknown = [label for label in config.participant_label if label not in subjects | folders]
    if unknown:
        raise UsageError(f"--participant-label {' '.join(unknown)}: no folder sub-{unknown[0]} in {config.bids_dir}")


def _collect(root: Path, scan: Scan, template: str, several: bool, results: Results) -> None:
    """Add one scan's scores and images to the results, or say what is missing.

    `several`: the dataset is known to hold results for several templates, of which the names tell.
    """
    choices = [derivative_paths(scan, template, spaced=spaced) for spaced in (True, False)]
    there = [paths for paths in choices if any((root / paths[key]).is_file() for key in ("qc_json", "qc_tsv"))]
    paths = (there or choices[1:])[0]
    try:
        record = _read_record(root / paths["qc_json"], root / paths["qc_tsv"])
    except ValueError as error:
        results.missing.append((scan.stem, f"left out: {error}"))
        return
    if several and record["template"] != template:
        results.missing.append((scan.stem, f"no results for {template}"))
        return
    results.records[scan.stem] = record
    results.volumes[scan.stem] = sorted(root.glob(volumes_glob(scan)))
    if record["template"] != template:
        return  # one error is said about all of these
    labels = root / std_labels_path(scan, template)
    if labels.is_file():
        results.labels[scan.stem] = labels
    for kind in IMAGES:
        if (root / paths[kind]).is_file():
            results.images[kind][scan.stem] = root / paths[kind]
        else:
            results.missing.append((scan.stem, f"{Path(paths[kind]).name} is missing"))


def _read_record(json_path: Path, tsv_path: Path) -> dict[str, Value]:
    """Read a scan's scores from its JSON file, or from its table where that is gone or broken."""
    reasons = []
    for path, read in ((json_path, _read_json), (tsv_path, _read_tsv)):
        try:
            record = read(path)
        except FileNotFoundError:
            reasons.append(f"{path.name} is missing")
        except (OSError, ValueError, RecursionError) as error:
            reasons.append(f"{path.name} cannot be read ({' '.join(str(error).split())})")
        else:
            if isinstance(record.get("template"), str):
                return record
            reasons.append(f"{path.name} names no template")
    raise ValueError(", ".join(reasons))


def _read_json(path: Path) -> dict[str, Value]:
    content = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(content, dict):
        raise ValueError(f"expected an object, found {type(content).__name__}")
    return flatten(content)


def _read_tsv(path: Path) -> dict[str, Value]:
    """Read the table of one row that stands beside the JSON file."""
    options = {
        "na_values": ["", "n/a"],
        "keep_default_na": False,
        "quoting": csv.QUOTE_NONE,
        "dtype": {"template": str},
    }
    rows = pd.read_csv(path, sep="\t", **options).astype(object).to_dict("records")
    if len(rows) != 1:
        raise ValueError(f"expected one row, found {len(rows)}")
    left_out = tuple(f"{name}_" for name in LEFT_OUT)
    return flatten({name: value for name, value in rows[0].items() if not name.startswith(left_out)})


def _check_template(config: Config, results: Results, template: str) -> None:
    """Refuse a group without scans, and one whose scans lie in another space or in several."""
    found = Counter(str(record["template"]) for record in results.records.values())
    if not found:
        cause = f": {results.missing[0][0]}: {results.missing[0][1]}" if results.missing else ""
        raise UsageError(f"OUTPUT_DIR {config.output_dir}: no finished image of the participant level found{cause}")
    if set(found) == {template}:
        return
    listed = ", ".join(f"{name} ({count})" for name, count in sorted(found.items()))
    mend = "choose images of one by --participant-label, or run the others anew" if len(found) > 1 else "give that one"
    raise UsageError(f"--template {template}: images in {config.output_dir} are registered to {listed}: {mend}")
