"""Register heads of datasets that no weights were trained on, and score their labels: a table of accuracy elsewhere.

Each dataset is a BIDS folder of raw heads with labels, and perhaps brain masks, in a derivative; each head is
registered to the next one, brains alone, behind our affine.

What the committed results were made by:
python benchmarks/generalisation.py ../shared/data --model mmln mmln-semi --refine 0 auto --output benchmarks/results
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from itertools import product
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd

from mmln_pipeline import register
from mmln_pipeline.atlas.labels import structures28
from mmln_pipeline.machine.files import write_text
from mmln_pipeline.space.grids import new_image

DATASETS = {
    # derivative with *_dseg, and *_desc-brain_mask if there are any; numbering of the labels
    "fsheads": ("derivatives/freesurfer", "freesurfer"),
    "ixi2mm": ("derivatives/dlmuse", "neuromorphometrics"),
}


def list_heads(folder: Path, derivative: str) -> list[dict[str, object]]:
    """Return image, labels and brain mask of every subject; without a mask, the brain is what has a label."""
    heads = []
    for image in sorted(folder.glob("sub-*/anat/*_T1w.nii.gz")):
        where = folder / derivative / image.relative_to(folder).parent
        labels = nib.load(next(where.glob("*_dseg.nii.gz")))
        mask = next(where.glob("*_desc-brain_mask.nii.gz"), None)
        brain = nib.load(mask) if mask else new_image((np.asarray(labels.dataobj) > 0).astype(np.uint8), labels)
        heads.append({"image": image, "dseg": labels, "mask": brain})
    return heads


def score_dataset(name: str, folder: Path, model: str, refine: int | str) -> Iterator[dict[str, object]]:
    """Yield the scores of each pair: every head to the next one."""
    derivative, system = DATASETS[name]
    heads = list_heads(folder, derivative)
    for moving, fixed in zip(heads, [*heads[1:], heads[0]], strict=True):
        result = register(
            fixed["image"],
            moving["image"],
            fixed_mask=fixed["mask"],
            moving_mask=moving["mask"],
            fixed_dseg=fixed["dseg"],
            moving_dseg=moving["dseg"],
            labels=structures28(system),
            model=model,
            refine=refine,
        )
        scores = result.metrics
        yield {
            "dataset": name,
            "method": f"{model}, {'refined' if refine else 'network only'}",
            "moving": moving["image"].name.split("_")[0],
            "fixed": fixed["image"].name.split("_")[0],
            "dice28_affine": scores["dice_before"],
            "dice28": scores["dice"],
            "folds_brain_percent": scores["folding_percent_brain"],
            "ndv_percent": scores["ndv_percent"],
            "sdlogj": scores["sdlogj"],
            "qc": scores["qc"]["verdict"],
        }


def main() -> None:
    """Run the benchmark from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help=f"folder of the datasets {', '.join(DATASETS)}")
    parser.add_argument("--model", nargs="+", default=["mmln"], help="names or weights files")
    parser.add_argument("--refine", nargs="+", default=["0", "auto"], help="rows: 0, auto or a number")
    parser.add_argument("--output", type=Path, required=True, help="folder of generalisation{.md,_pairs.tsv}")
    options = parser.parse_args()
    rows = []
    for name in DATASETS:
        for model, refine in product(options.model, options.refine):
            steps = refine if refine == "auto" else int(refine)
            for row in score_dataset(name, options.data / name, model, steps):
                rows.append(row)
                print({k: round(v, 4) if isinstance(v, float) else v for k, v in row.items()}, flush=True)
    frame = pd.DataFrame(rows)
    groups = frame.groupby(["dataset", "method"], sort=False)
    table = groups.mean(numeric_only=True).assign(
        pairs=groups.size(), passed=groups["qc"].agg(lambda v: (v == "pass").sum())
    )
    write_text(options.output / "generalisation_pairs.tsv", frame.to_csv(sep="\t", index=False, float_format="%.5f"))
    text = table.reset_index().to_markdown(index=False, floatfmt=".4f")
    write_text(options.output / "generalisation.md", f"{text}\n\nMeans over the pairs.\n")
    print(text)


if __name__ == "__main__":
    main()
