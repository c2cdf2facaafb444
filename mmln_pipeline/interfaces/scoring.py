"""Nipype interfaces that score a registration and draw it."""

import time
from pathlib import Path

from nipype.interfaces.base import (
    BaseInterfaceInputSpec,
    File,
    SimpleInterface,
    TraitedSpec,
    isdefined,
    traits,
)

from mmln_pipeline.interfaces.preprocessing import optional
from mmln_pipeline.interfaces.recording import RecordOutputSpec, write_record


class _EvaluateRegistrationInputSpec(BaseInterfaceInputSpec):
    fixed = File(exists=True, mandatory=True, desc="fixed brain image")
    moving = File(exists=True, mandatory=True, desc="moving brain image, on its native grid")
    transform = File(exists=True, mandatory=True, desc="ITK transform of any tool, fixed world -> moving world")
    fixed_mask = File(exists=True, desc="brain mask of the fixed image")
    fixed_dseg = File(exists=True, desc="labels of the fixed image, on its grid")
    moving_dseg = File(exists=True, desc="labels of the moving image, on its grid")
    labels = File(exists=True, desc="TSV that groups label numbers into structures")


class EvaluateRegistration(SimpleInterface):
    """Score a registration of any tool: Dice, Jacobian, TC, similarity, verdict."""

    input_spec = _EvaluateRegistrationInputSpec
    output_spec = RecordOutputSpec

    def _run_interface(self, runtime):
        self._results.update(write_record(self._evaluate(), Path(runtime.cwd)))
        return runtime

    def _evaluate(self):
        """Measure every score that needs no record of the registration."""
        from mmln_pipeline.atlas.labels import load_label_table
        from mmln_pipeline.images.volumes import load_image, load_labels
        from mmln_pipeline.scores.evaluation import evaluate_transform
        from mmln_pipeline.space.transforms import read_transform

        optionals = {}
        for key, load in (
            ("fixed_dseg", load_labels),
            ("moving_dseg", load_labels),
            ("fixed_mask", load_image),
        ):
            path = optional(getattr(self.inputs, key))
            optionals[key] = load(path, name=key) if path else None
        table = load_label_table(self.inputs.labels) if isdefined(self.inputs.labels) else None
        fixed, moving = (
            load_image(self.inputs.fixed, name="fixed"),
            load_image(self.inputs.moving, name="moving"),
        )
        transform = read_transform(self.inputs.transform)
        return evaluate_transform(fixed, moving, transform, labels=table, **optionals)


class _PlotRegistrationInputSpec(BaseInterfaceInputSpec):
    fixed = File(exists=True, mandatory=True, desc="fixed brain image")
    fixed_mask = File(exists=True, desc="brain mask of the fixed image")
    before = File(exists=True, mandatory=True, desc="moving image in the fixed world, aligned by the affine alone")
    after = File(exists=True, mandatory=True, desc="moving image in the fixed world, registered")
    warp = File(exists=True, mandatory=True, desc="ITK displacement field of the transform, mm")
    log_jacobian = File(exists=True, mandatory=True, desc="log-Jacobian of the transform")
    moving = File(exists=True, desc="moving brain on its native grid (for the figure of the mask)")
    moving_head = File(exists=True, desc="the same as it came, skull and all: what the mask is drawn on if given")
    moving_mask = File(exists=True, desc="brain mask on the moving image's grid")
    moving_lesion = File(exists=True, desc="lesion mask on the moving image's grid, drawn beside the brain mask")


class _PlotRegistrationOutputSpec(TraitedSpec):
    seconds = traits.Float(desc="duration of the step, s")
    out_registration = File(exists=True, desc="before and after registration (SVG)")
    out_warp = File(exists=True, desc="warped grid (SVG)")
    out_jacobian = File(exists=True, desc="log-Jacobian map (SVG)")
    out_mask = File(exists=True, desc="brain mask on the moving image (SVG); undefined without a mask")


class PlotRegistration(SimpleInterface):
    """Draw the figures of a registration's report."""

    input_spec = _PlotRegistrationInputSpec
    output_spec = _PlotRegistrationOutputSpec

    def _run_interface(self, runtime):
        from mmln_pipeline.reporting import figures
        from mmln_pipeline.space.transforms import read_transform

        start = time.perf_counter()
        images, cwd = self._load(), Path(runtime.cwd)
        fixed, mask = images["fixed"], images["fixed_mask"]
        self._results.update({f"out_{key}": str(cwd / f"{key}.svg") for key in ("registration", "warp", "jacobian")})
        figures.plot_before_after(
            fixed, images["before"], images["after"], self._results["out_registration"], mask=mask
        )
        field = read_transform(self.inputs.warp).displacement(fixed)
        figures.plot_warp_grid(fixed, field, self._results["out_warp"], mask=mask)
        figures.plot_log_jacobian(fixed, images["log_jacobian"], self._results["out_jacobian"], mask=mask)
        if images["moving"] is not None and images["moving_mask"] is not None:
            self._results["out_mask"] = str(cwd / "mask.svg")
            mask, lesion = images["moving_mask"], images["moving_lesion"]
            head = images["moving"] if images["moving_head"] is None else images["moving_head"]
            figures.plot_brain_mask(head, mask, self._results["out_mask"], lesion=lesion)
        self._results["seconds"] = time.perf_counter() - start
        return runtime

    def _load(self):
        """Load every image that was given, unpacked once; None for the others."""
        from mmln_pipeline.machine.reading import read_whole

        keys = (
            "fixed",
            "fixed_mask",
            "before",
            "after",
            "log_jacobian",
            "moving",
            "moving_head",
            "moving_mask",
            "moving_lesion",
        )
        paths = {key: optional(getattr(self.inputs, key)) for key in keys}
        return {key: read_whole(path) if path else None for key, path in paths.items()}
