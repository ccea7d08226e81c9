"""Quantised files: activation and gradient at the last layer, compared with inference of the same file; and opening them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, quantize_dynamic, quantize_static

import xcam
from alternating import ratios
from onnx_exports import NETWORKS, Network, images
from xcam_torch.export import to_onnx

LARGEST, SLOWEST = 1.3, 2.0
"""Largest ratio allowed to inference of the same file, and to opening the float file."""
LAYERS = {"resnet50": "layer4", "mobilenet_v2": "features.18"}
FORMATS = {"qdq": QuantFormat.QDQ, "qoperator": QuantFormat.QOperator}


class Images(CalibrationDataReader):
    """Images for calibration."""

    def __init__(self) -> None:
        self._batches: Iterator[dict[str, np.ndarray]] = iter([{"input": image[None]} for image in images(3, 224, 0)])

    def get_next(self) -> Any:
        return next(self._batches, None)


@pytest.fixture(scope="session")
def file(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Path]:
    folder = tmp_path_factory.mktemp("quantised")

    def quantised(name: str, kind: str) -> Path:
        path, source = (folder / f"{name}.{end}.onnx" for end in (kind, "float"))
        if not source.exists():
            network = NETWORKS.get(name) or Network(name, ("", "", LAYERS[name]))
            to_onnx(network.build(), source, (224, 224))
        if kind in FORMATS and not path.exists():
            quantize_static(source, path, Images(), quant_format=FORMATS[kind], per_channel=True)
        if kind == "dynamic" and not path.exists():
            quantize_dynamic(source, path)
        return path

    return quantised


def top(outputs: Any) -> list[Any]:
    return [np.eye(outputs.shape[1], dtype=np.float32)[outputs.argmax(axis=1)]]


@pytest.mark.parametrize("kind", ["qdq", "qoperator", "dynamic", "float"])
@pytest.mark.parametrize("name", LAYERS)
def test_gradient(name: str, kind: str, file: Callable[[str, str], Path], capsys: pytest.CaptureFixture[str]) -> None:
    x = np.random.default_rng(0).normal(size=(1, 3, 224, 224)).astype(np.float32)
    options = ort.SessionOptions()
    options.intra_op_num_threads = 2
    options.add_session_config_entry("session.force_spinning_stop", "1")  # or it would slow down what runs next
    plain = ort.InferenceSession(file(name, kind), options)
    model = xcam.load(file(name, kind), threads=2, preprocess="raw")
    layer = xcam.explain(model, np.zeros((224, 224, 3), np.uint8)).layer
    ratios(
        f"{name}, {kind}, at {layer} (QDQ: at most {LARGEST})",
        {"inference": lambda: plain.run(None, {"input": x}), "trace": lambda: model.trace(x, layer, top)},
        30,
        capsys,
    )


@pytest.mark.parametrize("name", LAYERS)
def test_opening(name: str, file: Callable[[str, str], Path], capsys: pytest.CaptureFixture[str]) -> None:
    x = np.zeros((1, 3, 224, 224), np.float32)

    def opening(kind: str) -> Callable[[], Any]:
        path = file(name, kind)

        def opened() -> Any:
            model = xcam.load(path, threads=2, preprocess="raw")
            return model.layers, model.predict(x)

        return opened

    def loading(kind: str) -> Callable[[], Any]:
        path = file(name, kind)
        return lambda: xcam.load(path, threads=2, preprocess="raw")

    for title, prepare in (("opening, its layers and a prediction", opening), ("loading alone", loading)):
        functions = {kind: prepare(kind) for kind in ("float", "qdq", "qoperator", "dynamic")}
        ratios(f"{name}, {title} (QDQ and QOperator: at most {SLOWEST})", functions, 5, capsys)
