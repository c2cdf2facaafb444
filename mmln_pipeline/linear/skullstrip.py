"""The brain in a raw T1-weighted head, found with nothing but the embedded template."""

from __future__ import annotations

import numpy as np
from nibabel import Nifti1Image
from nibabel.affines import apply_affine, from_matvec
from scipy import ndimage

from mmln_pipeline.atlas.templates import Template, load_template
from mmln_pipeline.images.brain import Brain
from mmln_pipeline.images.volumes import conform, correct_bias, fill_holes
from mmln_pipeline.linear.affine import estimate_affine
from mmln_pipeline.space.grids import Grid, new_image

# All lengths are in mm. The work is done on cubic voxels; the mask's outline is interpolated between them.
_STEP = 1.75
_MARGIN = 16.0
# The affine template's error: the brain ends less than _OUTSIDE beyond its outline, and _INSIDE all is brain.
_OUTSIDE, _INSIDE = 5.0, 12.0
# Depth at which what the affine template marks is hardly anything but brain; there white matter is measured.
_SAFE = 4.0
# Tissue by its share of white matter's intensity: less is cerebrospinal fluid, bone and air, more is fat.
_TISSUE, _WHITE_PERCENTILE = (0.45, 1.4), 95.0
# Bridges to dura, nerves and marrow are thinner than twice this, the brain is not.
_BRIDGE = 3.0
# Sulci narrower than twice this belong to the brain, and so does this rim of cerebrospinal fluid.
_SULCUS, _RIM = 8.0, 2.5


def find_brain(image: Nifti1Image, seed: int = 0) -> Nifti1Image:
    """Mask the brain of a raw T1-weighted head.

    The embedded template is aligned with the head by an affine; what is brain is then told by `mask_from_affine`.

    Parameters
    ----------
    image : Nifti1Image
        Head, neck and all; any orientation, voxel size and intensity scale. What is below zero counts as air.
    seed : int, default=0
        Of the alignment.

    Returns
    -------
    Nifti1Image
        1 in the brain, 0 elsewhere, uint8, on the image's grid.

    Raises
    ------
    ValueError
        If no brain is found.
    """
    return locate_brain(image, seed)[0]


def locate_brain(image: Nifti1Image, seed: int = 0) -> tuple[Nifti1Image, np.ndarray]:
    """Mask the brain of a raw head, and tell where the embedded template lies in it.

    Parameters
    ----------
    image, seed
        As of `find_brain`.

    Returns
    -------
    mask : Nifti1Image
        Likewise.
    matrix : ndarray, shape (4, 4)
        RAS+ mm, template world to image world: an affine.
    """
    template = load_template()
    matrix = estimate_affine(Brain(template.image, template.mask), Brain(image), "affine", seed)
    return mask_from_affine(image, template, matrix), matrix


def mask_from_affine(image: Nifti1Image, template: Template, matrix: np.ndarray) -> Nifti1Image:
    """Mask the brain of a head with which a template is aligned.

    Near the template's outline, brain is what has a tissue's intensity and hangs together with the inside by more
    than a thin bridge; sulci are closed and a rim of cerebrospinal fluid is added.

    Parameters
    ----------
    image : Nifti1Image
        T1-weighted head.
    template : Template
        Its brain mask counts.
    matrix : ndarray, shape (4, 4)
        RAS+ mm, template world to image world.

    Returns
    -------
    Nifti1Image
        1 in the brain, 0 elsewhere, uint8, on the image's grid: one piece without holes, with ventricles, sulci and
        2 mm of the fluid round the brain.

    Raises
    ------
    ValueError
        If what the template marks is too small for a human brain.
    """
    head, guess = _surroundings(image, template, matrix)
    brain = _join_brain(_find_tissue(head, guess))
    closed = brain | (_depth(_depth(~brain) <= _SULCUS) > _SULCUS)
    closed = fill_holes(closed)
    # Positive in the mask, zero beyond this grid.
    height = _RIM + _depth(closed) - _depth(~closed)
    mask = np.asanyarray(conform(new_image(height.astype(np.float32), head), image).dataobj) > 0
    return new_image(fill_holes(mask).astype(np.uint8), image)


def _surroundings(image: Nifti1Image, template: Template, matrix: np.ndarray) -> tuple[Nifti1Image, np.ndarray]:
    """Return the head round the template's brain on cubic voxels along its own axes, and that brain."""
    own = Grid.of(image)
    voxels = np.argwhere(np.asanyarray(template.mask.dataobj))
    points = apply_affine(np.linalg.inv(own.affine) @ matrix @ template.mask.affine, voxels) * own.spacing
    low, high = points.min(axis=0) - _MARGIN, points.max(axis=0) + _MARGIN
    to_own = from_matvec(np.diag(_STEP / own.spacing), low / own.spacing)
    grid = Grid(tuple(np.ceil((high - low) / _STEP).astype(int)), own.affine @ to_own)
    data = np.clip(np.asanyarray(image.dataobj, dtype=np.float32), 0.0, None)
    # Half a new voxel beyond the old resolution, the usual guard against aliasing.
    smooth = ndimage.gaussian_filter(data, 0.5 * np.clip(_STEP / own.spacing - 1.0, 0.0, None))
    guess = conform(template.mask, grid, np.linalg.inv(matrix), "nearest")
    return conform(new_image(smooth, image), grid), np.asanyarray(guess.dataobj) > 0


def _find_tissue(head: Nifti1Image, guess: np.ndarray) -> np.ndarray:
    """Return what has the intensity of grey or white matter, near the guess, and all that is deep inside it."""
    inside = _depth(guess) - _depth(~guess)
    if inside.max() < 2 * _INSIDE:
        raise ValueError(
            f"skull stripping: expected a brain {4 * _INSIDE:.0f} mm thick or more, found {2 * inside.max():.0f} mm; "
            "check the voxel size, or give a brain mask"
        )
    near = new_image((inside > -_SAFE).astype(np.uint8), head)
    data = np.asanyarray(correct_bias(head, near).dataobj)
    share = data / np.percentile(data[inside > _SAFE], _WHITE_PERCENTILE)
    tissue = (share > _TISSUE[0]) & (share < _TISSUE[1]) & (inside > -_OUTSIDE)
    return tissue | (inside > _INSIDE)


def _join_brain(tissue: np.ndarray) -> np.ndarray:
    """Return the largest piece of tissue without what hangs on it by a thin bridge."""
    core = _largest(_depth(tissue) > _BRIDGE)
    return _largest(tissue & (_depth(~core) <= _BRIDGE + 0.5))


def _depth(region: np.ndarray) -> np.ndarray:
    """Return how deep in a region each voxel lies, mm; 0 outside."""
    return ndimage.distance_transform_edt(region, sampling=_STEP)


def _largest(region: np.ndarray) -> np.ndarray:
    """Return the largest piece of a region."""
    pieces, _ = ndimage.label(region)
    sizes = np.bincount(pieces.ravel())
    sizes[0] = 0
    return pieces == sizes.argmax()
