"""Settings of the site: `sphinx-build -W -c docs . build/site` builds it.

The repository's root is the source folder, so links between pages are those that GitHub follows.
"""

import pathlib
import re
import sys
import types

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))

import fedjax_sim

project = "fedjax_sim"
author = "The fedjax_sim authors"
version = release = fedjax_sim.__version__
html_title = f"fedjax_sim {release}"

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
]
root_doc = "docs/index"
include_patterns = ["*.md", "docs/**", "benchmarks/**.md", "notebooks/**.ipynb", "results/**.md"]
exclude_patterns = [".*", "build", "docs/_templates"]
templates_path = ["_templates"]
html_theme = "furo"
html_static_path = ["_static"]
html_css_files = ["wide.css"]
html_additional_pages = {"index": "front.html"}  # leads from the site's address to the root document
html_show_copyright = False
html_show_sourcelink = False

myst_enable_extensions = ["dollarmath"]
myst_fence_as_directive = ["math"]  # GitHub's fences of mathematics
myst_heading_anchors = 4
nb_execution_mode = "off"  # they hold their results

autodoc_member_order = "groupwise"
autodoc_preserve_defaults = True
autodoc_typehints = "none"  # docstrings give shapes and meanings
napoleon_attr_annotations = False
napoleon_use_ivar = True

_SHARED = [
    value
    for value in (getattr(fedjax_sim, name) for name in fedjax_sim.__all__)
    if not isinstance(value, types.ModuleType)
]


def as_restructured_text(app, what, name, obj, options, lines):
    """Marks code in a docstring as reStructuredText does; ours mark it as Markdown does."""
    text = re.sub(r"(?<!`)`([^`]+)`(?!`)", r"``\1``", "\n".join(lines))
    # A colon before an indented block of code is doubled.
    lines[:] = re.sub(r"(?m)^( *)(\S.*[^:]):\n\n(?=\1    )", r"\1\2::\n\n", text).split("\n")


def is_elsewhere(app, what, name, obj, skip, options):
    """Skips the fields of named tuples, which the class describes, and names that `fs` has too."""
    is_field = (getattr(obj, "__doc__", None) or "").startswith("Alias for field number")
    is_shared = app.env.current_document.docname != "docs/api/index" and any(obj is s for s in _SHARED)
    return True if is_field or is_shared else None


def setup(app):
    app.connect("autodoc-process-docstring", as_restructured_text, priority=400)  # before napoleon
    app.connect("autodoc-skip-member", is_elsewhere)
