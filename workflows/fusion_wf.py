"""Workflow that fuses the labels of several atlases on one scan, measures and scores them, and saves all."""

from collections.abc import Sequence
from pathlib import Path

from nipype.interfaces.utility import IdentityInterface, Merge
from nipype.pipeline import engine as pe

from mmln_pipeline.derivatives.filenames import fused_paths
from mmln_pipeline.derivatives.scans import Scan
from mmln_pipeline.derivatives.sidecars import Provenance, fused_sidecars
from mmln_pipeline.derivatives.targets import Target
from mmln_pipeline.interfaces import FuseLabels, MeasureVolumes, PlotLabels, SaveDerivative, ScoreLabels


def init_fusion_wf(
    *,
    scan: Scan,
    targets: Sequence[Target],
    output_dir: str | Path,
    provenance: Provenance,
    has_dseg: bool = False,
    name: str = "fusion_wf",
) -> pe.Workflow:
    """
    Build the workflow that fuses atlas labels on the T1w grid.

    Parameters
    ----------
    scan : Scan
        The scan to label.
    targets : sequence of Target
        The atlases, all with labels.
    output_dir : str or Path
        Root of the derivative dataset.
    provenance : Provenance
        What the sidecars say about the run.
    has_dseg : bool, default False
        Whether the scan's own labels come in, to score the fused ones against.
    name : str, default "fusion_wf"
        Name of the workflow.

    Inputs
    ------
    t1w_preproc
        Brain image on its native grid.
    t1w_dseg
        Its own labels (only with `has_dseg`).
    image_1, image_2 and so on
        Image of each atlas on the T1w grid.
    dseg_1, dseg_2 and so on
        Labels of each atlas on the T1w grid.

    Outputs
    -------
    fused_dseg
        Fused labels on the T1w grid.
    fused_volumes
        Table of their volumes.
    fused_figure
        Their outlines on the T1w image.
    fused_qc
        Their overlap with the scan's own labels (only with `has_dseg`).
    """
    workflow = pe.Workflow(name=name)
    workflow.__desc__ = (
        f"The labels of the atlases {', '.join(target.name for target in targets)}, brought to the image, were "
        "fused by joint label fusion [@jlf], with patches of 5 x 5 x 5 voxels.\n"
    )
    numbers = range(1, len(targets) + 1)
    atlases = [f"{kind}_{number}" for kind in ("image", "dseg") for number in numbers]
    paths = fused_paths(scan, has_dseg)
    inputnode = pe.Node(IdentityInterface(fields=["t1w_preproc", *atlases] + ["t1w_dseg"] * has_dseg), name="inputnode")
    outputnode = pe.Node(IdentityInterface(fields=list(paths)), name="outputnode")

    label_names = {number: text for target in targets for number, text in target.label_names.items()}
    images = pe.Node(Merge(len(targets)), name="images", run_without_submitting=True)
    dsegs = pe.Node(Merge(len(targets)), name="dsegs", run_without_submitting=True)
    fuse = pe.Node(FuseLabels(), name="fuse", mem_gb=3)
    volumes = pe.Node(MeasureVolumes(label_names=label_names), name="volumes", mem_gb=1)
    plot = pe.Node(PlotLabels(label_names=label_names), name="plot", mem_gb=1)
    workflow.connect([
        (inputnode, images, [(f"image_{number}", f"in{number}") for number in numbers]),
        (inputnode, dsegs, [(f"dseg_{number}", f"in{number}") for number in numbers]),
        (inputnode, fuse, [("t1w_preproc", "in_file")]),
        (inputnode, plot, [("t1w_preproc", "in_file")]),
        (images, fuse, [("out", "atlas_images")]),
        (dsegs, fuse, [("out", "atlas_dsegs")]),
        (fuse, volumes, [("out_file", "in_file")]),
        (fuse, plot, [("out_file", "in_dseg")]),
    ])  # fmt: skip
    results = {"fused_dseg": fuse, "fused_volumes": volumes, "fused_figure": plot}
    if has_dseg:
        facts = {"subject": scan.subject, "session": scan.session, "atlases": [target.name for target in targets]}
        score = pe.Node(ScoreLabels(facts=facts), name="score", mem_gb=1)
        results["fused_qc"] = score
        workflow.connect([
            (inputnode, score, [("t1w_dseg", "reference")]),
            (fuse, score, [("out_file", "in_file")]),
        ])  # fmt: skip
    metadata = fused_sidecars(scan, provenance, [(target.name, str(target.atlas)) for target in targets])
    root = Path(output_dir).absolute()
    for key, result in results.items():
        save = pe.Node(SaveDerivative(out_file=str(root / paths[key])), name=key, run_without_submitting=True)
        if key in metadata:
            save.inputs.metadata = metadata[key]
        workflow.connect([
            (result, save, [("out_file", "in_file")]),
            (save, outputnode, [("out_file", key)]),
        ])  # fmt: skip
    return workflow
