"""The package's own passes in C (`*.c` beside the modules that call them): built with it, opened here by ctypes.

Where there was no compiler, and for tensors on a GPU, the callers do the same by torch's operators.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

_FEWEST_VOXELS = 2**15
"""Of what is smaller, sharing the work costs more than it saves."""
_SLABS = 4
"""What is larger is always cut into so many, so that the number of threads changes no bit of what comes out."""


def is_usable(*tensors: Tensor) -> bool:
    """Return whether there are such passes, and for these tensors: float32 on a CPU."""
    return _library() is not None and all(t.device.type == "cpu" and t.dtype == torch.float32 for t in tensors)


def call(name: str, planes: int, *arguments: Any, scattered: Tensor | None = None) -> list[float]:
    """Call a function of the library for all planes of its output, by slabs, shared by as many threads as torch uses.

    Parameters
    ----------
    name : str
    planes : int
        The function's last two arguments say which of them a call shall work on.
    *arguments : Tensor, int, sequence of int, None or ctypes value
        What comes before; tensors are contiguous.
    scattered : Tensor, optional
        The last argument before the planes, which is added to beyond those: each slab has a copy of its own.

    Returns
    -------
    list of float
        What the call of each slab returned.
    """
    function = getattr(_library(), name)
    voxels = max(argument.numel() for argument in arguments if isinstance(argument, Tensor))
    slabs = min(_SLABS if voxels >= _FEWEST_VOXELS else 1, planes)
    threads = min(torch.get_num_threads(), slabs)
    copies = [] if scattered is None else [scattered, *(torch.zeros_like(scattered) for _ in range(slabs - 1))]
    shared = [_as_c(argument) for argument in arguments]
    calls = [
        (*shared, *map(_as_c, copies[n : n + 1]), *map(_as_c, (planes * n // slabs, planes * (n + 1) // slabs)))
        for n in range(slabs)
    ]
    if threads == 1:
        results = [function(*each) for each in calls]
    else:
        results = list(_pool(os.getpid(), threads).map(lambda each: function(*each), calls))
    for copy in copies[1:]:
        copies[0].add_(copy)
    return results


def _as_c(argument: Any) -> Any:
    """Return an argument as C takes it: a tensor's first number, None as no tensor, whole numbers, and rows of them."""
    if argument is None or isinstance(argument, Tensor):
        return ctypes.c_void_p(None if argument is None else argument.data_ptr())
    if isinstance(argument, int):
        return ctypes.c_ssize_t(argument)
    if isinstance(argument, float):
        return ctypes.c_float(argument)
    if isinstance(argument, Sequence):
        return (ctypes.c_ssize_t * len(argument))(*argument)
    return argument


@cache
def _pool(process: int, threads: int) -> ThreadPoolExecutor:  # a forked process has none of its parent's threads
    return ThreadPoolExecutor(threads)


@cache
def _library() -> ctypes.CDLL | None:
    """Return the library built for what this CPU has, None where none was built."""
    wanted = ["_native"]
    if torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512"):
        wanted.insert(0, "_native_avx2")
    for name in wanted:
        spec = find_spec(f"mmln_pipeline.machine.{name}")
        if spec is not None and spec.origin is not None:
            library = ctypes.CDLL(spec.origin)
            library.roughness.restype = library.log_volumes.restype = library.correlate.restype = ctypes.c_double
            return library
    return None
