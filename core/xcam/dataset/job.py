"""The request of a batch in plain values: it is recorded next to the output, and sent to other machines."""

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
from xcam.contract.abilities import DisablesSpinning, supports
from xcam.errors import InputError
from xcam.models.load import load, split_backend
from xcam.targets import Score

WEIGHTS = re.compile(r"data|weights|\.bin$")
"""Names of files with weights, among those that begin with the model's name: `model.onnx.data`."""
DIFFERENCES = {
    "inputs": "the inputs differ (their paths, their order, or the contents of a table)",
    "rivals": "only one of the two has a report (--report)",
    "overlays": "overlays are drawn differently, or by only one of the two (--overlays)",
}
"""Descriptions of differences between two runs, where the values are not informative."""


@dataclass(frozen=True)
class ModelSource:
    """The arguments of `xcam.load`."""

    name: str
    backend: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)

    def load(self) -> Model:
        """Load the model, for use next to threads that decode images. Raises InputError, ModelError, BackendError."""
        model = load(self.name, self.backend, **self.options)
        if supports(model, DisablesSpinning):
            model.disable_spinning()
        return model

    def facts(self) -> dict[str, Any]:
        """Return the facts that identify the model: for a file, its content."""
        facts = {name: value for name, value in self.options.items() if value is not None and name != "threads"}
        for key in ("weights", "labels", "texts", "embeddings"):
            if sha256 := _content(facts.get(key)):
                facts[f"{key}_sha256"] = sha256
        if other_inputs := facts.pop("inputs", None):  # `inputs` in a record are the images
            facts["other_inputs"] = dict(other_inputs)
            for key, value in other_inputs.items():
                if sha256 := _content(value):
                    facts[f"other_inputs_{key}_sha256"] = sha256
        backend, name = (self.backend, self.name) if self.backend else split_backend(self.name)
        # The second form: a scheme precedes the path, as in hf:./folder.
        if sha256 := _content(name) or _content(name.partition(":")[2]):
            facts["sha256"], name = sha256, Path(name).name
        elif sha256 := _content(_module(name)):
            facts["sha256"] = sha256
        return {"model": name, "backend": backend, **{key: _plain(value) for key, value in facts.items()}}


@dataclass(frozen=True)
class Job:
    """The request for each image."""

    layer: str | None = None
    targets: tuple[Any, ...] = ()
    """As for `xcam.explain`; the top class where it is empty."""
    class_target: bool = False
    """Explain the class that the table or the shard gives for the image."""
    method: str = "gradcam"
    method_options: Mapping[str, Any] = field(default_factory=dict)
    score: Score = "logit"
    measures: tuple[str, ...] = ()
    maps: bool = True
    """Store the raw maps in the table."""
    rivals: bool = False
    """Compare the map of the second best class with that of the best."""
    overlays: Mapping[str, Any] | None = None
    """Options of `Explanation.overlay`; None: no overlays."""
    batch: int = 8
    part: int = 256
    """Images in one part of the table, which is written whole or not at all."""

    def facts(self) -> dict[str, Any]:
        """Return the request in plain values, for the record."""
        return {name: _plain(value) for name, value in asdict(self).items()}


def _content(path: Any) -> str | None:
    """Return the digest of a file with its external weights, or of a folder.

    None if it is neither, or cannot be read: loading the model reports the reason.
    """
    if not path:
        return None
    try:
        path = Path(path)
        candidates = path.rglob("*") if path.is_dir() else path.parent.glob(f"{glob.escape(path.stem)}*")
        files = {p for p in candidates if p.is_file() and (path.is_dir() or WEIGHTS.search(p.name))}
        digests = []
        for name in sorted(files if path.is_dir() else files | {path}):
            with open(name, "rb") as file:
                digests.append(hashlib.file_digest(file, "sha256").hexdigest())
    except (TypeError, ValueError, OSError):
        return None
    if len(digests) == 1:
        return digests[0]
    return hashlib.sha256("".join(digests).encode()).hexdigest() if digests else None


def _module(name: str) -> str | None:
    """Return the file of `package.module:factory`."""
    module, colon, _ = name.partition(":")
    try:
        spec = find_spec(module) if colon and module.replace(".", "").isidentifier() else None
    except (ImportError, ValueError):
        return None
    return spec.origin if spec else None


def _plain(value: Any) -> Any:
    """Return a value as JSON reads it back."""
    try:
        return json.loads(json.dumps(value))
    except TypeError as error:
        raise InputError(
            f"cannot record {value!r} in run.json: it is not a plain value; give text and numbers"
        ) from error


def digest(listing: Any) -> str:
    """Return the digest of a listing, an Arrow table."""
    sha256 = hashlib.sha256()
    for part in listing.to_batches(max_chunksize=10_000):
        sha256.update(repr(part.to_pydict()).encode())
    return sha256.hexdigest()


def differences(request: Mapping[str, Any], earlier: Mapping[str, Any]) -> Sequence[str]:
    """Return descriptions of the differences between two requests."""
    return [
        DIFFERENCES.get(key) or f"{key} is {request.get(key)!r}, and was {earlier.get(key)!r}"
        for key in sorted({*request, *earlier})
        if request.get(key) != earlier.get(key)
    ]
