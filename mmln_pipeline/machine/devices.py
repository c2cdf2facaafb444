"""Where the network runs: device names, threads, memory, and the precision that pays on each device."""

from __future__ import annotations

import ctypes
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import SimpleITK as sitk
import torch

_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8
"""Parameters of glibc's ``mallopt``: from how much free memory on it returns some, how many blocks it maps singly, how
many stores threads have of their own."""


def resolve_device(name: str = "auto") -> torch.device:
    """Turn a device option into a device that exists here.

    Parameters
    ----------
    name : str, default="auto"
        ``auto`` (CUDA when there is one), ``cpu``, ``cuda`` or ``cuda:N``.

    Returns
    -------
    torch.device

    Raises
    ------
    ValueError
        When the name is none of these, or CUDA or its device N is absent.
    """
    if check_device(name) == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    kind, _, index = name.partition(":")
    if kind == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if count == 0:
            raise ValueError(f"device: {name!r} asked for, but PyTorch finds no CUDA device; use --device cpu or auto")
        if index and int(index) >= count:
            raise ValueError(f"device: {name!r} asked for, but there are {count} CUDA devices, numbered from 0")
    return torch.device(name)


def list_cuda_devices() -> list[str]:
    """List the CUDA devices that this process may use, as `CUDA_VISIBLE_DEVICES` names them.

    Returns
    -------
    list of str
        Numbers, or the names (`GPU-...`, `MIG-...`) that stand in that variable; a process to whom one of them alone
        is shown finds it as ``cuda:0``. A process finds one part of a divided (MIG) GPU at most, several processes
        several.
    """
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    shown = os.environ.get("CUDA_VISIBLE_DEVICES")
    if shown is None or not count:
        return [str(number) for number in range(count)]
    named = list(dict.fromkeys(name.strip() for name in shown.split(",")))
    return named if named[0].startswith("MIG-") else named[:count]


def check_device(name: str) -> str:
    """Return the name of a device, whether there is such a one here or not; raise ValueError where it is none."""
    kind, _, index = name.partition(":")
    if name != "auto" and (kind not in ("cpu", "cuda") or (index and (kind == "cpu" or not index.isdigit()))):
        raise ValueError(f"device: expected auto, cpu, cuda or cuda:N, found {name!r}")
    return name


def set_threads(count: int | None) -> None:
    """Let PyTorch's CPU operators use this many threads; None leaves the library's choice."""
    if count is not None:
        if count < 1:
            raise ValueError(f"threads: expected at least 1, found {count}")
        torch.set_num_threads(count)


@contextmanager
def itk_threads(count: int) -> Iterator[None]:
    """Run SimpleITK on this many threads for the block; it heeds neither PyTorch's number nor OpenMP's."""
    previous = sitk.ProcessObject.GetGlobalDefaultNumberOfThreads()
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(count)
    try:
        yield
    finally:
        sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(previous)


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Run SimpleITK, PyTorch's CPU operators and what `parallel.at_once` calls on this many threads for the block."""
    previous = torch.get_num_threads()
    set_threads(count)
    try:
        with itk_threads(count):
            yield
    finally:
        torch.set_num_threads(previous)


@contextmanager
def kept_memory() -> Iterator[None]:
    """Let the C library keep freed memory during the block instead of handing it back to the system at once.

    Fields of many megabytes come and go all the time, and the system zeroes each page that it hands out: on a CPU that
    takes as long as much of the arithmetic. Does nothing where the C library is not glibc. In the end, memory of a GPU
    that PyTorch holds in reserve is given back too.
    """
    libc = ctypes.CDLL(None) if os.name == "posix" else None
    if libc is not None and not hasattr(libc, "mallopt"):  # not glibc
        libc = None
    if libc is not None:
        libc.mallopt(_TRIM_THRESHOLD, 2**31 - 1)
        libc.mallopt(_MMAP_MAX, 0)
        libc.mallopt(_ARENA_MAX, 1)  # what one thread gives back, the next one takes
    try:
        yield
    finally:
        if libc is not None:
            libc.mallopt(_TRIM_THRESHOLD, 2**26)  # what glibc itself arrives at when large blocks are freed
            libc.mallopt(_MMAP_MAX, 2**16)  # its default
            libc.malloc_trim(0)
        if torch.cuda.is_initialized():  # other processes may compute on the same GPU
            torch.cuda.empty_cache()


def has_fast_bfloat16(device: torch.device) -> bool:
    """Tell whether bfloat16 convolutions are faster than float32 ones on a device."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


def autocast(device: torch.device) -> torch.autocast:
    """Return the context in which the network's convolutions run on a device.

    Parameters
    ----------
    device : torch.device

    Returns
    -------
    torch.autocast
        bfloat16 on a GPU that has it, and on a CPU that multiplies whole tiles of it (AMX), else float32: with AVX-512
        alone, `mmln_pipeline.network.convolution` is faster in float32. Fields stay float32 in either.
    """
    pays = device.type == "cuda" or bool(torch.cpu.get_capabilities().get("amx_bf16"))
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=pays and has_fast_bfloat16(device))


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether an error says that a GPU has too little memory.

    PyTorch's allocator says so by the error's type; CUDA, where there is no room for a context, and its libraries,
    where there is none for their own work, in words.
    """
    words = ("CUDA error: out of memory", "STATUS_ALLOC_FAILED")
    return isinstance(error, torch.cuda.OutOfMemoryError) or any(part in str(error) for part in words)


def peak_memory_mb() -> float:
    """Return the most memory that this process has had in use so far, MiB."""
    if sys.platform == "linux":  # where `getrusage` lets a new process begin with the peak of the one that started it
        status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
        if found := re.search(r"^VmHWM:\s+(\d+) kB$", status, re.MULTILINE):
            return int(found[1]) / 2**10
    try:
        import resource  # POSIX only
    except ImportError:
        return psutil.Process().memory_info().peak_wset / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)  # macOS counts bytes
