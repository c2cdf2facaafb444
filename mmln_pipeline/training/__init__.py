"""Training of MMLN on a researcher's own brains: ``mmln train CONFIG.toml``."""

from mmln_pipeline.training.loop import train

__all__ = ["train"]
