"""Nipype interfaces that find the brain: by a given mask, by SynthStrip, or by the template."""

import shutil
import time
from pathlib import Path

import numpy as np
from nipype.interfaces.base import (
    BaseInterfaceInputSpec,
    CommandLine,
    CommandLineInputSpec,
    File,
    SimpleInterface,
    TraitedSpec,
    isdefined,
    traits,
)

from mmln_pipeline.linear.choices import SKULL_STRIP, STRIPPERS

SYNTHSTRIP = "mri_synthstrip"
"""FreeSurfer's command."""
SOURCES = {
    "mask": "given",
    "skip": "the image was stripped already",
    "synthstrip": "estimated by SynthStrip",
    "atlas": "estimated by the template (atlas method)",
}
"""Where a brain mask came from, in words."""


def choose_stripper(method: str = "auto") -> str:
    """Choose how raw heads are stripped on this machine.

    Parameters
    ----------
    method : str, default="auto"
        What was asked for, one of `mmln_pipeline.linear.choices.SKULL_STRIP`.

    Returns
    -------
    str
        For "auto" SynthStrip where it is on the PATH, else "atlas"; what was asked for otherwise.

    Raises
    ------
    ValueError
        SynthStrip was asked for and is not on the PATH.
    """
    is_there = shutil.which(SYNTHSTRIP) is not None
    if method == "synthstrip" and not is_there:
        raise ValueError(
            f"--skull-strip synthstrip: expected FreeSurfer's {SYNTHSTRIP} on the PATH, found none; set up FreeSurfer "
            "(7.3 or later), or take --skull-strip atlas, which needs nothing else"
        )
    if method == "auto":
        return "synthstrip" if is_there else "atlas"
    return method


class _SynthStripInputSpec(CommandLineInputSpec):
    in_file = File(exists=True, mandatory=True, argstr="-i %s", desc="image of a head, any contrast")
    out_mask = File("mask.nii.gz", usedefault=True, argstr="-m %s", desc="name of the brain mask")


class _SynthStripOutputSpec(TraitedSpec):
    out_mask = File(exists=True, desc="brain mask on the image's grid")


class SynthStrip(CommandLine):
    """Strip the skull with FreeSurfer's SynthStrip.

    Examples
    --------
    >>> SynthStrip(out_mask="mask.nii.gz").cmd
    'mri_synthstrip'

    References
    ----------
    Hoopes et al., SynthStrip: skull-stripping for any brain image, NeuroImage 2022.
    """

    _cmd = SYNTHSTRIP
    input_spec = _SynthStripInputSpec
    output_spec = _SynthStripOutputSpec

    def _run_interface(self, runtime, correct_return_codes=(0,)):
        runtime = super()._run_interface(runtime, correct_return_codes)
        if runtime.returncode not in correct_return_codes:  # Nipype leaves this to the node, which this one may not be
            said = (runtime.stderr or runtime.stdout or "").strip().splitlines() or ["it said nothing"]
            raise RuntimeError(f"{self.inputs.in_file}: {SYNTHSTRIP} exited with code {runtime.returncode}: {said[-1]}")
        return runtime

    def _list_outputs(self):
        return {"out_mask": str(Path(self.inputs.out_mask).absolute())}


class _BrainExtractionInputSpec(BaseInterfaceInputSpec):
    in_file = File(exists=True, mandatory=True, desc="T1-weighted image")
    in_mask = File(exists=True, desc="brain mask on the image's grid (non-zero = brain); then nothing is estimated")
    method = traits.Enum(
        *SKULL_STRIP,
        usedefault=True,
        desc="auto: strip the image unless it is stripped already; skip: trust that it is; synthstrip, atlas: strip it",
    )
    stripper = traits.Enum(
        *STRIPPERS, desc="what auto strips with (default: SynthStrip where it is on the PATH, else atlas)"
    )
    dark_share = traits.Float(
        desc="what a brain without a zero is lifted to: its darkest voxels per its brightest (default: a scan's 0.17)"
    )
    random_seed = traits.Int(0, usedefault=True, desc="seed of the atlas method")
    num_threads = traits.Int(1, usedefault=True, nohash=True, desc="processor threads")


class _BrainExtractionOutputSpec(TraitedSpec):
    out_file = File(exists=True, desc="image with zeros outside the brain")
    out_mask = File(exists=True, desc="brain mask (0/1) on the image's grid")
    source = traits.Str(desc="where the mask came from, in words")
    out_xfm = File(desc="affine of the atlas method: ITK, embedded template's world -> image world; else undefined")
    seconds = traits.Float(desc="duration of the step, s")


class BrainExtraction(SimpleInterface):
    """Find the brain: by a given mask, as the non-zero part of a stripped image, or in a raw head.

    Raises
    ------
    ValueError
        The image has one intensity or odd voxels, the mask is on another grid or empty, SynthStrip is absent, or no
        brain is found.
    """

    input_spec = _BrainExtractionInputSpec
    output_spec = _BrainExtractionOutputSpec

    def _run_interface(self, runtime):
        from mmln_pipeline.images import volumes
        from mmln_pipeline.images.brain import check_image
        from mmln_pipeline.machine import devices
        from mmln_pipeline.space.grids import new_image

        start = time.perf_counter()
        image = volumes.load_image(self.inputs.in_file, name="T1w")
        check_image(image, f"T1w {self.inputs.in_file}")
        method = self._choose(image)
        with devices.threads(self.inputs.num_threads):
            mask = self._find(method, image, runtime.cwd)
        share = self.inputs.dark_share if isdefined(self.inputs.dark_share) else volumes.DARK_SHARE
        data = volumes.make_unsigned(image, mask, share).get_fdata(dtype=np.float32)  # in what follows, 0 is no brain
        brain = np.where(np.asanyarray(mask.dataobj) > 0, data, np.float32(0))
        self._results["out_file"] = str(Path(runtime.cwd) / "brain.nii.gz")
        self._results["out_mask"] = str(Path(runtime.cwd) / "brain_mask.nii.gz")
        volumes.save_image(new_image(brain, image), self._results["out_file"])
        volumes.save_image(mask, self._results["out_mask"])
        self._results["source"] = SOURCES[method]
        self._results["seconds"] = time.perf_counter() - start
        return runtime

    def _choose(self, image):
        """Choose where the mask comes from, a key of `SOURCES`."""
        from mmln_pipeline.images.volumes import looks_skull_stripped

        if isdefined(self.inputs.in_mask):
            return "mask"
        if self.inputs.method != "auto":
            return choose_stripper(self.inputs.method)
        if looks_skull_stripped(image):
            return "skip"
        return self.inputs.stripper if isdefined(self.inputs.stripper) else choose_stripper()

    def _find(self, method, image, cwd):
        """Return the mask that a method finds."""
        from mmln_pipeline.images.brain import Brain

        if method == "atlas":
            return self._place_template(image, cwd)
        if method == "skip":
            return Brain(image).outline
        path = self._run_synthstrip(cwd) if method == "synthstrip" else self.inputs.in_mask
        return _load_mask(path, image, self.inputs.in_file)

    def _run_synthstrip(self, cwd):
        threads = {"OMP_NUM_THREADS": str(self.inputs.num_threads)}
        return SynthStrip(in_file=self.inputs.in_file, environ=threads).run(cwd=cwd).outputs.out_mask

    def _place_template(self, image, cwd):
        from mmln_pipeline.linear.skullstrip import locate_brain
        from mmln_pipeline.space.itk import save_affine

        try:
            mask, matrix = locate_brain(image, seed=self.inputs.random_seed)
        except ValueError as error:
            raise ValueError(
                f"{self.inputs.in_file}: looks like a raw head, but no brain was found in it ({error}): give a brain "
                "mask by --derivatives, or --skull-strip skip if it is stripped"
            ) from error
        self._results["out_xfm"] = str(save_affine(matrix, Path(cwd) / "template.mat"))
        return mask


def _load_mask(path, image, image_path):
    """Load a brain mask as 0/1 and check that it lies on the image's grid."""
    from mmln_pipeline.images.volumes import load_image
    from mmln_pipeline.space.grids import Grid, new_image

    mask = load_image(path, name="brain mask")
    if not Grid.of(image).matches(mask):
        raise ValueError(
            f"brain mask {path}: expected the grid of {image_path}, {Grid.of(image).describe_difference(mask)}: "
            "give a mask in the image's own space"
        )
    return new_image((np.asanyarray(mask.dataobj) != 0).astype(np.uint8), image)
