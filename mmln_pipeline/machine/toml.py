"""TOML files, and dataclasses from their tables; nothing heavy is imported."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from types import UnionType
from typing import Any, Union, get_args, get_origin

import dacite

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

WORDS: dict[Any, str] = {
    **{bool: "true or false", int: "a whole number", float: "a number"},
    **{str: "text", Path: "text", tuple: "a list", Mapping: "a table"},
}
"""Types, in the words of TOML."""


def read_toml(path: Path) -> dict[str, Any]:
    """Read a TOML file.

    Parameters
    ----------
    path : Path

    Returns
    -------
    dict

    Raises
    ------
    ValueError
        If it is not TOML.
    """
    return parse_toml(path.read_bytes())


def parse_toml(content: bytes) -> dict[str, Any]:
    """Parse what a TOML file holds, in UTF-8 with or without a byte-order mark.

    Raises
    ------
    ValueError
        If it is not TOML.
    """
    try:
        return tomllib.loads(content.decode("utf-8-sig"))
    except ValueError as error:  # of decoding, or tomllib.TOMLDecodeError
        raise ValueError(f"not valid TOML: {error}") from error


def to_dataclass(kind: type, table: Mapping[str, Any], where: str = "") -> Any:
    """Make a dataclass from a table; every value must have the type of its field.

    Parameters
    ----------
    kind : type
        The dataclass. Paths are given as text, tuples as lists; tables inside may be dataclasses already.
    table : mapping
        Values by the names of fields.
    where : str, optional
        Name of the table, for messages.

    Returns
    -------
    object
        Of `kind`.

    Raises
    ------
    ValueError
        If the table has an unknown key, lacks one, or holds a value of another type or out of range.
    """
    known = [item.name for item in fields(kind)]
    unknown = sorted(set(table) - set(known))
    if unknown:
        raise ValueError(f"{where or 'top level'}: unknown key {unknown[0]!r}; known are {', '.join(sorted(known))}")
    try:
        return dacite.from_dict(kind, _with_tuples(table), dacite.Config(type_hooks={Path: _to_path}))
    except dacite.WrongTypeError as error:
        name = ".".join(filter(None, [where, error.field_path]))
        raise ValueError(f"{name}: expected {_describe(error.field_type)}, found {error.value!r}") from error
    except dacite.MissingValueError as error:
        raise ValueError(f"{where or 'top level'}: expected the key {error.field_path!r}, found none") from error


def _with_tuples(value: Any) -> Any:
    """Turn the lists of a table, at any depth, into tuples, as frozen dataclasses hold them."""
    if isinstance(value, Mapping):
        return {key: _with_tuples(item) for key, item in value.items()}
    return tuple(map(_with_tuples, value)) if isinstance(value, list | tuple) else value


def _to_path(value: Any) -> Any:
    return Path(value) if isinstance(value, str) else value


def _describe(kind: Any) -> str:
    """Say what a type is in the words of TOML.

    Examples
    --------
    >>> _describe(bool), _describe(tuple[str, ...]), _describe(int | str), _describe(Path | None)
    ('true or false', 'a list', 'a whole number or text', 'text')
    """
    parts = get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)
    return " or ".join(dict.fromkeys(WORDS[get_origin(part) or part] for part in parts if part is not type(None)))
