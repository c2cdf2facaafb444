"""
One pair
========

Register a brain to another one, and see whether the result can be used.
"""

# %%
# A template, and a subject that was made from it by a known deformation, with a bias field and noise. Files would do
# as well as these images in memory, or a pair of array and affine.
from tempfile import mkdtemp

from mmln_pipeline import demo, register

walnut = demo.make_walnut(mkdtemp())
truth, inverse_truth = demo.make_truth(walnut.mask, spacing=1, smoothness=4.0, size=2.0)
subject = demo.simulate_subject(walnut.image, walnut.mask, inverse_truth)

# %%
# The registration. For brains of their natural size, leave ``model`` out.
result = register(walnut.image, subject, model=walnut.model)
result

# %%
# The verdict comes with its reasons, and the scores with it.
print(result.metrics["qc"])
print(result.metrics["seconds"]["total"])

# %%
# The subject after registration, under the edges of the template.
result.plot()

# %%
# How much larger (red) or smaller (blue) the subject is than the template.
result.plot("log_jacobian")

# %%
# The deformation was known: this is how far the transform is from it, in mm.
points = demo.brain_points(walnut.mask)
distances = demo.measure_recovery(points, truth, result.transform, result.inverse)
for stage, own in distances.items():
    print(f"{stage:16} {own.mean():.2f}")

# %%
# Files, as ``mmln register`` writes them.
for name, path in result.save(mkdtemp()).items():
    print(f"{name:10} {path.name}")
