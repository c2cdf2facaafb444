"""Templates to register to: the embedded one, a NIfTI file, or one from TemplateFlow's local cache."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd
from nibabel import Nifti1Image

from mmln_pipeline.atlas.labels import BUNDLED, bundled_path, find_dseg_table, load_dseg_table
from mmln_pipeline.images.volumes import (
    brain_mask,
    fill_holes,
    load_image,
    load_labels,
    looks_skull_stripped,
    mask_array,
)
from mmln_pipeline.space.grids import Grid, new_image

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
IMAGE_SUFFIXES = (".nii", ".nii.gz")
"""How the file of a template may end."""
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
    name_or_path: str | os.PathLike[str] = EMBEDDED,
    dseg: str | os.PathLike[str] | None = None,
    mask: str | os.PathLike[str] | None = None,
    dseg_table: str | os.PathLike[str] | None = None,
) -> Template:
    """Load a template. Nothing is ever downloaded.

    Parameters
    ----------
    name_or_path : str or path-like, default="MNI152NLin2009aSym"
        The embedded template's name, a NIfTI file (its space is called by the ``tpl-NAME`` in the file's name,
        else by the name without its signs), or the name of a template in TemplateFlow's cache, such as
        ``MNI152NLin2009cAsym`` or ``MNIPediatricAsym:cohort-2``, with ``:res-2`` for other than 1 mm.
    dseg : path-like, optional
        Label image on the template's grid, in place of the template's own; called by ``atlas-NAME`` or ``seg-
        NAME`` in the file's name.
    mask : path-like, optional
        Brain mask on the template's grid. Default: for a file ``tpl-X_T1w.nii.gz`` the mask
        ``tpl-X_desc-brain_mask.nii.gz`` beside it, else what is not zero in a skull-stripped image.
    dseg_table : path-like, optional
        Table of the labels (columns ``index`` and ``name``). Default: the one beside `dseg` that BIDS says
        belongs to it.

    Returns
    -------
    Template
        Image float32, mask uint8.

    Raises
    ------
    FileNotFoundError
        If a file named does not exist.
    ValueError
        If the name is unknown, the image is no brain and has no mask, or mask or labels lie on another grid.
    """
    text = os.fspath(name_or_path)
    if text == EMBEDDED:
        template = _embedded()
    elif text.endswith(IMAGE_SUFFIXES):
        path = Path(text)
        template = _stripped(_space_name(path), load_image(path, "template"), path, mask or _mask_beside(path))
        mask = None
    else:
        template = _from_templateflow(text)
    if mask is not None:
        masked = _stripped(template.name, template.image, text, mask)
        template = replace(template, image=masked.image, mask=masked.mask)
    return template if dseg is None else _with_labels(template, Path(dseg), dseg_table)


def template_name(name_or_path: str | os.PathLike[str]) -> str:
    """Return how a template's space is called, without loading it.

    Parameters
    ----------
    name_or_path : str or path-like
        As in `load_template`, or ``sub-X`` for an image of a dataset; a file need not exist.

    Returns
    -------
    str
        BIDS label of the space.

    Raises
    ------
    ValueError
        If it is a table of several, or a file's name has no letter or digit.

    Examples
    --------
    >>> template_name("MNI152NLin2009aSym"), template_name("folder/tpl-study_T1w.nii.gz"), template_name("sub-01")
    ('MNI152NLin2009aSym', 'study', 'sub01')
    """
    text = os.fspath(name_or_path)
    if text.endswith(IMAGE_SUFFIXES):
        return _space_name(Path(text))
    if text.endswith(".tsv"):
        raise ValueError(f"template {text}: expected one template, found a table of several; give a name from it")
    if text.startswith("sub-"):
        return re.sub(r"[^0-9a-zA-Z]", "", text)
    name, cohort, _ = _split_templateflow_name(text)
    return f"{name}+{cohort}" if cohort else name


def templateflow_home() -> Path:
    """Return the folder of TemplateFlow's cache: ``TEMPLATEFLOW_HOME`` or ``~/.cache/templateflow``."""
    return Path(os.environ.get("TEMPLATEFLOW_HOME") or Path.home() / ".cache" / "templateflow")


def _embedded() -> Template:
    """Build the embedded template with its tissue labels (largest share of GM, WM, rest of the brain)."""
    labels = _embedded_labels()  # before the image is read: their shares take as much memory as the rest of a run
    grid, data = _read_nilearns("t1")
    mask = fill_holes(data > 0)
    labels[~mask] = 0
    image, mask_image, dseg = (new_image(array, grid) for array in (data, mask.astype(np.uint8), labels))
    for made in (image, mask_image, dseg):
        made.set_sform(made.affine, _MNI_SPACE_CODE)
        made.set_qform(made.affine, _MNI_SPACE_CODE)
    return Template(EMBEDDED, image, mask_image, dseg, "tissue", TISSUES.copy())


def _embedded_labels() -> np.ndarray:
    """Return the number of the tissue with the largest share in each voxel, uint8; 3 where GM and WM have none."""
    (_, grey), (_, white) = _read_nilearns("gm"), _read_nilearns("wm")
    labels = np.empty(grey.shape, np.uint8)
    for i in range(len(labels)):
        labels[i] = np.stack([grey[i], white[i], 1.0 - grey[i] - white[i]]).argmax(axis=0) + 1
    return labels


def _read_nilearns(kind: str) -> tuple[Grid, np.ndarray]:
    """Read the image `t1`, `gm` or `wm` that nilearn carries, float32 and scaled to 1 as its own loaders do.

    Those would import scikit-learn besides, into each worker process: 80 MB and a second.
    """
    spec = find_spec("nilearn")
    if spec is None or not spec.submodule_search_locations:
        raise FileNotFoundError(f"template {EMBEDDED}: expected the package nilearn, which carries it, found none")
    folder = Path(spec.submodule_search_locations[0], "datasets", "data")
    image: Any = nib.load(folder / f"mni_icbm152_{kind}_tal_nlin_sym_09a_converted.nii.gz")
    data = image.get_fdata(dtype=np.float32)
    data /= data.max()
    return Grid.of(image), data


def _stripped(
    name: str, image: Nifti1Image, path: str | os.PathLike[str], mask: str | os.PathLike[str] | None
) -> Template:
    """Make a template of an image: with a mask, only what lies inside it; without, it must be stripped."""
    data = np.asanyarray(image.dataobj, dtype=np.float32)
    if mask is not None:
        is_brain = mask_array(image, load_labels(mask, "template mask"), f"template mask {mask}")
        data = np.where(is_brain, data, np.float32(0))
    stripped = new_image(data, image)
    if not data.any() or not looks_skull_stripped(stripped):
        found = "what looks like a raw head" if mask is None else f"nothing like it inside the mask {mask}"
        raise ValueError(
            f"template {path}: expected a skull-stripped brain on a background of zeros, found {found}; give a "
            "stripped template or its brain mask"
        )
    return Template(name, stripped, brain_mask(image) if mask is None else new_image(is_brain.astype(np.uint8), image))


def _mask_beside(path: Path) -> Path | None:
    """Return the brain mask that belongs to an image by its name: ``tpl-X_desc-brain_mask`` for ``tpl-X_T1w``."""
    entities = [part for part in _stem(path).split("_")[:-1] if not part.startswith("desc-")]
    if not entities or not all("-" in part for part in entities):
        return None
    names = [f"{'_'.join(entities)}_desc-brain_mask{ending}" for ending in reversed(IMAGE_SUFFIXES)]
    return next((path.with_name(name) for name in names if path.with_name(name).is_file()), None)


def _space_name(path: Path) -> str:
    """Return the space's name from a file name."""
    entity = re.match(r"tpl-([0-9a-zA-Z]+)_", path.name)
    name = entity.group(1) if entity else re.sub(r"[^0-9a-zA-Z]", "", _stem(path))
    if not name:
        raise ValueError(f"template {path}: expected letters or digits in the file's name, found none")
    return name


def labels_name(path: str | os.PathLike[str], default: str | None = None) -> str:
    """Return what a label image is called: by ``atlas-NAME`` or ``seg-NAME`` in its file name.

    Parameters
    ----------
    path : path-like
        Label image.
    default : str, optional
        What to call it else (default: the file's name without its signs).

    Returns
    -------
    str
        Letters and digits.

    Examples
    --------
    >>> labels_name("tpl-X_atlas-Core_dseg.nii.gz"), labels_name("my_labels.nii"), labels_name("dseg.nii", "mine")
    ('Core', 'mylabels', 'mine')
    """
    entity = re.search(r"(?:^|_)(?:atlas|seg)-([0-9a-zA-Z]+)", Path(path).name)
    if entity:
        return entity.group(1)
    return default or re.sub(r"[^0-9a-zA-Z]", "", _stem(Path(path))) or "labels"


def _with_labels(template: Template, path: Path, table: str | os.PathLike[str] | None) -> Template:
    """Return the template with other labels."""
    labels = load_labels(path, "template labels")
    if not Grid.of(template.image).matches(labels):
        raise ValueError(
            f"template labels {path}: expected the grid of template {template.name}, "
            f"{Grid.of(template.image).describe_difference(labels)}; resample them with nearest-neighbour"
        )
    if np.asanyarray(labels.dataobj).min() < 0:
        raise ValueError(f"template labels {path}: expected no label below 0, found some")
    name = labels_name(path)
    found = Path(table) if table is not None else find_dseg_table(path)
    if found is None and name in BUNDLED:
        found = bundled_path(name)
    return replace(template, dseg=labels, dseg_name=name, dseg_table=None if found is None else load_dseg_table(found))


def _split_templateflow_name(text: str) -> tuple[str, str | None, int | None]:
    """Split ``NAME:cohort-2:res-1`` into name, cohort and resolution."""
    found = re.fullmatch(r"([0-9a-zA-Z]+)(?::cohort-([0-9a-zA-Z]+))?(?::res-([0-9]+))?", text)
    if found is None:
        raise ValueError(
            f"template {text!r}: expected {EMBEDDED}, a NIfTI file (.nii, .nii.gz), sub-LABEL, a table (.tsv) or "
            "a name from TemplateFlow such as MNI152NLin2009cAsym or MNIPediatricAsym:cohort-2:res-1"
        )
    return found[1], found[2], None if found[3] is None else int(found[3])


def _from_templateflow(text: str) -> Template:
    """Load a template from TemplateFlow's cache: its stripped image, or its image and brain mask."""
    name, cohort, resolution = _split_templateflow_name(text)
    home = templateflow_home()
    # The package fills an empty cache with the names of all files when it is loaded: it is asked only where there
    # is something to find. Its listing, unlike its `get`, never downloads.
    if not (home / f"tpl-{name}").is_dir():
        raise ValueError(_not_in_cache(text, home))
    from templateflow import TemplateFlowClient

    client = TemplateFlowClient(root=home)
    for index in (1, None) if resolution is None else (resolution,):

        def find(index: int | None = index, **entities: str | None) -> Path | None:
            found = client.ls(name, cohort=cohort, resolution=index, extension=[".nii.gz", ".nii"], **entities)
            # The cache holds files of size 0 for what was never fetched.
            return next((path for path in sorted(found) if path.is_file() and path.stat().st_size), None)

        mask = find(suffix="mask", desc="brain", label=None)
        image = find(suffix="T1w", desc="brain") or (find(suffix="T1w", desc=None) if mask else None)
        if image is None:
            continue
        template = _stripped(template_name(text), load_image(image, "template"), image, mask)
        dseg = find(suffix="dseg", desc=None, atlas=None, label=None, segmentation=None)
        return template if dseg is None else replace(_with_labels(template, dseg, None), dseg_name="tissue")
    raise ValueError(_not_in_cache(text, home))


def _not_in_cache(text: str, home: Path) -> str:
    """Say that a template is not in TemplateFlow's cache, what is, and how to mend it."""
    images = [path for path in home.glob("tpl-*/**/*_T1w.nii*") if path.is_file() and path.stat().st_size]
    names = sorted({path.relative_to(home).parts[0].removeprefix("tpl-") for path in images})
    name = text.split(":")[0]
    return (
        f"template {text!r}: expected {EMBEDDED}, a NIfTI file (.nii, .nii.gz), sub-LABEL, a table (.tsv) or a "
        f"template in TemplateFlow's cache, found no stripped T1w image of that name (nor one with a mask) in {home}, "
        f"which holds {', '.join(names) or 'no template'}; nothing is downloaded at run time, so fetch it into the "
        f"cache beforehand (python -c \"from templateflow import api; api.get('{name}', suffix=['T1w', 'mask'])\", "
        "the cache's folder is TEMPLATEFLOW_HOME) or give a path"
    )


def _stem(path: Path) -> str:
    """Return the file's name without .nii or .nii.gz."""
    return re.sub(r"\.nii(\.gz)?$", "", path.name)
