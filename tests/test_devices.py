"""Devices: names that exist, errors for those that do not, and memory that is kept for a while."""

from __future__ import annotations

import platform
import sys
from unittest.mock import Mock

import psutil
import pytest
import SimpleITK as sitk
import torch

from mmln_pipeline.machine.devices import (
    autocast,
    has_fast_bfloat16,
    is_out_of_memory,
    itk_threads,
    kept_memory,
    list_cuda_devices,
    peak_memory_mb,
    resolve_device,
    set_threads,
    threads,
)


def test_cpu_and_auto():
    assert resolve_device("cpu").type == "cpu"
    assert resolve_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")


@pytest.mark.parametrize("name", ["gpu", "cpu:0", "cuda:x", "cuda0", ""])
def test_unknown_names(name):
    with pytest.raises(ValueError, match="expected auto, cpu, cuda or cuda:N"):
        resolve_device(name)


def test_absent_cuda_is_said(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match=r"'cuda:1' asked for, but PyTorch finds no CUDA device"):
        resolve_device("cuda:1")


def test_absent_cuda_number_is_said(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(ValueError, match="there are 1 CUDA devices"):
        resolve_device("cuda:1")


def test_cuda_devices_are_numbered_from_zero(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert [resolve_device(name) for name in ("auto", "cuda", "cuda:1")] == [
        torch.device(name) for name in ("cuda", "cuda", "cuda:1")
    ]
    with pytest.raises(ValueError, match="there are 2 CUDA devices"):
        resolve_device("cuda:2")


@pytest.mark.parametrize(
    ("shown", "count", "found"),
    [
        (None, 2, ["0", "1"]),
        ("2,5", 2, ["2", "5"]),
        ("0,7,1", 1, ["0"]),  # CUDA stops at a number that there is not
        ("MIG-a, MIG-b", 1, ["MIG-a", "MIG-b"]),  # a process sees one part; two processes see two
        ("", 0, []),
    ],
)
def test_cuda_devices_are_those_shown(monkeypatch, shown, count, found):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if shown is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", shown)
    assert list_cuda_devices() == found


def test_reserved_memory_of_a_gpu_is_given_back(monkeypatch):
    empty = Mock()
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "empty_cache", empty)
    with kept_memory():
        empty.assert_not_called()
    empty.assert_called_once()


def test_threads_are_set_where_asked(monkeypatch):
    asked = []
    monkeypatch.setattr(torch, "set_num_threads", asked.append)
    for count in (3, None, 1):
        set_threads(count)
    assert asked == [3, 1]
    with pytest.raises(ValueError, match="at least 1, found 0"):
        set_threads(0)


def test_libraries_get_their_threads_for_the_block_and_their_own_back():
    def count():
        return sitk.ProcessObject.GetGlobalDefaultNumberOfThreads(), torch.get_num_threads()

    itk, own = count()
    with pytest.raises(RuntimeError), itk_threads(itk + 1):
        assert count() == (itk + 1, own)
        raise RuntimeError
    with pytest.raises(RuntimeError), threads(own + 1):
        assert count() == (own + 1, own + 1)
        raise RuntimeError
    assert count() == (itk, own)


@pytest.mark.parametrize(
    ("capabilities", "dtype"),
    [
        ({"avx512_bf16": True, "amx_bf16": False}, torch.float32),  # our own convolution is faster then
        ({"amx_bf16": True}, torch.bfloat16),
        ({"avx512_f": True, "avx512_bf16": False}, torch.float32),
    ],
)
def test_convolutions_run_in_bfloat16_where_the_processor_multiplies_tiles_of_it(monkeypatch, capabilities, dtype):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    with autocast(torch.device("cpu")):
        product = torch.nn.functional.conv3d(torch.rand(1, 1, 4, 4, 4), torch.rand(1, 1, 3, 3, 3))
    assert product.dtype == dtype


def test_of_gpus_only_those_that_compute_in_bfloat16_count(monkeypatch):
    for has_it in (True, False):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda has_it=has_it, *, including_emulation: has_it)
        assert has_fast_bfloat16(torch.device("cuda")) is has_it


@pytest.mark.parametrize(
    ("error", "is_so"),
    [
        (torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."), True),
        (RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be reported later"), True),  # no context
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), True),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), False),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory"), False),
    ],
)
def test_a_gpu_out_of_memory_is_known_by_type_or_words(error, is_so):
    assert is_out_of_memory(error) is is_so


def test_the_peak_of_memory_is_in_mib_on_every_system(monkeypatch):
    in_use, whole = (n / 2**20 for n in (psutil.Process().memory_info().rss, psutil.virtual_memory().total))
    peak = peak_memory_mb()
    assert 0.9 * in_use < peak < whole
    monkeypatch.setattr(sys, "platform", "darwin")  # which counts bytes
    assert peak_memory_mb() == pytest.approx(peak / 2**10, rel=0.1)
    monkeypatch.setitem(sys.modules, "resource", None)  # as on Windows
    monkeypatch.setattr(psutil, "Process", lambda: Mock(memory_info=lambda: Mock(peak_wset=3 * 2**20)))
    assert peak_memory_mb() == 3


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries decide for themselves")
def test_memory_is_kept_within_the_block_and_goes_back_behind_it():
    process, size = psutil.Process(), 2**28
    before = process.memory_info().rss
    with kept_memory():
        block = torch.ones(size // 4)
        del block
        assert process.memory_info().rss - before > size / 2
    assert process.memory_info().rss - before < size / 2
