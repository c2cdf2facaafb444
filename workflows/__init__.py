"""Nipype workflows that join the interfaces into a pipeline."""

# The interfaces come first: they switch off Nipype's network access before Nipype is imported.
from mmln_pipeline import interfaces  # noqa: F401
from mmln_pipeline.derivatives.scans import Scan
from mmln_pipeline.derivatives.sidecars import Provenance
from mmln_pipeline.derivatives.targets import Target, fused_targets, targets_of
from mmln_pipeline.workflows.alignment_wf import init_alignment_wf
from mmln_pipeline.workflows.derivatives_wf import init_derivatives_wf
from mmln_pipeline.workflows.evaluation_wf import init_evaluation_wf
from mmln_pipeline.workflows.fusion_wf import init_fusion_wf
from mmln_pipeline.workflows.methods import collect_methods, write_boilerplate
from mmln_pipeline.workflows.mmln_wf import init_mmln_wf
from mmln_pipeline.workflows.preproc_wf import init_preproc_wf
from mmln_pipeline.workflows.reference_wf import init_reference_wf
from mmln_pipeline.workflows.registration_wf import init_registration_wf
from mmln_pipeline.workflows.single_subject_wf import init_single_subject_wf
from mmln_pipeline.workflows.study_template_wf import (
    init_iteration_wf,
    init_member_wf,
    init_study_template_wf,
)
from mmln_pipeline.workflows.template_wf import init_template_wf

__all__ = [
    "Provenance",
    "Scan",
    "Target",
    "collect_methods",
    "fused_targets",
    "init_alignment_wf",
    "init_derivatives_wf",
    "init_evaluation_wf",
    "init_fusion_wf",
    "init_iteration_wf",
    "init_member_wf",
    "init_mmln_wf",
    "init_preproc_wf",
    "init_reference_wf",
    "init_registration_wf",
    "init_single_subject_wf",
    "init_study_template_wf",
    "init_template_wf",
    "targets_of",
    "write_boilerplate",
]
