"""``mmln convert``: transforms from one tool's files to another's."""

from __future__ import annotations

import argparse
from pathlib import Path


def run_convert(options: argparse.Namespace) -> None:
    """Read one transform, or a chain, and write it as another tool has it."""
    from mmln_pipeline.images.volumes import load_image
    from mmln_pipeline.machine.files import is_same_file
    from mmln_pipeline.space.other_tools import SUFFIXES, read_any, write_as
    from mmln_pipeline.space.transforms import read_chain, split_name

    output = Path(options.output)
    read = [("transform", split_name(name)[0]) for name in options.transform]
    for name, given in [*read, ("fixed image", options.fixed), ("moving image", options.moving)]:
        if is_same_file(output, given):
            raise ValueError(f"--output: '{output}' is the {name} itself; give another name.")
    own = next((kind for kind in ("freesurfer", "x5") if output.name.endswith(SUFFIXES[kind])), "itk")
    fixed, moving = (load_image(getattr(options, name), f"{name} image") for name in ("fixed", "moving"))
    transform = read_chain(options.transform, lambda path: read_any(path, fixed, moving))
    write_as(options.to or own, transform, output, fixed, moving)
    print(f"Written to {output}")
