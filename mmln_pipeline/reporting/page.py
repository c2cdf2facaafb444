"""The report of one subject: figures, scores and methods in one HTML file that needs nothing else."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from markdown_it import MarkdownIt
from markupsafe import Markup

from mmln_pipeline import __version__
from mmln_pipeline.derivatives import filenames
from mmln_pipeline.machine.files import write_text
from mmln_pipeline.reporting import shown_scores
from mmln_pipeline.reporting.crashes import read_crash
from mmln_pipeline.reporting.group_table import GroupTable, flatten, group_tables, scan_ranges
from mmln_pipeline.reporting.record import done_rows, machine_rows, read_records
from mmln_pipeline.reporting.rendering import load_template, svg_uri

HERE = Path(__file__).parent
TEMPLATE = HERE / "templates" / "report.html"
ALTERNATIVES = {
    "desc-brain": (
        "Brain mask",
        "Slices of the T1-weighted image in three planes with the outline of the brain mask.",
    ),
    "desc-warpgrid": (
        "Warp grid",
        "Slices of the template in three planes under a grid deformed by the registration.",
    ),
    "desc-jacobian": (
        "Log-Jacobian",
        "Slices of the log-Jacobian in three planes, blue to red, with a colour bar.",
    ),
    "_dseg": (
        "Labels",
        "Slices of the T1-weighted image in three planes with the outlines of the atlas labels.",
    ),
}
NEIGHBOURS = "other pages"
"""The part of a page with links to others."""
# Entities in a scratch directory's own path would be taken for the subject's by the layout of PyBIDS.
ENTITY_IN_PATH = re.compile(r"[_/\\][a-z]+-[a-zA-Z0-9]|[/\\](func|anat|fmap|dwi|meg|eeg)([/\\]|$)")


def write_subject_report(
    output_dir: str | Path,
    subject: str,
    *,
    qc: Mapping[str, Mapping[str, Any]] | None = None,
    citation: str | None = None,
    summary: Mapping[str, object] | None = None,
    errors: Sequence[str | Path] = (),
    group: Mapping[str, GroupTable] | None = None,
    subjects: Sequence[str] = (),
) -> Path:
    """Write ``OUTPUT_DIR/sub-X.html`` from the subject's figures and scores.

    NiReports assembles the page. Figures, style and text are inside the file: no request leaves it, and the
    same input gives the same bytes. A page that would not change is left untouched.

    Parameters
    ----------
    output_dir : path
        The derivatives dataset; the figures are those in ``sub-X/figures/``.
    subject : str
        Label of the subject, with or without ``sub-``.
    qc : mapping of str to mapping, optional
        Scores of each image by the entities its file names begin with, such as ``sub-01_ses-02``. By default
        read from the subject's ``*_desc-registration_qc.json`` files.
    citation : str, optional
        Text of the methods. By default that of ``logs/CITATION.md``, if there is one.
    summary : mapping, optional
        Further facts for the first table, by their names: what was found and done.
    errors : sequence of str or Path
        What went wrong: a Path is read as a crash file of Nipype, a str is shown as it is, its first line
        as the title.
    group : mapping of str to GroupTable, optional
        Scores of the images that this subject's are compared with, by the template. By default those of all subjects
        in `output_dir`.
    subjects : sequence of str, optional
        Labels of the subjects with a page, in their order: the one before and the one after are linked.

    Returns
    -------
    Path
        The page.

    Raises
    ------
    FileNotFoundError
        If `output_dir` does not exist.
    """
    output_dir, label = Path(output_dir), subject.removeprefix("sub-")
    if not output_dir.is_dir():
        raise FileNotFoundError(f"output_dir: expected the folder of the derivatives, found nothing at {output_dir}")
    qc = read_records(output_dir, label) if qc is None else qc
    group = group_tables(read_records(output_dir)) if group is None else group
    citation = read_citation(output_dir) if citation is None else citation
    failures = [_describe_failure(error) for error in errors]
    fragments = dict(_figure_fragments(output_dir, label))
    fragments[f"sub-{label}_desc-summary_T1w"] = _summary(label, qc, summary or {}, failures)
    for stem, content in sorted(qc.items()):
        head = _with_space(stem, content)
        table = group.get(str(content.get("template")), GroupTable({}))
        table = table if stem in table.rows else GroupTable({**table.rows, stem: flatten(content)})
        fragments[f"{head}_desc-done_T1w"] = _macros().pairs(done_rows(content))
        fragments[f"{head}_desc-scores_T1w"] = mark_part(_part_of(stem), _scores(stem, content, table))
    for stem, content in read_records(output_dir, label, filenames.FUSED_ENDING).items():
        fragments[f"{stem}_desc-fused_T1w"] = _fused(content)
    if citation:
        references = _bibtex(output_dir)
        fragments[f"sub-{label}_desc-methods_T1w"] = _macros().methods(_render_markdown(citation), references)
    fragments[f"sub-{label}_desc-errors_T1w"] = _macros().errors(failures)
    page = output_dir / filenames.report_name(label)
    html = fill_part(_assemble(label, fragments), NEIGHBOURS, _link_pages(output_dir, label, subjects, qc.values()))
    if not page.exists() or page.read_text(encoding="utf-8") != html:
        write_text(page, html)
    return page


def refresh_subject_report(
    output_dir: Path,
    subject: str,
    records: Mapping[str, Mapping[str, Any]],
    table: GroupTable,
    subjects: Sequence[str],
) -> bool:
    """Bring what a subject's page says of other subjects up to date: ranges of the scores, links; the rest stays.

    Parameters
    ----------
    output_dir : Path
        The derivatives dataset.
    subject : str
        Label of the subject.
    records : mapping of str to mapping
        Its scores, by the entities that their file names begin with.
    table : GroupTable
        Scores of the whole group; only images in it are brought up to date.
    subjects : sequence of str
        Labels of the subjects with a page, in their order.

    Returns
    -------
    bool
        Whether anything was written; a page of an older version, or none, is left as it is.
    """
    page = output_dir / filenames.report_name(subject)
    try:
        before = page.read_text(encoding="utf-8")
    except OSError:
        return False
    html = fill_part(before, NEIGHBOURS, _link_pages(output_dir, subject, subjects, records.values()))
    for stem, record in records.items():
        scan = stem.split("_space-")[0]
        if scan in table.rows and record.get("template") == table.rows[scan].get("template"):
            html = fill_part(html, _part_of(stem), _scores(scan, record, table))
    if html == before:
        return False
    write_text(page, html)
    return True


def _part_of(stem: str) -> str:
    """Name the part of a page that holds an image's scores."""
    return f"scores {stem}"


def mark_part(name: str, content: str) -> str:
    """Mark a part of a page, so that it can be filled anew.

    Examples
    --------
    >>> mark_part("scores sub-1", "<p>1</p>")
    '<!-- scores sub-1 --><p>1</p><!-- end of scores sub-1 -->'
    """
    return f"<!-- {name} -->{content}<!-- end of {name} -->"


def fill_part(html: str, name: str, content: str) -> str:
    """Put other content into a marked part of a page; a page without the part stays as it is.

    Examples
    --------
    >>> fill_part("<main>" + mark_part("links", "old") + "</main>", "links", "new")
    '<main><!-- links -->new<!-- end of links --></main>'
    """
    head, start, rest = html.partition(f"<!-- {name} -->")
    _, end, tail = rest.partition(f"<!-- end of {name} -->")
    return head + start + str(content) + end + tail if start and end else html


def _link_pages(output_dir: Path, label: str, subjects: Sequence[str], records: Iterable[Mapping[str, Any]]) -> str:
    """Render the links to the pages of the subject's groups that are there, and to the subjects before and after."""
    templates = dict.fromkeys(str(record.get("template")) for record in records)
    names = {"Group": filenames.GROUP_REPORT}
    names |= {f"Group {template}": filenames.apart(filenames.GROUP_REPORT, template) for template in templates}
    groups = [(name, page) for name, page in names.items() if (output_dir / page).is_file()]
    around = [None, *subjects, None]
    place = around.index(label) if label in subjects else 0
    beside = (around[place - 1], around[place + 1]) if place else (None, None)
    before, after = ((f"sub-{name}", filenames.report_name(name)) if name else None for name in beside)
    return _macros().pages(before, groups, after)


def _with_space(stem: str, qc: Mapping[str, Any]) -> str:
    """Return a record's entities with its template's: NiReports orders a section by it only where all have it.

    Examples
    --------
    >>> _with_space("sub-1", {"template": "MNI"}), _with_space("sub-1_space-A", {"template": "A"})
    ('sub-1_space-MNI', 'sub-1_space-A')
    """
    return stem if "_space-" in stem else f"{stem}_space-{qc.get('template') or 'unknown'}"


def _assemble(label: str, fragments: Mapping[str, str]) -> str:
    """Let NiReports put fragments, by the stems of their file names, into the page."""
    from nireports.assembler.report import Report

    with tempfile.TemporaryDirectory(dir=_scratch_root()) as scratch:
        figures = Path(scratch) / filenames.figures_folder(label)
        figures.mkdir(parents=True)
        for stem, fragment in fragments.items():
            (figures / f"{stem}.html").write_text(fragment, encoding="utf-8")
        report = Report(
            scratch,
            None,
            bootstrap_file=HERE / "report.yml",
            out_filename="page.html",
            metadata={"template_path": str(TEMPLATE), "filename": f"sub-{label}"},
            subject=label,
        )
        report.generate_report()
        return report.out_filename.read_text(encoding="utf-8")


def _scratch_root() -> str | None:
    """Return a folder for scratch files whose path holds nothing that looks like a BIDS entity."""
    if not ENTITY_IN_PATH.search(tempfile.gettempdir()):
        return None
    return "/tmp" if Path("/tmp").is_dir() else None


def _macros() -> Any:
    """Return the macros that render the fragments; they escape what they are given."""
    return load_template("fragments.html").module


def _figure_fragments(output_dir: Path, label: str) -> Iterator[tuple[str, str]]:
    """Yield the file stem and the HTML of each of the subject's figures."""
    for path in sorted((output_dir / filenames.figures_folder(label)).glob(f"sub-{label}_*.svg")):
        svg = path.read_text(encoding="utf-8")
        link = path.relative_to(output_dir).as_posix()
        if "_desc-registration_" in path.name:
            yield path.stem, _macros().comparison(path.stem, link, Markup(_own_ids(svg, path.stem)))
            continue
        for part, (name, alternative) in ALTERNATIVES.items():
            if part in path.name:
                yield path.stem, _macros().picture(name, link, svg_uri(svg), alternative)


def _own_ids(svg: str, prefix: str) -> str:
    """Prefix the ids of an SVG, so that several can stand in one page."""
    svg = svg[svg.index("<svg") :]
    return re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{prefix}-", svg)


def read_citation(output_dir: Path, texts: Mapping[str, Path] = MappingProxyType({})) -> str:
    """Read the dataset's methods text, if it has one; of several templates, each has its own.

    Parameters
    ----------
    output_dir : Path
        The derivatives dataset.
    texts : mapping of str to Path, default: empty
        Files that are read in place of those of these names.

    Returns
    -------
    str
        Markdown.
    """
    names = {
        path.relative_to(output_dir).as_posix() for path in output_dir.glob(filenames.apart(filenames.CITATION, "*"))
    }
    paths = [texts.get(name, output_dir / name) for name in dict.fromkeys([filenames.CITATION, *sorted(names)])]
    return "\n\n".join(path.read_text(encoding="utf-8").strip() for path in paths if path.exists())


def _bibtex(output_dir: Path) -> str:
    """Read the references of the dataset's methods, as BibTeX; of several templates, all of them, each once."""
    paths = sorted(output_dir.glob(filenames.apart(filenames.BIBTEX, "*")))
    texts = [path.read_text(encoding="utf-8") for path in (output_dir / filenames.BIBTEX, *paths) if path.is_file()]
    entries = [entry.strip() for text in texts for entry in re.split(r"(?m)^(?=@)", text)]
    return "\n\n".join(dict.fromkeys(entry for entry in entries if entry))


def _summary(
    label: str, qc: Mapping[str, Mapping[str, Any]], extra: Mapping[str, object], failures: Sequence[object]
) -> str:
    """Render the first section: facts, main scores, versions."""
    images = {content.get("t1w", name) for name, content in qc.items()}  # one may be registered to several templates
    facts = {"Subject": f"sub-{label}", "Images registered": str(len(images) or "none")}
    for name, key in (("Template", "template"), ("Model", "model"), ("Device", "device")):
        found = dict.fromkeys(str(content[key]) for content in qc.values() if content.get(key) is not None)
        if found:
            facts[name] = ", ".join(found)
    software = dict.fromkeys(str(content.get("version", __version__)) for content in qc.values())
    facts["Software"] = "mmln-pipeline " + (", ".join(software) or __version__)
    facts |= {str(name): str(value) for name, value in extra.items()}
    verdicts = [{"name": stem, **content["qc"]} for stem, content in sorted(qc.items()) if content.get("qc")]
    columns, rows = shown_scores.glance_rows(dict(sorted(qc.items())))
    machine = machine_rows(qc.values())
    return _macros().summary(list(facts.items()), verdicts, shown_scores.ADVICE, columns, rows, machine, len(failures))


def _scores(stem: str, qc: Mapping[str, Any], table: GroupTable) -> str:
    """Render the scores of one image, among those of its group."""
    rows = shown_scores.score_rows(qc, scan_ranges(table, stem))
    columns, labels = shown_scores.label_rows(qc)
    return _macros().scores(
        rows, len(table.rows), labels, columns, shown_scores.second_rows(qc), shown_scores.other_rows(qc)
    )


def _fused(record: Mapping[str, Any]) -> str:
    """Render the scores of fused labels."""
    atlases = [("Atlases", ", ".join(record.get("atlases") or []))]
    rows = [(row["name"], row["after"]) for row in shown_scores.score_rows(record)]
    columns, labels = shown_scores.label_rows(record)
    return _macros().fused(atlases + rows, labels, columns)


def _render_markdown(text: str) -> Markup:
    """Turn a methods text into HTML; whatever HTML it holds is shown as it is written."""
    reader = MarkdownIt("commonmark", {"html": False})
    tokens = reader.parse(text)
    for token in tokens:
        if token.type.startswith("heading"):
            token.tag = "h3"  # below the page's own headings
    return Markup(reader.renderer.render(tokens, reader.options, {}))


def _describe_failure(error: str | Path) -> dict[str, str]:
    """Return the title and the text of an error."""
    if isinstance(error, str):
        return {"title": error.strip().splitlines()[0] if error.strip() else "Unknown error", "text": error}
    try:
        crash = read_crash(error)
    except OSError as unreadable:
        return {"title": f"{Path(error).name}: {unreadable.strerror}", "text": str(error)}
    return {"title": f"{crash.node or Path(error).name}: {crash.cause}", "text": crash.traceback}
