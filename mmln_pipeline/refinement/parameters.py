"""What refinement weighs, and how it descends; nothing heavy is imported."""

from __future__ import annotations

from dataclasses import dataclass, fields


@dataclass(frozen=True, kw_only=True)
class RefinementSettings:
    """Weights and course of the refinement. The defaults were chosen on training pairs.

    Parameters
    ----------
    windows : tuple of int, default=(3, 7)
        Edges of the windows of local correlation, in blocks of 2 x 2 x 2 voxels.
    whole : float, default=2.0
        Weight of the correlation over the whole brain beside that in windows.
    smoothing : float, default=0.1
        Weight of the refining field's roughness.
    volume : float, default=0.18
        Weight of the whole map's volume changes, the network's part included.
    tissues : float, default=0.6
        Weight of one minus the soft Dice of the tissue maps.
    depth : float, default=0.025
        Weight of the squared difference in depth below the tissue's surface, in voxels.
    learning_rate : float, default=0.28
        Adam's.
    warm_up : int, default=3
        Steps before the learning rate is whole: Adam's first ones go as far for noise as for edges.
    iterations : int, default=26
        Most steps on half-size images, and once more on full-size ones, where "auto" asks for them.
    patience : int, default=6
        Stop when the loss has not fallen by `gain` over so many steps behind the warm-up, which goes uphill from a good
        start.
    gain : float, default=1e-4
        Share of the loss.
    squarings : int, default=2
        Enough for so small a field while it is sought; the result is integrated as all others are.

    Raises
    ------
    ValueError
        If a number is below 0, or a window cannot be.
    """

    windows: tuple[int, ...] = (3, 7)
    whole: float = 2.0
    smoothing: float = 0.1
    volume: float = 0.18
    tissues: float = 0.6
    depth: float = 0.025
    learning_rate: float = 0.28
    warm_up: int = 3
    iterations: int = 26
    patience: int = 6
    gain: float = 1e-4
    squarings: int = 2

    def __post_init__(self) -> None:
        if not self.windows or any(window < 3 or window % 2 == 0 for window in self.windows):
            raise ValueError(f"refinement.windows: expected odd numbers of at least 3, found {self.windows!r}")
        for name in (item.name for item in fields(self) if item.name != "windows"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"refinement.{name}: expected a number of at least 0, found {getattr(self, name)!r}")

    def count_steps(self, iterations: int | str) -> tuple[int, int]:
        """Return how many steps may run on half-size and on full-size images.

        Parameters
        ----------
        iterations : int or "auto"

        Raises
        ------
        ValueError
            When `iterations` is neither "auto" nor a number of at least 0.
        """
        if iterations == "auto":
            iterations = self.iterations
        if isinstance(iterations, str) or iterations < 0:
            raise ValueError(f"refine: expected 'auto' or a number of at least 0, found {iterations!r}")
        return iterations, iterations


DEFAULTS = RefinementSettings()
