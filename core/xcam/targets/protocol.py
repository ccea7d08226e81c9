"""The protocol of targets."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol, runtime_checkable

from xcam.contract import Array, Outputs


@runtime_checkable
class Target(Protocol):
    """A differentiable function of a model's outputs, for each row of the batch."""

    def value(self, outputs: Outputs) -> Array:
        """Return the values [N] for outputs [N, …]."""

    def cotangent(self, outputs: Outputs) -> Outputs:
        """Return ∂value/∂outputs, shaped like `outputs`; in a mapping, outputs left out count as zero."""


def read_outputs(targets: Iterable[Target]) -> set[str] | None:
    """Return the names of the outputs that targets read: empty where it is the first one, None where it is not known."""
    names: set[str] = set()
    for target in targets:
        if not hasattr(target, "output"):
            return None
        names |= {target.output} - {None}
    return names
