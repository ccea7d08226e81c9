"""Modules of examples/, imported from their folders."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

EXAMPLES = Path(__file__).parents[2] / "examples"
NUMPY = EXAMPLES / "xcam-numpy"


@contextmanager
def numpy_example() -> Iterator[None]:
    """Make the NumPy backend and the operators of its tests importable inside a `with` block."""
    folders = [str(NUMPY), str(NUMPY / "tests")]
    sys.path[:0] = folders
    try:
        yield
    finally:
        for folder in folders:
            sys.path.remove(folder)
