"""Top workflow: one template, and one workflow for each scan."""

from collections.abc import Sequence
from pathlib import Path

from nipype.interfaces.utility import IdentityInterface
from nipype.pipeline import engine as pe

from mmln_pipeline.interfaces import LoadTemplate
from mmln_pipeline.workflows.outputs import Provenance, Scan
from mmln_pipeline.workflows.single_subject import init_single_subject_wf


def init_mmln_wf(
    *,
    scans: Sequence[Scan],
    output_dir: str | Path,
    provenance: Provenance,
    template: str = "MNI152NLin2009aSym",
    template_dseg: str | Path | None = None,
    atlas: str | None = None,
    name: str = "mmln_wf",
    **settings,
) -> pe.Workflow:
    """
    Build the workflow that registers any number of scans to one template.

    Parameters
    ----------
    scans : sequence of Scan
        The T1-weighted images.
    output_dir : str or Path
        Root of the derivative dataset.
    provenance : Provenance
        Names of template and model, and what the sidecars say about the run.
    template : str, default "MNI152NLin2009aSym"
        Name of an installed template, or path of a NIfTI image.
    template_dseg : str, Path or None, default None
        Labels on the template's grid, in place of the template's own.
    atlas : str or None, default None
        Name of the template's labels; None where it has none.
    name : str, default "mmln_wf"
        Name of the workflow.
    **settings
        Further parameters of `init_single_subject_wf`, the same for all scans.

    Inputs
    ------
    template
        Name or path of the template.

    Outputs
    -------
    The derivatives of each scan: see the outputnode of its own workflow, `init_single_subject_wf`.
    """
    workflow = pe.Workflow(name=name)
    workflow.__desc__ = f"Results were made with *mmln_pipeline* {provenance.version}, a Nipype [@nipype] workflow.\n"
    inputnode = pe.Node(IdentityInterface(fields=["template"]), name="inputnode")
    inputnode.inputs.template = template
    load_template = pe.Node(LoadTemplate(), name="load_template", mem_gb=1)
    if template_dseg:
        load_template.inputs.dseg = str(template_dseg)
    workflow.connect(inputnode, "template", load_template, "template")

    fields = [("image", "inputnode.template"), ("mask", "inputnode.template_mask")]
    fields += [("dseg", "inputnode.template_dseg")] if atlas else []
    for scan in scans:
        single_subject_wf = init_single_subject_wf(
            scan=scan, output_dir=output_dir, provenance=provenance, atlas=atlas, **settings
        )
        workflow.connect([(load_template, single_subject_wf, list(fields))])  # Nipype changes the list later
    return workflow
