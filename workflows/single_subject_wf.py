"""Workflow of one scan: prepare it once, register it to each template, fuse the labels of several."""

from collections.abc import Sequence
from pathlib import Path

from nipype.interfaces.utility import IdentityInterface
from nipype.pipeline import engine as pe

from mmln_pipeline.derivatives.filenames import derivative_paths, is_of_scan
from mmln_pipeline.derivatives.scans import Scan
from mmln_pipeline.derivatives.sidecars import Provenance
from mmln_pipeline.derivatives.targets import EMBEDDED_TARGET, Target, fused_targets, tell_apart
from mmln_pipeline.registration.settings import Settings
from mmln_pipeline.workflows.derivatives_wf import init_derivatives_wf
from mmln_pipeline.workflows.fusion_wf import init_fusion_wf
from mmln_pipeline.workflows.preproc_wf import init_preproc_wf
from mmln_pipeline.workflows.reference_wf import init_reference_wf
from mmln_pipeline.workflows.template_wf import init_template_wf


def init_single_subject_wf(
    *,
    scan: Scan,
    output_dir: str | Path,
    provenance: Provenance,
    targets: Sequence[Target] = (EMBEDDED_TARGET,),
    skull_strip: str = "auto",
    bias_correction: bool = True,
    omp_nthreads: int = 1,
    mem_gb: float = 3.0,
    name: str | None = None,
    **settings,
) -> pe.Workflow:
    """
    Build the workflow that registers the T1-weighted image of one scan and writes its derivatives.

    Parameters
    ----------
    scan : Scan
        The image or images, and their masks and labels where they have them.
    output_dir : str or Path
        Root of the derivative dataset.
    provenance : Provenance
        Name of the model, and what the sidecars say about the run.
    targets : sequence of Target, default: the embedded template
        The templates, with their labels.
    skull_strip : str, default "auto"
        One of `mmln_pipeline.linear.choices.SKULL_STRIP`.
    bias_correction : bool, default True
        Correct the bias field with N4.
    omp_nthreads : int, default 1
        Threads of one step.
    mem_gb : float, default 3.0
        Memory to reserve for the network, GB.
    name : str or None, default None
        Name of the workflow (default: made of the scan's entities).
    **settings
        Fields of `mmln_pipeline.registration.settings.Settings`; `init` is one of its words, `omp_nthreads` stands for
        `threads`.

    Inputs
    ------
    template
        Skull-stripped template image.
    template_mask
        Brain mask of the template.
    template_dseg
        Labels of the template (only of a target with labels).

    Of several targets, each name ends in the target's, as in `template_mask_A`.

    Outputs
    -------
    t1w_mask
        Brain mask on the T1w grid.
    t1w_reference, orig_xfm_N
        Average of several images, and the transform to the world of image number N (only of several images).
    forward_xfm, inverse_xfm
        ITK composites T1w to template and back.
    forward_fsl, inverse_fsl, forward_x5, inverse_x5
        The transforms as other tools have them (only of a target's `formats`).
    t1w_std, mask_std
        Brain image and brain mask on the template's grid.
    log_jacobian
        Log-Jacobian of the forward transform.
    qc_json, qc_tsv
        Scores, timings, versions and device.
    figure_mask, figure_registration, figure_warp, figure_jacobian
        Figures of the report.
    atlas_dseg, atlas_volumes, figure_labels
        Atlas labels on the T1w grid, their volumes and their figure (only of a target with labels).
    dseg_std, lesion_std
        The scan's labels and lesion mask on the template's grid (only for a scan that has them).
    along_N
        What the scan brings along, in template space (only for a scan that does).
    fused_dseg, fused_volumes, fused_figure, fused_qc
        Fused labels on the T1w grid, their volumes, figure and (for a scan with labels) scores (only with several
        targets with labels).

    Of several targets, the names of what there is of each, from `forward_xfm` to `lesion_std`, end in the target's.
    """
    workflow = pe.Workflow(name=name or scan.workflow_name)
    random_seed = Settings(**settings).random_seed
    reference_wf = init_reference_wf(scan=scan, random_seed=random_seed)
    preproc_wf = init_preproc_wf(
        skull_strip=skull_strip,
        bias_correction=bias_correction,
        has_mask=scan.has("mask"),
        dark_share=targets[0].dark_share,
        omp_nthreads=omp_nthreads,
        random_seed=random_seed,
    )
    keys = [key for key in derivative_paths(scan, provenance.template) if is_of_scan(key)]
    derivatives_wf = init_derivatives_wf(scan=scan, output_dir=output_dir, provenance=provenance, keys=keys)
    targets = tell_apart(targets)
    inputs = {target.name: _list_inputs(target) for target in targets}
    inputnode = pe.Node(
        IdentityInterface(fields=[field for fields in inputs.values() for field in fields]), name="inputnode"
    )
    workflow.connect([
        (reference_wf, preproc_wf, [("outputnode.t1w", "inputnode.t1w")]),
        (preproc_wf, derivatives_wf, [("outputnode.t1w_mask", "inputnode.t1w_mask")]),
    ])  # fmt: skip
    if scan.has("mask"):
        workflow.connect(reference_wf, "outputnode.mask", preproc_wf, "inputnode.mask")
    if scan.others:
        xfms = [f"orig_xfm_{number}" for number in range(1, len(scan.images) + 1)]
        workflow.connect([
            (reference_wf, derivatives_wf, [(f"outputnode.{xfm}", f"inputnode.{xfm}") for xfm in xfms]),
            (preproc_wf, derivatives_wf, [("outputnode.t1w_preproc", "inputnode.t1w_reference")]),
        ])  # fmt: skip

    parts, fused = {}, fused_targets(targets)
    prepared = ["t1w_preproc", "t1w_mask", "mask_source", "brain_xfm", "seconds_brain"]
    prepared += ["seconds_bias"] * bias_correction
    for target in targets:
        template_wf = init_template_wf(
            scan=scan,
            target=target,
            output_dir=output_dir,
            provenance=target.describe(provenance),
            is_fused=target in fused,
            bias_correction=bias_correction,
            omp_nthreads=omp_nthreads,
            mem_gb=mem_gb,
            name=target.workflow_name,
            **settings,
        )
        own = [kind for kind in ("dseg", "lesion") if scan.has(kind)]
        workflow.connect([
            (inputnode, template_wf, [(field, f"inputnode.{key}") for field, key in inputs[target.name].items()]),
            (preproc_wf, template_wf, [(f"outputnode.{key}", f"inputnode.{key}") for key in prepared]),
            (reference_wf, template_wf, [
                ("outputnode.t1w", "inputnode.t1w"),
                ("outputnode.seconds", "inputnode.seconds_reference"),
            ]),
            (reference_wf, template_wf, [(f"outputnode.{kind}", f"inputnode.t1w_{kind}") for kind in own]),
        ])  # fmt: skip
        parts[target.suffix] = template_wf

    if fused:
        fusion_wf = init_fusion_wf(
            scan=scan, targets=fused, output_dir=output_dir, provenance=provenance, has_dseg=scan.has("dseg")
        )
        workflow.connect(preproc_wf, "outputnode.t1w_preproc", fusion_wf, "inputnode.t1w_preproc")
        for number, target in enumerate(fused, start=1):
            template_wf = parts[target.suffix]
            workflow.connect([
                (template_wf, fusion_wf, [
                    ("labelling.template_t1w", f"inputnode.image_{number}"),
                    ("labelling.atlas_dseg", f"inputnode.dseg_{number}"),
                ]),
            ])  # fmt: skip
        if scan.has("dseg"):
            workflow.connect(reference_wf, "outputnode.dseg", fusion_wf, "inputnode.t1w_dseg")
        parts["fused"] = fusion_wf
    _expose(workflow, [("", derivatives_wf), *parts.items()])
    return workflow


def _list_inputs(target: Target) -> dict[str, str]:
    """Return the fields that a template comes in by, and those of its own workflow that they lead to."""
    keys = ["template", "template_mask"] + ["template_dseg"] * bool(target.atlas)
    return {f"{key}{target.suffix}": key for key in keys}


def _expose(workflow, parts):
    """Pass the outputs of the parts on to the outputnode, with the suffixes of the templates."""
    fields = {
        f"{key}{'' if suffix == 'fused' else suffix}": (part, key)
        for suffix, part in parts
        for key in part.get_node("outputnode").interface._fields
    }
    outputnode = pe.Node(IdentityInterface(fields=list(fields)), name="outputnode")
    for field, (part, key) in fields.items():
        workflow.connect(part, f"outputnode.{key}", outputnode, field)
