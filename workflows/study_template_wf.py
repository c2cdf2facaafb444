"""Workflows of the template of a group: each brain prepared, then registered to the mean of all again and again."""

from collections.abc import Sequence
from pathlib import Path

from nipype.interfaces.utility import IdentityInterface, Merge
from nipype.pipeline import engine as pe

from mmln_pipeline.derivatives.filenames import study_template_paths
from mmln_pipeline.derivatives.scans import Scan
from mmln_pipeline.derivatives.sidecars import Provenance, study_template_sidecars
from mmln_pipeline.derivatives.targets import EMBEDDED_TARGET, Target
from mmln_pipeline.images.volumes import DARK_SHARE
from mmln_pipeline.interfaces import AverageBrains, ReportTemplate, SaveDerivative, StartTemplate
from mmln_pipeline.registration.settings import Settings
from mmln_pipeline.workflows.alignment_wf import init_alignment_wf
from mmln_pipeline.workflows.mmln_wf import make_template_node
from mmln_pipeline.workflows.preproc_wf import init_preproc_wf
from mmln_pipeline.workflows.reference_wf import init_reference_wf
from mmln_pipeline.workflows.registration_wf import make_registration_node

BRAIN = ("t1w_preproc", "t1w_mask", "affine_xfm")
"""What comes of preparing a brain, whether it has labels and a lesion mask or not."""
COMPANIONS = ("dseg", "lesion")


def init_study_template_wf(
    *,
    scans: Sequence[Scan],
    output_dir: str | Path,
    provenance: Provenance,
    target: Target = EMBEDDED_TARGET,
    template_name: str = "study",
    iterations: int = 4,
    resolution: float = 1.0,
    skull_strip: str = "auto",
    bias_correction: bool = True,
    omp_nthreads: int = 1,
    mem_gb: float = 3.0,
    name: str = "study_template_wf",
    **settings,
) -> pe.Workflow:
    """
    Build the workflow that makes a template of a group by registering its brains to their mean, repeatedly.

    Parameters
    ----------
    scans : sequence of Scan
        The T1-weighted images, at least two.
    output_dir : str or Path
        Root of the derivative dataset.
    provenance : Provenance
        Name of the model, and what the sidecars say about the run.
    target : Target, default: the embedded template
        The template whose pose and field of view the new one takes.
    template_name : str, default "study"
        What the new template is called.
    iterations : int, default 4
        How many times the brains are registered to their mean.
    resolution : float, default 1.0
        Voxel size, mm.
    skull_strip : str, default "auto"
        One of `mmln_pipeline.linear.choices.SKULL_STRIP`.
    bias_correction : bool, default True
        Correct the bias field with N4.
    omp_nthreads : int, default 1
        Threads of one step.
    mem_gb : float, default 3.0
        Memory to reserve for the network, GB.
    name : str, default "study_template_wf"
        Name of the workflow.
    **settings
        Fields of `mmln_pipeline.registration.settings.Settings`; `init` is one of its words, `omp_nthreads` stands for
        `threads`.

    Inputs
    ------
    template
        Name or path of the template whose pose is taken.

    Outputs
    -------
    template, mask
        Mean of the brains, and its mask.
    dseg
        What most of the brains' labels say (only where some have labels).
    convergence, page
        How it went: a table with a row an iteration, and a page.
    """
    workflow, chosen = pe.Workflow(name=name), Settings(**{"device": "cpu"} | settings)
    workflow.__desc__ = _describe(provenance, target, len(scans), iterations, chosen)
    has = {kind: any(scan.has(kind) for scan in scans) for kind in COMPANIONS}
    paths = study_template_paths(template_name, has_dseg=has["dseg"])
    metadata = study_template_sidecars(scans, provenance, template_name, iterations)
    inputnode = pe.Node(IdentityInterface(fields=["template"]), name="inputnode")
    inputnode.inputs.template = target.source.image
    outputnode = pe.Node(IdentityInterface(fields=list(paths)), name="outputnode")
    load_template = make_template_node(target, "load_template")
    start = pe.Node(StartTemplate(resolution=resolution), name="start", mem_gb=1)
    workflow.connect([
        (inputnode, load_template, [("template", "template")]),
        (load_template, start, [("image", "in_file"), ("mask", "in_mask")]),
    ])  # fmt: skip

    lists = {field: _join(len(scans), field) for field in (*BRAIN, *(kind for kind in COMPANIONS if has[kind]))}
    members = []
    for number, scan in enumerate(scans, start=1):
        member_wf = init_member_wf(
            scan=scan,
            skull_strip=skull_strip,
            bias_correction=bias_correction,
            affine=str(chosen.init),
            dark_share=target.dark_share,
            omp_nthreads=omp_nthreads,
            random_seed=chosen.random_seed,
        )
        workflow.connect([
            (load_template, member_wf, [("image", "inputnode.template"), ("mask", "inputnode.template_mask")]),
        ])  # fmt: skip
        for field, join in lists.items():
            if field in COMPANIONS and not scan.has(field):
                setattr(join.inputs, f"in{number}", "")
                continue
            workflow.connect(member_wf, f"outputnode.{field}", join, f"in{number}")
        members.append(member_wf)
    workflow.connect(lists["affine_xfm"], "out", start, "in_xfms")

    averages = [_average(workflow, 0, lists, start)]
    workflow.connect(start, "out_xfms", averages[0], "in_xfms")
    for iteration in range(1, iterations + 1):
        iteration_wf = init_iteration_wf(
            scans=scans,
            model_sha256=provenance.model_sha256,
            omp_nthreads=omp_nthreads,
            mem_gb=mem_gb,
            name=f"iteration_{iteration}_wf",
            **{key: value for key, value in settings.items() if key != "init"},
        )
        average = _average(workflow, iteration, lists, start)
        join = _join(len(scans), f"xfms_{iteration}")
        workflow.connect([
            (averages[-1], iteration_wf, [("out_file", "inputnode.template"), ("out_mask", "inputnode.template_mask")]),
            (join, average, [("out", "in_xfms")]),
        ])  # fmt: skip
        for number, (scan, member_wf) in enumerate(zip(scans, members, strict=True), start=1):
            own = ["t1w_preproc", "t1w_mask"] + ["lesion"] * scan.has("lesion")
            workflow.connect([
                (member_wf, iteration_wf, [(f"outputnode.{key}", f"inputnode.{key}_{number}") for key in own]),
                (start, iteration_wf, [(("out_xfms", _pick, number - 1), f"inputnode.affine_xfm_{number}")]),
                (iteration_wf, join, [(f"outputnode.forward_xfm_{number}", f"in{number}")]),
            ])  # fmt: skip
        averages.append(average)

    join_metrics = _join(len(averages), "metrics")
    for number, average in enumerate(averages, start=1):
        workflow.connect(average, "metrics", join_metrics, f"in{number}")
    report = pe.Node(ReportTemplate(template_name=template_name), name="report", mem_gb=1)
    report.inputs.facts = {
        "Images": ", ".join(scan.stem for scan in scans),
        "Pose of": target.name,
        "Model": f"{provenance.model}, refinement {chosen.refine}",
    }
    workflow.connect([
        (join_metrics, report, [("out", "metrics")]),
        (averages[0], report, [("out_file", "first"), ("out_mask", "first_mask")]),
        (averages[-1], report, [("out_file", "last"), ("out_mask", "last_mask")]),
    ])  # fmt: skip
    results = {"template": "out_file", "mask": "out_mask", "dseg": "out_dseg"}
    tables = {"convergence": "out_table", "page": "out_page"}
    for key in paths:
        save = pe.Node(
            SaveDerivative(out_file=str(Path(output_dir).absolute() / paths[key])),
            name=f"save_{key}",
            run_without_submitting=True,
        )
        if key in metadata:
            save.inputs.metadata = metadata[key]
        source, field = (report, tables[key]) if key in tables else (averages[-1], results[key])
        workflow.connect([(source, save, [(field, "in_file")]), (save, outputnode, [("out_file", key)])])
    return workflow


def init_member_wf(
    *,
    scan: Scan,
    skull_strip: str = "auto",
    bias_correction: bool = True,
    affine: str = "affine",
    dark_share: float = DARK_SHARE,
    omp_nthreads: int = 1,
    random_seed: int = 0,
    name: str | None = None,
) -> pe.Workflow:
    """
    Build the workflow that prepares a brain of a group: joins its images, finds the brain, aligns it linearly.

    Parameters
    ----------
    scan : Scan
        The image or images.
    skull_strip : str, default "auto"
        One of `mmln_pipeline.linear.choices.SKULL_STRIP`.
    bias_correction : bool, default True
        Correct the bias field with N4.
    affine : str, default "affine"
        Initial alignment: a word that `mmln_pipeline.registration.settings.Settings` knows for `init`.
    dark_share : float, default 0.17
        What a brain without a zero (z-scored) is lifted to: the template's.
    omp_nthreads : int, default 1
        Threads of one step.
    random_seed : int, default 0
        Seed of what is random.
    name : str or None, default None
        Name of the workflow (default: made of the scan's entities).

    Inputs
    ------
    template
        Skull-stripped template image.
    template_mask
        Its brain mask.

    Outputs
    -------
    t1w_preproc, t1w_mask
        Brain image without bias field, and its mask.
    affine_xfm
        ITK affine, template world to T1w world.
    dseg, lesion
        Labels and lesion mask on the same grid (each only for a scan that has them).
    """
    workflow = pe.Workflow(name=name or scan.workflow_name)
    own = [kind for kind in COMPANIONS if scan.has(kind)]
    inputnode = pe.Node(IdentityInterface(fields=["template", "template_mask"]), name="inputnode")
    outputnode = pe.Node(IdentityInterface(fields=[*BRAIN, *own]), name="outputnode")
    reference_wf = init_reference_wf(scan=scan, random_seed=random_seed)
    preproc_wf = init_preproc_wf(
        skull_strip=skull_strip,
        bias_correction=bias_correction,
        has_mask=scan.has("mask"),
        dark_share=dark_share,
        omp_nthreads=omp_nthreads,
        random_seed=random_seed,
    )
    alignment_wf = init_alignment_wf(
        affine=affine, has_lesion="lesion" in own, omp_nthreads=omp_nthreads, random_seed=random_seed
    )
    brain = ["t1w_preproc", "t1w_mask"]
    workflow.connect([
        (reference_wf, preproc_wf, [("outputnode.t1w", "inputnode.t1w")]),
        (inputnode, alignment_wf, [(key, f"inputnode.{key}") for key in ("template", "template_mask")]),
        (preproc_wf, alignment_wf, [(f"outputnode.{key}", f"inputnode.{key}") for key in brain]),
        (preproc_wf, alignment_wf, [("outputnode.brain_xfm", "inputnode.start_xfm")]),
        (preproc_wf, outputnode, [(f"outputnode.{key}", key) for key in brain]),
        (alignment_wf, outputnode, [("outputnode.affine_xfm", "affine_xfm")]),
        (reference_wf, outputnode, [(f"outputnode.{kind}", kind) for kind in own]),
    ])  # fmt: skip
    if scan.has("mask"):
        workflow.connect(reference_wf, "outputnode.mask", preproc_wf, "inputnode.mask")
    if "lesion" in own:
        workflow.connect(reference_wf, "outputnode.lesion", alignment_wf, "inputnode.t1w_lesion")
    return workflow


def init_iteration_wf(
    *,
    scans: Sequence[Scan],
    model_sha256: str = "",
    omp_nthreads: int = 1,
    mem_gb: float = 3.0,
    name: str = "iteration_wf",
    **settings,
) -> pe.Workflow:
    """
    Build the workflow that registers all brains of a group to their mean.

    Parameters
    ----------
    scans : sequence of Scan
        The T1-weighted images.
    model_sha256 : str, default ""
        Checksum of the weights.
    omp_nthreads : int, default 1
        Threads of one registration.
    mem_gb : float, default 3.0
        Memory to reserve for the network, GB.
    name : str, default "iteration_wf"
        Name of the workflow.
    **settings
        As in `init_registration_wf`.

    Inputs
    ------
    template, template_mask
        Mean of the brains, and its mask.
    t1w_preproc_N, t1w_mask_N
        Brain number N on its native grid, and its mask.
    affine_xfm_N
        ITK affine, world of the mean to that of the brain.
    lesion_N
        Its lesion mask (only for a scan that has one).

    Outputs
    -------
    forward_xfm_N
        ITK composite, world of the mean to that of the brain.
    """
    workflow, chosen = pe.Workflow(name=name), Settings(**{"device": "cpu"} | settings)
    numbers = range(1, len(scans) + 1)
    inputs = [f"{key}_{number}" for key in ("t1w_preproc", "t1w_mask", "affine_xfm") for number in numbers]
    inputs += [f"lesion_{number}" for number, scan in zip(numbers, scans, strict=True) if scan.has("lesion")]
    inputnode = pe.Node(IdentityInterface(fields=["template", "template_mask", *inputs]), name="inputnode")
    outputnode = pe.Node(IdentityInterface(fields=[f"forward_xfm_{number}" for number in numbers]), name="outputnode")
    for number, scan in zip(numbers, scans, strict=True):
        # A failure is told by the name of the scan.
        registration = make_registration_node(chosen, model_sha256, omp_nthreads, mem_gb, name=scan.workflow_name)
        registration.inputs.outputs = ["transform"]
        workflow.connect([
            (inputnode, registration, [
                ("template", "fixed"),
                ("template_mask", "fixed_mask"),
                (f"t1w_preproc_{number}", "moving"),
                (f"t1w_mask_{number}", "moving_mask"),
                (f"affine_xfm_{number}", "init"),
            ]),
            (registration, outputnode, [("forward_xfm", f"forward_xfm_{number}")]),
        ])  # fmt: skip
        if scan.has("lesion"):
            workflow.connect(inputnode, f"lesion_{number}", registration, "moving_lesion")
    return workflow


def _join(count, name):
    """Return a node that makes one list of a field of all brains."""
    return pe.Node(Merge(count), name=f"join_{name}", run_without_submitting=True)


def _average(workflow, iteration, lists, start):
    """Add the node that averages the brains after an iteration, without the transforms."""
    average = pe.Node(AverageBrains(iteration=iteration), name=f"average_{iteration}", mem_gb=2)
    workflow.connect(start, "out_file", average, "reference")
    fields = {"t1w_preproc": "in_files", "t1w_mask": "in_masks", "lesion": "in_lesions", "dseg": "in_dsegs"}
    for key, field in fields.items():
        if key in lists:
            workflow.connect(lists[key], "out", average, field)
    return average


def _pick(paths, number):
    """Return one path of a list."""
    return paths[number]


def _describe(provenance: Provenance, target: Target, count: int, iterations: int, settings: Settings) -> str:
    """Write the methods text."""
    refined = " and refined for each image" if settings.refine != 0 else ""
    return (
        f"A template of {count} images was made with *mmln_pipeline* {provenance.version}, a Nipype [@nipype] workflow."
        f" It has the pose of {target.name}, and the size and shape that the brains have on average: the mean stretch "
        "of the affines, by their logarithms [@logeuclidean], was taken out. From the mean of the linearly aligned "
        f"brains on, {iterations} times each brain was registered to the current mean with the multi-strategy mutual "
        f"learning network [@mmln]{refined}; the mean of the displacement fields was inverted, and all brains were "
        "sampled once through this, their own warp and affine, and averaged, so that the displacements to the brains "
        "cancel out [@averagebrain].\n"
    )
