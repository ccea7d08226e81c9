"""The search for the fewest parts to put back into float.

Each part is first measured alone: everything else is in float, so that no other fault hides it. In the order of the harm that
each does, parts are put back until the verdict is reached; then those that turn out to be unnecessary are taken out again.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from xcam import progress
from xcam.comparison.similarity import CORRELATED, correlation, rms
from xcam.contract import Array, Model, Outputs, one_output, validation
from xcam.contract.abilities import Mending
from xcam.contract.quantization import Part, Range
from xcam.errors import XcamError
from xcam.models import layers

Test = Callable[[Collection[str]], bool]
"""Whether the verdict is reached with these parts in float."""


@dataclass(frozen=True)
class Measured:
    """A part, measured with everything else in float."""

    part: Part
    harm: float
    """The change of heatmap and class at the end: 1 is the loss of correlation, or the step to another class."""
    local_error: float
    """The relative error of its own value."""


class Harm:
    """The change at the end, as a number.

    Args:
        outputs: The class scores of the float model [N, K].
        values: The explained layer's values in the float model.
        gradients: The gradient of each image's top class there; None: unknown.
    """

    def __init__(self, outputs: Array, values: Array, gradients: Array | None) -> None:
        self._outputs = outputs.reshape(len(outputs), -1)
        self._weights = None if gradients is None else gradients.reshape(*gradients.shape[:2], -1).mean(2)
        self._maps = self._map(values)

    def _map(self, values: Array) -> Array:
        flat = values.reshape(*values.shape[:2], -1)
        if self._weights is None or flat.shape[2] < 2:
            return flat.reshape(len(flat), -1)
        return np.asarray(np.maximum(np.einsum("ncp,nc->np", flat, self._weights), 0))

    def __call__(self, outputs: Array, values: Array) -> float:
        """Return the harm of a change: the worst of all images."""
        others = outputs.reshape(len(outputs), -1)
        losses = [
            (1 - correlation(a, b)) / (1 - CORRELATED) for a, b in zip(self._maps, self._map(values), strict=True)
        ]
        steps = [_step(a, b) for a, b in zip(self._outputs, others, strict=True)]
        return float(max(np.add(losses, steps)))


def _step(first: Array, second: Array) -> float:
    """Return the change of the lead of the top class over the next, relative to it: at 1 another class may lead."""
    if len(first) < 2:
        return 0.0
    top = int(first.argmax())
    lead = first[top] - np.delete(first, top)
    change = lead - (second[top] - np.delete(second, top))
    return float((change / np.maximum(lead, 1e-9)).max())


def harm(reference: Model, x: Array, layer: str, outputs: Array, values: Array) -> Harm:
    """Return the measure of harm at a layer of the float model, for its own top classes."""

    def top(clean: Outputs) -> list[Outputs]:
        scores = one_output(clean)
        result = np.zeros_like(scores)
        np.put_along_axis(result, scores.argmax(-1)[..., None], 1, -1)
        return (
            [{next(iter(clean)): result} | {k: np.zeros_like(v) for k, v in list(clean.items())[1:]}]
            if isinstance(clean, Mapping)
            else [result]
        )

    gradients: Array | None = None
    try:
        gradients = validation.trace(reference, x, layers.find(reference, layer), top).gradients[0]
    except XcamError:  # a model without gradients
        gradients = None
    return Harm(outputs, values, gradients)


def measured(
    mending: Mending, reference: Model, xs: tuple[Array, Array], layer: str, ranges: Mapping[str, Range]
) -> list[Measured]:
    """Measure each part alone, everything else in float.

    Args:
        mending: The parts.
        reference: The float model.
        xs: The batch, as the float model and the quantised one take it.
        layer: The explained layer of the float model.
        ranges: Ranges that are mended already.
    """
    names = [part.name for part in mending.parts]
    outputs, clean = mending.run(names, ranges, xs[1], [layer, *names])
    harm_of = harm(reference, xs[0], layer, outputs, clean[layer])
    results = []
    for part in progress.steps(list(mending.parts), "parts"):
        others = [name for name in names if name != part.name]
        changed, values = mending.run(others, ranges, xs[1], [layer, part.name])
        results.append(
            Measured(part, harm_of(changed, values[layer]), _relative(clean[part.name], values[part.name]))
        )
    return results


def _relative(first: Array, second: Array) -> float:
    size, error = rms(first), rms(first - second)
    return error / size if size > 0 else float(error > 0)


def shortest(order: Sequence[str], test: Test) -> int | None:
    """Return the number of parts, from the first on, that reach the verdict; None where all of them do not."""
    if not test(order):
        return None
    low, high = 0, len(order)  # `low` does not reach it, `high` does
    step = 1
    while low + step < high:
        if test(order[: low + step]):
            high = low + step
            break
        low, step = low + step, step * 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if test(order[:middle]) else (middle, high)
    return high


def reduced(parts: Sequence[str], test: Test) -> list[str]:
    """Return the parts that are left after every part that can be taken out is: in halves, then smaller parts.

    Args:
        parts: Parts that reach the verdict, the least necessary last.
        test: The verdict.
    """
    kept = list(parts)
    size = max(len(kept) // 2, 1)
    while True:
        end = len(kept)
        while end > 0:
            start = max(end - size, 0)
            rest = kept[:start] + kept[end:]
            if rest and test(rest):
                kept = rest
            end = start
        if size == 1:
            return kept
        size //= 2
