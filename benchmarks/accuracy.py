"""Score bundled models on aligned pairs beside the rows that peers reached: tables, and Dice against folds and SDlogJ.

The bench folder holds ``pairs.tsv`` (columns moving, fixed), ``aligned/ID_T1w.nii.gz`` and ``ID_dseg.nii.gz`` on the
160 x 192 x 224 grid with Neuromorphometrics labels, and optionally ``peers_mean.tsv``.

What the committed results were made by:
python benchmarks/accuracy.py ../shared/bench --output benchmarks/results
    --model mmln mmln-semi mmln-paper --refine mmln mmln-semi mmln-paper --volume 0.3 0.6
"""

from __future__ import annotations

import argparse
import itertools
import platform
import statistics
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import matplotlib.pyplot as plt
import nibabel as nib
import numpy as np
import pandas as pd
import torch

from mmln_pipeline import register
from mmln_pipeline.machine.files import atomic_path, write_text
from mmln_pipeline.refinement.parameters import DEFAULTS, RefinementSettings
from mmln_pipeline.scores.metrics import dice

CORTEX = range(100, 208)
"""Cortical labels of the Neuromorphometrics protocol."""
DIGITS = {
    "dice28": 4,
    "dice_cortex": 4,
    "folds_brain_percent": 4,
    "ndv_percent": 4,
    "sdlogj": 3,
    "tc": 3,
    "hd95_mm": 2,
    "seconds": 1,
    "peak_memory_mb": 0,
}
"""Columns of the table in markdown, and their decimals."""
FEWEST_FOLDS = 1e-6
"""Where the figure's logarithmic axis puts fields without a fold, percent."""


@dataclass(frozen=True)
class Method:
    """One way to run the registration.

    Parameters
    ----------
    model : str
        Bundled name or weights file.
    refine : int or str
    topology : str
    volume : float
        What the refinement charges for volume changes.
    """

    model: str
    refine: int | str = 0
    topology: str = "strict"
    volume: float = DEFAULTS.volume

    @property
    def name(self) -> str:
        """The row's name in the tables."""
        stem = Path(self.model).stem
        if not self.refine:
            return f"{stem}, network only" + (" (topology off)" if self.topology == "off" else "")
        weight = "" if self.volume == DEFAULTS.volume else f" (volume weight {self.volume:g})"
        return f"{stem}, refined{weight}"


def list_methods(models: list[str], refined: list[str], volumes: list[float]) -> list[Method]:
    """Return the rows of the table: models as the network alone, some refined, the first with and without more."""
    methods = [Method(models[0], topology="off"), *map(Method, models), *(Method(model, "auto") for model in refined)]
    return methods + [Method(models[0], "auto", volume=weight) for weight in volumes]


def score_pair(bench: Path, fixed: str, moving: str, method: Method) -> dict[str, object]:
    """Register one pair and return its row of scores."""
    paths = {
        f"{role}{kind}": bench / "aligned" / f"{name}_{suffix}.nii.gz"
        for role, name in (("fixed", fixed), ("moving", moving))
        for kind, suffix in (("", "T1w"), ("_dseg", "dseg"))
    }
    result = register(
        **paths,
        init="identity",
        labels="structures28",
        model=method.model,
        refine=method.refine,
        topology=method.topology,
        device="cpu",
        refinement=RefinementSettings(volume=method.volume),
    )
    scores = result.metrics
    fixed_labels = np.asarray(nib.load(paths["fixed_dseg"]).dataobj)
    cortex = dice(fixed_labels, np.asarray(result.moved_dseg.dataobj), list(CORTEX))
    return {
        "method": method.name,
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
        "seconds": sum(scores["seconds"][stage] for stage in ("network", "refine", "topology")),
        "peak_memory_mb": scores["peak_memory_mb"],
    }


def summarize(rows: pd.DataFrame, peers: Path) -> pd.DataFrame:
    """Return the mean scores (median seconds) of each method, the peers' rows among ours, by Dice."""
    means = rows.groupby("method", sort=False).mean(numeric_only=True)
    means["seconds"] = rows.groupby("method")["seconds"].median()
    table = means.reset_index().assign(source="this run")
    if peers.is_file():
        table = pd.concat([pd.read_csv(peers, sep="\t").assign(source="peer"), table])
    return table.sort_values("dice28").reset_index(drop=True)


def to_markdown(table: pd.DataFrame) -> str:
    """Return the table in markdown, each column with the digits that mean something, and a line on the machine."""
    written = pd.DataFrame({"method": table["method"]})
    for name, digits in DIGITS.items():
        numbers = pd.to_numeric(table[name], errors="coerce")
        written[name] = [f"{value:.{digits}f}" if pd.notna(value) else "" for value in numbers]
    written["from"] = table["source"]
    text = written.to_markdown(index=False, disable_numparse=True)
    machine = f"{platform.machine()}, {torch.get_num_threads()} threads, PyTorch {torch.__version__}"
    return (
        f"{text}\n\nMeans over the pairs. Our rows: this run, {machine}; seconds are those of the registration alone, "
        "without reading and scoring (median).\n"
    )


def plot_dice(table: pd.DataFrame, path: Path) -> None:
    """Draw every method's Dice against its share of folded brain voxels and against the unevenness of its volumes."""
    figure, panels = plt.subplots(1, 2, sharey=True, figsize=(11, 4.5), layout="constrained")
    shown = table[table["method"] != "initial"].assign(
        folds=lambda rows: pd.to_numeric(rows["folds_brain_percent"]).clip(lower=FEWEST_FOLDS),
        sdlogj=lambda rows: pd.to_numeric(rows["sdlogj"]),
    )
    for axes, column in zip(panels, ("folds", "sdlogj"), strict=True):
        for source, group in shown.groupby("source"):
            is_ours = source == "this run"
            style = {"marker": "o", "color": "C3"} if is_ours else {"marker": "s", "color": "0.5"}
            axes.scatter(group[column], group["dice28"], **style)
            for x, y, name in zip(group[column], group["dice28"], group["method"], strict=True):
                _, _, weight = name.partition(" (volume weight ")  # of those the number, where there is room
                text, offset, side = weight[:-1] or name, (5, 4), "left"
                if weight and column == "folds":
                    offset, side = (-5, -3), "right"
                elif column == "sdlogj" and (weight or not is_ours):
                    offset, side = (0, -11), "center"
                elif name.endswith("(topology off)") and column == "sdlogj":  # beside the same without
                    offset = (5, -9)
                axes.annotate(text, (x, y), xytext=offset, textcoords="offset points", ha=side, fontsize=7)
    panels[0].set(
        xscale="log",
        xlim=(FEWEST_FOLDS / 4, 5),
        xlabel=f"brain voxels folded, % (none: {FEWEST_FOLDS:g})",
        ylabel="mean Dice, 28 structures",
    )
    panels[1].set(xlabel="SDlogJ in the brain", xlim=(0.1, 0.85))
    with atomic_path(path) as temporary:
        figure.savefig(temporary)
    plt.close(figure)


def main() -> None:
    """Run the benchmark from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bench", type=Path, help="bench folder")
    parser.add_argument("--model", nargs="+", default=["mmln"], help="names or weights files")
    parser.add_argument("--refine", nargs="*", help="those to refine as well (default: the first)")
    parser.add_argument("--volume", nargs="*", type=float, default=[], help="other weights for refining the first one")
    parser.add_argument("--output", type=Path, required=True, help="folder of accuracy{.tsv,.md,.svg,_pairs.tsv}")
    options = parser.parse_args()
    pairs = pd.read_csv(options.bench / "pairs.tsv", sep="\t", dtype=str)
    refined = options.model[:1] if options.refine is None else options.refine
    methods = list_methods(options.model, refined, options.volume)
    rows = []
    # a new process each, as for a user: a long one's memory is scattered, which slows it, and its peak only grows
    with get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        for method, pair in itertools.product(methods, pairs.itertuples()):
            rows.append(pool.apply(score_pair, (options.bench, pair.fixed, pair.moving, method)))
            print({k: round(v, 4) if isinstance(v, float) else v for k, v in rows[-1].items()}, flush=True)
    frame = pd.DataFrame(rows)
    table = summarize(frame, options.bench / "peers_mean.tsv")
    write_text(options.output / "accuracy_pairs.tsv", frame.to_csv(sep="\t", index=False, float_format="%.5f"))
    write_text(options.output / "accuracy.tsv", table.to_csv(sep="\t", index=False, float_format="%.5f"))
    write_text(options.output / "accuracy.md", to_markdown(table))
    plot_dice(table, options.output / "accuracy.svg")
    print(to_markdown(table))


if __name__ == "__main__":
    main()
