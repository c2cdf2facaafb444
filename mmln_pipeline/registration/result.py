"""What a registration gives, and how it is written to a folder.

Numerical libraries are imported inside the functions, so that ``import mmln_pipeline`` is quick.
"""

from __future__ import annotations

import json
import time
import warnings
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from nibabel import Nifti1Image
    from numpy.typing import NDArray

    from mmln_pipeline.space.displacements import DisplacementField
    from mmln_pipeline.space.transforms import Transform

Progress = Callable[[str, int, int], None]
"""Called with the name of the stage, the steps done and the steps in all."""

OUTPUTS = {
    "moved": "moved.nii.gz",
    "moved_dseg": "moved_dseg.nii.gz",
    "transform": "forward_xfm.h5",
    "inverse": "inverse_xfm.h5",
    "warp": "warp.nii.gz",
    "jacobian": "jacobian.nii.gz",
    "metrics": "metrics.json",
}
"""File name of each part of a result in the output directory."""


class QualityWarning(UserWarning):
    """The quality check did not pass: the result is there, and somebody should look at it."""


class TopologyError(RuntimeError):
    """The warp folds and could not be repaired: the input was right, and yet there is no result to vouch for."""


@dataclass(frozen=True, eq=False, repr=False)
class RegistrationResult:
    """What a registration gives.

    In a notebook a result shows its verdict, its main scores and three planes before and after.

    Attributes
    ----------
    fixed, moving : Nifti1Image
        The images that were registered, as they were given.
    moved : Nifti1Image
        The moving image on the fixed image's own grid, sampled once from the native moving image.
    moved_dseg : Nifti1Image or None
        The moving labels on the fixed grid, sampled once by nearest neighbour.
    transform : Transform
        Forward: maps points of the fixed world to the moving world, and so resamples the moving
        image onto the fixed grid.
    inverse : Transform
        Maps points of the moving world to the fixed world.
    affine : ndarray, shape (4, 4)
        Linear part of `transform`, RAS mm.
    warp : DisplacementField
        The whole of `transform` as offsets in mm on the fixed image's grid.
    jacobian : Nifti1Image
        Jacobian determinant of the whole of `transform` on the fixed image's grid.
    metrics : dict
        Scores, times and versions, as in ``metrics.json``, where the time of writing joins them; ``metrics["qc"]`` is
        the verdict on them (see `mmln_pipeline.scores.quality`).
    """

    fixed: Nifti1Image
    moving: Nifti1Image
    moved: Nifti1Image
    moved_dseg: Nifti1Image | None
    transform: Transform
    inverse: Transform
    affine: NDArray[np.float64]
    warp: DisplacementField
    jacobian: Nifti1Image
    metrics: dict[str, Any] = field(repr=False)

    def __repr__(self) -> str:
        from mmln_pipeline.registration.display import list_scores

        verdict = (self.metrics.get("qc") or {}).get("verdict", "not judged")
        scores = (f"{name} {value}" for name, value in list_scores(self.metrics).items())
        size = "x".join(map(str, self.moved.shape))
        return f"<RegistrationResult: {verdict}, {', '.join((*scores, f'on {size} voxels'))}>"

    def _repr_html_(self) -> str:
        from mmln_pipeline.registration.display import to_html

        return to_html(self)

    def plot(self, view: str = "moved", **settings: Any) -> Any:
        """Draw the result with nilearn: the edges of the fixed image over the moving one, or the volume changes.

        Parameters
        ----------
        view : {"moved", "before", "fixed", "log_jacobian"}, default="moved"
            The moving image after registration or before it, the fixed image, or the log-Jacobian over it.
        **settings
            Go to nilearn's `plot_anat` (`plot_stat_map` for the log-Jacobian), such as `cut_coords` or `display_mode`.

        Returns
        -------
        nilearn.plotting.displays.BaseSlicer
            The display, to draw more on or to save (`display.savefig`).

        Raises
        ------
        ValueError
            If the view is another.
        """
        from mmln_pipeline.registration.display import plot

        return plot(self, view, **settings)

    def to_nitransforms(self) -> Any:
        """Return `transform` as nitransforms has it: a dense field on the fixed image's grid.

        Returns
        -------
        nitransforms.nonlinear.DenseFieldTransform
            For `nitransforms.resampling.apply`; between the voxels of the fixed image it is interpolated linearly.

        Raises
        ------
        ValueError
            If nitransforms is not installed.
        """
        from mmln_pipeline.space.other_tools import to_nitransforms

        return to_nitransforms(self.transform, self.fixed)

    def to_torchio(self) -> Any:
        """Return the result as a subject of TorchIO.

        Returns
        -------
        torchio.Subject
            Images `fixed`, `moved` and `jacobian`, and the label map `moved_dseg` where there is one; all on one grid.

        Raises
        ------
        ValueError
            If TorchIO is not installed.
        """
        from mmln_pipeline.images.objects import to_torchio

        images = {"fixed": self.fixed, "moved": self.moved, "jacobian": self.jacobian}
        return to_torchio(images, {"moved_dseg": self.moved_dseg} if self.moved_dseg else {})

    @property
    def before(self) -> Nifti1Image:
        """The moving image on the fixed grid by `affine` alone: where the warp began."""
        from mmln_pipeline.space.transforms import Transform

        return Transform((self.affine,)).resample(self.moving, self.fixed, "linear")

    @property
    def log_jacobian(self) -> Nifti1Image:
        """Natural logarithm of `jacobian`, determinants below 1e-9 as 1e-9, float32."""
        import numpy as np

        from mmln_pipeline.space.grids import new_image

        determinant = self.jacobian.get_fdata(dtype=np.float32)
        return new_image(np.log(np.clip(determinant, 1e-9, None)).astype(np.float32), self.jacobian)

    def warn(self) -> None:
        """Warn of a result that did not pass the quality check, with the reasons.

        Warns
        -----
        QualityWarning
            If the verdict is "look" or "fail".
        """
        text = describe_doubt(self.metrics)
        if text:
            warnings.warn(text, QualityWarning, stacklevel=3)

    def save(self, output_dir: str | Path, outputs: Collection[str] | None = None, prefix: str = "") -> dict[str, Path]:
        """Write the parts of the result; a file is either whole or not there.

        Parameters
        ----------
        output_dir : str or Path
            Folder, created where absent.
        outputs : collection of str, optional
            Which of the parts in `OUTPUTS` (default: all).
        prefix : str, default=""
            What the files' names begin with.

        Returns
        -------
        dict of str to Path
            The files written, by the name of the attribute.

        Raises
        ------
        ValueError
            If `output_dir` is a file.
        """
        from mmln_pipeline.images.volumes import save_image
        from mmln_pipeline.machine.files import write_text
        from mmln_pipeline.machine.parallel import at_once
        from mmln_pipeline.space.itk import save_displacement

        start = time.perf_counter()
        folder = check_output_dir(output_dir)
        names = [name for name in OUTPUTS if outputs is None or name in outputs]
        paths = {name: folder / f"{prefix}{OUTPUTS[name]}" for name in names if getattr(self, name) is not None}
        writers = {"transform": self.transform.save, "inverse": self.inverse.save} | {
            name: partial(save_image, getattr(self, name)) for name in ("moved", "moved_dseg", "jacobian")
        }
        writers["warp"] = partial(save_displacement, self.warp)
        at_once(*(partial(write, paths[name]) for name, write in writers.items() if name in paths))
        seconds, took = self.metrics["seconds"], time.perf_counter() - start
        content = self.metrics | {"seconds": seconds | {"save": took, "total": seconds["total"] + took}}
        if "metrics" in paths:  # last: who finds them finds all
            write_text(paths["metrics"], json.dumps(content, indent=2, allow_nan=False) + "\n")
        return paths


def describe_doubt(metrics: Mapping[str, Any]) -> str:
    """Say in one line why a result did not pass the quality check.

    Parameters
    ----------
    metrics : mapping
        As in ``metrics.json``.

    Returns
    -------
    str
        Verdict and reasons; empty for a pass, and where no verdict is recorded.

    Examples
    --------
    >>> describe_doubt({"qc": {"verdict": "look", "reasons": ["rotation is above 45"]}})
    'quality check: look: rotation is above 45'
    >>> describe_doubt({"qc": {"verdict": "pass", "reasons": []}})
    ''
    """
    verdict = metrics.get("qc") or {"verdict": "pass"}
    if verdict["verdict"] == "pass":
        return ""
    return f"quality check: {verdict['verdict']}: {'; '.join(verdict['reasons'])}"


def check_output_dir(path: str | Path, make: bool = True) -> Path:
    """Return a folder to write to.

    Parameters
    ----------
    path : str or Path
        The folder asked for.
    make : bool, default=True
        Whether to create it where absent; else it is only asked whether that could be done.

    Returns
    -------
    Path

    Raises
    ------
    ValueError
        If the path, or a parent of it, is a file or cannot be written to.
    """
    from mmln_pipeline.machine.files import why_no_folder

    folder = Path(path)
    reason = why_no_folder(folder)
    if reason is not None:
        raise ValueError(f"output directory {folder}: {reason}: choose another folder")
    if make:
        folder.mkdir(parents=True, exist_ok=True)
    return folder
