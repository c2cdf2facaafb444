"""Workflow that records one registration's scores and draws its figures."""

from collections.abc import Mapping
from pathlib import Path

from nipype.interfaces.utility import IdentityInterface
from nipype.pipeline import engine as pe

from mmln_pipeline.interfaces import (
    ConformGrid,
    NormalizeIntensity,
    PlotLabels,
    PlotRegistration,
    RecordRegistration,
)
from mmln_pipeline.registration.settings import Settings


def init_evaluation_wf(
    *,
    model: str | Path = Settings.model,
    has_atlas: bool = False,
    has_lesion: bool = False,
    bias_correction: bool = True,
    facts: Mapping[str, object] | None = None,
    sources: Mapping[str, str] | None = None,
    label_names: Mapping[int, str] | None = None,
    name: str = "evaluation_wf",
) -> pe.Workflow:
    """
    Build the workflow that records a registration's scores and draws it.

    Parameters
    ----------
    model : str or Path, default "mmln"
        Weights whose grid the registration is drawn on.
    has_atlas : bool, default False
        Whether the template's labels were brought to the T1w image.
    has_lesion : bool, default False
        Whether a lesion mask comes in, to be drawn.
    bias_correction : bool, default True
        Whether the duration of a bias correction comes in.
    facts : mapping or None, default None
        What the scores' record should say besides: subject, template, model.
    sources : mapping or None, default None
        Files as they were given, by name: how their headers are read is recorded.
    label_names : mapping or None, default None
        Names of the template's labels, by number.
    name : str, default "evaluation_wf"
        Name of the workflow.

    Inputs
    ------
    template
        Skull-stripped template image.
    template_mask
        Its brain mask.
    t1w
        The image as it came, skull and all, on its native grid.
    t1w_preproc
        Brain image on the same grid.
    t1w_mask
        Its brain mask.
    mask_source
        Where that came from, in words.
    affine_xfm
        ITK affine, template world to T1w world.
    t1w_std
        Brain image registered to the template.
    warp
        The registration's transform as ITK displacement field.
    log_jacobian
        Log-Jacobian of the same.
    metrics
        The registration's own scores and timings (JSON).
    atlas_dseg
        The template's labels on the native grid (only with `has_atlas`).
    t1w_lesion
        Lesion mask on the native grid (only with `has_lesion`).
    seconds_reference, seconds_brain, seconds_bias, seconds_affine
        Durations of the preprocessing, s (`seconds_bias` only with `bias_correction`).

    Outputs
    -------
    qc_json
        All scores, timings, versions and the device.
    qc_tsv
        The same as a table of one row.
    figure_mask
        Brain mask, and lesion mask, on the T1w image.
    figure_registration
        T1w image before and after registration.
    figure_warp
        Warped grid.
    figure_jacobian
        Log-Jacobian map.
    figure_labels
        The template's labels on the T1w image (only with `has_atlas`).
    """
    workflow = pe.Workflow(name=name)
    workflow.__desc__ = (
        "Registrations were scored by the correlation of the images before and after, by the share of voxels "
        "with a non-positive Jacobian determinant, by the non-diffeomorphic volume [@ndv] and by the spread "
        "of the log-Jacobian inside the brain; fixed limits on these and further scores gave each a verdict "
        "(pass, look or fail).\n"
    )
    inputs = ["template", "template_mask", "t1w", "t1w_preproc", "t1w_mask", "affine_xfm", "t1w_std"]
    inputs += ["warp", "log_jacobian", "metrics", "mask_source"]
    inputs += ["seconds_reference", "seconds_brain", "seconds_affine"]
    inputs += ["atlas_dseg"] * has_atlas + ["t1w_lesion"] * has_lesion + ["seconds_bias"] * bias_correction
    outputs = ["qc_json", "qc_tsv", "figure_mask", "figure_registration", "figure_warp", "figure_jacobian"]
    outputs += ["figure_labels"] * has_atlas
    inputnode = pe.Node(IdentityInterface(fields=inputs), name="inputnode")
    outputnode = pe.Node(IdentityInterface(fields=outputs), name="outputnode")

    record = pe.Node(RecordRegistration(facts=dict(facts or {})), name="record", mem_gb=0.2)
    if sources:
        record.inputs.sources = dict(sources)
    conform = pe.Node(ConformGrid(model=str(model)), name="conform", mem_gb=1)
    normalize = pe.Node(NormalizeIntensity(), name="normalize", mem_gb=1)
    plots = pe.Node(PlotRegistration(), name="plots", mem_gb=2)
    workflow.connect([
        (inputnode, record, [
            ("metrics", "metrics"),
            ("mask_source", "brain_mask"),
            ("seconds_reference", "seconds_reference"),
            ("seconds_brain", "seconds_brain"),
            ("seconds_affine", "seconds_affine"),
        ]),
        (inputnode, conform, [
            ("template", "reference"),
            ("template_mask", "reference_mask"),
            ("t1w_preproc", "in_file"),
            ("affine_xfm", "in_xfm"),
        ]),
        (conform, normalize, [("out_file", "in_file")]),
        (normalize, plots, [("out_file", "before")]),
        (inputnode, plots, [
            ("template", "fixed"),
            ("template_mask", "fixed_mask"),
            ("t1w_std", "after"),
            ("warp", "warp"),
            ("log_jacobian", "log_jacobian"),
            ("t1w", "moving_head"),
            ("t1w_preproc", "moving"),
            ("t1w_mask", "moving_mask"),
        ]),
        (plots, record, [("seconds", "seconds_figures")]),
        (record, outputnode, [("out_json", "qc_json"), ("out_tsv", "qc_tsv")]),
        (plots, outputnode, [
            ("out_mask", "figure_mask"),
            ("out_registration", "figure_registration"),
            ("out_warp", "figure_warp"),
            ("out_jacobian", "figure_jacobian"),
        ]),
    ])  # fmt: skip
    if bias_correction:
        workflow.connect(inputnode, "seconds_bias", record, "seconds_bias")
    if has_lesion:
        workflow.connect(inputnode, "t1w_lesion", plots, "moving_lesion")
    if has_atlas:
        plot_labels = pe.Node(PlotLabels(label_names=dict(label_names or {})), name="plot_labels", mem_gb=1)
        workflow.connect([
            (inputnode, plot_labels, [("t1w_preproc", "in_file"), ("atlas_dseg", "in_dseg")]),
            (plot_labels, record, [("seconds", "seconds_labels")]),
            (plot_labels, outputnode, [("out_file", "figure_labels")]),
        ])  # fmt: skip
    return workflow
