"""Options: what a setting takes, its bounds and its help, said once for all who offer it; nothing heavy is imported.

A dataclass holds the settings, its fields made by :func:`option`; command lines, Nipype traits, configuration files and
the documentation read them from there.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import Field, dataclass, field, fields
from numbers import Integral, Real
from pathlib import Path
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Option:
    """What a setting takes, and how to explain it.

    Parameters
    ----------
    help : str
        One sentence for users.
    metavar : str, optional
        Stands for the value in a command's help.
    words : tuple of str
        Words that are values.
    lowest, highest : int, optional
        Whole numbers from and to these are values too.
    above : float, optional
        Numbers above this, but not infinity, are values too.
    free : bool
        Whether any other text is a value (a name or a path), which somebody else checks.
    array : bool
        Whether an array is a value too, which somebody else checks.
    flags : tuple of str
        How it is called on a command line; by default ``--`` and its name with dashes.
    read : callable, optional
        Reads a value from text, raising ValueError; by default :meth:`parse`.
    command : mapping
        Further arguments of `argparse.ArgumentParser.add_argument`.
    """

    help: str
    metavar: str | None = None
    words: tuple[str, ...] = ()
    lowest: int | None = None
    highest: int | None = None
    above: float | None = None
    free: bool = False
    array: bool = False
    flags: tuple[str, ...] = ()
    read: Callable[[str], Any] | None = None
    command: Mapping[str, Any] = field(default_factory=dict)

    @property
    def has_only_words(self) -> bool:
        """Whether every value is one of a few words."""
        has_numbers = self.lowest is not None or self.above is not None
        return bool(self.words) and not (self.free or self.array or has_numbers)

    @property
    def expected(self) -> str:
        """Say what is a value.

        Examples
        --------
        >>> Option(help="", words=("auto",), lowest=0).expected, Option(help="", words=("a", "b", "c")).expected
        ('auto or a whole number from 0', 'a, b or c')
        """
        parts = list(self.words)
        if self.lowest is not None:
            parts.append(f"a whole number from {self.lowest}" + ("" if self.highest is None else f" to {self.highest}"))
        parts += [f"a number above {self.above:g}"] if self.above is not None else []
        parts += ["other text" if parts else "text"] * self.free + ["an array"] * self.array
        return " or ".join(filter(None, [", ".join(parts[:-1]), *parts[-1:]]))

    def accepts(self, value: Any) -> bool:
        """Tell whether something is a value."""
        if isinstance(value, str):
            return self.free or value in self.words or not self.expected
        if isinstance(value, Integral) and not isinstance(value, bool) and self.lowest is not None:
            return self.lowest <= int(value) and (self.highest is None or int(value) <= self.highest)
        if isinstance(value, Real) and not isinstance(value, bool) and self.above is not None:
            return self.above < float(value) < math.inf
        is_other = (self.free and isinstance(value, Path)) or (self.array and hasattr(value, "__array__"))
        return is_other or not self.expected

    def parse(self, text: str) -> Any:
        """Read a value from text.

        Raises
        ------
        ValueError
            If the text is no value.
        """
        value: Any = int(text) if self.lowest is not None and text.isdecimal() else text
        if self.above is not None:
            with suppress(ValueError):
                value = float(text)
        if not self.accepts(value):
            raise ValueError(f"expected {self.expected}, found {text!r}")
        return value


def option(default: Any, **what: Any) -> Any:
    """Return a dataclass field with a default and an :class:`Option` that says what it takes."""
    return field(default=default, metadata={"option": Option(**what)})


def same_option(holder: type, name: str) -> Any:
    """Return a dataclass field like one of another dataclass, default and option."""
    item = find_field(holder, name)
    return field(default=item.default, metadata=item.metadata)


def find_field(holder: type, name: str) -> Field:
    """Return a field of a dataclass by its name."""
    return next(item for item in fields(holder) if item.name == name)


def find_option(holder: type, name: str) -> Option:
    """Return what a field of a dataclass takes."""
    return find_field(holder, name).metadata["option"]


def check_option(holder: type, name: str, value: Any, shown: str = "") -> None:
    """Check a value of a field that was made by :func:`option`; None may stand where it is the default.

    Its name is given by `shown` where users know another.

    Raises
    ------
    ValueError
        If the option does not take it: name, what was expected and what was found.
    """
    item = find_field(holder, name)
    found: Option | None = item.metadata.get("option")
    if found and not found.accepts(value) and not (value is None and item.default is None):
        raise ValueError(f"{shown or name}: expected {found.expected}, found {value!r}")


def check_options(settings: Any) -> None:
    """Check every field of a frozen dataclass, and make whole numbers of NumPy Python's own.

    Raises
    ------
    ValueError
        As :func:`check_option`.
    """
    for item in fields(settings):
        value = getattr(settings, item.name)
        check_option(type(settings), item.name, value)
        if isinstance(value, Integral) and not isinstance(value, int):
            object.__setattr__(settings, item.name, int(value))


def suggest(word: str, known: Iterable[str]) -> str:
    """Return "; did you mean X?" for the known word that is most like a misspelt one, or nothing.

    Examples
    --------
    >>> suggest("--moveing", ["--moving", "--fixed"]), suggest("--xyz", ["--moving"])
    ('; did you mean --moving?', '')
    """
    found = difflib.get_close_matches(word, list(known), n=1)
    return f"; did you mean {found[0]}?" if found else ""
