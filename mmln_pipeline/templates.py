"""Templates to register to: the embedded one, a NIfTI file, or one from TemplateFlow's local cache."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from nibabel import Nifti1Image
from nilearn import datasets
from scipy import ndimage

from mmln_pipeline.grids import Grid, new_image
from mmln_pipeline.volumes import brain_mask, load_image, load_labels, looks_skull_stripped, mask_array

EMBEDDED = "MNI152NLin2009aSym"
"""The template that nilearn carries: no download, nothing to install."""
TISSUES = pd.DataFrame(
    {
        "index": [1, 2, 3],
        "name": ["Gray Matter", "White Matter", "Cerebrospinal Fluid"],
        "abbreviation": ["GM", "WM", "CSF"],
    }
)
"""BIDS numbers of the tissue labels."""
_NIFTI = (".nii", ".nii.gz")
_MNI_SPACE_CODE = 4


@dataclass(frozen=True, eq=False)
class Template:
    """A skull-stripped brain that stands for a space.

    Parameters
    ----------
    name : str
        BIDS label of the space, letters and digits.
    image : Nifti1Image
        T1-weighted, skull-stripped.
    mask : Nifti1Image
        Its brain, uint8, on the image's grid.
    dseg : Nifti1Image or None
        Labels on the image's grid.
    dseg_name : str or None
        Name of the atlas that the labels are, a BIDS label.
    dseg_table : DataFrame or None
        Columns ``index`` and ``name``, one row a label, where known.
    """

    name: str
    image: Nifti1Image
    mask: Nifti1Image
    dseg: Nifti1Image | None = None
    dseg_name: str | None = None
    dseg_table: pd.DataFrame | None = None


def load_template(
    name_or_path: str | os.PathLike[str] = EMBEDDED, dseg: str | os.PathLike[str] | None = None
) -> Template:
    """Load a template. Nothing is ever downloaded.

    Parameters
    ----------
    name_or_path : str or path-like, default="MNI152NLin2009aSym"
        The embedded template's name, a NIfTI file of a skull-stripped brain (its space is called by the
        ``tpl-NAME`` in the file's name, else by the name without its signs), or the name of a template in
        TemplateFlow's cache.
    dseg : path-like, optional
        Label image on the template's grid, in place of the template's own; called by ``atlas-NAME`` or ``seg-
        NAME`` in the file's name. A table (``.tsv``) beside it is read with it.

    Returns
    -------
    Template
        Image float32, mask uint8.

    Raises
    ------
    FileNotFoundError
        If a file named does not exist.
    ValueError
        If the name is unknown, the image is no skull-stripped brain, or the labels lie on another grid.
    """
    text = os.fspath(name_or_path)
    if text == EMBEDDED:
        template = _embedded()
    elif text.endswith(_NIFTI):
        template = _from_file(Path(text))
    else:
        template = _from_templateflow(text)
    return template if dseg is None else _with_labels(template, Path(dseg))


def template_name(name_or_path: str | os.PathLike[str]) -> str:
    """Return how a template's space is called, without loading it.

    Parameters
    ----------
    name_or_path : str or path-like
        As in `load_template`; the file need not exist.

    Returns
    -------
    str
        BIDS label of the space.

    Examples
    --------
    >>> template_name("MNI152NLin2009aSym"), template_name("folder/tpl-study_T1w.nii.gz")
    ('MNI152NLin2009aSym', 'study')
    """
    text = os.fspath(name_or_path)
    return _space_name(Path(text)) if text.endswith(_NIFTI) else text


def templateflow_home() -> Path:
    """Return the folder of TemplateFlow's cache: ``TEMPLATEFLOW_HOME`` or ``~/.cache/templateflow``."""
    return Path(os.environ.get("TEMPLATEFLOW_HOME") or Path.home() / ".cache" / "templateflow")


def _embedded() -> Template:
    """Build the embedded template with its tissue labels (largest share of GM, WM, rest of the brain)."""
    t1w = datasets.load_mni152_template(resolution=1)
    # nilearn hands out one shared object: copy.
    data = np.array(t1w.dataobj, dtype=np.float32)
    mask = ndimage.binary_fill_holes(data > 0)
    grey = np.asanyarray(datasets.load_mni152_gm_template(resolution=1).dataobj)
    white = np.asanyarray(datasets.load_mni152_wm_template(resolution=1).dataobj)
    winner = np.stack([grey, white, 1.0 - grey - white]).argmax(axis=0) + 1
    labels = np.where(mask, winner, 0).astype(np.uint8)
    image, mask_image, dseg = (new_image(array, Grid.of(t1w)) for array in (data, mask.astype(np.uint8), labels))
    for made in (image, mask_image, dseg):
        made.set_sform(made.affine, _MNI_SPACE_CODE)
        made.set_qform(made.affine, _MNI_SPACE_CODE)
    return Template(EMBEDDED, image, mask_image, dseg, "tissue", TISSUES.copy())


def _from_file(path: Path) -> Template:
    """Load a user's template."""
    image = load_image(path, "template")
    if not looks_skull_stripped(image):
        raise ValueError(
            f"template {path}: expected a skull-stripped brain on a background of zeros, found what looks "
            "like a raw head; give a stripped template"
        )
    return Template(_space_name(path), _as_float(image), brain_mask(image))


def _space_name(path: Path) -> str:
    """Return the space's name from a file name."""
    entity = re.match(r"tpl-([0-9a-zA-Z]+)_", path.name)
    name = entity.group(1) if entity else re.sub(r"[^0-9a-zA-Z]", "", _stem(path))
    if not name:
        raise ValueError(f"template {path}: expected letters or digits in the file's name, found none")
    return name


def _with_labels(template: Template, path: Path) -> Template:
    """Return the template with other labels."""
    labels = load_labels(path, "template labels")
    if not Grid.of(template.image).matches(labels):
        raise ValueError(
            f"template labels {path}: expected the grid of template {template.name} {template.image.shape}, "
            f"found another {labels.shape}; resample them with nearest-neighbour"
        )
    entity = re.search(r"(?:^|_)(?:atlas|seg)-([0-9a-zA-Z]+)", path.name)
    name = entity.group(1) if entity else re.sub(r"[^0-9a-zA-Z]", "", _stem(path)) or "labels"
    return Template(template.name, template.image, template.mask, labels, name, _table_beside(path))


def _table_beside(path: Path) -> pd.DataFrame | None:
    """Return the label table of the same name, if there is one with an ``index`` and a ``name``."""
    table_path = path.with_name(f"{_stem(path)}.tsv")
    if not table_path.is_file():
        return None
    table = pd.read_csv(table_path, sep="\t")
    missing = {"index", "name"} - set(table.columns)
    if missing:
        raise ValueError(f"label table {table_path}: expected columns index and name, found {', '.join(table.columns)}")
    return table


def _from_templateflow(name: str) -> Template:
    """Load a template at 1 mm from TemplateFlow's cache: its stripped image, or its image and brain mask."""
    folder = templateflow_home() / f"tpl-{name}"
    stripped = folder / f"tpl-{name}_res-01_desc-brain_T1w.nii.gz"
    whole = folder / f"tpl-{name}_res-01_T1w.nii.gz"
    mask_path = folder / f"tpl-{name}_res-01_desc-brain_mask.nii.gz"
    # The cache holds files of size 0 for what was never fetched.
    present = {path: path.is_file() and path.stat().st_size > 0 for path in (stripped, whole, mask_path)}
    if not (present[stripped] or (present[whole] and present[mask_path])):
        raise ValueError(
            f"template {name!r}: expected {EMBEDDED}, a NIfTI file (.nii, .nii.gz) or a template in "
            f"TemplateFlow's cache, found no {stripped.name} (nor {whole.name} with its mask) in {folder}; "
            "nothing is downloaded at run time, so fetch it into the cache beforehand or give a path"
        )
    image = load_image(stripped if present[stripped] else whole, "template")
    mask = load_labels(mask_path, "template mask") if present[mask_path] else brain_mask(image)
    is_brain = mask_array(image, mask, f"template mask {mask_path}")
    data = np.where(is_brain, np.asanyarray(image.dataobj), 0).astype(np.float32)
    return Template(name, new_image(data, image), new_image(is_brain.astype(np.uint8), image))


def _as_float(image: Nifti1Image) -> Nifti1Image:
    """Return the image as float32."""
    return new_image(np.asanyarray(image.dataobj, dtype=np.float32), image)


def _stem(path: Path) -> str:
    """Return the file's name without .nii or .nii.gz."""
    return re.sub(r"\.nii(\.gz)?$", "", path.name)
