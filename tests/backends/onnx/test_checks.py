"""Files with an invalid quantisation, or with operators that the runtime lacks: one line with the node and a remedy."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import cv2
import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import NodeProto, TensorProto, helper, numpy_helper

import xcam
from xcam import ModelError
from xcam_cli import main

F, U, S = np.float32, np.uint8, np.int8
KERNEL = np.random.default_rng(0).integers(-128, 128, (4, 3, 3, 3)).astype(S)
X = np.random.default_rng(1).uniform(size=(1, 3, 8, 8)).astype(F)
MICROSOFT = "com.microsoft"


def node(op: str, inputs: str, output: str, name: str = "", **attributes: Any) -> NodeProto:
    return helper.make_node(op, inputs.split(), [output], name or output, **attributes)


def weights(**changed: Any) -> dict[str, Any]:
    values = {
        **{"s": F(0.02), "z": U(3), "k": KERNEL, "ks": np.full(4, 0.01, F), "kz": np.zeros(4, S)},
        **{"ys": F(0.05), "yz": U(0), "ones": np.ones(3, F)},
    }
    return values | changed


QUANTISE = [node("QuantizeLinear", "x s z", "q", "first"), node("DequantizeLinear", "q s z", "d")]
END = [node("GlobalAveragePool", "f", "g"), node("Flatten", "g", "y")]
AFTER = [node("QuantizeLinear", "c ys yz", "e"), node("DequantizeLinear", "e ys yz", "f")]


def convolution(**attributes: Any) -> list[NodeProto]:
    kernel = node("DequantizeLinear", "k ks kz", "w", "kernel", **{"axis": 0} | attributes)
    return [*QUANTISE, kernel, node("Conv", "d w", "c"), *AFTER, *END]


QLINEAR = [
    node("QuantizeLinear", "x s z", "q", "first"),
    node("QLinearConv", "q s z k ks kz ys yz", "e", "conv"),
    node("DequantizeLinear", "e ys yz", "f"),
    *END,
]
BLOCKS = [
    *QUANTISE,
    node("Flatten", "d", "l"),
    node("DequantizeLinear", "b bs", "w", "kernel", axis=0, block_size=16),
    node("MatMul", "l w", "y"),
]


def unusual(op: str, domain: str = MICROSOFT, **attributes: Any) -> list[NodeProto]:
    return [
        node("Transpose", "x", "t", perm=[0, 2, 3, 1]),
        helper.make_node(op, ["t", "ones", "ones"], ["f"], "unusual", domain=domain, **attributes),
        node("Flatten", "f", "y"),
    ]


def model(nodes: list[NodeProto], values: dict[str, Any] | None = None, opset: int = 17) -> onnx.ModelProto:
    """Return a model that takes an image of 8 x 8."""
    used = {name for n in nodes for name in n.input}
    tensors = [
        value if isinstance(value, TensorProto) else numpy_helper.from_array(np.asarray(value), name)
        for name, value in (values or weights()).items()
        if name in used
    ]
    source = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, 8, 8])
    result = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    graph = helper.make_graph(nodes, "small", [source], [result], tensors)
    domains = [helper.make_opsetid(domain, 1) for domain in sorted({n.domain for n in nodes} - {""})]
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset), *domains], ir_version=10)


def wide(name: str, dtype: int, shape: list[int], value: int) -> TensorProto:
    """Return a tensor whose integers are stored in 32 bits."""
    tensor = TensorProto(name=name, data_type=dtype, dims=shape)
    bits = 4 if dtype in (TensorProto.INT4, TensorProto.UINT4) else 8
    tensor.int32_data.extend([value] * (int(np.prod(shape)) * bits // 8))
    return tensor


def scales(*values: float) -> dict[str, Any]:
    return weights(ks=np.array(values, F))


half = {"s": np.float16(np.inf), "z": U(3)}
HALF = [
    node("Cast", "x", "h", to=10),
    node("QuantizeLinear", "h s z", "q", "first"),
    node("DequantizeLinear", "q s z", "d"),
    node("Cast", "d", "f", to=1),
    *END,
]

REFUSED: dict[str, tuple[list[NodeProto], dict[str, Any] | None, str]] = {
    "zero": (convolution(), weights(s=F(0)), r"node 'first' \(QuantizeLinear\) has a scale of 0"),
    "negative": (convolution(), weights(s=F(-0.5)), r"'first' \(QuantizeLinear\) has a scale of -0.5"),
    "not a number": (convolution(), weights(s=F(np.nan)), r"'first' .* has a scale that is not a number"),
    "infinite": (convolution(), weights(ys=F(np.inf)), r"'e' \(QuantizeLinear\) has an infinite scale"),
    "infinite in float16": (HALF, half, r"'first' .* has an infinite scale \(float16"),
    "zero for a channel": (
        convolution(),
        scales(0.1, 0, 0.1, 0.1),
        r"'kernel' \(DequantizeLinear\) has a scale of 0",
    ),
    "zero of an output": (QLINEAR, weights(ys=F(0)), r"'conv' \(QLinearConv\) has a scale of 0"),
    "type": (convolution(), weights(kz=np.zeros(4, U)), r"'kernel' .* a zero point of uint8 for values of int8"),
    "count": (
        convolution(),
        weights(ks=np.ones(3, F), kz=np.zeros(3, S)),
        r"'kernel' .* has 3 scales, and axis 0 of 4 x 3 x 3 x 3 values needs 4",
    ),
    "count of an operator": (QLINEAR, weights(ks=np.ones(3, F), kz=np.zeros(3, S)), r"'conv' .* has 3 scales"),
    "zero points": (convolution(), weights(kz=np.zeros(3, S)), r"'kernel' .* has 4 scales and 3 zero points"),
    "axis": (convolution(axis=1), None, r"'kernel' .* has 4 scales, and axis 1 .* needs 3"),
    "no such axis": (convolution(axis=7), None, r"'kernel' .* has the axis 7 for a value with 4 axes"),
    "blocks": (
        BLOCKS,
        weights(b=np.ones((192, 6), S), bs=np.ones((11, 6), F)),
        r"'kernel' .* has 11 x 6 scales, and axis 0 of 192 x 6 values needs 12 x 6",
    ),
    "zero point out of range": (
        convolution(),
        weights(z=wide("z", TensorProto.UINT8, [], 300)),
        r"'first' .* reads 300",
    ),
    "weights out of range": (
        convolution(),
        weights(k=wide("k", TensorProto.INT8, [4, 3, 3, 3], -200)),
        r"reads -200 in",
    ),
    "weights of 4 bits": (
        BLOCKS,
        weights(b=wide("b", TensorProto.INT4, [192, 6], 256), bs=np.ones((12, 6), F)),
        r"'kernel' .* reads 256 in 'b', which is outside int4",
    ),
    "on a GPU only": (
        unusual("GroupNorm", groups=1, activation=0),
        None,
        r"'unusual' \(com.microsoft:GroupNorm\) is not available on the CPU .*device=",
    ),
    "unknown operator": (unusual("Wrong"), None, r"'unusual' \(com.microsoft:Wrong\) is unknown to ONNX Runtime"),
    "unknown domain": (
        unusual("Twist", "com.acme"),
        None,
        r"'unusual' \(com.acme:Twist\) is of the domain 'com.acme'",
    ),
    "unknown standard operator": (unusual("Wrong", ""), None, r"'unusual' \(Wrong\) is unknown to ONNX Runtime"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_when_it_is_loaded(name: str, tmp_path: Path) -> None:
    nodes, values, pattern = REFUSED[name]
    path = tmp_path / "bad.onnx"
    path.write_bytes(model(nodes, values, 21 if nodes in (BLOCKS, HALF) else 17).SerializeToString())
    with pytest.raises(ModelError, match=r"^cannot read bad.onnx: node ") as refusal:
        xcam.load(path)
    line = str(refusal.value)
    assert re.search(pattern, line), line
    assert re.search("; (quantise|export|update|choose) [^;]+$", line), line
    assert "\n" not in line


def test_the_command_prints_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, image = tmp_path / "bad.onnx", tmp_path / "x.png"
    path.write_bytes(model(convolution(), weights(s=F(0))).SerializeToString())
    cv2.imwrite(str(image), np.zeros((8, 8, 3), U))
    with pytest.raises(SystemExit) as end:
        main(["-m", str(path), str(image)])
    assert end.value.code == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("xcam: cannot read bad.onnx: node 'first' (QuantizeLinear) has a scale of 0")


def dead_channel() -> dict[str, Any]:
    kernel = KERNEL.copy()
    kernel[1] = 5
    return weights(k=kernel, ks=np.array([0.1, 0, 0.1, 0.1], F), kz=np.array([0, 5, 0, 0], S))


ACCEPTED: dict[str, tuple[list[NodeProto], dict[str, Any] | None]] = {
    "as it is": (convolution(), None),
    "operators": (QLINEAR, None),
    "negative scales of weights": (convolution(), scales(-0.1, 0.1, 0.1, 0.1)),
    "a channel of zeros": (convolution(), dead_channel()),
    "blocks": (BLOCKS, weights(b=np.ones((192, 6), S), bs=np.ones((12, 6), F))),
    "packed": (BLOCKS, weights(b=wide("b", TensorProto.INT4, [192, 6], 255), bs=np.ones((12, 6), F))),
    "4 bits": (BLOCKS, weights(b=np.ones((192, 6), ml_dtypes.int4), bs=np.ones((12, 6), F))),
    "several scales in a list of one": (convolution(), weights(ks=np.ones(1, F), kz=np.zeros(1, S))),
}


@pytest.mark.parametrize("name", ACCEPTED)
def test_valid_quantisation_is_accepted(name: str) -> None:
    nodes, values = ACCEPTED[name]
    assert np.isfinite(xcam.load(model(nodes, values, 21 if nodes is BLOCKS else 17), "onnx").predict(X)).all()
