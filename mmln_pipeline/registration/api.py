"""Register one pair of brain images: the function that users call.

The libraries that it needs load with the first call, so that ``import mmln_pipeline`` and
``mmln --help`` are quick; the work itself is in `mmln_pipeline.registration.steps`.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmln_pipeline.machine.environment import prepare_environment
from mmln_pipeline.refinement.parameters import DEFAULTS, RefinementSettings
from mmln_pipeline.registration.result import Progress, QualityWarning, RegistrationResult, TopologyError
from mmln_pipeline.registration.settings import Settings

__all__ = ["QualityWarning", "RegistrationResult", "TopologyError", "register"]

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from mmln_pipeline.atlas.labels import LabelTable
    from mmln_pipeline.images.objects import ImageSource


def register(
    fixed: ImageSource,
    moving: ImageSource,
    *,
    init: str | Path | NDArray[np.float64] | Any = Settings.init,
    fixed_dseg: ImageSource | None = None,
    moving_dseg: ImageSource | None = None,
    labels: str | Path | LabelTable | None = None,
    fixed_mask: ImageSource | None = None,
    moving_mask: ImageSource | None = None,
    moving_lesion: ImageSource | None = None,
    model: str | Path = Settings.model,
    refine: int | str = Settings.refine,
    device: str = Settings.device,
    threads: int | None = Settings.threads,
    random_seed: int = Settings.random_seed,
    topology: str = Settings.topology,
    progress: Progress | None = None,
    refinement: RefinementSettings = DEFAULTS,
) -> RegistrationResult:
    """Register a moving brain image to a fixed one.

    Parameters
    ----------
    fixed, moving : path, image of NiBabel or TorchIO, or (array, affine)
        Skull-stripped 3-D images, or raw heads together with their masks
        (`mmln_pipeline.linear.skullstrip.find_brain`). An affine leads from voxels to RAS mm.
    fixed_dseg, moving_dseg : as `fixed`, optional
        Labels, each on the grid of its image; they are scored and never steer the registration.
    labels : path, name or LabelTable, optional
        Structures to score (``structures28`` is bundled); default: every label but the background.
    fixed_mask, moving_mask : as `fixed`, optional
        Brain masks, each on the grid of its image; default: the non-zero voxels.
    moving_lesion : as `fixed`, optional
        Where the moving brain has no counterpart in the fixed one (non-zero), on its grid: these voxels steer
        neither the linear start nor the refinement. The network itself knows nothing of lesions.
    init, model, refine, device, threads, random_seed, topology
        How to register: the fields of :class:`~mmln_pipeline.registration.settings.Settings`. `init` may be a linear
        transform too, of this package or of nitransforms.
    progress : callable, optional
        Called as ``progress(stage, done, total)``.
    refinement : RefinementSettings, optional
        What refinement weighs, and how it descends, for experiments; the defaults are those that were measured.

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
    prepare_environment()
    from mmln_pipeline.registration import steps
    from mmln_pipeline.registration.pair import load_pair

    settings = Settings(
        init=_start_of(init),
        model=model,
        refine=refine,
        device=device,
        threads=threads,
        random_seed=random_seed,
        topology=topology,
    )
    steps.check(settings)
    pair = load_pair(fixed, moving, fixed_dseg, moving_dseg, labels, fixed_mask, moving_mask, moving_lesion)
    return steps.run(pair, settings, start, progress, refinement)


def _start_of(init: Any) -> Any:
    """Return a transform's matrix, and whatever else is given as it is."""
    if not hasattr(init, "matrix"):
        return init
    if init.matrix is None:
        raise ValueError(f"init: expected a linear transform, found {init!r}.")
    return init.matrix
