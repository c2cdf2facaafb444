"""Settings on a command line: arguments made from the fields of a dataclass."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

from mmln_pipeline.machine.options import Option, find_field


def add_options(parser: Any, holder: type, *names: str) -> None:
    """Add an argument for each of some settings.

    Parameters
    ----------
    parser : ArgumentParser or group of one
        Where it leaves out what was not typed (`argparse.SUPPRESS`), the defaults are told and not set.
    holder : type
        A dataclass whose fields were made by `mmln_pipeline.machine.options.option`.
    *names : str
        Its fields.
    """
    for name in names:
        item = find_field(holder, name)
        option: Option = item.metadata["option"]
        flags = option.flags or (f"--{name.replace('_', '-')}",)
        arguments: dict[str, Any] = {"help": option.help}
        if flags[0].startswith("-"):
            arguments |= {"dest": name, "help": _explain(option, item.default)}
        if parser.argument_default is not argparse.SUPPRESS:
            arguments["default"] = item.default
        if isinstance(item.default, bool):
            arguments["action"] = "store_false" if item.default else "store_true"
        elif option.has_only_words:
            arguments["choices"] = option.words
        else:
            arguments |= {"type": reader(option.read or option.parse), "metavar": option.metavar}
        arguments |= option.command
        if arguments.get("action") == "count":
            del arguments["type"], arguments["metavar"]
        parser.add_argument(*flags, **arguments)


def reader(read: Callable[[str], Any]) -> Callable[[str], Any]:
    """Let a function that raises ValueError read an argument: its message is what the user sees."""

    def read_argument(text: str) -> Any:
        try:
            return read(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from error

    return read_argument


def _explain(option: Option, default: Any) -> str:
    """Return the help of an option with its default, where that says something."""
    told = isinstance(default, str | int | float) and not isinstance(default, bool) and "(default:" not in option.help
    return f"{option.help} (default: {default})" if told else option.help
