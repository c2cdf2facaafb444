"""TOML files, and dataclasses from their tables; nothing heavy is imported."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

import dacite

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

WORDS: dict[Any, tuple[str, str]] = {
    **{bool: ("true or false", "truths"), int: ("a whole number", "whole numbers"), float: ("a number", "numbers")},
    **{str: ("text", "text"), Path: ("a path", "paths")},
}
"""Types in the words of TOML: one, and several."""


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
        return dacite.from_dict(kind, _with_tuples(table), dacite.Config(type_hooks=HOOKS))
    except dacite.WrongTypeError as error:  # its own value may be what became of ours
        key = str(error.field_path).partition(".")[0]
        name, expected = ".".join(filter(None, [where, key])), _describe(get_type_hints(kind)[key])
        raise ValueError(f"{name}: expected {expected}, found {table[key]!r}") from error
    except dacite.MissingValueError as error:
        raise ValueError(f"{where or 'top level'}: expected the key {error.field_path!r}, found none") from error


def _with_tuples(value: Any) -> Any:
    """Turn the lists of a table, at any depth, into tuples, as frozen dataclasses hold them."""
    if isinstance(value, Mapping):
        return {key: _with_tuples(item) for key, item in value.items()}
    return tuple(map(_with_tuples, value)) if isinstance(value, list | tuple) else value


def _to_path(value: Any) -> Any:
    if value == "":  # would be the current folder
        raise dacite.WrongTypeError(Path, value)
    return Path(value) if isinstance(value, str) else value


def _to_number(value: Any) -> Any:
    if isinstance(value, bool):  # for Python, true is 1
        raise dacite.WrongTypeError(float, value)
    return value


HOOKS: dict[Any, Callable[[Any], Any]] = {Path: _to_path, int: _to_number, float: _to_number}


def _describe(kind: Any, several: bool = False) -> str:
    """Say what a type is in the words of TOML.

    Examples
    --------
    >>> _describe(bool), _describe(tuple[str, ...]), _describe(int | str), _describe(Path | None)
    ('true or false', 'a list of text', 'a whole number or text', 'a path')
    >>> _describe(tuple[int, int, int]), _describe(Mapping[str, Path])
    ('a list of 3 whole numbers', 'a table of paths')
    """
    origin, parts = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        return " or ".join(_describe(part) for part in parts if part is not type(None))
    if origin is tuple:
        count = "" if parts[-1] is ... else f"{len(parts)} "
        return f"a list of {count}{_describe(parts[0], several=True)}"
    if origin is Mapping:
        return f"a table of {_describe(parts[1], several=True)}"
    return WORDS[kind][several] if kind in WORDS else "a table"
