"""Nipype interfaces for labels on the T1w grid: fused from several atlases, measured, scored and drawn."""

import time
from pathlib import Path

import numpy as np
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


class _FuseLabelsInputSpec(BaseInterfaceInputSpec):
    in_file = File(exists=True, mandatory=True, desc="brain image to label")
    atlas_images = traits.List(File(exists=True), mandatory=True, desc="atlas images on its grid")
    atlas_dsegs = traits.List(File(exists=True), mandatory=True, desc="their labels on its grid, in the same order")


class _FuseLabelsOutputSpec(TraitedSpec):
    out_file = File(exists=True, desc="fused labels on the image's grid")


class FuseLabels(SimpleInterface):
    """Fuse the labels of several atlases by joint label fusion."""

    input_spec = _FuseLabelsInputSpec
    output_spec = _FuseLabelsOutputSpec

    def _run_interface(self, runtime):
        from mmln_pipeline.atlas.fusion import joint_label_fusion
        from mmln_pipeline.images.volumes import load_image, load_labels, save_image
        from mmln_pipeline.space.grids import new_image

        target = load_image(self.inputs.in_file, name="T1w")
        images = [load_image(path, name="atlas image") for path in self.inputs.atlas_images]
        labels = [load_labels(path, name="atlas labels") for path in self.inputs.atlas_dsegs]
        fused = joint_label_fusion(_array(target), [*map(_array, images)], [*map(_array, labels)])
        smallest = np.result_type(*(np.min_scalar_type(int(end)) for end in (fused.min(), fused.max())))
        self._results["out_file"] = str(Path(runtime.cwd) / "fused_dseg.nii.gz")
        save_image(new_image(fused.astype(smallest), target), self._results["out_file"])
        return runtime


class _MeasureVolumesInputSpec(BaseInterfaceInputSpec):
    in_file = File(exists=True, mandatory=True, desc="label image")
    label_names = traits.Dict(traits.Int, traits.Str, desc="names by label number")


class _MeasureVolumesOutputSpec(TraitedSpec):
    out_file = File(exists=True, desc="TSV with the columns index, name, voxels and volume_mm3")


class MeasureVolumes(SimpleInterface):
    """Measure the volume of each label of an image, mm^3."""

    input_spec = _MeasureVolumesInputSpec
    output_spec = _MeasureVolumesOutputSpec

    def _run_interface(self, runtime):
        from mmln_pipeline.atlas.labels import measure_volumes
        from mmln_pipeline.images.volumes import load_labels

        labels = load_labels(self.inputs.in_file, name="labels")
        voxel = float(abs(np.linalg.det(labels.affine[:3, :3])))
        table = measure_volumes(_array(labels), voxel, optional(self.inputs.label_names))
        self._results["out_file"] = str(Path(runtime.cwd) / "volumes.tsv")
        put_text(table.to_csv(sep="\t", index=False, lineterminator="\n"), self._results["out_file"])
        return runtime


class _ScoreLabelsInputSpec(BaseInterfaceInputSpec):
    in_file = File(exists=True, mandatory=True, desc="labels to score")
    reference = File(exists=True, mandatory=True, desc="labels that are taken for true, on the same grid")
    facts = traits.Dict(desc="what else the record should say: subject, atlases")


class _ScoreLabelsOutputSpec(TraitedSpec):
    out_file = File(exists=True, desc="Dice and surface distance, per label and their means, as JSON")


class ScoreLabels(SimpleInterface):
    """Score labels against others of the same image: Dice, 95th percentile of surface distances, volume ratio."""

    input_spec = _ScoreLabelsInputSpec
    output_spec = _ScoreLabelsOutputSpec

    def _run_interface(self, runtime):
        from mmln_pipeline.images.volumes import load_labels
        from mmln_pipeline.scores import metrics
        from mmln_pipeline.scores.evaluation import jsonable, score_labels
        from mmln_pipeline.space.grids import check_same_grid

        labels = load_labels(self.inputs.in_file, name="labels")
        truth = load_labels(self.inputs.reference, name="T1w labels")
        check_same_grid(truth, "T1w labels", labels, "T1w image", self.inputs.reference)
        scores = score_labels(_array(truth), None, _array(labels), truth.affine)
        kept = {key: scores[key] for key in ("dice", "dice_per_label", "hd95_mm", "hd95_per_label")}
        kept["tc_per_label"] = metrics.tc(_array(truth), _array(labels))
        kept["tc"] = metrics.label_mean(kept["tc_per_label"])
        facts = dict(self.inputs.facts) if isdefined(self.inputs.facts) else {}
        self._results["out_file"] = str(Path(runtime.cwd) / "labels_qc.json")
        put_text(to_json(jsonable(facts | kept)), self._results["out_file"])
        return runtime


class _PlotLabelsInputSpec(BaseInterfaceInputSpec):
    in_file = File(exists=True, mandatory=True, desc="image to draw on")
    in_dseg = File(exists=True, mandatory=True, desc="labels on its grid")
    label_names = traits.Dict(traits.Int, traits.Str, desc="names for the legend, by label number")


class _PlotLabelsOutputSpec(TraitedSpec):
    out_file = File(exists=True, desc="outlines of the labels on the image (SVG)")
    seconds = traits.Float(desc="duration of the step, s")


class PlotLabels(SimpleInterface):
    """Draw the outlines of labels on an image."""

    input_spec = _PlotLabelsInputSpec
    output_spec = _PlotLabelsOutputSpec

    def _run_interface(self, runtime):
        from mmln_pipeline.images.volumes import load_image, load_labels
        from mmln_pipeline.reporting.figures import plot_labels

        start = time.perf_counter()
        self._results["out_file"] = str(Path(runtime.cwd) / "labels.svg")
        image = load_image(self.inputs.in_file, name="T1w")
        labels = load_labels(self.inputs.in_dseg, name="labels")
        plot_labels(image, labels, self._results["out_file"], names=optional(self.inputs.label_names))
        self._results["seconds"] = time.perf_counter() - start
        return runtime


def _array(image):
    """Return the voxels of an image."""
    return np.asanyarray(image.dataobj)
