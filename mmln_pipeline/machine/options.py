"""Options: what a setting takes, its bounds and its help, said once for all who offer it; nothing heavy is imported.

A dataclass holds the settings, its fields made by :func:`option`; command lines, Nipype traits, configuration files and
the documentation read them from there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import Field, dataclass, field, fields
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
    free : bool
        Whether any other text is a value (a name or a path), which somebody else checks.
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
    free: bool = False
    flags: tuple[str, ...] = ()
    read: Callable[[str], Any] | None = None
    command: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_checked(self) -> bool:
        """Whether it is known here what is a value."""
        return bool(self.words or self.lowest is not None) and not self.free

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
        return " or ".join(filter(None, [", ".join(parts[:-1]), *parts[-1:]]))

    def accepts(self, value: Any) -> bool:
        """Tell whether something is a value."""
        if isinstance(value, int) and not isinstance(value, bool) and self.lowest is not None:
            return self.lowest <= value and (self.highest is None or value <= self.highest)
        return not self.is_checked or (isinstance(value, str) and value in self.words)

    def parse(self, text: str) -> Any:
        """Read a value from text.

        Raises
        ------
        ValueError
            If the text is no value.
        """
        value = int(text) if self.lowest is not None and text.isdecimal() else text
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


def check_options(settings: Any) -> None:
    """Check every field of a dataclass that was made by :func:`option`; None may stand where it is the default.

    Raises
    ------
    ValueError
        If a value is none of those that its option takes: name, what was expected and what was found.
    """
    for item in fields(settings):
        value = getattr(settings, item.name)
        if "option" not in item.metadata or (value is None and item.default is None):
            continue
        if not item.metadata["option"].accepts(value):
            raise ValueError(f"{item.name}: expected {item.metadata['option'].expected}, found {value!r}")
