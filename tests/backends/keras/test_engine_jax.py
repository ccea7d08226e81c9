"""Keras on JAX: no tracer leaks into the user's model, and weights are arguments of the compiled functions."""

from __future__ import annotations

import jax
import numpy as np
import pytest

import xcam
from xcam_keras.backend import keras

pytestmark = pytest.mark.skipif(keras.backend.backend() != "jax", reason="for Keras on JAX")
L = keras.layers
X = np.random.default_rng(0).normal(size=(3, 8, 8, 3)).astype(np.float32)


def network() -> keras.Model:
    x = inputs = L.Input((8, 8, 3))
    x = L.BatchNormalization(name="norm")(L.Conv2D(4, 3, name="conv", activity_regularizer="l2")(x))
    x = L.Dropout(0.5, name="drop")(L.Activation("tanh", name="tanh")(x))
    return keras.Model(inputs, L.Dense(3, activation="softmax")(L.GlobalAveragePooling2D()(x)))


def first(z: np.ndarray) -> list[np.ndarray]:
    return [np.eye(z.shape[1], dtype=np.float32)[[0] * len(z)]]


def test_no_tracer_leaks() -> None:
    keras_model = network()
    with jax.checking_leaks():
        model = xcam.load(keras_model)
        trace = model.trace(X, "tanh", first)
        model.resume(trace, trace.activations[:2], [1, 2], first)
    assert not any(isinstance(v.value, jax.core.Tracer) for v in keras_model.variables)
    assert not any(isinstance(loss, jax.core.Tracer) for loss in keras_model.losses)


def test_new_weights_need_no_compilation() -> None:
    keras_model = network()
    model = xcam.load(keras_model)
    trace = model.trace(X, "tanh", first)
    kernel = keras_model.get_layer("conv").kernel
    kernel.assign(kernel * 2)
    with pytest.MonkeyPatch.context() as patch:

        def fail(*_: object, **__: object) -> None:
            raise AssertionError("compiled again")

        patch.setattr(jax, "vjp", fail)  # called only where the tail is traced
        again = model.trace(X, "tanh", first)
    assert np.abs(again.activations - trace.activations).max() > 1e-2


def test_a_loop_is_listed_as_one_layer() -> None:
    x = inputs = L.Input((8, 8, 3))
    x = L.RNN(L.LSTMCell(5, name="cell"), return_sequences=True, name="loop")(L.Reshape((8, 24), name="rows")(x))
    model = xcam.load(keras.Model(inputs, L.Dense(2, name="out")(L.Flatten(name="flat")(x))))
    assert [layer.name for layer in model.layers] == ["rows", "loop", "flat", "out"]
    assert np.abs(model.trace(X, "rows", first).gradients[0]).max() > 0
