"""What a target is."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from xcam.contract import Array, Outputs


@runtime_checkable
class Target(Protocol):
    """A differentiable function of the outputs of one model, row by row."""

    def value(self, outputs: Outputs) -> Array:
        """[N, …] outputs → [N] values."""

    def cotangent(self, outputs: Outputs) -> Outputs:
        """∂value/∂outputs, shaped like `outputs`."""
