"""ANTs' symmetric normalisation: SyN, which smooths each update, and its elastic form, which smooths the field."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from nibabel import Nifti1Image
from numpy.typing import NDArray

from mmln_pipeline.study.methods.base import Method, expect_word

METRICS = {"CC": 4, "mattes": 32}
"""Similarities, and their radius or number of bins."""


@dataclass(frozen=True)
class SyNSettings:
    """Options of SyN, antsRegistration's.

    Parameters
    ----------
    metric : {"mattes", "CC"}
        Mutual information or cross-correlation.
    sampling : int
        Bins of mutual information, or radius of cross-correlation in voxels; 0 for the usual 32 or 4.
    iterations : tuple of int
        Most steps at each size, coarse to fine, each twice the one before.
    step : float
        Of the gradient.
    update_smoothing, total_smoothing : float
        Variance in voxels of the Gaussian that smooths each update, and the whole field.
    """

    metric: str = "mattes"
    sampling: int = 0
    iterations: tuple[int, ...] = (40, 20, 0)
    step: float = 0.2
    update_smoothing: float = 3.0
    total_smoothing: float = 0.0

    def __post_init__(self) -> None:
        expect_word("metric", self.metric, list(METRICS))
        if not self.iterations or min(self.iterations) < 0:
            raise ValueError(f"iterations: expected numbers of at least 0, found {list(self.iterations)}")


@dataclass(frozen=True)
class ElasticSettings(SyNSettings):
    """Options of the elastic form."""

    total_smoothing: float = 0.5


class SyN(Method):
    """SyN without a linear stage: the pair is aligned."""

    name = "syn"
    needs = ("antspyx",)
    Settings = SyNSettings
    settings: SyNSettings

    def displacement(self, fixed: Nifti1Image, moving: Nifti1Image) -> NDArray[Any]:
        """Run antsRegistration and read its warp."""
        if self.surroundings.threads is not None:
            os.environ["ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS"] = str(self.surroundings.threads)
        import ants

        from mmln_pipeline.space.displacements import displacement_to_voxels
        from mmln_pipeline.space.transforms import Transform, read_transform

        s = self.settings
        with TemporaryDirectory(prefix="mmln-") as folder:
            found = ants.registration(
                _to_ants(fixed),
                _to_ants(moving),
                "SyNOnly",
                initial_transform="Identity",
                outprefix=str(Path(folder) / "syn"),
                grad_step=s.step,
                flow_sigma=s.update_smoothing,
                total_sigma=s.total_smoothing,
                syn_metric=s.metric,
                syn_sampling=s.sampling or METRICS[s.metric],
                reg_iterations=s.iterations,
            )
            # antspyx lists what resampling needs, ANTs' way: applied to a point from the last to the first
            parts = [part for path in reversed(found["fwdtransforms"]) for part in read_transform(path).parts]
        return displacement_to_voxels(Transform(parts).displacement(fixed))


class Elastic(SyN):
    """SyN with elastic regularisation.

    Not antspyx's "ElasticSyN" by its name: that smooths the updates alone, as its SyN does, behind an affine.
    """

    name = "elastic"
    Settings = ElasticSettings


def _to_ants(image: Nifti1Image) -> Any:
    import ants

    from mmln_pipeline.space.itk import itk_geometry

    origin, spacing, direction = itk_geometry(image)
    return ants.from_numpy(image.get_fdata(dtype=np.float32), origin, spacing, np.reshape(direction, (3, 3)))
