"""What the sidecars beside the outputs say."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmln_pipeline.atlas.sources import FUSED
from mmln_pipeline.derivatives.filenames import derivative_paths, fused_paths, is_of_scan
from mmln_pipeline.derivatives.scans import Scan
from mmln_pipeline.space.placement import score_headers


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
    template_sha256 : str
        Checksum of the template's image.
    model : str
        Name of the network's weights.
    model_sha256 : str
        Checksum of the weights.
    version : str
        Version of this software.
    parameters : mapping
        Settings of the method: initial alignment, refinement, topology, bias correction, seed.
    model_license : str
        Licence of the weights.
    """

    template: str
    spatial_reference: str
    links: Mapping[str, Path] = field(default_factory=dict)
    template_sha256: str = ""
    model: str = "mmln"
    model_sha256: str = ""
    version: str = ""
    parameters: Mapping[str, object] = field(default_factory=dict)
    model_license: str = ""

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


def study_template_sidecars(
    scans: Sequence[Scan], provenance: Provenance, name: str, iterations: int
) -> dict[str, dict[str, Any]]:
    """Compose the JSON sidecars of a group's template.

    Parameters
    ----------
    scans : sequence of Scan
        The images behind it.
    provenance : Provenance
        What the run says about itself; its template is the one whose pose was taken.
    name : str
        What the new template is called.
    iterations : int
        How many times the brains were registered to their mean.

    Returns
    -------
    dict
        Sidecar content, by the same keys as `study_template_paths`.
    """
    given = {
        kind: [provenance.uri(getattr(image, kind)) for scan in scans for image in scan.images if getattr(image, kind)]
        for kind in ("t1w", "mask", "dseg")
    }
    common = {"SpatialReference": name, "NumberOfImages": len(scans), "Iterations": iterations} | _method(provenance)
    return {
        "template": {
            "Description": "Mean of the brains where they lie on average, each divided by the 99.5 percentile of its "
            "own intensities (and cut off at 1)",
            "Sources": given["t1w"],
            "SkullStripped": True,
            **common,
        },
        "mask": {
            "Description": "Where at least half of the brains are",
            "Sources": given["mask"] or given["t1w"],
            "Type": "Brain",
            **common,
        },
        "dseg": {"Description": "What most of the brains' labels say", "Sources": given["dseg"], **common},
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
    images = [provenance.uri(image.t1w) for image in scan.images]
    t1w = f"bids::{paths['t1w_reference']}" if scan.others else images[0]
    given = {
        kind: [provenance.uri(getattr(image, kind)) for image in scan.images if getattr(image, kind)]
        for kind in ("mask", "dseg", "lesion", "lesion_other")
    }
    mask = given["mask"]
    forward, inverse = f"bids::{paths['forward_xfm']}", f"bids::{paths['inverse_xfm']}"
    in_template = {"SpatialReference": provenance.spatial_reference}
    in_t1w = {"SpatialReference": t1w}
    content: dict[str, dict[str, Any]] = {
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
            "RawSources": images,
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
        content["atlas_volumes"] = _describe_volumes(paths["atlas_dseg"], atlas) | in_t1w
    if scan.has("dseg"):
        content["dseg_std"] = {
            "Description": "Labels of the T1w image, brought to the template",
            "Sources": [given["dseg"][0], forward],
            **in_template,
        }
    if scan.has("lesion"):
        content["lesion_std"] = {
            "Description": "Lesion mask of the T1w image, brought to the template",
            "Sources": [*given["lesion"], *given["lesion_other"], forward],
            "Type": "Lesion",
            **in_template,
        }
    for number, path in enumerate(scan.along, start=1):
        content[f"along_{number}"] = _read_sidecar(path) | {
            "Description": "Image or surface in the space of the T1w image, brought to the template",
            "Sources": [provenance.uri(path), forward],
            **in_template,
        }
    if scan.others:
        content["t1w_reference"] = {
            "Description": f"Brain of the average of {len(images)} T1w images, aligned rigidly ({scan.reference}), "
            "on the grid that the space T1w stands for",
            "Sources": images,
            "SkullStripped": True,
            **in_t1w,
        }
        for number, image in enumerate(images, start=1):
            content[f"orig_xfm_{number}"] = {
                "Description": "ITK rigid transform that resamples one T1w image onto the average of all",
                "PointMapping": "points of the average to points of the T1w image (LPS+ mm in the file)",
                "Sources": [image],
                **in_t1w,
            }
    method = _method(provenance) | _header_reading(scan)
    of_scan = {name: value for name, value in method.items() if not name.startswith("Template")}
    return {key: {**entry, **(of_scan if is_of_scan(key) else method)} for key, entry in content.items()}


def fused_sidecars(scan: Scan, provenance: Provenance, atlases: Sequence[tuple[str, str]]) -> dict[str, dict]:
    """Compose the JSON sidecars of the labels that several atlases vote for.

    Parameters
    ----------
    scan : Scan
        The scan.
    provenance : Provenance
        What the run says about itself.
    atlases : sequence of (str, str)
        Name of each template, and of its labels.

    Returns
    -------
    dict
        Sidecar content, by the same keys as `fused_paths` (labels and volumes only).
    """
    sources = [derivative_paths(scan, template, atlas)["atlas_dseg"] for template, atlas in atlases]
    t1w = sidecars(scan, provenance)["t1w_mask"]["SpatialReference"]
    paths = fused_paths(scan, has_dseg=False)
    common = {"SpatialReference": t1w} | _method(provenance) | {"Template": [template for template, _ in atlases]}
    return {
        "fused_dseg": {
            "Description": "Labels of several atlases, brought to the T1w image and fused by joint label fusion",
            "Sources": [f"bids::{path}" for path in sources] + [t1w],
            "Atlas": [atlas for _, atlas in atlases],
            **common,
        },
        "fused_volumes": _describe_volumes(paths["fused_dseg"], FUSED) | common,
    }


def _read_sidecar(path: Path) -> dict[str, Any]:
    """Read what stands beside a file, such as a series' repetition time; nothing where there is nothing to read."""
    try:
        content = json.loads(path.with_name(f"{path.name.split('.')[0]}.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _describe_volumes(dseg: str, atlas: str) -> dict:
    """Describe a table of volumes and its columns."""
    return {
        "Description": f"Volumes of the labels {atlas} on the T1w image",
        "Sources": [f"bids::{dseg}"],
        "index": {"Description": "Number of the label"},
        "name": {"Description": "Name of the label; n/a where no table names it"},
        "voxels": {"Description": "Number of voxels with the label"},
        "volume_mm3": {"Description": "Number of voxels times the volume of one", "Units": "mm^3"},
    }


def _header_reading(scan: Scan) -> dict:
    """Say which reading of an image's header was used, where programs differ."""
    doubts = score_headers(scan.placements)["doubts"]
    return {"HeaderReading": doubts} if doubts else {}


def _method(provenance: Provenance) -> dict:
    """Say with which method, weights and settings a file was made."""
    return {
        "Method": "MMLN registration",
        "Template": provenance.template,
        **({"TemplateSHA256": provenance.template_sha256} if provenance.template_sha256 else {}),
        "Model": provenance.model,
        "ModelSHA256": provenance.model_sha256,
        **({"ModelLicense": provenance.model_license} if provenance.model_license else {}),
        "SoftwareVersion": provenance.version,
        "Parameters": dict(provenance.parameters),
    }
