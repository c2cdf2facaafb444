"""Nipype interfaces of the pipeline: each loads files, calls the core and saves files, and does nothing else.

Nipype's version check (its only network access) is switched off before Nipype is first imported.
"""

import os

os.environ.setdefault("NIPYPE_NO_ET", "1")

from mmln_pipeline.interfaces.brain_averaging import AverageBrains, ReportTemplate, StartTemplate
from mmln_pipeline.interfaces.brain_extraction import BrainExtraction, SynthStrip
from mmln_pipeline.interfaces.bringing_along import BringAlong
from mmln_pipeline.interfaces.mmln import ApplyMMLNTransform, ConvertTransform, MMLNRegistration
from mmln_pipeline.interfaces.preprocessing import (
    AffineInit,
    ConformGrid,
    CorrectBias,
    LoadTemplate,
    NormalizeIntensity,
)
from mmln_pipeline.interfaces.recording import RecordRegistration
from mmln_pipeline.interfaces.saving import SaveDerivative
from mmln_pipeline.interfaces.scoring import EvaluateRegistration, PlotRegistration
from mmln_pipeline.interfaces.segmentation import FuseLabels, MeasureVolumes, PlotLabels, ScoreLabels
from mmln_pipeline.interfaces.subject_reference import SubjectReference

__all__ = [
    "AffineInit",
    "ApplyMMLNTransform",
    "AverageBrains",
    "BrainExtraction",
    "BringAlong",
    "ConformGrid",
    "ConvertTransform",
    "CorrectBias",
    "EvaluateRegistration",
    "FuseLabels",
    "LoadTemplate",
    "MMLNRegistration",
    "MeasureVolumes",
    "NormalizeIntensity",
    "PlotLabels",
    "PlotRegistration",
    "RecordRegistration",
    "ReportTemplate",
    "SaveDerivative",
    "ScoreLabels",
    "StartTemplate",
    "SubjectReference",
    "SynthStrip",
]
