"""LapIRN and its conditional form (CIR-DM): three levels, each registers what the level below it left.

Written anew from the papers and from the names and shapes of the official weights, which it loads and reproduces. What
differs from MMLN's own pyramid (`mmln_pipeline.network.model`) are the conventions, which the weights depend on:

- Fields are in the units of ``grid_sample``, -1 to 1 from the first voxel's centre to the last one's, the last array
  axis first, and softsign bounds a level's part of them by 0.4: how far a level reaches grows with the grid.
- Images are halved by averages of 3 x 3 x 3 voxels round every second one; fields are doubled over the same field of
  view. The two disagree on where a coarse voxel lies.
- The pair is stacked moving first.

References: Mok and Chung, Large deformation diffeomorphic image registration with Laplacian pyramid networks, MICCAI
2020; Mok and Chung, Conditional deformable image registration with convolutional neural network, MICCAI 2021.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmln_pipeline.fields.integration import exponentiate
from mmln_pipeline.fields.warping import warp

LEVELS = 3
RANGE = 0.4
"""Bound of a level's own field, in units of the grid."""
CODE = 64
"""Width of the code that a smoothness becomes."""
SLOPE = 0.2
"""Of the leaky rectifiers."""


@dataclass(frozen=True)
class LapIRNConfig:
    """Shape of the network.

    Parameters
    ----------
    encoder : int, default=28
        Channels at a level's full size.
    features : int, default=28
        Channels at half of it.
    diffeomorphic : bool, default=True
        Whether levels add velocities, which are integrated, or displacements.
    conditional : bool, default=False
        Whether the smoothness is an input.
    """

    encoder: int = 28
    features: int = 28
    diffeomorphic: bool = True
    conditional: bool = False


class LevelField(NamedTuple):
    """Where the registration stands behind a level, on the level's grid and in its units.

    Attributes
    ----------
    sum : Tensor, shape (B, 3, i, j, k)
        Velocities or displacements of all levels so far.
    displacement : Tensor, shape (B, 3, i, j, k)
    features : Tensor, shape (B, C, i, j, k)
        What the next level adds to its own.
    """

    sum: Tensor
    displacement: Tensor
    features: Tensor


class LapIRN(nn.Module):
    """Laplacian pyramid registration network, three levels.

    Parameters
    ----------
    config : LapIRNConfig, optional
    """

    def __init__(self, config: LapIRNConfig | None = None) -> None:
        super().__init__()
        self.config = config or LapIRNConfig()
        self.levels = nn.ModuleList(_Level(self.config, level) for level in range(1, LEVELS + 1))

    def forward(self, fixed: Tensor, moving: Tensor, smoothness: Tensor | None = None) -> Tensor:
        """Return the displacement that aligns `moving` with `fixed`.

        Parameters
        ----------
        fixed, moving : Tensor, shape (B, 1, I, J, K)
            Images in [0, 1]; each size a multiple of 8.
        smoothness : Tensor, shape (B, 1), optional
            0 to 1, for a conditional network.

        Returns
        -------
        Tensor, shape (B, 3, I, J, K)
            Voxels, components in array-axis order.
        """
        return to_voxels(self.run(fixed, moving, smoothness)[-1].displacement)

    def run(
        self, fixed: Tensor, moving: Tensor, smoothness: Tensor | None = None, finest: int = LEVELS
    ) -> list[LevelField]:
        """Run the levels up to one, coarse to fine; :meth:`forward` tells the parameters."""
        pairs = pyramid(torch.cat([moving, fixed], 1))
        fields: list[LevelField] = []
        for level, pair in zip(range(finest), pairs, strict=False):
            subnet = cast(_Level, self.levels[level])
            fields.append(self._run_level(subnet, pair, fields[-1] if fields else None, smoothness))
        return fields

    def _run_level(
        self, subnet: _Level, pair: Tensor, before: LevelField | None, smoothness: Tensor | None
    ) -> LevelField:
        if before is None:
            total, features = subnet(pair, None, smoothness)
        else:
            known, displacement = _double(before.sum), _double(before.displacement)
            moved = warp(pair[:, :1], to_voxels(displacement))
            residual, features = subnet(torch.cat([moved, pair[:, 1:], known], 1), before.features, smoothness)
            total = known + residual
        if not self.config.diffeomorphic:
            return LevelField(total, total, features)
        return LevelField(total, _to_units(exponentiate(to_voxels(total))), features)


def pyramid(images: Tensor) -> list[Tensor]:
    """Return images, shape (B, C, I, J, K), at a quarter, half and all of their size."""
    sizes = [images]
    for _ in range(LEVELS - 1):
        sizes.append(F.avg_pool3d(sizes[-1], 3, stride=2, padding=1, count_include_pad=False))
    return sizes[::-1]


def to_voxels(field: Tensor) -> Tensor:
    """Turn a field, shape (B, 3, I, J, K), from the grid's units, last axis first, to voxels in array-axis order."""
    return field.flip(1) * _half_sizes(field)


def _to_units(field: Tensor) -> Tensor:
    return (field / _half_sizes(field)).flip(1)


def _half_sizes(field: Tensor) -> Tensor:
    return torch.tensor([(n - 1) / 2 for n in field.shape[2:]], device=field.device).view(1, 3, 1, 1, 1)


def _double(field: Tensor) -> Tensor:
    return F.interpolate(field, scale_factor=2, mode="trilinear", align_corners=False)


class _Level(nn.Module):
    """The subnet of one level, from 1 (coarsest): its own field, and the features that it hands on."""

    def __init__(self, config: LapIRNConfig, level: int) -> None:
        super().__init__()
        wide, deep = config.encoder, config.features
        raised = wide if level == LEVELS else deep  # nobody takes the finest level's
        self.encode = nn.Sequential(_conv(2 if level == 1 else 5, wide), nn.LeakyReLU(SLOPE), _conv(wide, wide))
        self.down = _conv(wide, deep, stride=2)
        block = _ConditionalBlock if config.conditional else _Block
        self.blocks = nn.ModuleList(block(deep) for _ in range(5))
        self.up = nn.ConvTranspose3d(deep, raised, 2, stride=2, bias=False)
        hidden = (wide + raised) // 2
        self.decode = nn.Sequential(_conv(wide + raised, hidden), nn.LeakyReLU(SLOPE), _conv(hidden, 3))

    def forward(self, x: Tensor, carried: Tensor | None, smoothness: Tensor | None) -> tuple[Tensor, Tensor]:
        skip = self.encode(x)
        y = self.down(skip)
        if carried is not None:
            y = y + carried
        for block in self.blocks:
            y = F.leaky_relu(block(y, smoothness), SLOPE)
        y = self.up(y)
        with torch.autocast(x.device.type, enabled=False):
            field = RANGE * F.softsign(self.decode(torch.cat([y, skip], 1).float()))
        return field, y


class _Block(nn.Module):
    """A residual block, rectified before its convolutions."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1, self.conv2 = _conv(channels, channels), _conv(channels, channels)

    def forward(self, x: Tensor, smoothness: Tensor | None = None) -> Tensor:
        y = self.conv1(F.leaky_relu(x, SLOPE))
        return x + self.conv2(F.leaky_relu(y, SLOPE))


class _ConditionalBlock(_Block):
    """The same, with instance normalisations whose scale and shift follow from the smoothness."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.norm1, self.norm2 = _ConditionalNorm(channels), _ConditionalNorm(channels)
        layers = [layer for width in (1, CODE, CODE, CODE) for layer in (nn.Linear(width, CODE), nn.LeakyReLU(SLOPE))]
        self.mapping = nn.Sequential(*layers)

    def forward(self, x: Tensor, smoothness: Tensor | None = None) -> Tensor:
        code = self.mapping(smoothness)
        y = self.conv1(F.leaky_relu(self.norm1(x, code), SLOPE))
        return x + self.conv2(F.leaky_relu(self.norm2(y, code), SLOPE))


class _ConditionalNorm(nn.Module):
    """Instance normalisation with a scale, less one, and a shift that a code gives."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.style = nn.Linear(CODE, 2 * channels)
        with torch.no_grad():
            self.style.bias.copy_(torch.cat([torch.ones(channels), torch.zeros(channels)]))

    def forward(self, x: Tensor, code: Tensor) -> Tensor:
        scale, shift = self.style(code)[..., None, None, None].chunk(2, 1)
        return (1 + scale) * F.instance_norm(x) + shift


def _conv(inputs: int, outputs: int, stride: int = 1) -> nn.Conv3d:
    return nn.Conv3d(inputs, outputs, 3, stride=stride, padding=1, bias=False)


_OFFICIAL = (
    (r"^model_lvl2\.model_lvl1\.", "levels.0."),
    (r"^model_lvl2\.", "levels.1."),
    (r"^(?!levels\.)", "levels.2."),
    (r"input_encoder_lvl1", "encode"),
    (r"down_conv", "down"),
    (r"output_lvl1", "decode"),
    (r"resblock_group_lvl1\.(\d+)", lambda found: f"blocks.{int(found[1]) // 2}"),  # rectifiers stand between them
    (r"\.ai([12])\.", r".norm\1."),
)
"""Names in the official weights, and here."""


def from_official(state: Mapping[str, Tensor], diffeomorphic: bool) -> LapIRN:
    """Make a network of the official weights; their shapes tell its own.

    Parameters
    ----------
    state : mapping of str to Tensor
        The state dict of the third level.
    diffeomorphic : bool
        Which of the two the weights are cannot be read off them.

    Returns
    -------
    LapIRN
        In evaluation mode.

    Raises
    ------
    ValueError
        When these are not such weights.
    """
    tensors = {}
    for name, tensor in state.items():
        for pattern, ours in _OFFICIAL:
            name = re.sub(pattern, ours, name)
        tensors[name] = tensor
    down = tensors.get("levels.0.down.weight")
    if down is None:
        raise ValueError("expected the official weights of LapIRN's third level, found no 'model_lvl2.model_lvl1'")
    is_conditional = "levels.0.blocks.0.mapping.0.weight" in tensors
    network = LapIRN(LapIRNConfig(down.shape[1], down.shape[0], diffeomorphic, is_conditional))
    try:
        network.load_state_dict(tensors)
    except RuntimeError as error:
        raise ValueError(f"expected the official weights of LapIRN: {str(error).splitlines()[1].strip()}") from error
    return network.eval()
