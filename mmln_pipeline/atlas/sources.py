"""Where templates come from: one source with its mask and labels, or a table of several atlases."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd

from mmln_pipeline.atlas.templates import IMAGE_SUFFIXES, Template, load_template

FUSED = "fused"
"""Name of the labels that several atlases vote for."""
COLUMNS = ("name", "image", "mask", "dseg", "dseg_tsv")
"""Columns of a table of atlases; the first two must be there."""


@dataclass(frozen=True)
class TemplateSource:
    """Where a template, its brain mask and its labels come from.

    Parameters
    ----------
    image : str
        Name or path, as in `load_template`.
    mask, dseg, dseg_table : Path or None, default=None
        Brain mask, labels and label table in place of what belongs to the image.
    name, dseg_name : str or None, default=None
        What space and labels are called in place of what the files' names say.
    """

    image: str
    mask: Path | None = None
    dseg: Path | None = None
    dseg_table: Path | None = None
    name: str | None = None
    dseg_name: str | None = None

    def load(self) -> Template:
        """Load the template; see `load_template`."""
        template = load_template(self.image, self.dseg, self.mask, self.dseg_table)
        has_labels = template.dseg is not None
        return replace(
            template,
            name=self.name or template.name,
            dseg_name=(self.dseg_name or template.dseg_name) if has_labels else None,
        )


def read_template_table(path: str | os.PathLike[str]) -> list[TemplateSource]:
    """Read a table of several atlases.

    Parameters
    ----------
    path : path-like
        TSV with a row an atlas: ``name`` (letters and digits) and ``image`` (NIfTI); where wanted ``mask``,
        ``dseg`` and ``dseg_tsv``. Relative paths start at the table's folder; an empty cell or ``n/a`` is none.

    Returns
    -------
    list of TemplateSource
        In the order of the table; the atlas's name is that of its labels too.

    Raises
    ------
    FileNotFoundError
        If the table, or a file that it names, does not exist.
    ValueError
        If columns are missing or unknown, there is no row, or a name is no BIDS label, reserved or used twice.
    """
    path = Path(path)
    rows = _read_rows(path)
    sources = [_to_source(path, number, row) for number, row in enumerate(rows, start=2)]
    names = [str(source.name) for source in sources]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice:
        raise ValueError(f"template table {path}: expected each name once, found {twice!r} {names.count(twice)} times")
    return sources


def _read_rows(path: Path) -> list[dict[str, str]]:
    """Read the rows of a table of atlases and check its columns."""
    if not path.is_file():
        raise FileNotFoundError(f"template table {path}: no such file")
    try:
        table = pd.read_csv(path, sep="\t", dtype=str, keep_default_na=False, encoding="utf-8-sig")
    except ValueError as error:  # pandas' own errors and those of the encoding
        raise ValueError(f"template table {path}: expected tab-separated text, found {error}") from error
    found = ", ".join(map(str, table.columns))
    wrong = {*COLUMNS[:2]} - set(table.columns) or set(table.columns) - {*COLUMNS}
    if wrong:
        raise ValueError(
            f"template table {path}: expected the tab-separated columns name and image and at most mask, dseg and "
            f"dseg_tsv, found {found} (look at: {', '.join(sorted(map(str, wrong)))})"
        )
    if table.empty:
        raise ValueError(f"template table {path}: expected a row an atlas, found none")
    return table.to_dict("records")


def _to_source(table: Path, line: int, row: dict[str, str]) -> TemplateSource:
    """Turn a row into a source, its paths made absolute."""
    name = row["name"].strip()
    where = f"template table {table}, line {line}"
    if not re.fullmatch(r"[0-9a-zA-Z]+", name) or name == FUSED:
        raise ValueError(
            f"{where}: expected a name of letters and digits only, as BIDS has it, other than {FUSED!r} (the name of "
            f"the fused labels), found {name!r}"
        )
    paths: dict[str, Path] = {}
    for column in COLUMNS[1:]:
        text = row.get(column, "").strip()
        if text in ("", "n/a"):
            continue
        paths[column] = Path(os.path.abspath(table.parent / Path(text).expanduser()))  # links keep their names
        if not paths[column].is_file():
            raise FileNotFoundError(f"{where} ({name}): {column} {paths[column]}: no such file")
    if "image" not in paths or not paths["image"].name.endswith(IMAGE_SUFFIXES):
        raise ValueError(f"{where} ({name}): expected an image (.nii, .nii.gz), found {row['image']!r}")
    if "dseg_tsv" in paths and "dseg" not in paths:
        raise ValueError(f"{where} ({name}): expected a dseg for the dseg_tsv, found none")
    return TemplateSource(
        str(paths["image"]), paths.get("mask"), paths.get("dseg"), paths.get("dseg_tsv"), name, dseg_name=name
    )
