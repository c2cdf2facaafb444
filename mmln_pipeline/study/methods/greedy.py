"""The greedy diffeomorphic registration of PICSL (the group of ITK-SNAP)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from nibabel import Nifti1Image
from numpy.typing import NDArray

from mmln_pipeline.study.methods.base import Method


@dataclass(frozen=True)
class GreedySettings:
    """Options of greedy.

    Parameters
    ----------
    radius : int
        Of the normalised cross-correlation, voxels.
    iterations : tuple of int
        Steps at each size, coarse to fine, each twice the one before.
    smoothing : tuple of 2 float
        Widths in voxels of the Gaussians that smooth each update and the whole field.
    """

    radius: int = 2
    iterations: tuple[int, ...] = (100, 50, 10)
    smoothing: tuple[float, float] = (1.732, 0.707)

    def __post_init__(self) -> None:
        if self.radius < 1:
            raise ValueError(f"radius: expected at least 1, found {self.radius}")
        if not self.iterations or min(self.iterations) < 0:
            raise ValueError(f"iterations: expected numbers of at least 0, found {list(self.iterations)}")


class Greedy(Method):
    """Greedy, from an identity start."""

    name = "greedy"
    needs = ("picsl-greedy",)
    Settings = GreedySettings
    settings: GreedySettings

    def displacement(self, fixed: Nifti1Image, moving: Nifti1Image) -> NDArray[Any]:
        """Run greedy in this process, on images in memory."""
        from picsl_greedy import Greedy3D

        from mmln_pipeline.space.displacements import displacement_to_voxels
        from mmln_pipeline.space.itk import array_to_sitk, field_from_sitk

        s = self.settings
        images = [array_to_sitk(image.get_fdata(dtype=np.float32), image.affine) for image in (fixed, moving)]
        threads = "" if self.surroundings.threads is None else f"-threads {self.surroundings.threads}"
        radius, iterations = "x".join([str(s.radius)] * 3), "x".join(map(str, s.iterations))
        program = Greedy3D()
        program.execute(  # -wp 0: by default the warp is rounded to tenths of a voxel
            f"-d 3 -i fixed moving -m NCC {radius} -n {iterations} -s {s.smoothing[0]}vox {s.smoothing[1]}vox "
            f"-o warp -wp 0 -V 0 {threads}",
            fixed=images[0],
            moving=images[1],
            warp=None,
        )
        return displacement_to_voxels(field_from_sitk(program["warp"]))
