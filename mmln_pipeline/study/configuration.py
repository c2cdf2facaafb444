"""The study's configuration: rows, test sets, training data and figures, all checked before any work."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmln_pipeline.machine.toml import read_toml, to_dataclass
from mmln_pipeline.study.methods import METHODS, Budget, LearnedMethod, Method, Surroundings, make_method
from mmln_pipeline.training.config import DataConfig, DatasetConfig, find_table, find_tables, parse_data

TABLES = (1, 2, 3, 4)
"""The paper's: all methods, another collection, with and without the core, with and without the 2-D branch."""


@dataclass(frozen=True)
class TestSet:
    """Scans that are registered to one another.

    Parameters
    ----------
    name : str
        As results and tables call it.
    path : str
        BIDS dataset, relative to the configuration file or absolute.
    labels : str
        Derivative folder inside `path` whose ``*_dseg.nii.gz`` mirror the images.
    masks : str, optional
        Derivative folder inside `path` whose ``*_mask.nii.gz`` mirror the images, for heads; heads without are stripped
        by the embedded template.
    split, split_table : str, optional
        As of `mmln_pipeline.training.config.DatasetConfig`.
    label_table : str
        Structures that are scored: a bundled name, or a TSV relative to the configuration file.
    cortex : bool
        Score the parcels of the cortex too, which are 100 to 207 in Neuromorphometrics' numbering.
    atlases : int, optional
        Instead of the study's.
    """

    __test__ = False  # nothing for pytest

    name: str
    path: str
    labels: str = ""
    masks: str = ""
    split: str = ""
    split_table: str = ""
    label_table: str = "structures28"
    cortex: bool = False
    atlases: int | None = None

    def __post_init__(self) -> None:
        if not self.labels:
            raise ValueError(f"sets.labels: expected the folder of the labels of {self.name!r}, found none")
        _expect_name("sets.name", self.name)

    @property
    def dataset(self) -> DatasetConfig:
        """The same as training data are named."""
        return DatasetConfig(self.path, self.labels, self.split, self.split_table)


@dataclass(frozen=True)
class Row:
    """One row of the tables: a method with its options.

    Parameters
    ----------
    name : str
        As tables call it.
    method : str
        See `mmln_pipeline.study.methods.METHODS`.
    options : mapping
        The method's own.
    seeds : tuple of int
        A learned row is trained with each; scores of a pair are averaged over them.
    tables : tuple of int
        In which of the paper's tables it stands.
    sets : tuple of str, optional
        The test sets it takes part in; all by default.
    pairs : int, optional
        Only so many pairs of each set, for methods that take an hour a pair.
    halvings : int, optional
        Register on a grid halved more often than the study's; its field is scored on the study's grid all the same.
    """

    name: str
    method: str
    options: Mapping[str, Any] = field(default_factory=dict)
    seeds: tuple[int, ...] = (1,)
    tables: tuple[int, ...] = (1, 2)
    sets: tuple[str, ...] = ()
    pairs: int | None = None
    halvings: int | None = None

    def __post_init__(self) -> None:
        _expect_name("rows.name", self.name)
        if self.method not in METHODS:
            known = ", ".join(METHODS)
            raise ValueError(f"rows: unknown method {self.method!r} of {self.name!r}; known are {known}")
        if unknown := set(self.tables) - set(TABLES):
            raise ValueError(f"rows.tables: expected numbers from 1 to 4, found {min(unknown)} of {self.name!r}")
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"rows.seeds: expected different numbers, found {list(self.seeds)} of {self.name!r}")
        if self.pairs is not None and self.pairs < 1:
            raise ValueError(f"rows.pairs: expected at least 1, found {self.pairs} of {self.name!r}")

    def make(self, surroundings: Surroundings) -> Method:
        """Make the method; raise ValueError naming the row where an option is wrong."""
        try:
            return make_method(self.method, self.options, surroundings)
        except ValueError as error:
            raise ValueError(f"rows: {self.name!r}: {error}") from error

    @property
    def is_learned(self) -> bool:
        """Whether the method can be trained."""
        return issubclass(METHODS[self.method], LearnedMethod)


@dataclass(frozen=True)
class Figures:
    """Which rows the figures show, by their names; those left out are chosen by the tables.

    Parameters
    ----------
    moved : tuple of str
        Figure 3: images and outlines after registration; six of table 1 by default.
    structures : tuple of str
        Figure 4: boxes of Dice; the first row of table 3 and the reference by default.
    flow : tuple of str
        Figure 5: grids; the rows of table 3 by default.
    radar : tuple of str
        Figure 6: scores of each atlas; the rows of table 4 by default.
    """

    moved: tuple[str, ...] = ()
    structures: tuple[str, ...] = ()
    flow: tuple[str, ...] = ()
    radar: tuple[str, ...] = ()


@dataclass(frozen=True)
class StudyConfig:
    """A whole study.

    Parameters
    ----------
    name : str
        As the tables' captions call it.
    reference : str
        The row that the others are tested against.
    rows : tuple of Row
    sets : tuple of TestSet
        The first is that of tables 1, 3 and 4; table 2 has the others.
    output_dir : str
        Folder of results, tables, figures and trained weights, relative to the configuration file.
    prepared : str
        Folder of the prepared test scans, relative to the configuration file.
    seed : int
        Draws the atlases.
    atlases : int
        Scans of a set, drawn at random, that are fixed images; every other person's scan moves onto each.
    pairs : int, optional
        Only so many pairs of each set.
    halvings : int
        Times that the grid of 1 mm is halved, for a quick run.
    threads : int
        Processor threads of each registration.
    device : str
        "cpu", "auto", "cuda" or "cuda:N".
    data : DataConfig
        What rows that learn here are trained on; its template is that of the test scans, too.
    budget : Budget
        How long each of them learns.
    figures : Figures
    """

    name: str
    reference: str
    rows: tuple[Row, ...]
    sets: tuple[TestSet, ...]
    output_dir: str = "study"
    prepared: str = "study-scans"
    seed: int = 1
    atlases: int = 5
    pairs: int | None = None
    halvings: int = 0
    threads: int = 1
    device: str = "cpu"
    data: DataConfig = field(default_factory=DataConfig)
    budget: Budget | None = None
    figures: Figures = field(default_factory=Figures)

    def __post_init__(self) -> None:
        for name, low in (("atlases", 1), ("halvings", 0), ("threads", 1), ("pairs", 1)):
            value = getattr(self, name)
            if value is not None and value < low:
                raise ValueError(f"{name}: expected at least {low}, found {value}")
        for what, items in (("rows", self.rows), ("sets", self.sets)):
            _expect_different(what, [item.name for item in items])
        names = [row.name for row in self.rows]
        chosen = {"reference": (self.reference,)}
        chosen |= {f"figures.{name}": shown for name, shown in vars(self.figures).items()}
        for where, wanted in chosen.items():
            _expect_known(where, wanted, names, "rows")
        for row in self.rows:
            _expect_known(f"rows.sets of {row.name!r}", row.sets, [item.name for item in self.sets], "sets")
            if row.halvings is not None and row.halvings < self.halvings:
                raise ValueError(
                    f"rows.halvings: expected at least the study's {self.halvings}, "
                    f"found {row.halvings} of {row.name!r}"
                )

    def row(self, name: str) -> Row:
        """Return a row by its name."""
        return next(row for row in self.rows if row.name == name)

    def test_set(self, name: str) -> TestSet:
        """Return a test set by its name."""
        return next(item for item in self.sets if item.name == name)

    def rows_of(self, table: int) -> tuple[Row, ...]:
        """Return the rows of one of the paper's tables."""
        return tuple(row for row in self.rows if table in row.tables)

    def sets_of(self, row: Row) -> tuple[TestSet, ...]:
        """Return the test sets that a row takes part in: those of its tables, unless it names some."""
        first = self.sets[:1] if set(row.tables) - {2} else ()
        others = self.sets[1:] if 2 in row.tables else ()
        return tuple(item for item in (*first, *others) if not row.sets or item.name in row.sets)


def load_study(path: str | Path) -> StudyConfig:
    """Read a study's configuration, and make each row's method once, so that wrong options are told.

    Parameters
    ----------
    path : str or Path
        TOML file.

    Returns
    -------
    StudyConfig

    Raises
    ------
    FileNotFoundError
        When the file is missing.
    ValueError
        When it is not TOML, or a table, key, method or option is unknown or has a value that cannot be.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"configuration: no such file: {path}")
    try:
        study = _parse(read_toml(path))
        for row in study.rows:
            row.make(Surroundings(path.resolve().parent))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return study


def _parse(content: dict[str, Any]) -> StudyConfig:
    """Make a configuration from plain values."""
    parts: dict[str, Any] = {"data": parse_data(find_table(content, "data"))}
    for key, kind in (("rows", Row), ("sets", TestSet)):
        parts[key] = tuple(to_dataclass(kind, entry, key) for entry in find_tables(content, key))
    parts["figures"] = to_dataclass(Figures, find_table(content, "figures"), "figures")
    if "budget" in content:
        parts["budget"] = to_dataclass(Budget, find_table(content, "budget"), "budget")
    return to_dataclass(StudyConfig, content | parts)


def _expect_name(where: str, name: str) -> None:
    """Refuse a name that no file could bear."""
    if not slug(name):
        raise ValueError(f"{where}: expected letters or numbers, found {name!r}")


def _expect_different(what: str, names: Iterable[str]) -> None:
    """Refuse no names, and names that are the same or would share a file."""
    seen: dict[str, str] = {}
    for name in names:
        if slug(name) in seen:
            raise ValueError(f"{what}: expected different names, found {seen[slug(name)]!r} and {name!r}")
        seen[slug(name)] = name
    if not seen:
        raise ValueError(f"{what}: expected at least one [[{what}]] table, found none")


def _expect_known(where: str, wanted: Iterable[str], names: list[str], what: str) -> None:
    """Refuse a name that nothing bears."""
    for name in wanted:
        if name not in names:
            raise ValueError(f"{where}: no {what} named {name!r}; there are {', '.join(names)}")


def slug(name: str) -> str:
    """Return a name as files bear it.

    Examples
    --------
    >>> slug("SyN (cross-correlation)"), slug("MMLN, no 2-D branch")
    ('syn-cross-correlation', 'mmln-no-2-d-branch')
    """
    return "-".join(re.findall(r"[a-z0-9]+", name.lower()))
