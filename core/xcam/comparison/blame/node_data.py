"""The contributions as node data of Google's Model Explorer: a file that colours the nodes of the second model's graph.

The format is `GraphNodeData` of `model_explorer.node_data_builder`: a value for each id of a node, or name of an output tensor.
The keys are all names of the layer at the end of a stretch: for an ONNX file, those of its node and of its tensor.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from xcam.comparison.blame.data import BlameData, Contribution
from xcam.contract import files
from xcam.errors import InputError

SUFFIX = ".json"
GRADIENT = ({"stop": 0, "bgColor": "#ffffff"}, {"stop": 1, "bgColor": "#d62728"})
"""White at the smallest contribution, red at the largest."""


def check_path(path: Path) -> Path:
    """Return the path of a node-data file, if one can be written there. Raises InputError."""
    if path.suffix.lower() != SUFFIX:
        raise InputError(f"cannot write node data to {path}: its name does not end in {SUFFIX}; end it in {SUFFIX}")
    if path.is_dir():
        raise InputError(f"cannot write {path}: it is a folder; choose another name")
    if not path.parent.is_dir():
        raise InputError(f"cannot write {path}: the folder {path.parent} does not exist; create it first")
    return path


def write(blame: BlameData, path: Path) -> None:
    """Write the file, completely or not at all. Raises InputError."""
    files.write_whole(check_path(path), json.dumps(content(blame), indent=2).encode())


def content(blame: BlameData) -> dict[str, Any]:
    """Return the content of the file: the share of the difference that each stretch contributes, in percent."""
    results: dict[str, Any] = {}
    for contribution in _all(blame.stretches):
        for name in (contribution.second, *contribution.ids):
            results.setdefault(name, {"value": round(100 * blame.share(contribution), 4)})
    return {"name": "xcam blame: share of the difference (%)", "results": results, "gradient": list(GRADIENT)}


def _all(contributions: tuple[Contribution, ...]) -> Iterator[Contribution]:
    """Yield the contributions, each after its parts."""
    for contribution in contributions:
        yield from _all(contribution.inner)
        yield contribution
