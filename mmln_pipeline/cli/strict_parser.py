"""A parser that lets no slip pass: an option given twice, or misspelt, is named before anything else."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any

from mmln_pipeline.machine.options import suggest


class StrictParser(argparse.ArgumentParser):
    """Parser that refuses options given twice, and says of a misspelt one what was meant."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.given: set[str] = set()
        self.register("action", None, _StoreOnce)
        self.register("action", "store", _StoreOnce)

    def parse_known_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:  # type: ignore[override]
        """Parse as argparse does, after looking for options and commands that nobody knows."""
        args = sys.argv[1:] if args is None else args
        self.given = set()
        self._check_names(args)
        return super().parse_known_args(args, namespace)

    def _check_names(self, args: Sequence[str]) -> None:
        """Name the first option or command that is not known, with the one that is most like it."""
        known = self._option_string_actions
        commands = next((a.choices for a in self._actions if isinstance(a, argparse._SubParsersAction)), None)
        for word in args:
            name = word.split("=")[0]
            if commands is not None and not word.startswith("-"):
                if word not in commands:
                    self.error(f"unknown command {word}{suggest(word, commands)} (commands: {', '.join(commands)})")
                return  # what follows is the command's own
            if word == "--":
                return
            if word.startswith("--") and not any(option.startswith(name) for option in known):
                self.error(f"unknown option {name}{suggest(name, known)}")


class _StoreOnce(argparse.Action):
    """Keep what was given; the second time is refused, since it would silently replace the first."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        if option_string is not None:
            if self.dest in parser.given:
                takes = "give all its values at once" if self.nargs in ("+", "*") else "it takes one value"
                parser.error(f"{'/'.join(self.option_strings)}: given twice; {takes}")
            parser.given.add(self.dest)
        setattr(namespace, self.dest, values)
