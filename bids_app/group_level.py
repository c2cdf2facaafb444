"""Group level: sum up what the participant level left: a table, a page, and mean images, for one template."""

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from mmln_pipeline import __version__
from mmln_pipeline.atlas.labels import load_label_table
from mmln_pipeline.atlas.templates import template_name
from mmln_pipeline.bids_app.arguments import UsageError
from mmln_pipeline.bids_app.checks import check_paths, refuse_options
from mmln_pipeline.bids_app.dataset import check_output_dataset, list_reports, write_bidsignore
from mmln_pipeline.bids_app.finished import Results, find_results
from mmln_pipeline.bids_app.invocation import Config
from mmln_pipeline.derivatives import filenames, sidecars
from mmln_pipeline.group.agreement import label_agreement
from mmln_pipeline.group.averaging import Average, average_images
from mmln_pipeline.group.volume_table import write_volumes
from mmln_pipeline.images.volumes import normalize_intensity, save_image
from mmln_pipeline.interfaces.saving import put_file, put_text, to_json
from mmln_pipeline.reporting.contact_sheet import Thumbnails
from mmln_pipeline.reporting.group_page import write_group_report
from mmln_pipeline.reporting.group_table import GroupTable, add_agreement
from mmln_pipeline.reporting.page import refresh_subject_report
from mmln_pipeline.reporting.record import read_records

PARTICIPANT_ONLY = ("boilerplate_only", "list_unfinished", "write_graph", "reports_only")


def run_group(config: Config) -> int:
    """Check the settings, then write table, images and page; what would not change is left untouched.

    Parameters
    ----------
    config : Config
        Settings of the run.

    Returns
    -------
    int
        0, since at least one image was found; what is missing is said on the terminal and on the page.

    Raises
    ------
    UsageError
        The settings or the results are wrong; nothing was written.
    """
    refuse_options(config, PARTICIPANT_ONLY)
    check_paths(config)
    check_output_dataset(config.output_dir)
    names = config.output_spaces if config.is_spaces_only else (config.template, *config.output_spaces)
    try:
        found = {template: find_results(config, template) for template in map(template_name, names)}
    except ValueError as error:
        raise UsageError(str(error)) from error
    for template, results in found.items():
        if config.dry_run:
            print(describe_plan(config, template, results))
        else:
            write_group(config, template, results)
    return 0


def write_group(config: Config, template: str, results: Results) -> None:
    """Write everything, and say what came of it.

    Parameters
    ----------
    config : Config
        Settings of the run.
    template : str
        Name of the template.
    results : Results
        What the participant level left.
    """
    root = config.output_dir
    results.records = add_agreement(results.records, label_agreement(results.labels))
    table = GroupTable(results.records)
    thumbnails = Thumbnails()
    t1w = average_images(results.images["t1w_std"], normalize_intensity, thumbnails.add, spread=False)
    log_jacobian = average_images(results.images["log_jacobian"])
    write_bidsignore(root)
    unread = write_volumes(results.volumes, root / filenames.GROUP_VOLUMES) if any(results.volumes.values()) else {}
    missing = [*results.missing, *_name_refused(results, t1w, log_jacobian), *sorted(unread.items())]
    _write_images(root, template, results, t1w, log_jacobian)
    table_name, page_name, sheet_name = _group_names(root, template)
    put_text(table.to_tsv(), root / table_name)
    reports = {scan: filenames.report_name(scan.split("_")[0].removeprefix("sub-")) for scan in table.rows}
    write_group_report(
        root / page_name,
        table,
        template=template,
        t1w=t1w,
        log_jacobian=log_jacobian,
        image_names=filenames.group_paths(template),
        table_name=table_name,
        links={scan: name for scan, name in reports.items() if (root / name).is_file()},
        missing=missing,
        structure_names=_read_label_names(root, results),
        participants=_read_participants(config.bids_dir),
        thumbnails=thumbnails,
        sheet_name=sheet_name,
    )
    _refresh_reports(root, table)
    for name, reason in missing:
        print(f"{name}: {reason}")
    unusual = ", ".join(dict.fromkeys(outlier.scan for outlier in table.outliers))
    print(f"images: {len(table.rows)}; outliers: {unusual or 'none'}")
    print(f"quality check: {_list_verdicts(table)}")
    print(root / page_name)


def _refresh_reports(root: Path, table: GroupTable) -> None:
    """Bring what the subjects' pages say of the group up to date."""
    subjects = list_reports(root)
    for subject in dict.fromkeys(scan.split("_")[0].removeprefix("sub-") for scan in table.rows):
        refresh_subject_report(root, subject, read_records(root, subject), table, subjects)


def _read_participants(bids_dir: Path) -> dict[str, dict[str, str]]:
    """Read what the raw dataset says of its participants; nothing where it has no table that can be read."""
    try:
        rows = pd.read_csv(bids_dir / "participants.tsv", sep="\t", dtype=str, keep_default_na=False)
        return {str(name): own for name, own in rows.set_index("participant_id").to_dict("index").items()}
    except (OSError, ValueError, KeyError):
        return {}


def _list_verdicts(table: GroupTable) -> str:
    """Count the verdicts, and name the images that did not pass."""
    parts = [
        f"{len(scans)} {verdict}" + (f" ({', '.join(scans)})" if verdict != "pass" else "")
        for verdict, scans in table.verdicts.items()
    ]
    return ", ".join(parts) or "not done"


def describe_plan(config: Config, template: str, results: Results) -> str:
    """Say what would be read and written.

    Parameters
    ----------
    config, template, results
        As in `write_group`.

    Returns
    -------
    str
        Lines for the terminal.
    """
    names = [*filenames.group_paths(template).values(), *_group_names(config.output_dir, template)]
    names += [filenames.GROUP_VOLUMES] * any(results.volumes.values())
    lines = [f"Would sum up {len(results.records)} images registered to {template} in {config.output_dir}:"]
    lines += list(results.records)
    lines += [f"{name}: {reason}" for name, reason in results.missing]
    return "\n".join([*lines, f"and write {', '.join(names)}"])


def _write_images(root: Path, template: str, results: Results, t1w: Average, log_jacobian: Average) -> None:
    """Write the images with their sidecars; those of an earlier run that cannot be made any more are removed."""
    made = {
        "mean_t1w": (t1w.mean, results.images["t1w_std"], t1w.names),
        "mean_log_jacobian": (log_jacobian.mean, results.images["log_jacobian"], log_jacobian.names),
        "sd_log_jacobian": (log_jacobian.sd, results.images["log_jacobian"], log_jacobian.names),
    }
    with tempfile.TemporaryDirectory() as scratch:
        for key, name in filenames.group_paths(template).items():
            image, paths, names = made[key]
            target, sidecar = root / name, root / f"{name.removesuffix('.nii.gz')}.json"
            if image is None:
                target.unlink(missing_ok=True)
                sidecar.unlink(missing_ok=True)
                continue
            put_file(save_image(image, Path(scratch) / name), target)
            content = sidecars.group_sidecar(
                key,
                template=template,
                spatial_reference=_spatial_reference(paths[names[0]], template),
                sources=[paths[scan].relative_to(root).as_posix() for scan in names],
                version=__version__,
            )
            put_text(to_json(content), sidecar)


def _spatial_reference(image: Path, template: str) -> str:
    """Return what an image's sidecar says about its space; the template's name where it says nothing."""
    try:
        content = json.loads((image.parent / f"{image.name.removesuffix('.nii.gz')}.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return template
    reference = content.get("SpatialReference") if isinstance(content, dict) else None
    return reference if isinstance(reference, str) else template


def _name_refused(results: Results, t1w: Average, log_jacobian: Average) -> list[tuple[str, str]]:
    """Return the images that could not be averaged, with the reasons."""
    kinds = (("t1w_std", t1w), ("log_jacobian", log_jacobian))
    found = [
        (scan, f"{results.images[kind][scan].name}: {reason}")
        for kind, average in kinds
        for scan, reason in average.refused.items()
    ]
    return sorted(found)


def _group_names(root: Path, template: str) -> tuple[str, ...]:
    """Return the names of table, page and contact sheet: with the template where those of another one are there."""
    names = (filenames.GROUP_TABLE, filenames.GROUP_REPORT, filenames.GROUP_SHEET)
    try:
        rows = pd.read_csv(root / filenames.GROUP_TABLE, sep="\t", dtype=str)
    except (OSError, ValueError):
        return names
    is_others = "template" in rows and not set(rows["template"].dropna()) <= {template}
    return tuple(filenames.apart(name, template) for name in names) if is_others else names


def _read_label_names(root: Path, results: Results) -> Mapping[str, str]:
    """Return the names of labels by their numbers, where the images have one table of labels."""
    tables = sorted(root.glob(filenames.atlas_table_name("*")))
    own = {filenames.atlas_table_name(str(record.get("atlas"))) for record in results.records.values()}
    tables = [path for path in tables if path.name in own] or tables
    if len(tables) != 1:
        return {}
    try:
        structures = load_label_table(tables[0])
    except (OSError, ValueError):
        return {}
    return {str(number): name for name, numbers in structures.items() for number in numbers}
