"""Workflow of the steps that no template has a part in: brain mask and bias field."""

from nipype.interfaces.utility import IdentityInterface
from nipype.pipeline import engine as pe

from mmln_pipeline.images.volumes import DARK_SHARE
from mmln_pipeline.interfaces import BrainExtraction, CorrectBias
from mmln_pipeline.interfaces.brain_extraction import choose_stripper

STRIPPERS = {
    "synthstrip": "with SynthStrip [@synthstrip]",
    "atlas": "with the MNI152NLin2009aSym template, aligned linearly to the head by mutual information [@simpleitk]: "
    "near its outline, what has the intensity of grey or white matter and hangs together by "
    "more than thin bridges was taken for brain, with its sulci and a rim of cerebrospinal fluid",
}
"""How the brain is found in a raw head, for the methods text."""


def init_preproc_wf(
    *,
    skull_strip: str = "auto",
    bias_correction: bool = True,
    has_mask: bool = False,
    dark_share: float = DARK_SHARE,
    omp_nthreads: int = 1,
    random_seed: int = 0,
    name: str = "preproc_wf",
) -> pe.Workflow:
    """
    Build the workflow that prepares a T1-weighted image for registration.

    Parameters
    ----------
    skull_strip : str, default "auto"
        One of `mmln_pipeline.linear.choices.SKULL_STRIP`. A given mask overrides all.
    bias_correction : bool, default True
        Correct the bias field with N4.
    has_mask : bool, default False
        Whether a brain mask comes in.
    dark_share : float, default 0.17
        What a brain without a zero (z-scored) is lifted to: the template's, as `Target.dark_share` has it.
    omp_nthreads : int, default 1
        Threads of one step.
    random_seed : int, default 0
        Seed of the brain extraction with the template.
    name : str, default "preproc_wf"
        Name of the workflow.

    Inputs
    ------
    t1w
        T1-weighted image.
    mask
        Brain mask in the space of `t1w` (only with `has_mask`).

    Outputs
    -------
    t1w_preproc
        Brain image without bias field, on the grid of `t1w`.
    t1w_mask
        Brain mask on the grid of `t1w`.
    mask_source
        Where the mask came from, in words.
    brain_xfm
        Affine by which the embedded template found the brain, its world to T1w world; undefined where it did not.
    seconds_brain, seconds_bias
        Durations of the steps, s (`seconds_bias` only with `bias_correction`).
    """
    workflow = pe.Workflow(name=name)
    stripper = choose_stripper(skull_strip)
    workflow.__desc__ = _describe(skull_strip, stripper, bias_correction, has_mask)
    outputs = ["t1w_preproc", "t1w_mask", "mask_source", "brain_xfm", "seconds_brain"]
    outputs += ["seconds_bias"] * bias_correction
    inputnode = pe.Node(IdentityInterface(fields=["t1w"] + ["mask"] * has_mask), name="inputnode")
    outputnode = pe.Node(IdentityInterface(fields=outputs), name="outputnode")

    brain_extraction = pe.Node(
        BrainExtraction(method=skull_strip, dark_share=dark_share, random_seed=random_seed, num_threads=omp_nthreads),
        name="brain_extraction",
        mem_gb=2,
    )
    if stripper in STRIPPERS:
        brain_extraction.inputs.stripper = stripper
    brain = brain_extraction
    if bias_correction:
        bias = pe.Node(CorrectBias(num_threads=omp_nthreads), name="bias", mem_gb=1)
        brain = bias
        workflow.connect([
            (brain_extraction, bias, [("out_file", "in_file"), ("out_mask", "in_mask")]),
            (bias, outputnode, [("seconds", "seconds_bias")]),
        ])  # fmt: skip
    if has_mask:
        workflow.connect(inputnode, "mask", brain_extraction, "in_mask")

    workflow.connect([
        (inputnode, brain_extraction, [("t1w", "in_file")]),
        (brain, outputnode, [("out_file", "t1w_preproc")]),
        (brain_extraction, outputnode, [
            ("out_mask", "t1w_mask"),
            ("source", "mask_source"),
            ("out_xfm", "brain_xfm"),
            ("seconds", "seconds_brain"),
        ]),
    ])  # fmt: skip
    return workflow


def _describe(skull_strip: str, stripper: str, bias_correction: bool, has_mask: bool) -> str:
    """Write the methods text of the preprocessing."""
    if has_mask:
        text = "The brain of the T1-weighted image was taken from a given brain mask."
    elif skull_strip == "skip":
        text = "The T1-weighted image was skull-stripped already; its brain mask is the non-zero part."
    else:
        text = f"The brain was extracted from the T1-weighted image {STRIPPERS[stripper]}."
        if skull_strip == "auto":
            text += " Images that were skull-stripped already were taken as they were."
    if bias_correction:
        text += " Intensity non-uniformity was corrected with N4 [@n4]."
    return text + "\n"
