"""Inputs given as arrays: their axes, types and scales, their maps, and how these are saved."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

import xcam
from fake import IMAGES, FakeModel
from quadratic import Quadratic
from quadratic_cams import CHEAP
from quadratic_cams import cam as expected_cam
from xcam import InputError, ModelError, Preprocessing
from xcam.explanation import page
from xcam.methods.registry import list_methods

SPACES = [(30,), (4, 6), (3, 4, 5)]


def array(space: tuple[int, ...], channels: int = 3, n: int = 1) -> Any:
    return np.random.default_rng(1).normal(size=(n, channels, *space)).astype(np.float32)


@pytest.mark.filterwarnings("ignore::xcam.errors.ZeroHeatmapWarning")
@pytest.mark.parametrize("space", SPACES, ids=str)
@pytest.mark.parametrize("name", list_methods())
def test_every_method_in_every_number_of_axes(space: tuple[int, ...], name: str) -> None:
    x = array(space)
    e = xcam.explain(Quadratic(space), x, target=1, method=name, method_options=CHEAP.get(name))
    np.testing.assert_allclose(e.cam, expected_cam(name, Quadratic(space), x, 1)[0], rtol=1e-6)
    assert e.heatmap.shape == e.size == space
    np.testing.assert_array_equal(e.values, x[0])
    e.overlay()


@pytest.mark.parametrize("space", SPACES, ids=str)
@pytest.mark.parametrize("last", [False, True])
def test_the_batch_axis_may_be_missing_and_the_layout_is_the_models(space: tuple[int, ...], last: bool) -> None:
    class Last(Quadratic):
        def trace(self, x: Any, layer: str, cotangents: Any = None) -> Any:
            return super().trace(np.moveaxis(x, -1, 1), layer, cotangents)

    model = Last(space) if last else Quadratic(space)
    x = native = array(space)
    if last:
        model.input = dataclasses.replace(model.input, layout="channels_last")
        native = np.moveaxis(x, 1, -1)
    expected = xcam.explain(Quadratic(space), x).cam
    for form in (native, native[0], native.astype(np.float64)):
        e = xcam.explain(model, form)
        np.testing.assert_array_equal(e.cam, expected)
        np.testing.assert_array_equal(e.values, x[0])


@pytest.mark.parametrize("space", SPACES, ids=str)
def test_the_channel_axis_may_be_missing_where_there_is_one_channel(space: tuple[int, ...]) -> None:
    x = array(space, 1, n=2)
    model = Quadratic(space, channels=1)
    expected = [e.cam for e in xcam.explain(model, x)]
    np.testing.assert_array_equal(xcam.explain(model, x[0, 0]).cam, expected[0])
    for form in (x, x[:, 0], [x[0], x[1, 0]], [x[:1], x[1]]):
        np.testing.assert_array_equal([e.cam for e in xcam.explain(model, form)], expected)


def test_the_caller_may_write_to_the_array_later() -> None:
    x = array((30,))
    e = xcam.explain(Quadratic((30,)), x)
    kept = x.copy()
    x[:] = 0
    np.testing.assert_array_equal(e.values, kept[0])


def test_arrays_of_different_sizes_images_and_targets_in_one_list() -> None:
    """Each is explained at the layers for its own size; neighbours of one size share a pass."""
    shapes = []

    class Open(Quadratic):
        def trace(self, x: Any, layer: str, cotangents: Any = None) -> Any:
            shapes.append(x.shape)
            return super().trace(x, layer, cotangents)

    model = Open((8,))
    model.input = dataclasses.replace(model.input, size=None, axes=1)
    inputs = [array((n,))[0] for n in (10, 10, 30, 10)]
    maps = xcam.explain(model, inputs, target=[0, 0, 1, [0, 1]])
    assert shapes == [(2, 3, 10), (1, 3, 30), (1, 3, 10)]
    assert [e.cam.shape for e in (*maps[:3], *maps[3])] == [(10,), (10,), (30,), (10,), (10,)]
    assert model.input.size is None


BAD = {
    "complex": (
        lambda x: x.astype(complex),
        r"its values are complex128; give its real and imaginary parts as channels",
    ),
    "text": (lambda x: x.astype(str), "its values are <U32; give numbers"),
    "objects": (lambda x: x.astype(object), "its values are object; give numbers"),
    "nan": (
        lambda x: np.where(np.arange(6) == 4, np.nan, x),
        r"4 of its values are NaN or infinite, the first at \[0, 0, 0, 4\]; replace them",
    ),
    "infinity": (lambda x: np.where(np.arange(6) == 4, -np.inf, x), "NaN or infinite"),
    "too large": (lambda x: x.astype(np.float64) * 1e39, "exceed the range of float32"),
    "empty": (lambda x: x[:0], r"its shape \[0, 1, 4, 6\] has no values"),
    "axes": (
        lambda x: x[None],
        r"of shape \[1, 1, 1, 4, 6\]: .* takes \[C, H, W\] or \[N, C, H, W\] with 1 channels",
    ),
    "one axis": (lambda x: x[0, 0, 0], r"of shape \[6\]: .* takes \[C, H, W\]"),
    "channels": (
        lambda x: np.moveaxis(x, 1, -1),
        r"it has 4 channels where quadratic takes 1, as \[C, H, W\] or .*; give np.moveaxis\(array, -1, -3\), or RGB",
    ),
    "size": (lambda x: x[..., 1:], "takes the size 4×6, not 4×5, and arrays are not resized; crop, pad or resample"),
}


@pytest.mark.parametrize("case", BAD)
def test_arrays_that_cannot_be_used(case: str) -> None:
    change, message = BAD[case]
    model = Quadratic(channels=1)
    model.input = dataclasses.replace(model.input, fixed=True)
    with pytest.raises(InputError, match=f"cannot use the array.*{message}"):
        xcam.explain(model, change(array((4, 6), 1)))


def test_a_guessed_number_of_channels_does_not_refuse_an_array() -> None:
    model = Quadratic((9,), channels=5)
    model.input = dataclasses.replace(model.input, size=None, axes=1, channels=3, channels_known=False)
    assert xcam.explain(model, array((9,), 5)).cam.shape == (9,)


def test_an_unknown_number_of_axes_is_that_with_which_the_model_runs() -> None:
    class Any3(Quadratic):
        """It takes signals, and does not state it."""

        layers: Any = property(lambda self: self.listed(), lambda self, value: None)

        def listed(self) -> Any:
            if self.input.size != (9,) or self.input.channels != 3:
                raise ModelError(f"runs on 9 positions of 3 channels, not {self.input.size}")
            return [xcam.Layer("features", "Conv", (3, 9))]

    model = Any3((9,))
    model.input = dataclasses.replace(model.input, size=None, axes=None)
    x = array((9,))
    expected = xcam.explain(Quadratic((9,)), x).cam
    for form in (x, x[0]):
        np.testing.assert_array_equal(xcam.explain(model, form).cam, expected)
    with pytest.raises(ModelError, match=r"not \(8,\)"):
        xcam.explain(model, x[..., :8])


def test_models_without_a_drawing() -> None:
    with pytest.raises(
        ModelError, match="takes inputs with 4 spatial axes, and maps are drawn for one, two or three"
    ):
        xcam.explain(Quadratic((2, 2, 2, 2)), array((2, 2, 2, 2)))


def test_a_layer_with_other_axes_than_the_input() -> None:
    class Folded(Quadratic):
        """Its layer has more axes than its input."""

        def trace(self, x: Any, layer: str, cotangents: Any = None) -> Any:
            trace = super().trace(x, layer, cotangents)
            shape = (*x.shape[:2], *self.layers[0].shape[1:])
            return dataclasses.replace(
                trace, activations=x.reshape(shape), gradients=[g.reshape(shape) for g in trace.gradients]
            )

    model = Folded((6,))
    model.layers = [dataclasses.replace(model.layers[0], shape=(3, 1, 6))]
    e = xcam.explain(model, array((6,)), method="hirescam")
    np.testing.assert_array_equal(e.cam, xcam.explain(Quadratic((6,)), array((6,)), method="hirescam").cam)
    model.layers = [dataclasses.replace(model.layers[0], shape=(3, 2, 3))]
    with pytest.raises(
        ModelError, match="values of 2×3 for each channel, and a map over a signal needs one spatial axis"
    ):
        xcam.explain(model, array((6,)))
    model.layers = [dataclasses.replace(model.layers[0], layout="tokens", shape=(3, 6))]
    with pytest.raises(ModelError, match="has tokens, and their grid is known for images only"):
        xcam.explain(model, array((6,)))


class Seen(FakeModel):
    """It keeps the batches that it runs."""

    def __init__(self, **spec: Any) -> None:
        super().__init__()
        self.input = xcam.InputSpec((4, 6), **spec)
        self.seen: list[Any] = []

    def trace(self, x: Any, layer: str, cotangents: Any = None) -> Any:
        self.seen.append(x)
        return super().trace(x, layer, cotangents)


def test_pixels_are_preprocessed_and_other_values_are_not() -> None:
    """A uint8 array is an image in another order of axes; every other array is taken as it is."""
    preset = Preprocessing("p", scale=1 / 255, mean=(0.5, 0.25, 0.0), std=(0.5, 0.5, 2.0))
    model = Seen(preprocessing=preset)
    pixels = np.moveaxis(IMAGES[0], -1, 0)
    image = xcam.explain(model, IMAGES[0])
    e = xcam.explain(model, pixels)
    np.testing.assert_array_equal(model.seen[0], model.seen[1])
    np.testing.assert_array_equal(e.cam, image.cam)
    np.testing.assert_array_equal(e.image, IMAGES[0])
    floats = np.random.default_rng(0).uniform(-1, 1, (3, 4, 6))
    for form in (floats, np.int16(2 * floats)):
        xcam.explain(model, form)
        np.testing.assert_array_equal(model.seen[-1][0], form.astype(np.float32))


def test_pixels_without_a_stated_scale_are_warned_of() -> None:
    model = Seen()
    with pytest.warns(xcam.XcamWarning, match="does not state how images are scaled: 'unit'"):
        xcam.explain(model, np.moveaxis(IMAGES[0], -1, 0))
    np.testing.assert_allclose(model.seen[0][0], np.moveaxis(IMAGES[0], -1, 0) / 255, rtol=1e-6)


def test_a_preprocessing_for_another_number_of_channels() -> None:
    model = Quadratic((4, 6), channels=4)
    for name in ("torch", "caffe"):
        model.input = dataclasses.replace(model.input, preprocessing=xcam.contract.preprocessing.PRESETS[name])
        with pytest.raises(InputError, match=f"'{name}' is for 3 channels, and it has 4; choose unit, raw or tf"):
            xcam.explain(model, np.zeros((4, 4, 6), np.uint8))


@pytest.mark.parametrize(("factor", "offset"), [(255, 0), (0.001, 0), (1, 50)])
def test_values_in_another_scale_than_preprocessed_pixels_are_warned_of(factor: float, offset: float) -> None:
    model = Seen(preprocessing=xcam.contract.preprocessing.PRESETS["torch"])
    x = np.random.default_rng(0).uniform(0, 1, (3, 4, 6))
    with pytest.warns(
        xcam.XcamWarning, match=r"pixels preprocessed by 'torch' are -2.118 to 2.64: arrays are not scaled"
    ):
        xcam.explain(model, x * factor + offset)


def test_arrays_of_other_libraries_and_other_commands() -> None:
    with pytest.raises(
        InputError, match=r"it is Foreign; give a path, or RGB as uint8 .*, or another array of NumPy"
    ):
        xcam.explain(Seen(), type("Foreign", (), {"__array__": lambda self: np.zeros(3)})())  # type: ignore[call-overload]
    with pytest.raises(InputError, match=r"it is float32 \[1, 3, 4, 6\]; .*; only `explain` takes other arrays"):
        xcam.compare([Seen(), Seen()], array((4, 6)), preprocess="raw")


def test_a_model_of_integers() -> None:
    model = Seen(dtype="uint8")
    x = np.moveaxis(IMAGES[0], -1, 0)
    for form in (x, x.astype(float), x.astype(np.int64)):
        xcam.explain(model, form)
        assert model.seen[-1].dtype == np.uint8
        np.testing.assert_array_equal(model.seen[-1][0], x)
    with pytest.raises(InputError, match=r"takes uint8, and its values .* are fractions; scale and round them first"):
        xcam.explain(model, x / 255)
    with pytest.raises(InputError, match=r"takes uint8, and its values .* are beyond its range"):
        xcam.explain(model, x + np.int16(255))


def test_augment_is_for_images_and_volumes() -> None:
    with pytest.raises(InputError, match="augment mirrors images, and a signal has no left and right"):
        xcam.explain(Quadratic((9,)), array((9,)), augment=True)
    x = array((3, 4, 5))
    e = xcam.explain(Quadratic((3, 4, 5), bend=0), x, augment=True)  # linear: the mean of equal maps
    np.testing.assert_allclose(e.cam, xcam.explain(Quadratic((3, 4, 5), bend=0), x).cam, rtol=1e-4, atol=1e-6)


def test_files(tmp_path: Path) -> None:
    x = array((30,), n=2)
    np.save(tmp_path / "x.npy", x[0])
    np.savez(tmp_path / "x.npz", a=x[1], b=x)
    e, f = xcam.explain(Quadratic((30,)), [tmp_path / "x.npy", f"{tmp_path}/x.npz:a"])
    assert (e.path, f.path) == (tmp_path / "x.npy", tmp_path / "x.npz:a")
    both = xcam.explain(Quadratic((30,)), f"{tmp_path}/x.npz:b")
    np.testing.assert_array_equal([g.cam for g in both], [e.cam, f.cam])
    with pytest.raises(InputError, match=r"x\.npz:b is a batch of 2 inputs, and one is expected; save each row"):
        xcam.explain(Quadratic((30,)), [f"{tmp_path}/x.npz:b"])
    with pytest.raises(InputError, match=r"entry 2 of the list is a batch of 2 inputs, .*; give its rows"):
        xcam.explain(Quadratic((30,)), [x[0], x])
    with pytest.raises(InputError, match=r"contains an array, which only `explain` takes"):
        xcam.compare([Seen(), Seen()], os.fspath(tmp_path / "x.npy"), preprocess="raw")


@pytest.mark.parametrize("space", SPACES, ids=str)
def test_every_kind_of_file_is_written(space: tuple[int, ...], tmp_path: Path) -> None:
    e = xcam.explain(Quadratic(space), array(space), method="hirescam")
    for style in ("heat", "contour", "signed"):
        e.save(tmp_path / "x.png", style=style)
        written = cv2.cvtColor(cv2.imread(str(tmp_path / "x.png")), cv2.COLOR_BGR2RGB)
        np.testing.assert_array_equal(written, e.overlay(style=style))
        assert not np.array_equal(written, e.image)
    assert e._repr_png_().startswith(b"\x89PNG")
    e.save(tmp_path / "x.npy")
    np.testing.assert_array_equal(np.load(tmp_path / "x.npy"), e.heatmap)
    e.save(tmp_path / "x.npz")
    with np.load(tmp_path / "x.npz") as saved:
        np.testing.assert_array_equal(saved["heatmap"], e.heatmap)
        np.testing.assert_array_equal(saved["cam"], e.cam)
    assert xcam.grid([e, e]).ndim == 3
    assert e.drawn_heatmap.shape == e.image.shape[:2]
    assert e.drawn_heatmap.max() == pytest.approx(e.heatmap.max(), abs=0.1)
    assert e.shrunk(8) is e
    page.write([e], tmp_path / "x.html")


def test_maps_of_several_layers_are_fused() -> None:
    model = Quadratic((30,))
    model.layers = [model.layers[0], dataclasses.replace(model.layers[0], name="again")]
    e = xcam.explain(model, array((30,)), layer=["features", "again"], method="hirescam")
    single = xcam.explain(model, array((30,)), method="hirescam")
    np.testing.assert_allclose(e.heatmap, single.heatmap, atol=1e-6)
    other = xcam.explain(model, 2 * array((30,)), method="hirescam")
    with pytest.raises(InputError, match="is another image or class"):
        xcam.explanation.fusion.fuse([single, other])


def test_where_a_map_is_strongest() -> None:
    e = xcam.explain(Quadratic((30,)), array((30,)), method="hirescam")
    assert page.strongest(e) == f"for {e.label}, strongest at index {e.heatmap.argmax()} of 30"
