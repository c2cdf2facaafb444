"""Workflow of one scan: prepare, register, score, draw, and write the derivatives."""

from collections.abc import Mapping
from pathlib import Path

from nipype.interfaces.utility import IdentityInterface
from nipype.pipeline import engine as pe

from mmln_pipeline.workflows.derivatives import init_derivatives_wf
from mmln_pipeline.workflows.evaluation import init_evaluation_wf
from mmln_pipeline.workflows.outputs import Provenance, Scan
from mmln_pipeline.workflows.preproc import init_preproc_wf
from mmln_pipeline.workflows.registration import init_registration_wf


def init_single_subject_wf(
    *,
    scan: Scan,
    output_dir: str | Path,
    provenance: Provenance,
    atlas: str | None = None,
    label_names: Mapping[int, str] | None = None,
    compare_labels: bool = False,
    skull_strip: str = "auto",
    bias_correction: bool = True,
    init: str = "affine",
    model: str = "mmln",
    refine: str | int = "auto",
    topology: str = "strict",
    device: str = "cpu",
    omp_nthreads: int = 1,
    mem_gb: float = 8.0,
    random_seed: int = 0,
    name: str | None = None,
) -> pe.Workflow:
    """
    Build the workflow that registers one T1-weighted image and writes its derivatives.

    Parameters
    ----------
    scan : Scan
        The image, and its mask and labels where it has them.
    output_dir : str or Path
        Root of the derivative dataset.
    provenance : Provenance
        Names of template and model, and what the sidecars say about the run.
    atlas : str or None, default None
        Name of the template's labels; None where it has none.
    label_names : mapping or None, default None
        Names of the template's labels, by number.
    compare_labels : bool, default False
        Score the overlap of the scan's and the template's labels: they share one numbering.
    skull_strip : {"auto", "skip"}, default "auto"
        Check that the image is skull-stripped, or trust that it is.
    bias_correction : bool, default True
        Correct the bias field with N4.
    init : {"affine", "rigid", "identity"}, default "affine"
        Initial alignment.
    model : str, default "mmln"
        Name or path of the network's weights.
    refine : "auto" or int, default "auto"
        Iterations of instance optimisation.
    topology : {"strict", "off"}, default "strict"
        Repair the warp until nothing folds, or leave it as it comes.
    device : str, default "cpu"
        `cpu`, `cuda` or `cuda:N`.
    omp_nthreads : int, default 1
        Threads of one step.
    mem_gb : float, default 8.0
        Memory to reserve for the network, GB.
    random_seed : int, default 0
        Seed of NumPy, torch and the affine's sampling.
    name : str or None, default None
        Name of the workflow (default: made of the scan's entities).

    Inputs
    ------
    template
        Skull-stripped template image.
    template_mask
        Brain mask of the template.
    template_dseg
        Labels of the template (only with `atlas`).

    Outputs
    -------
    forward_xfm, inverse_xfm
        ITK composites T1w to template and back.
    t1w_std, mask_std
        Brain image and brain mask on the template's grid.
    t1w_mask
        Brain mask on the T1w grid.
    log_jacobian
        Log-Jacobian of the forward transform.
    qc_json, qc_tsv
        Scores, timings, versions and device.
    figure_mask, figure_registration, figure_warp, figure_jacobian
        Figures of the report.
    atlas_dseg, figure_labels
        Atlas labels on the T1w grid, and their figure (only with `atlas`).
    dseg_std
        The scan's labels on the template's grid (only for a scan with labels).
    """
    workflow = pe.Workflow(name=name or scan.workflow_name)
    workflow.__desc__ = f"Each T1-weighted image was registered to the template {provenance.template}.\n"
    has_atlas, has_dseg = atlas is not None, scan.dseg is not None
    preproc_wf = init_preproc_wf(
        skull_strip=skull_strip,
        bias_correction=bias_correction,
        affine=init,
        has_mask=scan.mask is not None,
        omp_nthreads=omp_nthreads,
        random_seed=random_seed,
    )
    registration_wf = init_registration_wf(
        model=model,
        model_sha256=provenance.model_sha256,
        refine=refine,
        topology=topology,
        device=device,
        has_dseg=has_dseg,
        has_atlas=has_atlas,
        compare_labels=compare_labels and has_dseg and has_atlas,
        omp_nthreads=omp_nthreads,
        mem_gb=mem_gb,
        random_seed=random_seed,
    )
    evaluation_wf = init_evaluation_wf(
        has_atlas=has_atlas,
        bias_correction=bias_correction,
        facts=_facts(scan, provenance, atlas),
        label_names=label_names,
    )
    derivatives_wf = init_derivatives_wf(scan=scan, output_dir=output_dir, provenance=provenance, atlas=atlas)

    preproc_wf.inputs.inputnode.t1w = str(scan.t1w)
    if scan.mask:
        preproc_wf.inputs.inputnode.mask = str(scan.mask)
    if scan.dseg:
        registration_wf.inputs.inputnode.t1w_dseg = str(scan.dseg)
    _connect(workflow, preproc_wf, registration_wf, evaluation_wf, derivatives_wf, has_atlas, has_dseg)
    if bias_correction:
        workflow.connect(preproc_wf, "outputnode.seconds_bias", evaluation_wf, "inputnode.seconds_bias")
    return workflow


def _facts(scan: Scan, provenance: Provenance, atlas: str | None) -> dict:
    """Say what was registered to what, for the record of the scores, which has its own word on topology."""
    settings = {name: value for name, value in provenance.parameters.items() if name != "topology"}
    return {
        "subject": scan.subject,
        "session": scan.session,
        "t1w": provenance.uri(scan.t1w),
        "template": provenance.template,
        "atlas": atlas,
        **settings,
    }


def _connect(workflow, preproc_wf, registration_wf, evaluation_wf, derivatives_wf, has_atlas, has_dseg):
    """Join the four parts, and pass every derivative's path to the outputnode."""
    template = ["template", "template_mask"]
    inputnode = pe.Node(IdentityInterface(fields=template + ["template_dseg"] * has_atlas), name="inputnode")
    derivatives = derivatives_wf.get_node("outputnode").interface._fields
    outputnode = pe.Node(IdentityInterface(fields=list(derivatives)), name="outputnode")
    figures = [key for key in derivatives if key.startswith("figure_")]
    prepared = ["t1w_preproc", "t1w_mask"]
    registered = ["forward_xfm", "t1w_std", "log_jacobian"]
    saved = [*registered, "inverse_xfm", "mask_std"] + ["atlas_dseg"] * has_atlas + ["dseg_std"] * has_dseg
    workflow.connect([
        (inputnode, preproc_wf, _to_input(template)),
        (inputnode, registration_wf, _to_input(template + ["template_dseg"] * has_atlas)),
        (inputnode, evaluation_wf, _to_input(template)),
        (preproc_wf, registration_wf, _between([*prepared, "affine_xfm"])),
        (preproc_wf, evaluation_wf, _between([*prepared, "t1w_affine", "seconds_brain", "seconds_affine"])),
        (registration_wf, evaluation_wf, _between([*registered, "warp", "metrics"])),
        (preproc_wf, derivatives_wf, _between(["t1w_mask"])),
        (registration_wf, derivatives_wf, _between(saved)),
        (evaluation_wf, derivatives_wf, _between(["qc_json", "qc_tsv", *figures])),
        (derivatives_wf, outputnode, [(f"outputnode.{key}", key) for key in derivatives]),
    ])  # fmt: skip
    if has_atlas:
        workflow.connect(registration_wf, "outputnode.atlas_dseg", evaluation_wf, "inputnode.atlas_dseg")


def _to_input(fields):
    """Pair fields of an inputnode with the same fields of an inner workflow's inputnode."""
    return [(key, f"inputnode.{key}") for key in fields]


def _between(fields):
    """Pair fields of one inner workflow's outputnode with the same fields of another's inputnode."""
    return [(f"outputnode.{key}", f"inputnode.{key}") for key in fields]
