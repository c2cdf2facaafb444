"""How a pair is registered: every choice, its default, bounds and help, in one place; nothing heavy is imported."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmln_pipeline.linear.choices import AFFINES
from mmln_pipeline.machine.options import check_options, option

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

MAX_SEED = 2**31 - 2
"""ANTs holds a seed, plus one, in a signed 32-bit number."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How to register a pair.

    Parameters
    ----------
    init : str, path or ndarray of shape (4, 4), default="affine"
        Linear start: estimate one ("affine" or "rigid"), take the images as aligned already ("identity"), read an ITK
        affine file, or use a matrix (RAS mm, fixed world to moving world).
    model : str or Path, default="mmln"
        Name of bundled weights, or path of a weights file.
    refine : "auto" or int, default="auto"
        Steps of instance optimisation in the place of the network's finest level; 0 gives the whole network alone.
    topology : {"strict", "off"}, default="strict"
        Repair the warp where it folds until its non-diffeomorphic volume (NDV) is zero, or fail; "off" leaves the warp
        as it comes.
    device : str, default="auto"
        "auto", "cpu", "cuda" or "cuda:N".
    threads : int, optional
        Threads on the CPU; None: the libraries' own choice.
    random_seed : int, default=0
        Seed of NumPy, torch and the sampling of the affine (ITK).

    Raises
    ------
    ValueError
        If a value is out of range.
    """

    init: str | Path | NDArray[np.float64] = option(
        AFFINES[0],
        words=(*AFFINES, "identity"),
        free=True,
        array=True,
        metavar="affine|rigid|identity|XFM",
        help="linear start: estimate one, take the images as aligned (identity), or an ITK affine file",
    )
    model: str | Path = option(
        "mmln", free=True, metavar="NAME|PATH", help="weights of the network; 'mmln models' lists those at hand"
    )
    refine: int | str = option(
        "auto",
        words=("auto",),
        lowest=0,
        metavar="auto|N",
        help="steps of refinement on this very pair, in place of the network's finest level; 0 for none",
    )
    topology: str = option(
        "strict",
        words=("strict", "off"),
        help="strict: repair the warp until nothing folds (NDV 0), or fail; off: leave it as it comes",
    )
    device: str = option("auto", free=True, metavar="auto|cpu|cuda[:N]", help="where the network runs")
    threads: int | None = option(None, lowest=1, metavar="N", help="CPU threads (default: all cores)")
    random_seed: int = option(
        0, lowest=0, highest=MAX_SEED, metavar="N", help="seed of everything random: NumPy, torch and ITK"
    )

    def __post_init__(self) -> None:
        check_options(self)

    @property
    def init_name(self) -> str:
        """The start as text: the word or path given, or "matrix"."""
        return str(self.init) if isinstance(self.init, str | Path) else "matrix"


def refuse(given: Mapping[str, Any], **instead: str) -> None:
    """Refuse settings that would go unheeded.

    Parameters
    ----------
    given : mapping
        Settings by name.
    **instead : str
        What to give in the place of a setting, by its name.

    Raises
    ------
    TypeError
        If one of these settings is given.
    """
    for name in instead.keys() & given:
        raise TypeError(f"{name}: not taken here; give {instead[name]}")
