"""The steps of one registration: align linearly, run the network, refine, repair folds, resample once, score.

Data flows one way: images become tensors on the network grid, tensors velocities, velocities a field,
the field a transform in mm, and the transform resamples the native images once.
"""

from __future__ import annotations

import itertools
import math
import os
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import SimpleITK as sitk
import torch
import torch.nn.functional as F
from nibabel import Nifti1Image
from numpy.typing import NDArray
from scipy.ndimage import find_objects

from mmln_pipeline import __version__, weights
from mmln_pipeline.fields import topology, warping
from mmln_pipeline.fields.integration import TAPER_MARGIN, correct_inverse, integrate, taper
from mmln_pipeline.fields.jacobian import jacobian_determinant
from mmln_pipeline.images import volumes
from mmln_pipeline.images.brain import Brain, check_image, check_size
from mmln_pipeline.linear import affine
from mmln_pipeline.machine import devices
from mmln_pipeline.machine.parallel import at_once
from mmln_pipeline.network.architecture import NetworkConfig
from mmln_pipeline.network.model import MMLN
from mmln_pipeline.refinement import descent
from mmln_pipeline.refinement.parameters import DEFAULTS, RefinementSettings
from mmln_pipeline.registration.pair import Pair, read_start
from mmln_pipeline.registration.result import Progress, RegistrationResult, TopologyError
from mmln_pipeline.registration.settings import Settings
from mmln_pipeline.scores import evaluation, metrics, quality
from mmln_pipeline.space.displacements import displacement_from_voxels, displacement_to_voxels
from mmln_pipeline.space.grids import Grid, new_image
from mmln_pipeline.space.transforms import Transform

MIN_OVERLAP = 0.1
"""Share of the fixed brain that the linearly aligned moving brain must cover at least."""
MARGIN = math.ceil(TAPER_MARGIN)
"""Background round both brains that belongs to the registration, voxels: there the map fades to the identity."""


def check(settings: Settings) -> None:
    """Check before work what only this machine can tell of the settings.

    Parameters
    ----------
    settings : Settings

    Raises
    ------
    ValueError
        If the model is unknown, the device is absent, or `init` is not a usable affine.
    FileNotFoundError
        If the file of the model or of the linear start is missing.
    """
    weights.resolve_model(settings.model)
    devices.resolve_device(settings.device)
    read_start(settings.init)


@devices.kept_memory()
def run(
    pair: Pair,
    settings: Settings,
    start: float,
    progress: Progress | None = None,
    refinement: RefinementSettings = DEFAULTS,
    loaded: tuple[MMLN, dict[str, Any]] | None = None,
) -> RegistrationResult:
    """Register a checked pair.

    Parameters
    ----------
    pair : Pair
    settings : Settings
    start : float
        `time.perf_counter` when the work began, reading included.
    progress : callable, optional
        Called as ``progress(stage, done, total)``.
    refinement : RefinementSettings, optional
        What refinement weighs, and how it descends.
    loaded : tuple of MMLN and dict, optional
        The settings' model with its card, where it is in memory already (`mmln_pipeline.weights.load_model`).

    Returns
    -------
    RegistrationResult

    Raises
    ------
    ValueError
        If the model is unknown, an image has one intensity or odd voxels, a brain is too small for a human's, or the
        images do not overlap.
    TopologyError
        If the warp still folds after the repair.

    Warns
    -----
    UserWarning
        If the GPU has too little memory: the pair is registered on the CPU, as the metrics say (`device`, and
        `out_of_memory`, where it was tried first).
    QualityWarning
        If the result does not pass the quality check.
    """
    device = devices.resolve_device(settings.device)
    try:
        result = _run_on(device, pair, settings, start, progress, refinement, loaded)
    except RuntimeError as error:
        if not devices.is_out_of_memory(error):
            raise
        result = None
    if result is None:  # only here the error is gone, and with it what it held on the GPU
        torch.cuda.empty_cache()
        warnings.warn(f"{device} has too little memory left: registered on the CPU", stacklevel=3)
        result = _run_on(torch.device("cpu"), pair, settings, start, progress, refinement)
        result.metrics["out_of_memory"] = str(device)
    result.warn()
    return result


def _run_on(
    device: torch.device,
    pair: Pair,
    settings: Settings,
    start: float,
    progress: Progress | None,
    refinement: RefinementSettings,
    loaded: tuple[MMLN, dict[str, Any]] | None = None,
) -> RegistrationResult:
    """Register a checked pair on a device."""
    clock = _Clock(start, progress, device)
    with clock.stage("load"):
        _prepare_machine(settings, device)
        model, card = loaded or weights.load_model(settings.model, device)
        model.to(device)
    for brain in (pair.fixed, pair.moving):
        check_image(brain.image, f"{brain.name} image")
        check_size(brain, model.config.grid)
    clock.seconds["load"] = time.perf_counter() - start  # reading the images came before
    with clock.stage("affine"):
        matrix = _linear_start(pair, settings)
        network = _to_network_grid(pair, matrix, settings, model.config)
    with clock.stage("network"), torch.no_grad(), devices.autocast(device):
        images = network.fixed.to(device), network.moving.to(device)
        is_silent = model.config.levels in card.get("silent_levels", ())
        velocities = model(*images, finest=settings.refine == 0 and not is_silent)
    with clock.stage("refine"):
        if settings.refine != 0:
            report = clock.steps("refine", sum(refinement.count_steps(settings.refine)))
            weight = _trusted(pair, network, matrix, velocities)
            velocities = descent.refine(
                *images, velocities, settings.refine, weight, progress=report, settings=refinement
            )
    with clock.stage("integrate"), torch.no_grad():
        shape = network.grid.shape
        velocities = [taper(velocity, shape) for velocity in velocities]
        forward, inverse = integrate(velocities, shape), integrate(velocities, shape, inverse=True)
        maps = forward, correct_inverse(inverse, forward)
    with clock.stage("topology"):
        warp = _repair_folds(maps, settings)
    del images, velocities, maps  # some hundred megabytes, before the images' own grids need as much
    with clock.stage("resample"):
        parts = _resample(pair, network, matrix, warp)
    with clock.stage("score"):
        scores = _score(pair, parts["moved_dseg"], network, matrix, warp) | {"topology": warp.certificate}
    facts = scores | _provenance(settings, card, device) | {"seconds": clock.finish()}
    return RegistrationResult(**parts, metrics=evaluation.jsonable(facts))


@dataclass(frozen=True)
class _NetworkInput:
    """The pair as the network sees it: a box of its grid that holds both brains.

    Tensors (1, 1, I, J, K) in [0, 1] on `grid`, the fixed brain, and what of the network's grid lies beyond the box, in
    voxels before and behind it along each axis.
    """

    grid: Grid
    fixed: torch.Tensor
    moving: torch.Tensor
    brain: NDArray[np.bool_]
    beyond: list[tuple[int, int]]

    def on_whole_grid(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return a tensor, its last axes those of the box, with zeros where its box ends and the network's grid not."""
        return F.pad(tensor, [n for sides in reversed(self.beyond) for n in sides])


@dataclass(frozen=True)
class _Warp:
    """The network's map and its inverse in voxels of the box, shape (1, 3, I, J, K), and their certificate."""

    forward: torch.Tensor
    backward: torch.Tensor
    inverted: torch.Tensor | None
    certificate: dict[str, Any]


class _Clock:
    """Seconds spent in each stage, told to a progress callback as they begin and end."""

    def __init__(self, start: float, progress: Progress | None, device: torch.device) -> None:
        self.start = start
        self.device = device
        self.progress = progress
        self.seconds: dict[str, float | None] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        begin = time.perf_counter()
        if self.progress:
            self.progress(name, 0, 1)
        yield
        if self.device.type == "cuda":  # else the next stage would wait for what this one left to be done
            torch.cuda.synchronize(self.device)
        self.seconds[name] = time.perf_counter() - begin
        if self.progress:
            self.progress(name, 1, 1)

    def steps(self, name: str, total: int) -> Callable[[str], None] | None:
        """Return a callback to be called after each of at most `total` steps within a stage, or None."""
        if self.progress is None:
            return None
        progress, done = self.progress, itertools.count(1)
        return lambda text: progress(name, min(next(done), total), total)

    def finish(self) -> dict[str, float | None]:
        """Return the seconds by stage; the field's integration counts as the network's time."""
        self.seconds["network"] = (self.seconds["network"] or 0.0) + (self.seconds.pop("integrate") or 0.0)
        order = ("load", "affine", "network", "refine", "topology", "resample", "score")
        return {name: self.seconds[name] for name in order} | {
            "save": None,
            "total": time.perf_counter() - self.start,
        }


def _prepare_machine(settings: Settings, device: torch.device) -> None:
    devices.set_threads(settings.threads)
    if settings.threads is not None:  # ITK's filters ask the environment, or SimpleITK's own setting
        os.environ["ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS"] = str(settings.threads)
        sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(settings.threads)
    np.random.seed(settings.random_seed)
    torch.manual_seed(settings.random_seed)
    if device.type == "cuda":
        torch.cuda.init()  # a device with a number has no counts before
        torch.cuda.reset_peak_memory_stats(device)


def _linear_start(pair: Pair, settings: Settings) -> NDArray[np.float64]:
    known = read_start(settings.init)
    if known is not None:
        return known
    return affine.estimate_affine(pair.fixed, pair.moving, str(settings.init), settings.random_seed)


def _to_network_grid(
    pair: Pair, matrix: NDArray[np.float64], settings: Settings, config: NetworkConfig
) -> _NetworkInput:
    """Bring the pair onto the network grid, then cut it to the brains; resampled is only what lies on another grid."""
    grid = volumes.network_grid(pair.fixed.intensities, pair.fixed.mask, config.grid)
    fixed, moving = at_once(
        partial(_brain_on_grid, pair.fixed, grid, np.eye(4)), partial(_brain_on_grid, pair.moving, grid, matrix)
    )
    if pair.fixed.mask is None:
        brain = fixed > 0
    else:
        brain = np.asarray(volumes.conform(pair.fixed.mask, grid, interpolation="nearest").dataobj) != 0
    overlap = float((moving[brain] > 0).mean()) if brain.any() else 0.0
    if overlap < MIN_OVERLAP:
        raise ValueError(
            f"The fixed and the moving image do not overlap with init '{settings.init_name}': the moving "
            f"image covers {100 * overlap:.0f}% of the fixed brain; use --init affine, or mend the headers."
        )
    box = _box_round((fixed > 0) | (moving > 0), 2**config.levels)
    fixed_tensor, moving_tensor = (
        torch.from_numpy(volumes.normalize_intensity(array[box]))[None, None] for array in (fixed, moving)
    )
    beyond = [(along.start, n - along.stop) for along, n in zip(box, grid.shape, strict=True)]
    return _NetworkInput(grid.cut(box), fixed_tensor, moving_tensor, brain[box], beyond)


def _box_round(inside: NDArray[np.bool_], step: int) -> tuple[slice, ...]:
    """Return the box of what is inside and a margin, in whole voxels of the coarsest grid, `step` times as coarse."""
    (box,) = find_objects(inside.astype(np.uint8))
    return tuple(
        slice(max(0, (along.start - MARGIN) // step * step), min(n, math.ceil((along.stop + MARGIN) / step) * step))
        for along, n in zip(box, inside.shape, strict=True)
    )


def _brain_on_grid(brain: Brain, grid: Grid, matrix: NDArray[np.float64]) -> NDArray[np.float32]:
    """Pull a brain onto the network grid, without what lies outside its mask and without bleeding into it.

    Interpolated with the background, the surface would be a rim of half the brightness: fluid, to who looks at tissues.
    """
    data, inside = brain.intensities.get_fdata(dtype=np.float32), brain.inside
    start = None if np.array_equal(matrix, np.eye(4)) else matrix  # None on the image's own grid: a copy
    values, share = (
        np.ascontiguousarray(
            volumes.conform(new_image(part, brain.image), grid, affine=start).dataobj, dtype=np.float32
        )
        for part in (np.where(inside, data, np.float32(0)), inside.astype(np.float32))
    )
    return np.divide(values, share, out=np.zeros_like(values), where=share >= 0.5)


def _trusted(
    pair: Pair, network: _NetworkInput, matrix: NDArray[np.float64], velocities: Sequence[torch.Tensor]
) -> torch.Tensor | None:
    """Return what each fixed voxel counts in the refinement: 0 where the lesion comes to lie."""
    if pair.moving.lesion is None:
        return None
    marked = new_image((np.asarray(pair.moving.lesion.dataobj) != 0).astype(np.float32), pair.moving.lesion)
    lesion = np.asarray(volumes.conform(marked, network.grid, affine=matrix).dataobj)
    with torch.no_grad():
        warp = integrate(velocities, network.grid.shape)
        return (warping.warp(torch.from_numpy(lesion)[None, None].to(warp.device), warp) < 0.5).float()


def _repair_folds(maps: tuple[torch.Tensor, torch.Tensor], settings: Settings) -> _Warp:
    """Make the warp and its inverse free of folds, or let them pass, as the options ask."""
    if settings.topology == "off":
        forward, backward = (displacement.cpu() for displacement in maps)
        return _Warp(forward, backward, None, {"mode": "off"})
    repair, inverse = at_once(*(partial(topology.enforce, displacement) for displacement in maps))
    if not repair.reached:
        raise TopologyError(
            f"The warp still folds after {repair.rounds} rounds of repair (NDV {repair.ndv_percent:.2g}% of "
            f"the grid, smallest Jacobian determinant {repair.min_jacobian:.2g}), so nothing was written; check "
            "that both images show a whole brain in the right orientation, or accept folds with --topology off."
        )
    certificate = {"mode": "strict"} | repair.certificate()
    certificate |= {f"inverse_{name}": value for name, value in inverse.certificate().items()}
    return _Warp(repair.displacement.cpu(), inverse.displacement.cpu(), repair.ndv.cpu(), certificate)


def _resample(
    pair: Pair,
    network: _NetworkInput,
    matrix: NDArray[np.float64],
    field: _Warp,
) -> dict[str, Any]:
    """Join affine and warp to transforms in mm, and take the native images through them, once: a result's parts."""
    is_identity = np.array_equal(matrix, np.eye(4))
    linear = [] if is_identity else [matrix]
    linear_inverse = [] if is_identity else [np.linalg.inv(matrix)]
    there, back = (displacement_from_voxels(u[0].numpy(), network.grid.affine) for u in (field.forward, field.backward))
    transform = Transform([there, *linear])

    def measure() -> dict[str, Any]:
        warp = transform.displacement(pair.fixed.image)
        offsets = torch.from_numpy(displacement_to_voxels(warp))[None]
        return {"warp": warp, "jacobian": new_image(jacobian_determinant(offsets)[0].numpy(), pair.fixed.image)}

    def move(name: str, image: Nifti1Image | None, interpolation: str) -> dict[str, Any]:
        return {name: None if image is None else transform.resample(image, pair.fixed.image, interpolation)}

    with transform.held():
        parts = at_once(
            measure,
            lambda: move("moved", pair.moving.image, "linear"),
            lambda: move("moved_dseg", pair.moving_dseg, "nearest"),
        )
    sampled = {name: image for part in parts for name, image in part.items()}
    given = {"fixed": pair.fixed.image, "moving": pair.moving.image, "affine": matrix}
    return sampled | given | {"transform": transform, "inverse": Transform([*linear_inverse, back])}


def _score(
    pair: Pair,
    moved_dseg: Nifti1Image | None,
    network: _NetworkInput,
    matrix: NDArray[np.float64],
    warp: _Warp,
) -> dict[str, Any]:
    fixed, moving = network.fixed[0, 0].numpy(), network.moving[0, 0].numpy()
    outline = _carry(pair.moving.outline, matrix, network.grid)

    def label_scores() -> dict[str, Any]:
        before = after = None
        if pair.moving_dseg is not None and moved_dseg is not None:
            linear = Transform([matrix]).resample(pair.moving_dseg, pair.fixed.image, "nearest")
            before, after = np.asarray(linear.dataobj), np.asarray(moved_dseg.dataobj)
        fixed_labels = None if pair.fixed_dseg is None else np.asarray(pair.fixed_dseg.dataobj)
        return evaluation.score_labels(fixed_labels, before, after, pair.fixed.image.affine, pair.labels)

    def similarity() -> dict[str, Any]:
        warped = warping.warp(network.moving, warp.forward)[0, 0].numpy()
        return {"similarity": evaluation.score_similarity(fixed, moving, warped, network.brain)}

    def overlap() -> dict[str, Any]:
        moved = warping.warp(torch.from_numpy(outline.astype(np.float32))[None, None], warp.forward)[0, 0].numpy()
        return evaluation.score_overlap(network.brain, outline, moved >= 0.5)

    def consistency() -> dict[str, Any]:
        fields, spacing = (warp.forward[0].numpy(), warp.backward[0].numpy()), network.grid.spacing.tolist()
        return {"inverse_consistency_mm": metrics.inverse_consistency(*fields, network.brain, spacing)}

    def regularity() -> dict[str, Any]:
        brain = network.on_whole_grid(torch.from_numpy(network.brain)).numpy()
        inverted = None if warp.inverted is None else network.on_whole_grid(warp.inverted)
        return evaluation.score_field(network.on_whole_grid(warp.forward), brain, inverted)

    parts = at_once(
        label_scores,
        similarity,
        regularity,
        lambda: evaluation.score_contrast(fixed, moving) | evaluation.score_field_of_view(pair.moving.outline),
        lambda: overlap() | evaluation.score_affine(matrix),
        consistency,
    )
    scores: dict[str, Any] = {name: value for part in parts for name, value in part.items()}
    scores["headers"] = pair.headers
    return scores | {"qc": quality.judge(scores)}


def _carry(mask: Nifti1Image, matrix: NDArray[np.float64], grid: Grid) -> NDArray[np.bool_]:
    """Return where the linearly aligned moving brain lies on the network grid."""
    return np.asarray(volumes.conform(mask, grid, affine=matrix, interpolation="nearest").dataobj) != 0


def _provenance(settings: Settings, card: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """Say with what the result was made and how much memory it took."""
    facts: dict[str, Any] = {
        "init": settings.init_name,
        "refine": settings.refine,
        "random_seed": settings.random_seed,
        "peak_memory_mb": devices.peak_memory_mb(),
        "device": str(device),
        "model": card["name"],
        "model_sha256": card["sha256"],
        "model_license": card.get("license", ""),
        "version": __version__,
    }
    if device.type == "cuda":
        facts["device_name"] = torch.cuda.get_device_name(device)
        facts["peak_gpu_memory_mb"] = torch.cuda.max_memory_allocated(device) / 2**20
    return facts
