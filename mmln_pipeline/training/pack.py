"""Make the pack of preprocessed training volumes: ``python -m mmln_pipeline.training.pack CONFIG.toml``."""

from __future__ import annotations

import sys
from pathlib import Path

from mmln_pipeline.training.config import load_config
from mmln_pipeline.training.data import build_pack


def main(config_path: str) -> None:
    """Build the pack of a configuration and print its folder and size."""
    folder = build_pack(load_config(config_path).data, Path(config_path).parent)
    size = sum(f.stat().st_size for f in folder.iterdir())
    print(f"{folder}: {len(list(folder.glob('*.npz')))} volumes, {size / 2**20:.0f} MiB")


if __name__ == "__main__":
    main(sys.argv[1])
