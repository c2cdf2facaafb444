"""Every output name: one scan's derivatives and figures, their sidecars, and the dataset's files."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

DESCRIPTION = "dataset_description.json"
BIDSIGNORE = ".bidsignore"
CITATION = "logs/CITATION.md"
CONFIG = "logs/mmln-bids.toml"
CRASHES = "logs/crash"
RESOURCES = "logs/resource_monitor.json"
GROUP_TABLE = "group_registration.tsv"
GROUP_REPORT = "group_registration.html"

# Files that the BIDS schema does not (yet) know: reports, figures, logs, transforms, scores, and the group's
# table and images. The validator asks about the folder of figures without a final slash.
BIDSIGNORE_LINES = (
    *("*.html", "logs/", "sub-*/figures", "*_xfm.h5", "*_xfm.json", "*_qc.json", "*_qc.tsv"),
    *("/group_*.tsv", "/space-*_T1w.nii.gz", "/space-*_T1w.json"),
)


@dataclass(frozen=True)
class Scan:
    """One T1-weighted image to register, with what is known about it.

    Attributes
    ----------
    subject : str
        Label without `sub-`.
    session : str or None
        Label without `ses-`.
    t1w : Path
        The image.
    mask : Path or None
        Brain mask in the image's space.
    dseg : Path or None
        Labels in the image's space.
    """

    subject: str
    session: str | None
    t1w: Path
    mask: Path | None = None
    dseg: Path | None = None

    @property
    def stem(self) -> str:
        """Return the entities that all file names of the scan begin with, e.g. `sub-01_ses-02_run-1`.

        Examples
        --------
        >>> Scan("01", None, Path("sub-01_run-1_T1w.nii.gz")).stem
        'sub-01_run-1'
        """
        return re.sub(r"_T1w\.nii(\.gz)?$", "", self.t1w.name)

    @property
    def folder(self) -> str:
        """Return the folder of the derivatives, relative to the output directory."""
        session = f"/ses-{self.session}" if self.session else ""
        return f"sub-{self.subject}{session}/anat"

    @property
    def workflow_name(self) -> str:
        """Return a node name that no other scan has.

        Examples
        --------
        >>> Scan("01", None, Path("sub-01_run-1_T1w.nii.gz")).workflow_name
        'sub_01_run_1_wf'
        """
        return re.sub(r"\W", "_", self.stem) + "_wf"


@dataclass(frozen=True)
class Provenance:
    """What every sidecar repeats about a run.

    Attributes
    ----------
    template : str
        Name of the template, as in `space-<template>`.
    spatial_reference : str
        Name of a standard template, or the URI of its image.
    links : mapping of str to Path
        Name and root of each dataset that files come from (`bids:<name>:`).
    model : str
        Name of the network's weights.
    model_sha256 : str
        Checksum of the weights.
    version : str
        Version of this software.
    parameters : mapping
        Settings of the method: initial alignment, refinement, topology, bias correction, seed.
    """

    template: str
    spatial_reference: str
    links: Mapping[str, Path] = field(default_factory=dict)
    model: str = "mmln"
    model_sha256: str = ""
    version: str = ""
    parameters: Mapping[str, object] = field(default_factory=dict)

    def uri(self, path: Path) -> str:
        """Return the BIDS URI of a file in a linked dataset, or a file URI where it is in none.

        Examples
        --------
        >>> source = Provenance("T", "T", {"raw": Path("/data/raw")})
        >>> source.uri(Path("/data/raw/sub-01/anat/sub-01_T1w.nii.gz"))
        'bids:raw:sub-01/anat/sub-01_T1w.nii.gz'
        """
        inside = [(name, root) for name, root in self.links.items() if Path(path).is_relative_to(root)]
        if not inside:
            return Path(path).absolute().as_uri()
        name, root = max(inside, key=lambda link: len(Path(link[1]).parts))
        return f"bids:{name}:{Path(path).relative_to(root).as_posix()}"


def report_name(subject: str) -> str:
    """Return the name of a subject's report, relative to the output directory."""
    return f"sub-{subject}.html"


def atlas_table_name(atlas: str) -> str:
    """Return the name of the table that explains an atlas's numbers, relative to the output directory."""
    return f"seg-{atlas}_dseg.tsv"


def derivative_paths(scan: Scan, template: str, atlas: str | None = None) -> dict[str, str]:
    """Name the derivatives of one scan.

    Parameters
    ----------
    scan : Scan
        The scan; its labels decide whether `dseg_std` is among the files.
    template : str
        Name of the template.
    atlas : str or None, default None
        Name of the template's labels; None where it has none.

    Returns
    -------
    dict
        Path relative to the output directory, by the name of the workflow's output.
    """
    head = f"{scan.folder}/{scan.stem}"
    paths = {
        "forward_xfm": f"{head}_from-T1w_to-{template}_mode-image_xfm.h5",
        "inverse_xfm": f"{head}_from-{template}_to-T1w_mode-image_xfm.h5",
        "t1w_std": f"{head}_space-{template}_desc-preproc_T1w.nii.gz",
        "mask_std": f"{head}_space-{template}_desc-brain_mask.nii.gz",
        "t1w_mask": f"{head}_desc-brain_mask.nii.gz",
        "log_jacobian": f"{head}_space-{template}_desc-jacobian_T1w.nii.gz",
        "qc_json": f"{head}_desc-registration_qc.json",
        "qc_tsv": f"{head}_desc-registration_qc.tsv",
    }
    if atlas:
        paths["atlas_dseg"] = f"{head}_space-T1w_seg-{atlas}_dseg.nii.gz"
    if scan.dseg:
        paths["dseg_std"] = f"{head}_space-{template}_dseg.nii.gz"
    return paths


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
    head = f"sub-{scan.subject}/figures/{scan.stem}"
    paths = {
        "figure_mask": f"{head}_desc-brain_mask.svg",
        "figure_registration": f"{head}_space-{template}_desc-registration_T1w.svg",
        "figure_warp": f"{head}_space-{template}_desc-warpgrid_T1w.svg",
        "figure_jacobian": f"{head}_space-{template}_desc-jacobian_T1w.svg",
    }
    if atlas:
        paths["figure_labels"] = f"{head}_space-T1w_seg-{atlas}_dseg.svg"
    return paths


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


def group_sidecar(
    key: str, *, template: str, spatial_reference: str, sources: Sequence[str], version: str
) -> dict[str, object]:
    """Compose the JSON sidecar of one image of a group.

    Parameters
    ----------
    key : str
        As in `group_paths`.
    template : str
        Name of the template.
    spatial_reference : str
        Name of a standard template, or the URI of its image.
    sources : sequence of str
        The images behind it, relative to the output directory.
    version : str
        Version of this software.

    Returns
    -------
    dict
        Content of the sidecar.
    """
    descriptions = {
        "mean_t1w": "Mean of the brains registered to the template, each divided by the 99.5 percentile of its "
        "own intensities (and cut off at 1)",
        "mean_log_jacobian": "Mean of the natural logarithms of the Jacobian determinants of the whole transforms, "
        "affine and warp: above 0 the brains are larger than the template",
        "sd_log_jacobian": "Standard deviation over images (divisor: number of images - 1) of the natural "
        "logarithms of the Jacobian determinants of the whole transforms, affine and warp",
    }
    return {
        "Description": descriptions[key],
        "SpatialReference": spatial_reference,
        "SkullStripped": True,
        "NumberOfImages": len(sources),
        "Sources": [f"bids::{path}" for path in sources],
        "Method": "MMLN registration",
        "Template": template,
        "SoftwareVersion": version,
    }


def sidecars(scan: Scan, provenance: Provenance, atlas: str | None = None) -> dict[str, dict]:
    """Compose the JSON sidecars of one scan's derivatives.

    Parameters
    ----------
    scan : Scan
        The scan.
    provenance : Provenance
        What the run says about itself.
    atlas : str or None, default None
        Name of the template's labels.

    Returns
    -------
    dict
        Sidecar content, by the same keys as `derivative_paths` (images and transforms only).
    """
    paths = derivative_paths(scan, provenance.template, atlas)
    t1w = provenance.uri(scan.t1w)
    mask = [provenance.uri(scan.mask)] if scan.mask else []
    forward, inverse = f"bids::{paths['forward_xfm']}", f"bids::{paths['inverse_xfm']}"
    in_template = {"SpatialReference": provenance.spatial_reference}
    in_t1w = {"SpatialReference": t1w}
    content = {
        "forward_xfm": {
            "Description": "ITK composite (affine and warp) that resamples T1w images onto the template grid",
            "PointMapping": "points of the template to points of the T1w image (LPS+ mm in the file)",
            "Sources": [t1w, *mask],
            **in_template,
        },
        "inverse_xfm": {
            "Description": "ITK composite (warp and affine) that resamples template images onto the T1w grid",
            "PointMapping": "points of the T1w image to points of the template (LPS+ mm in the file)",
            "Sources": [t1w, *mask],
            **in_t1w,
        },
        "t1w_std": {
            "Description": "Brain of the T1w image registered to the template, sampled once",
            "Sources": [t1w, forward],
            "SkullStripped": True,
            **in_template,
        },
        "mask_std": {
            "Description": "Brain mask of the T1w image, brought to the template",
            "Sources": [f"bids::{paths['t1w_mask']}", forward],
            "Type": "Brain",
            **in_template,
        },
        "t1w_mask": {
            "Description": "Brain mask of the T1w image",
            "Sources": mask or [t1w],
            "RawSources": [t1w],
            "Type": "Brain",
            **in_t1w,
        },
        "log_jacobian": {
            "Description": "Natural logarithm of the Jacobian determinant of the whole transform, affine and "
            "warp: volume in the T1w image per volume in the template",
            "Sources": [forward],
            "SkullStripped": True,
            **in_template,
        },
    }
    if atlas:
        content["atlas_dseg"] = {
            "Description": f"Labels {atlas} of the template, brought to the T1w image",
            "Sources": [inverse, t1w],
            "Atlas": atlas,
            **in_t1w,
        }
    if scan.dseg:
        content["dseg_std"] = {
            "Description": "Labels of the T1w image, brought to the template",
            "Sources": [provenance.uri(scan.dseg), forward],
            **in_template,
        }
    return {key: {**entry, **_method(provenance)} for key, entry in content.items()}


def _method(provenance: Provenance) -> dict:
    """Say with which method, weights and settings a file was made."""
    return {
        "Method": "MMLN registration",
        "Template": provenance.template,
        "Model": provenance.model,
        "ModelSHA256": provenance.model_sha256,
        "SoftwareVersion": provenance.version,
        "Parameters": dict(provenance.parameters),
    }
