"""How far a run of many steps has come and what remains of it, by what steps of each kind took."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping

UNKNOWN_S = 0.2
"""Taken for a step of which nothing is known, s."""
TRUST_S = 30.0
"""The guesses weigh as much as so many seconds of steps that ended: one short step says little of a machine."""


class Forecast:
    """Weigh steps by their seconds: guessed at first, then those of steps of the same kind in this run.

    Guesses are for one machine; how much slower or faster this one is, is learned with the first steps that end. Steps
    that run side by side are counted by how many seconds of work a second has brought so far.

    Parameters
    ----------
    counts : mapping of str to int
        Steps of each kind in the whole run.
    guesses : mapping of str to float
        Seconds of a step of each kind, where they are known.
    clock : callable, default `time.monotonic`
        Gives the time, s.
    """

    def __init__(
        self, counts: Mapping[str, int], guesses: Mapping[str, float], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.counts = Counter(counts)
        self._guesses, self._clock = guesses, clock
        self._ended: Counter[str] = Counter()
        self._running: dict[str, tuple[str, float]] = {}
        self._took: dict[str, list[float]] = defaultdict(list)
        self._began: float | None = None

    def start(self, step: str, kind: str) -> None:
        """Note that a step begins.

        Parameters
        ----------
        step : str
            Its own name, as it is shown.
        kind : str
            What it has in common with steps of other subjects.
        """
        now = self._clock()
        self._began = now if self._began is None else self._began
        self._running[step] = kind, now

    def end(self, step: str, kind: str, is_known: bool = False) -> float | None:
        """Note that a step ended.

        Parameters
        ----------
        step, kind : str
            As it was started; one that was not began before this run, or was left out.
        is_known : bool, default False
            Whether it was done before, and only looked up: its time says nothing of others.

        Returns
        -------
        float or None
            Seconds that it took; None where it did not run.
        """
        _, began = self._running.pop(step, (kind, None))
        self._ended[kind] += 1
        if began is None or is_known:
            return None
        took = self._clock() - began
        self._took[kind].append(took)
        return took

    @property
    def running(self) -> list[str]:
        """Steps that run, the one that began first in front."""
        return list(self._running)

    @property
    def done(self) -> int:
        """How many steps have ended."""
        return self._ended.total()

    @property
    def share(self) -> float:
        """How much of the run's work is done, 0 to 1."""
        worked, left = self._worked(), self._left()
        return worked / (worked + left) if worked + left > 0 else float(self.done >= self.counts.total())

    @property
    def seconds_left(self) -> float | None:
        """What remains, s; None before the first step has ended."""
        if self._began is None or not self._took:
            return None
        passed = self._clock() - self._began
        return self._left() * passed / self._worked() if self._worked() > 0 else None

    def _worked(self) -> float:
        """Seconds of work so far, side by side ones added."""
        now = self._clock()
        ended = sum(sum(took) for took in self._took.values())
        return ended + sum(now - began for _, began in self._running.values())

    def _left(self) -> float:
        """Seconds of work that remain."""
        now, running = self._clock(), Counter(kind for kind, _ in self._running.values())
        waiting = self.counts - self._ended - running
        begun = sum(max(self._expect(kind) - (now - began), 0.0) for kind, began in self._running.values())
        return begun + sum(count * self._expect(kind) for kind, count in waiting.items())

    def _expect(self, kind: str) -> float:
        """Return the seconds that a step of a kind will take."""
        took = self._took.get(kind)
        return sum(took) / len(took) if took else self._guess(kind) * self._pace()

    def _guess(self, kind: str) -> float:
        return self._guesses.get(kind, UNKNOWN_S)

    def _pace(self) -> float:
        """Return how much longer steps took than was guessed."""
        took = sum(sum(own) for own in self._took.values())
        guessed = sum(len(own) * self._guess(kind) for kind, own in self._took.items())
        return (took + TRUST_S) / (guessed + TRUST_S)


def write_duration(seconds: float) -> str:
    """Write a duration in the unit that suits it.

    Examples
    --------
    >>> [write_duration(seconds) for seconds in (42.3, 90, 4000, 200_000)]
    ['42 s', '2 min', '1.1 h', '2.3 days']
    """
    for unit, size, digits in (("days", 86400, 1), ("h", 3600, 1), ("min", 60, 0)):
        if seconds >= size:
            return f"{seconds / size:.{digits}f} {unit}"
    return f"{seconds:.0f} s"
