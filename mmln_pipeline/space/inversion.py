"""The inverse of a displacement field, found point by point."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from nibabel.affines import apply_affine
from numpy.typing import NDArray

from mmln_pipeline.space.displacements import DisplacementField
from mmln_pipeline.space.grids import Grid

TOLERANCE_MM = 1e-3
"""How close a point found comes to the one asked for, once it is mapped back."""
_ROUNDS = 200


class InversionWarning(UserWarning):
    """A field has no inverse at some points: it folds, or jumps at its border."""


@dataclass(frozen=True, eq=False)
class InverseField:
    """The inverse of a displacement field: a point y goes to the x with ``x + offset(x) = y``.

    Parameters
    ----------
    forward : DisplacementField
        The field that is inverted.
    """

    forward: DisplacementField

    def map_points(self, points: NDArray[np.float64]) -> NDArray[np.float64]:
        """Find where points come from.

        Each point steps by what is missing, x <- x + s (y - x - offset(x)); s is halved where a step made it worse.

        Parameters
        ----------
        points : ndarray, shape (N, 3)
            RAS+ mm, where the field leads to.

        Returns
        -------
        ndarray, shape (N, 3)
            RAS+ mm, where the field starts; the nearest that was found where there is none.

        Warns
        -----
        InversionWarning
            If some are more than 0.001 mm off.
        """
        target = np.array(points, dtype=np.float64)
        found, missing = target.copy(), target - self.forward.map_points(target)
        step = np.ones(len(target))
        for _ in range(_ROUNDS):
            open_ones = np.flatnonzero((np.linalg.norm(missing, axis=1) > TOLERANCE_MM) & (step > 1e-3))
            if not open_ones.size:
                break
            tried = found[open_ones] + step[open_ones, None] * missing[open_ones]
            left = target[open_ones] - self.forward.map_points(tried)
            better = np.linalg.norm(left, axis=1) < np.linalg.norm(missing[open_ones], axis=1)
            found[open_ones[better]], missing[open_ones[better]] = tried[better], left[better]
            step[open_ones[~better]] /= 2
        distance = np.linalg.norm(missing, axis=1)
        n_off = np.count_nonzero(distance > TOLERANCE_MM)
        if n_off:
            warnings.warn(
                f"inverse of a displacement field: {n_off} of {len(target)} points have none (the field folds there "
                f"or ends); they are up to {distance.max():.2g} mm off",
                InversionWarning,
                stacklevel=2,
            )
        return found

    @cached_property
    def sampled(self) -> DisplacementField:
        """The inverse as a field on the grid of `forward`: what images are resampled through."""
        grid = Grid.of(self.forward.grid)
        points = apply_affine(grid.affine, np.moveaxis(np.indices(grid.shape), 0, -1)).reshape(-1, 3)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", InversionWarning)  # at its border a field need not have one
            offsets = self.map_points(points) - points
        return DisplacementField(offsets.reshape(*grid.shape, 3), grid.affine)
