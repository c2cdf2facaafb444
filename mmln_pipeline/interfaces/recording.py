"""Nipype interface that records a registration: its scores, what was done before it, machine and versions."""

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


class _RecordRegistrationInputSpec(BaseInterfaceInputSpec):
    metrics = File(exists=True, mandatory=True, desc="scores and timings of the registration (JSON)")
    brain_mask = traits.Str(desc="where the moving image's brain mask came from, in words")
    seconds_reference = traits.Float(desc="duration of averaging the subject's images, s")
    seconds_brain = traits.Float(desc="duration of the brain extraction, s")
    seconds_bias = traits.Float(desc="duration of the bias correction, s")
    seconds_affine = traits.Float(desc="duration of the affine, s")
    seconds_figures = traits.Float(desc="duration of drawing the report's figures, s")
    seconds_labels = traits.Float(desc="duration of drawing the labels, s")
    facts = traits.Dict(desc="what else the record should say: subject, template, model")
    sources = traits.Dict(
        traits.Str,
        File(exists=True),
        desc="files as they were given, by name: their headers are judged too",
    )


class RecordOutputSpec(TraitedSpec):
    """What an interface leaves that records scores."""

    out_json = File(exists=True, desc="scores, timings (s), versions and device")
    out_tsv = File(exists=True, desc="the same as a table of one row")
    scores = traits.Dict(desc="content of `out_json`")


class RecordRegistration(SimpleInterface):
    """Join a registration's scores and timings with those of the steps before it, machine and versions."""

    input_spec = _RecordRegistrationInputSpec
    output_spec = RecordOutputSpec

    def _run_interface(self, runtime):
        from mmln_pipeline.machine.files import checksum
        from mmln_pipeline.scores.quality import judge
        from mmln_pipeline.space.placement import find_placements, score_headers

        measured = json.loads(Path(self.inputs.metrics).read_text(encoding="utf-8"))
        facts = dict(self.inputs.facts) if isdefined(self.inputs.facts) else {}
        if isdefined(self.inputs.brain_mask):
            facts["brain_mask"] = self.inputs.brain_mask
        scores = {**facts, **measured, **facts}  # facts stand first, and have the last word
        scores["seconds"] = self._seconds(measured.get("seconds") or {})
        if isdefined(self.inputs.sources):
            scores["headers"] = score_headers(find_placements(self.inputs.sources))
            scores["input_sha256"] = {name: checksum(Path(path)) for name, path in self.inputs.sources.items()}
            scores["qc"] = judge(scores)
        self._results.update(write_record(scores, Path(runtime.cwd)))
        return runtime

    def _seconds(self, measured):
        """Put the durations of all steps in their order, and their sum."""
        of_registration = {key: value for key, value in measured.items() if key != "total"}
        steps = {
            "reference": optional(self.inputs.seconds_reference),
            "brain_extraction": optional(self.inputs.seconds_brain),
            "bias_correction": optional(self.inputs.seconds_bias),
            "affine_init": optional(self.inputs.seconds_affine),
            **of_registration,
            "figures": optional(self.inputs.seconds_figures),
            "label_figure": optional(self.inputs.seconds_labels),
        }
        known = {key: value for key, value in steps.items() if value is not None}
        # What the registration did between its stages counts too: its own total, not their sum.
        between = (measured.get("total") or 0.0) - sum(value for value in of_registration.values() if value is not None)
        return known | {"total": sum(known.values()) + max(0.0, between)}


def write_record(scores: dict, folder: Path) -> dict:
    """Write scores, with machine and versions, as `qc.json` and as a table of one row.

    Parameters
    ----------
    scores : dict
        Scores and facts, as they come.
    folder : Path
        Where the files go.

    Returns
    -------
    dict
        The values of :class:`RecordOutputSpec`.
    """
    from mmln_pipeline.scores.evaluation import jsonable

    record = jsonable(scores) | {"machine": _machine(), "versions": _versions()}
    put_text(to_json(record), folder / "qc.json")
    put_text(_to_tsv(record), folder / "qc.tsv")
    return {"out_json": str(folder / "qc.json"), "out_tsv": str(folder / "qc.tsv"), "scores": record}


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
