"""The result of a comparison."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from xcam.comparison import page
from xcam.comparison.data import ComparisonData


@dataclass(frozen=True)
class Comparison(ComparisonData):
    """The result of `xcam.compare`: several models on the same images."""

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the report: one HTML file without external resources. It is written completely or not at all.

        Raises:
            InputError: The file cannot be written, or its name does not end in .html.
            BackendError: Jinja2 is not installed.
        """
        page.write(self, Path(path))
