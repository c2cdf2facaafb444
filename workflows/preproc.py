"""Workflow of the steps before registration: brain mask, bias field, affine, grid and intensities."""

from nipype.interfaces.utility import IdentityInterface
from nipype.pipeline import engine as pe

from mmln_pipeline.interfaces import (
    AffineInit,
    BrainExtraction,
    ConformGrid,
    CorrectBias,
    NormalizeIntensity,
)


def init_preproc_wf(
    *,
    skull_strip: str = "auto",
    bias_correction: bool = True,
    affine: str = "affine",
    has_mask: bool = False,
    omp_nthreads: int = 1,
    random_seed: int = 0,
    name: str = "preproc_wf",
) -> pe.Workflow:
    """
    Build the workflow that prepares a T1-weighted image for registration.

    Parameters
    ----------
    skull_strip : {"auto", "skip"}, default "auto"
        Check that the image is skull-stripped, or trust that it is. A given mask overrides both.
    bias_correction : bool, default True
        Correct the bias field with N4.
    affine : {"affine", "rigid", "identity"}, default "affine"
        Initial alignment to the template.
    has_mask : bool, default False
        Whether a brain mask comes in.
    omp_nthreads : int, default 1
        Threads of one step.
    random_seed : int, default 0
        Seed of the affine's sampling.
    name : str, default "preproc_wf"
        Name of the workflow.

    Inputs
    ------
    t1w
        T1-weighted image.
    mask
        Brain mask in the space of `t1w` (only with `has_mask`).
    template
        Skull-stripped template image.
    template_mask
        Brain mask of the template.

    Outputs
    -------
    t1w_preproc
        Brain image without bias field, on the grid of `t1w`.
    t1w_mask
        Brain mask on the grid of `t1w`.
    affine_xfm
        ITK affine, template world to T1w world (mm).
    t1w_affine
        `t1w_preproc` in affine alignment on the network's grid, intensities in [0, 1].
    seconds_brain, seconds_bias, seconds_affine
        Durations of the steps, s (`seconds_bias` only with `bias_correction`).
    """
    workflow = pe.Workflow(name=name)
    workflow.__desc__ = _describe(bias_correction, affine, has_mask)
    inputs = ["t1w", "template", "template_mask", *(["mask"] if has_mask else [])]
    outputs = ["t1w_preproc", "t1w_mask", "affine_xfm", "t1w_affine", "seconds_brain", "seconds_affine"]
    outputs += ["seconds_bias"] if bias_correction else []
    inputnode = pe.Node(IdentityInterface(fields=inputs), name="inputnode")
    outputnode = pe.Node(IdentityInterface(fields=outputs), name="outputnode")

    brain_extraction = pe.Node(BrainExtraction(method=skull_strip), name="brain_extraction", mem_gb=1)
    affine_init = pe.Node(
        AffineInit(kind=affine, random_seed=random_seed, num_threads=omp_nthreads),
        name="affine_init",
        mem_gb=1,
    )
    conform = pe.Node(ConformGrid(), name="conform", mem_gb=1)
    normalize = pe.Node(NormalizeIntensity(), name="normalize", mem_gb=1)

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
        (inputnode, affine_init, [("template", "fixed"), ("template_mask", "fixed_mask")]),
        (inputnode, conform, [("template", "reference"), ("template_mask", "reference_mask")]),
        (brain, affine_init, [("out_file", "moving")]),
        (brain, conform, [("out_file", "in_file")]),
        (brain, outputnode, [("out_file", "t1w_preproc")]),
        (brain_extraction, affine_init, [("out_mask", "moving_mask")]),
        (brain_extraction, outputnode, [("out_mask", "t1w_mask"), ("seconds", "seconds_brain")]),
        (affine_init, conform, [("out_xfm", "in_xfm")]),
        (affine_init, outputnode, [("out_xfm", "affine_xfm"), ("seconds", "seconds_affine")]),
        (conform, normalize, [("out_file", "in_file")]),
        (normalize, outputnode, [("out_file", "t1w_affine")]),
    ])  # fmt: skip
    return workflow


def _describe(bias_correction: bool, affine: str, has_mask: bool) -> str:
    """Write the methods text of the preprocessing."""
    text = (
        "The brain of the T1-weighted image was taken from a given brain mask."
        if has_mask
        else "The T1-weighted image was skull-stripped already; its brain mask is the non-zero part."
    )
    if bias_correction:
        text += " Intensity non-uniformity was corrected with N4 [@n4]."
    if affine == "identity":
        return text + " The image was taken to be aligned with the template.\n"
    freedom = {"affine": "twelve", "rigid": "six"}[affine]
    return (
        text + f" It was aligned to the template with {freedom} degrees of freedom by mutual information,"
        " using SimpleITK [@simpleitk].\n"
    )
