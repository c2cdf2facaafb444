"""
Transforms, here and elsewhere
==============================

Take labels and points along, and hand the transform to other libraries.
"""

# %%
# A registration to begin with, as in the first example.
from tempfile import mkdtemp

import matplotlib.pyplot as plt
import numpy as np
from nilearn import plotting

from mmln_pipeline import register
from mmln_pipeline.demo import make_truth, make_walnut, simulate_subject

walnut = make_walnut(mkdtemp())
_, inverse_truth = make_truth(walnut.mask, spacing=1, smoothness=4.0, size=2.0)
subject = simulate_subject(walnut.image, walnut.mask, inverse_truth)
result = register(walnut.image, subject, model=walnut.model)
print(result.transform)

# %%
# Labels of the template, brought to the subject by the inverse.
labels = result.inverse.resample(walnut.dseg, subject, "label")
plotting.plot_roi(labels, bg_img=subject, dim=0, title="tissue labels on the subject")

# %%
# The transform that brings the subject's *image* to the template takes *points* from the template to the subject.
points = np.array([[0.0, -4.0, 2.0], [5.0, 3.0, 4.0]])  # RAS mm
there = result.transform.map_points(points)
print(there)
print(result.inverse.map_points(there))

# %%
# nitransforms has the same mapping, and gives the same image.
from nitransforms.resampling import apply

theirs = apply(result.to_nitransforms(), subject, reference=walnut.image, order=1)
print("largest difference:", np.abs(theirs.get_fdata() - result.moved.get_fdata()).max())

# %%
# TorchIO takes the result as a subject, for training on brains in one space.
import torchio

moved = result.to_torchio()
print(moved.shape, torchio.RescaleIntensity()(moved)["moved"].data.max())

# %%
# ITK's own file, for ANTs and SimpleITK.
import SimpleITK as sitk

path = f"{mkdtemp()}/forward_xfm.h5"
result.transform.save(path)
point = sitk.ReadTransform(path).TransformPoint((0.0, 4.0, 2.0))  # LPS: x and y with the other sign
print(np.array(point) * (-1, -1, 1), "is", there[0])

# %%
# Where the offsets are long.
length = np.linalg.norm(result.warp.offsets_mm, axis=-1)
plt.imshow(length[:, :, length.shape[2] // 2].T, origin="lower")
plt.colorbar(label="mm")
