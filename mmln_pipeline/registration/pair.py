"""The inputs of a registration, read and checked before any work starts."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from nibabel import Nifti1Image
from numpy.typing import NDArray

from mmln_pipeline.atlas.labels import LabelTable, load_label_table
from mmln_pipeline.images import volumes
from mmln_pipeline.images.brain import Brain
from mmln_pipeline.images.objects import ImageSource, as_source
from mmln_pipeline.linear.affine import load_affine
from mmln_pipeline.machine.options import find_option
from mmln_pipeline.registration.settings import Settings
from mmln_pipeline.space.grids import check_same_grid, in_mm
from mmln_pipeline.space.placement import find_placements, score_headers


@dataclass(frozen=True)
class Pair:
    """What is registered, checked.

    Parameters
    ----------
    fixed, moving : Brain
        The pair.
    fixed_dseg, moving_dseg : Nifti1Image or None
        Labels, each on the grid of its image.
    labels : LabelTable or None
        Structures to score.
    headers : dict
        How the headers of the files are read (`mmln_pipeline.space.placement.score_headers`).
    """

    fixed: Brain
    moving: Brain
    fixed_dseg: Nifti1Image | None = None
    moving_dseg: Nifti1Image | None = None
    labels: LabelTable | None = None
    headers: dict[str, Any] = field(default_factory=dict)


def load_pair(
    fixed: ImageSource,
    moving: ImageSource,
    fixed_dseg: ImageSource | None = None,
    moving_dseg: ImageSource | None = None,
    labels: str | Path | LabelTable | None = None,
    fixed_mask: ImageSource | None = None,
    moving_mask: ImageSource | None = None,
    moving_lesion: ImageSource | None = None,
) -> Pair:
    """Read the inputs of a registration and check all that can be checked beforehand.

    Parameters
    ----------
    fixed, moving, fixed_dseg, moving_dseg, labels, fixed_mask, moving_mask, moving_lesion
        See `mmln_pipeline.register`.

    Returns
    -------
    Pair

    Raises
    ------
    FileNotFoundError
        If a file is missing.
    ValueError
        If an image cannot be used, labels or a mask lie on another grid than their image, or the label
        table and the labels have no number in common.
    """
    given = {
        **{"fixed image": fixed, "moving image": moving, "fixed dseg": fixed_dseg, "moving dseg": moving_dseg},
        **{"fixed mask": fixed_mask, "moving mask": moving_mask, "moving lesion mask": moving_lesion},
    }
    sources = {name: as_source(source, name) for name, source in given.items() if source is not None}
    fixed_image, moving_image = (_load_image(sources[name], name) for name in ("fixed image", "moving image"))
    table = load_label_table(labels) if isinstance(labels, (str, Path)) else labels
    if table is not None and moving_dseg is None:
        raise ValueError("labels: a label table needs labels to score; give the moving (and fixed) dseg too.")
    images = {"fixed image": fixed_image, "moving image": moving_image}

    def load(name: str, of: str, table: LabelTable | None = None) -> Nifti1Image | None:
        return _load_labels(sources.get(name), name, images[of], of, table)

    files = {name: path for name, path in sources.items() if isinstance(path, str | Path)}
    fixed_brain = Brain(fixed_image, load("fixed mask", "fixed image"), name="fixed")
    moving_brain = Brain(
        moving_image, load("moving mask", "moving image"), load("moving lesion mask", "moving image"), "moving"
    )
    return Pair(
        fixed_brain.like(moving_brain),
        moving_brain.like(fixed_brain),
        load("fixed dseg", "fixed image", table),
        load("moving dseg", "moving image", table),
        table,
        score_headers(find_placements(files)),
    )


def read_start(init: str | Path | NDArray[np.float64]) -> NDArray[np.float64] | None:
    """Return the linear start where it is known beforehand.

    Parameters
    ----------
    init : str, path or ndarray of shape (4, 4)
        See `mmln_pipeline.registration.settings.Settings`.

    Returns
    -------
    ndarray of shape (4, 4), or None
        RAS mm, fixed world to moving world; None where it has to be estimated.

    Raises
    ------
    ValueError
        If a matrix is not finite or not 4 x 4, or a file holds more than linear transforms.
    FileNotFoundError
        If `init` is neither a known word nor a file.
    """
    if not isinstance(init, str | Path):
        matrix = np.array(init, np.float64)
        if matrix.shape != (4, 4) or not np.isfinite(matrix).all():
            raise ValueError(f"init: expected a finite 4 x 4 matrix, found shape {matrix.shape}.")
        return matrix
    option = find_option(Settings, "init")
    if init in option.words:
        return np.eye(4) if init == "identity" else None
    if not Path(init).is_file():
        raise FileNotFoundError(
            f"init: expected {', '.join(option.words)} or an ITK affine file; no such file: '{init}'."
        )
    return load_affine(init)


def _load_image(source: str | Path | Nifti1Image, name: str) -> Nifti1Image:
    """Read an image, or check one that is in memory already."""
    if not isinstance(source, Nifti1Image):
        return volumes.load_image(source, name=name)
    data = np.asanyarray(source.dataobj)
    if data.ndim != 3 or not data.any() or not np.isfinite(data).all():
        raise ValueError(
            f"{name}: expected a finite 3-D volume that is not all zero, found shape {data.shape}, "
            f"{np.count_nonzero(~np.isfinite(data))} voxels not finite, {np.count_nonzero(data)} not zero."
        )
    return in_mm(source)


def _load_labels(
    source: str | Path | Nifti1Image | None,
    name: str,
    reference: Nifti1Image,
    reference_name: str,
    table: LabelTable | None = None,
) -> Nifti1Image | None:
    if source is None:
        return None
    if isinstance(source, Nifti1Image):
        image, path = in_mm(source), ""
    else:
        image, path = volumes.load_labels(source, name=name), str(source)
    check_same_grid(image, name, reference, reference_name, path)
    if table is not None and not np.isin(np.unique(np.asarray(image.dataobj)), table.numbers).any():
        raise ValueError(
            f"The {name} has none of the numbers of label table '{table.name}'; is it in another label system?"
        )
    return image
