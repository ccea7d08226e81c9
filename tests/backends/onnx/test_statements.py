"""The metadata of other tools: labels, size and scaling."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import xcam
from xcam.contract.preprocessing import PRESETS

NAMES = "{0: 'cat', 1: 'dog', 2: 'owl', 3: 'ant'}"
IMAGENET = {"mean": "[0.485, 0.456, 0.406]", "std": "[0.229, 0.224, 0.225]"}


def file(texts: dict[str, str], elem: int = TensorProto.FLOAT, has_classes: bool = True, scale: float = 0) -> Any:
    """Build a file with metadata: four classes, or a map of four channels."""
    kernel = np.random.default_rng(1).normal(size=(4, 3, 3, 3)).astype(np.float32)
    nodes = [
        helper.make_node("Cast", ["x"], ["f"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["f", "scale"], ["scaled"]) if scale else helper.make_node("Identity", ["f"], ["scaled"]),
        helper.make_node("Conv", ["scaled", "w"], ["conv"]),
        helper.make_node("GlobalAveragePool", ["conv"], ["pool"]),
        helper.make_node("Flatten", ["pool"], ["scores"]),
    ]  # fmt: skip
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", elem, ["n", 3, "h", "w"])],
        [
            helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["n", 4])
            if has_classes
            else helper.make_tensor_value_info("conv", TensorProto.FLOAT, ["n", 4, "a", "b"])
        ],
        [numpy_helper.from_array(kernel, "w"), numpy_helper.from_array(np.float32(scale), "scale")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.helper.set_model_props(model, texts)
    return model


def image_metadata(pixels: str, values: str) -> dict[str, str]:
    return {
        "Image.BitmapPixelFormat": pixels,
        "Image.ColorSpaceGamma": "SRGB",
        "Image.NominalPixelRange": values,
    }


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        (image_metadata("Rgb8", "NominalRange_0_255"), [10, 20, 30]),
        (image_metadata("Bgr8", "NominalRange_0_255"), [30, 20, 10]),
        (image_metadata("BGRA8", "normalized_0_1"), [30 / 255, 20 / 255, 10 / 255]),
        (image_metadata("Rgb8", "Normalized_1_1"), [10 / 127.5 - 1, 20 / 127.5 - 1, 30 / 127.5 - 1]),
        (image_metadata("Bgr8", "Normalized_1_1"), [30 / 127.5 - 1, 20 / 127.5 - 1, 10 / 127.5 - 1]),
        ({"stride": "32", "names": NAMES, "task": "classify"}, [10 / 255, 20 / 255, 30 / 255]),
        (
            {"stride": "32", "names": NAMES},
            [(10 / 255 - 0.485) / 0.229, (20 / 255 - 0.456) / 0.224, (30 / 255 - 0.406) / 0.225],
        ),
        (IMAGENET, [(10 / 255 - 0.485) / 0.229, (20 / 255 - 0.456) / 0.224, (30 / 255 - 0.406) / 0.225]),
        ({"image_mean": "127.5", "image_std": "(127.5,)"}, [10 / 127.5 - 1, 20 / 127.5 - 1, 30 / 127.5 - 1]),
    ],
)
def test_the_stated_scaling(texts: dict[str, str], expected: list[float]) -> None:
    spec = xcam.load(file(texts)).input
    assert spec.preprocessing is not None
    assert spec.needs is None
    np.testing.assert_allclose(spec.preprocessing(np.array([10, 20, 30])), expected, rtol=1e-5)


def test_a_detector_of_yolov5_takes_values_in_0_to_1() -> None:
    model = xcam.load(file({"stride": "32", "names": NAMES}, has_classes=False))
    assert model.input.preprocessing == PRESETS["unit"]


@pytest.mark.parametrize(
    "texts",
    [
        image_metadata("Rgb8", "NominalRange_16_235"),
        image_metadata("", "NominalRange_0_255"),
        {"mean": "[0.5, 0.5]", "std": "[0.5, 0.5]"},
        {"mean": "[0.5]", "std": "[0]"},
        {"mean": "0.5, 0.5", "std": "x("},
        {"mean": "[nan]", "std": "[true]"},
        {"names": NAMES},
    ],
)
def test_other_texts_state_no_scaling(texts: dict[str, str]) -> None:
    assert xcam.load(file(texts)).input.preprocessing is None


@pytest.mark.parametrize(
    ("texts", "labels"),
    [
        ({"names": NAMES}, ("cat", "dog", "owl", "ant")),
        ({"classes": '["cat", "dog", "owl", "ant"]'}, ("cat", "dog", "owl", "ant")),
        ({"id2label": '{"1": "dog", "0": "cat", "3": "ant", "2": "owl"}'}, ("cat", "dog", "owl", "ant")),
        ({"names": "{0: 'cat', 1: 'dog'}"}, None),
        ({"names": "{0: 'cat', 1: 'dog', 2: 'owl', 5: 'ant'}"}, None),
        ({"names": "[1, 2, 3, 4]"}, None),
        ({"names": "cat dog"}, None),
        ({"names": "{'cat': 0}"}, None),
    ],
)
def test_the_stated_labels(texts: dict[str, str], labels: Any) -> None:
    assert xcam.load(file(texts)).labels == labels


def test_the_stated_size_is_used_where_the_file_leaves_it_open() -> None:
    model = file({"imgsz": "[48, 64]"})
    assert xcam.load(model).input.size == (48, 64)
    assert not xcam.load(model).input.fixed
    assert xcam.load(model, size=(32, 32)).input.size == (32, 32)
    assert xcam.load(file({"imgsz": "48"})).input.size == (48, 48)
    assert xcam.load(file({"imgsz": "[48, 0]"})).input.size is None


def test_integers_are_pixels_whatever_the_metadata_state() -> None:
    assert xcam.load(file(IMAGENET, TensorProto.UINT8)).input.preprocessing is None


def test_a_file_that_states_a_scaling_and_computes_it_is_warned_of() -> None:
    with pytest.warns(xcam.XcamWarning, match="net scales its input itself and takes pixels in 0…255, and 'torch'"):
        xcam.load(file(IMAGENET, scale=1 / 255))
    spec = xcam.load(file(image_metadata("Bgr8", "NominalRange_0_255"), scale=1 / 255)).input
    assert spec.preprocessing is not None
    assert (spec.preprocessing.order, spec.preprocessing.scale) == ("BGR", 1)


@pytest.mark.parametrize(
    ("texts", "has_classes", "fit"),
    [
        ({"task": "detect", "head": "Detect"}, False, "letterbox"),
        ({"task": "segment"}, False, "letterbox"),
        ({"task": "classify", "head": "Classify"}, True, "crop"),
        ({"task": "detect", "head": "RTDETRDecoder"}, False, "stretch:interpolation=bilinear,antialias=no,like=ultralytics"),
        ({}, False, "letterbox"),
        ({}, True, "crop:antialias=no,like=keras"),
    ],
)  # fmt: skip
def test_the_fit_of_an_export_of_ultralytics(texts: dict[str, str], has_classes: bool, fit: str) -> None:
    model = file({"names": NAMES, "stride": "32", "imgsz": "[64, 96]"} | texts, has_classes=has_classes)
    spec = xcam.load(model).input
    assert str(spec.fit) == fit
    assert spec.size == (64, 96)
    assert str(xcam.load(model, fit="pad").input.fit) == "pad"
    assert xcam.load(file({"names": NAMES})).input.fit is None


def test_the_processor_of_hugging_face_next_to_the_file(tmp_path: Path) -> None:
    (tmp_path / "onnx").mkdir()
    onnx.save(file({}), tmp_path / "onnx" / "model.onnx")
    processor = {
        "image_processor_type": "CLIPImageProcessor",
        "size": {"shortest_edge": 80},
        "crop_size": {"height": 64, "width": 72},
        "do_center_crop": True,
        "resample": 3,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
    }
    assert xcam.load(tmp_path / "onnx" / "model.onnx").input.fit is None
    (tmp_path / "preprocessor_config.json").write_text("[]")
    assert xcam.load(tmp_path / "onnx" / "model.onnx").input.fit is None
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(processor))
    spec = xcam.load(tmp_path / "onnx" / "model.onnx").input
    assert spec.fit == xcam.Fit("crop", resize=80, interpolation="bicubic", like="transformers")
    assert spec.size == (64, 72)
    assert spec.preprocessing == PRESETS["tf"]
    onnx.save(file(IMAGENET), tmp_path / "onnx" / "stated.onnx")  # the file's own statement has priority
    assert xcam.load(tmp_path / "onnx" / "stated.onnx").input.preprocessing == PRESETS["torch"]
