"""Draw layers over a mosaic and save them as one small SVG file whose bytes depend on the input alone."""

from __future__ import annotations

import base64
import io
import re
from html import escape
from os import PathLike
from typing import Any

import matplotlib as mpl
import matplotlib.style
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.figure import Figure
from PIL import Image

from mmln_pipeline.machine.files import write_text
from mmln_pipeline.reporting.mosaic import Mosaic

WIDTH_IN = 10.0
SIDE_IN = 0.35  # column on the left for the names of the planes
TITLE_IN = 0.3
BAR_IN = 0.62
AXIS_LETTER = {"axial": "z", "coronal": "y", "sagittal": "x"}
STYLE = {"svg.hashsalt": "mmln", "svg.fonttype": "path", "path.simplify": True, "figure.dpi": 72}


class Canvas:
    """A black sheet with a mosaic on it: layers of pictures, contours and lines, a title, a colour bar.

    Parameters
    ----------
    mosaic : Mosaic
        Where the slices are.
    title : str
        Short description, for the reader of the picture and for screen readers.
    with_bar : bool, default=False
        Leave room for a colour bar or a legend at the bottom.
    """

    def __init__(self, mosaic: Mosaic, title: str, with_bar: bool = False) -> None:
        height, width = mosaic.shape
        self.mosaic = mosaic
        self.title = title
        self._bottom_in = BAR_IN if with_bar else 0.0
        self._picture_in = (WIDTH_IN - SIDE_IN) * height / width
        self._height_in = self._picture_in + TITLE_IN + self._bottom_in
        self.figure = Figure(figsize=(WIDTH_IN, self._height_in), facecolor="black")
        self._layers = 0

    def add_layer(self, name: str | None = None) -> Axes:
        """Add a transparent layer whose data coordinates are the pixels of the mosaic.

        Parameters
        ----------
        name : str, optional
            The layer's group in the file gets the class ``layer-NAME``.

        Returns
        -------
        Axes
            Columns along x, rows downwards along y.
        """
        height, width = self.mosaic.shape
        box = (
            SIDE_IN / WIDTH_IN,
            self._bottom_in / self._height_in,
            1 - SIDE_IN / WIDTH_IN,
            self._picture_in / self._height_in,
        )
        self._layers += 1
        axes = self.figure.add_axes(box, label=f"layer {self._layers}")
        axes.set(xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5))
        axes.set_axis_off()
        if name is not None:
            axes.set_gid(f"layer-{name}")
        return axes

    def add_picture(self, colours: np.ndarray, name: str | None = None, caption: str = "") -> Axes:
        """Add a layer that shows a picture, (H, W) grey or (H, W, 3) RGB, values 0 to 1."""
        axes = self.add_layer(name)
        rgb = colours if colours.ndim == 3 else np.repeat(colours[..., None], 3, axis=2)
        axes.imshow(np.round(255 * np.clip(rgb, 0, 1)).astype(np.uint8), interpolation="none", aspect="auto")
        if caption:
            cover = {"facecolor": "black", "edgecolor": "none", "pad": 1.5}
            axes.text(
                0.995,
                1.012,
                caption,
                transform=axes.transAxes,
                color="white",
                ha="right",
                size=11,
                bbox=cover,
                gid="note-caption",
            )
        return axes

    def add_frame(self) -> None:
        """Add the title, the names of the planes, the slice positions in mm and the side letters."""
        axes = self.add_layer("frame")
        axes.text(0.0, 1.012, self.title, transform=axes.transAxes, color="white", ha="left", size=11)
        shade = {"facecolor": "black", "edgecolor": "none", "alpha": 0.6, "pad": 1}
        style: dict[str, Any] = {"color": "white", "size": 8, "va": "top", "bbox": shade}
        for cell in self.mosaic.cells:
            text = f"{AXIS_LETTER[cell.plane]} = {round(cell.position_mm):+d}"
            axes.text(cell.columns.start, cell.rows.start, text, ha="left", **style)
        for cell in self.mosaic.cells[:: len(self.mosaic.cells) // 3]:
            middle = (cell.rows.start + cell.rows.stop) / 2
            axes.text(-0.012, middle, cell.plane, transform=axes.get_yaxis_transform(),
                      rotation=90, color="white", size=10, ha="right", va="center")  # fmt: skip
            start, end = ("P", "A") if cell.plane == "sagittal" else ("L", "R")
            axes.text(cell.columns.start, middle, start, ha="left", **style)
            axes.text(cell.columns.stop - 1, middle, end, ha="right", **style)

    def add_colour_bar(self, mappable: ScalarMappable, label: str) -> None:
        """Add a horizontal colour bar below the slices."""
        box = (0.25, 0.40 / self._height_in, 0.5, 0.14 / self._height_in)
        axes = self.figure.add_axes(box, label="colour bar")
        low, high = mappable.get_clim()
        ramp = mappable.to_rgba(np.linspace(low, high, 256)[None, :])[..., :3]
        axes.imshow(np.round(255 * ramp).astype(np.uint8), extent=(low, high, 0, 1), aspect="auto",
                    interpolation="none")  # fmt: skip
        axes.set_yticks([])
        axes.tick_params(colors="white", labelsize=8, length=2, pad=2)
        axes.set_xlabel(label, color="white", size=9, labelpad=1)

    def add_legend(self, entries: list[tuple[str, tuple[float, ...]]]) -> None:
        """Add a row of coloured names below the slices."""
        axes = self.figure.add_axes((0, 0, 1, self._bottom_in / self._height_in), label="legend")
        axes.set(xlim=(0, 1), ylim=(0, 1))
        axes.set_axis_off()
        for number, (name, colour) in enumerate(entries):
            place = (number + 0.5) / len(entries)
            axes.text(place, 0.5, f"■ {name}", color=colour, size=9, ha="center", va="center")

    def save(self, out_svg: str | PathLike, style: str = "") -> None:
        """Write the sheet as SVG, atomically.

        Parameters
        ----------
        out_svg : path
            The file to write.
        style : str, optional
            CSS rules for the file.
        """
        buffer = io.StringIO()
        with mpl.style.context(["default", STYLE]):
            self.figure.savefig(buffer, format="svg", facecolor="black", metadata={"Date": None})
        write_text(out_svg, tidy_svg(buffer.getvalue(), self.title, style))


def tidy_svg(svg: str, title: str, style: str = "") -> str:
    """Make matplotlib's SVG scalable, accessible and small; groups of layers and notes get a class.

    Parameters
    ----------
    svg : str
        As matplotlib writes it.
    title : str
        Short description for screen readers.
    style : str, optional
        CSS rules for the file.

    Returns
    -------
    str
        The file's new content.
    """
    svg = svg[svg.index("<svg ") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    head, body = svg.split(">", 1)
    head = re.sub(r'\s(width|height|version)="[^"]*"', "", head)
    head += f' role="img" aria-label="{escape(title)}" preserveAspectRatio="xMidYMid meet"'
    css = f"<style>{style}</style>" if style else ""
    body = re.sub(r'<g id="((?:layer|note)-[a-z]+)">', r'<g class="\1">', body)
    used = set(re.findall(r'(?:url\(|href=")#([^)"]+)', body))
    body = re.sub(r' id="([^"]*)"', lambda found: found.group() if found.group(1) in used else "", body)
    body = re.sub(r' d="([^"]*)"', lambda found: f' d="{_round_path(found.group(1))}"', body)
    body = re.sub(r"data:image/png;base64,([A-Za-z0-9+/=\s]+)", _repack, body)
    return f"{head}><title>{escape(title)}</title>{css}{body.strip()}"


def _round_path(path: str) -> str:
    """Round the coordinates of a path to 1/10 point (glyphs come in whole units already)."""
    rounded = re.sub(r"-?\d+\.\d+", lambda found: f"{float(found.group()):.1f}".removesuffix(".0"), path)
    return re.sub(r"\s*([A-Za-z])\s*", r"\1", rounded)


def _repack(found: re.Match) -> str:
    """Store an embedded picture without an alpha channel that is not used, and as grey where it is grey."""
    picture = Image.open(io.BytesIO(base64.b64decode(found.group(1)))).convert("RGBA")
    red, green, blue, alpha = picture.split()
    if alpha.getextrema() == (255, 255):
        is_grey = red.tobytes() == green.tobytes() == blue.tobytes()
        picture = red if is_grey else picture.convert("RGB")
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
