"""SavedModel folders and live models of tf_keras: the numbers of TensorFlow, and names by which layers are known."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import xcam
from xcam import BackendError, InputError, ModelError
from xcam.models import layers
from xcam_keras.backend import keras

tf = pytest.importorskip("tensorflow", reason="TensorFlow writes the folders")

pytestmark = [
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="the folders are graphs of TensorFlow"),
]
SHAPE = (16, 12, 3)
RNG = np.random.default_rng


def image_batch(scale: float = 1.0) -> np.ndarray:
    return scale * RNG(0).random((2, *SHAPE)).astype(np.float32)


def cotangent(outputs: np.ndarray) -> list[np.ndarray]:
    return [np.eye(outputs.shape[-1], dtype=np.float32)[[1] * len(outputs)]]


def network(k: Any) -> Any:
    """Return a network of Keras 2 or 3 with random weights."""
    i = k.Input(SHAPE)
    h = k.layers.Conv2D(4, 3, activation="relu", name="first")(i)
    h = k.layers.BatchNormalization(name="norm")(h)
    g = k.layers.Conv2D(4, 3, padding="same", activation="relu", name="second")(h)
    h = k.layers.Add(name="sum")([h, g])
    h = k.layers.GlobalAveragePooling2D(name="pool")(h)
    model = k.Model(i, k.layers.Dense(3, activation="softmax", name="classes")(h), name="small")
    for weight in model.weights:
        weight.assign(RNG(1).uniform(0.5, 1.5, weight.shape) * (-1) ** np.arange(weight.shape[-1]))
    model.get_layer("norm").moving_variance.assign(np.ones(4))
    return model


def tail(model: Any, value: Any) -> Any:
    """Return the logits from the value of the layer `norm`."""
    value = model.get_layer("sum")([value, model.get_layer("second")(value)])
    dense = model.get_layer("classes")
    return tf.matmul(model.get_layer("pool")(value), tf.convert_to_tensor(dense.kernel)) + dense.bias


def check(folder: Path, model: Any) -> None:
    x = image_batch()
    opened = xcam.load(folder)
    assert (opened.name, opened.backend, opened.labels) == (folder.name, "keras", None)
    assert opened.input.size == SHAPE[:2]
    assert opened.output_activation == "softmax"
    value = model.get_layer("norm")(model.get_layer("first")(x), training=False)
    value = tf.convert_to_tensor(value)
    with tf.GradientTape() as tape:
        tape.watch(value)
        logits = tail(model, value)
        score = logits[:, 1]
    gradient = tape.gradient(score, value).numpy()
    np.testing.assert_allclose(opened.predict(x), logits.numpy(), rtol=1e-4, atol=1e-4)
    trace = opened.trace(x, "norm", cotangent)
    np.testing.assert_allclose(trace.activations, value.numpy().transpose(0, 3, 1, 2), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(trace.gradients[0], gradient.transpose(0, 3, 1, 2), rtol=1e-4, atol=1e-7)
    resumed = opened.resume(trace, 2 * trace.activations)
    np.testing.assert_allclose(resumed.outputs, tail(model, 2 * value).numpy(), rtol=1e-4, atol=1e-4)
    listed = [layer.name for layer in opened.layers if not layer.inner]
    assert listed == ["first", "norm", "second", "sum", "pool", "classes"]
    assert layers.default(opened).name == "sum"


def test_a_folder_of_keras_2(tmp_path: Path) -> None:
    k = pytest.importorskip("tf_keras", reason="pip install tf_keras")
    model = network(k)
    model.save(tmp_path / "old", save_format="tf")
    check(tmp_path / "old", model)


def test_a_folder_of_keras_3(tmp_path: Path) -> None:
    model = network(keras)
    model.export(tmp_path / "new", verbose=False)
    check(tmp_path / "new", model)


class Module(tf.Module):
    """Operations without layers."""

    def __init__(self) -> None:
        super().__init__()
        self.kernel = tf.Variable(RNG(0).normal(size=(3, 3, 3, 4)).astype(np.float32))
        self.dense = tf.Variable(RNG(1).normal(size=(4, 5)).astype(np.float32))

    def tail(self, value: Any) -> Any:
        return tf.reduce_mean(tf.square(value) + value, [1, 2]) @ self.dense

    def logits(self, x: Any) -> Any:
        return self.tail(tf.nn.relu(tf.nn.conv2d(x / 255.0, self.kernel, 1, "SAME")))

    @tf.function(input_signature=[tf.TensorSpec([None, None, None, 3])])
    def call(self, x: Any) -> Any:
        return {"scores": tf.nn.softmax(self.logits(x)), "index": tf.argmax(self.logits(x), -1)}

    @tf.function(input_signature=[tf.TensorSpec([1, *SHAPE])])
    def of_one(self, x: Any) -> Any:
        return self.logits(x)

    @tf.function(input_signature=[tf.TensorSpec([None, 8, 8, 3]), tf.TensorSpec([None, 2])])
    def of_two(self, x: Any, y: Any) -> Any:
        return self.logits(x) + tf.reduce_sum(y)

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string)])
    def of_files(self, names: Any) -> Any:
        pixels = tf.map_fn(lambda n: tf.io.decode_png(n, 3), names, fn_output_signature=tf.uint8)
        return self.logits(tf.cast(pixels, tf.float32))


def test_a_folder_of_tensorflow(tmp_path: Path) -> None:
    module, x = Module(), image_batch(255)
    tf.saved_model.save(module, str(tmp_path), signatures=module.call)
    opened = xcam.load(tmp_path / "saved_model.pb")
    assert opened.input.size is None
    assert opened.input.preprocessing is not None
    assert opened.input.preprocessing.name == "raw"
    np.testing.assert_allclose(opened.predict(x), module.logits(x).numpy(), rtol=1e-4)
    assert layers.default(opened).name == "add"
    value = tf.nn.relu(tf.nn.conv2d(x / 255.0, module.kernel, 1, "SAME"))
    with tf.GradientTape() as tape:
        tape.watch(value)
        score = module.tail(value)[:, 1]
    trace = opened.trace(x, "Relu", cotangent)
    expected = tape.gradient(score, value).numpy().transpose(0, 3, 1, 2)
    np.testing.assert_allclose(trace.gradients[0], expected, rtol=1e-4, atol=1e-7)
    heatmap = xcam.explain(opened, (255 * RNG(3).random((20, 30, 3))).astype(np.uint8)).heatmap
    assert heatmap.shape == (20, 30)


def test_a_network_in_one_scope_is_not_one_layer(tmp_path: Path) -> None:
    module = Module()

    @tf.function(input_signature=[tf.TensorSpec([None, *SHAPE])])
    def scoped(x: Any) -> Any:
        with tf.name_scope("net"):
            return module.logits(x)

    tf.saved_model.save(module, str(tmp_path), signatures=scoped)
    opened = xcam.load(tmp_path)
    assert [layer.name for layer in opened.layers if not layer.inner][1:4] == ["net/Conv2D", "net/Relu", "net/Square"]
    assert layers.default(opened).name == "net/add"


def test_a_fixed_batch_is_opened(tmp_path: Path) -> None:
    module, x = Module(), image_batch(255)
    tf.saved_model.save(module, str(tmp_path), signatures=module.of_one)
    np.testing.assert_allclose(xcam.load(tmp_path).predict(x), module.logits(x).numpy(), rtol=1e-4)


def test_folders_that_cannot_be_explained_say_why(tmp_path: Path) -> None:
    module = Module()
    messages = {
        "none": (None, "it has no signature serving_default; save it with tf.saved_model.save"),
        "two": (module.of_two, "it takes 2 inputs, and the image is x; give the others values"),
        "text": (
            module.of_files,
            r"its input has the type string and the shape \(None,\); save it with a signature that takes pixels",
        ),
        "several": ({"a": module.call, "b": module.of_two}, r"none of its signatures \['a', 'b'\] is called"),
    }
    for name, (signature, message) in messages.items():
        tf.saved_model.save(module, str(tmp_path / name), signatures=signature)
        with pytest.raises(ModelError, match=message):
            xcam.load(tmp_path / name)
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "saved_model.pb").write_bytes(b"x")
    with pytest.raises(ModelError, match=r"cannot load .*broken: .*; check that the folder is complete"):
        xcam.load(tmp_path / "broken")
    with pytest.raises(InputError, match="is a directory; give a model file in it"):
        xcam.load(tmp_path)


def test_another_engine_is_refused_with_the_setting_that_helps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "saved_model.pb").write_bytes(b"x")
    monkeypatch.setattr(keras.backend, "backend", lambda: "torch")
    with pytest.raises(BackendError, match="with Keras on torch: it is a graph of TensorFlow; set KERAS_BACKEND="):
        xcam.load(tmp_path)


def test_a_live_model_of_keras_2_is_rebuilt_and_unchanged() -> None:
    k = pytest.importorskip("tf_keras", reason="pip install tf_keras")
    model, x = network(k), image_batch()
    before = [weight.numpy() for weight in model.weights]
    config, expected = model.get_config(), model(x, training=False).numpy()
    opened = xcam.load(model)
    assert isinstance(opened.model, keras.Model)
    opened.trace(x, "second", cotangent)
    assert opened.output_activation == "softmax"
    np.testing.assert_allclose(tf.nn.softmax(opened.predict(x)), expected, atol=1e-5)
    assert model.get_config() == config
    for weight, value in zip(model.weights, before, strict=True):
        np.testing.assert_array_equal(weight.numpy(), value)


def test_a_live_model_with_its_own_code_runs_on_tensorflow() -> None:
    k = pytest.importorskip("tf_keras", reason="pip install tf_keras")

    class Own(k.Model):
        def __init__(self) -> None:
            super().__init__()
            self.conv = k.layers.Conv2D(4, 3, activation="relu", name="conv")
            self.dense = k.layers.Dense(3)

        def call(self, x: Any, training: bool = False) -> Any:
            return self.dense(tf.reduce_mean(self.conv(x) ** 2, [1, 2]))

    x = image_batch()
    with_lambda = k.Sequential(
        [
            k.layers.Conv2D(4, 3, name="conv", input_shape=SHAPE),
            k.layers.Lambda(lambda value: value**2),
            k.layers.GlobalAveragePooling2D(),
            k.layers.Dense(3),
        ]
    )
    subclassed = Own()
    expected = subclassed(x).numpy()
    for model, y in ((with_lambda, with_lambda(x).numpy()), (subclassed, expected)):
        opened = xcam.load(model)
        np.testing.assert_allclose(opened.predict(x), y, rtol=1e-4, atol=1e-5)
        assert "conv" in [layer.name for layer in opened.layers]
        kernel = model.layers[-1].get_weights()[0]
        trace = opened.trace(x, "conv", cotangent)
        expected = 2 * trace.activations * kernel[:, 1][:, None, None] / np.prod(trace.activations.shape[2:])
        np.testing.assert_allclose(trace.gradients[0], expected, rtol=1e-4, atol=1e-7)
