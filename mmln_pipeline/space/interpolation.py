"""How images are read between voxels; nothing heavy is imported."""

INTERPOLATIONS = ("linear", "nearest", "bspline", "lanczos", "label")
"""`bspline` is cubic. `label` keeps numbers whole: each is interpolated on its own, and the largest share wins."""
FOR_LABELS = ("nearest", "label")
"""Those that invent no number."""
_OTHER_NAMES = {
    "nearestneighbor": "nearest",
    "bspline[3]": "bspline",
    "lanczoswindowedsinc": "lanczos",
    "genericlabel": "label",
    "multilabel": "label",
}


def parse_interpolation(text: str) -> str:
    """Return an interpolation by its name here or in ANTs.

    Raises
    ------
    ValueError
        If the name is of neither.

    Examples
    --------
    >>> parse_interpolation("label"), parse_interpolation("GenericLabel"), parse_interpolation("Linear")
    ('label', 'label', 'linear')
    """
    name = _OTHER_NAMES.get(text.lower(), text.lower())
    if name not in INTERPOLATIONS:
        raise ValueError(f"expected {', '.join(INTERPOLATIONS)} (or ANTs' name of one), found {text!r}")
    return name
