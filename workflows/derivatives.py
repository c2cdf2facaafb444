"""Workflow that writes one scan's derivatives and figures under their BIDS names."""

from pathlib import Path

from nipype.interfaces.utility import IdentityInterface
from nipype.pipeline import engine as pe

from mmln_pipeline.interfaces import SaveDerivative
from mmln_pipeline.workflows.outputs import Provenance, Scan, derivative_paths, figure_paths, sidecars


def init_derivatives_wf(
    *,
    scan: Scan,
    output_dir: str | Path,
    provenance: Provenance,
    atlas: str | None = None,
    name: str = "derivatives_wf",
) -> pe.Workflow:
    """
    Build the workflow that saves results: one node a file, named after the field that it saves.

    Parameters
    ----------
    scan : Scan
        The scan that the results belong to.
    output_dir : str or Path
        Root of the derivative dataset.
    provenance : Provenance
        What the sidecars say about the run.
    atlas : str or None, default None
        Name of the template's labels; None where it has none.
    name : str, default "derivatives_wf"
        Name of the workflow.

    Inputs
    ------
    forward_xfm, inverse_xfm, t1w_std, mask_std, t1w_mask, log_jacobian, qc_json, qc_tsv
        Results as in `init_single_subject_wf`.
    figure_mask, figure_registration, figure_warp, figure_jacobian
        Figures of the report.
    atlas_dseg, figure_labels
        Atlas labels on the T1w grid, and their figure (only with `atlas`).
    dseg_std
        The scan's labels on the template's grid (only for a scan with labels).

    Outputs
    -------
    forward_xfm, inverse_xfm, t1w_std, mask_std, t1w_mask, log_jacobian, qc_json, qc_tsv
        Paths of the files written.
    figure_mask, figure_registration, figure_warp, figure_jacobian
        Paths of the figures written.
    atlas_dseg, figure_labels
        Only with `atlas`.
    dseg_std
        Only for a scan with labels.
    """
    workflow = pe.Workflow(name=name)
    root = Path(output_dir).absolute()
    paths = derivative_paths(scan, provenance.template, atlas) | figure_paths(scan, provenance.template, atlas)
    metadata = sidecars(scan, provenance, atlas)
    inputnode = pe.Node(IdentityInterface(fields=list(paths)), name="inputnode")
    outputnode = pe.Node(IdentityInterface(fields=list(paths)), name="outputnode")
    for key, path in paths.items():
        save = pe.Node(SaveDerivative(out_file=str(root / path)), name=key, run_without_submitting=True)
        if key in metadata:
            save.inputs.metadata = metadata[key]
        workflow.connect([
            (inputnode, save, [(key, "in_file")]),
            (save, outputnode, [("out_file", key)]),
        ])  # fmt: skip
    return workflow
