"""Whose transform files are written, and how their names end; nothing heavy is imported."""

FORMATS = ("itk", "fsl", "freesurfer", "x5")
"""Whose files can be written."""
OTHER_FORMATS = {"fsl": "desc-fsl_xfm.nii.gz", "x5": "xfm.x5"}
"""How derivatives end that hold the transforms, warp and all, as other tools have them."""
