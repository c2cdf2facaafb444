"""Pages: one HTML file that holds style, pictures, data and script, and a policy that lets no request leave it."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from urllib.parse import quote

import jinja2
from markupsafe import Markup

from mmln_pipeline.machine.files import atomic_path

TEMPLATES = Path(__file__).parent / "templates"
_BUFFERED = 1000
"""Pieces of a page that are written at once."""


@cache
def load_template(name: str) -> jinja2.Template:
    """Return a file in `templates`, which escapes what it is given."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template(name)


def svg_uri(svg: str | Path) -> Markup:
    """Encode an SVG, or what its file holds, as a data URI for a double-quoted attribute (base64 would be longer)."""
    text = svg.read_text(encoding="utf-8") if isinstance(svg, Path) else svg
    return Markup("data:image/svg+xml," + quote(text, safe=" !$'*+,-./:;=?@[]^_`{|}~"))


def write_page(
    path: Path, template: str, *, scripts: Sequence[str], data: Mapping[str, object], **content: object
) -> None:
    """Write a template with its scripts and the data that they read; a file that would not change is left untouched.

    It is written as it is rendered: the page of ten thousand images is never in memory as a whole.

    Parameters
    ----------
    path : Path
        The HTML file; the script is named by its hash in the page's policy.
    template : str
        Name of a file in `templates`; it escapes what it is given.
    scripts : sequence of str
        Names of files in `templates`, run one after the other as one script.
    data : mapping
        What they find, as JSON, in the element `data`.
    **content
        What else the template shows.
    """
    script = "\n".join((TEMPLATES / name).read_text(encoding="utf-8") for name in scripts)
    digest = base64.b64encode(hashlib.sha256(script.encode("utf-8")).digest()).decode("ascii")
    pieces = load_template(template).stream(
        script=Markup(script), script_hash=Markup(f"sha256-{digest}"), data=_embed(data), **content
    )
    pieces.enable_buffering(_BUFFERED)
    with atomic_path(path, keep_same=True) as temporary:
        pieces.dump(str(temporary), encoding="utf-8")


def _embed(data: Mapping[str, object]) -> Markup:
    """Write JSON that can stand in an element of HTML: nothing in it ends the element.

    Examples
    --------
    >>> _embed({"name": "</script>"})
    Markup('{"name":"\\\\u003c/script>"}')
    """
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return Markup(text.replace("<", "\\u003c"))
