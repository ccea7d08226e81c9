"""Several layers in one pass and traces at later layers: quantised files, cuts, and the number of sessions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnxruntime.quantization import QuantFormat

import onnx_quantized
import xcam
from xcam_onnx import recording

X = onnx_quantized.batch(onnx_quantized.images(2, 3))
KINDS = ["float", "QDQ", "operators"]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder, model = tmp_path_factory.mktemp("files"), onnx_quantized.network()
    paths = {kind: folder / f"{kind}.onnx" for kind in KINDS}
    onnx.save(model, paths["float"])
    sample = onnx_quantized.batch(onnx_quantized.images(8, 5))
    onnx.save(onnx_quantized.quantized(model, sample), paths["QDQ"])
    form = QuantFormat.QOperator
    onnx.save(onnx_quantized.quantized(model, sample, quant_format=form), paths["operators"])
    return paths


def cotangents(outputs: Any) -> list[Any]:
    return [np.eye(outputs.shape[1], dtype=np.float32)[[k] * len(outputs)] for k in (0, 2)]


def same(a: Any, b: Any, label: str) -> None:
    a, b = a.ravel(), b.ravel()
    assert np.abs(a - b).max() <= 1e-3 * np.abs(b).max() or np.corrcoef(a, b)[0, 1] > 0.99, label


@pytest.mark.parametrize("kind", KINDS)
def test_several_layers_have_the_values_of_each_alone(files: dict[str, Path], kind: str) -> None:
    """Predictions and values are the runtime's own; gradients of a quantised file begin at the earliest layer."""
    model = xcam.load(files[kind], preprocess="raw", threads=1)
    names = [layer.name for layer in model.layers if layer.differentiable and not layer.is_output]
    assert len(names) > 6
    traces = model.trace(X, names[::-1], cotangents)[::-1]
    for name, trace in zip(names, traces, strict=True):
        alone = model.trace(X, name, cotangents)
        np.testing.assert_allclose(trace.outputs, alone.outputs, rtol=0, atol=0 if kind != "float" else 1e-5)
        steps = np.abs(trace.activations - alone.activations) > 1e-5
        assert steps.mean() < 1e-2, "rounding at a tie, as the runtime fuses other operators"
        for a, b in zip(trace.gradients, alone.gradients, strict=True):
            same(a, b, name)
    plain = ort.InferenceSession(files[kind]).run(None, {model._recording().signature.source: X})[0]
    np.testing.assert_allclose(traces[0].outputs, plain, atol=0 if kind != "float" else 1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_the_value_at_a_later_cut_continues_the_run(files: dict[str, Path], kind: str) -> None:
    """The tail behind a cut, from the value of the run, gives the outputs of the run."""
    model = xcam.load(files[kind], preprocess="raw", threads=1)
    names = [layer.name for layer in model.layers if not layer.bypassed and layer.has_space]
    assert len(names) > 3
    assert any(layer.bypassed for layer in model.layers)
    traces, rows = model.trace(X, names), [1, 0, 1]
    for k, (name, trace) in enumerate(zip(names[:-1], traces, strict=False)):
        changed = (trace.activations[rows] * np.random.default_rng(k).uniform(0.5, 1.5, (3, 1, 1, 1))).astype(
            np.float32
        )
        after, last = model.resume(trace, changed, rows, cotangents, at=[names[k + 1], names[-1]])
        clean = traces[k + 1].activations[rows]
        assert np.abs(after.activations - clean).max() > 0.01 * np.abs(clean).max(), (
            "it is the value of the clean run"
        )
        for one in (after, last):
            continued = model.resume(one, one.activations, cotangents=cotangents)
            same(continued.outputs, after.outputs, name)
            same(continued.gradients[1], one.gradients[1], name)


def test_the_inside_of_a_block_keeps_the_given_value_on_the_skip(files: dict[str, Path]) -> None:
    """From the block's input the inner values follow; from an inner value the skip has that of the run."""
    model = xcam.load(files["float"], preprocess="raw", threads=1)
    layers = list(model.layers)
    k = next(i for i, layer in enumerate(layers) if layer.bypassed)
    start, inner = layers[k - 1].name, layers[k].name
    end = next(layer.name for layer in layers[k:] if not layer.bypassed and not layer.is_output)
    trace = model.trace(X, start)
    changed = 0.5 * trace.activations
    inside, outside = model.resume(trace, changed, at=[inner, end])
    again = model.resume(inside, inside.activations, at=end)
    np.testing.assert_allclose(again.activations, outside.activations, rtol=1e-4, atol=1e-5)
    stale = model.resume(model.trace(X, inner), inside.activations, at=end)
    assert np.abs(stale.activations - outside.activations).max() > 1e-2


def test_the_number_of_sessions_is_bounded(files: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recording, "MOST_TAILS", 3)
    model = xcam.load(files["float"], preprocess="raw", threads=1)
    names = [layer.name for layer in model.layers if layer.differentiable and not layer.is_output]
    traces = model.trace(X, names)
    expected = [model.resume(trace, 2 * trace.activations).outputs for trace in traces]
    assert len(model._recording()._tails._values) == 3
    for trace, outputs in zip(traces, expected, strict=True):
        np.testing.assert_array_equal(model.resume(trace, 2 * trace.activations).outputs, outputs)
