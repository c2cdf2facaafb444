"""How images are read between voxels; nothing heavy is imported."""

INTERPOLATIONS = ("linear", "nearest", "lanczos", "label")
"""`label` keeps label numbers whole: each number is interpolated on its own, and the largest share wins."""
FOR_LABELS = ("nearest", "label")
"""Those that invent no number."""
