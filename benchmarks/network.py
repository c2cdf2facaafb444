"""Time the network alone beside LapIRN's official one in float32, as PyTorch runs it, on one pair, alternately.

Both see the whole grid. What a CPU without AVX-512 takes: `ONEDNN_MAX_CPU_ISA=AVX2 ATEN_CPU_CAPABILITY=avx2` in the
environment, and --float32.

Example: python benchmarks/network.py ../shared/bench --threads 2 --repeat 5
"""

from __future__ import annotations

import argparse
import statistics
import time
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from mmln_pipeline.images.volumes import load_image, normalize_intensity
from mmln_pipeline.machine import devices
from mmln_pipeline.network.model import MMLN
from mmln_pipeline.study.networks.laplacian_pyramid import from_official
from mmln_pipeline.weights import load_model


def load_pair(bench: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """Load the first pair, (1, 1, I, J, K) each."""
    ids = pd.read_csv(bench / "pairs.tsv", sep="\t", dtype=str).iloc[0]
    images = [
        np.asanyarray(load_image(bench / "aligned" / f"{ids[role]}_T1w.nii.gz").dataobj, dtype=np.float32)
        for role in ("fixed", "moving")
    ]
    fixed, moving = (torch.from_numpy(normalize_intensity(image))[None, None] for image in images)
    return fixed, moving


def main() -> None:
    """Run the benchmark from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bench", type=Path, help="folder of pairs.tsv, aligned/ID_T1w.nii.gz and weights/")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--float32", action="store_true", help="leave bfloat16 alone, whatever the processor has")
    options = parser.parse_args()
    devices.set_threads(options.threads)
    device = torch.device("cpu")
    ours: MMLN = load_model("mmln")[0]
    pair = load_pair(options.bench)
    state = torch.load(options.bench / "weights" / "LapIRN_diff_fea7.pth", map_location="cpu", weights_only=True)
    lapirn = from_official(state, diffeomorphic=True)
    precision = nullcontext() if options.float32 else devices.autocast(device)

    def run_ours() -> None:
        with precision:
            ours(*pair)

    taken: dict[str, list[float]] = {"mmln": [], "LapIRN": []}
    with torch.no_grad(), devices.kept_memory():
        for _ in range(options.repeat + 1):
            for name, run in (("mmln", run_ours), ("LapIRN", lambda: lapirn(*pair))):
                begin = time.perf_counter()
                run()
                taken[name].append(time.perf_counter() - begin)
    ratios = [ours_s / theirs for ours_s, theirs in zip(*(seconds[1:] for seconds in taken.values()), strict=True)]
    for name, seconds in taken.items():
        print(f"{name}: {statistics.median(seconds[1:]):.2f} s on {tuple(pair[0].shape[2:])} voxels")
    print(f"mmln takes {statistics.median(ratios):.2f} of LapIRN's time ({min(ratios):.2f} to {max(ratios):.2f})")


if __name__ == "__main__":
    main()
