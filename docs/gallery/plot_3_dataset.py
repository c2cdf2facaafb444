"""
A dataset and its group
=======================

Run the BIDS App on three simulated subjects, and read what it wrote.
"""

# %%
# A dataset of three brains, made from the template.
import json
from pathlib import Path
from tempfile import mkdtemp

import pandas as pd
from nilearn import plotting

from mmln_pipeline.bids_app.run import main
from mmln_pipeline.demo import make_truth, make_walnut, simulate_subject
from mmln_pipeline.images.volumes import save_image

folder = Path(mkdtemp())
walnut = make_walnut(folder)
save_image(walnut.image, folder / "tpl-walnut_T1w.nii.gz")
(folder / "bids").mkdir()
description = json.dumps({"Name": "walnuts", "BIDSVersion": "1.10.0"})
(folder / "bids/dataset_description.json").write_text(description)
for number in (1, 2, 3):
    _, inverse = make_truth(walnut.mask, seed=number, spacing=1, smoothness=4.0, size=1.5)
    subject = simulate_subject(walnut.image, walnut.mask, inverse, seed=number)
    image = folder / f"bids/sub-{number}/anat/sub-{number}_T1w.nii.gz"
    image.parent.mkdir(parents=True)
    save_image(subject, image)

# %%
# ``mmln-bids bids derivatives participant ...``, here without a shell; 0 means that all subjects are done.
how = ["--template", str(folder / "tpl-walnut_T1w.nii.gz"), "-w", str(folder / "work")]
how += ["--model", str(walnut.model), "--refine", "0", "--nprocs", "1"]
main([str(folder / "bids"), str(folder / "derivatives"), "participant", *how])

# %%
# ``mmln-bids bids derivatives group ...``
main([str(folder / "bids"), str(folder / "derivatives"), "group", *how[:2]])

# %%
# All scores are in one table.
scores = pd.read_csv(folder / "derivatives/group_registration.tsv", sep="\t")
scores[["scan", "qc_verdict", "brain_overlap_after", "ndv_percent", "seconds_total"]]

# %%
# The mean of the images in template space: sharp where the brains agree.
mean = folder / "derivatives/space-walnut_desc-mean_T1w.nii.gz"
plotting.plot_anat(mean, dim=0, title="mean of three brains")

# %%
# The pages to look at.
print(*sorted(path.name for path in (folder / "derivatives").glob("*.html")), sep="\n")
