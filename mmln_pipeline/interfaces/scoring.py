"""Nipype interfaces that score a registration and draw it."""

import json
import os
import platform
from importlib.metadata import PackageNotFoundError, version
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
from mmln_pipeline.interfaces.saving import put_text, to_json

PACKAGES = ("mmln-pipeline", "torch", "SimpleITK", "nipype", "nibabel", "numpy", "scipy")


class _EvaluateRegistrationInputSpec(BaseInterfaceInputSpec):
    fixed = File(exists=True, mandatory=True, desc="fixed brain image")
    moving = File(exists=True, mandatory=True, desc="moving brain image, on its native grid")
    transform = File(exists=True, mandatory=True, desc="ITK transform of any tool, fixed world -> moving world")
    fixed_mask = File(exists=True, desc="brain mask of the fixed image")
    fixed_dseg = File(exists=True, desc="labels of the fixed image, on its grid")
    moving_dseg = File(exists=True, desc="labels of the moving image, on its grid")
    labels = File(exists=True, desc="TSV that groups label numbers into structures")
    metrics = File(exists=True, desc="scores that the registration measured itself (JSON): not measured anew")
    brain_mask = traits.Str(desc="where the moving image's brain mask came from, in words")
    seconds_brain = traits.Float(desc="duration of the brain extraction, s")
    seconds_bias = traits.Float(desc="duration of the bias correction, s")
    seconds_affine = traits.Float(desc="duration of the affine, s")
    facts = traits.Dict(desc="what else the record should say: subject, template, model")


class _EvaluateRegistrationOutputSpec(TraitedSpec):
    out_json = File(exists=True, desc="scores, timings (s), versions and device")
    out_tsv = File(exists=True, desc="the same as a table of one row")
    scores = traits.Dict(desc="content of `out_json`")


class EvaluateRegistration(SimpleInterface):
    """Score a registration (Dice, Jacobian, TC, similarity, verdict) and record timings, machine and versions."""

    input_spec = _EvaluateRegistrationInputSpec
    output_spec = _EvaluateRegistrationOutputSpec

    def _run_interface(self, runtime):
        from mmln_pipeline.scores.evaluation import jsonable

        facts = self._facts()
        scores = jsonable({**facts, **self._measure(), **facts})  # facts stand first, and have the last word
        scores["seconds"] = self._seconds(scores.get("seconds") or {})
        scores |= {"machine": _machine(), "versions": _versions()}
        self._results["scores"] = scores
        self._results["out_json"] = str(Path(runtime.cwd) / "qc.json")
        self._results["out_tsv"] = str(Path(runtime.cwd) / "qc.tsv")
        put_text(to_json(scores), self._results["out_json"])
        put_text(_to_tsv(scores), self._results["out_tsv"])
        return runtime

    def _facts(self):
        facts = dict(self.inputs.facts) if isdefined(self.inputs.facts) else {}
        return facts | ({"brain_mask": self.inputs.brain_mask} if isdefined(self.inputs.brain_mask) else {})

    def _measure(self):
        """Take the registration's own scores, or measure them."""
        if isdefined(self.inputs.metrics):
            return json.loads(Path(self.inputs.metrics).read_text(encoding="utf-8"))
        return self._evaluate()

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

    def _seconds(self, measured):
        """Put the durations of the earlier steps before those of the registration."""
        steps = {
            "brain_extraction": optional(self.inputs.seconds_brain),
            "bias_correction": optional(self.inputs.seconds_bias),
            "affine_init": optional(self.inputs.seconds_affine),
        }
        return {key: value for key, value in steps.items() if value is not None} | measured


def _versions():
    """Return the version of each package that shapes the result, and of Python."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _machine():
    """Return what the machine is; its name is left out, since results are shared."""
    names = [line.split(":", 1)[1].strip() for line in _read_cpuinfo() if line.startswith("model name")]
    processor = names[0] if names else platform.processor() or platform.machine()
    return {"system": platform.platform(terse=True), "processor": processor, "processors": os.cpu_count()}


def _read_cpuinfo():
    """Return the lines in which Linux describes the processors; none elsewhere."""
    path = Path("/proc/cpuinfo")
    return path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []


def _to_tsv(scores):
    """Write scores as a header and one row; missing values are `n/a`, as BIDS has it."""
    from mmln_pipeline.reporting.shown_scores import leaves

    flat = {"_".join(path): value for path, value in leaves(scores)}
    cells = ["n/a" if value is None else str(value).replace("\t", " ") for value in flat.values()]
    return "\t".join(flat) + "\n" + "\t".join(cells) + "\n"


class _PlotRegistrationInputSpec(BaseInterfaceInputSpec):
    fixed = File(exists=True, mandatory=True, desc="fixed brain image")
    fixed_mask = File(exists=True, desc="brain mask of the fixed image")
    before = File(exists=True, mandatory=True, desc="moving image in the fixed world, aligned by the affine alone")
    after = File(exists=True, mandatory=True, desc="moving image in the fixed world, registered")
    warp = File(exists=True, mandatory=True, desc="ITK displacement field of the transform, mm")
    log_jacobian = File(exists=True, mandatory=True, desc="log-Jacobian of the transform")
    moving = File(exists=True, desc="moving brain on its native grid (for the figures of mask and labels)")
    moving_head = File(exists=True, desc="the same as it came, skull and all: what the mask is drawn on if given")
    moving_mask = File(exists=True, desc="brain mask on the moving image's grid")
    moving_lesion = File(exists=True, desc="lesion mask on the moving image's grid, drawn beside the brain mask")
    moving_labels = File(exists=True, desc="fixed image's labels brought to the moving image")
    label_names = traits.Dict(traits.Int, traits.Str, desc="names for the legend, by label number")


class _PlotRegistrationOutputSpec(TraitedSpec):
    out_registration = File(exists=True, desc="before and after registration (SVG)")
    out_warp = File(exists=True, desc="warped grid (SVG)")
    out_jacobian = File(exists=True, desc="log-Jacobian map (SVG)")
    out_mask = File(exists=True, desc="brain mask on the moving image (SVG); undefined without a mask")
    out_labels = File(exists=True, desc="labels on the moving image (SVG); undefined without labels")


class PlotRegistration(SimpleInterface):
    """Draw the figures of a registration's report."""

    input_spec = _PlotRegistrationInputSpec
    output_spec = _PlotRegistrationOutputSpec

    def _run_interface(self, runtime):
        from mmln_pipeline.reporting import figures
        from mmln_pipeline.space.transforms import read_transform

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
        if images["moving"] is not None and images["moving_labels"] is not None:
            self._results["out_labels"] = str(cwd / "labels.svg")
            names = optional(self.inputs.label_names)
            figures.plot_labels(images["moving"], images["moving_labels"], self._results["out_labels"], names=names)
        return runtime

    def _load(self):
        """Load every image that was given; None for the others."""
        import nibabel as nb

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
            "moving_labels",
        )
        paths = {key: optional(getattr(self.inputs, key)) for key in keys}
        return {key: nb.load(path) if path else None for key, path in paths.items()}
