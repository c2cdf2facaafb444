"""FireANTs, as a program of its own in its own environment: it wants an older SimpleITK than this package."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from nibabel import Nifti1Image
from numpy.typing import NDArray

from mmln_pipeline.study.methods.base import Method, expect_word

PROGRAM = Path(__file__).with_name("fireants_program.py")
PROBE = "from importlib.metadata import version; version('fireants')"
INSTALL = 'python3 -m venv fireants && fireants/bin/pip install fireants, and python = "fireants/bin/python" in the row'
"""What makes its environment."""


@dataclass(frozen=True)
class FireANTsSettings:
    """Options of FireANTs.

    Parameters
    ----------
    python : str
        Python of the environment that has it, a path that may start from the configuration's folder; empty for the one
        that runs.
    algorithm : {"greedy", "syn"}
    scales : tuple of float
        By what the images are shrunk, coarse to fine.
    iterations : tuple of int
        Most steps at each scale.
    window : int
        Edge of the local cross-correlation's window, voxels.
    step : float
        Of its Adam, in voxels.
    update_smoothing, total_smoothing : float
        Widths in voxels of the Gaussians that smooth each update and the whole field.
    """

    python: str = ""
    algorithm: str = "greedy"
    scales: tuple[float, ...] = (4.0, 2.0, 1.0)
    iterations: tuple[int, ...] = (200, 100, 25)
    window: int = 5
    step: float = 0.5
    update_smoothing: float = 1.0
    total_smoothing: float = 0.5

    def __post_init__(self) -> None:
        expect_word("algorithm", self.algorithm, ("greedy", "syn"))
        if len(self.scales) != len(self.iterations) or not self.scales:
            raise ValueError(
                f"iterations: expected one for each of {len(self.scales)} scales, found {len(self.iterations)}"
            )


class FireANTs(Method):
    """FireANTs, from an identity start."""

    name = "fireants"
    Settings = FireANTsSettings
    settings: FireANTsSettings

    @property
    def python(self) -> str:
        """The Python that has it; links are kept, since a virtual environment is known by its own."""
        if not self.settings.python:
            return sys.executable
        path = self.surroundings.root / self.settings.python
        return str(path.absolute()) if path.exists() else self.settings.python

    def lacking(self) -> str:
        """Say that it is not installed there."""
        try:
            has_it = not subprocess.run([self.python, "-c", PROBE], capture_output=True, timeout=60).returncode
        except OSError:
            return f"no such program: {self.python}: {INSTALL}"
        return "" if has_it else f"fireants not installed: {INSTALL}"

    def displacement(self, fixed: Nifti1Image, moving: Nifti1Image) -> NDArray[Any]:
        """Run the program on the two arrays."""
        from mmln_pipeline.machine.devices import resolve_device

        around = self.surroundings
        options = asdict(self.settings) | {"threads": around.threads, "seed": around.seed}
        options["device"] = str(resolve_device(around.device))
        with TemporaryDirectory(prefix="mmln-") as folder:
            pair, warp = Path(folder) / "pair.npz", Path(folder) / "warp.npy"
            np.savez(pair, fixed=fixed.get_fdata(dtype=np.float32), moving=moving.get_fdata(dtype=np.float32))
            # -I: with the program's folder on the path, this very module would stand for the library of its name
            command = [self.python, "-I", str(PROGRAM), str(pair), str(warp), json.dumps(options)]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode or not warp.is_file():
                last = (done.stderr.strip().splitlines() or ["no message"])[-1]
                raise RuntimeError(f"fireants: {self.python} ended with {done.returncode}: {last}")
            return np.load(warp)
