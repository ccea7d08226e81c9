"""Method inputs: batch sizes that fit into memory, models without batch axis, integer inputs, and checks."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from quadratic import Quadratic
from quadratic_cams import CHEAP, batch, cam
from xcam import InputError, ModelError
from xcam.explanation.context import MethodContext
from xcam.explanation.tokens import Grid
from xcam.methods.registry import get, list_methods


def test_a_batch_that_does_not_fit_is_halved() -> None:
    model, x = Quadratic(), batch(4, 6)
    expected = cam("reciprocam", model, x)
    resume, sizes = model.resume, []

    def small(trace: Any, activations: Any, *more: Any) -> Any:
        sizes.append(len(activations))
        if len(activations) > 7:
            raise MemoryError
        return resume(trace, activations, *more)

    model.resume = small  # type: ignore[method-assign]
    np.testing.assert_allclose(cam("reciprocam", model, x), expected, rtol=1e-6)
    assert sizes == [24, 12, 6, 6, 12, 6, 6] * 2


class PerBatch:
    """A layer that returns one value for the whole batch."""

    def value(self, outputs: Any) -> Any:
        return outputs[:, 0].mean()

    def cotangent(self, outputs: Any) -> Any:
        return np.eye(2)[[0] * len(outputs)] / len(outputs)


@pytest.mark.parametrize("name", list_methods())
def test_a_value_for_the_whole_batch_is_computed_row_by_row(name: str) -> None:
    model, x = Quadratic(), batch(4, 6)
    aims = [PerBatch()] * 2
    trace = model.trace(x, "features", lambda outputs: [np.eye(2)[[0, 0]]])
    result = MethodContext(model, model.layers[0], Grid(), x, trace, aims, 0)(get(name), CHEAP.get(name, {}))
    np.testing.assert_allclose(result, cam(name, model, x), rtol=1e-5, atol=1e-6)


def test_a_value_with_more_numbers_than_rows_is_refused() -> None:
    class Wide(PerBatch):
        def value(self, outputs: Any) -> Any:
            return outputs

    model, x = Quadratic(), batch(4, 6)
    trace = model.trace(x, "features")
    with pytest.raises(InputError, match="the value of Wide has 2 numbers for one row of outputs"):
        MethodContext(model, model.layers[0], Grid(), x, trace, [Wide()] * 2, 0)(get("scorecam"), {})


@pytest.mark.parametrize("name", ["scorecam", "iscam", "sscam", "smoothgradcam++"])
def test_a_model_of_integers_is_given_pixels(name: str, rng: np.random.Generator) -> None:
    """iscam's factors below 1 and noise would be cut to 0, and masked images arrive as fractions."""
    model, seen = Quadratic(), []
    predict, trace = model.predict, model.trace
    model.predict = lambda x: seen.append(x) or predict(x)  # type: ignore[method-assign,func-returns-value]
    model.trace = lambda x, *more: seen.append(x) or trace(x.astype(np.float32), *more)  # type: ignore[method-assign,func-returns-value]
    x = rng.integers(0, 256, (1, 3, 4, 6)).astype(np.int32)
    result = cam(name, model, x)
    assert {array.dtype for array in seen} == {np.dtype(np.int32)}
    assert all(array.min() >= 0 and array.max() <= 255 for array in seen)
    expected = cam(name, Quadratic(), x.astype(np.float32))
    np.testing.assert_allclose(
        result, expected, atol=(0.7 if "smooth" in name or name == "sscam" else 0.02) * np.abs(expected).max()
    )


def test_errors_on_changed_values_are_reported() -> None:
    model, x = Quadratic(), batch(4, 6, n=1)

    def one(trace: Any, activations: Any, *_: Any) -> Any:
        raise ValueError(f"cannot take {len(activations)}")

    model.resume = one  # type: ignore[method-assign]
    with pytest.raises(ModelError, match=r"quadratic fails on a batch of 3 changed .*: ValueError: cannot take 3"):
        cam("ablationcam", model, x)
    trace = model.trace
    model.trace = lambda x, *more: spoiled(trace(x, *more))  # type: ignore[method-assign]

    def spoiled(trace: Any) -> Any:
        trace.gradients = [np.full_like(g, np.nan) for g in trace.gradients]
        return trace

    with pytest.raises(ModelError, match="of quadratic gives NaN or infinity at layer 'features'"):
        cam("smoothgradcam++", model, x)
