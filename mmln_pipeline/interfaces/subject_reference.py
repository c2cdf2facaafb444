"""Nipype interface that makes one T1w image, with its mask and labels on its grid, of what a dataset holds."""

import time
from pathlib import Path

import numpy as np
from nipype.interfaces.base import BaseInterfaceInputSpec, File, SimpleInterface, TraitedSpec, traits

from mmln_pipeline.linear.choices import REFERENCES


def _companions(text):
    """A file for each image, "" where an image has none."""
    return traits.List(traits.Either(traits.Enum(""), File()), desc=text)


class _SubjectReferenceInputSpec(BaseInterfaceInputSpec):
    # A file that is gone must fail here, by its name: traits that ask for it end the graph of all scans.
    in_files = traits.List(File(), mandatory=True, desc="T1w images of one subject, the first one first")
    in_masks = _companions("brain mask of each image, or an empty string")
    in_dsegs = _companions("labels of each image, or an empty string")
    in_lesions = traits.List(
        traits.Either(traits.Enum(""), File(), traits.List(File())),
        desc="lesion mask of each image, several that are joined, or an empty string",
    )
    kind = traits.Enum(*REFERENCES, usedefault=True, desc="in the space of the first image, or midway")
    random_seed = traits.Int(0, usedefault=True, desc="seed of the alignment's sampling")


class _SubjectReferenceOutputSpec(TraitedSpec):
    seconds = traits.Float(desc="duration of the step, s")
    out_file = File(exists=True, desc="the image itself, or the mean of several")
    out_mask = File(exists=True, desc="brain mask on its grid: what half of the masks mark; undefined without masks")
    out_dseg = File(exists=True, desc="labels on its grid, of the first image that has some; undefined without labels")
    out_lesion = File(exists=True, desc="lesion mask (0/1) on its grid: what any of them marks; undefined without one")
    out_xfms = traits.List(
        File(exists=True), desc="ITK rigid transforms, world of `out_file` -> world of each image (of several)"
    )


class SubjectReference(SimpleInterface):
    """Align several images of one subject rigidly and average them; one image is left as it is.

    Masks and labels of another grid are resampled where the headers say that the space is the same.

    Raises
    ------
    ValueError
        A mask or label image is not in the space of its image.
    """

    input_spec = _SubjectReferenceInputSpec
    output_spec = _SubjectReferenceOutputSpec

    def _run_interface(self, runtime):
        from mmln_pipeline.images.volumes import save_image
        from mmln_pipeline.space.transforms import Transform

        start = time.perf_counter()
        self._folder = Path(runtime.cwd)
        companions = {kind: self._load_companions(kind) for kind in ("mask", "dseg", "lesion")}
        matrices = [np.eye(4)]
        self._results["out_file"] = self.inputs.in_files[0]
        if len(self.inputs.in_files) > 1:
            reference = self._build(companions["mask"])
            matrices = reference.matrices
            self._results["out_file"] = str(save_image(reference.image, self._folder / "reference.nii.gz"))
            paths = [self._folder / f"from-reference_to-image{number}.h5" for number in range(len(matrices))]
            self._results["out_xfms"] = [str(Transform((m,)).save(p)) for m, p in zip(matrices, paths, strict=True)]
        for kind, images in companions.items():
            if images:
                combined = self._combine(kind, images, matrices)
                self._results[f"out_{kind}"] = str(save_image(combined, self._folder / f"{kind}.nii.gz"))
        self._results["seconds"] = time.perf_counter() - start
        return runtime

    def _load_companions(self, kind):
        """Return the masks or labels, each on its image's grid, by the image's number."""
        from mmln_pipeline.images.same_space import labels_on_grid
        from mmln_pipeline.images.volumes import load_image, load_labels

        paths = getattr(self.inputs, f"in_{kind}s")
        images = {}
        for number, path in enumerate(paths if isinstance(paths, list) else ()):
            if path:
                image_path = self.inputs.in_files[number]
                image = load_image(image_path, name="T1w")
                own = [
                    labels_on_grid(load_labels(file, name=kind), image, f"{kind} {file}", f"T1w {image_path}")
                    for file in (path if isinstance(path, list) else [path])
                ]
                images[number] = own[0] if len(own) == 1 else _join(own)
        return images

    def _build(self, masks):
        from mmln_pipeline.images.volumes import load_image
        from mmln_pipeline.linear.reference import build_reference

        images = [load_image(path, name="T1w") for path in self.inputs.in_files]
        own = [masks[number] for number in range(len(images))] if len(masks) == len(images) else None
        return build_reference(images, self.inputs.kind, own, self.inputs.random_seed)

    def _combine(self, kind, images, matrices):
        """Bring what the images have of one kind to the reference."""
        from mmln_pipeline.images.volumes import load_image
        from mmln_pipeline.linear.reference import combine_masks
        from mmln_pipeline.space.transforms import Transform

        if len(matrices) == 1:
            return images[0]
        grid = load_image(self._results["out_file"], name="reference")
        if kind == "dseg":
            number = min(images)
            return Transform((matrices[number],)).resample(images[number], grid, "nearest")
        chosen = [matrices[number] for number in images]
        return combine_masks(list(images.values()), chosen, grid, "any" if kind == "lesion" else "majority")


def _join(masks):
    """Return what any of several masks on one grid marks."""
    from mmln_pipeline.space.grids import new_image

    marked = np.any([np.asanyarray(mask.dataobj) != 0 for mask in masks], axis=0)
    return new_image(marked.astype(np.uint8), masks[0])
