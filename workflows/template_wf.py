"""Workflow of one prepared scan and one template: align, register, score, draw, and write the derivatives."""

from pathlib import Path

from nipype.interfaces.utility import IdentityInterface
from nipype.pipeline import engine as pe

from mmln_pipeline.derivatives.filenames import derivative_paths, figure_paths, is_of_scan
from mmln_pipeline.derivatives.scans import Scan
from mmln_pipeline.derivatives.sidecars import Provenance
from mmln_pipeline.derivatives.targets import Target
from mmln_pipeline.interfaces import ApplyMMLNTransform, BringAlong, ConvertTransform, MeasureVolumes
from mmln_pipeline.registration.settings import Settings
from mmln_pipeline.workflows.alignment_wf import init_alignment_wf
from mmln_pipeline.workflows.derivatives_wf import init_derivatives_wf
from mmln_pipeline.workflows.evaluation_wf import init_evaluation_wf
from mmln_pipeline.workflows.registration_wf import init_registration_wf


def init_template_wf(
    *,
    scan: Scan,
    target: Target,
    output_dir: str | Path,
    provenance: Provenance,
    is_fused: bool = False,
    bias_correction: bool = True,
    omp_nthreads: int = 1,
    mem_gb: float = 3.0,
    name: str = "template_wf",
    **settings,
) -> pe.Workflow:
    """
    Build the workflow that registers a prepared T1w brain to one template and writes its derivatives.

    Parameters
    ----------
    scan : Scan
        The scan.
    target : Target
        The template and its labels.
    output_dir : str or Path
        Root of the derivative dataset.
    provenance : Provenance
        Names of template and model, and what the sidecars say about the run.
    is_fused : bool, default False
        Whether its labels are fused with those of further templates: for that, its image comes to the T1w grid.
    bias_correction : bool, default True
        Whether the duration of a bias correction comes in.
    omp_nthreads : int, default 1
        Threads of one step.
    mem_gb : float, default 3.0
        Memory to reserve for the network, GB.
    name : str, default "template_wf"
        Name of the workflow.
    **settings
        Fields of `mmln_pipeline.registration.settings.Settings`; `init` is one of its words, `omp_nthreads` stands for
        `threads`.

    Inputs
    ------
    t1w
        The image as it came, skull and all, on the same grid.
    t1w_preproc
        Brain image on its native grid.
    t1w_mask
        Its brain mask.
    mask_source
        Where that came from, in words.
    brain_xfm
        Affine by which the embedded template found the brain, its world to T1w world (optional).
    t1w_dseg, t1w_lesion
        Its labels and its lesion mask (each only for a scan that has one).
    seconds_reference, seconds_brain, seconds_bias
        Durations of the preprocessing, s (`seconds_bias` only with `bias_correction`).
    template
        Skull-stripped template image.
    template_mask
        Brain mask of the template.
    template_dseg
        Labels of the template (only of a target with labels).

    Outputs
    -------
    forward_xfm, inverse_xfm
        ITK composites T1w to template and back.
    t1w_std, mask_std
        Brain image and brain mask on the template's grid.
    forward_fsl, inverse_fsl, forward_x5, inverse_x5
        The transforms as other tools have them (only of the target's `formats`).
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
    """
    workflow, chosen = pe.Workflow(name=name), Settings(**settings)
    atlas, has_dseg, has_lesion = target.atlas, scan.has("dseg"), scan.has("lesion")
    names = derivative_paths(scan, target.name, atlas, formats=target.formats) | figure_paths(scan, target.name, atlas)
    keys = [key for key in names if not is_of_scan(key)]
    prepared = ["t1w_preproc", "t1w_mask", "mask_source", "seconds_reference", "seconds_brain"]
    prepared += ["seconds_bias"] * bias_correction
    own = ["t1w_dseg"] * has_dseg + ["t1w_lesion"] * has_lesion
    template = ["template", "template_mask"]
    labels = ["template_dseg"] * bool(atlas)
    inputnode = pe.Node(
        IdentityInterface(fields=["t1w", "brain_xfm", *prepared, *own, *template, *labels]), name="inputnode"
    )
    outputnode = pe.Node(IdentityInterface(fields=keys), name="outputnode")

    alignment_wf = init_alignment_wf(
        affine=str(chosen.init), has_lesion=has_lesion, omp_nthreads=omp_nthreads, random_seed=chosen.random_seed
    )
    registration_wf = init_registration_wf(
        model_sha256=provenance.model_sha256,
        has_dseg=has_dseg,
        has_lesion=has_lesion,
        has_atlas=bool(atlas),
        compare_labels=target.compare_labels and has_dseg and bool(atlas),
        omp_nthreads=omp_nthreads,
        mem_gb=mem_gb,
        **{key: value for key, value in settings.items() if key != "init"},
    )
    evaluation_wf = init_evaluation_wf(
        model=chosen.model,
        has_atlas=bool(atlas),
        has_lesion=has_lesion,
        bias_correction=bias_correction,
        facts=_facts(scan, provenance, atlas),
        sources=scan.files | target.files,
        label_names=target.label_names,
    )
    derivatives_wf = init_derivatives_wf(
        scan=scan,
        output_dir=output_dir,
        provenance=provenance,
        atlas=atlas,
        spaced=target.spaced,
        formats=target.formats,
        keys=keys,
    )
    drawn = ["t1w_std", "log_jacobian", "warp", "metrics"] + ["atlas_dseg"] * bool(atlas)
    saved = ["forward_xfm", "inverse_xfm", "t1w_std", "mask_std", "log_jacobian"] + ["atlas_dseg"] * bool(atlas)
    saved += ["dseg_std"] * has_dseg + ["lesion_std"] * has_lesion
    scored = ["qc_json", "qc_tsv", *(key for key in keys if key.startswith("figure_"))]
    workflow.connect([
        (inputnode, alignment_wf, _to_input(["t1w_preproc", "t1w_mask", *template] + ["t1w_lesion"] * has_lesion)),
        (inputnode, alignment_wf, [("brain_xfm", "inputnode.start_xfm")]),
        (inputnode, registration_wf, _to_input(["t1w_preproc", "t1w_mask", *own, *template, *labels])),
        (inputnode, evaluation_wf, _to_input(["t1w", *prepared, *template] + ["t1w_lesion"] * has_lesion)),
        (alignment_wf, registration_wf, _between(["affine_xfm"])),
        (alignment_wf, evaluation_wf, _between(["affine_xfm", "seconds_affine"])),
        (registration_wf, evaluation_wf, _between(drawn)),
        (registration_wf, derivatives_wf, _between(saved)),
        (evaluation_wf, derivatives_wf, _between(scored)),
        (derivatives_wf, outputnode, [(f"outputnode.{key}", key) for key in keys]),
    ])  # fmt: skip
    if atlas:
        volumes = pe.Node(MeasureVolumes(label_names=dict(target.label_names)), name="volumes", mem_gb=1)
        workflow.connect([
            (registration_wf, volumes, [("outputnode.atlas_dseg", "in_file")]),
            (volumes, derivatives_wf, [("out_file", "inputnode.atlas_volumes")]),
        ])  # fmt: skip
    for key in (f"{direction}_{kind}" for kind in target.formats for direction in ("forward", "inverse")):
        direction, kind = key.split("_")
        pair = ("template", "t1w_preproc") if direction == "forward" else ("t1w_preproc", "template")
        convert = pe.Node(ConvertTransform(kind=kind), name=f"convert_{key}", mem_gb=1)
        workflow.connect([
            (inputnode, convert, list(zip(pair, ("fixed", "moving"), strict=True))),
            (registration_wf, convert, [(f"outputnode.{direction}_xfm", "transform")]),
            (convert, derivatives_wf, [("out_file", f"inputnode.{key}")]),
        ])  # fmt: skip
    for number, path in enumerate(scan.along, start=1):
        bring = pe.Node(BringAlong(in_file=str(path)), name=f"bring_along_{number}", mem_gb=1.5)
        xfms = [(f"outputnode.{direction}_xfm", f"{direction}_xfm") for direction in ("forward", "inverse")]
        workflow.connect([
            (inputnode, bring, [("template", "template")]),
            (registration_wf, bring, xfms),
            (bring, derivatives_wf, [("out_file", f"inputnode.along_{number}")]),
        ])  # fmt: skip
    if is_fused:
        apply_template = pe.Node(ApplyMMLNTransform(), name="apply_template", mem_gb=1)
        labelling = pe.Node(IdentityInterface(fields=["template_t1w", "atlas_dseg"]), name="labelling")
        workflow.connect([
            (inputnode, apply_template, [("template", "in_file"), ("t1w_preproc", "reference")]),
            (registration_wf, apply_template, [("outputnode.inverse_xfm", "transform")]),
            (apply_template, labelling, [("out_file", "template_t1w")]),
            (registration_wf, labelling, [("outputnode.atlas_dseg", "atlas_dseg")]),
        ])  # fmt: skip
    return workflow


def _facts(scan: Scan, provenance: Provenance, atlas: str | None) -> dict:
    """Say what was registered to what, for the record of the scores, which has its own word on topology."""
    settings = {name: value for name, value in provenance.parameters.items() if name != "topology"}
    return {
        "subject": scan.subject,
        "session": scan.session,
        "t1w": provenance.uri(scan.t1w),
        **({"images_averaged": len(scan.images)} if scan.others else {}),
        "template": provenance.template,
        "atlas": atlas,
        **settings,
    }


def _to_input(fields):
    """Pair fields of an inputnode with the same fields of an inner workflow's inputnode."""
    return [(key, f"inputnode.{key}") for key in fields]


def _between(fields):
    """Pair fields of one inner workflow's outputnode with the same fields of another's inputnode."""
    return [(f"outputnode.{key}", f"inputnode.{key}") for key in fields]
