"""Docstrings for autodoc: characters that would be markup are escaped, then napoleon reads the sections.

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


class Docstring(GoogleDocstring):
    """A docstring in which text before a colon is never a type: types are in the annotations.

    Without `what`, the kind of the object, this also holds for the docstrings of attributes.
    """

    def _consume_returns_section(self, preprocess_types: bool = False) -> list[tuple[str, str, list[str]]]:
        lines = self._dedent(self._consume_to_next_section())
        return [("", "", lines)] if lines else []


def process(_: Any, __: str, name: str, obj: Any, ___: Any, lines: list[str]) -> None:
    """Convert the lines of a docstring in place. Indented code, which follows `::`, and directives are not escaped."""
    code: int | None = None
    for number, line in enumerate(lines):
        indent = len(line) - len(line.lstrip())
        if not line.strip() or (code is not None and indent > code):
            continue
        code = indent if line.rstrip().endswith("::") else None
        if not line.lstrip().startswith(".. "):
            lines[number] = escaped(line)
    lines[:] = [
        RAISES.sub(r":raises xcam.\1:", line) for line in Docstring(lines, NAPOLEON, name=name, obj=obj).lines()
    ]


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
