"""The shape of the network: its levels, from 1 (coarsest) to L, what each sees, and the order in which they run."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

from mmln_pipeline.space.grids import GRID_SHAPE

AXES = {"sagittal": 0, "axial": 1, "coronal": 2}
"""Slicing planes by the array axis that they cut across, on a grid of axes L, I, A."""

MAX_LEVELS, MAX_CHANNELS, MAX_RUNS, MAX_SIZE = 8, 1024, 64, 1024
"""No network has more levels, channels, runs of its levels, or voxels along an axis: a card that says so is wrong."""


@dataclass(frozen=True)
class NetworkConfig:
    """Shape of the network.

    Parameters
    ----------
    levels : int, default=3
        Pyramid levels L.
    channels : int, default=28
        Feature channels C of every convolution.
    velocity_range : float, default=8.0
        Bound of a level's residual velocity, in voxels of that level per unit time.
    combine : {"compose", "add"}, default="compose"
        How a level's residual joins the level below.
    slices : sequence of {"axial", "coronal", "sagittal"}, default=("axial",)
        Stacks of the 2-D branch; empty for none.
    schedule : sequence of int, optional
        Levels in the order in which they run, from 1 (coarsest); empty for each once, coarse to fine.
    finest_field : {"full", "half"}, default="full"
        Size of the finest level's field, relative to the images.
    symmetric : sequence of int, optional
        Levels, from 1 (coarsest), that see the pair in both orders: ``R = (net(F, M, V) - net(M, F, -V)) / 2``.
    grid : sequence of 3 int, default=(160, 192, 224)
        Voxels of the images, 1 mm along L, I and A: the grid that the network was made for.
    """

    levels: int = 3
    channels: int = 28
    velocity_range: float = 8.0
    combine: str = "compose"
    slices: tuple[str, ...] = ("axial",)
    schedule: tuple[int, ...] = ()
    finest_field: str = "full"
    symmetric: tuple[int, ...] = ()
    grid: tuple[int, int, int] = GRID_SHAPE

    def __post_init__(self) -> None:
        for name, most in (("levels", MAX_LEVELS), ("channels", MAX_CHANNELS)):
            if not 1 <= getattr(self, name) <= most:
                raise ValueError(f"network.{name}: expected 1 to {most}, found {getattr(self, name)}")
        if not 0 < self.velocity_range < math.inf:
            raise ValueError(f"network.velocity_range: expected more than 0, found {self.velocity_range}")
        if len(self.schedule) > MAX_RUNS:
            raise ValueError(f"network.schedule: expected at most {MAX_RUNS} runs, found {len(self.schedule)}")
        object.__setattr__(self, "slices", tuple(self.slices))
        object.__setattr__(self, "schedule", tuple(self.schedule) or tuple(range(1, self.levels + 1)))
        object.__setattr__(self, "symmetric", tuple(self.symmetric))
        object.__setattr__(self, "grid", tuple(self.grid))
        if len(self.grid) != 3 or min(self.grid) < 2**self.levels or max(self.grid) > MAX_SIZE:
            sizes = f"{2**self.levels} to {MAX_SIZE}"
            raise ValueError(f"network.grid: expected three sizes of {sizes}, found {self.grid}")
        if self.combine not in ("compose", "add"):
            raise ValueError(f"network.combine: expected 'compose' or 'add', found {self.combine!r}")
        unknown = set(self.slices) - set(AXES)
        if unknown:
            raise ValueError(f"network.slices: expected names among {sorted(AXES)}, found {sorted(unknown)}")
        if self.finest_field not in ("full", "half"):
            raise ValueError(f"network.finest_field: expected 'full' or 'half', found {self.finest_field!r}")
        if beyond := set(self.symmetric) - set(range(1, self.levels + 1)):
            raise ValueError(f"network.symmetric: expected levels 1 to {self.levels}, found {sorted(beyond)}")
        steps = zip((0, *self.schedule), self.schedule, strict=False)
        if set(self.schedule) != set(range(1, self.levels + 1)) or any(b > a + 1 for a, b in steps):
            raise ValueError(
                f"network.schedule: expected levels 1 to {self.levels}, each behind the one below it, "
                f"found {list(self.schedule)}"
            )

    @property
    def knows_velocity(self) -> bool:
        """Whether level 1 sees a velocity: not before its only run."""
        return self.schedule.count(1) > 1

    def is_folded(self, level: int) -> bool:
        """Return whether a level sees its images folded into channels of half their size."""
        return level == self.levels and self.finest_field == "half"

    def runs(self, finest: int | None = None, once: bool = False) -> list[int]:
        """Return the levels in the order in which they run, without those above the finest one wanted."""
        schedule = range(1, self.levels + 1) if once else self.schedule
        return [level for level in schedule if finest is None or level <= finest]

    def asdict(self) -> dict[str, object]:
        """Return the configuration as plain values, for a card or a checkpoint."""
        lists = {name: list(getattr(self, name)) for name in ("slices", "schedule", "symmetric", "grid")}
        return asdict(self) | lists
