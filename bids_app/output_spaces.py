"""`--output-spaces`: fMRIPrep's way to say which templates results are wanted in, turned into templates' names."""

import re
from collections.abc import Sequence

NATIVE = ("anat", "T1w", "T2w", "func", "bold", "boldref", "run", "sbref", "dwi", "asl", "fsnative")
"""Spaces of the images themselves."""
SURFACES = ("fsaverage", "fsaverage3", "fsaverage4", "fsaverage5", "fsaverage6", "fsLR", "onavg")
MODIFIERS = ("cohort", "res", "resolution")


def parse_space(text: str) -> str:
    """Turn a space as fMRIPrep has it into the name of a template as `--template` takes it.

    Parameters
    ----------
    text : str
        ``NAME[:cohort-X][:res-N|res-native]``, the modifiers in any order.

    Returns
    -------
    str
        ``NAME[:cohort-X][:res-N]``.

    Raises
    ------
    ValueError
        If the space is no template, or a modifier is unknown or given twice.

    Examples
    --------
    >>> parse_space("MNIPediatricAsym:res-2:cohort-5"), parse_space("MNI152NLin6Asym:res-native")
    ('MNIPediatricAsym:cohort-5:res-2', 'MNI152NLin6Asym')
    """
    name, *words = text.split(":")
    if name in NATIVE:
        raise ValueError(
            f"{text}: expected a template, found a space of the images (T1w: labels are always brought there)"
        )
    if name in SURFACES:
        raise ValueError(f"{text}: expected a template volume, found a surface: no surfaces are made here")
    if not re.fullmatch("[0-9A-Za-z]+", name):
        raise ValueError(f"{text}: expected NAME[:cohort-X][:res-N], found {name!r}; files are given by --template")
    found: dict[str, str] = {}
    for word in words:
        key, _, value = word.partition("-")
        if key not in MODIFIERS or not re.fullmatch("[0-9A-Za-z]+", value):
            raise ValueError(f"{text}: expected the modifiers cohort-X and res-N, found {word!r}")
        key = "res" if key == "resolution" else key
        if key == "res" and not (value.isdecimal() or value == "native"):
            raise ValueError(f"{text}: expected res-N, a whole number, or res-native, found {word!r}")
        if key in found:
            raise ValueError(f"{text}: expected {key} once; of a template in several resolutions make several runs")
        found[key] = value
    if found.get("res") == "native":
        del found["res"]
    elif "res" in found:
        found["res"] = str(int(found["res"]))
    return ":".join([name, *(f"{key}-{found[key]}" for key in ("cohort", "res") if key in found)])


def parse_spaces(texts: Sequence[str]) -> tuple[str, ...]:
    """Read several spaces, each template once, since names of results say template and cohort only.

    Raises
    ------
    ValueError
        As of `parse_space`, and if a template is named twice.
    """
    spaces = tuple(map(parse_space, texts))
    names = [re.sub(r":res-\d+", "", space) for space in spaces]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"output_spaces: expected each template once, found {name} {names.count(name)} times")
    return spaces
