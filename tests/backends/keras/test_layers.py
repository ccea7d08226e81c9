"""Facts about a layer: the outputs that depend on it, and on how many of its tokens, and its gradient; on the engine in use."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest

import xcam
from xcam import InputError, ModelError
from xcam.models.layers import default
from xcam_keras.backend import keras

from engines import gradient  # isort: skip  (Keras is imported by then)

L, ops = keras.layers, keras.ops
SIZE, DIM = 16, 8
X = np.random.default_rng(0).normal(size=(2, SIZE, SIZE, 3)).astype(np.float32)
IMAGE = np.random.default_rng(1).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
UNIT = IMAGE[None] / np.float32(255)


class First(L.Layer):
    """Put learnt tokens before the others."""

    def __init__(self, count: int = 1, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.count = count

    def build(self, shape: Any) -> None:
        self.tokens = self.add_weight(shape=(1, self.count, shape[-1]), initializer="random_normal")

    def call(self, x: Any) -> Any:
        return ops.concatenate([ops.broadcast_to(self.tokens, (ops.shape(x)[0], self.count, x.shape[-1])), x], 1)


class Query(L.Layer):
    """A learnt query that attends to all tokens."""

    def __init__(self) -> None:
        super().__init__(name="pooling")
        self.attention = L.MultiHeadAttention(2, 4, name="attention")

    def build(self, shape: Any) -> None:
        self.query = self.add_weight(shape=(1, 1, shape[-1]), initializer="random_normal")
        self.attention.build((None, 1, shape[-1]), shape)

    def call(self, x: Any) -> Any:
        query = ops.broadcast_to(self.query, (ops.shape(x)[0], 1, x.shape[-1]))
        return self.attention(query, x)[:, 0]


class Vit:
    """A vision transformer whose layers can be called with additions to their values."""

    def __init__(self, head: Callable[[Any], Any], first: int = 1) -> None:
        keras.utils.set_random_seed(3)
        names = [f"{part}_{n}" for n in range(2) for part in ("norm1", "norm2")]
        self.parts: dict[str, Any] = {name: L.LayerNormalization(name=name) for name in [*names, "last_norm"]}
        for n in range(2):
            self.parts[f"attention_{n}"] = L.MultiHeadAttention(2, 4, name=f"attention_{n}")
            self.parts[f"dense_{n}"] = L.Dense(DIM, activation="gelu", name=f"dense_{n}")
        self.parts["patches"] = L.Conv2D(DIM, 4, 4, name="patches")
        self.parts["first"] = First(first, name="first")
        self.head, self.rows = head, L.Reshape((SIZE // 4 * SIZE // 4, DIM), name="rows")
        inputs = L.Input((SIZE, SIZE, 3))
        self.model = keras.Model(inputs, self(inputs), name="vit")

    def __call__(self, x: Any, added: Mapping[str, Any] | None = None) -> Any:
        def part(name: str, *args: Any) -> Any:
            value = self.parts[name](*args)
            return value + added[name] if added and name in added else value

        x = part("first", self.rows(part("patches", x)))
        for n in range(2):
            a = part(f"norm1_{n}", x)
            x = x + part(f"attention_{n}", a, a)
            x = x + part(f"dense_{n}", part(f"norm2_{n}", x))
        return self.head(part("last_norm", x))


def dense(count: int = 3, **options: Any) -> L.Layer:
    return L.Dense(count, name="scores", **options)


def lstm() -> Callable[[Any], Any]:
    loop, end = L.LSTM(6, name="lstm"), dense()
    return lambda x: end(loop(x))


def then(*layers: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def head(x: Any) -> Any:
        for layer in layers:
            x = layer(x)
        return x

    return head


HEADS: dict[str, tuple[Callable[[], Callable[[Any], Any]], int, str]] = {
    "class token": (lambda: then(lambda x: x[:, 0], dense()), 1, "norm1_1"),
    "class token and registers": (lambda: then(lambda x: x[:, 0], dense()), 4, "norm1_1"),
    "two class tokens": (lambda: then(lambda x: ops.mean(x[:, :2], 1), dense()), 2, "norm1_1"),
    "class token of a normalised slice": (
        lambda: then(lambda x: x[:, :1], L.LayerNormalization(name="slice"), L.Flatten(), dense()),
        1,
        "norm1_1",
    ),
    "mean of all tokens": (lambda: then(L.GlobalAveragePooling1D(), dense()), 1, "last_norm"),
    "mean of the patches": (lambda: then(lambda x: ops.mean(x[:, 1:], 1), dense()), 1, "last_norm"),
    "attention pooling": (lambda: then(Query(), dense()), 1, "last_norm"),
    "recurrent": (lstm, 1, "last_norm"),
    "weights of zero": (lambda: then(lambda x: x[:, 0], dense(kernel_initializer="zeros")), 1, "last_norm"),
}


@pytest.mark.filterwarnings("ignore::xcam.errors.ZeroHeatmapWarning")
@pytest.mark.parametrize("head", HEADS)
def test_the_default_layer_is_the_last_whose_tokens_lead_on(head: str) -> None:
    """The gradient and the map are those of plain code."""
    build, first, expected = HEADS[head]
    vit = Vit(build(), first)
    model = xcam.load(vit.model, preprocess="unit")
    assert default(model).name == expected
    score = lambda added: vit(UNIT, {expected: added})[0, 1]  # noqa: E731
    truth = gradient(score, np.zeros((1, SIZE + first, DIM), np.float32))
    value = keras.ops.convert_to_numpy(keras.Model(vit.model.input, vit.parts[expected].output)(UNIT))
    e = xcam.explain(model, IMAGE, target=1, method="hirescam") if np.any(truth) else None
    assert (e is None) == (head == "weights of zero")
    if e is not None:
        cam = (truth * value).sum(-1)[0, first:].reshape(4, 4)
        np.testing.assert_allclose(e.cam, cam, atol=1e-5 * np.abs(cam).max() + 1e-7)


def test_layers_of_tokens_lead_to_an_output_that_depends_on_most_of_them() -> None:
    vit = Vit(then(lambda x: x[:, 0], dense()))
    model = xcam.load(vit.model)
    reached = {layer.name: layer.reaches_output for layer in model.layers}
    for name in (
        "first",
        "norm1_0",
        "attention_0",
        "norm2_0",
        "dense_0",
        "norm1_1",
        "attention_1",
        "norm2_1",
        "last_norm",
    ):
        shape = (1, SIZE + 1, DIM)
        truth = gradient(lambda added, name=name: ops.sum(vit(X[:1], {name: added})), np.zeros(shape, np.float32))
        assert reached[name] == bool((truth != 0).any(-1).mean() > 0.5), name
    assert [name for name in ("norm1_1", "attention_1", "last_norm") if reached[name]] == ["norm1_1"]
    trace = model.trace(X, "last_norm", lambda z: [np.ones_like(z)])  # by name it can still be opened
    assert np.abs(trace.gradients[0]).any(axis=(0, 1)).tolist() == [True] + [False] * SIZE


def test_each_layer_states_the_outputs_that_it_leads_to() -> None:
    inputs = L.Input((SIZE, SIZE, 3))
    trunk = L.Conv2D(4, 3, padding="same", name="trunk")(inputs)
    left = L.Conv2D(4, 3, padding="same", name="left")(trunk)
    right = L.Conv2D(4, 3, padding="same", name="right")(trunk)
    kind = L.Dense(3, name="scores")(L.GlobalAveragePooling2D()(left))
    keras_model = keras.Model(inputs, {"mask": L.Conv2D(1, 1, name="last")(right), "kind": kind})
    model = xcam.load(keras_model)
    leads = {layer.name: layer.leads_to for layer in model.layers}
    outputs = list(model.predict(X))
    assert sorted(outputs) == ["kind", "mask"]
    assert sorted(leads["trunk"]) == sorted(outputs)
    assert (leads["left"], leads["right"], leads["last"], leads["scores"]) == (
        ("kind",),
        ("mask",),
        ("mask",),
        ("kind",),
    )


def test_tokens_lead_to_the_outputs_that_depend_on_most_of_them() -> None:
    tokens, scores = L.Dense(5, name="tokens"), dense()
    vit = Vit(lambda x: {"features": tokens(x), "logits": scores(x[:, 0])})
    model = xcam.load(vit.model)
    leads = {layer.name: set(layer.leads_to or ()) for layer in model.layers}
    assert leads["norm1_1"] == {"features", "logits"}
    assert leads["last_norm"] == leads["norm2_1"] == {"features"}


def test_a_value_whose_shape_alone_is_read_leads_to_nothing() -> None:
    inputs = L.Input((SIZE, SIZE, 3))
    sized = L.Conv2D(4, 3, padding="same", name="sized")(inputs)
    x = L.Conv2D(4, 3, padding="same", name="read")(inputs) + ops.zeros_like(sized)
    model = xcam.load(keras.Model(inputs, L.Dense(2)(L.GlobalAveragePooling2D()(x))))
    assert {layer.name: layer.reaches_output for layer in model.layers if layer.kind == "Conv2D"} == {
        "sized": False,
        "read": True,
    }
    with pytest.raises(ModelError, match=r"cannot differentiate .* at layer 'sized': no differentiable path"):
        model.trace(X, "sized", lambda z: [np.ones_like(z)])
    np.testing.assert_allclose(model.trace(X, "sized").outputs, model.predict(X), atol=1e-6)


BREAKS: dict[str, Callable[[Any], Any]] = {
    "detached": ops.stop_gradient,
    "rounded": lambda x: ops.round(4 * x),
    "floored": lambda x: ops.floor(4 * x) / 4,
    "signs": ops.sign,
    "integers": lambda x: ops.cast(ops.cast(8 * x, "int32"), "float32"),
    "indices": lambda x: ops.one_hot(ops.argmax(x, axis=-1), 4),
    "compared": lambda x: ops.cast(x > 0, "float32"),
}


class Break(L.Layer):
    def __init__(self, name: str) -> None:
        super().__init__(name="break")
        self.function = BREAKS[name]

    def call(self, x: Any) -> Any:
        return self.function(x)


def broken(name: str) -> keras.Model:
    keras.utils.set_random_seed(5)
    x = inputs = L.Input((SIZE, SIZE, 3))
    x = Break(name)(L.Conv2D(4, 3, name="ahead")(x))
    x = L.Activation("tanh", name="behind")(L.Conv2D(5, 3, name="conv")(x))
    return keras.Model(inputs, dense()(L.GlobalAveragePooling2D(name="mean")(x)), name="net")


@pytest.mark.filterwarnings("ignore::xcam.errors.ZeroHeatmapWarning")
@pytest.mark.parametrize("name", BREAKS)
def test_methods_without_gradients_work_ahead_of_a_break(name: str) -> None:
    keras_model = broken(name)
    model = xcam.load(keras_model, preprocess="unit")
    layers = {layer.name: layer for layer in model.layers}
    assert {
        name: (layer.reaches_output, layer.differentiable) for name, layer in layers.items() if layer.has_space
    } == {
        "ahead": (True, False),
        "break": (True, True),
        "conv": (True, True),
        "behind": (True, True),
    }
    assert default(model).name == "behind"
    e = xcam.explain(model, IMAGE, layer="ahead", method="ablationcam", target=1)
    value = keras.ops.convert_to_numpy(keras_model.get_layer("ahead")(UNIT))

    def score(value: Any) -> float:
        for part in ("break", "conv", "behind", "mean", "scores"):
            value = keras_model.get_layer(part)(value)
        return float(ops.convert_to_numpy(value)[0, 1])

    whole = score(value)
    weights = [(whole - score(value * (np.arange(4) != c).astype(np.float32))) / abs(whole) for c in range(4)]
    cam = value[0] @ np.array(weights, np.float32)
    assert np.any(cam)
    np.testing.assert_allclose(e.cam, cam, atol=1e-4 * np.abs(cam).max())
    for method in ("eigencam", "scorecam", "reciprocam"):
        assert np.isfinite(xcam.explain(model, IMAGE, layer="ahead", method=method, target=1).cam).all()


@pytest.mark.parametrize("name", ["detached", "rounded", "integers"])
def test_a_method_with_gradients_names_the_next_layer_that_has_one(name: str) -> None:
    model = xcam.load(broken(name), preprocess="unit")
    with pytest.raises(
        ModelError, match=r"layer 'ahead': no differentiable path leads .*; choose layer 'break', the next"
    ):
        xcam.explain(model, IMAGE, layer="ahead")


def test_a_gradient_that_passes_a_rounding_on_purpose() -> None:
    inputs = L.Input((SIZE, SIZE, 3))
    conv, end = L.Conv2D(4, 3, name="conv"), dense()
    tail = lambda x: end(ops.mean(ops.tanh(x + ops.stop_gradient(ops.round(x) - x)), (1, 2)))  # noqa: E731
    model = xcam.load(keras.Model(inputs, tail(conv(inputs))))
    assert model.layers[0].differentiable
    truth = gradient(lambda a: ops.sum(tail(a)), keras.ops.convert_to_numpy(conv(X)))
    trace = model.trace(X, "conv", lambda z: [np.ones_like(z)])
    np.testing.assert_allclose(np.moveaxis(trace.gradients[0], 1, -1), truth, atol=1e-6)


@pytest.mark.parametrize("first", [False, True])
def test_a_pass_with_gradients_and_one_without_agree(first: bool) -> None:
    """The one that is opened first does not decide what the other can do."""
    keras_model = broken("detached")
    model = xcam.load(keras_model)
    ones = lambda z: [np.ones_like(z)]  # noqa: E731
    expected = xcam.load(keras_model).trace(X, "conv", ones)
    trace = model.trace(X, "conv", ones if first else None)
    other = model.trace(X, "conv", None if first else ones)
    np.testing.assert_array_equal(trace.activations, other.activations)
    np.testing.assert_allclose(trace.outputs, expected.outputs, atol=1e-6)
    for opened in (trace, other):
        resumed = model.resume(opened, opened.activations[[1, 0]], [1, 0], ones)
        np.testing.assert_allclose(resumed.gradients[0], expected.gradients[0][[1, 0]], atol=1e-6)
        np.testing.assert_allclose(model.resume(opened, opened.activations).outputs, expected.outputs, atol=1e-6)


def test_a_layer_that_depends_on_the_size_of_the_batch_alone() -> None:
    """A reference image next to the user's own, and the learnt tokens of a transformer."""
    reference = np.random.default_rng(2).normal(size=(1, SIZE, SIZE, 3)).astype(np.float32)
    x = inputs = L.Input((SIZE, SIZE, 3))
    encoder, mean = L.Conv2D(4, 3, name="encoder"), L.GlobalAveragePooling2D(name="mean")
    y = L.Lambda(lambda x: ops.broadcast_to(ops.convert_to_tensor(reference), ops.shape(x)), name="reference")(x)
    z = ops.abs(mean(encoder(x)) - mean(encoder(y)))
    model = xcam.load(keras.Model(inputs, dense()(z)))
    assert {layer.name: layer.depends_on_input for layer in model.layers if layer.has_space} == {
        "reference": False,
        "encoder#0": False,  # Keras calls it on the reference first
        "encoder": True,
    }


def test_values_with_an_axis_of_heads_have_no_map() -> None:
    vit = Vit(then(L.GlobalAveragePooling1D(), dense()))
    model = xcam.load(vit.model, preprocess="unit")
    layers = {layer.name: layer for layer in model.layers}
    assert [layers[f"attention_0/{name}"].has_space for name in ("query", "key", "value")] == [False] * 3
    assert layers["norm1_0"].has_space
    with pytest.raises(InputError, match="cannot explain layer 'attention_0/query'"):
        xcam.explain(model, IMAGE, layer="attention_0/query")


def test_layers_with_one_axis_of_channels_imply_their_layout() -> None:
    x = inputs = L.Input((SIZE, SIZE, 3))
    x = L.BatchNormalization(name="last")(L.Conv2D(4, 3, name="conv")(x))
    x = L.Permute((3, 1, 2), name="permuted")(x)
    x = L.BatchNormalization(axis=1, name="first")(x)
    x = L.GroupNormalization(2, axis=1, name="groups")(x)
    x = L.Permute((2, 3, 1))(x)
    x = L.EinsumDense("abcd,de->abce", output_shape=(None, None, 6), name="einsum")(x)
    x = L.LayerNormalization(name="norm")(x)
    keras_model = keras.Model(inputs, dense()(L.GlobalAveragePooling2D(name="mean")(x)))
    shapes = {layer.name: layer.shape for layer in xcam.load(keras_model).layers}
    side = SIZE - 2
    assert [shapes[name] for name in ("conv", "last", "first", "groups")] == [(4, side, side)] * 4
    assert shapes["einsum"] == shapes["norm"] == (6, side, side)
