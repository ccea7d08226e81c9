"""Formulas as MathML, which browsers render without a script and without files from other sites."""

from __future__ import annotations

import html
import re
from typing import Any

from docutils import nodes
from docutils.utils.math import MathError
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.util import logging

DOTS = re.compile(r"\\dots(?![a-z])")
"""docutils supports only \\ldots."""

logger = logging.getLogger(__name__)


def inline(translator: Any, node: nodes.math) -> None:
    translator.body.append(f'<span class="math">{mathml(node, False)}</span>')
    raise nodes.SkipNode


def block(translator: Any, node: nodes.math_block) -> None:
    translator.body.append(f'<div class="math">{mathml(node, True)}</div>')
    raise nodes.SkipNode


def mathml(node: nodes.Element, alone: bool) -> str:
    """Return the formula as MathML; where it cannot be converted, its source as code, with a warning."""
    tex = DOTS.sub(r"\\ldots", node.astext())
    try:
        return str(tex2mathml(tex, as_block=alone))
    except MathError as error:
        logger.warning("formula %r: %s", tex, error, location=node, type="math")
        return f"<code>{html.escape(tex)}</code>"


def setup(app: Any) -> dict[str, bool]:
    app.add_html_math_renderer("mathml", (inline, None), (block, None))
    app.connect("config-inited", _choose)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def _choose(_: Any, config: Any) -> None:
    config.html_math_renderer = "mathml"
