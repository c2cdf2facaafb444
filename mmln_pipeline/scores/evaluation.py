"""Score a registration from its field, its images and its labels, with one set of definitions for every tool.

`score_field` and `score_labels` are what `mmln_pipeline.register` reports; `evaluate_transform` computes
the same for a transform that any tool wrote. There the linear parts of the transform are taken out first, so
that a fold or a change of volume is the warp's own and an affine's scaling is not held against it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import nibabel as nib
import numpy as np
import torch
from nibabel import Nifti1Image
from nibabel.affines import voxel_sizes
from numpy.typing import NDArray

from mmln_pipeline.atlas.labels import LabelTable
from mmln_pipeline.fields.jacobian import jacobian_determinant, ndv
from mmln_pipeline.images.brain import Brain
from mmln_pipeline.images.volumes import fill_holes, looks_skull_stripped
from mmln_pipeline.scores import metrics, quality
from mmln_pipeline.space.displacements import displacement_to_voxels
from mmln_pipeline.space.transforms import Transform


def score_field(
    displacement: torch.Tensor, brain: NDArray[np.bool_], inverted: torch.Tensor | None = None
) -> dict[str, Any]:
    """Score how regular a displacement field is.

    Parameters
    ----------
    displacement : Tensor, shape (1, 3, I, J, K)
        In voxels, components in the order of the array axes.
    brain : array of bool, shape (I, J, K)
        The fixed brain.
    inverted : Tensor, shape (1, I-1, J-1, K-1), optional
        The field's `fields.jacobian.ndv`, where it is known already.

    Returns
    -------
    dict
        ``folding_percent`` (whole grid), ``folding_percent_without_border`` (less the outermost voxel
        layer), ``folding_percent_brain``, ``ndv_percent`` (whole grid), ``ndv_percent_brain``, ``sdlogj``,
        ``sdlogj_learn2reg`` (whole grid), and ``log_jacobian``: ``mean``, ``min``, ``p1``, ``p99`` (percentiles) and
        ``max`` in the brain.
    """
    jacobian = jacobian_determinant(displacement)[0].cpu().numpy()
    inverted_volume = (ndv(displacement) if inverted is None else inverted)[0].cpu().numpy()
    cells = brain[:-1, :-1, :-1]  # a cell stands between 8 voxels and is counted with its first corner
    return {
        "folding_percent": metrics.folding_percent(jacobian),
        "folding_percent_without_border": metrics.folding_percent(jacobian, border=1),
        "folding_percent_brain": metrics.folding_percent(jacobian, brain),
        "ndv_percent": metrics.ndv_percent(inverted_volume),
        "ndv_percent_brain": metrics.ndv_percent(inverted_volume, cells),
        "sdlogj": metrics.sdlogj(jacobian, brain),
        "sdlogj_learn2reg": metrics.sdlogj_learn2reg(jacobian),
        "log_jacobian": _describe_log_jacobian(jacobian[brain]),
    }


def _describe_log_jacobian(jacobian: NDArray) -> dict[str, float | None]:
    """Summarise the log of Jacobian determinants, which are clipped as for SDlogJ."""
    if not jacobian.size:
        return dict.fromkeys(("mean", "min", "p1", "p99", "max"))
    logs = np.log(np.clip(jacobian.astype(np.float64), metrics.JACOBIAN_FLOOR, None))
    low, p1, p99, high = np.percentile(logs, (0, 1, 99, 100)).tolist()
    return {"mean": float(logs.mean()), "min": low, "p1": p1, "p99": p99, "max": high}


def score_labels(
    fixed: NDArray | None,
    before: NDArray | None,
    after: NDArray | None,
    affine: NDArray[np.float64],
    labels: LabelTable | None = None,
) -> dict[str, Any]:
    """Score the overlap, the volume change and the surface distance of labels on the fixed grid.

    Parameters
    ----------
    fixed : array of int, shape (I, J, K), or None
        Labels of the fixed image.
    before, after : array of int, shape (I, J, K), or None
        Labels of the moving image brought to the fixed grid by the linear parts of the transform alone,
        and by the whole of it.
    affine : array, shape (4, 4)
        Voxel to world (mm) of the fixed grid.
    labels : LabelTable, optional
        Structures to score; all labels present by default.

    Returns
    -------
    dict
        ``dice``, ``dice_per_label``, ``dice_before``, ``tc``, ``tc_per_label``, ``hd95_mm``,
        ``hd95_per_label``; None where labels are missing.
    """
    scores: dict[str, Any] = dict.fromkeys(
        ("dice", "dice_per_label", "dice_before", "tc", "tc_per_label", "hd95_mm", "hd95_per_label")
    )
    if before is not None and after is not None:
        scores["tc_per_label"] = metrics.tc(before, after, labels)
        scores["tc"] = metrics.label_mean(scores["tc_per_label"])
    if fixed is not None and after is not None:
        scores["dice_per_label"] = metrics.dice(fixed, after, labels)
        scores["dice"] = metrics.label_mean(scores["dice_per_label"])
        spacing = [float(size) for size in voxel_sizes(affine)]
        scores["hd95_per_label"] = metrics.hd95(fixed, after, labels, spacing)
        scores["hd95_mm"] = metrics.label_mean(scores["hd95_per_label"])
    if fixed is not None and before is not None:
        scores["dice_before"] = metrics.label_mean(metrics.dice(fixed, before, labels))
    return scores


def score_similarity(
    fixed: NDArray, before: NDArray, after: NDArray, brain: NDArray[np.bool_]
) -> dict[str, dict[str, float | None]]:
    """Compare the images before and after the warp.

    Parameters
    ----------
    fixed, before, after : array, shape (I, J, K)
        Normalised images on one grid; `before` is the moving image aligned linearly.
    brain : array of bool, shape (I, J, K)
        The fixed brain, over which local correlation is averaged.

    Returns
    -------
    dict
        ``global_correlation`` (over the grid), ``brain_correlation`` and ``local_correlation`` (inside the
        brain), each with ``before`` and ``after``.
    """
    return {
        "global_correlation": {
            "before": metrics.global_correlation(fixed, before),
            "after": metrics.global_correlation(fixed, after),
        },
        "brain_correlation": {
            "before": metrics.global_correlation(fixed, before, brain),
            "after": metrics.global_correlation(fixed, after, brain),
        },
        "local_correlation": dict(
            zip(("before", "after"), metrics.local_correlations(fixed, [before, after], brain), strict=True)
        ),
    }


def score_contrast(fixed: NDArray, moving: NDArray) -> dict[str, dict[str, float | None]]:
    """Tell whether the images show anything: the spread of their intensities.

    Parameters
    ----------
    fixed, moving : array, shape (I, J, K)
        Brains with a background of zeros, on any grid.

    Returns
    -------
    dict
        ``contrast`` of ``fixed`` and ``moving``: interquartile range per median of the intensities above zero.
    """
    contrast: dict[str, float | None] = {}
    for name, image in (("fixed", fixed), ("moving", moving)):
        first, median, third = np.percentile(image[image > 0], (25, 50, 75)) if (image > 0).any() else (0, 0, 0)
        contrast[name] = float((third - first) / median) if median > 0 else None
    return {"contrast": contrast}


def score_overlap(brain: NDArray, before: NDArray, after: NDArray) -> dict[str, dict[str, float | None]]:
    """Compare the moving brain's outline with the fixed brain's, before and after the warp.

    Parameters
    ----------
    brain, before, after : array of bool, shape (I, J, K)
        The fixed brain, and the moving brain on its grid: aligned linearly, and by the whole transform.

    Returns
    -------
    dict
        ``brain_overlap``: Dice of the two brains, ``before`` and ``after``.
    """
    filled = fill_holes(brain).astype(np.uint8)  # dark voxels inside a stripped brain are brain
    masks = {"before": before, "after": after}
    overlap = {name: metrics.dice(filled, (mask != 0).astype(np.uint8)) for name, mask in masks.items()}
    return {"brain_overlap": {name: dice.get("1") for name, dice in overlap.items()}}


def score_field_of_view(mask: Nifti1Image) -> dict[str, float]:
    """Tell whether the brain is whole, or ends in a plane: that of the image's border, or of a cut.

    A brain's outline curves, so that from slice to slice its end grows steadily. A cut ends many voxels at once: by how
    much more than in the slices beside it, is its flat face. Cuts are seen along the axes of the image.

    Parameters
    ----------
    mask : Nifti1Image
        Brain (non-zero) on the image's own grid.

    Returns
    -------
    dict
        ``brain_cut_cm2``: the largest area of brain on one face of the grid, cm2; 0 where it is whole.
        ``brain_flat_cm2``: the largest flat face of the brain inside the grid, cm2; some 2 where it is whole.
    """
    brain = np.asanyarray(mask.dataobj) != 0
    voxel = voxel_sizes(mask.affine)
    cut, flat = [], []
    for axis in range(3):
        area = np.prod(np.delete(voxel, axis)) / 100
        slices = np.moveaxis(brain, axis, 0)
        for way in (slices, slices[::-1]):
            cut.append(way[-1].sum() * area)
            ends = np.pad((way[:-1] & ~way[1:]).sum(axis=(1, 2)), 1) * area
            flat.append((ends[1:-1] - np.maximum(ends[:-2], ends[2:])).max(initial=0.0))
    return {"brain_cut_cm2": float(max(cut)), "brain_flat_cm2": float(max(flat))}


def score_affine(matrix: NDArray[np.float64]) -> dict[str, dict[str, float]]:
    """Describe a linear alignment by what can be judged at a glance.

    Parameters
    ----------
    matrix : array, shape (4, 4)
        RAS mm, fixed world to moving world.

    Returns
    -------
    dict
        ``affine``: ``volume_ratio`` (the determinant: volume in the moving image per volume in the fixed one; below 0
        where it mirrors), ``rotation_degrees`` (angle of the nearest rotation) and ``anisotropy`` (largest per
        smallest singular value: 1 for a similarity).
    """
    left, scales, right = np.linalg.svd(matrix[:3, :3])
    ratio = float(np.linalg.det(matrix[:3, :3]))
    rotation = left @ np.diag([1.0, 1.0, np.sign(ratio)]) @ right
    angle = np.degrees(np.arccos(np.clip((np.trace(rotation) - 1) / 2, -1, 1)))
    return {
        "affine": {
            "volume_ratio": ratio,
            "rotation_degrees": float(angle),
            "anisotropy": float(scales[0] / scales[-1]),
        }
    }


def linear_part(transform: Transform) -> NDArray[np.float64]:
    """Return the product of a transform's affine parts (identity if it has none).

    Parameters
    ----------
    transform : Transform

    Returns
    -------
    array, shape (4, 4)
        RAS mm, fixed world to moving world.
    """
    product = np.eye(4)
    for part in transform.parts:
        if isinstance(part, np.ndarray):
            product = part @ product
    return product


def evaluate_transform(
    fixed: nib.Nifti1Image,
    moving: nib.Nifti1Image,
    transform: Transform,
    fixed_dseg: nib.Nifti1Image | None = None,
    moving_dseg: nib.Nifti1Image | None = None,
    labels: LabelTable | None = None,
    fixed_mask: nib.Nifti1Image | None = None,
) -> dict[str, Any]:
    """Score a transform of any tool on the fixed image's own grid.

    Parameters
    ----------
    fixed, moving : Nifti1Image
        The pair.
    transform : Transform
        Forward: fixed world to moving world.
    fixed_dseg, moving_dseg : Nifti1Image, optional
        Labels on the grid of their image.
    labels : LabelTable, optional
        Structures to score; all labels present by default.
    fixed_mask : Nifti1Image, optional
        The fixed brain; by default where `fixed` is above its background.

    Returns
    -------
    dict
        What `score_field`, `score_labels`, `score_overlap` (of a stripped moving image), `score_affine` and
        `score_contrast` give, ``similarity`` as of `score_similarity`, and the verdict ``qc`` of `qc.judge`; a
        score that cannot be computed is None.
    """
    target, source = Brain(fixed, fixed_mask, name="fixed"), Brain(moving, name="moving")
    image, brain = np.asarray(target.intensities.dataobj, dtype=np.float32), target.inside
    linear = linear_part(transform)
    warp = Transform([*transform.parts, np.linalg.inv(linear)])
    offsets = displacement_to_voxels(warp.displacement(fixed))
    scores = score_field(torch.from_numpy(offsets)[None], brain)
    before = after = None
    if moving_dseg is not None:
        before = np.asarray(Transform([linear]).resample(moving_dseg, fixed, "nearest").dataobj)
        after = np.asarray(transform.resample(moving_dseg, fixed, "nearest").dataobj)
    fixed_labels = None if fixed_dseg is None else np.asarray(fixed_dseg.dataobj)
    scores |= score_labels(fixed_labels, before, after, fixed.affine, labels)
    aligned = np.asarray(Transform([linear]).resample(source.intensities, fixed).dataobj, dtype=np.float32)
    moved = np.asarray(transform.resample(source.intensities, fixed).dataobj, dtype=np.float32)
    top = max(float(aligned.max()), float(moved.max())) or 1.0
    scores["similarity"] = score_similarity(image / (float(image.max()) or 1.0), aligned / top, moved / top, brain)
    if looks_skull_stripped(source.intensities):
        masks = (step.resample(source.outline, fixed, "nearest") for step in (Transform([linear]), transform))
        scores |= score_overlap(brain, *(np.asarray(mask.dataobj) for mask in masks))
    scores |= score_affine(linear) | score_contrast(image, aligned)
    return scores | {"qc": quality.judge(scores)}


def jsonable(value: Any) -> Any:
    """Turn scores into what JSON can hold: plain numbers, with None for NaN and infinity.

    Parameters
    ----------
    value : Any
        Scores, nested in mappings and sequences.

    Returns
    -------
    Any
        The same structure in plain Python types.
    """
    if isinstance(value, Mapping):
        return {str(key): jsonable(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [jsonable(item) for item in value]
    if isinstance(value, (bool, np.bool_)):
        return bool(value)
    if isinstance(value, (int, np.integer)):
        return int(value)
    if isinstance(value, (float, np.floating)):
        return float(value) if math.isfinite(value) else None
    return value
