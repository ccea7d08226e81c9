"""The protocol of targets."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from xcam.contract import Array, Outputs


@runtime_checkable
class Target(Protocol):
    """A differentiable function of a model's outputs, for each row of the batch."""

    def value(self, outputs: Outputs) -> Array:
        """Return the values [N] for outputs [N, …]."""

    def cotangent(self, outputs: Outputs) -> Outputs:
        """Return ∂value/∂outputs, shaped like `outputs`; in a mapping, outputs left out count as zero."""
