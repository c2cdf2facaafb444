"""Workflow that makes one T1w image, with its mask and labels on its grid, of the images of a scan."""

from nipype.interfaces.utility import IdentityInterface
from nipype.pipeline import engine as pe

from mmln_pipeline.derivatives.scans import Scan
from mmln_pipeline.interfaces import SubjectReference

COMPANIONS = ("mask", "dseg", "lesion")


def init_reference_wf(*, scan: Scan, random_seed: int = 0, name: str = "reference_wf") -> pe.Workflow:
    """
    Build the workflow that joins the images of a scan; a single one is left as it is.

    Parameters
    ----------
    scan : Scan
        The image or images, with the masks and labels that they have.
    random_seed : int, default 0
        Seed of the alignment's sampling.
    name : str, default "reference_wf"
        Name of the workflow.

    Inputs
    ------
    t1w
        T1-weighted images, the first one first.
    mask, dseg, lesion
        Brain mask, labels and lesion mask of each image, or an empty string (each only for a scan that has any); a list
        of two lesion masks, one a hemisphere, is joined.

    Outputs
    -------
    t1w
        The image itself, or the average of several.
    mask, dseg, lesion
        Brain mask, labels and lesion mask on its grid (each only for a scan that has any).
    seconds
        Duration, s.
    orig_xfm_N
        ITK rigid transform from the world of the average to that of image number N (only of several).
    """
    workflow = pe.Workflow(name=name)
    workflow.__desc__ = _describe(scan)
    companions = [kind for kind in COMPANIONS if scan.has(kind)]
    xfms = [f"orig_xfm_{number}" for number in range(1, len(scan.images) + 1)] if scan.others else []
    inputnode = pe.Node(IdentityInterface(fields=["t1w", *companions]), name="inputnode")
    outputnode = pe.Node(IdentityInterface(fields=["t1w", *companions, "seconds", *xfms]), name="outputnode")
    inputnode.inputs.t1w = [str(image.t1w) for image in scan.images]
    for kind in companions:
        setattr(inputnode.inputs, kind, [str(getattr(image, kind) or "") for image in scan.images])
    if scan.has("lesion_other"):
        inputnode.inputs.lesion = [
            [str(image.lesion), str(image.lesion_other)] if image.lesion_other else str(image.lesion or "")
            for image in scan.images
        ]

    reference = pe.Node(
        SubjectReference(kind=scan.reference, random_seed=random_seed), name="reference", mem_gb=1 + len(scan.images)
    )
    workflow.connect([
        (inputnode, reference, [("t1w", "in_files"), *((kind, f"in_{kind}s") for kind in companions)]),
        (reference, outputnode, [("out_file", "t1w"), *((f"out_{kind}", kind) for kind in companions)]),
        (reference, outputnode, [("seconds", "seconds")]),
        (reference, outputnode, [(("out_xfms", _pick, number), xfm) for number, xfm in enumerate(xfms)]),
    ])  # fmt: skip
    return workflow


def _describe(scan: Scan) -> str:
    """Write the methods text of averaging."""
    if not scan.others:
        return ""
    space = {"first-lex": "in the space of the first one", "unbiased": "in the middle of all, without bias"}
    return (
        f"Where a subject had several T1-weighted images, they were aligned rigidly {space[scan.reference]} "
        "and averaged (mean of two, median of more).\n"
    )


def _pick(paths, number):
    """Return one path of a list."""
    return paths[number]
