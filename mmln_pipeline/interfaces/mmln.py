"""Nipype interfaces for the registration itself and for applying its transforms."""

from pathlib import Path

from nipype.interfaces.base import (
    BaseInterfaceInputSpec,
    File,
    SimpleInterface,
    TraitedSpec,
    traits,
)

from mmln_pipeline.interfaces.preprocessing import optional
from mmln_pipeline.interfaces.settings_traits import make_trait
from mmln_pipeline.registration.result import OUTPUTS
from mmln_pipeline.registration.settings import Settings
from mmln_pipeline.space.formats import OTHER_FORMATS
from mmln_pipeline.space.interpolation import FOR_LABELS, INTERPOLATIONS


class _MMLNRegistrationInputSpec(BaseInterfaceInputSpec):
    fixed = File(exists=True, mandatory=True, desc="fixed brain image")
    moving = File(exists=True, mandatory=True, desc="moving brain image, on its native grid")
    init = make_trait(Settings, "init")
    fixed_mask = File(exists=True, desc="brain mask of the fixed image")
    moving_mask = File(exists=True, desc="brain mask of the moving image")
    moving_lesion = File(exists=True, desc="where the moving image must not steer, on its grid")
    fixed_dseg = File(exists=True, desc="labels of the fixed image, on its grid")
    moving_dseg = File(exists=True, desc="labels of the moving image, on its grid")
    labels = File(exists=True, desc="TSV that groups label numbers into structures")
    model = make_trait(Settings, "model")
    model_sha256 = traits.Str(desc="checksum of the weights: other weights under one name are registered anew")
    refine = make_trait(Settings, "refine")
    topology = make_trait(Settings, "topology")
    device = make_trait(Settings, "device")
    use_gpu = traits.Bool(False, usedefault=True, nohash=True, desc="count this node as a GPU node (scheduling)")
    num_threads = traits.Int(1, usedefault=True, nohash=True, desc="processor threads")
    random_seed = make_trait(Settings, "random_seed")
    outputs = traits.List(traits.Enum(*OUTPUTS), desc="parts of the result to save (default: all)")


class _MMLNRegistrationOutputSpec(TraitedSpec):
    moved = File(exists=True, desc="moving image on the fixed grid, sampled once")
    moved_dseg = File(exists=True, desc="moving labels on the fixed grid; undefined without moving labels")
    forward_xfm = File(exists=True, desc="ITK composite, fixed world -> moving world")
    inverse_xfm = File(exists=True, desc="ITK composite, moving world -> fixed world")
    warp = File(exists=True, desc="ITK displacement field of the transform, mm")
    jacobian = File(exists=True, desc="Jacobian determinant of the whole transform on the fixed grid")
    log_jacobian = File(exists=True, desc="its natural logarithm (determinants clipped at 1e-9)")
    metrics = File(exists=True, desc="scores, timings (s), device and versions as JSON")


class MMLNRegistration(SimpleInterface):
    """Register a moving brain to a fixed brain with the MMLN network."""

    input_spec = _MMLNRegistrationInputSpec
    output_spec = _MMLNRegistrationOutputSpec

    def _run_interface(self, runtime):
        from mmln_pipeline.images.volumes import save_image
        from mmln_pipeline.registration.api import register

        cwd = Path(runtime.cwd)
        files = ("fixed_dseg", "moving_dseg", "labels", "fixed_mask", "moving_mask", "moving_lesion")
        result = register(
            self.inputs.fixed,
            self.inputs.moving,
            init=self.inputs.init,
            **{key: optional(getattr(self.inputs, key)) for key in files},
            model=self.inputs.model,
            refine=self.inputs.refine,
            device=self.inputs.device,
            threads=self.inputs.num_threads,
            random_seed=self.inputs.random_seed,
            topology=self.inputs.topology,
        )
        names = {"transform": "forward_xfm", "inverse": "inverse_xfm"}
        saved = result.save(cwd, optional(self.inputs.outputs))
        self._results.update({names.get(part, part): str(path) for part, path in saved.items()})
        if "jacobian" in saved:
            self._results["log_jacobian"] = str(cwd / "log_jacobian.nii.gz")
            save_image(result.log_jacobian, self._results["log_jacobian"])
        return runtime


class _ApplyMMLNTransformInputSpec(BaseInterfaceInputSpec):
    in_file = File(exists=True, mandatory=True, desc="image, mask or labels to resample")
    reference = File(exists=True, mandatory=True, desc="image whose grid the output takes")
    transform = File(exists=True, desc="ITK transform, reference world -> image world (default: identity)")
    interpolation = traits.Enum(*INTERPOLATIONS, usedefault=True, desc="label or nearest for masks and labels")


class _ApplyMMLNTransformOutputSpec(TraitedSpec):
    out_file = File(exists=True, desc="resampled image")


class ApplyMMLNTransform(SimpleInterface):
    """Resample an image onto a reference grid through a transform, in one interpolation."""

    input_spec = _ApplyMMLNTransformInputSpec
    output_spec = _ApplyMMLNTransformOutputSpec

    def _run_interface(self, runtime):
        from mmln_pipeline.images import volumes
        from mmln_pipeline.space.transforms import Transform, read_transform

        if self.inputs.interpolation in FOR_LABELS:
            image = volumes.load_labels(self.inputs.in_file, name="input")
        else:
            image = volumes.load_image(self.inputs.in_file, name="input")
        reference = volumes.load_image(self.inputs.reference, name="reference")
        path = optional(self.inputs.transform)
        transform = read_transform(path) if path else Transform(())
        moved = transform.resample(image, reference, interpolation=self.inputs.interpolation)
        self._results["out_file"] = str(Path(runtime.cwd) / "resampled.nii.gz")
        volumes.save_image(moved, self._results["out_file"])
        return runtime


class _ConvertTransformInputSpec(BaseInterfaceInputSpec):
    transform = File(exists=True, mandatory=True, desc="ITK transform, fixed world -> moving world")
    fixed = File(exists=True, mandatory=True, desc="image whose grid it resamples onto")
    moving = File(exists=True, mandatory=True, desc="image that it brings along")
    kind = traits.Enum(*OTHER_FORMATS, mandatory=True, desc="whose file to write")


class _ConvertTransformOutputSpec(TraitedSpec):
    out_file = File(exists=True, desc="the same mapping, as another tool has it")


class ConvertTransform(SimpleInterface):
    """Write a transform as another tool has it."""

    input_spec = _ConvertTransformInputSpec
    output_spec = _ConvertTransformOutputSpec

    def _run_interface(self, runtime):
        from mmln_pipeline.images.volumes import load_image
        from mmln_pipeline.space.other_tools import write_as
        from mmln_pipeline.space.transforms import read_transform

        fixed, moving = (load_image(getattr(self.inputs, name), name) for name in ("fixed", "moving"))
        path = Path(runtime.cwd) / OTHER_FORMATS[self.inputs.kind]
        write_as(self.inputs.kind, read_transform(self.inputs.transform), path, fixed, moving)
        self._results["out_file"] = str(path)
        return runtime
