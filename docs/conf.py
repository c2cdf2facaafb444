"""Settings of the documentation; `make docs` builds it without network, and takes warnings for errors."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "extensions"))

# The interfaces come first: they switch off Nipype's network access before its Sphinx extension loads Nipype.
import mmln_pipeline.interfaces  # noqa: F401
from mmln_pipeline import __version__

project = "MMLN pipeline"
version = release = __version__

extensions = [
    "generated",
    "mathml",
    "myst_parser",
    "nipype.sphinxext.apidoc",  # napoleon, with the inputs and outputs of interfaces
    "sphinx.ext.autosummary",
    "sphinx_argparse_cli",
    "sphinx_gallery.gen_gallery",
]
exclude_patterns = ["_build", "gallery", "study/tables.md"]

sphinx_gallery_conf = {
    "examples_dirs": "gallery",
    "gallery_dirs": "examples",  # made by the build
    "capture_repr": ("_repr_html_", "__repr__"),
    "ignore_repr_types": "matplotlib|nilearn|NoneType",
    "download_all_examples": False,
    "remove_config_comments": True,
    "show_memory": False,
    "show_signature": False,
    "write_computation_times": False,  # a page that would load tables from elsewhere
    "abort_on_example_error": True,
}

myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3

smartquotes_action = "D"  # dashes only: quotes in the text are those that people type
# Types in docstrings are words ("Tensor, shape (B, 1, I, J, K)"), or names of other packages.
nitpick_ignore_regex = [("py:class", r"(?!mmln_pipeline\.).*")]
default_role = "literal"  # the house style writes names in single backquotes
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_typehints = "none"  # the docstrings state types, with shapes and units
autosummary_generate = False
napoleon_use_param = False
napoleon_use_rtype = False
napoleon_use_ivar = True
napoleon_custom_sections = [("Inputs", "params_style"), ("Outputs", "params_style")]

html_theme = "furo"
html_title = f"MMLN pipeline {version}"
html_math_renderer = "mathml"
html_show_copyright = False
html_copy_source = False
html_show_sourcelink = False
html_static_path = ["static"]
html_css_files = ["pages.css"]
