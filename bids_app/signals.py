"""Being stopped from outside: Ctrl-C, a scheduler's or a container's SIGTERM, a terminal that was closed."""

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

GRACE_S = 5.0
"""How long the main thread may take to notice; a filter of ITK that is running in it does not, until it ends."""
_RECEIVED: list[int] = []
"""Signals that asked this run to stop."""
STOPPED = {"SIGINT": "interrupted", "SIGTERM": "terminated", "SIGHUP": "its terminal was closed"}


@contextmanager
def stop_on_signals() -> Iterator[None]:
    """Turn the signals that ask a program to stop into `KeyboardInterrupt`, whose argument is the signal's number.

    Where the main thread is busy in native code for longer than `GRACE_S`, the process ends at once: files are
    written by Python, so none is cut off. Signals that whoever started this process has set to be ignored stay so.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in map(_number, STOPPED) if number is not None}
    before = {number: handler for number, handler in before.items() if handler not in (signal.SIG_IGN, None)}
    for number in before:
        signal.signal(number, _stop)
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    is_done = threading.Event()
    wakeup = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    threading.Thread(target=_insist, args=(reader, set(before), is_done), name="insist", daemon=True).start()
    try:
        yield
    finally:
        is_done.set()
        _RECEIVED.clear()
        signal.set_wakeup_fd(wakeup)
        for number, handler in before.items():
            signal.signal(number, handler)
        os.close(writer)  # which ends the thread


@contextmanager
def stop_later() -> Iterator[None]:
    """Put a stop off until the block is done; processes started in the block never see Ctrl-C, which is ours to answer.

    A parent that left in the middle of starting a process would leave it without its orders, and it would say so.
    """
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "pthread_sigmask"):
        yield
        return
    received: list[int] = []
    numbers = [number for number in map(_number, STOPPED) if number and signal.getsignal(number) is _stop]
    for number in numbers:
        signal.signal(number, lambda number, _: received.append(number))
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # which children inherit; threads still get it
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        for number in numbers:
            signal.signal(number, _stop)
    if received:
        _stop(received[0], None)


def heed() -> None:
    """Stop now where a stop was asked for and got lost: native code may turn `KeyboardInterrupt` into another error."""
    if _RECEIVED:
        raise KeyboardInterrupt(_RECEIVED[0])


def say_stopped(number: int = signal.SIGINT) -> int:
    """Say why the program stops, and return its exit code.

    Parameters
    ----------
    number : int
        The signal.

    Returns
    -------
    int
        128 and the signal's number, as a shell has it.
    """
    why = STOPPED.get(signal.Signals(number).name, "stopped")
    print(f"mmln-bids: {why}; the same command goes on from here", file=sys.stderr, flush=True)
    return 128 + number


def _number(name: str) -> int | None:
    """Return a signal's number, None where the system does not know it."""
    return getattr(signal, name, None)


def _stop(number: int, frame: object) -> None:
    _RECEIVED.append(number)
    raise KeyboardInterrupt(number)


def _insist(reader: int, numbers: set[int], is_done: threading.Event) -> None:
    """Wait for a signal, and end the process if the main thread does not."""
    with open(reader, "rb", buffering=0) as signals:
        while received := signals.read(1):
            if received[0] in numbers and not is_done.wait(GRACE_S):
                os._exit(say_stopped(received[0]))
