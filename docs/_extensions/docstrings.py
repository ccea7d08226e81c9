"""Docstrings for autodoc: napoleon reads the sections, then characters that would be markup are escaped.

Docstrings are Google style with `code` in single backticks (the default role of this documentation). Shapes such as
[N, C, *spatial] and magnitudes such as |Δ| are plain text.
"""

from __future__ import annotations

import re
from typing import Any

from sphinx.ext.napoleon import Config, GoogleDocstring
from sphinx.pycode import ModuleAnalyzer

import xcam
from xcam import errors

NAPOLEON = Config(napoleon_use_rtype=False)
ERRORS = [name for name in xcam.__all__ if hasattr(errors, name)]
RAISES = re.compile(rf"^:raises ({'|'.join(ERRORS)}):")
CODE = re.compile(r"(``[^`]+``|:[\w:]+:`[^`]+`|`[^`]+`_*)")
OWN = re.compile(r"(?:TypeAliasForwardRef\(')?(?<![~\w.])(xcam(?:\.\w+)+)(?:'\))?")


def process(_: Any, __: str, name: str, obj: Any, ___: Any, lines: list[str]) -> None:
    """Convert the lines of a docstring in place. Indented code and directives are not escaped."""
    # Without the kind of the object: of an attribute, napoleon would read the text before a colon as its type.
    lines[:] = GoogleDocstring(lines, NAPOLEON, name=name, obj=obj).lines()
    code, previous = False, ""
    for number, line in enumerate(lines):
        if not line.strip():
            continue
        code = line.startswith("    ") and (code or previous.endswith("::"))
        previous = line.rstrip()
        if not code and not line.lstrip().startswith(".. "):
            lines[number] = RAISES.sub(r":raises xcam.\1:", escaped(line))


def escaped(line: str) -> str:
    """Escape `*`, `|` and trailing underscores outside code; a long option becomes code."""
    return "".join(piece if CODE.fullmatch(piece) else _plain(piece) for piece in CODE.split(line))


def _plain(text: str) -> str:
    text = re.sub(r"(?<!\\)([*|])", r"\\\1", text)
    text = re.sub(r"(?<=\w)_(?=\W|$)", r"\\_", text)
    return re.sub(r"(?<![\w-])(--[a-z][\w-]*)", r"``\1``", text)  # two dashes would become one


def sign(_: Any, __: str, ___: str, ____: Any, _____: Any, signature: str | None, returns: str | None) -> Any:
    """Show the project's own names without their module."""
    return tuple(text and OWN.sub(r"~\1", text) for text in (signature, returns))


def forget_overloads(_: Any) -> None:
    """Show one signature with every parameter instead of the overloads, which are for type checkers."""
    for module in ("xcam.explanation.explain",):
        analyzer = ModuleAnalyzer.for_module(module)
        analyzer.analyze()
        analyzer.overloads.clear()


def setup(app: Any) -> dict[str, bool]:
    """Connect to autodoc."""
    app.setup_extension("sphinx.ext.autodoc")
    app.connect("autodoc-process-docstring", process)
    app.connect("autodoc-process-signature", sign)
    app.connect("builder-inited", forget_overloads)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
