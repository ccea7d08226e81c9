"""Gradients by differences: exact for linear tails, close for others, and refused where a method reads each position."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import blocks
import onnx_quantized
import xcam
from xcam.contract import differences, validation
from xcam.errors import BackendError


def without_gradients(model: Any) -> Any:
    model.capabilities = frozenset({"resume"})
    return model


def cams(layer: str, method: str, **options: Any) -> list[np.ndarray]:
    models = [blocks.network(), without_gradients(blocks.network())]
    results = [xcam.explain(m, blocks.images()[0], layer=layer, method=method, **options) for m in models]
    assert [r.notes[-1:] == ("gradients: by differences",) for r in results] == [False, True]
    return [r.cam for r in results]


def close(result: np.ndarray, expected: np.ndarray, tolerance: float) -> None:
    np.testing.assert_allclose(result, expected, atol=tolerance * float(np.abs(expected).max()))


@pytest.mark.parametrize(
    "method", ["gradcam", "xgradcam", "gradcam++", "layercam", "hirescam", "gradcam-elementwise"]
)
def test_every_method_is_exact_where_positions_are_averaged_and_the_tail_is_linear(method: str) -> None:
    result, expected = cams("relu3", method)[::-1]
    close(result, expected, 1e-5)


@pytest.mark.parametrize("method", ["gradcam", "xgradcam"])
@pytest.mark.parametrize("layer", ["relu0", "relu2"])
def test_sums_over_positions_are_right_at_every_layer(layer: str, method: str) -> None:
    result, expected = cams(layer, method)[::-1]
    close(result, expected, 0.03)


def test_the_probability_is_explained_too() -> None:
    result, expected = cams("relu3", "gradcam", score="probability")[::-1]
    close(result, expected, 1e-4)


@pytest.mark.parametrize("method", ["layercam", "hirescam", "gradcam++", "gradcam-elementwise"])
def test_a_method_that_reads_each_position_is_refused_where_they_differ(method: str) -> None:
    model = without_gradients(blocks.network())
    with pytest.raises(
        BackendError, match=r"not that of each position; choose another layer, or one of gradcam, xgradcam"
    ):
        xcam.explain(model, blocks.images()[0], layer="relu1", method=method)


def test_methods_that_trace_again_need_gradients() -> None:
    with pytest.raises(BackendError, match="'smoothgradcam\\+\\+' needs gradients"):
        xcam.explain(without_gradients(blocks.network()), blocks.images()[0], method="smoothgradcam++")


def test_the_short_tail_is_run_alone() -> None:
    """The layer `pool` has the means over space: one run for each channel starts there."""
    model = without_gradients(blocks.network())
    layer = next(each for each in model.layers if each.name == "relu3")
    x = blocks.images()[0]
    trace = validation.trace(model, _batch(model, x), layer)
    sizes: list[int] = []

    def resume(at: Any, values: Any, rows: Any, layers: Any) -> Any:
        sizes.append(values[0].size)
        return validation.tail(model)(at, values, rows, layers)

    v = np.eye(1, trace.outputs.shape[1], dtype=np.float32)
    result = differences.gradients(layer, trace, [v], resume, model.layers)
    channels = layer.shape[0]
    assert sizes[0] == trace.activations[0].size
    assert set(sizes[1:]) == {channels}
    assert not result.by_channel


def test_signs_have_orthogonal_columns() -> None:
    signs = differences._hadamard(5)
    assert signs.shape == (8, 5)
    np.testing.assert_array_equal(signs.T @ signs, 8 * np.eye(5))


def test_rounding_averages_out_in_a_quantised_model() -> None:
    images = onnx_quantized.images()
    model = onnx_quantized.quantized(onnx_quantized.network(), onnx_quantized.batch(images), per_channel=True)
    models = [xcam.load(model, preprocess="tf"), without_gradients(xcam.load(model, preprocess="tf"))]
    for layer in ("relu7", "relu4"):
        a, b = (xcam.explain(m, images[0], layer=layer).cam for m in models)
        assert np.corrcoef(a.ravel(), b.ravel())[0, 1] > 0.95
    with pytest.raises(BackendError, match="not that of each position"):
        xcam.explain(models[1], images[0], layer="relu4", method="layercam")


def _batch(model: Any, image: np.ndarray) -> np.ndarray:
    from xcam.comparison import inputs

    return np.asarray(inputs.batch(model.input, [image]))
