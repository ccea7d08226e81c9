"""Images that are cropped or get a border, in every framework: the map returns to its location in the image.

The networks have a layer that is bright where the image is: its map has its maximum on a bright square.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

import xcam
from sets import read_rows
from xcam.images import reading, writing
from xcam_keras.backend import keras

SIDE = 64
KERNEL = np.stack([np.full((3, 4, 4), 1 / 48), np.full((3, 4, 4), -1 / 48)]).astype(np.float32)
BIAS = np.array([-0.5, 0.3], np.float32)
FITS = ("stretch", "crop", "crop:0.875", "letterbox", "letterbox:centred=no", "pad", "pad:like=keras")


def of_torch() -> Any:
    """Return channels of bright and of dark cells, 4×4 pixels each, and their means as classes."""
    conv = nn.Conv2d(3, 2, 4, stride=4)
    conv.weight.data, conv.bias.data = torch.from_numpy(KERNEL), torch.from_numpy(BIAS)  # type: ignore[union-attr]
    return nn.Sequential(conv, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()


def of_keras() -> Any:
    conv = keras.layers.Conv2D(2, 4, strides=4, activation="relu")
    layers = [keras.Input((SIDE, SIDE, 3)), conv, keras.layers.GlobalAveragePooling2D()]
    model = keras.Sequential(layers)
    conv.set_weights([KERNEL.transpose(2, 3, 1, 0), BIAS])
    return model


def of_onnx() -> Any:
    nodes = [
        helper.make_node("Conv", ["x", "w", "b"], ["conv"], strides=[4, 4]),
        helper.make_node("Relu", ["conv"], ["relu"]),
        helper.make_node("GlobalAveragePool", ["relu"], ["pool"]),
        helper.make_node("Flatten", ["pool"], ["scores"]),
    ]
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, SIDE, SIDE])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["n", 2])],
        [numpy_helper.from_array(KERNEL, "w"), numpy_helper.from_array(BIAS, "b")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


NETWORKS: dict[str, Callable[[], Any]] = {"torch": of_torch, "keras": of_keras, "onnx": of_onnx}


def opened(backend: str, fit: str | None = None) -> Any:
    return xcam.load(NETWORKS[backend](), backend, preprocess="unit", size=(SIDE, SIDE), fit=fit)


def image(x: int, y: int, height: int = 300, width: int = 500) -> Any:
    """Return a dark image with a bright square of 60 pixels."""
    pixels = np.full((height, width, 3), 30, np.uint8)
    pixels[y : y + 60, x : x + 60] = 250
    return pixels


def peak(heatmap: Any) -> tuple[int, int]:
    """Return x and y of the centre of the highest values."""
    y, x = np.argwhere(heatmap > 0.99 * heatmap.max()).mean(axis=0)
    return round(x), round(y)


@pytest.mark.parametrize("backend", NETWORKS)
@pytest.mark.parametrize("fit", FITS)
def test_the_map_is_where_the_square_is(backend: str, fit: str) -> None:
    model = opened(backend, fit)
    images = [image(160, 40), image(300, 200), image(20, 240, 400, 260)]
    for e, pixels in zip(xcam.explain(model, images, target=0), images, strict=True):
        y, x = np.argwhere(pixels[..., 0] > 200).mean(axis=0)
        assert e.heatmap.shape == pixels.shape[:2]
        assert np.hypot(*np.subtract(peak(e.heatmap), (x, y))) < 25
        assert e.frame.input == (SIDE, SIDE)
        outside = ~e.frame.mask
        assert outside.any() == fit.startswith("crop")
        for style in ("heat", "contour", "signed"):
            drawn = e.overlay(style=style)
            np.testing.assert_array_equal(drawn[outside], pixels[outside])
        assert not e.heatmap[outside].any()
        assert not e.signed[outside].any()
        small = e.shrunk(100)
        assert np.hypot(*np.subtract(np.multiply(peak(small.heatmap), max(pixels.shape) / 100), (x, y))) < 30


@pytest.mark.parametrize("backend", NETWORKS)
def test_the_model_gets_the_letterboxed_pixels(backend: str) -> None:
    e = xcam.explain(opened(backend, "letterbox"), image(160, 40), target=0)
    x = np.full((SIDE, SIDE, 3), 114, np.uint8)
    x[13:51] = cv2.resize(image(160, 40), (64, 38), interpolation=cv2.INTER_LINEAR)
    cells = torch.from_numpy(x / np.float32(255)).permute(2, 0, 1)[None]
    with torch.no_grad():
        scores = of_torch()(cells)[0].numpy()
    np.testing.assert_allclose(e.outputs, scores, rtol=1e-5)


@pytest.mark.parametrize("backend", NETWORKS)
def test_a_square_outside_the_crop_is_not_seen(backend: str) -> None:
    with pytest.warns(xcam.ZeroHeatmapWarning):
        e = xcam.explain(opened(backend, "crop"), image(10, 40), target=0)
    np.testing.assert_array_equal(e.overlay()[:, :95], e.image[:, :95])


@pytest.mark.parametrize("backend", NETWORKS)
def test_a_mirrored_image_gives_the_mirrored_map(backend: str) -> None:
    model = opened(backend, "crop")
    e = xcam.explain(model, image(160, 40), target=0, augment=True)
    assert np.hypot(*np.subtract(peak(e.heatmap), (190, 70))) < 25


@pytest.mark.parametrize("backend", NETWORKS)
def test_arrays_do_not_get_a_fit(backend: str) -> None:
    model = opened(backend, "crop")
    shape = (SIDE, SIDE, 3) if backend == "keras" else (3, SIDE, SIDE)
    e = xcam.explain(model, np.random.default_rng(0).random(shape, np.float32), target=0)
    assert e.frame is None
    assert e.heatmap.shape == (SIDE, SIDE)


def test_a_map_in_the_border_is_announced() -> None:
    with pytest.warns(xcam.XcamWarning, match="in the border around the image"):
        e = xcam.explain(opened("torch", "pad:fill=255"), image(160, 40) // 2, target=0)
    assert e.heatmap.max() < 0.5


def test_compared_models_see_the_same_pixels() -> None:
    models = [opened("torch", "crop"), opened("keras"), opened("onnx")]
    c = xcam.compare(models, image(160, 40), target=0)
    assert c.verdict == "identical"
    assert [e.frame for e in c.images[0].explanations] == [c.images[0].explanations[0].frame] * 3
    assert not [text for text in c.findings if "fit" in text]


def test_compared_models_keep_the_fits_that_they_state() -> None:
    models = [opened("torch", "crop"), opened("onnx", "letterbox")]
    c = xcam.compare(models, image(160, 40), target=0)
    assert any("crop" in text and "letterbox" in text for text in c.findings)
    assert c.table[0]["distance"] < 0.1  # the peaks are compared in the image


def test_objects_are_compared_with_the_map_in_the_image() -> None:
    images = [image(160, 40), image(300, 200), image(10, 100)]
    boxes = [[160, 40, 220, 100], [300, 200, 360, 260], [10, 100, 70, 160]]
    options: dict[str, Any] = {"methods": ["gradcam"], "measures": ["pointing", "energy"], "target": 0}
    result = xcam.evaluate(opened("torch", "crop"), images, boxes=boxes, **options)
    np.testing.assert_array_equal(result.values["gradcam"]["pointing"], [1, 1, np.nan])  # the third one is not seen
    assert (result.values["gradcam"]["energy"][:2] > 0.5).all()
    result = xcam.evaluate(opened("torch", "letterbox"), images, boxes=boxes, **options)
    np.testing.assert_array_equal(result.values["gradcam"]["pointing"], [1, 1, 1])


@pytest.mark.parametrize("fit", ["crop", "letterbox", "pad:resize=40"])
def test_a_batch_has_the_maps_of_single_images(tmp_path: Path, fit: str) -> None:
    paths = []
    for k, pixels in enumerate((image(160, 40), image(300, 200), image(20, 240, 400, 260))):
        paths.append(tmp_path / f"{k}.png")
        writing.write(paths[-1], pixels)
    onnx.save(of_onnx(), tmp_path / "net.onnx")
    options = {"preprocess": "unit", "fit": fit}
    result = xcam.batch(
        str(tmp_path / "net.onnx"),
        [str(p) for p in paths],
        out=tmp_path / "out",
        load_options=options,
        target=0,
        overlays={},
    )
    rows = read_rows(tmp_path / "out")
    model = xcam.load(tmp_path / "net.onnx", **options)
    for row, path in zip(rows, paths, strict=True):
        e = xcam.explain(model, path, target=0)
        np.testing.assert_allclose(np.reshape(row["map"], e.cam.shape), e.cam, atol=1e-6)
        assert e.frame is not None
        box = e.frame.boxes_to_image([0, 0, SIDE, SIDE], clip=False)
        np.testing.assert_allclose(row["map_box"], box, rtol=1e-5)
    assert "base64" in Path(result.report()).read_text(encoding="utf-8")
    drawn = sorted((tmp_path / "out").rglob("*.cam.jpg"))
    if fit == "crop":
        np.testing.assert_allclose(reading.read(drawn[0])[:, :90], 30, atol=3)


def test_an_exported_file_states_the_fit(tmp_path: Path) -> None:
    model = opened("onnx", "crop:0.875,fill=mean")
    path = xcam.export(model, tmp_path / "net.onnx")
    again = xcam.load(path)
    assert again.input.fit == model.input.fit
    pixels = image(160, 40)
    np.testing.assert_allclose(
        xcam.explain(again, pixels, target=0).heatmap, xcam.explain(model, pixels, target=0).heatmap, atol=1e-4
    )


def test_a_stated_size_keeps_the_share_that_is_cut_off() -> None:
    module = of_torch()
    module.pretrained_cfg = {"input_size": (3, SIDE, SIDE), "crop_pct": 0.5, "interpolation": "bilinear"}
    e = xcam.explain(xcam.load(module, preprocess="unit"), image(210, 120), target=0)
    assert e.frame.seen == (slice(75, 225), slice(174, 324))  # 128×213 pixels, and the crop at (32, 74)
    larger = xcam.load(module, preprocess="unit", size=(2 * SIDE, 2 * SIDE))
    assert xcam.explain(larger, image(210, 120), target=0).frame.seen == (slice(75, 225), slice(175, 325))
    whole = xcam.load(module, preprocess="unit", fit="stretch")
    assert xcam.explain(whole, image(210, 120), target=0).frame.is_whole


def test_an_input_of_any_size_follows_the_image() -> None:
    model = xcam.load(of_torch(), preprocess="unit", fit="pad:resize=48,longest=72,multiple=16")
    e = xcam.explain(model, image(160, 40), target=0)
    assert e.frame.input == (48, 80)  # 43×72, and a border
    assert np.hypot(*np.subtract(peak(e.heatmap), (190, 70))) < 25
