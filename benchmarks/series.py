"""Time a 4-D series through a transform: `mmln apply` beside ANTs' `apply_transforms`, each in a process of its own.

The series is noise on a grid of 2 mm, the transform an affine and a smooth warp. Reading and writing count for both;
both use one thread. ANTs holds the whole series, several times over: `--ants-volumes` gives it fewer, and its seconds
are told for as many as ours.

Example: python benchmarks/series.py --volumes 500 --ants-volumes 100 --output benchmarks/results
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
from nibabel.affines import from_matvec
from scipy.ndimage import gaussian_filter
from speed import PROGRAM, measure

from mmln_pipeline.machine.files import write_text
from mmln_pipeline.space.displacements import DisplacementField
from mmln_pipeline.space.transforms import Transform

SHAPE, SPACING = (97, 115, 97), 2.0
ANTS = """
import sys, ants
series, fixed = ants.image_read(sys.argv[1]), ants.image_read(sys.argv[2])
moved = ants.apply_transforms(fixed, series, [sys.argv[3]], interpolator="linear", imagetype=3)
ants.image_write(moved, sys.argv[4])
"""


def write_inputs(folder: Path, n_volumes: int) -> None:
    """Write a series, a reference and a transform; the series volume by volume."""
    rng = np.random.default_rng(0)
    affine = from_matvec(np.diag([SPACING] * 3), [-96.0, -132.0, -78.0])
    nib.save(nib.Nifti1Image(rng.random(SHAPE, dtype=np.float32), affine), folder / "reference.nii")
    series = nib.Nifti1Image(np.broadcast_to(np.float32(0), (*SHAPE, n_volumes)), affine)
    series.header["magic"], series.header["vox_offset"] = b"n+1", 352
    with (folder / "series.nii").open("wb") as file:
        file.write(series.header.binaryblock + bytes(4))
        for _ in range(n_volumes):
            file.write(rng.random(SHAPE[::-1], dtype=np.float32))
    offsets = np.stack([gaussian_filter(rng.normal(size=SHAPE), 8) for _ in range(3)], axis=-1)
    turn = from_matvec(np.eye(3) + 0.02 * rng.normal(size=(3, 3)), [3.0, -2.0, 1.0])
    Transform([DisplacementField(4 * offsets / offsets.std(), affine), turn]).save(folder / "xfm.h5")


def main() -> None:
    """Measure both and write a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--volumes", type=int, default=500)
    parser.add_argument("--ants-volumes", type=int, help="default: as many")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results"))
    options = parser.parse_args()
    counts = {"mmln apply": options.volumes, "ANTs (antspyx)": options.ants_volumes or options.volumes}
    rows = []
    for name, n_volumes in counts.items():
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch)
            write_inputs(folder, n_volumes)
            files = [str(folder / f) for f in ("series.nii", "reference.nii", "xfm.h5", "moved.nii")]
            ours = ["apply", "-t", files[2], "-r", files[1], "-o", files[3], files[0]]
            command = [sys.executable, "-c", PROGRAM, *ours] if name.startswith("mmln") else [
                sys.executable, "-c", ANTS, *files
            ]  # fmt: skip
            rows.append({"tool": name, "volumes": n_volumes} | measure(command, 1))
    table = pd.DataFrame(rows)
    for kind in ("seconds", "cpu_seconds"):
        table[f"{kind}_all"] = table[kind] * options.volumes / table["volumes"]
    write_text(options.output / "series.tsv", table.round(1).to_csv(sep="\t", index=False))
    print(table.round(1).to_string(index=False))


if __name__ == "__main__":
    main()
