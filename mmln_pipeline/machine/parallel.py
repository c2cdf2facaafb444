"""Independent pieces of one registration's work, done at the same time."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

Result = TypeVar("Result")


def at_once(*calls: Callable[[], Result]) -> list[Result]:
    """Call functions on as many threads as torch uses.

    Parameters
    ----------
    *calls : callable
        Without arguments. They gain from each other's company where they spend their time in NumPy, SciPy, SimpleITK
        or a compressor, which let other threads run.

    Returns
    -------
    list
        What they return, in their order; the first error, when all have ended, is raised.
    """
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        futures = [pool.submit(call) for call in calls]
    return [future.result() for future in futures]
