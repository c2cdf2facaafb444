"""Nipype interfaces of the pipeline: each loads files, calls the core and saves files, and does nothing else.

Nipype's version check (its only network access) is switched off before Nipype is first imported.
"""

import os

os.environ.setdefault("NIPYPE_NO_ET", "1")

from mmln_pipeline.interfaces.atlases import FuseLabels, MeasureVolumes, PlotLabels, ScoreLabels
from mmln_pipeline.interfaces.derivatives import SaveDerivative
from mmln_pipeline.interfaces.evaluation import EvaluateRegistration, PlotRegistration
from mmln_pipeline.interfaces.preprocessing import (
    AffineInit,
    ConformGrid,
    CorrectBias,
    LoadTemplate,
    NormalizeIntensity,
)
from mmln_pipeline.interfaces.reference import SubjectReference
from mmln_pipeline.interfaces.registration import ApplyMMLNTransform, MMLNRegistration
from mmln_pipeline.interfaces.skullstrip import BrainExtraction, SynthStrip

__all__ = [
    "AffineInit",
    "ApplyMMLNTransform",
    "BrainExtraction",
    "ConformGrid",
    "CorrectBias",
    "EvaluateRegistration",
    "FuseLabels",
    "LoadTemplate",
    "MMLNRegistration",
    "MeasureVolumes",
    "NormalizeIntensity",
    "PlotLabels",
    "PlotRegistration",
    "SaveDerivative",
    "ScoreLabels",
    "SubjectReference",
    "SynthStrip",
]
