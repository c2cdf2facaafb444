"""Displacement and velocity fields on voxel grids: warp, compose, integrate, resize, Jacobian, NDV.

One convention everywhere. A displacement ``u`` has shape (B, 3, I, J, K), its components are in voxels of its own
grid in array-axis order, and it maps by pull: ``moved(x) = M(x + u(x))``. Voxel ``j`` of a grid half the size has
its centre at ``2 j + 0.5`` of the finer grid, for pooling and for interpolation alike. Everything here is float32:
half precision loses sub-voxel accuracy in repeated composition.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor

SQUARING_STEPS = 7
TAPER_MARGIN = 4.0
_BLOCK_PLANES, _BLOCK_CELLS = 4, 2**14
"""Cells whose volumes a CPU computes at once: few enough for its cache, and too few to wait for other threads."""


Window = tuple[slice, ...]
"""Voxels of a grid: a slice with start and stop for each of the three axes."""


def crop(tensor: Tensor, window: Window) -> Tensor:
    """Return the part of a tensor, shape (B, C, I, J, K), that lies in a window of its grid."""
    return tensor[(slice(None), slice(None), *window)]


def halve_shape(shape: Sequence[int]) -> tuple[int, ...]:
    """Return the size of the grid of half a grid's size."""
    return tuple((n + 1) // 2 for n in shape)


def halve_window(window: Window) -> Window:
    """Return a window of even starts on the grid of half the size."""
    return tuple(slice(s.start // 2, (s.stop + 1) // 2) for s in window)


def voxel_grid(shape: Sequence[int], device: torch.device | None = None) -> Tensor:
    """Return the voxel coordinates of a grid.

    Parameters
    ----------
    shape : sequence of int
        Grid size (I, J, K).
    device : torch.device, optional
        Where the tensor lives (default: CPU).

    Returns
    -------
    Tensor, shape (3, I, J, K)
        Coordinates in voxels, float32.
    """
    axes = [torch.arange(n, dtype=torch.float32, device=device) for n in shape]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"))


def warp(
    image: Tensor,
    displacement: Tensor,
    mode: str = "bilinear",
    origin: Sequence[int] = (0, 0, 0),
    spacing: int = 1,
) -> Tensor:
    """Sample an image, or a field, at displaced positions.

    Parameters
    ----------
    image : Tensor, shape (B, C, I, J, K)
        What is sampled.
    displacement : Tensor, shape (B, 3, i, j, k)
        Offsets in voxels of `image`'s grid.
    mode : {"bilinear", "nearest"}, default="bilinear"
        Interpolation (trilinear in 3-D); positions outside take the nearest border voxel.
    origin : sequence of int, default=(0, 0, 0)
        Voxel of `image` at which the displacement's grid begins, when that is a window of it.
    spacing : int, default=1
        Voxels of `image` from one voxel of the displacement's grid to the next.

    Returns
    -------
    Tensor, shape (B, C, i, j, k)
        ``image(spacing x + origin + u(x))``, float32.
    """
    components: list[Tensor] = []
    for n, first, offset in zip(image.shape[2:], origin, displacement.float().unbind(1), strict=True):
        axis, scale = len(components), 2.0 / max(n - 1, 1)
        place = torch.arange(offset.shape[1 + axis], dtype=torch.float32, device=offset.device) * spacing + first
        place = (place * scale - 1.0).view([-1 if a == axis else 1 for a in range(3)])
        components.append(torch.add(place, offset, alpha=scale))
    normalized = torch.stack(components[::-1], -1)  # grid_sample wants the last axis first
    return _grid_sample(image.float(), normalized, mode)


def warp_corners(image: Tensor, displacement: Tensor, corners: Sequence[int]) -> Tensor:
    """Sample an image of twice the displacement's size at some of the eight voxels of each block.

    Parameters
    ----------
    image : Tensor, shape (1, 1, I, J, K)
    displacement : Tensor, shape (1, 3, ceil(I/2), ceil(J/2), ceil(K/2))
        Voxels of its own grid.
    corners : sequence of int
        Which of the channels that :func:`fold` makes of a block's voxels, 0 to 7.

    Returns
    -------
    Tensor, shape (1, len(corners), ceil(I/2), ceil(J/2), ceil(K/2))
        ``fold(warp(image, resize_field(displacement, (I, J, K))))[:, corners]``, for a fraction of the work.
    """
    planes = [_quarter(2 * displacement, 2, side) for side in (0, 1)]
    lines = [_quarter(plane, 3, side) for plane in planes for side in (0, 1)]
    samples = []
    for corner in corners:
        origin = corner >> 2, corner >> 1 & 1, corner & 1
        there = _quarter(lines[corner >> 1], 4, corner & 1)
        samples.append(warp(image, there, origin=origin, spacing=2))
    return torch.cat(samples, 1)


def compose(outer: Tensor, inner: Tensor, origin: Sequence[int] = (0, 0, 0)) -> Tensor:
    """Return the displacement of ``outer(inner(x))``.

    Parameters
    ----------
    outer : Tensor, shape (B, 3, I, J, K)
        Displacement applied second, in voxels.
    inner : Tensor, shape (B, 3, i, j, k)
        Displacement applied first; its grid is `outer`'s, or a window of it that begins at `origin`.
    origin : sequence of int, default=(0, 0, 0)
        See :func:`warp`.

    Returns
    -------
    Tensor, shape (B, 3, i, j, k)
        Displacement in voxels on `inner`'s grid.
    """
    return inner + warp(outer, inner, origin=origin)


def exponentiate(velocity: Tensor, steps: int = SQUARING_STEPS) -> Tensor:
    """Integrate a stationary velocity field over unit time by scaling and squaring.

    Parameters
    ----------
    velocity : Tensor, shape (B, 3, I, J, K)
        Voxels per unit time.
    steps : int, default=7
        Number of squarings.

    Returns
    -------
    Tensor, shape (B, 3, I, J, K)
        Displacement in voxels; the inverse map is ``exponentiate(-velocity)``.

    References
    ----------
    Arsigny et al., MICCAI 2006; paper section 3.1.
    """
    displacement = velocity.float() / 2**steps
    for _ in range(steps):
        displacement = compose(displacement, displacement)
    return displacement


def integrate(velocities: Sequence[Tensor], shape: Sequence[int], inverse: bool = False) -> Tensor:
    """Turn a coarse-to-fine sequence of velocity fields into one displacement field.

    The map is ``exp(v_1) o exp(v_2) o ... o exp(v_n)``, the finest applied to a fixed point first; its inverse is
    ``exp(-v_n) o ... o exp(-v_1)``.

    Parameters
    ----------
    velocities : sequence of Tensor, each of shape (B, 3, i, j, k)
        Stationary velocity fields in voxels of their own grids, usually coarse to fine, over one field of view.
    shape : sequence of int
        Size (I, J, K) of the result's grid.
    inverse : bool, default=False
        Return the inverse map.

    Returns
    -------
    Tensor, shape (B, 3, I, J, K)
        Displacement in voxels of the result's grid.
    """
    sign = -1.0 if inverse else 1.0
    total: Tensor | None = None
    for velocity in velocities:
        step = exponentiate(sign * velocity)
        if total is None:
            total = step
            continue
        finer = [max(pair) for pair in zip(total.shape[2:], step.shape[2:], strict=True)]
        total, step = resize_field(total, finer), resize_field(step, finer)
        total = compose(step, total) if inverse else compose(total, step)
    if total is None:
        raise ValueError("integrate: expected at least one velocity field, found none")
    return resize_field(total, shape)


def correct_inverse(inverse: Tensor, displacement: Tensor, steps: int = 2, sigma: float = 1.5) -> Tensor:
    """Bring an inverse map closer to the map that it inverts, without the roughness that an exact one would have.

    Parameters
    ----------
    inverse : Tensor, shape (B, 3, I, J, K)
        Displacement of an approximate inverse, voxels.
    displacement : Tensor, shape (B, 3, I, J, K)
        The map, voxels.
    steps : int, default=2
        Fixed-point steps.
    sigma : float, default=1.5
        Width of the Gaussian that smooths each step, voxels.

    Returns
    -------
    Tensor, shape (B, 3, I, J, K)

    References
    ----------
    Chen et al., A simple fixed-point approach to invert a deformation field, Med. Phys. 2008.
    """
    for _ in range(steps):
        inverse = inverse - smooth(compose(displacement, inverse), sigma)
    return inverse


def resize_image(image: Tensor, shape: Sequence[int]) -> Tensor:
    """Resample an image to another grid size over the same field of view, trilinearly.

    Parameters
    ----------
    image : Tensor, shape (B, C, I, J, K)
    shape : sequence of int
        New size (i, j, k).

    Returns
    -------
    Tensor, shape (B, C, i, j, k)
    """
    if tuple(image.shape[2:]) == tuple(shape):
        return image
    return F.interpolate(image, size=tuple(shape), mode="trilinear", align_corners=False)


def resize_field(field: Tensor, shape: Sequence[int]) -> Tensor:
    """Resample a displacement or velocity field and rescale its voxel units, axis by axis.

    Parameters
    ----------
    field : Tensor, shape (B, 3, I, J, K)
        Voxels of its own grid.
    shape : sequence of int
        New size (i, j, k).

    Returns
    -------
    Tensor, shape (B, 3, i, j, k)
        Voxels of the new grid.
    """
    if tuple(field.shape[2:]) == tuple(shape):
        return field
    ratio = [new / old for new, old in zip(shape, field.shape[2:], strict=True)]
    return resize_image(field * torch.tensor(ratio, device=field.device).view(1, 3, 1, 1, 1), shape)


def smooth(field: Tensor, sigma: float, half_width: int | None = None) -> Tensor:
    """Smooth each channel by a Gaussian; beyond its border a field goes on as there.

    Parameters
    ----------
    field : Tensor, shape (B, C, I, J, K)
    sigma : float
        Voxels.
    half_width : int, optional
        Where the Gaussian is cut off, voxels (default: 2.5 `sigma`).

    Returns
    -------
    Tensor, shape (B, C, I, J, K)
    """
    reach = math.ceil(2.5 * sigma) if half_width is None else half_width
    offset = torch.arange(-reach, reach + 1, device=field.device)
    kernel = torch.exp(-0.5 * (offset / sigma) ** 2)
    kernel = kernel / kernel.sum()
    channels = field.flatten(0, 1)[:, None]
    for axis in range(3):
        width, pad = [1, 1, 1], [0] * 6
        width[axis] = len(kernel)
        pad[4 - 2 * axis] = pad[5 - 2 * axis] = reach
        channels = F.conv3d(F.pad(channels, pad, mode="replicate"), kernel.view(1, 1, *width))
    return channels[:, 0].unflatten(0, field.shape[:2])


def taper(velocity: Tensor, shape: Sequence[int], margin: float = TAPER_MARGIN) -> Tensor:
    """Let a velocity field fade to zero towards the border of its field of view.

    A map that stays in the field of view joins the identity outside it, which is what readers of a displacement field
    assume there; without this the transform would tear, and fold, along the border.

    Parameters
    ----------
    velocity : Tensor, shape (B, 3, I, J, K)
        Voxels per unit time.
    shape : sequence of int
        Size of the full-size grid over the same field of view.
    margin : float, default=4
        Depth over which the field fades, in voxels of the full-size grid.

    Returns
    -------
    Tensor, shape (B, 3, I, J, K)
    """
    for axis, (n, full) in enumerate(zip(velocity.shape[2:], shape, strict=True)):
        centre = torch.arange(n, device=velocity.device) + 0.5
        depth = torch.minimum(centre, n - centre) * full / n
        ramp = (depth / margin).clamp(max=1.0)
        velocity = velocity * ramp.view([-1 if a == axis + 2 else 1 for a in range(5)])
    return velocity


def downsample(image: Tensor) -> Tensor:
    """Halve an image by averaging blocks of 2 x 2 x 2 voxels (the anti-aliased trilinear half).

    Parameters
    ----------
    image : Tensor, shape (B, C, I, J, K)
        An odd size keeps its last voxel by averaging what there is of the block.

    Returns
    -------
    Tensor, shape (B, C, ceil(I/2), ceil(J/2), ceil(K/2))
    """
    return F.avg_pool3d(image, 2, ceil_mode=True, count_include_pad=False)


def fold(image: Tensor) -> Tensor:
    """Fold blocks of 2 x 2 x 2 voxels into channels.

    Parameters
    ----------
    image : Tensor, shape (B, C, I, J, K)
        An odd size is filled up by repeating the border.

    Returns
    -------
    Tensor, shape (B, 8 C, ceil(I/2), ceil(J/2), ceil(K/2))
    """
    odd = [n % 2 for n in image.shape[:1:-1]]  # the last axis first, as padding wants it
    if any(odd):
        image = F.pad(image, [side for n in odd for side in (0, n)], mode="replicate")
    for dim in (2, 4, 6):
        image = image.unflatten(dim, (-1, 2))
    return image.permute(0, 1, 3, 5, 7, 2, 4, 6).flatten(1, 4)  # (B, C, i, 2, j, 2, k, 2) -> (B, C 8, i, j, k)


def gradient(field: Tensor) -> Tensor:
    """Return forward differences of a field along the three axes, zero behind the last voxel.

    Parameters
    ----------
    field : Tensor, shape (B, C, I, J, K)

    Returns
    -------
    Tensor, shape (B, C, 3, I, J, K)
        Difference per voxel; the last axis before the grid is the direction.
    """
    return torch.stack([F.pad(field.diff(dim=d), [0, 0] * (4 - d) + [0, 1]) for d in (2, 3, 4)], dim=2)


def jacobian_determinant(displacement: Tensor) -> Tensor:
    """Return the Jacobian determinant of ``x + u(x)`` by central differences, one-sided at the border.

    Parameters
    ----------
    displacement : Tensor, shape (B, 3, I, J, K)
        Voxels; every axis has at least 2 voxels.

    Returns
    -------
    Tensor, shape (B, I, J, K)
        Volume change; a value <= 0 is a fold.

    References
    ----------
    Paper section 4.3.
    """
    position = displacement.float() + voxel_grid(displacement.shape[2:], displacement.device)
    rows = [torch.gradient(position[:, c], dim=(1, 2, 3)) for c in range(3)]
    return determinant(*rows)


def ndv(displacement: Tensor) -> Tensor:
    """Return the non-diffeomorphic volume of every grid cell.

    Each cell of 2 x 2 x 2 voxels is cut into five tetrahedra in its two possible ways; the volume that inverted
    tetrahedra take up, averaged over the two ways, is what no choice of finite differences can hide. A field is
    called fold-free only when this is zero everywhere.

    Parameters
    ----------
    displacement : Tensor, shape (B, 3, I, J, K)
        Voxels.

    Returns
    -------
    Tensor, shape (B, I-1, J-1, K-1)
        Inverted volume per cell, in voxels.

    References
    ----------
    Liu et al., "On finite difference Jacobian computation in deformable image registration", IJCV 2024.
    """
    return cell_volumes(displacement)[0]


def cell_volumes(displacement: Tensor) -> tuple[Tensor, Tensor]:
    """Return how much of every grid cell is inverted, and its smallest Jacobian determinant.

    Parameters
    ----------
    displacement : Tensor, shape (B, 3, I, J, K)
        Voxels.

    Returns
    -------
    inverted : Tensor, shape (B, I-1, J-1, K-1)
        Non-diffeomorphic volume in voxels; see :func:`ndv`.
    smallest : Tensor, shape (B, I-1, J-1, K-1)
        Volume of the cell's smallest tetrahedron relative to its volume before: the least of the ten determinants
        that finite differences give; the cell is fold-free when it is positive.
    """
    position = displacement.float() + voxel_grid(displacement.shape[2:], displacement.device)
    planes, rows = position.shape[2] - 1, position.shape[3] - 1
    depth, height = planes, rows
    if position.device.type == "cpu":
        depth, height = _BLOCK_PLANES, max(1, _BLOCK_CELLS // (_BLOCK_PLANES * position.shape[4]))
    inverted = position.new_empty(len(position), planes, rows, position.shape[4] - 1)
    smallest = torch.empty_like(inverted)
    for i, j in product(range(0, planes, depth), range(0, rows, height)):
        block = _block_volumes(position[:, :, i : i + depth + 1, j : j + height + 1])
        part = (slice(None), slice(i, i + depth), slice(j, j + height))
        inverted[part], smallest[part] = block
    return inverted, smallest


def _quarter(field: Tensor, dim: int, side: int) -> Tensor:
    """Return a field a quarter of a voxel before (side 0) or behind (side 1) every voxel, linearly interpolated."""
    inner = field.shape[dim] - 1
    border, neighbours = field.narrow(dim, side * inner, 1), field.narrow(dim, side, inner)
    return field.lerp(torch.cat([neighbours, border] if side else [border, neighbours], dim), 0.25)


def _grid_sample(image: Tensor, position: Tensor, mode: str) -> Tensor:
    """Sample at normalized positions; on a CPU, where only batches run in parallel, in as many slabs as threads."""
    slabs = torch.get_num_threads() if image.device.type == "cpu" and len(image) == 1 else 1
    rows = position.shape[1:3]
    if slabs == 1 or math.prod(rows) % slabs:
        return F.grid_sample(image, position, mode=mode, padding_mode="border", align_corners=True)
    parts = position[0].view(slabs, 1, -1, *position.shape[3:])  # (1, I, J, K, 3) -> (slabs, 1, I J / slabs, K, 3)
    sampled = F.grid_sample(
        image.expand(slabs, *image.shape[1:]), parts, mode=mode, padding_mode="border", align_corners=True
    )
    return sampled.movedim(0, 1).flatten(1, 3).unflatten(1, rows)[None]


def _block_volumes(position: Tensor) -> tuple[Tensor, Tensor]:
    """Return `cell_volumes` of a block of positions, shape (B, 3, I, J, K)."""
    components = position.unbind(1)
    x, y, z = ([c.diff(dim=d) for c in components] for d in (1, 2, 3))
    ends = slice(None, -1), slice(1, None)
    y_ends = [[c[..., end] for c in y] for end in ends]
    z_ends = [[c[..., end, :] for c in z] for end in ends]
    crosses = {(j, k): _cross(y_ends[k], z_ends[j]) for j, k in product((0, 1), repeat=2)}
    determinants = []
    for i, j, k in product((0, 1), repeat=3):  # the tetrahedron at each corner, spanned by its three edges
        determinants.append(_dot([c[:, :, ends[j], ends[k]] for c in x], [c[:, ends[i]] for c in crosses[j, k]]))
    corner = {(i, j, k): [c[:, ends[i], ends[j], ends[k]] for c in components] for i, j, k in product((0, 1), repeat=3)}
    for apex, others in (
        ((0, 0, 0), ((0, 1, 1), (1, 0, 1), (1, 1, 0))),
        ((1, 1, 1), ((1, 0, 0), (0, 1, 0), (0, 0, 1))),
    ):  # the middle tetrahedron of either way
        sides = [[a - b for a, b in zip(corner[bits], corner[apex], strict=True)] for bits in others]
        determinants.append(determinant(*sides) * (-1 if apex == (1, 1, 1) else 1))
    smallest = torch.minimum(determinants[8], determinants[9]) / 2  # twice a corner's, before the deformation
    for volume in determinants[:8]:
        smallest = torch.minimum(smallest, volume)
    inverted = torch.zeros_like(smallest)
    if not smallest.min() >= 0:  # true of a NaN as well
        inverted = sum(((-volume).clamp(min=0) / 6 for volume in determinants), inverted) / 2
    return inverted, smallest


def _cross(a: Sequence[Tensor], b: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    return a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]


def _dot(a: Sequence[Tensor], b: Sequence[Tensor]) -> Tensor:
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]


def determinant(a: Sequence[Tensor], b: Sequence[Tensor], c: Sequence[Tensor]) -> Tensor:
    """Return the determinant of 3 x 3 matrices, each row given as its three components."""
    return _dot(a, _cross(b, c))
