"""The project's docstrings, made into reStructuredText for autodoc.

They are prose with Markdown's `code`, and say of each parameter `name: what it is`, on a line of its own or behind
another. Errors and public names become links; what reStructuredText would take for markup is kept as it stands.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from typing import Any

from sphinx.pycode import ModuleAnalyzer

import xcam
from xcam import errors

ERRORS = [name for name, thing in vars(errors).items() if isinstance(thing, type) and issubclass(thing, Exception)]
ERROR = re.compile(rf"\b(?<!`)({'|'.join(e for e in ERRORS if e in xcam.__all__)})\b")
CODE = re.compile(r"(`[^`]+`)")
OWN = re.compile(r"(?:TypeAliasForwardRef\(')?(?<![~\w.])(xcam(?:\.\w+)+)(?:'\))?")


def process(_: Any, what: str, name: str, thing: Any, __: Any, lines: list[str]) -> None:
    """What autodoc calls with the lines of every docstring; they are changed in place."""
    lines[:] = list(converted(lines, parameters(thing)))


def parameters(thing: Any) -> list[str]:
    """Names that a docstring may explain: of a function's parameters, of a dataclass's fields."""
    try:
        return list(inspect.signature(thing).parameters)
    except (TypeError, ValueError):
        return []


def converted(lines: list[str], names: list[str]) -> Iterator[str]:
    """Paragraphs, fields and indented code, each as reStructuredText has it."""
    begin = re.compile(rf"{_any(names)}: ")
    rest = list(lines)
    last = ""
    while rest:
        line = rest.pop(0)
        if names and begin.match(line):
            while rest and rest[0].startswith("    "):  # what is continued
                line += f" {rest.pop(0).strip()}"
            if last != "field":
                yield ""
            last = "field"
            for parts, text in fields(line, names):
                yield from (f":param {part}: {marked(text)}" for part in parts)
        elif not line.strip():
            last = last if last == "code" else ""
            yield ""
        elif line.startswith("    ") and last in ("", "code"):
            if not last:
                yield from ("::", "")
            last = "code"
            yield line
        else:
            if last == "field":
                yield ""
            last = "text"
            yield marked(line)


def fields(text: str, names: list[str]) -> list[tuple[list[str], str]]:
    """`a: one. b, c: two` → ([a], one.), ([b, c], two)."""
    pieces = re.split(rf"(?:^|(?<=[.;] ))({_any(names)}): ", text)
    return [(part.split(", "), said.rstrip(" ;")) for part, said in zip(pieces[1::2], pieces[2::2], strict=True)]


def _any(names: list[str]) -> str:
    """A pattern of one of the names, or of several with commas."""
    one = f"(?:{'|'.join(map(re.escape, names))})"
    return f"{one}(?:, {one})*"


def marked(line: str) -> str:
    """Inline markup: `code` to literals and links, everything else to plain text."""
    return "".join(
        _code(piece[1:-1]) if piece.startswith("`") and piece.endswith("`") and len(piece) > 1 else _plain(piece)
        for piece in CODE.split(line)
    )


def _code(text: str) -> str:
    name = text.removesuffix("()").removeprefix("xcam.")
    if name in xcam.__all__ and (text.startswith("xcam.") or name[0].isupper()):
        return rf"\ :py:obj:`{text} <xcam.{name}>`\ "
    return rf"\ ``{text}``\ "


def _plain(text: str) -> str:
    escaped = re.sub(r"([\\*|])", r"\\\1", text)
    escaped = re.sub(r"(?<=\w)_(?=\W|$)", r"\\_", escaped)
    escaped = re.sub(r"(?<![\w-])(--[a-z][\w-]*)", r"\ ``\1``\ ", escaped)  # two dashes would become one
    return ERROR.sub(r"\ :py:exc:`~xcam.\1`\ ", escaped)


def sign(_: Any, __: str, ___: str, ____: Any, _____: Any, signature: str | None, returns: str | None) -> Any:
    """Our own names are shown without their module."""
    return tuple(text and OWN.sub(r"~\1", text) for text in (signature, returns))


def forget_overloads(_: Any) -> None:
    """One signature with every parameter says more than overloads, which are there for type checkers."""
    for module in ("xcam.explanation.explain",):
        analyzer = ModuleAnalyzer.for_module(module)
        analyzer.analyze()
        analyzer.overloads.clear()


def setup(app: Any) -> dict[str, bool]:
    app.connect("autodoc-process-docstring", process)
    app.connect("autodoc-process-signature", sign)
    app.connect("builder-inited", forget_overloads)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
