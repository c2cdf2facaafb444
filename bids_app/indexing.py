"""PyBIDS's index of one dataset: made of the names below its root, and kept between runs while they stay the same."""

import hashlib
import json
import os
import re
import sqlite3
import tempfile
import warnings
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple
from weakref import WeakKeyDictionary

import bids
from bids.layout import BIDSFile, BIDSLayout, Config, Entity, Tag, parse_file_entities

from mmln_pipeline import __version__
from mmln_pipeline.bids_app.arguments import UsageError
from mmln_pipeline.bids_app.work_folder import one_at_a_time
from mmln_pipeline.machine.files import why_unreadable

OTHER_FOLDERS = re.compile("func|dwi|fmap|perf|pet|eeg|meg|ieeg|beh|motion|nirs|micr|mrs")
"""Folders in which no anatomical image lies."""
ANATOMICAL = re.compile("(sub|ses)-[^_]+|anat")
"""Folders on the way to anatomical images."""
LISTED = (".nii.gz", ".nii", ".mgz", ".mgh", ".img", ".mnc", ".nrrd")
"""What is listed: images that can be read, and masks and labels that cannot, so as to say so."""
RAW, DERIVATIVES = ("bids",), ("bids", "derivatives")
"""PyBIDS's lists of entities for the two kinds of dataset."""
_FILE = "layout_index.sqlite"


_KNOWN: WeakKeyDictionary[BIDSLayout, dict[Path, dict]] = WeakKeyDictionary()
"""Entities of the files of each index, read once: that takes the most of a query's time."""


class File(NamedTuple):
    """One file of a dataset, and its entities by PyBIDS's names."""

    path: Path
    entities: Mapping


@dataclass(frozen=True)
class Listing:
    """What lies in the anatomical folders of a dataset.

    Attributes
    ----------
    root : Path
        The dataset.
    names : tuple of str
        Images, whether their content is there or not, as POSIX paths relative to the root; sorted.
    closed : mapping of str to str
        Folders that cannot be entered, and why.
    strays : mapping of str to str
        Names that cannot be used, and why.
    passed : tuple of str
        Folders that were not entered, since they are of no subject or hold no anatomical images.
    """

    root: Path
    names: tuple[str, ...]
    closed: Mapping[str, str]
    strays: Mapping[str, str]
    passed: tuple[str, ...] = ()

    def passed_over(self, subjects: Sequence[str] = ()) -> Iterator[str]:
        """Yield images in folders that were not entered, if their names are of (these) subjects."""
        is_subject = _subjects(subjects)
        for folder in self.passed:
            with suppress(OSError):
                for name in sorted(os.listdir(self.root / folder)):
                    if is_subject.fullmatch(name) and name.isprintable() and name.lower().endswith(LISTED):
                        yield f"{folder}/{name}"

    def of_subject(self, label: str) -> list[str]:
        """Return the names of one subject's files."""
        return self._by_subject.get(label, [])

    @cached_property
    def _by_subject(self) -> dict[str, list[str]]:
        """Names by labels, as `is_of_subject` tells them; of a name `sub-A_B` both A and A_B are."""
        found = defaultdict(list)
        for name in self.names:
            words = name.split("/")[0].removeprefix("sub-").split("_")
            for count in range(1, len(words) + 1):
                found["_".join(words[:count])].append(name)
        return found


def is_of_subject(name: str, label: str) -> bool:
    """Tell whether a path relative to a dataset's root is one subject's.

    Examples
    --------
    >>> is_of_subject("sub-01/anat", "01"), is_of_subject("sub-01_mask.nii", "01"), is_of_subject("sub-012", "01")
    (True, True, False)
    """
    return re.match(rf"sub-{re.escape(label)}([/_]|$)", name) is not None


def list_files(root: Path, subjects: Sequence[str] = ()) -> Listing:
    """List the images of a dataset where anatomical images, masks and labels may lie.

    Linked folders are entered, unless the link leads to a folder above it.

    Parameters
    ----------
    root : Path
        The dataset.
    subjects : sequence of str, default ()
        Labels of the subjects to look at; empty: all.

    Returns
    -------
    Listing

    Raises
    ------
    UsageError
        The root cannot be entered.
    """
    is_subject = _subjects(subjects)
    names, closed, strays, passed = [], {}, {}, []

    def close(error: OSError) -> None:
        if Path(error.filename) == root:
            raise UsageError(f"{root}: cannot be entered: {error.strerror}") from error
        closed[_below(root, Path(error.filename))] = f"cannot be entered ({error.strerror})"

    for folder, folders, files in os.walk(root, followlinks=True, onerror=close):
        is_root = Path(folder) == root
        entered = [name for name in folders if is_subject.fullmatch(name) or not is_root]
        passed += [_below(root, Path(folder, name)) for name in folders if _is_passed(name, is_root)]
        folders[:] = sorted(name for name in entered if _is_entered(folder, name))
        for name in files:
            path = Path(folder, name)
            if is_root and not is_subject.fullmatch(name):
                continue
            if not name.isprintable():  # no database or terminal takes it
                strays[ascii(_below(root, path))[1:-1]] = "expected a name of printable characters (UTF-8)"
            elif name.lower().endswith(LISTED) and not name.startswith("."):
                names.append(_below(root, path))
            elif ANATOMICAL.fullmatch(name) and path.is_symlink():  # a folder, if it were there
                closed[_below(root, path)] = str(why_unreadable(path))
    return Listing(root, tuple(sorted(names)), closed, strays, tuple(sorted(passed)))


def _subjects(labels: Sequence[str]) -> re.Pattern:
    """Return what the names of (these) subjects' files and folders are like."""
    wanted = "|".join(map(re.escape, labels)) or "[^_]+"
    return re.compile(rf"sub-({wanted})(_.*)?")


def _is_passed(name: str, is_root: bool) -> bool:
    return not name.startswith(("sub-", ".")) if is_root else OTHER_FOLDERS.fullmatch(name) is not None


def _is_entered(folder: str, name: str) -> bool:
    path = os.path.join(folder, name)
    is_loop = os.path.islink(path) and Path(os.path.realpath(folder)).is_relative_to(os.path.realpath(path))
    return not (name.startswith(".") or OTHER_FOLDERS.fullmatch(name) or is_loop)


def _below(root: Path, path: Path) -> str:
    return path.relative_to(root).as_posix()


def read_entities(name: str, entities: Sequence[Entity]) -> dict:
    """Read the entities of a file from its path below the root of its dataset.

    PyBIDS reads them from the absolute path, in which a folder above may look like one (bids-standard/pybids#1270).

    Parameters
    ----------
    name : str
        Path relative to the root.
    entities : sequence of Entity
        As from `known_entities`.

    Returns
    -------
    dict
        Values by PyBIDS's names of the entities.

    Examples
    --------
    >>> read_entities("sub-01/anat/sub-01_run-2_T1w.nii.gz", known_entities(RAW))["run"]
    2
    """
    return parse_file_entities(f"/{name}", entities=list(entities))


def known_entities(kinds: Sequence[str]) -> list[Entity]:
    """Return the entities that PyBIDS knows in a dataset of such a kind: `RAW` or `DERIVATIVES`."""
    return [entity for kind in kinds for entity in Config.load(kind).entities.values()]


def find_files(layout: BIDSLayout, **query) -> list[File]:
    """Ask an index for files; their entities are read as `read_entities` does.

    Parameters
    ----------
    layout : BIDSLayout
        The index.
    **query
        What `BIDSLayout.get` takes.

    Returns
    -------
    list of File
        Sorted by file name.
    """
    paths = sorted((Path(found.path) for found in layout.get(**query)), key=lambda path: path.name)
    known = _KNOWN.setdefault(layout, {})
    if any(path not in known for path in paths):
        root, entities = Path(layout.root), entities_of(layout)
        known |= {path: read_entities(_below(root, path), entities) for path in paths if path not in known}
    return [File(path, known[path]) for path in paths]


def entities_of(layout: BIDSLayout) -> list[Entity]:
    """Return the entities that an index knows."""
    return [entity for kind in layout.config.values() for entity in kind.entities.values()]


def open_index(listing: Listing, kinds: Sequence[str], database_dir: Path | None = None) -> BIDSLayout:
    """Index the files of a dataset, or open the index that an earlier run kept of just these.

    Each dataset has a folder of its own for its index. An index is built aside and moved there whole, so that runs that
    start at once do no harm; the first one builds, the others wait for it.

    Parameters
    ----------
    listing : Listing
        What to index.
    kinds : sequence of str
        `RAW` or `DERIVATIVES`.
    database_dir : Path or None, default None
        Where indices are kept; None: in memory.

    Returns
    -------
    BIDSLayout

    Raises
    ------
    UsageError
        PyBIDS cannot read the dataset's description, or the folder cannot be written.
    """
    if database_dir is None:
        return _open(listing, kinds)
    folder = database_dir / _folder_name(listing.root, kinds)
    try:
        if not _is_of(folder / _FILE, listing):
            folder.mkdir(parents=True, exist_ok=True)
            with one_at_a_time(folder):
                if not _is_of(folder / _FILE, listing):  # nor did another run build it meanwhile
                    _build(listing, kinds, folder)
        return _open(listing, kinds, folder)
    except OSError as error:
        raise UsageError(f"--bids-database-dir {database_dir}: cannot be used: {error.strerror or error}") from error


def _build(listing: Listing, kinds: Sequence[str], folder: Path) -> None:
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        layout = _open(listing, kinds, Path(scratch))
        layout.session.close()
        layout.connection_manager.engine.dispose()
        os.replace(Path(scratch) / _FILE, folder / _FILE)


def _open(listing: Listing, kinds: Sequence[str], database: Path | None = None) -> BIDSLayout:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return BIDSLayout(
                str(listing.root),
                validate=False,
                config=list(kinds),
                database_path=database and str(database),
                indexer=lambda layout: _fill(layout, listing),
            )
        except (ValueError, TypeError, AttributeError, KeyError, IsADirectoryError, PermissionError) as error:
            description = listing.root / "dataset_description.json"
            raise UsageError(f"{description}: PyBIDS cannot read it: {type(error).__name__}: {error}") from error


def _fill(layout: BIDSLayout, listing: Listing) -> None:
    """Put the files and their entities into the tables of an empty layout."""
    entities = {name: entity for kind in layout.config.values() for name, entity in kind.entities.items()}
    files, tags, known = [], [], _KNOWN.setdefault(layout, {})
    for name in listing.names:
        file = BIDSFile(str(listing.root / name))
        files.append(file)
        known[listing.root / name] = read_entities(name, list(entities.values()))
        for entity, value in known[listing.root / name].items():
            tags.append(Tag(file, entities[entity], value, "int" if isinstance(value, int) else "str"))
    layout.session.bulk_save_objects(files)
    layout.session.bulk_save_objects(tags)
    layout.session.commit()


def _folder_name(root: Path, kinds: Sequence[str]) -> str:
    """Name the folder of a dataset's index, by its root and what reads and writes it."""
    content = json.dumps([__version__, bids.__version__, str(root), list(kinds)])
    return f"{root.name}-{hashlib.sha256(content.encode()).hexdigest()[:16]}"


def _is_of(path: Path, listing: Listing) -> bool:
    """Tell whether a kept index can be read, and is of these files."""
    if not path.is_file():
        return False
    try:
        with closing(sqlite3.connect(path)) as database:
            is_sound = database.execute("PRAGMA quick_check").fetchone() == ("ok",)
            found = {name for (name,) in database.execute("SELECT path FROM files")}
    except sqlite3.Error:
        return False
    return is_sound and found == {str(listing.root / name) for name in listing.names}
