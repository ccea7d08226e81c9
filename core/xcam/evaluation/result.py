"""The result of `evaluate`: its scores, and the report on them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from xcam.evaluation import page
from xcam.evaluation.scores import Scores


@dataclass(frozen=True)
class Evaluation(Scores):
    """Several methods evaluated on one model and its images."""

    def save(self, path: str | Path) -> None:
        """Write the report, a single HTML file that loads nothing else. It appears whole or not at all.

        Args:
            path: A file name that ends in .html.

        Raises:
            InputError: The path cannot be written.
            BackendError: Jinja2 is not installed.
        """
        page.write(self, Path(path))
