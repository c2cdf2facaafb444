"""From velocities to displacements, and to the displacement of the inverse."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mmln_pipeline.fields.scales import resize_field, smooth
from mmln_pipeline.fields.warping import compose

SQUARING_STEPS = 7
TAPER_MARGIN = 4.0


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
        off = compose(displacement, inverse)  # smoothed one component at a time: all at once take thrice the memory
        inverse = inverse - torch.cat([smooth(part, sigma) for part in off.split(1, dim=1)], dim=1)
    return inverse


def taper(velocity: Tensor, shape: Sequence[int], margin: float = TAPER_MARGIN) -> Tensor:
    """Let a velocity field fade to zero towards the border of its field of view.

    A map that stays in the field of view joins the identity outside it, which is what readers of a displacement field
    assume there; without this the transform would tear, and fold, along the border. The outermost voxels stand still.

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
        index = torch.arange(n, device=velocity.device)
        depth = torch.minimum(index, n - 1 - index) * full / n
        ramp = (depth / margin).clamp(max=1.0)
        velocity = velocity * ramp.view([-1 if a == axis + 2 else 1 for a in range(5)])
    return velocity
