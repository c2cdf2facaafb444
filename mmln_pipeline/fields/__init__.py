"""Dense fields in voxels: warping, integrating, folds and their repair."""
