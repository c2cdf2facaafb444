"""Score bundled models on aligned pairs beside the rows that peers reached: a TSV and a markdown table.

The bench folder holds ``pairs.tsv`` (columns moving, fixed), ``aligned/ID_T1w.nii.gz`` and ``ID_dseg.nii.gz`` on the
160 x 192 x 224 grid with Neuromorphometrics labels, and optionally ``peers_mean.tsv``.

Example: python benchmarks/accuracy.py ../shared/bench --output benchmarks/results
"""

from __future__ import annotations

import argparse
import platform
import statistics
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import torch

from mmln_pipeline import register
from mmln_pipeline.files import write_text
from mmln_pipeline.metrics import dice

CORTEX = range(100, 208)
"""Cortical labels of the Neuromorphometrics protocol."""


def score_pair(bench: Path, fixed: str, moving: str, model: str, refine: int | str) -> dict[str, object]:
    """Register one pair and return its row of scores."""
    paths = {
        f"{role}{kind}": bench / "aligned" / f"{name}_{suffix}.nii.gz"
        for role, name in (("fixed", fixed), ("moving", moving))
        for kind, suffix in (("", "T1w"), ("_dseg", "dseg"))
    }
    result = register(**paths, init="identity", labels="structures28", model=model, refine=refine, device="cpu")
    scores = result.metrics
    fixed_labels = np.asarray(nib.load(paths["fixed_dseg"]).dataobj)
    cortex = dice(fixed_labels, np.asarray(result.moved_dseg.dataobj), list(CORTEX))
    return {
        "method": f"{model}, refined ({refine})" if refine else f"{model}, network only",
        "moving": moving,
        "fixed": fixed,
        "dice28": scores["dice"],
        "dice_cortex": statistics.fmean(cortex.values()),
        "folds_brain_percent": scores["folding_percent_brain"],
        "folds_all_percent": scores["folding_percent"],
        "ndv_percent": scores["ndv_percent"],
        "sdlogj": scores["sdlogj"],
        "tc": scores["tc"],
        "hd95_mm": scores["hd95_mm"],
        "seconds": sum(
            scores["seconds"][stage] for stage in ("network", "refine", "topology") if scores["seconds"][stage]
        ),
        "peak_memory_mb": scores["peak_memory_mb"],
    }


def summarize(rows: pd.DataFrame, peers: Path) -> pd.DataFrame:
    """Return the mean scores (median seconds) of each method, the peers' rows first."""
    means = rows.groupby("method", sort=False).mean(numeric_only=True)
    means["seconds"] = rows.groupby("method")["seconds"].median()
    table = means.reset_index()
    if peers.is_file():
        table = pd.concat([pd.read_csv(peers, sep="\t"), table])
    return table.sort_values("dice28").reset_index(drop=True)


def to_markdown(table: pd.DataFrame) -> str:
    """Return a table in markdown, numbers rounded to four digits, with a line on the machine."""
    lines = ["| " + " | ".join(table.columns) + " |", "|" + "---|" * len(table.columns)]
    for row in table.itertuples(index=False):
        cells = (("" if pd.isna(v) else f"{v:.4f}") if isinstance(v, float) else str(v) for v in row)
        lines.append("| " + " | ".join(cells) + " |")
    machine = f"{platform.machine()}, {torch.get_num_threads()} threads, PyTorch {torch.__version__}"
    return "\n".join(
        [*lines, "", f"Our rows: this run, {machine}; seconds are of the registration alone (median).", ""]
    )


def main() -> None:
    """Run the benchmark from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bench", type=Path, help="bench folder")
    parser.add_argument("--model", nargs="+", default=["mmln"], help="bundled names or weights files")
    parser.add_argument("--refine", nargs="+", default=["0", "auto"], help="refinements to score")
    parser.add_argument("--output", type=Path, required=True, help="folder of accuracy_pairs.tsv, accuracy.tsv and .md")
    options = parser.parse_args()
    pairs = pd.read_csv(options.bench / "pairs.tsv", sep="\t", dtype=str)
    rows = []
    for model in options.model:
        for refine in options.refine:
            for pair in pairs.itertuples():
                rows.append(
                    score_pair(
                        options.bench,
                        pair.fixed,
                        pair.moving,
                        model,
                        refine if refine == "auto" else int(refine),
                    )
                )
                print(rows[-1], flush=True)
    frame = pd.DataFrame(rows)
    table = summarize(frame, options.bench / "peers_mean.tsv")
    write_text(options.output / "accuracy_pairs.tsv", frame.to_csv(sep="\t", index=False, float_format="%.5f"))
    write_text(options.output / "accuracy.tsv", table.to_csv(sep="\t", index=False, float_format="%.5f"))
    write_text(options.output / "accuracy.md", to_markdown(table))
    print(to_markdown(table))


if __name__ == "__main__":
    main()
