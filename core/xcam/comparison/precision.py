"""Two models of which one has a reduced precision: the layer whose own error its precision does not explain, and the cause."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace

from xcam.comparison import own_error
from xcam.comparison.alignment import LayerSample, Match
from xcam.comparison.data import Step
from xcam.comparison.diagnosis import Diagnosis
from xcam.comparison.own_error import OwnError, Pair
from xcam.comparison.stretch import ComparedModel
from xcam.contract.quantization import levels
from xcam.errors import XcamWarning, first_line


@dataclass(frozen=True)
class Examination:
    """The own errors along the corresponding layers of two models."""

    errors: tuple[OwnError | None, ...]
    """One for each match; None where it is not known."""
    explains: bool
    """Whether the precision explains the error of most layers. If not, the models differ in more than that."""
    tolerance: float
    """How many times its expected error the own error of a layer may have."""
    index: int | None = None
    """The match that stands out."""
    cause: Diagnosis | None = None
    """Its cause; where none stands out, the precision itself."""

    def steps(self, steps: Sequence[Step]) -> list[Step]:
        """Return the steps with their own and expected errors."""
        return [
            step
            if error is None
            else replace(
                step, added=error.added / (error.largest or 1), expected=error.expected / (error.largest or 1)
            )
            for step, error in zip(steps, self.errors, strict=True)
        ]


def examine(
    models: tuple[ComparedModel, ComparedModel],
    samples: tuple[Sequence[LayerSample], Sequence[LayerSample]],
    matches: Sequence[Match],
    notes: list[str],
) -> Examination | None:
    """Measure and compare the own errors of the model of reduced precision; None where neither is one, or cannot be run so.

    Args:
        models: The first model, and another.
        samples: The samples of their layers.
        matches: The corresponding layers.
        notes: A failure is added to these.
    """
    kinds = [own_error.precision(each.model) for each in models]
    if kinds == [None, None]:
        return None
    second = 1 if kinds[1] is not None else 0  # the reduced model
    reference, reduced = models[1 - second], models[second]
    pairs: dict[int, Pair] = {}
    for k, m in enumerate(matches):
        layers = samples[0][m.first].layer, samples[1][m.second].layer
        if m.order is None and not layers[0].is_output and not layers[1].is_output:
            pairs[k] = Pair(layers[1 - second].name, layers[second].name)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", XcamWarning)
            measured = own_error.own_errors(reference, reduced, list(pairs.values()))
            if not any(error.is_reduced for error in measured):
                return None
            return _examined(pairs, measured, len(matches), str(kinds[second]))
    except Exception as error:
        notes.append(f"the own errors of the layers could not be measured: {first_line(error)}")
        return None


def _examined(
    pairs: dict[int, Pair],
    measured: Sequence[OwnError],
    count: int,
    kind: str,
) -> Examination:
    errors: list[OwnError | None] = [None] * count
    for k, error in zip(pairs, measured, strict=True):
        errors[k] = error
    usual = own_error.typical(measured)
    result = Examination(tuple(errors), usual <= own_error.EVEN, own_error.tolerance(measured))
    if not result.explains:
        return _unseen(result, list(pairs), measured)
    outlier = own_error.outlier(measured)
    if outlier is None:
        return replace(result, cause=even(list(pairs.values()), measured, kind))
    return replace(result, index=list(pairs)[outlier], cause=measured[outlier].cause)


def _unseen(result: Examination, indices: Sequence[int], measured: Sequence[OwnError]) -> Examination:
    """Return the first range that is too narrow, where most are and the precision explains all other errors."""
    narrow = [k for k, error in enumerate(measured) if error.cause is not None and error.cause.code == "narrow-range"]
    others = [error for k, error in enumerate(measured) if k not in narrow and error.is_reduced]
    limit = own_error.tolerance(others)
    first = next((k for k in narrow if measured[k].ratio > limit), None)
    if not others or own_error.typical(others) > own_error.EVEN or first is None:
        return result
    cause = measured[first].cause
    assert cause is not None
    count = sum(error.reach is not None for error in measured)
    text = f"{cause.text}; so are those of {len(narrow)} of {count} layers: the calibration saw no such images"
    return replace(result, explains=True, tolerance=limit, index=indices[first], cause=Diagnosis(cause.code, text))


def even(pairs: Sequence[Pair], errors: Sequence[OwnError], kind: str) -> Diagnosis:
    """Return the precision as the cause of differences at all layers."""
    ratios = {pair.reduced: error.ratio for pair, error in zip(pairs, errors, strict=True) if error.is_reduced}
    most = max(ratios, key=lambda name: ratios[name])
    figures = f"{own_error.typical(errors):.2g} times as large at most layers, {ratios[most]:.2g} times at {most}"
    if kind in ("float16", "bfloat16"):
        return Diagnosis("half-precision", f"evenly, as {kind} does: values and weights are rounded ({figures})")
    low, high = levels(kind)
    bits = math.ceil(math.log2(high - low + 1))
    steps = {pair.reduced: error.per_tensor or 1.0 for pair, error in zip(pairs, errors, strict=True)}
    widest = max(steps, key=lambda name: steps[name])
    advice = (
        f"; weights have one scale for all channels: with a scale of each, the steps at {widest} would be "
        f"{steps[widest]:.2g} times smaller"
        if steps[widest] > own_error.PER_TENSOR
        else ""
    )
    return Diagnosis(
        "quantized",
        f"evenly, as {kind} does: the own error of each layer is about as large as rounding to {bits} bits explains "
        f"({figures}){advice}",
    )
