"""The result of a repair."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from xcam.comparison.data import Verdict
from xcam.comparison.diagnosis import Diagnosis
from xcam.comparison.mending.judge import Judgement
from xcam.contract import Model
from xcam.contract.abilities import Mending
from xcam.contract.files import whole_or_not
from xcam.contract.quantization import Part, Range
from xcam.errors import InputError
from xcam.models.export import check_path


@dataclass(frozen=True)
class MendedRange:
    """A range that was wrong at one value, and is right in the repaired model."""

    layer: str
    """The layer of the float model."""
    reduced: str
    """The layer of the quantised model."""
    low: float
    """The smallest value in the float model, on the images."""
    high: float
    """The largest value."""
    cause: Diagnosis
    """The fault."""


@dataclass(frozen=True)
class MendedPart:
    """A part that is in float in the repaired model."""

    part: Part
    """Its nodes in the float file."""
    harm: float
    """How much it costs alone, where everything else is in float: 1 is the loss that `equivalent` allows."""
    local_error: float
    """The error of its value alone, relative; root of the mean square."""


@dataclass(frozen=True)
class Repair:
    """A quantised model, mended with the float model it was made from."""

    names: tuple[str, str]
    """The names of the float and the quantised model."""
    layers: tuple[str, str]
    """The explained layer of each."""
    require: Verdict
    """The verdict to reach."""
    before: Judgement
    """The quantised model, on the images of the choice."""
    after: Judgement
    """The repaired model, on the same images."""
    check_before: Judgement | None
    """The quantised model, on the other images; None where there are none."""
    check: Judgement | None
    """The repaired model, on the other images."""
    ranges: tuple[MendedRange, ...] = ()
    """Ranges that are mended."""
    parts: tuple[MendedPart, ...] = ()
    """Parts that are in float, the most harmful first."""
    count: int = 0
    """The number of quantised parts."""
    nodes_to_exclude: tuple[str, ...] = ()
    """The nodes of these parts, by their names in the float file: an option of ONNX Runtime's `quantize_static`."""
    largest_errors: int | None = None
    """The number of parts that the verdict needs when those with the largest local errors are taken first; None where that
    does not reach it, or it was not tried."""
    sizes: tuple[int, int] = (0, 0)
    """Bytes of the quantised and the repaired file."""
    seconds: tuple[float, float, float] = (0.0, 0.0, 0.0)
    """The time for one image: float, quantised, repaired model (median)."""
    failed: tuple[tuple[str, str], ...] = ()
    """Images that could not be used, with the error of each."""
    model: Model | None = field(default=None, repr=False)
    """The repaired model; None where no repair is needed."""
    _mending: Mending | None = field(default=None, repr=False)

    @property
    def needed(self) -> bool:
        """Whether the quantised model misses the verdict."""
        return self.model is not None

    @property
    def reached(self) -> bool:
        """Whether the verdict is reached, on the images of the choice and on the others."""
        return self.after.reaches(self.require) and (self.check is None or self.check.reaches(self.require))

    @property
    def proven(self) -> bool:
        """Whether the verdict is reached on images that were not used for the choice."""
        return self.reached and self.check is not None

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the repaired model as an ONNX file: completely or not at all.

        Raises:
            InputError: No repair is needed, or the file cannot be written.
        """
        target = check_path(path, None)
        if self._mending is None:
            raise InputError(f"cannot write {path}: {self.names[1]} needs no repair; use it as it is")
        with whole_or_not(target) as file:
            self._mending.write(file, [p.part.name for p in self.parts], self._ranges)

    @property
    def _ranges(self) -> Mapping[str, Range]:
        return {r.layer: (r.low, r.high) for r in self.ranges}

    def to_dict(self) -> dict[str, Any]:
        """Return all values, for JSON."""
        return {
            "float": {"name": self.names[0], "layer": self.layers[0]},
            "quantised": {"name": self.names[1], "layer": self.layers[1]},
            "require": self.require,
            "needed": self.needed,
            "reached": self.reached,
            "proven": self.proven,
            "before": self.before.to_dict(),
            "after": self.after.to_dict(),
            "check": None
            if self.check is None or self.check_before is None
            else {"before": self.check_before.to_dict(), "after": self.check.to_dict()},
            "ranges": [
                {"layer": r.layer, "quantised": r.reduced, "low": r.low, "high": r.high, "cause": r.cause.to_dict()}
                for r in self.ranges
            ],
            "parts": [
                {
                    "name": p.part.name,
                    "nodes": list(p.part.nodes),
                    "kinds": list(p.part.kinds),
                    "harm": p.harm,
                    "local_error": p.local_error,
                }
                for p in self.parts
            ],
            "quantised_parts": self.count,
            "nodes_to_exclude": list(self.nodes_to_exclude),
            "largest_errors_first": self.largest_errors,
            "bytes": {"quantised": self.sizes[0], "repaired": self.sizes[1]},
            "seconds": dict(zip(("float", "quantised", "repaired"), self.seconds, strict=True)),
            "failed": [{"image": path, "error": error} for path, error in self.failed],
        }


def check_output(path: str | os.PathLike[str], sources: tuple[Any, ...], overwrite: bool) -> Path:
    """Return the path of the repaired model, before any work is done.

    Raises:
        InputError: It is not the path of an ONNX file, it is one of the models, or it exists and may not be overwritten.
    """
    target = Path(path)
    for source in sources:
        target = check_path(path, source)
    if target.exists() and not overwrite:
        raise InputError(f"cannot write {target}: it exists; choose another name, or overwrite it with --force")
    return target
