"""Top workflow: the templates, and one workflow for each scan."""

from collections.abc import MutableMapping, Sequence
from pathlib import Path

from nipype.interfaces.utility import IdentityInterface
from nipype.pipeline import engine as pe

from mmln_pipeline.atlas.templates import EMBEDDED
from mmln_pipeline.derivatives.scans import Scan
from mmln_pipeline.derivatives.sidecars import Provenance
from mmln_pipeline.derivatives.targets import EMBEDDED_TARGET, Target, targets_of, tell_apart
from mmln_pipeline.images.volumes import IMAGE_SUFFIXES
from mmln_pipeline.interfaces import LoadTemplate
from mmln_pipeline.workflows.single_subject_wf import init_single_subject_wf

WORKS = {
    "MNI152NLin2009": " [@fonov2011]",
    "MNIPediatric": " [@fonov2011]",
    "MNI152NLin6": " [@evans2012]",
    "MNI152Lin": " [@evans2012]",
}
"""Where standard templates were published, by how their names begin."""


def init_mmln_wf(
    *,
    scans: Sequence[Scan],
    output_dir: str | Path,
    provenance: Provenance,
    targets: Sequence[Target] = (EMBEDDED_TARGET,),
    failed: MutableMapping[str, Exception] | None = None,
    name: str = "mmln_wf",
    **settings,
) -> pe.Workflow:
    """
    Build the workflow that registers any number of scans to one template, or to each of several.

    Parameters
    ----------
    scans : sequence of Scan
        The T1-weighted images.
    output_dir : str or Path
        Root of the derivative dataset.
    provenance : Provenance
        Name of the model, and what the sidecars say about the run.
    targets : sequence of Target, default: the embedded template
        The templates, with their labels. A scan that is a template itself is not registered to itself.
    failed : mutable mapping or None, default None
        Takes the error of each scan whose workflow cannot be built, by its stem; None: the error is raised.
    name : str, default "mmln_wf"
        Name of the workflow.
    **settings
        Further parameters of `init_single_subject_wf`, the same for all scans.

    Inputs
    ------
    template
        Name or path of the template (of several: `template_<name>` for each).

    Outputs
    -------
    The derivatives of each scan: see the outputnode of its own workflow, `init_single_subject_wf`.
    """
    workflow, targets = pe.Workflow(name=name), tell_apart(targets)
    names = [target.name for target in targets]
    cited = [f"{target.name}{_cite(target)}" for target in targets]
    listed = f"template {cited[0]}" if len(names) == 1 else f"templates {', '.join(cited[:-1])} and {cited[-1]}"
    workflow.__desc__ = (
        f"Results were made with *mmln_pipeline* {provenance.version}, a Nipype [@nipype] workflow that finds the "
        "images of a BIDS dataset [@bids] with PyBIDS [@pybids] and computes with PyTorch [@pytorch], NumPy [@numpy], "
        "SciPy [@scipy], NiBabel [@nibabel] and SimpleITK [@simpleitk]. "
        f"Each T1-weighted image was registered to the {listed}.\n"
    )
    inputs = {f"template{target.suffix}": target for target in targets}
    inputnode = pe.Node(IdentityInterface(fields=list(inputs)), name="inputnode")
    loaders = {}
    for field, target in inputs.items():
        setattr(inputnode.inputs, field, target.source.image)
        loaders[target.name] = make_template_node(target, name=f"load_{field}")
        workflow.connect(inputnode, field, loaders[target.name], "template")
    for scan in scans:
        own = targets_of(scan, targets)
        try:
            single_subject_wf = init_single_subject_wf(
                scan=scan, output_dir=output_dir, provenance=provenance, targets=own, **settings
            )
        except Exception as error:  # the other scans go on
            if failed is None:
                raise
            failed[scan.stem] = error
            continue
        for target in own:
            fields = [
                ("image", f"inputnode.template{target.suffix}"),
                ("mask", f"inputnode.template_mask{target.suffix}"),
            ]
            fields += [("dseg", f"inputnode.template_dseg{target.suffix}")] if target.atlas else []
            workflow.connect([(loaders[target.name], single_subject_wf, fields)])
    return workflow


def _cite(target: Target) -> str:
    """Return the works that a template comes from, for the methods text: nothing of a file of the user's own."""
    if target.source.image.endswith(IMAGE_SUFFIXES):
        return ""
    origin = next((work for start, work in WORKS.items() if target.name.startswith(start)), "")
    return f"{origin} {'[@nilearn]' if target.source.image == EMBEDDED else '[@templateflow]'}"


def make_template_node(target: Target, name: str) -> pe.Node:
    """Return the node that loads a target's template."""
    load_template = pe.Node(LoadTemplate(checksum=target.checksum), name=name, mem_gb=1)
    for key in ("mask", "dseg"):
        if getattr(target.source, key):
            setattr(load_template.inputs, key, str(getattr(target.source, key)))
    return load_template
