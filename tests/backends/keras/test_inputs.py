"""The description of a Keras model's input."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import xcam
from xcam import InputError, InputSpec, ModelError, Preprocessing
from xcam.images.resizing import resize
from xcam_keras.backend import keras
from xcam_keras.inputs import data_format, input_spec

L = keras.layers


def network(*shape: int | None, first: Any = None) -> keras.Model:
    layers = [L.Conv2D(2, 3), L.GlobalMaxPooling2D()]
    return keras.Sequential([L.Input(shape), *([first] if first else []), *layers])


def test_a_fixed_size() -> None:
    assert input_spec(network(6, 8, 4), "channels_last", None, (2, 2)) == InputSpec(
        (6, 8), 4, "channels_last", "float32", None, fixed=True, axes=2
    )


def test_an_open_size_is_the_given_one() -> None:
    model = network(None, None, 3)
    for size in (None, (5, 7)):
        assert input_spec(model, "channels_last", None, size) == InputSpec(size, 3, "channels_last", axes=2)


def test_channels_first_is_declared_by_a_layer() -> None:
    x = inputs = L.Input((1, 6, 8))
    model = keras.Model(inputs, L.MaxPooling2D(data_format="channels_first")(x))
    assert data_format(model) == "channels_first"
    assert input_spec(model, data_format(model), None, None) == InputSpec(
        (6, 8), 1, "channels_first", fixed=True, axes=2
    )
    assert data_format(keras.Sequential([L.Input((3,)), L.Dense(2)])) == "channels_last"


def test_a_model_that_scales_pixels_takes_them_raw() -> None:
    model = network(6, 8, 3, first=L.Rescaling(1 / 255))
    spec = input_spec(model, "channels_last", None, None)
    assert spec.preprocessing == spec.needs == Preprocessing("raw")
    unit = Preprocessing("unit", 1 / 255)
    spec = input_spec(model, "channels_last", unit, None)
    assert (spec.preprocessing, spec.needs) == (unit, Preprocessing("raw"))


def test_a_subclassed_model_has_an_open_size_until_it_is_called() -> None:
    class Subclassed(keras.Model):
        def call(self, x: Any) -> Any:
            return x

    model = Subclassed(name="own")
    assert input_spec(model, "channels_last", None, (5, 7)) == InputSpec(
        (5, 7), 3, "channels_last", channels_known=False
    )
    model(keras.ops.zeros((1, 4, 6, 2)))
    assert input_spec(model, "channels_last", None, (5, 7)) == InputSpec(
        (4, 6), 2, "channels_last", fixed=True, axes=2
    )


def test_several_inputs_are_an_error() -> None:
    inputs = [L.Input((4, 4, 3)), L.Input((4, 4, 3))]
    model = keras.Model(inputs, L.Add()(inputs), name="two")
    with pytest.raises(ModelError, match="cannot use two: it has 2 inputs"):
        input_spec(model, "channels_last", None, None)


def test_open_channels_are_a_guess_that_the_caller_decides() -> None:
    model = keras.Sequential([L.Input((6, 8, None)), L.GlobalMaxPooling2D()])
    assert input_spec(model, "channels_last", None, None) == InputSpec(
        (6, 8), 3, "channels_last", fixed=True, channels_known=False, axes=2
    )
    assert xcam.load(model, channels=5).input == InputSpec((6, 8), 5, "channels_last", fixed=True, axes=2)
    with pytest.raises(InputError, match="two takes images of 3 channels, not 1; leave channels out"):
        xcam.load(keras.Sequential([L.Input((6, 8, 3)), L.GlobalMaxPooling2D()], name="two"), channels=1)


def test_a_fixed_height_and_an_open_width() -> None:
    """As in networks that read text: the width follows from the image's ratio."""
    model = keras.Sequential(
        [
            L.Input((12, None, 3)),
            L.Conv2D(4, 3, activation="relu", name="conv"),
            L.GlobalAveragePooling2D(),
            L.Dense(2),
        ]
    )
    assert input_spec(model, "channels_last", None, None).size == (12, None)
    opened = xcam.load(model, preprocess="raw")
    image = np.random.default_rng(0).integers(0, 256, (24, 61, 3), dtype=np.uint8)
    e = xcam.explain(opened, image, target=1)
    x = resize(image, (12, 30)).astype(np.float32)[None]
    features = keras.ops.convert_to_numpy(model.get_layer("conv")(x))
    weights = keras.ops.convert_to_numpy(model.layers[-1].kernel)[:, 1] / (10 * 28)
    np.testing.assert_allclose(e.outputs, keras.ops.convert_to_numpy(model(x))[0], rtol=1e-4)
    np.testing.assert_allclose(e.cam, features[0] @ weights, atol=1e-4 * np.abs(e.cam).max())
    assert xcam.load(model, size=(None, 40)).input.size == (12, 40)
    with pytest.raises(InputError, match=r"takes images of 12×any, not 13×40; give size=\(None, 40\) \(--size x40\)"):
        xcam.load(model, size=(13, 40))


def grad_cam(model: keras.Model, layer: str, dense: str, x: np.ndarray, index: int) -> np.ndarray:
    """Return Grad-CAM of a network whose scores are Dense(GlobalAveragePooling(layer)), by its weights."""
    part = keras.Model(model.inputs[0], model.get_layer(layer).output)
    features = np.asarray(keras.ops.convert_to_numpy(part(x)), np.float32)[0]
    weights = keras.ops.convert_to_numpy(model.get_layer(dense).kernel)[:, index]
    return features @ weights / features[..., 0].size


@pytest.mark.parametrize("shape", [(9, 7), (None, None)])
def test_grey_images_without_a_channel_axis(shape: tuple[int | None, ...]) -> None:
    keras.utils.set_random_seed(0)
    inputs = L.Input(shape)
    added = L.Reshape((9, 7, 1))(inputs) if shape[0] else keras.ops.expand_dims(inputs, -1)
    x = L.Conv2D(8, 3, activation="relu", name="features")(added)
    model = keras.Model(inputs, L.Dense(3, name="scores", kernel_initializer="ones")(L.GlobalAveragePooling2D()(x)))
    opened = xcam.load(model, preprocess="raw", size=(9, 7))
    assert (opened.input.size, opened.input.channels) == ((9, 7), 0)
    photo = np.repeat(np.random.default_rng(0).integers(0, 256, (9, 7, 1), dtype=np.uint8), 3, -1)
    x = photo[None, ..., 0].astype(np.float32)
    e = xcam.explain(opened, photo, target=1)
    assert e.layer == "features"
    expected = grad_cam(model, "features", "scores", x, 1)
    np.testing.assert_allclose(e.outputs, keras.ops.convert_to_numpy(model(x))[0], rtol=1e-4)
    np.testing.assert_allclose(e.cam, expected, atol=1e-4 * expected.max())
    for method in ("ablationcam", "scorecam"):
        xcam.explain(opened, [photo, photo[::-1]], target=1, method=method)
    np.testing.assert_allclose(opened.predict(x), opened.predict(x[..., None]))


def test_signals_keep_their_channels() -> None:
    model = keras.Sequential([L.Input((40, 12)), L.Conv1D(4, 3), L.GlobalAveragePooling1D()])
    spec = input_spec(model, "channels_last", None, None)
    assert (spec.size, spec.channels) == ((40,), 12)


@pytest.mark.filterwarnings("ignore:.*is not available, and will be truncated")  # JAX has 32 bits
@pytest.mark.parametrize("dtype", ["uint8", "int32", "int64", "float16", "float64", "bfloat16"])
def test_other_dtypes(dtype: str) -> None:
    """Pixels as integers, and floats of other sizes, which Keras converts."""
    keras.utils.set_random_seed(0)
    inputs = L.Input((9, 7, 3), dtype=dtype)
    x = L.Conv2D(8, 3, activation="relu", name="features")(L.Rescaling(1 / 255)(inputs))
    model = keras.Model(inputs, L.Dense(3, name="scores", kernel_initializer="ones")(L.GlobalAveragePooling2D()(x)))
    opened = xcam.load(model)
    photo = np.random.default_rng(0).integers(0, 256, (9, 7, 3), dtype=np.uint8)
    e = xcam.explain(opened, photo, target=1)
    x = photo[None].astype("float32" if dtype == "bfloat16" else dtype)
    expected = grad_cam(model, "features", "scores", x, 1)
    np.testing.assert_allclose(e.outputs, keras.ops.convert_to_numpy(model(x))[0], rtol=1e-3)
    np.testing.assert_allclose(e.cam, expected, atol=1e-3 * expected.max())
    xcam.explain(opened, [photo, photo[::-1]], target=1, method="scorecam")


def test_an_array_for_a_model_without_a_channel_axis() -> None:
    inputs = L.Input((9, 7))
    x = L.Conv2D(4, 3, activation="relu", name="features")(L.Reshape((9, 7, 1))(inputs))
    model = keras.Model(inputs, L.Dense(3, name="scores", kernel_initializer="ones")(L.GlobalAveragePooling2D()(x)))
    x = np.random.default_rng(0).uniform(0, 255, size=(1, 9, 7)).astype(np.float32)
    expected = grad_cam(model, "features", "scores", x, 1)
    for array in (x, x[..., None], x[0]):
        e = xcam.explain(xcam.load(model, preprocess="raw"), array, target=1)
        np.testing.assert_allclose(e.cam, expected, atol=1e-4 * expected.max())


@pytest.mark.parametrize(("channels", "stated"), [(3, None), (1, None), (0, None), (1, 1)])
def test_the_channels_of_a_subclassed_model_are_those_on_which_it_runs(channels: int, stated: int | None) -> None:
    class Subclassed(keras.Model):
        def __init__(self) -> None:
            super().__init__()
            self.features, self.pool = L.Conv2D(4, 3, activation="relu"), L.GlobalAveragePooling2D()
            self.scores = L.Dense(3, kernel_initializer="ones")

        def call(self, x: Any) -> Any:
            if len(x.shape) != (4 if channels else 3) or (channels and x.shape[-1] != channels):
                raise ValueError("another number of channels")
            return self.scores(self.pool(self.features(x if channels else keras.ops.expand_dims(x, -1))))

    keras.utils.set_random_seed(0)
    model = Subclassed()
    opened = xcam.load(model, preprocess="raw", size=(9, 7), channels=stated)
    photo = np.repeat(np.random.default_rng(0).integers(0, 256, (9, 7, 1), dtype=np.uint8), 3, -1)
    e = xcam.explain(opened, photo, target=1)
    assert opened.input.channels == channels
    x = photo[None, ..., :channels].astype(np.float32) if channels else photo[None, ..., 0].astype(np.float32)
    features = keras.ops.convert_to_numpy(model.features(x if channels else x[..., None]))[0]
    np.testing.assert_allclose(e.outputs, keras.ops.convert_to_numpy(model(x))[0], rtol=1e-4)
    expected = features.sum(-1) / features[..., 0].size
    np.testing.assert_allclose(e.cam, expected, atol=1e-4 * expected.max())
