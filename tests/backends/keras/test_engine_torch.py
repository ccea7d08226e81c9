"""Keras on torch: torch's own state does not change, and `resume` does not compute the layers before the cut."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import xcam
from xcam_keras.backend import keras

pytestmark = pytest.mark.skipif(keras.backend.backend() != "torch", reason="for Keras on torch")
L = keras.layers
X = np.random.default_rng(0).normal(size=(3, 8, 8, 3)).astype(np.float32)


def network(*ahead: keras.layers.Layer, gate: bool = False) -> keras.Model:
    """Two convolutions before `cut`, which a skip connection passes by."""
    x = inputs = L.Input((8, 8, 3))
    for layer in ahead:
        x = layer(x)
    a = L.Conv2D(4, 3, padding="same", activation="relu", name="a")(x)
    b = L.Conv2D(4, 3, padding="same", name="b")(a)
    c = L.Conv2D(4, 3, padding="same", name="cut")(b)
    x = c * keras.ops.cast(b > 0, "float32") if gate else L.Add(name="add")([a, c])
    x = L.Conv2D(5, 3, name="behind")(x)
    return keras.Model(inputs, L.Dense(3)(L.GlobalAveragePooling2D()(x)))


def first(z: np.ndarray) -> list[np.ndarray]:
    return [np.eye(z.shape[1], dtype=np.float32)[[0] * len(z)]]


def test_gradients_and_flags_of_parameters_do_not_change() -> None:
    keras_model = network()
    parameters = list(keras_model.parameters())
    parameters[0].grad = torch.full_like(parameters[0], 7)
    parameters[1].requires_grad_(False)
    model = xcam.load(keras_model)
    trace = model.trace(X, "b", first)
    model.resume(trace, trace.activations, cotangents=first)
    assert np.abs(trace.gradients[0]).max() > 0
    assert [p.requires_grad for p in parameters] == [i != 1 for i in range(len(parameters))]
    assert bool((parameters[0].grad == 7).all())
    assert all(p.grad is None for p in parameters[1:])
    assert torch.is_grad_enabled()


def test_modules_of_torch_keep_their_mode() -> None:
    module = torch.nn.Sequential(torch.nn.BatchNorm2d(8), torch.nn.Dropout(0.9))
    keras_model = network(L.TorchModuleWrapper(module, output_shape=(None, 8, 8, 3)))
    module.train()
    module[1].eval()
    with torch.no_grad():
        model = xcam.load(keras_model)
        outputs = [model.predict(X) for _ in range(2)]
    assert (module.training, module[0].training, module[1].training) == (True, True, False)
    np.testing.assert_array_equal(*outputs)
    assert int(module[0].num_batches_tracked) == 0


@pytest.mark.parametrize("gate", [False, True])
def test_resume_spares_the_layers_before_the_cut_where_possible(gate: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a gate the tail reads a layer in a comparison, which torch's graph does not show."""
    keras_model = network(gate=gate)
    model = xcam.load(keras_model)
    trace = model.trace(X, "cut")
    rows = [2, 0, 1, 2]
    replacement = trace.activations[rows] * 0.5
    resumed = model.resume(trace, replacement, rows, first)
    called: list[str] = []
    original = L.Conv2D.call

    def call(layer: Any, *args: Any) -> Any:
        called.append(layer.name)
        return original(layer, *args)

    monkeypatch.setattr(L.Conv2D, "call", call)
    again = model.resume(trace, replacement, rows, first)
    assert called == (["a", "b", "cut", "behind"] if gate else ["cut", "behind"])
    np.testing.assert_array_equal(again.outputs, resumed.outputs)
    whole = model.trace(X[rows], "cut", first)
    np.testing.assert_allclose(model.resume(whole, whole.activations).outputs, whole.outputs, atol=1e-6)
    if not gate:  # the tail is linear
        np.testing.assert_allclose(resumed.gradients[0], whole.gradients[0], atol=1e-6)
