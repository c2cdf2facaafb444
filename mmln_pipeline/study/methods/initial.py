"""No deformation: what the linear alignment leaves."""

from __future__ import annotations

import numpy as np
from nibabel import Nifti1Image

from mmln_pipeline.study.methods.base import Displacement, Method


class Initial(Method):
    """The pair as it comes."""

    name = "initial"

    def displacement(self, fixed: Nifti1Image, moving: Nifti1Image) -> Displacement:
        """Return zeros."""
        return np.zeros((3, *fixed.shape), np.float32)
