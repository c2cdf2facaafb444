"""What a compared method is: options, what it needs, where its weights come from, and how it registers a pair."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import numpy as np
from nibabel import Nifti1Image
from numpy.typing import NDArray

from mmln_pipeline.space.grids import check_same_grid

if TYPE_CHECKING:
    from mmln_pipeline.training.config import DataConfig

EXTRA = "pip install 'mmln-pipeline[compare]'"
"""What installs all that the methods need."""
Displacement = NDArray[np.float32]
"""Shape (3, I, J, K): voxels of the pair's grid, components in array-axis order, fixed grid to moving."""


@dataclass(frozen=True)
class Surroundings:
    """Where a method runs; the same for all methods of a study.

    Parameters
    ----------
    root : Path
        Folder that the relative paths of options start from.
    device : str, default="auto"
        "auto", "cpu", "cuda" or "cuda:N", for the methods that know more than the CPU.
    threads : int, optional
        Threads on the CPU; None: each library's own choice.
    seed : int, default=0
        Seed of everything random.
    """

    root: Path = Path()
    device: str = "auto"
    threads: int | None = None
    seed: int = 0


@dataclass(frozen=True)
class Budget:
    """How long a network may learn: whichever ends first of gradient updates and seconds; at least one is given."""

    steps: int | None = None
    seconds: float | None = None

    def __post_init__(self) -> None:
        if self.steps is None and self.seconds is None:
            raise ValueError("budget: expected steps or seconds, found neither")
        for name, value in (("steps", self.steps), ("seconds", self.seconds)):
            if value is not None and not value > 0:
                raise ValueError(f"budget.{name}: expected a number above 0, found {value}")


@dataclass(frozen=True)
class NoSettings:
    """The options of a method that has none."""


class Method(ABC):
    """A way to register a pair.

    Making one is cheap and loads nothing heavy; what is heavy loads with the first pair, so that the pairs after it
    tell how long a warm registration takes.

    Parameters
    ----------
    settings : dataclass
        The method's own options, of its class `Settings`.
    surroundings : Surroundings

    Attributes
    ----------
    name : str
        As a configuration spells it.
    needs : tuple of str
        Distributions that must be installed.
    Settings : type
        Frozen dataclass of the options.
    """

    name: ClassVar[str]
    needs: ClassVar[tuple[str, ...]] = ()
    Settings: ClassVar[type[Any]] = NoSettings

    def __init__(self, settings: Any, surroundings: Surroundings) -> None:
        self.settings = settings
        self.surroundings = surroundings

    @property
    def provenance(self) -> str:
        """Weights from where, trained on what, for how long; empty for a method that does not learn."""
        return ""

    def check(self) -> None:  # noqa: B027 - most methods have nothing to check
        """Check before any work what only this machine can tell of the options.

        Raises
        ------
        ValueError, FileNotFoundError
            When an option, or a file that it names, cannot be used.
        """

    def lacking(self) -> str:
        """Say what is not installed and how to install it, in one line; empty where nothing lacks."""
        absent = [name for name in self.needs if not is_installed(name)]
        return f"{', '.join(absent)} not installed: {EXTRA}" if absent else ""

    def register(self, fixed: Nifti1Image, moving: Nifti1Image) -> Displacement:
        """Register a pair.

        Parameters
        ----------
        fixed, moving : Nifti1Image
            Skull-stripped, in [0, 1], on one grid.

        Returns
        -------
        ndarray of float32, shape (3, I, J, K)
            Displacement u in voxels of the grid, components in array-axis order: ``moved(x) = moving(x + u(x))``.

        Raises
        ------
        ValueError
            When the images lie on two grids.
        RuntimeError
            When the method returns something else than finite displacements.
        """
        check_same_grid(moving, "moving image", fixed, "fixed image")
        found = self.displacement(fixed, moving)
        if found.shape != (3, *fixed.shape) or not np.isfinite(found).all():
            raise RuntimeError(f"{self.name}: expected finite displacements of {fixed.shape} voxels, found others")
        return np.ascontiguousarray(found, np.float32)

    @abstractmethod
    def displacement(self, fixed: Nifti1Image, moving: Nifti1Image) -> NDArray[Any]:
        """Return what :meth:`register` does, for a pair that is on one grid."""


Learned = TypeVar("Learned", bound="LearnedMethod")


class LearnedMethod(Method):
    """A method whose network was trained, elsewhere or by :meth:`train`.

    Its `Settings` have ``model``: a weights file (or a bundled name, where there are such), empty for none yet.
    """

    @property
    def is_trained(self) -> bool:
        """Whether it has weights; without, it cannot register."""
        return bool(self.settings.model)

    def with_model(self: Learned, model: str | Path) -> Learned:
        """Return the same method with other weights."""
        return type(self)(replace(self.settings, model=str(model)), self.surroundings)

    @abstractmethod
    def train(self, data: DataConfig, budget: Budget, output_dir: Path) -> Path:
        """Train from scratch, or go on where a run in the same folder stopped; a finished run returns at once.

        Parameters
        ----------
        data : DataConfig
            Packed volumes, made where they are absent; paths start from ``surroundings.root``.
        budget : Budget
        output_dir : Path
            Receives checkpoint, log, and the weights with their card.

        Returns
        -------
        Path
            The weights, for option ``model``.
        """


def is_installed(distribution: str) -> bool:
    """Tell whether a distribution is installed, without importing it."""
    try:
        metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return False
    return True


def expect_word(where: str, value: str, words: Sequence[str]) -> None:
    """Refuse an option that is none of a few words.

    Raises
    ------
    ValueError
        Naming the option.
    """
    if value not in words:
        raise ValueError(f"{where}: expected {' or '.join(words)}, found {value!r}")
