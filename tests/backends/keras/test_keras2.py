"""Files that Keras 2 wrote: rebuilt in Keras 3 with the numbers of Keras 2, or refused with the cause and a remedy."""

from __future__ import annotations

import hashlib
import io
import json
import re
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

import xcam
from xcam import InputError, ModelError
from xcam_keras.backend import keras

k = pytest.importorskip("tf_keras", reason="Keras 2, which writes the files, is not installed: pip install tf_keras")
tf = pytest.importorskip("tensorflow")
L = k.layers

pytestmark = [
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="the values to compare with are TensorFlow's"),
]
SHAPE = (16, 16, 3)


def image_input() -> Any:
    return k.Input(SHAPE)


def head(value: Any) -> Any:
    return L.Dense(3)(L.GlobalAveragePooling2D()(value))


def backbone(name: str = "backbone") -> Any:
    i = k.Input(SHAPE)
    h = L.Conv2D(4, 3, name="stem/conv")(i)
    h = L.BatchNormalization(axis=3, name="stem/bn")(h)
    h = L.DepthwiseConv2D(3, depth_multiplier=2, activation="relu")(h)
    h = L.BatchNormalization(name="last")(h)
    return k.Model(i, h, name=name)


def nested() -> Any:
    parts = k.Sequential([backbone(), L.GlobalAveragePooling2D()])
    return k.Sequential([parts, k.Sequential([L.Dense(6, activation="relu"), L.Dense(3, activation="softmax")])])


def nested_in_a_graph() -> Any:
    i = image_input()
    h = k.applications.mobilenet_v2.preprocess_input(i)
    return k.Model(i, head(L.Dropout(0.2)(backbone()(h, training=False))))


def partly_frozen() -> Any:
    inner = backbone()
    inner.get_layer("stem/bn").trainable = False
    inner.get_layer("stem/conv").trainable = False
    i = image_input()
    return k.Model(i, head(inner(i)))


def frozen() -> Any:
    inner = backbone()
    inner.trainable = False
    return k.Sequential([inner, L.GlobalAveragePooling2D(), L.Dense(3)])


def preprocessed(module: str) -> Callable[[], Any]:
    def build() -> Any:
        i = image_input()
        return k.Model(i, head(L.Conv2D(4, 3)(getattr(k.applications, module).preprocess_input(i))))

    return build


def arithmetic() -> Any:
    i = image_input()
    h = 3.0 * (i / 127.5 - 1) + tf.abs(i)
    h = (1.0 - tf.sqrt(tf.square(h))) ** 2.0
    h = tf.clip_by_value(tf.minimum(tf.maximum(2.0 / (h + 1.0), -h), 5.0), 0.0, 4.0)
    h = L.Conv2D(8, 3, padding="same")(h) + tf.constant(np.arange(8), tf.float32)
    for function in (
        tf.nn.relu6,
        tf.nn.swish,
        tf.nn.elu,
        tf.nn.gelu,
        tf.tanh,
        tf.nn.softplus,
        tf.sigmoid,
        tf.nn.relu,
    ):
        h = function(h)
    h = tf.nn.leaky_relu(h - 0.5, alpha=0.1)
    return k.Model(i, tf.nn.softmax(L.Dense(3)(tf.reduce_mean(h, axis=[1, 2]))))


def rearranged() -> Any:
    i = image_input()
    h = tf.image.flip_left_right(tf.reverse(tf.image.per_image_standardization(i), axis=[1]))
    h = L.Conv2D(8, 3, padding="same")(tf.slice(h, [0, 0, 0, 1], [-1, 16, 16, 2]))
    h = tf.concat([h[:, :8, ::2, :], tf.image.resize(h, (8, 8)), tf.image.resize(h, [8, 8], method="nearest")], -1)
    shape = tf.shape(h)
    rows = shape[0]
    h = tf.transpose(tf.reshape(h, [rows, shape[1] * shape[2], 24]), (0, 2, 1))
    h = tf.transpose(tf.reshape(h, [rows, 24, 8, 8]), [0, 2, 3, 1])
    p, q = tf.split(h, 2, axis=-1)
    h = tf.squeeze(tf.expand_dims(tf.reduce_max(tf.stack([p, q], axis=1), axis=1), 1), axis=1)
    h = tf.pad(h, [[0, 0], [1, 1], [1, 1], [0, 0]])
    h = tf.nn.avg_pool2d(tf.nn.max_pool2d(h, 2, 2, "VALID"), 2, 1, "SAME")
    h = tf.reduce_sum(tf.cast(h, tf.float32), [1, 2], keepdims=True)[:, 0, 0][..., tf.newaxis]
    h = tf.nn.l2_normalize(tf.squeeze(h, [-1]), axis=-1)
    return k.Model(i, L.Dense(3)(tf.matmul(h, h, transpose_b=True) @ h))


def older_preprocessing() -> Any:
    part = L.experimental.preprocessing
    normalization = part.Normalization()
    normalization.adapt(np.random.default_rng(1).uniform(0, 255, (4, *SHAPE)).astype(np.float32))
    return k.Sequential(
        [
            part.RandomFlip("horizontal", input_shape=SHAPE),
            part.RandomRotation(0.1),
            part.RandomHeight(0.1),
            normalization,
            part.Rescaling(1 / 2, offset=-1.0),
            part.Resizing(12, 12),
            part.CenterCrop(10, 10),
            L.Conv2D(4, 3, activation=tf.nn.relu6),
            L.Conv2D(4, 1, activation=k.activations.swish),
            L.Conv2D(4, 1, activation=tf.nn.leaky_relu),
            L.GlobalAveragePooling2D(),
            L.Dense(3, activation=tf.nn.softmax),
        ]
    )


def activations() -> Any:
    """Keras 3's hard_sigmoid has another slope; ThresholdedReLU and LeakyReLU have other arguments."""
    i = h = image_input()
    for name in ("hard_sigmoid", "swish", "elu", "selu", "softsign", "exponential", "gelu"):
        h = L.Conv2D(4, 1, activation=name)(h)
    for layer in (L.LeakyReLU(0.2), L.ReLU(6.0, 0.1), L.PReLU(shared_axes=[1, 2]), L.ThresholdedReLU(0.01)):
        h = layer(h)
    return k.Model(i, head(L.Activation("hard_sigmoid")(h)))


def layers() -> Any:
    i = image_input()
    h = L.SeparableConv2D(8, 3, depth_multiplier=2, activation="relu")(i)
    h = L.Conv2DTranspose(6, 3, strides=2, padding="same")(h)
    h = L.LayerNormalization(axis=[1, 2, 3])(L.BatchNormalization(axis=-1, scale=False)(h))
    h = L.LayerNormalization()(L.GroupNormalization(groups=2)(h))
    h = L.experimental.SyncBatchNormalization()(L.UpSampling2D(2, interpolation="bilinear")(h))
    h = L.SpatialDropout2D(0.1)(L.Cropping2D(1)(L.ZeroPadding2D(1)(h)))
    h = L.Conv2D(8, 3, groups=2, kernel_regularizer="l2", kernel_initializer=k.initializers.VarianceScaling(2.0))(h)
    h = L.Reshape((-1, 8))(L.Permute((2, 1, 3))(L.AveragePooling2D(padding="same")(h)))
    h = L.Add()([h, L.MultiHeadAttention(2, 4)(h, h)])
    h = L.Conv1D(4, 3, padding="causal")(L.Attention()([h, h]))
    return k.Model(i, L.Dense(3)(L.GlobalMaxPooling1D()(h)))


def shared() -> Any:
    conv = L.Conv2D(3, 3, padding="same", activation="relu")
    branch = k.Sequential([L.Conv2D(4, 3, input_shape=SHAPE), L.GlobalAveragePooling2D()])
    i = image_input()
    return k.Model(i, L.Dense(3)(L.subtract([branch(conv(conv(i))), branch(i)])))


def recurrent() -> Any:
    i = k.Input((3, 5))
    h = L.GRU(4, return_sequences=True, reset_after=False, recurrent_activation="hard_sigmoid", unroll=True)(i)
    h = L.TimeDistributed(L.Dense(4))(L.Bidirectional(L.LSTM(3, return_sequences=True, unroll=True))(h))
    return k.Model(i, L.Dense(3)(L.RNN([L.GRUCell(4), L.LSTMCell(5)], unroll=True, time_major=False)(h)))


NETWORKS = [
    nested,
    nested_in_a_graph,
    partly_frozen,
    frozen,
    preprocessed("mobilenet_v2"),
    preprocessed("resnet50"),
    preprocessed("densenet"),
    arithmetic,
    rearranged,
    older_preprocessing,
    activations,
    layers,
    shared,
    recurrent,
]


def written(model: Any, path: Path) -> tuple[Any, np.ndarray]:
    """Give a model of Keras 2 random weights and save it; return an input and its outputs."""
    rng = np.random.default_rng(0)
    for weight in model.weights:
        adapted = re.search(r"(^|/)(mean|variance):0", weight.name)  # Normalization keeps copies of them
        if weight.dtype == tf.float32 and not adapted:
            low, high = (0.5, 1.5) if "variance" in weight.name or "gamma" in weight.name else (-0.4, 0.4)
            weight.assign(rng.uniform(low, high, weight.shape))
    x = rng.uniform(0, 255 if len(model.input_shape) == 4 else 1, (2, *model.input_shape[1:])).astype(np.float32)
    model.save(path)
    return x, np.asarray(model(x, training=False))


@pytest.mark.parametrize(
    ("build", "name"),
    [
        *((build, "old.h5") for build in NETWORKS),
        *((build, "old.keras") for build in (nested, nested_in_a_graph, partly_frozen, layers, shared, recurrent)),
    ],
)
def test_a_file_of_keras_2_predicts_as_keras_2(tmp_path: Path, build: Callable[[], Any], name: str) -> None:
    path = tmp_path / name
    x, expected = written(build(), path)
    before = hashlib.sha256(path.read_bytes()).digest()
    model = xcam_model(path)
    np.testing.assert_allclose(model(x), expected, rtol=1e-4, atol=2e-5 * np.abs(expected).max())
    assert hashlib.sha256(path.read_bytes()).digest() == before


def xcam_model(path: Path) -> Callable[[np.ndarray], np.ndarray]:
    model = xcam.load(path, preprocess="raw").model
    return lambda x: keras.ops.convert_to_numpy(model(x, training=False))


def test_the_map_is_that_of_keras_2(tmp_path: Path) -> None:
    old = nested_in_a_graph()
    x, _ = written(old, tmp_path / "old.h5")
    inner = old.get_layer("backbone")
    first, *rest = [layer for layer in old.layers if layer.name != "backbone"][3:]
    with tf.GradientTape() as tape:
        value = inner(k.applications.mobilenet_v2.preprocess_input(tf.constant(x)), training=False)
        tape.watch(value)
        y = first(value)
        for layer in rest:
            y = layer(y)
        score = y[:, 1]
    gradient = tape.gradient(score, value).numpy()
    trace = xcam.load(tmp_path / "old.h5").trace(
        x, "backbone/last", lambda outputs: [np.eye(3, dtype=np.float32)[[1, 1]]]
    )
    np.testing.assert_allclose(trace.activations, value.numpy().transpose(0, 3, 1, 2), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(trace.gradients[0], gradient.transpose(0, 3, 1, 2), rtol=1e-4, atol=1e-7)


def test_names_with_a_slash_stay_unique(tmp_path: Path) -> None:
    i = image_input()
    h = L.Conv2D(4, 3, name="a_b")(L.Conv2D(4, 3, name="a/b")(i))
    x, expected = written(k.Model(i, head(h)), tmp_path / "old.h5")
    model = xcam.load(tmp_path / "old.h5", preprocess="raw")
    assert [layer.name for layer in model.layers][:2] == ["a_b_1", "a_b"]
    np.testing.assert_allclose(model.predict(x), expected, rtol=1e-4)


def test_functions_of_tensorflow_are_layers_with_their_names(tmp_path: Path) -> None:
    written(arithmetic(), tmp_path / "old.h5")
    names = [layer.name for layer in xcam.load(tmp_path / "old.h5").layers]
    assert {"tf.math.truediv", "tf.nn.relu", "conv2d"} <= {re.sub(r"_\d+$", "", name) for name in names}


def changed(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    with h5py.File(path, "a") as file:
        config = json.loads(file.attrs["model_config"])
        change(config)
        file.attrs["model_config"] = json.dumps(config)


def test_a_layer_of_tensorflow_2_0(tmp_path: Path) -> None:
    i = image_input()
    x, expected = written(k.Model(i, head(L.Conv2D(4, 3)(i / 127.5))), tmp_path / "old.h5")

    def older(config: dict[str, Any]) -> None:
        layer = config["config"]["layers"][1]
        layer["class_name"] = "TensorFlowOpLayer"
        layer["config"] |= {"node_def": json.dumps({"op": "RealDiv"}), "constants": {"1": 127.5}}
        layer["inbound_nodes"] = [[[*layer["inbound_nodes"][0][:3], {}]]]

    changed(tmp_path / "old.h5", older)
    np.testing.assert_allclose(xcam_model(tmp_path / "old.h5")(x), expected, rtol=1e-4)


def test_python_code_in_a_file_is_named(tmp_path: Path) -> None:
    model = k.Sequential([L.Conv2D(4, 3, input_shape=SHAPE), L.Lambda(lambda x: x * 2), L.GlobalAveragePooling2D()])
    model.save(tmp_path / "old.h5")
    model.save(tmp_path / "old.keras")
    for path in (tmp_path / "old.h5", tmp_path / "old.keras"):
        with pytest.raises(
            ModelError, match=r"written by Keras 2\.\d+.*: .* layer lambda.*: it is a Lambda with Python code"
        ):
            xcam.load(path)


@pytest.mark.slow
def test_the_conversion_in_the_message_works(tmp_path: Path) -> None:
    model = k.Sequential([L.Conv2D(4, 3, input_shape=SHAPE), L.Lambda(lambda x: x * 2), L.GlobalAveragePooling2D()])
    x, expected = written(model, tmp_path / "old.h5")
    with pytest.raises(ModelError) as caught:
        xcam.load(tmp_path / "old.h5")
    command = re.search('python -c "(.*)"$', str(caught.value))
    assert command is not None
    subprocess.run([sys.executable, "-c", command[1]], check=True, capture_output=True)
    np.testing.assert_allclose(xcam.load(tmp_path / "old", preprocess="raw").predict(x), expected, rtol=1e-4)


def test_preprocess_input_in_a_lambda_is_known(tmp_path: Path) -> None:
    function = k.applications.resnet50.preprocess_input
    model = k.Sequential([L.Lambda(function, input_shape=SHAPE), L.Conv2D(4, 3), L.GlobalAveragePooling2D()])
    x, expected = written(model, tmp_path / "old.h5")
    np.testing.assert_allclose(xcam_model(tmp_path / "old.h5")(x), expected, rtol=1e-4, atol=1e-4)


def test_a_layer_that_keras_3_lacks_is_named_with_a_conversion(tmp_path: Path) -> None:
    model = k.Sequential([L.LocallyConnected2D(4, 3, input_shape=SHAPE), L.GlobalAveragePooling2D()])
    model.save(tmp_path / "old.h5")
    with pytest.raises(ModelError, match=r"Keras 3 has no layer LocallyConnected2D; .*tf_keras\.models.load_model"):
        xcam.load(tmp_path / "old.h5")


def test_weights_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    written(frozen(), tmp_path / "old.h5")
    with h5py.File(tmp_path / "old.h5", "a") as file:
        group = file["model_weights"]["backbone"]
        names = [name.decode() if isinstance(name, bytes) else name for name in group.attrs["weight_names"]]
        gamma = next(i for i, name in enumerate(names) if "gamma" in name)
        for old, new in ((names[gamma], "x/moving_mean:0"), (names[gamma + 1], "y/moving_mean:0")):
            group.move(old, new)
            names[names.index(old)] = new
        group.attrs["weight_names"] = names
    with pytest.raises(ModelError, match=r"weight x/moving_mean:0 is stored where .*gamma is expected"):
        xcam.load(tmp_path / "old.h5")


def test_values_that_are_missing_are_refused(tmp_path: Path) -> None:
    written(recurrent(), tmp_path / "old.keras")
    with zipfile.ZipFile(tmp_path / "old.keras") as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    data = io.BytesIO(parts["model.weights.h5"])
    with h5py.File(data, "a") as file:
        del file["layers/bidirectional/backward_layer/cell/vars"]
    with zipfile.ZipFile(tmp_path / "cut.keras", "w") as archive:
        for name, part in (parts | {"model.weights.h5": data.getvalue()}).items():
            archive.writestr(name, part)
    with pytest.raises(ModelError, match="has 3 weights, and the file has 0 for it"):
        xcam.load(tmp_path / "cut.keras")


def test_the_cause_of_a_failed_load_is_in_the_message(tmp_path: Path) -> None:
    model = keras.Sequential([keras.Input(SHAPE), keras.layers.Conv2D(4, 3), keras.layers.GlobalAveragePooling2D()])
    model.save(tmp_path / "new.keras")
    with zipfile.ZipFile(tmp_path / "new.keras") as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(tmp_path / "new.keras", "w") as archive:
        for name, part in parts.items():
            archive.writestr(name, part.replace(b'"padding": "valid"', b'"padding": "odd"'))
    with pytest.raises(ModelError, match=r"cannot load .*: .*padding.*odd"):
        xcam.load(tmp_path / "new.keras")


def test_a_file_of_weights_alone(tmp_path: Path) -> None:
    nested().save_weights(tmp_path / "weights_of_old.h5")
    with pytest.raises(InputError, match="it holds weights only; name the model too"):
        xcam.load(tmp_path / "weights_of_old.h5")
