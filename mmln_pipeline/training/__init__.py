"""Training of MMLN on a researcher's own brains: ``mmln train CONFIG.toml``."""

from __future__ import annotations

from pathlib import Path

__all__ = ["train"]


def train(config_path: str | Path, minutes: float | None = None, device: str = "auto", resume: bool = True) -> Path:
    """Train a network from a configuration, stage after stage; see :func:`mmln_pipeline.training.loop.train`."""
    from mmln_pipeline.training import loop  # Lightning, which who only packs need not load

    return loop.train(config_path, minutes, device, resume)
