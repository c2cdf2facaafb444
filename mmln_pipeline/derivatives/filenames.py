"""Every output name: one scan's derivatives and figures, the group's, and the dataset's files."""

import re
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from mmln_pipeline.atlas.sources import FUSED
from mmln_pipeline.derivatives.scans import Scan
from mmln_pipeline.space.formats import OTHER_FORMATS

DESCRIPTION = "dataset_description.json"
BIDSIGNORE = ".bidsignore"
CITATION = "logs/CITATION.md"
BIBTEX = "logs/CITATION.bib"
CONFIG = "logs/mmln-bids.toml"
RUNS = "logs/runs"
TEMPLATES = "logs/templates.json"
CRASHES = "logs/crash"
RESOURCES = "resource_monitor.json"
QC_ENDING = "_desc-registration_qc.json"
FUSED_ENDING = f"_space-T1w_seg-{FUSED}_qc.json"
GROUP_TABLE = "group_registration.tsv"
GROUP_REPORT = "group_registration.html"
GROUP_SHEET = "group_contact_sheet.html"
GROUP_VOLUMES = "group_volumes.tsv"

# Files that the BIDS schema does not (yet) know: reports, figures, logs, transforms, scores, and the group's
# table and images. The validator asks about the folder of figures without a final slash.
BIDSIGNORE_LINES = (
    *(
        "*.html",
        "logs/",
        "sub-*/figures",
        "*_xfm.h5",
        "*_xfm.nii.gz",
        "*_xfm.x5",
        "*_xfm.json",
        "*_qc.json",
        "*_qc.tsv",
    ),
    *("/tpl-*", "/tpl-*/"),
    *("/group_*.tsv", "/space-*_T1w.nii.gz", "/space-*_T1w.json", "*_volumes.tsv", "*_volumes.json"),
)


def apart(name: str, template: str) -> str:
    """Name a file of the whole dataset for a further template, so that the first one's stays.

    Examples
    --------
    >>> apart("logs/CITATION.md", "study")
    'logs/CITATION_space-study.md'
    """
    path = PurePosixPath(name)
    return str(path.with_name(f"{path.stem}_space-{template}{path.suffix}"))


def figures_folder(subject: str) -> str:
    """Return the folder of a subject's figures, relative to the output directory."""
    return f"sub-{subject}/figures"


def report_name(subject: str) -> str:
    """Return the name of a subject's report, relative to the output directory."""
    return f"sub-{subject}.html"


def atlas_table_name(atlas: str) -> str:
    """Return the name of the table that explains an atlas's numbers, relative to the output directory."""
    return f"seg-{atlas}_dseg.tsv"


def derivative_paths(
    scan: Scan, template: str, atlas: str | None = None, *, spaced: bool = False, formats: Sequence[str] = ()
) -> dict[str, str]:
    """Name the derivatives of one scan.

    Parameters
    ----------
    scan : Scan
        The scan; what it has decides whether `dseg_std`, `lesion_std` and the files of an average are among the files.
    template : str
        Name of the template.
    atlas : str or None, default None
        Name of the template's labels; None where it has none.
    spaced : bool, default False
        Whether the names of the scores say the template, as where there are further ones.
    formats : sequence of str
        Other tools that get the transforms as their own files, of `OTHER_FORMATS`.

    Returns
    -------
    dict
        Path relative to the output directory, by the name of the workflow's output.
    """
    head = f"{scan.folder}/{scan.stem}"
    scored = f"{head}_space-{template}" if spaced else head
    paths = {
        "forward_xfm": f"{head}_from-T1w_to-{template}_mode-image_xfm.h5",
        "inverse_xfm": f"{head}_from-{template}_to-T1w_mode-image_xfm.h5",
        "t1w_std": f"{head}_space-{template}_desc-preproc_T1w.nii.gz",
        "mask_std": f"{head}_space-{template}_desc-brain_mask.nii.gz",
        "t1w_mask": f"{head}_desc-brain_mask.nii.gz",
        "log_jacobian": f"{head}_space-{template}_desc-jacobian_T1w.nii.gz",
        "qc_json": f"{scored}{QC_ENDING}",
        "qc_tsv": f"{scored}{QC_ENDING.removesuffix('.json')}.tsv",
    }
    for kind in formats:
        for direction, ends in (("forward", f"from-T1w_to-{template}"), ("inverse", f"from-{template}_to-T1w")):
            paths[f"{direction}_{kind}"] = f"{head}_{ends}_mode-image_{OTHER_FORMATS[kind]}"
    if atlas:
        paths["atlas_dseg"] = f"{head}_space-T1w_seg-{atlas}_dseg.nii.gz"
        paths["atlas_volumes"] = f"{head}_space-T1w_seg-{atlas}_volumes.tsv"
    if scan.has("dseg"):
        paths["dseg_std"] = std_labels_path(scan, template)
    if scan.has("lesion"):
        paths["lesion_std"] = f"{head}_space-{template}_label-lesion_mask.nii.gz"
    for number, path in enumerate(scan.along, start=1):
        paths[f"along_{number}"] = brought_path(path, template)
    if scan.others:
        paths["t1w_reference"] = f"{head}_desc-preproc_T1w.nii.gz"
        for number, image in enumerate(scan.images, start=1):
            paths[f"orig_xfm_{number}"] = f"{image.folder}/{image.stem}_from-orig_to-T1w_mode-image_xfm.h5"
    return paths


def brought_path(path: Path, template: str) -> str:
    """Name a file of a derivative dataset once it is in template space, relative to the output directory.

    Parameters
    ----------
    path : Path
        In its dataset; its name says `space-T1w`, or no space.
    template : str
        Name of the template.

    Examples
    --------
    >>> brought_path(Path("fmriprep/sub-01/func/sub-01_task-rest_space-T1w_desc-preproc_bold.nii.gz"), "TPL")
    'sub-01/func/sub-01_task-rest_space-TPL_desc-preproc_bold.nii.gz'
    >>> brought_path(Path("fmriprep/sub-01/ses-1/anat/sub-01_ses-1_hemi-L_desc-smooth_pial.surf.gii"), "TPL")
    'sub-01/ses-1/anat/sub-01_ses-1_hemi-L_space-TPL_desc-smooth_pial.surf.gii'
    """
    # In BIDS's order, what follows the space is one of these, or the suffix.
    rest = r"((?:_(?:cohort|res|den|label|desc)-[^_]+)*_[^_]+)$"
    name = re.sub(rest, rf"_space-{template}\1", re.sub("_space-[^_]+", "", path.name))
    parts = path.parts
    first = max(number for number, part in enumerate(parts[:-1]) if part.startswith("sub-"))
    return "/".join([*parts[first:-1], name])


def volumes_glob(scan: Scan) -> str:
    """Return the pattern of the tables of volumes of one scan, relative to the output directory."""
    return f"{scan.folder}/{scan.stem}_space-T1w_seg-*_volumes.tsv"


def std_labels_path(scan: Scan, template: str) -> str:
    """Name a scan's own labels on the template's grid, relative to the output directory."""
    return f"{scan.folder}/{scan.stem}_space-{template}_dseg.nii.gz"


def is_of_scan(key: str) -> bool:
    """Tell whether a derivative is of the scan alone: no template has a part in it.

    Examples
    --------
    >>> is_of_scan("t1w_mask"), is_of_scan("mask_std")
    (True, False)
    """
    return key in ("t1w_mask", "t1w_reference") or key.startswith("orig_xfm_")


def fused_paths(scan: Scan, has_dseg: bool) -> dict[str, str]:
    """Name the files of the labels that several atlases vote for.

    Parameters
    ----------
    scan : Scan
        The scan.
    has_dseg : bool
        Whether it has labels of its own to score them against.

    Returns
    -------
    dict
        Path relative to the output directory, by the name of the workflow's output.
    """
    head = f"{scan.folder}/{scan.stem}_space-T1w_seg-{FUSED}"
    paths = {
        "fused_dseg": f"{head}_dseg.nii.gz",
        "fused_volumes": f"{head}_volumes.tsv",
        "fused_figure": f"{figures_folder(scan.subject)}/{scan.stem}_space-T1w_seg-{FUSED}_dseg.svg",
    }
    fused_qc = f"{scan.folder}/{scan.stem}{FUSED_ENDING}"
    return paths | ({"fused_qc": fused_qc} if has_dseg else {})


def figure_paths(scan: Scan, template: str, atlas: str | None = None) -> dict[str, str]:
    """Name the figures of one scan's report.

    Parameters
    ----------
    scan, template, atlas
        As in `derivative_paths`.

    Returns
    -------
    dict
        Path relative to the output directory, by the name of the workflow's output.
    """
    head = f"{figures_folder(scan.subject)}/{scan.stem}"
    paths = {
        "figure_mask": f"{head}_desc-brain_mask.svg",
        "figure_registration": f"{head}_space-{template}_desc-registration_T1w.svg",
        "figure_warp": f"{head}_space-{template}_desc-warpgrid_T1w.svg",
        "figure_jacobian": f"{head}_space-{template}_desc-jacobian_T1w.svg",
    }
    if atlas:
        paths["figure_labels"] = f"{head}_space-T1w_seg-{atlas}_dseg.svg"
    return paths


def study_template_paths(name: str, has_dseg: bool = False) -> dict[str, str]:
    """Name the files of a group's template.

    Parameters
    ----------
    name : str
        Of the template.
    has_dseg : bool, default False
        Whether there are labels.

    Returns
    -------
    dict
        Path relative to the output directory, by the name of the workflow's output.
    """
    head = f"tpl-{name}/tpl-{name}"
    return {
        "template": f"{head}_T1w.nii.gz",
        "mask": f"{head}_desc-brain_mask.nii.gz",
        **({"dseg": f"{head}_dseg.nii.gz"} if has_dseg else {}),
        "convergence": f"{head}_convergence.tsv",
        "page": f"tpl-{name}.html",
    }


def template_label_table(name: str) -> str:
    """Return the name of the table that explains the labels of a group's template."""
    return f"tpl-{name}/tpl-{name}_dseg.tsv"


def template_description(name: str) -> str:
    """Return the name of the file that describes a group's template, as TemplateFlow has it."""
    return f"tpl-{name}/template_description.json"


def group_paths(template: str) -> dict[str, str]:
    """Name the images of a group.

    Parameters
    ----------
    template : str
        Name of the template.

    Returns
    -------
    dict
        Path relative to the output directory, by what the image is.
    """
    return {
        "mean_t1w": f"space-{template}_desc-mean_T1w.nii.gz",
        "mean_log_jacobian": f"space-{template}_desc-meanjacobian_T1w.nii.gz",
        "sd_log_jacobian": f"space-{template}_desc-sdjacobian_T1w.nii.gz",
    }
