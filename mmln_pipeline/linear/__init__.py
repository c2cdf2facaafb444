"""Linear alignment: affine and rigid, the brain found by it, the reference of a subject's several images."""
