"""The contract of the Keras backend, for every way to write a Keras model."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import xcam
from xcam import InputError, ModelError
from xcam_keras.backend import keras

from engines import gradient, out_of_memory  # isort: skip  (Keras is imported by then)

L = keras.layers
SIZE = 12
X = np.random.default_rng(0).normal(size=(3, SIZE, SIZE, 3)).astype(np.float32)


def backbone(name: str = "backbone") -> keras.Model:
    """A convolution, a residual around a depthwise one, a stride."""
    x = inputs = L.Input((SIZE, SIZE, 3))
    x = L.Conv2D(6, 3, padding="same", activation="relu", name="first")(x)
    y = L.DepthwiseConv2D(3, padding="same", name="depthwise")(x)
    y = L.BatchNormalization(name="norm")(y)
    x = L.Add(name="add")([x, y])
    x = L.Activation("tanh", name="merged")(x)
    x = L.Conv2D(8, 3, strides=2, padding="same", name="last")(x)
    return keras.Model(inputs, x, name=name)


def head(x: Any) -> Any:
    x = L.Dropout(0.5, name="drop")(x)
    x = L.GlobalAveragePooling2D(name="gap")(x)
    return L.Dense(4, activation="softmax", name="scores")(x)


def functional() -> keras.Model:
    whole = backbone()
    return keras.Model(whole.input, head(whole.output), name="functional")


def nested() -> keras.Model:
    inputs = L.Input((SIZE, SIZE, 3))
    return keras.Model(inputs, head(backbone()(L.Rescaling(0.5)(inputs))), name="nested")


def sequential() -> keras.Model:
    return keras.Sequential(
        [L.Input((SIZE, SIZE, 3)), backbone(), L.GlobalAveragePooling2D(), L.Dense(4), L.Softmax(name="soft")]
    )


class Subclassed(keras.Model):
    def __init__(self) -> None:
        super().__init__(name="subclassed")
        self.part = backbone()
        self.block = Block(name="block")
        self.pool = L.GlobalAveragePooling2D()
        self.out = L.Dense(4, activation="softmax")

    def call(self, x: Any) -> Any:  # without `training`
        return self.out(self.pool(self.block(self.part(x))))


class Block(L.Layer):
    """A custom layer with layers inside; its value differs from the values of its parts."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.inner = L.Conv2D(8, 1, name="inner")

    def call(self, x: Any) -> Any:
        return x + self.inner(x)


def subclassed() -> keras.Model:
    model = Subclassed()
    model(X)
    return model


def seeded(build: Callable[[], keras.Model]) -> keras.Model:
    """Build a model with weights and batch norm statistics large enough to reveal a wrong path."""
    keras.utils.set_random_seed(7)
    rng = np.random.default_rng(7)
    model = build()
    for variable in model.variables:
        if variable.dtype.startswith("float") and "moving_variance" in variable.path:
            variable.assign(0.5 + np.abs(rng.normal(size=variable.shape)))
        elif variable.dtype.startswith("float"):
            variable.assign(rng.normal(size=variable.shape) * 0.4)
    return model


WAYS = {
    "functional": (functional, "first", "last"),
    "nested": (nested, "backbone/depthwise", "backbone/last"),
    "sequential": (sequential, "backbone/first", "backbone/last"),
    "subclassed": (subclassed, "part/norm".replace("part", "backbone"), "block"),
}


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest) -> tuple[keras.Model, str, str]:
    build, early, last = WAYS[request.param]
    return seeded(build), early, last


def logits(model: keras.Model, x: np.ndarray) -> np.ndarray:
    return np.log(output_of(model, x))  # up to a constant for each row


def output_of(model: Callable[[Any], Any], x: np.ndarray) -> np.ndarray:
    return keras.ops.convert_to_numpy(model(x))


def one_hot(k: int) -> Callable[[np.ndarray], list[np.ndarray]]:
    return lambda y: [np.eye(y.shape[1], dtype=np.float32)[[k] * len(y)]]


def test_outputs_are_the_logits_under_the_softmax(way: tuple[keras.Model, str, str]) -> None:
    model = xcam.load(way[0])
    assert model.output_activation == "softmax"
    z = model.predict(X)
    expected = logits(way[0], X)
    np.testing.assert_allclose(z - z.mean(1, keepdims=True), expected - expected.mean(1, keepdims=True), atol=1e-4)


def test_the_default_layer_is_the_last_with_space(way: tuple[keras.Model, str, str]) -> None:
    assert xcam.models.layers.default(xcam.load(way[0])).name == way[2]


def test_trace_is_activations_and_predict(way: tuple[keras.Model, str, str]) -> None:
    model = xcam.load(way[0])
    for name in way[1:]:
        trace = model.trace(X, name)
        shape = next(layer.shape for layer in model.layers if layer.name == name)
        assert trace.activations.shape == (3, *shape)
        np.testing.assert_allclose(trace.activations, model.activations(X, [name])[name], atol=1e-6)
        np.testing.assert_allclose(trace.outputs, model.predict(X), atol=1e-6)


def test_the_gradient_agrees_with_differences_of_resume(
    way: tuple[keras.Model, str, str], rng: np.random.Generator
) -> None:
    """At `first` and `depthwise` a skip connection passes the layer by."""
    model = xcam.load(way[0])
    for name in way[1:]:
        trace = model.trace(X, name, one_hot(2))
        direction = rng.normal(size=trace.activations.shape).astype(np.float32)
        step = 1e-2
        up, down = (model.resume(trace, trace.activations + s * step * direction).outputs[:, 2] for s in (1, -1))
        expected = (up - down) / (2 * step)
        derivative = (trace.gradients[0] * direction).sum(axis=(1, 2, 3))
        np.testing.assert_allclose(derivative, expected, rtol=0.05, atol=2e-3 * np.abs(expected).max())


def test_the_gradient_is_that_of_the_engine(way: tuple[keras.Model, str, str]) -> None:
    """Another implementation: the gradient by an addend to the layer's value, by Keras' engine alone."""
    keras_model, *names = way
    model = xcam.load(keras_model)
    for name in names:
        layer: Any = keras_model
        for part in name.split("/"):
            layer = next(
                inner for inner in layer._flatten_layers(recursive=False, include_self=False) if inner.name == part
            )
        shape = model.trace(X, name).activations.shape
        original = layer.call

        def score(addend: Any, layer: Any = layer, original: Any = original) -> Any:
            layer.call = lambda *a, **k: original(*a, **k) + addend
            z = keras.ops.log(keras_model(X, training=False))
            # rows of softmax sum to 1: differences of log-probabilities are differences of logits
            return keras.ops.sum(z[:, 2] - z[:, 0])

        try:
            addend_gradient = gradient(score, np.zeros((shape[0], *shape[2:], shape[1]), np.float32))
        finally:
            layer.call = original
        expected = np.moveaxis(addend_gradient, -1, 1)
        v = np.float32([[-1, 0, 1, 0]] * 3)
        actual = model.trace(X, name, lambda y, v=v: [v]).gradients[0]
        np.testing.assert_allclose(actual, expected, atol=1e-5 * max(1, np.abs(expected).max()))


def test_several_cotangents_one_forward_pass(way: tuple[keras.Model, str, str]) -> None:
    model = xcam.load(way[0])
    calls = []

    def cotangents(y: np.ndarray) -> list[np.ndarray]:
        calls.append(y)
        return [one_hot(k)(y)[0] for k in range(4)]

    trace = model.trace(X, way[1], cotangents)
    assert len(calls) == 1
    for k, actual in enumerate(trace.gradients):
        np.testing.assert_allclose(actual, model.trace(X, way[1], one_hot(k)).gradients[0], atol=1e-6)


def test_resume_runs_variants_of_one_image_or_of_each(way: tuple[keras.Model, str, str]) -> None:
    model = xcam.load(way[0])
    for name in way[1:]:
        whole = model.trace(X, name)
        same = model.resume(whole, whole.activations)
        np.testing.assert_allclose(same.outputs, whole.outputs, atol=1e-5)
        variants = np.stack([whole.activations[2] * s for s in (0.0, 0.5, 1.0, 2.0)])
        rows = model.resume(whole, variants, rows=[2, 2, 2, 2], cotangents=one_hot(1))
        np.testing.assert_allclose(rows.outputs[2], whole.outputs[2], atol=1e-5)
        alone = model.trace(X[2:], name)
        np.testing.assert_allclose(model.resume(alone, variants).outputs, rows.outputs, atol=1e-5)
        again = model.trace(X, name, one_hot(1)).gradients[0]
        np.testing.assert_allclose(rows.gradients[0][2], again[2], atol=1e-5)
        with pytest.raises(InputError, match="one row for each variant"):
            model.resume(whole, variants)


def test_the_users_model_does_not_change(way: tuple[keras.Model, str, str]) -> None:
    keras_model, _, name = way
    call = keras.layers.Layer.__call__
    before = output_of(keras_model, X)
    weights = [w.copy() for w in keras_model.get_weights()]
    attributes = {id(layer): sorted(vars(layer)) for layer in keras_model._flatten_layers()}
    flags = [layer.trainable for layer in keras_model._flatten_layers()]
    model = xcam.load(keras_model)

    def fail(_: Any) -> Any:
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        model.trace(X, name, fail)
    model.trace(X, name, one_hot(0))
    assert keras.layers.Layer.__call__ is call
    assert {id(layer): sorted(vars(layer)) for layer in keras_model._flatten_layers()} == attributes
    assert [layer.trainable for layer in keras_model._flatten_layers()] == flags
    for a, b in zip(keras_model.get_weights(), weights, strict=True):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(output_of(keras_model, X), before)


def test_new_weights_are_used(way: tuple[keras.Model, str, str]) -> None:
    keras_model, _, name = way
    model = xcam.load(keras_model)
    before = model.trace(X, name).activations
    for w in keras_model.trainable_weights:
        w.assign(w * 2)
    assert not np.allclose(model.trace(X, name).activations, before)


@pytest.mark.parametrize("build", [functional, subclassed])
def test_threads_in_their_first_calls(build: Callable[[], keras.Model]) -> None:
    """Eight threads make every layer's first trace of one model at once."""
    keras_model = seeded(build)
    expected = {n: xcam.load(keras_model).trace(X, n, one_hot(1)).gradients[0] for n in names(keras_model)}
    model = xcam.load(keras_model)
    wrong: list[Any] = []

    def work(k: int) -> None:
        try:
            for name in list(expected)[k % 3 :] + list(expected)[: k % 3]:
                actual = model.trace(X, name, one_hot(1)).gradients[0]
                if not np.allclose(actual, expected[name], atol=1e-6):
                    wrong.append(name)
        except Exception as error:
            wrong.append(error)

    threads = [threading.Thread(target=work, args=(k,)) for k in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def names(keras_model: keras.Model) -> list[str]:
    return [layer.name for layer in xcam.load(keras_model).layers if layer.has_space and layer.reaches_output]


def test_mixed_precision_comes_back_as_float32() -> None:
    keras.config.set_dtype_policy("mixed_float16")
    try:
        keras_model = functional()
    finally:
        keras.config.set_dtype_policy("float32")
    model = xcam.load(keras_model)
    assert model.output_activation == "softmax"
    trace = model.trace(X, "last", one_hot(0))
    assert trace.activations.dtype == trace.gradients[0].dtype == trace.outputs.dtype == np.float32
    assert {layer.dtype for layer in model.layers} == {"float16"}
    assert np.abs(trace.gradients[0]).max() > 0


def test_a_layer_called_twice_is_explained_at_its_last_call() -> None:
    shared = L.Conv2D(3, 3, padding="same", name="shared")
    inputs = L.Input((SIZE, SIZE, 3))
    keras_model = keras.Model(inputs, head(shared(shared(inputs))))
    model = xcam.load(keras_model)
    assert [layer.name for layer in model.layers][:2] == ["shared#0", "shared"]
    values = model.activations(X, ["shared#0", "shared"])
    once = output_of(shared, X)
    np.testing.assert_allclose(np.moveaxis(values["shared#0"], 1, -1), once, atol=1e-5)
    np.testing.assert_allclose(np.moveaxis(values["shared"], 1, -1), output_of(shared, once), atol=1e-5)


def test_several_outputs_are_named_and_each_has_its_activation_cut_off(rng: np.random.Generator) -> None:
    inputs = L.Input((SIZE, SIZE, 3))
    x = L.Conv2D(5, 3, name="conv")(inputs)
    y = L.GlobalAveragePooling2D()(x)
    keras_model = keras.Model(
        inputs, {"kind": L.Dense(4, activation="softmax")(y), "box": L.Dense(2, activation="sigmoid")(y)}
    )
    model = xcam.load(keras_model)
    assert dict(model.output_activation) == {"kind": "softmax", "box": "sigmoid"}
    z = model.predict(X)
    assert {name: a.shape for name, a in z.items()} == {"kind": (3, 4), "box": (3, 2)}
    box = output_of(lambda x: keras_model(x)["box"], X)
    np.testing.assert_allclose(1 / (1 + np.exp(-z["box"])), box, atol=1e-5)
    image = rng.integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
    model.input = xcam.InputSpec(
        (SIZE, SIZE), layout="channels_last", preprocessing=xcam.Preprocessing("unit", 1 / 255)
    )
    e = xcam.explain(model, image, target=xcam.ClassScore(1, "probability", output="box"))
    truth = keras_model(image[None] / np.float32(255))
    truth = {name: keras.ops.convert_to_numpy(value) for name, value in truth.items()}
    np.testing.assert_allclose(e.score, truth["box"][0, 1], atol=1e-5)
    np.testing.assert_allclose(e.scores, truth["box"][0], atol=1e-5)
    with pytest.warns(xcam.XcamWarning, match="has 2 outputs, and 'kind' is explained, not 'box'"):
        first = xcam.explain(model, image, score="probability")
    np.testing.assert_allclose(first.scores, truth["kind"][0], atol=1e-5)
    np.testing.assert_allclose(first.score, truth["kind"][0].max(), atol=1e-5)


def test_a_model_that_was_never_called() -> None:
    keras.utils.set_random_seed(2)
    keras_model = Subclassed()
    model = xcam.load(keras_model, size=(SIZE, SIZE))
    assert "block" in [layer.name for layer in model.layers]
    trace = model.trace(X, "block", one_hot(1))
    np.testing.assert_allclose(
        np.exp(trace.outputs) / np.exp(trace.outputs).sum(1, keepdims=True), output_of(keras_model, X), atol=1e-5
    )
    with keras.StatelessScope():  # its end initializes all variables that Keras considers uninitialized
        pass


def end_in(function: Callable[[Any], Any]) -> keras.Model:
    inputs = L.Input((SIZE, SIZE, 3))
    z = L.Dense(4, name="z")(L.GlobalAveragePooling2D()(L.Conv2D(5, 3, name="conv")(inputs)))
    return keras.Model(inputs, function(z))


@pytest.mark.parametrize("kind", ["softmax", "sigmoid"])
def test_an_activation_is_cut_off_where_an_operation_makes_it_and_through_a_cast(kind: str) -> None:
    keras_model = end_in(lambda z: keras.ops.cast(getattr(keras.ops, kind)(keras.ops.cast(z, "float16")), "float32"))
    model = xcam.load(keras_model)
    assert model.output_activation == kind
    z = keras.Model(keras_model.input, keras_model.get_layer("z").output)
    np.testing.assert_allclose(model.predict(X), output_of(z, X), atol=1e-2)  # float16


def test_an_output_that_resembles_a_softmax_is_not_cut_off() -> None:
    def almost(z: Any) -> Any:
        return keras.ops.exp(2 * z) / keras.ops.sum(keras.ops.exp(z), axis=-1, keepdims=True)

    keras_model = end_in(almost)
    model = xcam.load(keras_model)
    assert model.output_activation is None
    np.testing.assert_allclose(model.predict(X), output_of(keras_model, X), rtol=1e-4)


def test_a_layer_that_no_output_reads_is_rejected() -> None:
    class Loose(keras.Model):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.loose, self.end = L.Conv2D(4, 3, name="used"), L.Conv2D(4, 3, name="loose"), L.Dense(2)

        def call(self, x: Any) -> Any:
            y = self.used(x)
            self.loose(x)
            return self.end(keras.ops.mean(y, axis=(1, 2)))

    keras_model = Loose()
    keras_model(X)
    model = xcam.load(keras_model, preprocess="unit", size=(SIZE, SIZE))
    assert xcam.models.layers.default(model).name == "used"
    with pytest.raises(InputError, match=r"layer 'loose': no output of .* depends on it"):
        xcam.explain(model, np.zeros((SIZE, SIZE, 3), np.uint8), layer="loose")
    with pytest.raises(ModelError, match=r"cannot differentiate .* at layer 'loose'"):
        model.trace(X, "loose", lambda z: [np.ones_like(z)])


def test_a_segmentation_model_is_explained_before_its_output() -> None:
    inputs = L.Input((SIZE, SIZE, 3))
    x = L.Conv2D(5, 3, padding="same", activation="relu", name="features")(inputs)
    keras_model = keras.Model(inputs, L.Conv2D(2, 1, activation="softmax", name="classes")(x))
    model = xcam.load(keras_model)
    assert model.output_activation == "softmax"
    assert xcam.models.layers.default(model).name == "features"
    assert model.predict(X).shape == (3, SIZE, SIZE, 2)


def test_every_size_is_traced() -> None:
    inputs = L.Input((None, None, 3))
    keras_model = keras.Model(inputs, head(L.Conv2D(4, 3, padding="same", name="conv")(inputs)))
    model = xcam.load(keras_model)
    assert model.input.size is None
    for side in (8, 9, 17):
        assert model.trace(np.ones((1, side, side + 1, 3), np.float32), "conv").activations.shape == (
            1,
            4,
            side,
            side + 1,
        )


def test_one_and_three_dimensions_and_tokens() -> None:
    line = keras.Sequential([L.Input((20, 2)), L.Conv1D(5, 3, name="conv"), L.GlobalAveragePooling1D(), L.Dense(3)])
    trace = xcam.load(line).trace(np.ones((2, 20, 2), np.float32), "conv", one_hot(0))
    assert trace.activations.shape == trace.gradients[0].shape == (2, 5, 18)
    cube = keras.Sequential(
        [L.Input((6, 7, 8, 1)), L.Conv3D(5, 3, name="conv"), L.GlobalAveragePooling3D(), L.Dense(3)]
    )
    trace = xcam.load(cube).trace(np.ones((2, 6, 7, 8, 1), np.float32), "conv", one_hot(0))
    assert trace.activations.shape == trace.gradients[0].shape == (2, 5, 4, 5, 6)
    inputs = L.Input((SIZE, SIZE, 3))
    x = L.Reshape((9, 10))(L.Conv2D(10, 4, strides=4, name="patches")(inputs))
    x = x + L.MultiHeadAttention(2, 5, name="attention")(x, x)
    x = L.LayerNormalization(name="norm")(x)
    model = xcam.load(keras.Model(inputs, L.Dense(3)(x[:, 0])))
    trace = model.trace(X, "norm", one_hot(0))
    assert trace.activations.shape == (3, 10, 9)
    assert next(layer for layer in model.layers if layer.name == "norm").layout == "tokens"
    assert not trace.gradients[0][..., 1:].any()


def test_models_that_cannot_be_explained() -> None:
    a, b = L.Input((8, 8, 3)), L.Input((8, 8, 3))
    two = keras.Model([a, b], L.Dense(2)(L.Flatten()(L.Add()([a, b]))), name="two")
    with pytest.raises(
        InputError,
        match=r"cannot use two: it takes 2 inputs .*, and an image fits .*; name the image's: image_input=",
    ):
        xcam.load(two)
    flat = keras.Sequential([L.Input((8, 8, 3)), L.Flatten(), L.Dense(2)], name="flat")
    with pytest.raises(ModelError, match="cannot choose a layer of flat"):
        xcam.explain(xcam.load(flat, preprocess="unit"), np.zeros((8, 8, 3), np.uint8))
    with pytest.raises(InputError, match=r"takes images of 12×12, not 24×24"):
        xcam.load(functional(), size=(24, 24))
    with pytest.raises(InputError, match="unknown layer 'lst' in functional; nearest: last"):
        xcam.explain(xcam.load(functional(), preprocess="unit"), np.zeros((8, 8, 3), np.uint8), layer="lst")
    with pytest.raises(InputError, match=r"unknown device 'cuda:7'; (TensorFlow|torch|JAX) has: (CPU|cpu):0"):
        xcam.load(functional(), device="cuda:7")


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "SimpleRNN"])
def test_a_layer_before_a_recurrent_one(kind: str) -> None:
    keras.utils.set_random_seed(1)
    inputs = L.Input((SIZE, SIZE, 3))
    x = L.Reshape((SIZE, 4 * SIZE))(L.Conv2D(4, 3, padding="same", name="conv")(inputs))
    keras_model = keras.Model(inputs, L.Dense(3)(L.Flatten()(getattr(L, kind)(5, return_sequences=True)(x))))
    model = xcam.load(keras_model)
    trace = model.trace(X, "conv", one_hot(1))
    tail = keras.Model(keras_model.get_layer("conv").output, keras_model.output)
    a = np.ascontiguousarray(np.moveaxis(trace.activations, 1, -1))
    expected = np.moveaxis(gradient(lambda a: keras.ops.sum(tail(a)[:, 1]), a), -1, 1)
    np.testing.assert_allclose(trace.gradients[0], expected, atol=1e-5 * np.abs(expected).max())
    np.testing.assert_allclose(model.resume(trace, trace.activations).outputs, trace.outputs, atol=1e-5)


@pytest.mark.parametrize("fold", [True, False])
def test_resume_where_bypass_values_are_not_row_by_row(fold: bool) -> None:
    keras.utils.set_random_seed(1)
    inputs = L.Input((SIZE, SIZE, 3))
    y = L.Activation("tanh")(L.Conv2D(4, 1, name="conv")(inputs))
    if fold:  # rows of the image folded into the batch
        rows = keras.ops.reshape(inputs, (-1, SIZE, 3))
        side = keras.ops.reshape(L.Dense(4, activation="tanh")(rows), (-1, SIZE, SIZE, 4))
    else:
        side = keras.ops.mean(inputs)
    keras_model = keras.Model(inputs, L.Dense(3)(L.GlobalAveragePooling2D()(y * side)))
    model = xcam.load(keras_model)
    trace = model.trace(X, "conv", one_hot(0))
    picked = [2, 0, 2, 1]
    resumed = model.resume(trace, trace.activations[picked], picked, one_hot(0))
    np.testing.assert_allclose(resumed.outputs, output_of(keras_model, X[picked]), atol=1e-5)
    np.testing.assert_allclose(
        resumed.gradients[0], model.trace(X[picked], "conv", one_hot(0)).gradients[0], atol=1e-5
    )


def test_integer_outputs_are_left_out_and_cotangents_are_matched_by_name(rng: np.random.Generator) -> None:
    inputs = L.Input((SIZE, SIZE, 3))
    z = L.Dense(4, name="z")(L.GlobalAveragePooling2D()(L.Conv2D(5, 3, name="conv")(inputs)))
    both = keras.Model(inputs, {"best": keras.ops.argmax(z, axis=1), "z": z, "mean": keras.ops.mean(z, axis=1)})
    model = xcam.load(both)
    v, zero = rng.normal(size=(3, 4)).astype(np.float32), np.zeros(3, np.float32)
    assert set(model.predict(X)) == {"z", "mean"}
    one, other = (
        model.trace(X, "conv", lambda _, c=c: [c]).gradients[0]
        for c in ({"z": v, "mean": zero}, {"mean": zero, "z": v})
    )
    np.testing.assert_array_equal(one, other)
    assert np.abs(one).max() > 0


def test_exhausted_memory_is_a_memory_error(monkeypatch: pytest.MonkeyPatch) -> None:
    model = xcam.load(seeded(functional))

    def full(*_: Any, **__: Any) -> Any:
        raise out_of_memory("OOM when allocating tensor\nand more")

    monkeypatch.setattr(type(model._recording()), "predict", full)
    with pytest.raises(MemoryError, match=r"OOM when allocating tensor and more$"):
        model.predict(X)
