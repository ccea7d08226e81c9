"""Several layers in one pass, traces at later layers, and cuts, on the engine in use."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import xcam
from xcam_keras.backend import keras

X = np.random.default_rng(0).normal(size=(2, 12, 10, 3)).astype(np.float32)
ROWS = [1, 0, 1]
LAYERS = keras.layers


def block(x: Any, filters: int, name: str) -> Any:
    """tanh(conv2(tanh(conv1(x))) + skip): without kinks, for differences."""
    y = LAYERS.Conv2D(filters, 3, padding="same", name=f"{name}_conv1")(x)
    y = LAYERS.Activation("tanh", name=f"{name}_act")(y)
    y = LAYERS.Conv2D(filters, 3, padding="same", name=f"{name}_conv2")(y)
    if x.shape[-1] != filters:
        x = LAYERS.Conv2D(filters, 1, name=f"{name}_skip")(x)
    return LAYERS.Activation("tanh", name=f"{name}_out")(LAYERS.Add(name=f"{name}_add")([y, x]))


def residual() -> Any:
    x = image = keras.Input((12, 10, 3))
    x = LAYERS.Conv2D(4, 3, strides=2, name="stem")(x)
    x = block(block(x, 4, "a"), 6, "b")
    x = LAYERS.Dropout(0.5, name="drop")(LAYERS.GlobalAveragePooling2D(name="pool")(x))
    return keras.Model(image, LAYERS.Dense(3, name="scores")(x))


def dense() -> Any:
    x = image = keras.Input((12, 10, 3))
    a = LAYERS.Conv2D(4, 3, name="first")(x)
    b = LAYERS.Concatenate(name="join1")([a, LAYERS.Conv2D(4, 1, activation="tanh", name="second")(a)])
    c = LAYERS.Concatenate(name="join2")([b, LAYERS.Conv2D(4, 1, activation="tanh", name="third")(b)])
    x = LAYERS.Conv2D(5, 1, activation="tanh", name="last")(c)
    return keras.Model(image, LAYERS.Dense(3, name="scores")(LAYERS.GlobalAveragePooling2D(name="pool")(x)))


class Subclassed(keras.Model):
    """A model without a graph of its own: a residual block, and a part inside a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = LAYERS.Conv2D(4, 3, name="stem")
        self.inside = keras.Sequential(
            [LAYERS.Conv2D(4, 1, name="one"), LAYERS.Activation("tanh", name="two")], name="inside"
        )
        self.pool, self.scores = LAYERS.GlobalAveragePooling2D(name="pool"), LAYERS.Dense(3, name="scores")

    def call(self, x: Any) -> Any:
        a = self.stem(x)
        return self.scores(self.pool(self.inside(a) + a))


NETWORKS: dict[str, tuple[Callable[[], Any], list[str], set[str]]] = {
    "residual": (
        residual,
        ["stem", "a_conv1", "a_conv2", "a_out", "b_conv1", "b_skip", "b_out"],
        {"stem", "a_add", "a_out", "b_add", "b_out", "pool", "drop", "scores"},
    ),
    "dense": (dense, ["first", "second", "third", "last"], {"first", "join1", "join2", "last", "pool", "scores"}),
    "subclassed": (Subclassed, ["stem", "inside/one", "inside"], {"stem", "pool", "scores"}),
}


def cotangents(outputs: Any) -> list[Any]:
    return [np.eye(outputs.shape[1], dtype=np.float32)[[k] * len(outputs)] for k in (0, 2)]


def loaded(kind: str) -> tuple[Any, list[str]]:
    keras.utils.set_random_seed(0)
    make, names, _ = NETWORKS[kind]
    model = make()
    model(np.zeros((1, 12, 10, 3), np.float32))
    return xcam.load(model, preprocess="raw"), names


def close(a: Any, b: Any, label: str) -> None:
    np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4 * float(np.abs(b).max()) + 1e-7, err_msg=label)


@pytest.mark.parametrize("kind", NETWORKS)
def test_cuts(kind: str) -> None:
    model, _ = loaded(kind)
    assert {layer.name for layer in model.layers if not layer.bypassed} == NETWORKS[kind][2]


@pytest.mark.parametrize("kind", NETWORKS)
def test_several_layers_have_the_values_of_each_alone(kind: str) -> None:
    model, names = loaded(kind)
    for order in (names, names[::-1]):
        for name, trace in zip(order, model.trace(X, order, cotangents), strict=True):
            alone = model.trace(X, name, cotangents)
            close(trace.outputs, alone.outputs, name)
            close(trace.activations, alone.activations, name)
            for one, other in zip(trace.gradients, alone.gradients, strict=True):
                close(one, other, name)


@pytest.mark.parametrize("kind", NETWORKS)
def test_gradients_in_a_resumed_run_are_differences_of_its_outputs(kind: str) -> None:
    """From the value of the run at a later layer, a small change moves the outputs as the gradient says."""
    model, names = loaded(kind)
    rng = np.random.default_rng(3)
    for k, (name, trace) in enumerate(zip(names[:-1], model.trace(X, names), strict=False)):
        changed = (trace.activations[ROWS] * rng.uniform(0.5, 1.5, trace.activations[ROWS].shape)).astype(np.float32)
        at = names[k + 1 :]
        resumed = model.resume(trace, changed, ROWS, cotangents, at=at)
        for other, one in zip(at, resumed, strict=True):
            label = f"{other} from {name}"
            whole = model.resume(one, one.activations)
            close(whole.outputs, one.outputs, label)
            direction = rng.normal(size=one.activations.shape).astype(np.float32)
            step = 2e-3 * float(np.abs(one.activations).max())
            up, down = (model.resume(one, one.activations + s * step * direction).outputs for s in (1, -1))
            slope = (one.gradients[1] * direction).sum((1, 2, 3))
            size = np.sqrt((one.gradients[1] ** 2).sum((1, 2, 3)))
            assert np.all(np.abs((up - down)[:, 2] / (2 * step) - slope) <= 0.05 * size + 1e-5), label
