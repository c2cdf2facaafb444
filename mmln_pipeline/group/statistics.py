"""Statistics over many scans: mean and standard deviation in one pass, and what stands out from the rest."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

_MAD_TO_SD = 1.4826  # of a normal distribution
_MEAN_DEVIATION_TO_SD = 1.2533
_ROUND_OFF = 1e-9


class RunningMoments:
    """Mean and standard deviation of arrays that come one at a time (Welford's algorithm).

    Parameters
    ----------
    shape : tuple of int
        Shape of each array.
    spread : bool, default=True
        Whether the standard deviation is wanted.

    References
    ----------
    Welford, Note on a method for calculating corrected sums of squares and products, Technometrics 1962.

    Examples
    --------
    >>> moments = RunningMoments((2,))
    >>> for array in ([1.0, 5.0], [3.0, 5.0]):
    ...     moments.add(np.array(array))
    >>> moments.count, moments.mean.tolist(), moments.sd.round(3).tolist()
    (2, [2.0, 5.0], [1.414, 0.0])
    """

    def __init__(self, shape: tuple[int, ...], spread: bool = True) -> None:
        self.count = 0
        self.mean = np.zeros(shape)
        self._squares = np.zeros(shape) if spread else None

    def add(self, array: np.ndarray) -> None:
        """Take one more array into account.

        Raises
        ------
        ValueError
            If its shape is another.
        """
        if array.shape != self.mean.shape:
            raise ValueError(f"array: expected shape {self.mean.shape}, found {array.shape}")
        self.count += 1
        for start in range(len(array)):  # plane by plane: a whole image's differences are as large as the moments
            plane = slice(start, start + 1)
            difference = array[plane] - self.mean[plane]
            self.mean[plane] += difference / self.count
            if self._squares is not None:
                self._squares[plane] += difference * (array[plane] - self.mean[plane])

    @property
    def sd(self) -> np.ndarray:
        """Standard deviation of the sample (divisor: count - 1).

        Raises
        ------
        ValueError
            If fewer than two arrays were added, or it was not wanted.
        """
        if self._squares is None or self.count < 2:
            raise ValueError(f"standard deviation: expected at least 2 arrays, found {self.count}")
        variance = self._squares / (self.count - 1)
        return np.sqrt(variance, out=variance)


def robust_distances(values: Sequence[float] | np.ndarray) -> np.ndarray:
    """Return how far each value lies from the median, in scaled median absolute deviations (MADs).

    A scaled MAD is 1.4826 times the median absolute deviation: of normally distributed values it estimates the
    standard deviation, and outliers hardly move it. Where more than half of the values are equal it is zero, and
    1.2533 times the mean absolute deviation takes its place.

    Parameters
    ----------
    values : sequence of float, shape (N,)
        Finite numbers.

    Returns
    -------
    ndarray, shape (N,)
        Below zero: smaller than the median. All zero where all values are equal (to round-off).

    References
    ----------
    Iglewicz and Hoaglin, How to detect and handle outliers, ASQC 1993.

    Examples
    --------
    >>> robust_distances([1.0, 2.0, 3.0, 4.0, 10.0]).round(2).tolist()
    [-1.35, -0.67, 0.0, 0.67, 4.72]
    >>> robust_distances([0.0, 0.0, 0.0, 0.0, 2.0]).round(2).tolist()
    [0.0, 0.0, 0.0, 0.0, 3.99]
    """
    numbers = np.asarray(values, dtype=np.float64)
    if not numbers.size:
        return numbers
    deviations = numbers - np.median(numbers)
    deviations[np.abs(deviations) <= _ROUND_OFF * np.abs(numbers).max()] = 0.0
    scale = _MAD_TO_SD * np.median(np.abs(deviations)) or _MEAN_DEVIATION_TO_SD * np.abs(deviations).mean()
    return deviations / scale if scale else deviations
