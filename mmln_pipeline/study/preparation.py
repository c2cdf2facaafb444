"""Test scans as every method gets them: stripped, aligned to the template by an affine, on one grid, in [0, 1]."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from nibabel import Nifti1Image
from numpy.typing import NDArray

from mmln_pipeline.atlas.labels import LabelTable, load_label_table
from mmln_pipeline.atlas.templates import load_template
from mmln_pipeline.fields.scales import downsample
from mmln_pipeline.images.volumes import load_image, load_labels, looks_skull_stripped, network_grid, save_image
from mmln_pipeline.linear.skullstrip import find_brain
from mmln_pipeline.machine.files import checksum, write_text
from mmln_pipeline.space.grids import GRID_SHAPE, Grid, check_same_grid, new_image
from mmln_pipeline.study.configuration import StudyConfig, TestSet
from mmln_pipeline.training.datasets import Source, check_numbers
from mmln_pipeline.training.pack import is_packed, pack_volume

GRID = "grid.json"
"""Affine of the grid on which scans lie prepared, beside them."""
CORTEX = range(100, 208)
"""Parcels of the cortex in Neuromorphometrics' numbering."""


@dataclass(frozen=True)
class PreparedScan:
    """A scan on the study's grid.

    Parameters
    ----------
    image : ndarray of float32, shape (I, J, K)
        In [0, 1], the background 0.
    labels : ndarray of int, shape (I, J, K)
    grid : Grid
        The template's world.
    """

    image: NDArray[np.float32]
    labels: NDArray[np.integer]
    grid: Grid

    @property
    def brain(self) -> NDArray[np.bool_]:
        """Where the brain is, shape (I, J, K)."""
        return self.image > 0

    def halved(self, times: int) -> PreparedScan:
        """Return the scan on a grid halved some times: images by averaging, labels by every second voxel."""
        if not times:
            return self
        image = downsample(torch.from_numpy(self.image)[None, None])[0, 0].numpy()
        affine = self.grid.affine @ np.array([[2, 0, 0, 0.5], [0, 2, 0, 0.5], [0, 0, 2, 0.5], [0, 0, 0, 1]])
        grid = Grid(image.shape, affine)
        return PreparedScan(image, self.labels[::2, ::2, ::2], grid).halved(times - 1)

    def to_nifti(self) -> Nifti1Image:
        """Return the image with its place in the template's world."""
        return new_image(self.image, self.grid)


def load_table(test_set: TestSet, root: Path) -> LabelTable:
    """Load the table of the structures that a test set is scored by.

    Raises
    ------
    FileNotFoundError, ValueError
        When there is no such table, or it is none.
    """
    path = root / test_set.label_table
    return load_label_table(path if path.is_file() else test_set.label_table)


def find_mask(scan: Source, test_set: TestSet, root: Path) -> Path | None:
    """Find the mask of a scan; None where the test set has none.

    Raises
    ------
    FileNotFoundError
        When the test set has masks and the scan none, or several.
    """
    if not test_set.masks:
        return None
    folder = (root / test_set.path).resolve()
    place = folder / test_set.masks / scan.image.parent.relative_to(folder)
    found = sorted(place.glob(f"{scan.image.name.removesuffix('T1w.nii.gz')}*mask.nii.gz"))
    if len(found) != 1:
        raise FileNotFoundError(
            f"test masks: expected one *_mask.nii.gz of {scan.image.name} in {place}, found {len(found)}"
        )
    return found[0]


def check_scans(study: StudyConfig, test_set: TestSet, scans: Sequence[Source], root: Path) -> None:
    """Check that scans can be prepared and scored; each label image is read.

    Parameters
    ----------
    study : StudyConfig
    test_set : TestSet
    scans : sequence of Source
        Of the test set.
    root : Path
        Folder that relative paths start from.

    Raises
    ------
    FileNotFoundError, ValueError
        By the file's name.
    """
    load_template(study.data.template)
    table = load_table(test_set, root)
    for scan in scans:
        find_mask(scan, test_set, root)
        if scan.labels is None:
            raise ValueError(f"test labels: expected those of {scan.image}, found none")
        labels = np.asarray(load_labels(scan.labels, "test labels").dataobj)
        check_numbers(labels, table, f"test labels {scan.labels}")
        if test_set.cortex and not np.isin(labels, CORTEX).any():
            raise ValueError(f"test labels {scan.labels}: expected parcels of the cortex, 100 to 207, found none")


def prepared_path(scan: Source, study: StudyConfig, root: Path) -> Path:
    """Return where a scan lies prepared."""
    return root / study.prepared / f"{scan.name}.npz"


def prepare_scan(scan: Source, test_set: TestSet, study: StudyConfig, root: Path) -> Path:
    """Prepare a scan, unless it is prepared as it is today: stripped, and then as training volumes are.

    Parameters
    ----------
    scan : Source
    test_set : TestSet
        Its own.
    study : StudyConfig
    root : Path
        Folder that relative paths start from.

    Returns
    -------
    Path
        As of `prepared_path`.

    Raises
    ------
    FileNotFoundError, ValueError
        By the file's name, when it cannot be read or prepared.
    """
    folder = root / study.prepared
    grid = network_grid(load_template(study.data.template).image, shape=GRID_SHAPE)
    write_text(folder / GRID, json.dumps(grid.affine.tolist()))  # for those who would load a template only for this
    stripped = replace(scan, image=_strip(scan, find_mask(scan, test_set, root), folder))
    if not is_packed(stripped, study.data.template, GRID_SHAPE, folder):
        pack_volume(stripped, study.data.template, GRID_SHAPE, folder)
    return prepared_path(scan, study, root)


def _strip(scan: Source, mask: Path | None, folder: Path) -> Path:
    """Return the path of a scan's brain: its own where it is stripped, else of a copy, made where it is absent."""
    image = load_image(scan.image, "test image")
    if looks_skull_stripped(image):
        return scan.image
    made_from = checksum(scan.image)[:8] + (checksum(mask)[:8] if mask else "-template")
    path = folder / "brains" / f"{scan.name}_{made_from}_T1w.nii.gz"
    if not path.is_file():
        brain = load_labels(mask, "test mask") if mask else find_brain(image)
        check_same_grid(brain, "test mask", image, "test image", str(mask or ""))
        inside = np.asarray(brain.dataobj) != 0
        save_image(new_image(np.where(inside, image.get_fdata(dtype=np.float32), np.float32(0)), image), path)
    return path


def load_prepared(path: Path, study: StudyConfig) -> PreparedScan:
    """Read a prepared scan, on the study's grid.

    Parameters
    ----------
    path : Path
    study : StudyConfig

    Returns
    -------
    PreparedScan
    """
    grid = Grid(GRID_SHAPE, np.array(json.loads((path.parent / GRID).read_text(encoding="utf-8"))))
    with np.load(path) as arrays:
        image = arrays["image"].astype(np.float32) / 255
        whole = PreparedScan(image, arrays["labels"], grid)
    return whole.halved(study.halvings)
