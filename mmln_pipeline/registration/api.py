"""Register one pair of brain images: the function that users call.

The libraries that it needs load with the first call, so that ``import mmln_pipeline`` and
``mmln --help`` are quick; the work itself is in `mmln_pipeline.registration.steps`.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

from mmln_pipeline.registration.result import Progress, QualityWarning, RegistrationResult, TopologyError

__all__ = ["QualityWarning", "RegistrationResult", "TopologyError", "register"]

if TYPE_CHECKING:
    import numpy as np
    from nibabel import Nifti1Image
    from numpy.typing import NDArray

    from mmln_pipeline.atlas.labels import LabelTable


def register(
    fixed: str | Path | Nifti1Image,
    moving: str | Path | Nifti1Image,
    *,
    init: str | Path | NDArray[np.float64] = "affine",
    fixed_dseg: str | Path | Nifti1Image | None = None,
    moving_dseg: str | Path | Nifti1Image | None = None,
    labels: str | Path | LabelTable | None = None,
    fixed_mask: str | Path | Nifti1Image | None = None,
    moving_mask: str | Path | Nifti1Image | None = None,
    moving_lesion: str | Path | Nifti1Image | None = None,
    model: str | Path = "mmln",
    refine: int | str = "auto",
    device: str = "auto",
    threads: int | None = None,
    random_seed: int = 0,
    topology: str = "strict",
    progress: Progress | None = None,
) -> RegistrationResult:
    """Register a moving brain image to a fixed one.

    Parameters
    ----------
    fixed, moving : path or Nifti1Image
        Skull-stripped 3-D images, or raw heads together with their masks
        (`mmln_pipeline.linear.skullstrip.find_brain`).
    init : {"affine", "rigid", "identity"}, path or ndarray of shape (4, 4), default="affine"
        Linear start: estimate one, take the images as aligned already, read an ITK affine file, or
        use a matrix (RAS mm, fixed world to moving world).
    fixed_dseg, moving_dseg : path or Nifti1Image, optional
        Labels, each on the grid of its image; they are scored and never steer the registration.
    labels : path, name or LabelTable, optional
        Structures to score (``structures28`` is bundled); default: every label but the background.
    fixed_mask, moving_mask : path or Nifti1Image, optional
        Brain masks, each on the grid of its image; default: the non-zero voxels.
    moving_lesion : path or Nifti1Image, optional
        Where the moving brain has no counterpart in the fixed one (non-zero), on its grid: these voxels steer
        neither the linear start nor the refinement. The network itself knows nothing of lesions.
    model : str or Path, default="mmln"
        Name of bundled weights or path of a weights file.
    refine : int or "auto", default="auto"
        Steps of instance optimisation in the place of the network's finest level; 0 gives the whole network alone.
    device : str, default="auto"
        ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
    threads : int, optional
        Threads on the CPU; default: the libraries' own choice.
    random_seed : int, default=0
        Seed of NumPy, torch and the sampling of the affine (ITK).
    topology : {"strict", "off"}, default="strict"
        Repair the warp where it folds until its non-diffeomorphic volume (NDV) is zero, or fail; ``off``
        returns the warp as it comes.
    progress : callable, optional
        Called as ``progress(stage, done, total)``.

    Returns
    -------
    RegistrationResult

    Raises
    ------
    FileNotFoundError
        If a file is missing.
    ValueError
        If an image, an option, the model or the device cannot be used; raised before work starts
        unless only the data can tell (images that do not overlap, an affine that fails).
    TopologyError
        If the warp still folds after the repair (`topology` "strict").

    Warns
    -----
    QualityWarning
        If the result does not pass the quality check (``metrics["qc"]``); it names the reasons.

    Notes
    -----
    Folds, NDV and SDlogJ are those of the network's warp, measured on the 160 x 192 x 224 network
    grid: over the whole grid and inside the fixed brain. Dice, TC and HD95 are measured on the fixed
    image's own grid. `jacobian` is that of the whole transform, affine included. ``metrics["topology"]``
    is the certificate of the repair.
    """
    start = time.perf_counter()
    from mmln_pipeline.registration import pair as inputs
    from mmln_pipeline.registration import steps

    options = inputs.Options(init, model, refine, device, threads, random_seed, topology)
    pair = inputs.load_pair(fixed, moving, fixed_dseg, moving_dseg, labels, fixed_mask, moving_mask, moving_lesion)
    return steps.run(pair, options, start, progress)
