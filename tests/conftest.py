"""Fixtures and defaults that all tests share: seeds, threads and the folder of real brains."""

import os
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from tiny_bids import command, finished, place

matplotlib.use("Agg")

__all__ = ["command", "finished", "place"]  # fixtures of the tests of the BIDS App

DATA_ROOT = Path(os.environ.get("MMLN_TEST_DATA", Path(__file__).resolve().parents[2] / "shared" / "data")).absolute()


@pytest.fixture(scope="session", autouse=True)
def _few_threads():
    """Keep torch to the threads that OMP_NUM_THREADS grants (default: 1); small volumes need no more."""
    import torch

    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))


@pytest.fixture(autouse=True)
def _seeded():
    """Seed NumPy's and torch's global generators before each test."""
    import torch

    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture
def rng():
    """Return a NumPy generator with a fixed seed."""
    return np.random.default_rng(0)


@pytest.fixture(scope="session")
def data_root():
    """Return the folder of real BIDS datasets, or skip the test with its name where there is none."""
    if not DATA_ROOT.is_dir():
        pytest.skip(f"real data absent: {DATA_ROOT} is no folder (set MMLN_TEST_DATA)")
    return DATA_ROOT


def pytest_terminal_summary(terminalreporter):
    """Close with a line that says whether real brains took part."""
    found = f"read from {DATA_ROOT}" if DATA_ROOT.is_dir() else f"absent ({DATA_ROOT}; set MMLN_TEST_DATA)"
    terminalreporter.write_line(f"real data: {found}")
