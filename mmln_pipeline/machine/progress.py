"""A progress bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from rich.console import RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from mmln_pipeline.machine.forecast import Forecast, write_duration

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


@contextmanager
def show_forecast(label: str, forecast: Forecast) -> Iterator[Callable[[str], None]]:
    """Show the steps of a run as they end: a bar that names what runs and what remains, or a line a step.

    Parameters
    ----------
    label : str
        What the run is.
    forecast : Forecast
        Its steps; whoever runs them tells it.

    Yields
    ------
    callable
        Call it after each step that is worth a line, with the step and what it took.
    """
    if not sys.stdout.isatty():
        yield lambda text: print(f"{label}: {describe_progress(forecast, text)}", flush=True)
        return
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:.0f}%"))
    with _ForecastBar(*columns, TextColumn("{task.fields[state]}")) as bar:
        bar.forecast, bar.label = forecast, label
        bar.add_task(label, total=1.0, state="")
        yield lambda text: bar.refresh()


class _ForecastBar(Progress):
    """A bar that asks the forecast each time that it is drawn, so that it moves within a step."""

    forecast: Forecast | None = None
    label = ""

    def get_renderables(self) -> Iterable[RenderableType]:
        if self.forecast is not None and self.tasks:
            state = " · ".join(filter(None, (_name_running(self.forecast), _say_left(self.forecast))))
            self.update(self.tasks[0].id, completed=self.forecast.share, state=state)
        yield from super().get_renderables()


def describe_progress(forecast: Forecast, text: str) -> str:
    """Say in one line how far a run has come.

    Parameters
    ----------
    forecast : Forecast
        The run.
    text : str
        What has just ended.

    Returns
    -------
    str
        Such as "12/26 sub-01 registration 63.2 s, about 2 min left".
    """
    return ", ".join(filter(None, (f"{forecast.done}/{forecast.counts.total()} {text}", _say_left(forecast))))


def _name_running(forecast: Forecast) -> str:
    """Name the step that runs, and say how many run beside it."""
    first, *others = forecast.running or [""]
    return first + (f" and {len(others)} more" if others else "")


def _say_left(forecast: Forecast) -> str:
    """Say what remains, where it is known."""
    left = forecast.seconds_left
    return "" if left is None or forecast.done == forecast.counts.total() else f"about {write_duration(left)} left"
