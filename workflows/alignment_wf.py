"""Workflow of the linear alignment of a prepared brain to a template."""

from nipype.interfaces.utility import IdentityInterface
from nipype.pipeline import engine as pe

from mmln_pipeline.interfaces import AffineInit
from mmln_pipeline.machine.options import find_option
from mmln_pipeline.registration.settings import Settings


def init_alignment_wf(
    *,
    affine: str = "affine",
    has_lesion: bool = False,
    omp_nthreads: int = 1,
    random_seed: int = 0,
    name: str = "alignment_wf",
) -> pe.Workflow:
    """
    Build the workflow that aligns a prepared T1w brain linearly to a template.

    Parameters
    ----------
    affine : str, default "affine"
        Initial alignment to the template: a word that `mmln_pipeline.registration.settings.Settings` knows for `init`.
    has_lesion : bool, default False
        Whether a lesion mask comes in, which must not steer the alignment.
    omp_nthreads : int, default 1
        Threads of one step.
    random_seed : int, default 0
        Seed of the affine's sampling.
    name : str, default "alignment_wf"
        Name of the workflow.

    Inputs
    ------
    t1w_preproc
        Brain image on its native grid.
    t1w_mask
        Its brain mask.
    t1w_lesion
        Lesion mask on the native grid (only with `has_lesion`).
    template
        Skull-stripped template image.
    template_mask
        Brain mask of the template.
    start_xfm
        ITK affine, template world to T1w world, that may be near; where it is, nothing else is tried (optional).

    Outputs
    -------
    affine_xfm
        ITK affine, template world to T1w world (mm).
    seconds_affine
        Duration of the alignment, s.

    Raises
    ------
    ValueError
        If `affine` is no such word.
    """
    workflow = pe.Workflow(name=name)
    words = find_option(Settings, "init").words
    if affine not in words:
        raise ValueError(f"affine: expected {', '.join(words[:-1])} or {words[-1]}, found {affine!r}")
    workflow.__desc__ = _describe(affine)
    inputs = ["t1w_preproc", "t1w_mask", "template", "template_mask", "start_xfm"] + ["t1w_lesion"] * has_lesion
    inputnode = pe.Node(IdentityInterface(fields=inputs), name="inputnode")
    outputnode = pe.Node(IdentityInterface(fields=["affine_xfm", "seconds_affine"]), name="outputnode")
    affine_init = pe.Node(
        AffineInit(kind=affine, random_seed=random_seed, num_threads=omp_nthreads),
        name="affine_init",
        mem_gb=1,
    )
    workflow.connect([
        (inputnode, affine_init, [
            ("template", "fixed"),
            ("template_mask", "fixed_mask"),
            ("t1w_preproc", "moving"),
            ("t1w_mask", "moving_mask"),
            ("start_xfm", "start_xfm"),
        ]),
        (affine_init, outputnode, [("out_xfm", "affine_xfm"), ("seconds", "seconds_affine")]),
    ])  # fmt: skip
    if has_lesion:
        workflow.connect(inputnode, "t1w_lesion", affine_init, "moving_lesion")
    return workflow


def _describe(affine: str) -> str:
    """Write the methods text of the alignment."""
    if affine == "identity":
        return "The image was taken to be aligned with the template.\n"
    freedom = {"affine": "twelve", "rigid": "six"}[affine]
    return (
        f"The brain was aligned to the template with {freedom} degrees of freedom by mutual information, using "
        "SimpleITK [@simpleitk].\n"
    )
