"""Sphinx extension: equations as MathML, which browsers show by themselves, without script or download."""

from docutils import nodes
from docutils.utils.math import MathError
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.util import logging

LOGGER = logging.getLogger(__name__)


def setup(app):
    """Register the renderer `mathml` for `html_math_renderer`."""
    app.add_html_math_renderer("mathml", (write_inline, None), (write_block, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def write_inline(translator, node):
    """Write an equation in running text."""
    translator.body.append(to_mathml(translator, node, as_block=False))
    raise nodes.SkipNode


def write_block(translator, node):
    """Write an equation that stands by itself."""
    equation = to_mathml(translator, node, as_block=True)
    translator.body += [translator.starttag(node, "div", CLASS="math"), equation, "</div>\n"]
    raise nodes.SkipNode


def to_mathml(translator, node, as_block):
    """Convert an equation; one that docutils does not understand is a warning, and stays as it is."""
    try:
        return tex2mathml(node.astext(), as_block=as_block)
    except MathError as error:
        LOGGER.warning("equation %r: %s", node.astext(), error, location=node)
        return translator.encode(node.astext())
