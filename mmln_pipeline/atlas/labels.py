"""Label tables: structure names and the numbers that stand for them in segmentations.

A table maps each structure's name to one or more label numbers; several numbers are merged before
anything is scored (the cerebellar vermis is three labels in Neuromorphometrics' numbering).
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import pandas as pd

NAME_COLUMNS = ("name", "structure")
NUMBER_COLUMNS = ("index", "labels", "neuromorphometrics", "freesurfer")
SYSTEMS = ("neuromorphometrics", "freesurfer")
BUNDLED = {"structures28": "structures28.tsv", "neuromorphometrics": "neuromorphometrics_dseg.tsv"}


@dataclass(frozen=True)
class LabelTable(Mapping[str, tuple[int, ...]]):
    """Map structure names to their label numbers, in the order of the table.

    Parameters
    ----------
    name : str
        What the table is called in messages and in ``metrics.json``.
    structures : dict of str to tuple of int
        The numbers of each structure; more than one number means "merge these".

    Raises
    ------
    ValueError
        If the table is empty, a structure has no number, a number is not positive, or a number
        belongs to two structures.
    """

    name: str
    structures: dict[str, tuple[int, ...]] = field(repr=False)

    def __post_init__(self) -> None:
        if not self.structures:
            raise ValueError(f"Label table '{self.name}' names no structure; give at least one row.")
        owner: dict[int, str] = {}
        for structure, numbers in self.structures.items():
            if not numbers or min(numbers) <= 0:
                raise ValueError(
                    f"Label table '{self.name}': '{structure}' needs positive label numbers, found {numbers}."
                )
            for number in numbers:
                if number in owner:
                    raise ValueError(
                        f"Label table '{self.name}': number {number} belongs to both "
                        f"'{owner[number]}' and '{structure}'; keep it in one row."
                    )
                owner[number] = structure

    def __getitem__(self, structure: str) -> tuple[int, ...]:
        return self.structures[structure]

    def __iter__(self) -> Iterator[str]:
        return iter(self.structures)

    def __len__(self) -> int:
        return len(self.structures)

    @property
    def numbers(self) -> tuple[int, ...]:
        """All label numbers of the table, ascending."""
        return tuple(sorted(number for numbers in self.structures.values() for number in numbers))


def structures28(system: str = "neuromorphometrics") -> LabelTable:
    """Return the 28 subcortical and cerebellar structures that the scores are quoted over.

    Parameters
    ----------
    system : {"neuromorphometrics", "freesurfer"}, default="neuromorphometrics"
        Whose label numbers to use. FreeSurfer's aseg has no vermis, so 27 structures remain.

    Returns
    -------
    LabelTable

    Raises
    ------
    ValueError
        If the system is unknown.
    """
    if system not in SYSTEMS:
        raise ValueError(f"Unknown label system '{system}'; expected one of {', '.join(SYSTEMS)}.")
    return _read(bundled_path("structures28"), f"structures28:{system}", system)


def load_label_table(source: str | Path) -> LabelTable:
    """Load a label table from a TSV file or by the name of a bundled one.

    A table has a column ``name`` (or ``structure``) and one with the numbers: ``index`` as in a
    BIDS ``dseg.tsv``, or ``labels``, where commas join numbers to be merged; ``n/a`` or an empty
    cell leaves the row out.

    Parameters
    ----------
    source : str or Path
        A path, or ``structures28``, ``structures28:freesurfer``, ``neuromorphometrics``.

    Returns
    -------
    LabelTable

    Raises
    ------
    FileNotFoundError
        If the source is neither a file nor a bundled name.
    ValueError
        If the file is not a label table.
    """
    text = str(source)
    name, _, system = text.partition(":")
    if name == "structures28":
        return structures28(system or "neuromorphometrics")
    if text in BUNDLED:
        return _read(bundled_path(text), text)
    path = Path(source)
    if not path.is_file():
        raise FileNotFoundError(
            f"Label table '{source}' is not a file nor a bundled table; give a TSV with the columns "
            f"'name' and 'index', or one of {', '.join(BUNDLED)}, structures28:freesurfer."
        )
    return _read(path, path.name)


def bundled_path(name: str) -> Path:
    """Return the path of a bundled table, by its name in `BUNDLED`."""
    return Path(str(resources.files("mmln_pipeline.atlas") / "tables" / BUNDLED[name]))


def find_dseg_table(dseg: Path) -> Path | None:
    """Find the table that belongs to a label image: of the same name, or the closest that BIDS lets it inherit.

    Parameters
    ----------
    dseg : Path
        Label image.

    Returns
    -------
    Path or None
        ``NAME.tsv`` beside ``NAME.nii.gz``; else the ``*dseg.tsv`` whose entities are all among the image's,
        most entities first, beside it or in a folder above it in the same dataset.
    """
    stem = dseg.name.removesuffix(".gz").removesuffix(".nii")
    if dseg.with_name(f"{stem}.tsv").is_file():
        return dseg.with_name(f"{stem}.tsv")
    parts = set(stem.split("_")[:-1])
    root = next((folder for folder in dseg.parents if (folder / "dataset_description.json").is_file()), dseg.parent)
    for folder in dseg.parents:
        entities = {path: set(path.stem.split("_")[:-1]) for path in sorted(folder.glob("*dseg.tsv"))}
        fitting = [path for path, own in entities.items() if own <= parts and path.stem.split("_")[-1] == "dseg"]
        if fitting:
            return max(fitting, key=lambda path: len(entities[path]))
        if folder == root:
            break
    return None


def load_dseg_table(path: str | Path) -> pd.DataFrame:
    """Load a BIDS table of labels as it is, all its columns kept.

    Parameters
    ----------
    path : str or Path
        TSV with the columns ``index`` and ``name``, one row a label.

    Returns
    -------
    DataFrame
        ``index`` as whole numbers, ``name`` as text.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If a column is missing, a number is not whole or stands twice.
    """
    import pandas as pd  # half a second that a registration can spare

    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"label table {path}: no such file")
    try:
        table = pd.read_csv(path, sep="\t", encoding="utf-8-sig", dtype={"name": str}, na_values=["n/a"])
    except ValueError as error:
        raise ValueError(f"label table {path}: expected tab-separated text, found {error}") from error
    if not {"index", "name"} <= set(table.columns):
        raise ValueError(f"label table {path}: expected columns index and name, found {', '.join(table.columns)}")
    numbers = pd.to_numeric(table["index"], errors="coerce")
    if not (numbers == numbers.round()).all():
        raise ValueError(f"label table {path}: expected whole numbers as index, found {table['index'].tolist()[:5]}")
    if numbers.duplicated().any():
        raise ValueError(
            f"label table {path}: expected each index once, found {int(numbers[numbers.duplicated()].iloc[0])} twice"
        )
    return table.assign(index=numbers.astype(int), name=table["name"].fillna("n/a"))


def measure_volumes(labels: np.ndarray, voxel_mm3: float, names: Mapping[int, str] | None = None) -> pd.DataFrame:
    """Measure the volume of each label.

    Parameters
    ----------
    labels : array of int, shape (I, J, K)
        Label image; 0 is the background.
    voxel_mm3 : float
        Volume of a voxel, mm^3.
    names : mapping of int to str, optional
        Names by number; a label that is named and not there has the volume 0.

    Returns
    -------
    DataFrame
        Columns ``index``, ``name`` (``n/a`` where unknown), ``voxels`` and ``volume_mm3``, by ascending index.

    Examples
    --------
    >>> measure_volumes(np.array([0, 2, 2, 5]), 0.5, {2: "Two", 3: "Three"}).to_dict("list")
    {'index': [2, 3, 5], 'name': ['Two', 'Three', 'n/a'], 'voxels': [2, 0, 1], 'volume_mm3': [1.0, 0.0, 0.5]}
    """
    import pandas as pd

    names = names or {}
    found, counts = np.unique(labels, return_counts=True)
    voxels = dict.fromkeys(names, 0) | dict(zip(found.tolist(), counts.tolist(), strict=True))
    numbers = sorted(set(voxels) - {0})
    return pd.DataFrame(
        {
            "index": numbers,
            "name": [names.get(number, "n/a") for number in numbers],
            "voxels": [voxels[number] for number in numbers],
            "volume_mm3": [round(voxels[number] * voxel_mm3, 4) for number in numbers],
        }
    )


def _read(path: Path, name: str, column: str | None = None) -> LabelTable:
    """Read one TSV; ``column`` picks the number column, else the first known one is taken."""
    try:
        with open(path, newline="", encoding="utf-8-sig") as stream:
            reader = csv.DictReader(stream, delimiter="\t")
            rows, columns = list(reader), list(reader.fieldnames or [])
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"Label table '{path}' cannot be read as a TSV text file: {error}.") from error
    name_column = next((c for c in NAME_COLUMNS if c in columns), None)
    number_column = column or next((c for c in NUMBER_COLUMNS if c in columns), None)
    if name_column is None or number_column is None:
        raise ValueError(
            f"Label table '{path}' needs tab-separated columns 'name' and 'index', found {columns or 'none'}."
        )
    structures: dict[str, tuple[int, ...]] = {}
    for line, row in enumerate(rows, start=2):
        numbers = _parse_numbers(row[number_column], f"'{path}', line {line}, column '{number_column}'")
        if numbers and numbers != (0,):  # 0 is the background, never scored
            key = row[name_column]
            structures[key] = structures.get(key, ()) + numbers
    return LabelTable(name, structures)


def _parse_numbers(cell: str | None, where: str) -> tuple[int, ...]:
    if cell is None or cell.strip() in ("", "n/a"):
        return ()
    try:
        return tuple(int(part) for part in cell.split(","))
    except ValueError:
        raise ValueError(f"Label table {where}: expected whole numbers joined by commas, found '{cell}'.") from None
