"""Sphinx extension: what the pages show of the code, made before they are read: graphs, and the verdict's limits."""

import logging
import math
import tempfile
from pathlib import Path

import pygraphviz

from mmln_pipeline import workflows
from mmln_pipeline.atlas.sources import TemplateSource
from mmln_pipeline.scores.quality import CHECKS
from mmln_pipeline.workflows import Provenance, Scan, Target

FOLDER = "_build/generated"
"""Where the pages look for it, below their own folder."""
SCAN = Scan("01", None, Path("sub-01_T1w.nii.gz"))
OTHER_SCAN = Scan("02", None, Path("sub-02_T1w.nii.gz"))
PROVENANCE = {"output_dir": "out", "provenance": Provenance("TPL", "TPL")}
ATLASES = [Target(name, name, TemplateSource(name), name) for name in ("TPL", "OTHER")]
EXAMPLES = {
    "mmln_wf": {"scans": [SCAN], "targets": ATLASES[:1], **PROVENANCE},
    "single_subject_wf": {"scan": SCAN, "targets": ATLASES, **PROVENANCE},
    "study_template_wf": {"scans": [SCAN, OTHER_SCAN], "iterations": 2, **PROVENANCE},
    "member_wf": {"scan": SCAN},
    "iteration_wf": {"scans": [SCAN, OTHER_SCAN]},
    "reference_wf": {"scan": SCAN},
    "preproc_wf": {},
    "template_wf": {"scan": SCAN, "target": ATLASES[0], **PROVENANCE},
    "alignment_wf": {},
    "registration_wf": {"has_dseg": True, "has_atlas": True},
    "evaluation_wf": {"has_atlas": True},
    "derivatives_wf": {"scan": SCAN, "atlas": "TPL", **PROVENANCE},
    "fusion_wf": {"scan": SCAN, "targets": ATLASES, **PROVENANCE},
}
"""Arguments of each builder: one image, and labels of the template where they add a node."""


def setup(app):
    """Connect the making to the start of a build."""
    app.connect("builder-inited", make_all)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def make_all(app):
    """Write `<workflow>.svg` for each of `EXAMPLES`, and `checks.md`."""
    folder = Path(app.srcdir) / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    logging.getLogger("nipype.workflow").setLevel(logging.WARNING)  # it tells of each graph
    (folder / "checks.md").write_text(format_checks(), encoding="utf-8")
    for name, arguments in EXAMPLES.items():
        draw(getattr(workflows, f"init_{name}")(**arguments), folder / f"{name}.svg")


def draw(workflow, path):
    """Draw a workflow's graph; a workflow inside it is one box."""
    with tempfile.TemporaryDirectory() as scratch:
        graph = pygraphviz.AGraph(workflow.write_graph(f"{scratch}/graph.dot", graph2use="orig", format="dot"))
    graph.node_attr.update(shape="box", style="rounded", fontname="sans-serif")
    graph.draw(path, prog="dot")


def format_checks():
    """Return the limits of the quality check as a Markdown table."""
    lines = ["| score | look | fail | what may be the matter | why these limits |", "|---|---|---|---|---|"]
    for check in CHECKS:
        side = "below" if check.fail < check.look else "above"
        look, fail = ("never" if math.isinf(limit) else f"{side} {limit:g}" for limit in (check.look, check.fail))
        lines.append(f"| {check.name} | {look} | {fail} | {check.meaning} | {check.source} |")
    return "\n".join(lines) + "\n"
