"""Workflow of the registration: the network's transforms, and what they carry between T1w and template."""

from pathlib import Path

from nipype.interfaces.utility import IdentityInterface
from nipype.pipeline import engine as pe

from mmln_pipeline.interfaces import ApplyMMLNTransform, MMLNRegistration
from mmln_pipeline.registration.settings import Settings, refuse

GPU_THREADS = 2
"""Threads of a registration whose network runs on a GPU: they read, resample and write."""


def init_registration_wf(
    *,
    model_sha256: str = "",
    has_dseg: bool = False,
    has_lesion: bool = False,
    has_atlas: bool = False,
    compare_labels: bool = False,
    omp_nthreads: int = 1,
    mem_gb: float = 3.0,
    name: str = "registration_wf",
    **settings,
) -> pe.Workflow:
    """
    Build the workflow that registers a prepared T1w brain to the template.

    Parameters
    ----------
    model_sha256 : str, default ""
        Checksum of the weights.
    has_dseg : bool, default False
        Whether labels of the T1w image come in.
    has_lesion : bool, default False
        Whether a lesion mask of the T1w image comes in, which must not steer the registration.
    has_atlas : bool, default False
        Whether labels of the template come in.
    compare_labels : bool, default False
        Score the overlap of the two label images: they share one numbering.
    omp_nthreads : int, default 1
        Threads of the registration; on a GPU at most `GPU_THREADS`.
    mem_gb : float, default 3.0
        Memory to reserve for the network, GB.
    name : str, default "registration_wf"
        Name of the workflow.
    **settings
        Fields of `mmln_pipeline.registration.settings.Settings`: `model`, `refine`, `topology`, `device` (here "cpu" by
        default; "auto" is not resolved), `random_seed`. The input `affine_xfm` stands for `init`, and `omp_nthreads`
        for `threads`.

    Inputs
    ------
    t1w_preproc
        Brain image on its native grid.
    t1w_mask
        Its brain mask.
    affine_xfm
        ITK affine, template world to T1w world.
    template
        Skull-stripped template image.
    template_mask
        Brain mask of the template.
    t1w_dseg
        Labels on the native grid (only with `has_dseg`).
    t1w_lesion
        Lesion mask on the native grid (only with `has_lesion`).
    template_dseg
        Labels on the template's grid (only with `has_atlas`).

    Outputs
    -------
    t1w_std
        `t1w_preproc` on the template's grid.
    mask_std
        `t1w_mask` on the template's grid.
    dseg_std
        `t1w_dseg` on the template's grid (only with `has_dseg`).
    lesion_std
        `t1w_lesion` on the template's grid (only with `has_lesion`).
    atlas_dseg
        `template_dseg` on the native grid (only with `has_atlas`).
    forward_xfm
        ITK composite that resamples T1w images onto the template's grid.
    inverse_xfm
        ITK composite that resamples template images onto the T1w grid.
    warp
        The forward transform as ITK displacement field, mm.
    jacobian
        Jacobian determinant of the forward transform.
    log_jacobian
        Natural logarithm of `jacobian`.
    metrics
        Scores and timings of the registration as JSON.
    """
    refuse(settings, init="the input affine_xfm", threads="omp_nthreads")
    workflow = pe.Workflow(name=name)
    chosen = Settings(**{"device": "cpu"} | settings)
    workflow.__desc__ = _describe(chosen, model_sha256)
    inputs = ["t1w_preproc", "t1w_mask", "affine_xfm", "template", "template_mask"]
    outputs = [
        "t1w_std",
        "mask_std",
        "forward_xfm",
        "inverse_xfm",
        "warp",
        "jacobian",
        "log_jacobian",
        "metrics",
    ]
    inputs += ["t1w_dseg"] * has_dseg + ["t1w_lesion"] * has_lesion + ["template_dseg"] * has_atlas
    outputs += ["dseg_std"] * has_dseg + ["lesion_std"] * has_lesion + ["atlas_dseg"] * has_atlas
    inputnode = pe.Node(IdentityInterface(fields=inputs), name="inputnode")
    outputnode = pe.Node(IdentityInterface(fields=outputs), name="outputnode")

    registration = make_registration_node(chosen, model_sha256, omp_nthreads, mem_gb)
    apply_mask = pe.Node(ApplyMMLNTransform(interpolation="nearest"), name="apply_mask", mem_gb=1)

    workflow.connect([
        (inputnode, registration, [
            ("template", "fixed"),
            ("template_mask", "fixed_mask"),
            ("t1w_preproc", "moving"),
            ("t1w_mask", "moving_mask"),
            ("affine_xfm", "init"),
        ]),
        (inputnode, apply_mask, [("t1w_mask", "in_file"), ("template", "reference")]),
        (registration, apply_mask, [("forward_xfm", "transform")]),
        (apply_mask, outputnode, [("out_file", "mask_std")]),
        (registration, outputnode, [
            ("moved", "t1w_std"),
            ("forward_xfm", "forward_xfm"),
            ("inverse_xfm", "inverse_xfm"),
            ("warp", "warp"),
            ("jacobian", "jacobian"),
            ("log_jacobian", "log_jacobian"),
            ("metrics", "metrics"),
        ]),
    ])  # fmt: skip
    if has_dseg:
        workflow.connect([
            (inputnode, registration, [("t1w_dseg", "moving_dseg")]),
            (registration, outputnode, [("moved_dseg", "dseg_std")]),
        ])  # fmt: skip
    if has_lesion:
        apply_lesion = pe.Node(ApplyMMLNTransform(interpolation="nearest"), name="apply_lesion", mem_gb=1)
        workflow.connect([
            (inputnode, registration, [("t1w_lesion", "moving_lesion")]),
            (inputnode, apply_lesion, [("t1w_lesion", "in_file"), ("template", "reference")]),
            (registration, apply_lesion, [("forward_xfm", "transform")]),
            (apply_lesion, outputnode, [("out_file", "lesion_std")]),
        ])  # fmt: skip
    if compare_labels:
        workflow.connect(inputnode, "template_dseg", registration, "fixed_dseg")
    if has_atlas:
        apply_atlas = pe.Node(ApplyMMLNTransform(interpolation="nearest"), name="apply_atlas", mem_gb=1)
        workflow.connect([
            (inputnode, apply_atlas, [("template_dseg", "in_file"), ("t1w_preproc", "reference")]),
            (registration, apply_atlas, [("inverse_xfm", "transform")]),
            (apply_atlas, outputnode, [("out_file", "atlas_dseg")]),
        ])  # fmt: skip
    return workflow


def make_registration_node(
    settings: Settings, model_sha256: str, omp_nthreads: int, mem_gb: float, name: str = "registration"
) -> pe.Node:
    """Return a node that registers, with the processors and memory that it takes.

    Parameters
    ----------
    settings : Settings
        How to register; the device is not "auto".
    model_sha256 : str
        Checksum of the weights.
    omp_nthreads : int
        Threads of the registration; on a GPU at most `GPU_THREADS`.
    mem_gb : float
        Memory to reserve for the network, GB.
    name : str, default "registration"
        Name of the node.
    """
    on_gpu = settings.device.startswith("cuda")
    threads = min(omp_nthreads, GPU_THREADS) if on_gpu else omp_nthreads
    return pe.Node(
        MMLNRegistration(
            model=str(settings.model),
            model_sha256=model_sha256,
            refine=settings.refine,
            topology=settings.topology,
            device=settings.device,
            use_gpu=on_gpu,
            num_threads=threads,
            random_seed=settings.random_seed,
        ),
        name=name,
        n_procs=threads,
        mem_gb=mem_gb,
    )


def _describe(settings: Settings, model_sha256: str) -> str:
    """Write the methods text of the registration."""
    weights = f"weights `{Path(settings.model).stem}`"
    if model_sha256:
        weights += f", SHA-256 {model_sha256[:12]}"
    tuned = ", its finest level replaced by instance optimisation of the field for this image"
    valid = "; where it folded on the grid, its displacement was smoothed until nothing did"
    return (
        "The brain was registered to the template with the multi-strategy mutual learning network "
        f"[@mmln] ({weights}){tuned if settings.refine != 0 else ''}. The network's velocity fields are integrated by "
        f"scaling and squaring, so the warp has an inverse{valid if settings.topology != 'off' else ''}. Images were "
        "resampled once, through the composite of affine and warp; masks and labels by nearest neighbour.\n"
    )
