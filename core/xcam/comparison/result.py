"""The result of a comparison."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from xcam.comparison import page
from xcam.comparison.blame.page import section
from xcam.comparison.blame.result import Blame
from xcam.comparison.data import ComparisonData


@dataclass(frozen=True)
class Comparison(ComparisonData):
    """The result of `xcam.compare`: several models on the same images."""

    def save(self, path: str | os.PathLike[str], blame: Blame | None = None) -> None:
        """Write the report: one HTML file without external resources. It is written completely or not at all.

        Args:
            path: A file name that ends in .html.
            blame: The contributions to the difference of two of the models, which the report shows too.

        Raises:
            InputError: The file cannot be written, or its name does not end in .html.
            BackendError: Jinja2 is not installed.
        """
        page.write(self, Path(path), None if blame is None else section(blame, self._letters(blame)))

    def _letters(self, blame: Blame) -> tuple[str, str]:
        """Return the letters of the two models of a blame: the first, and one of the others."""
        return page.letter(0), page.letter(self.names.index(blame.names[1]) if blame.names[1] in self.names else 1)
