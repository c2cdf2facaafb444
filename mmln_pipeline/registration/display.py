"""How a result shows itself: in one line, in a notebook, and as a plot."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np
from nibabel import Nifti1Image

from mmln_pipeline.images.thumbnails import frame_brain, lay_out_planes, to_data_uri
from mmln_pipeline.images.volumes import normalize_intensity
from mmln_pipeline.scores.quality import look_up
from mmln_pipeline.space.grids import new_image

if TYPE_CHECKING:
    from mmln_pipeline.registration.result import RegistrationResult

SHOWN = {
    "Dice": (("dice",), ".3f"),
    "local correlation": (("similarity", "local_correlation", "after"), ".3f"),
    "NDV, %": (("ndv_percent",), ".2g"),
    "seconds": (("seconds", "total"), ".1f"),
}
"""The scores that a result shows first."""
VIEWS = ("moved", "before", "fixed", "log_jacobian")
"""What can be plotted."""
COLOURS = {"pass": "#1a7f37", "look": "#9a6700", "fail": "#b3261e"}


def list_scores(metrics: Mapping[str, Any]) -> dict[str, str]:
    """Return the main scores that were measured, as text by their names."""
    found = {name: (look_up(metrics, path), digits) for name, (path, digits) in SHOWN.items()}
    return {name: format(value, digits) for name, (value, digits) in found.items() if value is not None}


def to_html(result: RegistrationResult) -> str:
    """Show a result in a notebook: verdict, main scores, and three planes before and after.

    Parameters
    ----------
    result : RegistrationResult

    Returns
    -------
    str
        HTML with the pictures inside; it takes the notebook's own colours.
    """
    frame = frame_brain(result.fixed)
    pictures = {"fixed": result.fixed, "before (affine only)": result.before, "after": result.moved}
    rows = "".join(
        f'<tr><th style="text-align:left">{name}</th><td><img alt="{name}: axial, coronal and sagittal slice" '
        f'style="height:8em" src="{to_data_uri(lay_out_planes(_to_grey(image), frame))}"></td></tr>'
        for name, image in pictures.items()
    )
    qc = result.metrics.get("qc") or {"verdict": "not judged", "reasons": []}
    tone = COLOURS.get(qc["verdict"], "inherit")
    reasons = "".join(f"<li>{escape(reason)}</li>" for reason in qc["reasons"])
    scores = ", ".join(f"{name} {value}" for name, value in list_scores(result.metrics).items())
    return (
        f'<p><strong style="color:{tone}">Quality check: {escape(qc["verdict"])}</strong> {escape(scores)}</p>'
        f"{f'<ul>{reasons}</ul>' if reasons else ''}<table>{rows}</table>"
    )


def _to_grey(image: Nifti1Image) -> Nifti1Image:
    """Scale a brain to [0, 1]; an image of nothing stays black."""
    data = np.asarray(image.dataobj, dtype=np.float32)
    return new_image(normalize_intensity(data) if (data > 0).any() else np.zeros_like(data), image)


def plot(result: RegistrationResult, view: str, **settings: Any) -> Any:
    """Draw a result with nilearn; see `mmln_pipeline.RegistrationResult.plot`."""
    from nilearn import plotting

    if view not in VIEWS:
        raise ValueError(f"view: expected one of {', '.join(VIEWS)}, found {view!r}.")
    image = getattr(result, view)
    if view == "log_jacobian":
        inside = np.asarray(result.fixed.dataobj) > 0
        values = np.where(inside, np.asarray(image.dataobj), 0)
        limit = float(np.percentile(np.abs(values[inside]), 99)) if inside.any() else 1.0
        shown: dict[str, Any] = {"vmax": limit, "cmap": "RdBu_r", "threshold": limit / 20, "title": "log-Jacobian"}
        shown |= {"dim": 0, "draw_cross": False}
        return plotting.plot_stat_map(new_image(values, image), result.fixed, **shown | settings)
    shown = {"title": view, "dim": 0, "draw_cross": False, "colorbar": False}
    display = plotting.plot_anat(image, **shown | settings)
    display.add_edges(result.fixed)
    return display
