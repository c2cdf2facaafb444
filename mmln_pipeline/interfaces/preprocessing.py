"""Nipype interfaces for what precedes registration: template, bias field, affine, grid."""

import time
from pathlib import Path
from typing import Any

import numpy as np
from nipype.interfaces.base import (
    BaseInterfaceInputSpec,
    File,
    SimpleInterface,
    TraitedSpec,
    isdefined,
    traits,
)

from mmln_pipeline.interfaces.settings_traits import make_trait
from mmln_pipeline.machine.options import find_option
from mmln_pipeline.registration.settings import Settings


def optional(value):
    """Return a trait's value, or None where it was never set."""
    return value if isdefined(value) else None


class _LoadTemplateInputSpec(BaseInterfaceInputSpec):
    template = traits.Str(mandatory=True, desc="name of an installed template, or path of a NIfTI image")
    dseg = File(exists=True, desc="label image on the template's grid, in place of the template's own")
    mask = File(exists=True, desc="brain mask on the template's grid, in place of the template's own")
    checksum = traits.Str(desc="of the template's content: another one of the same name is loaded anew")


class _LoadTemplateOutputSpec(TraitedSpec):
    image = File(exists=True, desc="skull-stripped template image")
    mask = File(exists=True, desc="brain mask of the template (0/1)")
    dseg = File(exists=True, desc="label image of the template; undefined where it has none")


class LoadTemplate(SimpleInterface):
    """Write a template, its brain mask and its labels as NIfTI files.

    Examples
    --------
    >>> LoadTemplate(template="MNI152NLin2009aSym").inputs.template
    'MNI152NLin2009aSym'
    """

    input_spec = _LoadTemplateInputSpec
    output_spec = _LoadTemplateOutputSpec

    def _run_interface(self, runtime):
        from mmln_pipeline.atlas.templates import load_template
        from mmln_pipeline.images.volumes import save_image

        template = load_template(self.inputs.template, optional(self.inputs.dseg), optional(self.inputs.mask))
        for key in ("image", "mask", "dseg"):
            image = getattr(template, key)
            if image is not None:
                self._results[key] = str(Path(runtime.cwd) / f"template_{key}.nii.gz")
                save_image(image, self._results[key])
        return runtime


class _CorrectBiasInputSpec(BaseInterfaceInputSpec):
    in_file = File(exists=True, mandatory=True, desc="brain image")
    in_mask = File(exists=True, desc="brain mask on the image's grid")
    num_threads = traits.Int(1, usedefault=True, nohash=True, desc="processor threads")


class _CorrectBiasOutputSpec(TraitedSpec):
    out_file = File(exists=True, desc="image without the slow intensity gradient of the coil")
    seconds = traits.Float(desc="duration of the step, s")


class CorrectBias(SimpleInterface):
    """Remove the bias field with N4."""

    input_spec = _CorrectBiasInputSpec
    output_spec = _CorrectBiasOutputSpec

    def _run_interface(self, runtime):
        from mmln_pipeline.images import volumes
        from mmln_pipeline.machine import devices

        start = time.perf_counter()
        image = volumes.load_image(self.inputs.in_file, name="T1w")
        mask = optional(self.inputs.in_mask)
        mask = volumes.load_image(mask, name="brain mask") if mask else None
        with devices.threads(self.inputs.num_threads):
            corrected = volumes.correct_bias(image, mask=mask)
        self._results["out_file"] = str(Path(runtime.cwd) / "corrected.nii.gz")
        volumes.save_image(corrected, self._results["out_file"])
        self._results["seconds"] = time.perf_counter() - start
        return runtime


class _AffineInitInputSpec(BaseInterfaceInputSpec):
    fixed = File(exists=True, mandatory=True, desc="fixed brain image")
    moving = File(exists=True, mandatory=True, desc="moving brain image")
    fixed_mask = File(exists=True, desc="brain mask of the fixed image")
    moving_mask = File(exists=True, desc="brain mask of the moving image")
    moving_lesion = File(exists=True, desc="where the moving image must not steer, on its grid")
    kind = traits.Enum(*find_option(Settings, "init").words, usedefault=True, desc="12, 6 or 0 degrees of freedom")
    start_xfm = File(exists=True, desc="ITK affine that may be near: where it is, nothing else is tried")
    random_seed = make_trait(Settings, "random_seed")
    num_threads = traits.Int(1, usedefault=True, nohash=True, desc="processor threads")


class _AffineInitOutputSpec(TraitedSpec):
    out_xfm = File(exists=True, desc="ITK affine file, fixed world -> moving world")
    seconds = traits.Float(desc="duration of the step, s")


class AffineInit(SimpleInterface):
    """Estimate the affine that maps points of the fixed image to the moving image (mm)."""

    input_spec = _AffineInitInputSpec
    output_spec = _AffineInitOutputSpec

    def _run_interface(self, runtime):
        from mmln_pipeline.machine import devices
        from mmln_pipeline.space.itk import save_affine

        start = time.perf_counter()
        with devices.threads(self.inputs.num_threads):
            matrix = np.eye(4) if self.inputs.kind == "identity" else self._estimate()
        self._results["out_xfm"] = str(Path(runtime.cwd) / "affine.mat")
        save_affine(matrix, self._results["out_xfm"])
        self._results["seconds"] = time.perf_counter() - start
        return runtime

    def _estimate(self):
        from mmln_pipeline.images.brain import Brain
        from mmln_pipeline.images.volumes import load_image
        from mmln_pipeline.linear.affine import estimate_affine, load_affine

        images: dict[str, Any] = {}
        for key in ("fixed", "moving", "fixed_mask", "moving_mask", "moving_lesion"):
            path = optional(getattr(self.inputs, key))
            images[key] = load_image(path, name=key) if path else None
        fixed = Brain(images["fixed"], images["fixed_mask"], name="fixed")
        moving = Brain(images["moving"], images["moving_mask"], images["moving_lesion"], "moving")
        start = load_affine(self.inputs.start_xfm) if isdefined(self.inputs.start_xfm) else None
        return estimate_affine(fixed, moving, self.inputs.kind, self.inputs.random_seed, start)


class _ConformGridInputSpec(BaseInterfaceInputSpec):
    in_file = File(exists=True, mandatory=True, desc="image of any orientation and voxel size")
    reference = File(exists=True, desc="fixed image that the grid is centred on (default: the image itself)")
    reference_mask = File(exists=True, desc="brain mask of the reference")
    in_xfm = File(exists=True, desc="ITK affine, reference world -> image world (default: identity)")
    interpolation = traits.Enum("linear", "nearest", usedefault=True, desc="nearest for masks and labels")
    model = make_trait(Settings, "model")


class _ConformGridOutputSpec(TraitedSpec):
    out_file = File(exists=True, desc="image on the model's grid: 160 x 192 x 224 voxels of 1 mm, axes L, I, A")


class ConformGrid(SimpleInterface):
    """Bring an image onto the network's grid, 160 x 192 x 224 voxels of 1 mm, cropped or padded."""

    input_spec = _ConformGridInputSpec
    output_spec = _ConformGridOutputSpec

    def _run_interface(self, runtime):
        from mmln_pipeline.images import volumes
        from mmln_pipeline.linear.affine import load_affine
        from mmln_pipeline.weights import read_config

        image = volumes.load_image(self.inputs.in_file, name="image")
        reference, mask = optional(self.inputs.reference), optional(self.inputs.reference_mask)
        grid = volumes.network_grid(
            volumes.load_image(reference, name="reference") if reference else image,
            mask=volumes.load_image(mask, name="reference mask") if mask else None,
            shape=read_config(self.inputs.model).grid,
        )
        matrix = load_affine(self.inputs.in_xfm) if isdefined(self.inputs.in_xfm) else None
        out = volumes.conform(image, grid, affine=matrix, interpolation=self.inputs.interpolation)
        self._results["out_file"] = str(Path(runtime.cwd) / "conformed.nii.gz")
        volumes.save_image(out, self._results["out_file"])
        return runtime


class _NormalizeIntensityInputSpec(BaseInterfaceInputSpec):
    in_file = File(exists=True, mandatory=True, desc="brain image")
    in_mask = File(exists=True, desc="brain mask on the image's grid (default: the non-zero voxels)")


class _NormalizeIntensityOutputSpec(TraitedSpec):
    out_file = File(exists=True, desc="image with intensities in [0, 1]")


class NormalizeIntensity(SimpleInterface):
    """Scale intensities to [0, 1] by a high percentile of the brain; zero stays zero."""

    input_spec = _NormalizeIntensityInputSpec
    output_spec = _NormalizeIntensityOutputSpec

    def _run_interface(self, runtime):
        from mmln_pipeline.images import volumes
        from mmln_pipeline.space.grids import new_image

        image = volumes.load_image(self.inputs.in_file, name="image")
        mask = optional(self.inputs.in_mask)
        inside = np.asanyarray(volumes.load_image(mask, name="mask").dataobj) > 0 if mask else None
        scaled = volumes.normalize_intensity(image.get_fdata(dtype=np.float32), mask=inside)
        self._results["out_file"] = str(Path(runtime.cwd) / "normalized.nii.gz")
        volumes.save_image(new_image(scaled, image), self._results["out_file"])
        return runtime
