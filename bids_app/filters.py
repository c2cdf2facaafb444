"""Filter files: what PyBIDS is asked for, and which file and entry are wrong."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bids.layout import BIDSLayout, Query

from mmln_pipeline.bids_app.arguments import UsageError
from mmln_pipeline.bids_app.indexing import DERIVATIVES, File, find_files, known_entities, read_entities
from mmln_pipeline.machine.options import suggest

IMAGES = [".nii.gz", ".nii"]
BASE_FILTERS: dict[str, dict[str, Any]] = {
    "t1w": {"datatype": "anat", "suffix": "T1w", "part": ["mag", None], "extension": IMAGES},
    "mask": {"suffix": "mask", "desc": "brain", "hemi": None, "label": ["brain", None], "extension": IMAGES},
    "dseg": {"suffix": "dseg", "extension": IMAGES},
    "apply_to": {},
}
NO_ENTITIES = {"return_type", "target", "scope", "regex_search", "absolute_paths", "invalid_filters"}
"""Arguments of `BIDSLayout.get` that are no filters."""
WORDS: dict[Any, Query] = {None: Query.NONE, "*": Query.ANY, "Query.NONE": Query.NONE, "Query.ANY": Query.ANY}
"""What null and "*" stand for; fMRIPrep's files spell it out too."""


@dataclass(frozen=True)
class Filters:
    """What is looked for, by kind (`t1w`, `mask`, `dseg`), or chosen from what `--apply-to` finds (`apply_to`).

    Attributes
    ----------
    path : Path or None
        The filter file.
    queries : mapping of str to mapping
        PyBIDS filters of each kind: the base and, over it, the file's.
    given : mapping of str to mapping
        The file's own entries, as they are written there.
    """

    path: Path | None
    queries: Mapping[str, dict[str, Any]]
    given: Mapping[str, dict[str, Any]]

    def find(self, layout: BIDSLayout, kind: str, **more) -> list[File]:
        """Ask a layout for one kind of file.

        Parameters
        ----------
        layout : BIDSLayout
            The index.
        kind : str
            `t1w`, `mask` or `dseg`.
        **more
            Further filters, which go before the file's.

        Returns
        -------
        list of File
            Sorted by file name.

        Raises
        ------
        UsageError
            PyBIDS refuses an entry.
        """
        try:
            return find_files(layout, **(self.queries[kind] | more))
        except (ValueError, TypeError) as error:
            cause = str(error).splitlines()[0]
            raise UsageError(f'--bids-filter-file {self.path}: "{kind}": {cause}') from error

    def find_all(self, layout: BIDSLayout, kind: str) -> list[File]:
        """Ask a layout for all files of one kind: those that the filter file chooses, and the others."""
        found = self.find(layout, kind) + Filters(None, BASE_FILTERS, {}).find(layout, kind)
        return list({file.path: file for file in found}.values())

    def allows(self, kind: str, name: str) -> bool:
        """Tell whether a derivative has the entities that are asked of a kind, by its path below the dataset's root."""
        query = self.queries[kind]
        found = read_entities(name, known_entities(DERIVATIVES)) if query else {}
        return all(_is_met(found.get(entity), wanted) for entity, wanted in query.items())

    def without(self, kind: str, entity: str) -> "Filters":
        """Return the same filters with one entry of the file left out."""
        base = {key: value for key, value in BASE_FILTERS[kind].items() if key == entity}
        query = {key: value for key, value in self.queries[kind].items() if key != entity} | base
        return Filters(self.path, {**self.queries, kind: query}, self.given)


def read_filters(path: Path | None) -> Filters:
    """Read a filter file over the base filters; null and "*" become PyBIDS's NONE and ANY.

    Parameters
    ----------
    path : Path or None
        JSON, `{"t1w": {ENTITY: VALUE}}`; kinds that other programs use are passed over.

    Returns
    -------
    Filters

    Raises
    ------
    UsageError
        The file cannot be read, has none of our kinds, or an entry's value is no filter.
    """
    if path is None:
        return Filters(None, BASE_FILTERS, {})
    name = f"--bids-filter-file {path}"
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise UsageError(f"{name}: {error.strerror}") from error
    except ValueError as error:
        raise UsageError(f"{name}: not valid JSON: {error}") from error
    if not isinstance(content, dict) or not all(isinstance(entry, dict) for entry in content.values()):
        raise UsageError(f'{name}: expected {{"t1w": {{ENTITY: VALUE}}}}')
    given = {kind: entry for kind, entry in content.items() if kind in BASE_FILTERS}
    if not given:
        raise UsageError(f"{name}: expected one of {', '.join(BASE_FILTERS)}, found {', '.join(content) or 'nothing'}")
    for kind, own in given.items():
        for entry in sorted(set(own) & NO_ENTITIES):
            raise UsageError(f'{name}: "{kind}": "{entry}": expected an entity, found an argument of PyBIDS')
    known = {entity.name for entity in known_entities(DERIVATIVES)}
    for entry in sorted(set(given.get("apply_to", {})) - known):
        raise UsageError(f'{name}: "apply_to": "{entry}": no entity that PyBIDS knows{suggest(entry, known)}')
    if given.get("t1w", {}).get("suffix", "T1w") != "T1w":
        raise UsageError(f'{name}: "t1w": "suffix": expected "T1w", found {json.dumps(given["t1w"]["suffix"])}')
    queries = {
        kind: base | {entity: _read_value(value, f'{name}: "{kind}": "{entity}"') for entity, value in own.items()}
        for kind, base, own in ((kind, base, given.get(kind, {})) for kind, base in BASE_FILTERS.items())
    }
    return Filters(path, queries, given)


def _is_met(found: object, wanted: object) -> bool:
    """Tell whether an entity's value, or None, is what a filter wants.

    Examples
    --------
    >>> _is_met("rest", ["rest", Query.NONE]), _is_met(None, Query.ANY)
    (True, False)
    """
    if isinstance(wanted, list):
        return any(_is_met(found, one) for one in wanted)
    if isinstance(wanted, Query):
        return (found is not None) == (wanted == Query.ANY)
    return found == wanted


def _read_value(value: object, name: str) -> object:
    """Turn a JSON value into a PyBIDS filter."""
    if value == []:
        raise UsageError(f"{name}: expected what to take, found an empty list, which PyBIDS takes for everything")
    if isinstance(value, list):
        return [_read_value(item, name) for item in value]
    if isinstance(value, dict):
        raise UsageError(f"{name}: expected text, a number, null or a list of these, found {json.dumps(value)}")
    return WORDS.get(value, value)
