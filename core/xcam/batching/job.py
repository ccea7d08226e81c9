"""What is to be done with each picture, in plain values: it is written beside the output, and travels to other machines."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from xcam.contract import Model
from xcam.errors import InputError
from xcam.loading import load


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
        name = self.source
        if found := _content(self.source):
            told["sha256"], name = found, Path(self.source).name
        return {"model": name, "backend": self.backend, **{key: _plain(value) for key, value in told.items()}}


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
    score: str = "logit"
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
    """The digest of a file; None for what is none, or cannot be read: opening the model says why."""
    try:
        with open(Path(place), "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except (TypeError, ValueError, OSError):
        return None


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
        "inputs are others (their paths, their order, or what a table says of them)"
        if key == "inputs"
        else f"{key} is {now.get(key)!r}, and was {then.get(key)!r}"
        for key in sorted({*now, *then})
        if now.get(key) != then.get(key)
    ]
