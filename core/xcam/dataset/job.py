"""What is to be done with each picture, in plain values: it is written beside the output, and travels to other machines."""

from __future__ import annotations

import glob
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from xcam.contract import Model
from xcam.errors import InputError
from xcam.models.load import load, split_backend
from xcam.targets import Score

WEIGHTS = re.compile(r"data|weights|\.bin$")
"""Names, beginning as the model's does, of files that hold its weights: `model.onnx.data`."""
WORDS = {
    "inputs": "inputs are others (their paths, their order, or what a table says of them)",
    "rivals": "one of the two is asked for a report (--report), and the other is not",
    "pictures": "overlays are drawn in another way, or in one of the two alone (--pictures)",
}
"""What two runs differ in, where values would say little."""


@dataclass(frozen=True)
class Opening:
    """How the model is opened: the arguments of `xcam.load`."""

    source: str
    backend: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)

    def model(self) -> Model:
        return load(self.source, self.backend, **self.options)

    def facts(self) -> dict[str, Any]:
        """What tells this model from another: for a file, its content."""
        told = {name: value for name, value in self.options.items() if value is not None and name != "threads"}
        for key in ("weights", "labels"):
            if found := _content(told.get(key)):
                told[f"{key}_sha256"] = found
        backend, name = (self.backend, self.source) if self.backend else split_backend(self.source)
        if (found := _content(name)) or (
            found := _content(name.partition(":")[2])
        ):  # a scheme ahead of it: hf:./folder
            told["sha256"], name = found, Path(name).name
        elif found := _content(_module(name)):
            told["sha256"] = found
        return {"model": name, "backend": backend, **{key: _plain(value) for key, value in told.items()}}


@dataclass(frozen=True)
class Job:
    """What becomes of each picture."""

    layer: str | None = None
    targets: tuple[Any, ...] = ()
    """As for `xcam.explain`; none: the top class."""
    told_target: bool = False
    """The class that the table or the shard names is explained."""
    method: str = "gradcam"
    options: Mapping[str, Any] = field(default_factory=dict)
    score: Score = "logit"
    measures: tuple[str, ...] = ()
    maps: bool = True
    """The table has the raw maps."""
    rivals: bool = False
    """The map of the second best class is held against that of the best."""
    pictures: Mapping[str, Any] | None = None
    """How overlays are drawn: options of `Explanation.overlay`; None: not at all."""
    batch: int = 8
    part: int = 256
    """Pictures in one part of the output, which is written whole or not at all."""

    def facts(self) -> dict[str, Any]:
        return {name: _plain(value) for name, value in asdict(self).items()}


def _content(place: Any) -> str | None:
    """The digest of a file and of the weights that are kept beside it, or of a folder; None for what is none, or cannot
    be read: opening the model says why."""
    if not place:
        return None
    try:
        path = Path(place)
        around = path.rglob("*") if path.is_dir() else path.parent.glob(f"{glob.escape(path.stem)}*")
        files = {p for p in around if p.is_file() and (path.is_dir() or WEIGHTS.search(p.name))}
        digests = []
        for each in sorted(files if path.is_dir() else files | {path}):
            with open(each, "rb") as file:
                digests.append(hashlib.file_digest(file, "sha256").hexdigest())
    except (TypeError, ValueError, OSError):
        return None
    if len(digests) == 1:
        return digests[0]
    return hashlib.sha256("".join(digests).encode()).hexdigest() if digests else None


def _module(name: str) -> str | None:
    """The file of `package.module:factory`."""
    module, colon, _ = name.partition(":")
    try:
        spec = find_spec(module) if colon and module.replace(".", "").isidentifier() else None
    except (ImportError, ValueError):
        return None
    return spec.origin if spec else None


def _plain(value: Any) -> Any:
    """A value as JSON gives it back. Raises InputError."""
    try:
        return json.loads(json.dumps(value))
    except TypeError as error:
        raise InputError(f"{value!r} cannot be written down, and a batch must be; give words and numbers") from error


def digest(listing: Any) -> str:
    """Of the names in a listing, and of what it says of them."""
    found = hashlib.sha256()
    for part in listing.to_batches(max_chunksize=10_000):
        found.update(repr(part.to_pydict()).encode())
    return found.hexdigest()


def differing(now: Mapping[str, Any], then: Mapping[str, Any]) -> Sequence[str]:
    """What two runs differ in, in words."""
    return [
        WORDS.get(key) or f"{key} is {now.get(key)!r}, and was {then.get(key)!r}"
        for key in sorted({*now, *then})
        if now.get(key) != then.get(key)
    ]
