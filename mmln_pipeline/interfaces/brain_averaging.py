"""Nipype interfaces of the template of a group: its world, and the mean of the brains in it."""

from functools import partial
from pathlib import Path

from nipype.interfaces.base import BaseInterfaceInputSpec, File, SimpleInterface, TraitedSpec, isdefined, traits

from mmln_pipeline.interfaces.preprocessing import optional
from mmln_pipeline.interfaces.saving import put_text, to_json

GRID_FILE, AFFINE_FILE, DSEG_FILE = "grid.nii.gz", "affine_{}.h5", "dseg_{}.nii.gz"


class _StartTemplateInputSpec(BaseInterfaceInputSpec):
    in_xfms = traits.List(File(exists=True), mandatory=True, desc="ITK affines, world of `in_file` -> world of a brain")
    in_file = File(exists=True, mandatory=True, desc="template whose pose and field of view are taken")
    in_mask = File(exists=True, mandatory=True, desc="its brain mask")
    resolution = traits.Float(1.0, usedefault=True, desc="voxel size of the new template, mm")


class _StartTemplateOutputSpec(TraitedSpec):
    out_file = File(exists=True, desc="image that has the new template's grid")
    out_xfms = traits.List(File(exists=True), desc="ITK affines, new world -> world of each brain")


class StartTemplate(SimpleInterface):
    """Choose the world of a group's template: the pose of a given one, the size and shape of the brains."""

    input_spec = _StartTemplateInputSpec
    output_spec = _StartTemplateOutputSpec

    def _run_interface(self, runtime):
        import numpy as np

        from mmln_pipeline.group.study_template import centre_affines, centre_of
        from mmln_pipeline.images.volumes import load_image, load_labels, save_image
        from mmln_pipeline.space.grids import Grid, new_image
        from mmln_pipeline.space.transforms import Transform, read_transform

        cwd = Path(runtime.cwd)
        given = load_image(self.inputs.in_file, "template")
        grid = Grid.of(given).with_spacing([self.inputs.resolution] * 3)
        ones = new_image(np.ones(grid.shape, np.uint8), grid, like=given)
        self._results["out_file"] = str(save_image(ones, cwd / GRID_FILE))
        affines = [np.asarray(read_transform(path).matrix) for path in self.inputs.in_xfms]
        centred = centre_affines(affines, centre_of(load_labels(self.inputs.in_mask, "template mask")))
        self._results["out_xfms"] = [
            str(Transform([affine]).save(cwd / AFFINE_FILE.format(number))) for number, affine in enumerate(centred, 1)
        ]
        return runtime


class _AverageBrainsInputSpec(BaseInterfaceInputSpec):
    in_files = traits.List(File(exists=True), mandatory=True, desc="brain images, each on its native grid")
    in_masks = traits.List(File(exists=True), mandatory=True, desc="their brain masks")
    in_lesions = traits.List(traits.Either(traits.Enum(""), File()), desc='lesion mask of each, or ""')
    in_dsegs = traits.List(traits.Either(traits.Enum(""), File()), desc='labels of each, or ""')
    in_xfms = traits.List(
        File(exists=True),
        mandatory=True,
        desc="ITK transforms, template world -> world of each: affines, or composites",
    )
    reference = File(exists=True, mandatory=True, desc="image that has the template's grid")
    iteration = traits.Int(mandatory=True, desc="how many times the brains were registered to their mean before")


class _AverageBrainsOutputSpec(TraitedSpec):
    out_file = File(exists=True, desc="the mean brain, 0 outside its mask")
    out_mask = File(exists=True, desc="where at least half of the brains are (0/1)")
    out_dseg = File(exists=True, desc="what most of the brains' labels say; undefined without labels")
    metrics = File(exists=True, desc="how far the mean moved, how sharp it is, how well labels overlap (JSON)")


class AverageBrains(SimpleInterface):
    """Average brains through their transforms, where they lie on average."""

    input_spec = _AverageBrainsInputSpec
    output_spec = _AverageBrainsOutputSpec

    def _run_interface(self, runtime):
        from mmln_pipeline.group import study_template as group
        from mmln_pipeline.images.volumes import load_image, save_image
        from mmln_pipeline.space.grids import Grid
        from mmln_pipeline.space.transforms import Transform

        grid = Grid.of(load_image(self.inputs.reference, "template's grid"))
        lesions = optional(self.inputs.in_lesions) or [""] * len(self.inputs.in_files)
        members = [
            group.Member(Path(image), Path(mask), Path(lesion) if lesion else None)
            for image, mask, lesion in zip(self.inputs.in_files, self.inputs.in_masks, lesions, strict=True)
        ]
        facts = {"iteration": self.inputs.iteration, "brains": len(members)}
        back = []
        if self.inputs.iteration:
            drift = group.mean_displacement((warp for warp, *_ in self._read_parts()), grid)
            back = [group.invert_smooth(drift)]
        chains = partial(map, lambda parts: Transform([*back, *parts]))
        mean = group.average_brains(members, chains(self._read_parts()), grid)
        if self.inputs.iteration:
            lengths = [group.mean_length_mm(warp, mean.mask) for warp, *_ in self._read_parts()]
            facts |= {"moved_mm": group.mean_length_mm(drift, mean.mask), "warp_mm": sum(lengths) / len(lengths)}
        facts["gradient_energy"] = group.gradient_energy(mean.image, mean.mask)
        cwd = Path(runtime.cwd)
        self._results["out_file"] = str(save_image(mean.image, cwd / "template.nii.gz"))
        self._results["out_mask"] = str(save_image(mean.mask, cwd / "mask.nii.gz"))
        if isdefined(self.inputs.in_dsegs):
            facts["label_overlap"] = self._average_labels(chains(self._read_parts()), grid, cwd)
        self._results["metrics"] = str(cwd / "metrics.json")
        put_text(to_json(facts), self._results["metrics"])
        return runtime

    def _read_parts(self):
        """Yield the parts of each transform; fields are large, and so one at a time is in memory."""
        from mmln_pipeline.space.transforms import read_transform

        for path in self.inputs.in_xfms:
            yield read_transform(path).parts

    def _average_labels(self, transforms, grid, cwd):
        """Bring the labels along, write what most of them say, and return their mean overlap."""
        import numpy as np

        from mmln_pipeline.group.agreement import label_agreement, majority_labels
        from mmln_pipeline.images.volumes import load_labels, save_image

        paths = {}
        for number, (dseg, transform) in enumerate(zip(self.inputs.in_dsegs, transforms, strict=True), start=1):
            if dseg:
                moved = transform.resample(load_labels(dseg, "labels"), grid, "nearest")
                paths[str(number)] = save_image(moved, cwd / DSEG_FILE.format(number))
        self._results["out_dseg"] = str(save_image(majority_labels(list(paths.values())), cwd / "dseg.nii.gz"))
        overlaps = [np.mean(list(own.values())) for own in label_agreement(paths).values()]
        for path in paths.values():
            path.unlink()
        return float(np.mean(overlaps)) if overlaps else None


class _ReportTemplateInputSpec(BaseInterfaceInputSpec):
    metrics = traits.List(File(exists=True), mandatory=True, desc="how it went, one file an iteration")
    first = File(exists=True, mandatory=True, desc="mean of the linearly aligned brains")
    first_mask = File(exists=True, mandatory=True, desc="its mask")
    last = File(exists=True, mandatory=True, desc="the template")
    last_mask = File(exists=True, mandatory=True, desc="its mask")
    template_name = traits.Str(mandatory=True, desc="what it is called")
    facts = traits.Dict(desc="what else to tell, by name")


class _ReportTemplateOutputSpec(TraitedSpec):
    out_table = File(exists=True, desc="convergence: a row an iteration (TSV)")
    out_page = File(exists=True, desc="the same as a page, with the images (HTML)")


class ReportTemplate(SimpleInterface):
    """Tell how a group's template converged: a table and a page."""

    input_spec = _ReportTemplateInputSpec
    output_spec = _ReportTemplateOutputSpec

    def _run_interface(self, runtime):
        import json

        import pandas as pd

        from mmln_pipeline.images.volumes import load_image, load_labels
        from mmln_pipeline.reporting.template_page import write_template_page

        rows = [json.loads(Path(path).read_text(encoding="utf-8")) for path in self.inputs.metrics]
        order = ["iteration", "brains", "moved_mm", "warp_mm", "gradient_energy", "label_overlap"]
        table = pd.DataFrame(rows)
        table = table[[name for name in order if name in table]]
        means = {
            "Mean of the linearly aligned brains": (self.inputs.first, self.inputs.first_mask),
            f"Template {self.inputs.template_name}": (self.inputs.last, self.inputs.last_mask),
        }
        loaded = {title: (load_image(image), load_labels(mask)) for title, (image, mask) in means.items()}
        cwd, facts = Path(runtime.cwd), optional(self.inputs.facts) or {}
        self._results["out_table"], self._results["out_page"] = str(cwd / "convergence.tsv"), str(cwd / "page.html")
        text = table.to_csv(sep="\t", index=False, na_rep="n/a", float_format="%.6g", lineterminator="\n")
        put_text(text, self._results["out_table"])
        write_template_page(self._results["out_page"], self.inputs.template_name, table, loaded, facts)
        return runtime
