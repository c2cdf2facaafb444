"""Devices: names that exist, errors for those that do not, and memory that is kept for a while."""

from __future__ import annotations

import platform

import psutil
import pytest
import torch

from mmln_pipeline.machine.devices import autocast, kept_memory, resolve_device, set_threads


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


def test_threads_and_autocast():
    with pytest.raises(ValueError, match="at least 1, found 0"):
        set_threads(0)
    with autocast(torch.device("cpu")):
        product = torch.nn.functional.conv3d(torch.rand(1, 1, 4, 4, 4), torch.rand(1, 1, 3, 3, 3))
    assert product.dtype in (torch.bfloat16, torch.float32)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries decide for themselves")
def test_memory_is_kept_within_the_block_and_goes_back_behind_it():
    process, size = psutil.Process(), 2**28
    before = process.memory_info().rss
    with kept_memory():
        block = torch.ones(size // 4)
        del block
        assert process.memory_info().rss - before > size / 2
    assert process.memory_info().rss - before < size / 2
