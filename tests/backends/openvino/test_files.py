"""Files and objects that cannot be opened: one line with a remedy."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import openvino
import pytest
from openvino import op
from openvino import opset13 as ops

import xcam
from xcam_onnx.demo import build as onnx_demo
from xcam_openvino.demo import build


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "network.xml"
    openvino.save_model(build(), path, compress_to_fp16=False)
    return path


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:3000])


def without_weights(path: Path) -> None:
    path.with_suffix(".bin").unlink()


def truncate_weights(path: Path) -> None:
    path.with_suffix(".bin").write_bytes(path.with_suffix(".bin").read_bytes()[:1000])


def other_xml(path: Path) -> None:
    path.write_text("<annotation><object/></annotation>")


def unknown_operator(path: Path) -> None:
    path.write_text(path.read_text().replace('type="ReLU"', 'type="ReLUNext"'))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (truncate, r"network\.xml: it ends before </net>; copy"),
        (without_weights, r"its weights, network\.bin, are not next to it; copy"),
        (truncate_weights, r"cannot read network\.xml: .*; copy"),
        (other_xml, r"it is not an OpenVINO model .*; give the \.xml"),
        (unknown_operator, r"lacks an operator: .*ReLUNext.*; install"),
    ],
)
def test_a_bad_file_is_one_line_with_a_remedy(path: Path, change: Callable[[Path], None], message: str) -> None:
    change(path)
    with pytest.raises(xcam.errors.ModelError, match=message) as error:
        xcam.load(path)
    assert "\n" not in str(error.value)


def test_a_truncated_onnx_file(tmp_path: Path) -> None:
    path = tmp_path / "network.onnx"
    path.write_bytes(onnx_demo().SerializeToString()[:40])
    with pytest.raises(xcam.errors.ModelError, match=r"cannot read network\.onnx: .*; copy the file again"):
        xcam.load(path, backend="openvino")


def with_state() -> openvino.Model:
    x = ops.parameter([1, 3, 8, 8], np.float32)
    info = op.util.VariableInfo()
    info.data_shape, info.data_type, info.variable_id = openvino.PartialShape([1, 3, 8, 8]), openvino.Type.f32, "v"
    variable = op.util.Variable(info)
    state = ops.read_value(ops.constant(np.zeros((1, 3, 8, 8), np.float32)), variable)
    total = ops.add(x, state)
    assign = ops.assign(total, variable)
    return openvino.Model([total.output(0)], [assign], [x])


def of_integers() -> openvino.Model:
    x = ops.parameter([1, 3, 8, 8], np.float32)
    return openvino.Model([ops.convert(x, "i32").output(0)], [x])


def of_text() -> openvino.Model:
    x = ops.parameter([1, 8], np.float32)
    return openvino.Model([ops.relu(x).output(0)], [x])


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (with_state, r"it has a state.*; export it without"),
        (of_integers, r"it returns .*i32.*; convert it"),
        (of_text, r"has the shape \[1, 8\].*; convert it"),
    ],
)
def test_a_model_that_cannot_be_explained(model: Callable[[], Any], message: str) -> None:
    with pytest.raises(xcam.errors.ModelError, match=message):
        xcam.load(model())


def test_a_compiled_model_cannot_be_cut() -> None:
    compiled = openvino.Core().compile_model(build(), "CPU")
    with pytest.raises(
        xcam.InputError, match=r"CompiledModel: it has the runtime's own graph.*; give the openvino\.Model"
    ):
        xcam.load(compiled)
