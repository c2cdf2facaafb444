"""Where things lie: voxel grids and transforms, in RAS+ millimetres."""
