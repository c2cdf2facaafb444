"""Workflow that writes one scan's derivatives and figures under their BIDS names."""

from collections.abc import Sequence
from pathlib import Path

from nipype.interfaces.utility import IdentityInterface
from nipype.pipeline import engine as pe

from mmln_pipeline.derivatives.filenames import derivative_paths, figure_paths, is_of_scan
from mmln_pipeline.derivatives.scans import Scan
from mmln_pipeline.derivatives.sidecars import Provenance, sidecars
from mmln_pipeline.interfaces import SaveDerivative


def init_derivatives_wf(
    *,
    scan: Scan,
    output_dir: str | Path,
    provenance: Provenance,
    atlas: str | None = None,
    spaced: bool = False,
    formats: Sequence[str] = (),
    keys: Sequence[str] | None = None,
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
    spaced : bool, default False
        Whether the names of the scores say the template.
    formats : sequence of str
        Other tools that get the transforms as their own files.
    keys : sequence of str or None, default None
        Which of the files to save (default: all).
    name : str, default "derivatives_wf"
        Name of the workflow.

    Inputs
    ------
    forward_xfm, inverse_xfm, t1w_std, mask_std, t1w_mask, log_jacobian, qc_json, qc_tsv
        Results as in `init_single_subject_wf`.
    forward_fsl, inverse_fsl, forward_x5, inverse_x5
        The transforms as other tools have them (only of `formats`).
    figure_mask, figure_registration, figure_warp, figure_jacobian
        Figures of the report.
    atlas_dseg, atlas_volumes, figure_labels
        Atlas labels on the T1w grid, their volumes and their figure (only with `atlas`).
    dseg_std, lesion_std
        The scan's labels and lesion mask on the template's grid (only for a scan that has them).
    along_N
        What the scan brings along, in template space (only for a scan that does).
    t1w_reference, orig_xfm_N
        Average of several images, and the transform to the world of image number N (only of several images).

    Outputs
    -------
    forward_xfm, inverse_xfm, t1w_std, mask_std, t1w_mask, log_jacobian, qc_json, qc_tsv
        Paths of the files written.
    forward_fsl, inverse_fsl, forward_x5, inverse_x5
        Only of `formats`.
    figure_mask, figure_registration, figure_warp, figure_jacobian
        Paths of the figures written.
    atlas_dseg, atlas_volumes, figure_labels
        Only with `atlas`.
    dseg_std, lesion_std, along_N
        Only for a scan that has them.
    t1w_reference, orig_xfm_N
        Only of several images.
    """
    workflow = pe.Workflow(name=name)
    root = Path(output_dir).absolute()
    paths = derivative_paths(scan, provenance.template, atlas, spaced=spaced, formats=formats)
    paths |= figure_paths(scan, provenance.template, atlas)
    paths = {key: path for key, path in paths.items() if keys is None or key in keys}
    metadata = sidecars(scan, provenance, atlas)
    inputnode = pe.Node(IdentityInterface(fields=list(paths)), name="inputnode")
    outputnode = pe.Node(IdentityInterface(fields=list(paths)), name="outputnode")
    for key, path in paths.items():
        save = pe.Node(SaveDerivative(out_file=str(root / path)), name=key, run_without_submitting=True)
        if key in metadata:
            save.inputs.metadata = metadata[key]
        if not is_of_scan(key):
            save.inputs.template = provenance.template
        workflow.connect([
            (inputnode, save, [(key, "in_file")]),
            (save, outputnode, [("out_file", key)]),
        ])  # fmt: skip
    return workflow
