"""Configuration of Sphinx, with pages in Markdown. `make docs` builds them; see CONTRIBUTING.md.

Only the core and the command are imported, so that no framework is needed.
"""

from __future__ import annotations

import sys
from pathlib import Path

import xcam

sys.path.insert(0, str(Path(__file__).parent / "_extensions"))

project = "xcam"
author = "The xcam developers"
project_copyright = "The xcam developers"
version = release = xcam.__version__
language = "en"

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx_copybutton",
    "sphinx_design",
    "commands",
    "docstrings",
    "mathml",
    "tables",
]
smartquotes_action = "D"  # only dashes: quotation marks belong to messages
exclude_patterns = ["_*"]
myst_enable_extensions = ["colon_fence", "deflist", "dollarmath", "fieldlist"]
myst_heading_anchors = 3
copybutton_prompt_text = "$ "
copybutton_line_continuation_character = "\\"

nitpicky = True
nitpick_ignore_regex = [
    # Names of other projects are not linked: their inventories are on the network.
    (r"py:.*", r"(click|collections|np|npt|numpy|os|pathlib|pluggy|pytest|typing|types)(\..*)?"),
    (r"py:.*", r"(Any|BaseException|Exception|RuntimeError|Path|UserWarning|ValueError)"),
    (r"py:.*", r"xcam\..*\.[A-Z]|TypeAliasForwardRef"),  # type variables, and aliases that Sphinx fails to print
]
linkcheck_timeout = 20
linkcheck_retries = 2

default_role = "code"
autodoc_member_order = "bysource"
maximum_signature_line_length = 90
autodoc_typehints_format = "short"
autodoc_type_aliases = {
    name: f"xcam.contract.{name}" for name in ("Array", "Outputs", "Cotangents", "Activation", "Layout", "Capability")
} | {
    "Engine": "xcam.dataset.batch.Engine",
    "Aim": "xcam.explanation.requests.Aim",
    "ImageSource": "xcam.explanation.run.ImageSource",
    "Normalize": "xcam.methods.maps.Normalize",
    "Score": "xcam.targets.Score",
    "Fusion": "xcam.explanation.fusion.Fusion",
    "Image": "xcam.images.reading.Image",
    "reading.Image": "xcam.images.reading.Image",
    "Blend": "xcam.images.overlay.Blend",
    "Style": "xcam.images.overlay.Style",
}

html_theme = "furo"
html_title = "xcam"
html_static_path = ["_static"]
html_css_files = ["xcam.css"]
html_copy_source = False
html_show_sphinx = False
pygments_style = "friendly"
pygments_dark_style = "github-dark"
html_theme_options = {
    "source_repository": "",
    "light_css_variables": {"color-brand-primary": "#0b6e99", "color-brand-content": "#0b6e99"},
    "dark_css_variables": {"color-brand-primary": "#6cc3e8", "color-brand-content": "#6cc3e8"},
}
