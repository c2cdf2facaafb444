"""Files of the whole derivative dataset: description, ignore list, labels, methods, settings, reports."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mmln_pipeline import __version__
from mmln_pipeline.bids_app.arguments import UsageError
from mmln_pipeline.bids_app.description import BIDS_VERSION, describe_container, makers_of, read_description
from mmln_pipeline.bids_app.invocation import Config
from mmln_pipeline.derivatives import filenames
from mmln_pipeline.interfaces.saving import put_text, to_json
from mmln_pipeline.reporting.group_table import GroupTable

if TYPE_CHECKING:  # the group level does without networks and workflows
    from mmln_pipeline.bids_app.method import Method

NAME = "mmln-pipeline"


def check_output_dataset(output_dir: Path) -> None:
    """Refuse an output directory that holds a dataset of another program.

    Raises
    ------
    UsageError
        There is a dataset description that this program did not write.
    """
    path = output_dir / filenames.DESCRIPTION
    if not path.exists():
        return
    if NAME not in makers_of(_read_description(output_dir)):
        raise UsageError(
            f"OUTPUT_DIR {output_dir}: holds a dataset that {NAME} did not make ({path.name}): choose another folder"
        )


def write_dataset_files(config: Config, method: Method, boilerplate: tuple[str, str]) -> None:
    """Write the files that describe the dataset; those that would not change stay untouched.

    Settings and methods text are written twice: under the names that people look for, where those of the last run
    stand, and under the run's own, for jobs that share the dataset.

    Parameters
    ----------
    config : Config
        Settings of the run.
    method : Method
        What they mean on this machine.
    boilerplate : tuple of str
        Methods text (Markdown), and its references (BibTeX).
    """
    root = config.output_dir
    put_text(to_json(_describe(config, method)), root / filenames.DESCRIPTION)
    write_bidsignore(root)
    for text, name in zip(boilerplate, (filenames.CITATION, filenames.BIBTEX), strict=True):
        put_text(text, root / method.apart(name))
    put_text(config.to_toml(), root / method.apart(filenames.CONFIG))
    own = root / filenames.RUNS / config.run_name
    put_text(config.to_toml(), own.with_suffix(".toml"))
    put_text(boilerplate[0], own.with_suffix(".md"))
    for atlas, table in method.tables.items():
        put_text(table, root / filenames.atlas_table_name(atlas))


def write_bidsignore(root: Path) -> None:
    """Add what the BIDS schema does not know to the dataset's ignore list; what it holds stays.

    Parameters
    ----------
    root : Path
        Root of the derivative dataset.
    """
    path = root / filenames.BIDSIGNORE
    kept = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    put_text("\n".join(dict.fromkeys([*kept, *filenames.BIDSIGNORE_LINES])) + "\n", path)


def write_report(
    config: Config,
    method: Method,
    subject: str,
    errors: Sequence[Path | str] = (),
    group: Mapping[str, GroupTable] | None = None,
    subjects: Sequence[str] = (),
) -> Path:
    """Write a subject's report from what lies in the output directory.

    Parameters
    ----------
    config : Config
        Settings of the run.
    method : Method
        What they mean on this machine.
    subject : str
        Label without `sub-`.
    errors : sequence of Path or str, default ()
        Crash files, or what else went wrong.
    group : mapping or None, default None
        Scores of all images to compare the subject's with, by the template, where they are read already.
    subjects : sequence of str, default ()
        Labels of the subjects with a page, in their order.

    Returns
    -------
    Path
        The report.
    """
    from mmln_pipeline.reporting.page import read_citation, write_subject_report

    # Another job may have written its own methods text meanwhile.
    own = config.output_dir / filenames.RUNS / f"{config.run_name}.md"
    texts = {method.apart(filenames.CITATION): own} if own.is_file() else {}
    citation = read_citation(config.output_dir, texts)
    return write_subject_report(
        config.output_dir, subject, errors=errors, group=group, citation=citation, subjects=subjects
    )


def list_reports(root: Path) -> list[str]:
    """List the subjects with a page, by their labels without `sub-`, in the order of a folder's listing."""
    return sorted(path.stem.removeprefix("sub-") for path in root.glob(filenames.report_name("*")))


def _describe(config: Config, method: Method) -> dict:
    """Compose the dataset's description; links of earlier runs stay, since their sidecars use them."""
    roots = method.provenance.links
    links = {name: config.dataset_uri.get(name, root.as_uri()) for name, root in roots.items()}
    maker = {
        "Name": NAME,
        "Version": __version__,
        "Description": f"Registration of T1-weighted images to {method.all_templates}",
    }
    container = describe_container()
    return {
        "Name": "MMLN registration",
        "BIDSVersion": BIDS_VERSION,
        "DatasetType": "derivative",
        "GeneratedBy": [maker | ({"Container": container} if container else {})],
        "SourceDatasets": [{"URL": links[name], **_doi(root)} for name, root in roots.items()],
        "DatasetLinks": _read_description(config.output_dir).get("DatasetLinks", {}) | links,
        "HowToAcknowledge": f"Please cite the works listed in {filenames.CITATION}.",
    }


def _doi(root: Path) -> dict[str, str]:
    """Return the DOI that a dataset says it has."""
    doi = _read_description(root).get("DatasetDOI")
    return {"DOI": doi} if isinstance(doi, str) and doi else {}


def _read_description(root: Path) -> dict:
    """Read a dataset's description; one that cannot be read counts as empty."""
    try:
        return read_description(root)
    except UsageError:
        return {}
