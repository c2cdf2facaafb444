"""What the peers with one network have in common: options of learning, weights, and the way from images to a field."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from nibabel import Nifti1Image

from mmln_pipeline.study.methods.base import Budget, Displacement, LearnedMethod
from mmln_pipeline.study.methods.frames import Frame
from mmln_pipeline.training.config import DataConfig, LossConfig, OptimizationConfig

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True)
class LearnedSettings:
    """Options of all peers with a network.

    Parameters
    ----------
    model : str
        Weights file, ``.safetensors`` with its card, or official weights where the method knows such; empty to train.
    smoothing : float
        Weight of the mean squared gradient of what the network predicts, in voxel units
        (`mmln_pipeline.network.losses.smoothness_loss`).
    learning_rate, schedule, batch_size, averaging
        See `mmln_pipeline.training.config.OptimizationConfig`.
    """

    model: str = ""
    smoothing: float = 1.0
    learning_rate: float = 1e-4
    schedule: str = "cosine"
    batch_size: int = 1
    averaging: float = 0.98

    def __post_init__(self) -> None:
        _ = self.optimization
        if self.smoothing < 0:
            raise ValueError(f"smoothing: expected a number of at least 0, found {self.smoothing}")

    @property
    def optimization(self) -> OptimizationConfig:
        """How the weights move."""
        return OptimizationConfig(self.learning_rate, self.schedule, self.batch_size, self.averaging)

    @property
    def shape(self) -> dict[str, Any]:
        """What the network is built from and taught with: all options but the weights and how they move."""
        how = {"model", "learning_rate", "schedule", "batch_size", "averaging"}
        return {name: value for name, value in asdict(self).items() if name not in how}


@dataclass(frozen=True)
class PairSettings(LearnedSettings):
    """Options of peers that learn from one pair and one field, without levels.

    Parameters
    ----------
    similarity : {"local", "global", "local+global"}
    window : int
        Edge of the local similarity's window, voxels.
    diffeomorphic : bool
        Whether the network predicts a velocity, which is integrated, or the displacement itself.
    """

    similarity: str = "local"
    window: int = 9
    diffeomorphic: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        LossConfig(similarity=self.similarity, window=self.window)


class NetworkMethod(LearnedMethod):
    """A peer with a network.

    Attributes
    ----------
    phases : sequence of float
        Shares of the budget that the phases of its learning have.
    """

    settings: LearnedSettings
    phases: ClassVar[Sequence[float]] = (1.0,)
    _network: nn.Module | None = None

    @abstractmethod
    def build(self, grid: Sequence[int]) -> nn.Module:
        """Make the untrained network for images of a size."""

    @abstractmethod
    def losses(
        self, network: nn.Module, phase: int, done: float, fixed: Tensor, moving: Tensor, generator: np.random.Generator
    ) -> dict[str, Tensor]:
        """Return the loss of a pair, ``loss``, and its parts; see `mmln_pipeline.study.learning.Trainee`."""

    @abstractmethod
    def predict(self, network: nn.Module, fixed: Tensor, moving: Tensor) -> Tensor:
        """Return the displacement of a pair, shape (1, 3, I, J, K), voxels."""

    def taught(self, network: nn.Module, phase: int) -> list[nn.Parameter]:
        """Return the weights that a phase moves: all."""
        return list(network.parameters())

    @property
    def model(self) -> Path:
        """The weights file."""
        return self.surroundings.root / self.settings.model

    @property
    def provenance(self) -> str:
        """Weights from where, trained on what, for how long."""
        if not self.is_trained:
            return "not trained yet"
        from mmln_pipeline.study.learning import describe, read_card

        return describe(read_card(self.model))

    def check(self) -> None:
        """Check the weights, if any, and the device."""
        from mmln_pipeline.machine.devices import resolve_device
        from mmln_pipeline.study.learning import read_card

        resolve_device(self.surroundings.device)
        if self.is_trained:
            name = read_card(self.model)["name"]
            if name != self.name:
                raise ValueError(f"model: {self.model} holds weights of {name!r}, expected those of {self.name!r}")

    def load(self) -> nn.Module:
        """Make the network of the weights; their card, not the row, tells its shape."""
        from mmln_pipeline.machine.toml import to_dataclass
        from mmln_pipeline.study.learning import read_card, read_weights

        card = read_card(self.model)
        settings = to_dataclass(self.Settings, card["options"], f"model card {self.model.with_suffix('.json')}")
        network = type(self)(settings, self.surroundings).build(card["grid"])
        network.load_state_dict(read_weights(self.model))
        return network

    def frame(self, fixed: Nifti1Image) -> Frame:
        """Return the frame in which the network wants a pair: as it comes."""
        return Frame.of(fixed)

    def displacement(self, fixed: Nifti1Image, moving: Nifti1Image) -> Displacement:
        """Run the network; it is loaded with the first pair."""
        import torch

        from mmln_pipeline.machine.devices import kept_memory, resolve_device, set_threads

        if not self.is_trained:
            raise ValueError(f"{self.name}: expected option 'model', or weights from training, found neither")
        device = resolve_device(self.surroundings.device)
        set_threads(self.surroundings.threads)
        if self._network is None:
            self._network = self.load().eval().to(device)
        frame = self.frame(fixed)
        images = [torch.from_numpy(_min_max(frame.view(image)))[None, None].to(device) for image in (fixed, moving)]
        with kept_memory(), torch.inference_mode():  # in float32, as the peers' authors run them
            found = self.predict(self._network, images[0], images[1])
        return frame.restore(found[0].float().cpu().numpy())

    def train(self, data: DataConfig, budget: Budget, output_dir: Path) -> Path:
        """Train from scratch, or go on; see `mmln_pipeline.study.learning.learn`."""
        from mmln_pipeline.machine.devices import set_threads
        from mmln_pipeline.study.learning import learn

        set_threads(self.surroundings.threads)
        s = self.settings
        return learn(self, s.shape, s.optimization, data, budget, output_dir, self.surroundings)


class PairMethod(NetworkMethod):
    """A peer whose network predicts one field, in voxels, from the stacked pair: ``network(cat(moving, fixed))``."""

    settings: PairSettings
    multiple: ClassVar[int] = 32
    """What the sizes of the network's grid have to be multiples of."""

    def predict(self, network: nn.Module, fixed: Tensor, moving: Tensor) -> Tensor:
        """Run the network, and integrate where it predicts a velocity."""
        return self._integrated(self._field(network, fixed, moving))

    def _field(self, network: nn.Module, fixed: Tensor, moving: Tensor) -> Tensor:
        """Run the network on the pair, filled up with background to sizes that it can halve."""
        import torch
        import torch.nn.functional as F

        grid = fixed.shape[2:]
        padding = [side for n in reversed(grid) for side in (0, -n % self.multiple)]
        field: Tensor = network(F.pad(torch.cat([moving, fixed], 1), padding))
        return field[:, :, : grid[0], : grid[1], : grid[2]].float()

    def _integrated(self, field: Tensor) -> Tensor:
        from mmln_pipeline.fields.integration import exponentiate

        return exponentiate(field) if self.settings.diffeomorphic else field

    def losses(
        self, network: nn.Module, phase: int, done: float, fixed: Tensor, moving: Tensor, generator: np.random.Generator
    ) -> dict[str, Tensor]:
        """Return similarity of the moved image and smoothness of the field."""
        from mmln_pipeline.fields.warping import warp
        from mmln_pipeline.network.losses import similarity_loss, smoothness_loss

        s = self.settings
        field = self._field(network, fixed, moving)
        similarity = similarity_loss(fixed, warp(moving, self._integrated(field)), s.similarity, s.window)
        smoothness = smoothness_loss(field)
        return {"loss": similarity + s.smoothing * smoothness, "similarity": similarity, "smoothness": smoothness}


def _min_max(image: np.ndarray) -> np.ndarray:
    """Scale an image to [0, 1]."""
    low, high = image.min(), image.max()
    return (image - low) / max(high - low, 1e-6)
