"""A progress bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

PLAIN_LINES = 20
"""Lines printed over a whole task when the output is no terminal."""


@contextmanager
def progress_bar(label: str, total: int, done: int = 0) -> Iterator[Callable[[str], None]]:
    """Show how far a task of known length has come.

    Parameters
    ----------
    label : str
        What the task is.
    total : int
        Its steps.
    done : int, default=0
        Steps done before.

    Yields
    ------
    callable
        Call it after each step with a short text on the state.
    """
    if not sys.stdout.isatty():
        every, count = max(1, total // PLAIN_LINES), done

        def advance_plain(text: str) -> None:
            nonlocal count
            count += 1
            if count % every == 0 or count == total:
                print(f"{label}: {count}/{total} {text}", flush=True)

        yield advance_plain
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, TextColumn("{task.fields[state]}")) as bar:
        task = bar.add_task(label, total=total, completed=done, state="")
        yield lambda text: bar.update(task, advance=1, state=text)
