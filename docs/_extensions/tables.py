"""Tables generated from the program: `{xcam-methods}`, `{xcam-measures}`, `{xcam-targets}`, `{xcam-presets}`."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Sequence
from typing import Any

from docutils import nodes
from sphinx.util.docutils import SphinxDirective

import xcam
from xcam import targets
from xcam.contract.preprocessing import PRESETS


class Table(SphinxDirective):
    """A table with headings, and rows in Markdown."""

    headings: Sequence[str] = ()

    def rows(self) -> Iterable[Sequence[str]]:
        raise NotImplementedError

    def run(self) -> list[nodes.Node]:
        lines = [self.headings, ["---"] * len(self.headings), *self.rows()]
        text = "\n".join("| " + " | ".join(cell.replace("|", r"\|") for cell in line) + " |" for line in lines)
        return self.parse_text_to_nodes(text)


class Methods(Table):
    """The methods of `xcam.list_methods()`."""

    headings = ("method", "map, before ReLU", "passes", "options", "source")

    def rows(self) -> Iterable[Sequence[str]]:
        for m in xcam.list_methods().values():
            options = ", ".join(f"`{name}={value}`" for name, value in m.options.items())
            yield f"`{m.name}`", _plain(m.summary), m.passes, options, m.source


class Measures(Table):
    """The measures of `xcam.list_measures()`."""

    headings = ("measure", "summary", "better", "passes", "source")

    def rows(self) -> Iterable[Sequence[str]]:
        for m in xcam.list_measures().values():
            yield f"`{m.name}`", _plain(m.summary), m.better, m.passes, m.source


class Targets(Table):
    """The targets of `xcam.targets`, with the first line of each docstring."""

    headings = ("target", "summary", "parameters")

    def rows(self) -> Iterable[Sequence[str]]:
        for target in [getattr(targets, name) for name in targets.__all__]:
            if isinstance(target, type) and target is not targets.Target:
                first = (inspect.getdoc(target) or "").partition("\n")[0]
                names = ", ".join(f"`{name}`" for name in inspect.signature(target).parameters)
                yield f"{{py:class}}`xcam.{target.__name__}`", _plain(first), names


class Presets(Table):
    """The presets for preprocessing."""

    headings = ("name", "scale", "mean", "standard deviation", "order of channels")

    def rows(self) -> Iterable[Sequence[str]]:
        for p in PRESETS.values():
            scale = "1" if p.scale == 1 else f"1/{1 / p.scale:g}"
            yield f"`{p.name}`", scale, ", ".join(map(str, p.mean)), ", ".join(map(str, p.std)), p.order


def _plain(text: str) -> str:
    return text.replace("*", r"\*").replace("_", r"\_")


def setup(app: Any) -> dict[str, bool]:
    for directive in (Methods, Measures, Targets, Presets):
        app.add_directive(f"xcam-{directive.__name__.lower()}", directive)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
