"""The result of `blame`: its data, the report, and the file for Model Explorer."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from xcam.comparison.blame import node_data, page, sentences
from xcam.comparison.blame.data import BlameData


@dataclass(frozen=True)
class Blame(BlameData):
    """The result of `xcam.blame`: what each stretch of the second model contributes to the difference from the first."""

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the report: one HTML file without external resources. It is written completely or not at all.

        Raises:
            InputError: The file cannot be written, or its name does not end in .html.
            BackendError: Jinja2 is not installed.
        """
        page.write(self, Path(path))

    def save_node_data(self, path: str | os.PathLike[str]) -> None:
        """Write the contributions as a node-data file of Google's Model Explorer. It is written completely or not at all.

        Raises:
            InputError: The file cannot be written, or its name does not end in .json.
        """
        node_data.write(self, Path(path))

    @property
    def sentences(self) -> list[str]:
        """The result in sentences."""
        return sentences.sentences(self)

    @staticmethod
    def check_node_data_path(path: str | os.PathLike[str]) -> Path:
        """Return the path of a node-data file, if one can be written there. Raises InputError."""
        return node_data.check_path(Path(path))

    def _repr_html_(self) -> str:
        """Return the summary and the table, for a notebook."""
        return page.fragment(self)
