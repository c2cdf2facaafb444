"""Show the stages of a registration: bars when standard error is a terminal, plain lines otherwise."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from mmln_pipeline.registration.result import Progress as StageCallback


@contextmanager
def show_stages() -> Iterator[StageCallback]:
    """Yield a callback ``(stage, done, total)`` that shows what is going on, on standard error.

    Yields
    ------
    callable
        See `mmln_pipeline.registration.result.Progress`.
    """
    if not sys.stderr.isatty():
        yield _print_line
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

    columns = TextColumn("{task.description:<10}"), BarColumn(), TimeElapsedColumn()
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        tasks: dict[str, TaskID] = {}

        def update(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = bar.add_task(stage, total=total)
            bar.update(tasks[stage], completed=done, total=total)

        yield update


def _print_line(stage: str, done: int, total: int) -> None:
    """Say once that a stage begins."""
    if done == 0:
        print(f"mmln: {stage} ...", file=sys.stderr, flush=True)
