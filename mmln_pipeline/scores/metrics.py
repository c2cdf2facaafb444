"""The scores of a registration, on plain arrays: overlap, volume change, distances, folds, similarity.

Definitions are the same for every method that is scored:

- Dice: ``2 |A and B| / (|A| + |B|)`` per label; labels absent from both images are skipped and the
  background (0) is never counted.
- TC: volume of the warped label over its volume before warping; 1 is best.
- HD95: 95th percentile, in mm, of the distances between the two surfaces, both directions pooled.
- Folding: percent of voxels whose Jacobian determinant is not positive.
- NDV: percent of the volume that is not mapped diffeomorphically, whatever the difference scheme
  (Liu et al., IJCV 2024).
- SDlogJ: standard deviation of the log-Jacobian determinant, clipped at 1e-9; Learn2Reg's adds 3 first.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage

Labels = Mapping[str, tuple[int, ...]] | Sequence[int] | None

JACOBIAN_FLOOR = 1e-9
LOCAL_WINDOW = 7


def dice(a: ArrayLike, b: ArrayLike, labels: Labels = None) -> dict[str, float]:
    """Score the overlap of two segmentations, label by label.

    Parameters
    ----------
    a, b : array of int, shape (I, J, K)
        Segmentations on one grid.
    labels : mapping of name to numbers, sequence of int or None, default=None
        What to score: a label table (numbers of one name are merged), plain numbers, or all labels
        present in either image.

    Returns
    -------
    dict of str to float
        Dice per structure name (or number as text); those absent from both images are left out.

    Raises
    ------
    ValueError
        If the shapes differ.
    """
    first, second, names = _recode(a, b, labels)
    size = len(names) + 1
    sum_of_sizes = np.bincount(first.ravel(), minlength=size) + np.bincount(second.ravel(), minlength=size)
    overlap = np.bincount(first[first == second], minlength=size)
    return {
        name: float(2.0 * overlap[code] / sum_of_sizes[code])
        for code, name in enumerate(names, start=1)
        if sum_of_sizes[code] > 0
    }


def tc(before: ArrayLike, after: ArrayLike, labels: Labels = None) -> dict[str, float]:
    """Measure how much warping changed the volume of each label, on one grid.

    Parameters
    ----------
    before, after : array of int, shape (I, J, K)
        The moving labels before the warp (aligned linearly) and after it, on the same grid.
    labels : mapping of name to numbers, sequence of int or None, default=None
        As for `dice`.

    Returns
    -------
    dict of str to float
        Volume after / volume before; labels absent before the warp are left out.

    Raises
    ------
    ValueError
        If the shapes differ.
    """
    first, second, names = _recode(before, after, labels)
    size = len(names) + 1
    volume_before = np.bincount(first.ravel(), minlength=size)
    volume_after = np.bincount(second.ravel(), minlength=size)
    return {
        name: float(volume_after[code] / volume_before[code])
        for code, name in enumerate(names, start=1)
        if volume_before[code] > 0
    }


def hd95(
    a: ArrayLike, b: ArrayLike, labels: Labels = None, spacing: Sequence[float] = (1.0, 1.0, 1.0)
) -> dict[str, float]:
    """Measure the 95th percentile symmetric surface distance of each label.

    Parameters
    ----------
    a, b : array of int, shape (I, J, K)
        Segmentations on one grid.
    labels : mapping of name to numbers, sequence of int or None, default=None
        As for `dice`.
    spacing : sequence of 3 float, default=(1.0, 1.0, 1.0)
        Voxel size in mm along each array axis.

    Returns
    -------
    dict of str to float
        Distance in mm; labels absent from either image have no distance and are left out.

    Raises
    ------
    ValueError
        If the shapes differ.
    """
    first, second, names = _recode(a, b, labels)
    boxes_first = ndimage.find_objects(first, max_label=len(names))
    boxes_second = ndimage.find_objects(second, max_label=len(names))
    distances = {}
    for code, name in enumerate(names, start=1):
        if boxes_first[code - 1] is None or boxes_second[code - 1] is None:
            continue
        box = _union(boxes_first[code - 1], boxes_second[code - 1])
        distances[name] = _surface_percentile(first[box] == code, second[box] == code, spacing)
    return distances


def label_mean(per_label: Mapping[str, float]) -> float | None:
    """Average a score over its labels; None when there is no label to average over."""
    return float(np.mean(list(per_label.values()))) if per_label else None


def folding_percent(jacobian: ArrayLike, mask: ArrayLike | None = None, border: int = 0) -> float | None:
    """Give the percent of voxels with a non-positive Jacobian determinant.

    Parameters
    ----------
    jacobian : array, shape (I, J, K)
        Determinant of the Jacobian of ``x + u(x)``.
    mask : array of bool, shape (I, J, K), optional
        Count inside this mask only.
    border : int, default=0
        Layers of voxels at the six faces of the grid to leave out.

    Returns
    -------
    float or None
        Percent; None when no voxel is left to count.

    Raises
    ------
    ValueError
        If the mask has another shape.
    """
    values = np.asarray(jacobian)
    inside = _as_mask(mask, values.shape)
    if border:
        core = tuple(slice(border, -border) for _ in range(values.ndim))
        values, inside = values[core], inside[core]
    count = int(inside.sum())
    return 100.0 * int((values[inside] <= 0).sum()) / count if count else None


def ndv_percent(ndv: ArrayLike, mask: ArrayLike | None = None) -> float | None:
    """Give the non-diffeomorphic volume as percent of the volume looked at.

    Parameters
    ----------
    ndv : array, shape (I, J, K)
        Non-diffeomorphic volume of each voxel, in voxels.
    mask : array of bool, shape (I, J, K), optional
        Count inside this mask only.

    Returns
    -------
    float or None
        Percent; 0 only for a field without any fold; None when the mask is empty.

    Raises
    ------
    ValueError
        If the mask has another shape.
    """
    values = np.asarray(ndv)
    inside = _as_mask(mask, values.shape)
    count = int(inside.sum())
    return 100.0 * float(values[inside].sum(dtype=np.float64)) / count if count else None


def sdlogj(jacobian: ArrayLike, mask: ArrayLike | None = None) -> float | None:
    """Give the standard deviation of the log-Jacobian determinant (determinant clipped at 1e-9).

    Parameters
    ----------
    jacobian : array, shape (I, J, K)
        Determinant of the Jacobian of ``x + u(x)``.
    mask : array of bool, shape (I, J, K), optional
        The fixed brain.

    Returns
    -------
    float or None
        None when the mask is empty.

    Raises
    ------
    ValueError
        If the mask has another shape.
    """
    values = np.asarray(jacobian)
    inside = values[_as_mask(mask, values.shape)]
    if not inside.size:
        return None
    return float(np.log(np.clip(inside.astype(np.float64), JACOBIAN_FLOOR, None)).std())


def sdlogj_learn2reg(jacobian: ArrayLike, mask: ArrayLike | None = None) -> float | None:
    """Give the standard deviation of ``log(J + 3)``, the score that Learn2Reg calls SDlogJ.

    The 3 keeps the logarithm away from 0, so that a fold hardly counts, and divides small changes by four.

    Parameters
    ----------
    jacobian : array, shape (I, J, K)
        Determinant of the Jacobian of ``x + u(x)``.
    mask : array of bool, shape (I, J, K), optional
        Where to measure; the whole grid by default, as in the challenge's OASIS task.

    Returns
    -------
    float or None
        Without the two outer layers of the grid; None when no voxel is left.

    Raises
    ------
    ValueError
        If the mask has another shape.

    References
    ----------
    Hering et al., Learn2Reg, IEEE TMI 2023.
    """
    values = np.asarray(jacobian)
    inner = (slice(2, -2),) * values.ndim
    inside = values[inner][_as_mask(mask, values.shape)[inner]].astype(np.float64)
    return float(np.log(np.clip(inside + 3, JACOBIAN_FLOOR, None)).std()) if inside.size else None


def global_correlation(a: ArrayLike, b: ArrayLike, mask: ArrayLike | None = None) -> float | None:
    """Give Pearson's correlation of two images; None when one of them is constant.

    Parameters
    ----------
    a, b : array, shape (I, J, K)
        Images on one grid.
    mask : array of bool, shape (I, J, K), optional
        Compare inside this mask only.

    Returns
    -------
    float or None
        In [-1, 1].

    Raises
    ------
    ValueError
        If the shapes differ.
    """
    first, second = _same_shape(a, b)
    inside = _as_mask(mask, first.shape)
    x, y = first[inside].astype(np.float64), second[inside].astype(np.float64)
    if not x.size:
        return None
    x, y = x - x.mean(), y - y.mean()
    norm = float(np.sqrt((x @ x) * (y @ y)))
    return float(x @ y) / norm if norm > 0 else None


def local_correlation(
    a: ArrayLike, b: ArrayLike, mask: ArrayLike | None = None, window: int = LOCAL_WINDOW
) -> float | None:
    """Give the mean squared local correlation of two images over cubic windows.

    Windows in which either image is flat carry no information and are left out, so that a flat
    background neither helps nor hurts.

    Parameters
    ----------
    a, b : array, shape (I, J, K)
        Images on one grid, intensities of order one.
    mask : array of bool, shape (I, J, K), optional
        Count windows centred inside this mask only.
    window : int, default=7
        Edge of the window in voxels.

    Returns
    -------
    float or None
        In [0, 1]; None when no window is informative.

    Raises
    ------
    ValueError
        If the shapes differ.
    """
    return local_correlations(a, [b], mask, window)[0]


def local_correlations(
    a: ArrayLike, others: Sequence[ArrayLike], mask: ArrayLike | None = None, window: int = LOCAL_WINDOW
) -> list[float | None]:
    """Give the `local_correlation` of an image with each of some others, in less time than one by one."""
    pairs = [_same_shape(a, b) for b in others]
    first = pairs[0][0]
    inside = _as_mask(mask, first.shape)
    box = ndimage.find_objects(inside.astype(np.uint8))
    if not box:
        return [None] * len(pairs)
    crop = tuple(
        slice(max(s.start - window, 0), min(s.stop + window, n)) for s, n in zip(box[0], first.shape, strict=True)
    )
    inside = inside[crop]

    def mean(values: NDArray[np.float64]) -> NDArray[np.float64]:
        return ndimage.uniform_filter(values, window, mode="nearest")[inside]

    def moments(image: NDArray) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
        values = image[crop].astype(np.float64)
        average = mean(values)
        return values, average, mean(values * values) - average**2

    x, mean_x, variance_x = moments(first)
    found: list[float | None] = []
    for _, second in pairs:
        y, mean_y, variance_y = moments(second)
        covariance = mean(x * y) - mean_x * mean_y
        informative = (variance_x > 1e-8) & (variance_y > 1e-8)
        squared = covariance[informative] ** 2 / (variance_x[informative] * variance_y[informative])
        found.append(float(np.clip(squared, 0.0, 1.0).mean()) if informative.any() else None)
    return found


def inverse_consistency(
    forward: ArrayLike,
    inverse: ArrayLike,
    mask: ArrayLike | None = None,
    spacing: Sequence[float] = (1.0, 1.0, 1.0),
) -> float | None:
    """Measure how far points end from their start after the forward and then the inverse field.

    Parameters
    ----------
    forward, inverse : array, shape (3, I, J, K)
        Displacements in voxels, components in the order of the array axes.
    mask : array of bool, shape (I, J, K), optional
        Measure for voxels inside this mask only.
    spacing : sequence of 3 float, default=(1.0, 1.0, 1.0)
        Voxel size in mm along each array axis.

    Returns
    -------
    float or None
        Mean distance in mm; None when the mask is empty.

    Raises
    ------
    ValueError
        If the shapes differ.
    """
    there, back = _same_shape(forward, inverse)
    inside = _as_mask(mask, there.shape[1:])
    if not inside.any():
        return None
    step = there[:, inside].astype(np.float64)  # (3, N)
    landed = np.stack(np.nonzero(inside)) + step
    residual = np.stack(
        [
            size * (offset + ndimage.map_coordinates(component, landed, order=1, mode="nearest"))
            for size, offset, component in zip(spacing, step, back, strict=True)
        ]
    )
    return float(np.linalg.norm(residual, axis=0).mean())


def _recode(a: ArrayLike, b: ArrayLike, labels: Labels) -> tuple[NDArray, NDArray, list[str]]:
    """Renumber two segmentations to 1..n, one code a structure; all other labels become 0."""
    first, second = _same_shape(a, b)
    first, second = _as_integers(first), _as_integers(second)
    if labels is None:
        labels = np.union1d(first[first != 0], second[second != 0]).tolist()
    groups: Iterable[tuple[str, tuple[int, ...]]]
    groups = labels.items() if isinstance(labels, Mapping) else [(str(n), (n,)) for n in labels if n != 0]
    names, numbers, codes = [], [], []
    for code, (name, members) in enumerate(groups, start=1):
        names.append(name)
        numbers += list(members)
        codes += [code] * len(members)
    order = np.argsort(numbers)
    table = np.asarray(numbers, dtype=np.int64)[order], np.asarray(codes, dtype=np.int32)[order]
    return _apply_codes(first, *table), _apply_codes(second, *table), names


def _apply_codes(array: NDArray, numbers: NDArray, codes: NDArray) -> NDArray[np.int32]:
    recoded = np.zeros(array.shape, dtype=np.int32)
    if numbers.size:
        foreground = array != 0
        values = array[foreground]
        place = np.clip(np.searchsorted(numbers, values), 0, numbers.size - 1)
        recoded[foreground] = np.where(numbers[place] == values, codes[place], 0)
    return recoded


def _surface_percentile(a: NDArray[np.bool_], b: NDArray[np.bool_], spacing: Sequence[float]) -> float:
    surface_a, surface_b = a & ~ndimage.binary_erosion(a), b & ~ndimage.binary_erosion(b)
    to_a = ndimage.distance_transform_edt(~surface_a, sampling=spacing)
    to_b = ndimage.distance_transform_edt(~surface_b, sampling=spacing)
    return float(np.percentile(np.concatenate([to_b[surface_a], to_a[surface_b]]), 95))


def _union(a: tuple[slice, ...], b: tuple[slice, ...]) -> tuple[slice, ...]:
    return tuple(slice(min(s.start, t.start), max(s.stop, t.stop)) for s, t in zip(a, b, strict=True))


def _same_shape(a: ArrayLike, b: ArrayLike) -> tuple[NDArray, NDArray]:
    first, second = np.asarray(a), np.asarray(b)
    if first.shape != second.shape:
        raise ValueError(f"Both arrays must share one grid, found shapes {first.shape} and {second.shape}.")
    return first, second


def _as_mask(mask: ArrayLike | None, shape: tuple[int, ...]) -> NDArray[np.bool_]:
    if mask is None:
        return np.ones(shape, dtype=bool)
    inside = np.asarray(mask) != 0
    if inside.shape != shape:
        raise ValueError(f"The mask has shape {inside.shape}; expected {shape}, the shape of the image.")
    return inside


def _as_integers(array: NDArray) -> NDArray:
    return array if np.issubdtype(array.dtype, np.integer) else np.rint(array).astype(np.int64)
