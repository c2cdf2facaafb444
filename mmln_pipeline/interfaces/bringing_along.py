"""Nipype interface that brings an image, a series or a surface of a subject to the template."""

from pathlib import Path
from typing import Any

from nipype.interfaces.base import BaseInterfaceInputSpec, File, SimpleInterface, TraitedSpec


class _BringAlongInputSpec(BaseInterfaceInputSpec):
    # A file that is gone must fail here, by its name: traits that ask for it end the graph of all scans.
    in_file = File(mandatory=True, desc="image, 4-D series or GIFTI surface in T1w space")
    template = File(exists=True, mandatory=True, desc="template image")
    forward_xfm = File(exists=True, mandatory=True, desc="ITK transform, template world -> T1w world")
    inverse_xfm = File(exists=True, mandatory=True, desc="ITK transform, T1w world -> template world")


class _BringAlongOutputSpec(TraitedSpec):
    out_file = File(exists=True, desc="the same in template space, under the same name")


class BringAlong(SimpleInterface):
    """Bring an image, a series or a surface of a subject to the template.

    Images lie on the template's grid; series in its field of view, in voxels as large as their own. Labels and masks,
    by the ends of their names, are sampled by the nearest voxel, the rest linearly.
    """

    input_spec = _BringAlongInputSpec
    output_spec = _BringAlongOutputSpec

    def _run_interface(self, runtime):
        import nibabel as nib

        from mmln_pipeline.images import series, volumes
        from mmln_pipeline.space.grids import Grid, affine_in_mm
        from mmln_pipeline.space.point_files import is_points, map_file
        from mmln_pipeline.space.transforms import read_transform

        source, stem = self.inputs.in_file, Path(self.inputs.in_file).name.split(".")[0]
        output = Path(runtime.cwd) / f"{stem}{'.surf.gii' if is_points(source) else '.nii.gz'}"
        self._results["out_file"] = str(output)
        if is_points(source):
            map_file(source, output, read_transform(self.inputs.inverse_xfm).map_points)
            return runtime
        template = volumes.load_image(self.inputs.template, "template")
        transform = read_transform(self.inputs.forward_xfm)
        is_labels = stem.endswith(("_dseg", "_mask"))
        if series.count_volumes(source) > 1:
            image: Any = nib.load(source)
            own = Grid(image.shape[:3], affine_in_mm(image)).spacing.prod() ** (1 / 3)
            grid = Grid.of(template).with_spacing([own] * 3)
            series.resample_series(source, output, transform, grid, "nearest" if is_labels else "linear")
        elif is_labels:
            moved = transform.resample(volumes.load_labels(source, "labels"), template, "nearest")
            volumes.save_image(moved, output)
        else:
            volumes.save_image(transform.resample(volumes.load_image(source, "image"), template), output)
        return runtime
