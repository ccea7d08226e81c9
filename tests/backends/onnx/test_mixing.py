"""Mixed files: against the float file, the quantised file, and those that ONNX Runtime's quantiser writes for the same nodes."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnxruntime.quantization import QuantFormat

import onnx_quantized
import xcam
from xcam.comparison.correspondence import Correspondence
from xcam.errors import InputError, ModelError
from xcam_onnx.mixing.mending import OnnxMending
from xcam_onnx.model import OnnxModel

IMAGES = onnx_quantized.images()
X = onnx_quantized.batch(IMAGES)
STATIC = {"qdq": QuantFormat.QDQ, "qoperator": QuantFormat.QOperator}
KINDS = [*STATIC, "dynamic"]


@cache
def network() -> onnx.ModelProto:
    return onnx_quantized.network()


@cache
def quantized(kind: str, excluded: tuple[str, ...] = ()) -> onnx.ModelProto:
    options: dict[str, Any] = {"nodes_to_exclude": list(excluded)}
    if kind == "dynamic":
        return onnx_quantized.quantized(network(), None, **options)
    return onnx_quantized.quantized(network(), X, quant_format=STATIC[kind], per_channel=True, **options)


def run(model: onnx.ModelProto) -> np.ndarray:
    session = ort.InferenceSession(model.SerializeToString())
    return np.asarray(session.run(None, {session.get_inputs()[0].name: X})[0])


def mending(reduced: onnx.ModelProto, reference: onnx.ModelProto | None = None) -> OnnxMending:
    first, second = xcam.load(reference or network(), preprocess="tf"), xcam.load(reduced, preprocess="tf")
    assert isinstance(second, OnnxModel)
    matched = Correspondence([first, second], [first.input, second.input], list(IMAGES))
    a, b = matched.samples
    pairs = [(a[m.first].layer.name, b[m.second].layer.name) for m in matched.matches[1] if m.order is None]
    result = second.mending(first, pairs)
    assert isinstance(result, OnnxMending)
    return result


def written(result: OnnxMending, folder: Path, parts: Collection[str], **ranges: Any) -> onnx.ModelProto:
    """Write a mixed file, and return it after ONNX's check."""
    result.write(folder / "mixed.onnx", parts, ranges)
    onnx.checker.check_model(str(folder / "mixed.onnx"), full_check=True)
    return onnx.load(folder / "mixed.onnx")


def names(result: OnnxMending) -> list[str]:
    return [part.name for part in result.parts]


@pytest.mark.parametrize("kind", KINDS)
def test_everything_in_float_is_the_float_file_and_nothing_is_the_quantised_one(kind: str, tmp_path: Path) -> None:
    result = mending(quantized(kind))
    whole = written(result, tmp_path, names(result))
    expected = run(network())
    np.testing.assert_allclose(run(whole), expected, atol=1e-5 * np.abs(expected).max())
    assert not any("quantize" in node.op_type.lower() or "QLinear" in node.op_type for node in whole.graph.node)
    np.testing.assert_array_equal(run(written(result, tmp_path, [])), run(quantized(kind)))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("chosen", [("conv1",), ("conv3", "add1"), ("conv2", "conv3", "conv6", "fc")])
def test_a_mixed_file_is_near_the_one_that_the_quantiser_writes_without_the_same_nodes(
    kind: str, chosen: Sequence[str], tmp_path: Path
) -> None:
    result = mending(quantized(kind))
    chosen = [name for name in chosen if name in names(result)]
    mixed = run(written(result, tmp_path, chosen))
    expected = run(quantized(kind, tuple(result.nodes(chosen))))
    distance = np.abs(expected - run(quantized(kind))).max()
    assert np.abs(mixed - expected).max() < 0.35 * distance, "it is as far from that file as the quantised one is"


@pytest.mark.parametrize("kind", STATIC)
def test_an_absorbed_activation_comes_back(kind: str, tmp_path: Path) -> None:
    assert all(node.op_type != "Relu" for node in quantized(kind).graph.node)
    result = mending(quantized(kind))
    mixed = written(result, tmp_path, ["conv2", "conv3"])
    nodes = {node.name: node for node in mixed.graph.node}
    assert nodes["relu2"].input[0] == nodes["conv2"].output[0]
    assert nodes["conv3"].input[0] == nodes["relu2"].output[0], "between two parts in float nothing is quantised"
    weights = {t.name: onnx.numpy_helper.to_array(t) for t in mixed.graph.initializer}
    stated = {t.name: onnx.numpy_helper.to_array(t) for t in network().graph.initializer}
    np.testing.assert_array_equal(weights[nodes["conv2"].input[1]], stated["w2"])
    assert result.nodes(["conv2"]) == ["conv2", "relu2"]


@pytest.mark.parametrize("kind", KINDS)
def test_parts_are_matched_where_every_name_differs(kind: str, tmp_path: Path) -> None:
    model = onnx.ModelProto()
    model.CopyFrom(quantized(kind))
    keep = {value.name for value in (*model.graph.input, *model.graph.output)} | {""}

    def other(name: str) -> str:
        return name if name in keep else f"t{hash(name) % 10**9}"

    for k, node in enumerate(model.graph.node):
        node.name = f"node{k}"
        node.input[:] = [other(name) for name in node.input]
        node.output[:] = [other(name) for name in node.output]
    for tensor in model.graph.initializer:
        tensor.name = other(tensor.name)
    del model.graph.value_info[:]
    result = mending(model)
    expected = run(network())
    np.testing.assert_allclose(
        run(written(result, tmp_path, names(result))), expected, atol=1e-5 * np.abs(expected).max()
    )
    assert {"conv2", "conv4", "conv7"} <= set(names(result))


@pytest.mark.parametrize("kind", STATIC)
@pytest.mark.parametrize(("number", "factor", "shift"), [(1, 0.1, 0), (3, 8, 0), (5, 0.2, 0), (2, 1, 60)])
def test_a_mended_range_undoes_a_wrong_one(kind: str, number: int, factor: float, shift: int, tmp_path: Path) -> None:
    wrong = onnx_quantized.planted(quantized(kind), number, factor, shift)
    result = mending(wrong)
    layers = [
        layer.name for layer in xcam.load(network()).layers if not layer.is_output and result.has_range(layer.name)
    ]
    _, values = result.run(names(result), {}, X, layers)
    mixed = [written(result, tmp_path, [], **{n: (values[n].min(), values[n].max())}) for n in layers]
    errors = [np.abs(run(model) - run(network())).max() for model in mixed]
    before, honest = (np.abs(run(model) - run(network())).max() for model in (wrong, quantized(kind)))
    assert min(errors) < honest + 0.05 * (before - honest)


def test_weights_of_four_bits_are_put_back(tmp_path: Path) -> None:
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    model = onnx_quantized.network()
    rng = np.random.default_rng(1)
    extra = [
        onnx.numpy_helper.from_array(rng.normal(0, 0.3, (16, 64)).astype(np.float32), "m1"),
        onnx.numpy_helper.from_array(rng.normal(0, 0.3, (64, 16)).astype(np.float32), "m2"),
    ]
    nodes = list(model.graph.node)
    index = next(k for k, node in enumerate(nodes) if node.name == "fc")
    nodes[index].input[0] = "h2"
    nodes[index:index] = [
        onnx.helper.make_node("MatMul", ["flat", "m1"], ["h0"], "up"),
        onnx.helper.make_node("Relu", ["h0"], ["h1"], "act"),
        onnx.helper.make_node("MatMul", ["h1", "m2"], ["h2"], "down"),
    ]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    model.graph.initializer.extend(extra)
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    quantizer = MatMulNBitsQuantizer(copy, block_size=16)
    quantizer.process()
    reduced = quantizer.model.model
    assert sum(node.op_type == "MatMulNBits" for node in reduced.graph.node) == 2
    result = mending(reduced, model)
    assert names(result) == ["up", "down"]
    one = written(result, tmp_path, ["down"])
    assert [node.op_type for node in one.graph.node if node.op_type.startswith("MatMul")] == ["MatMulNBits", "MatMul"]
    both = run(written(result, tmp_path, ["up", "down"]))
    np.testing.assert_allclose(both, run(model), rtol=1e-5, atol=1e-5)


def test_other_models_are_refused_in_one_line() -> None:
    second = xcam.load(quantized("qdq"), preprocess="tf")
    with pytest.raises(InputError, match="give the float ONNX file"):
        second.mending(xcam.load("demo", backend="torch"), [])
    other = onnx_quantized.network(3)
    del other.graph.output[:], other.graph.input[:]
    for node in other.graph.node:
        node.input[:] = [f"other/{name}" if name[0] not in "wb" else name for name in node.input]
        node.output[:] = [f"other/{name}" for name in node.output]
    other.graph.input.add().CopyFrom(onnx.helper.make_tensor_value_info("other/x", 1, ["n", 3, 24, 24]))
    for name in ("other/y", "other/pool"):
        shape = ["n", 5] if name == "other/y" else ["n", 16, 1, 1]
        other.graph.output.add().CopyFrom(onnx.helper.make_tensor_value_info(name, 1, shape))
    with pytest.raises(ModelError, match="none of its quantised values corresponds"):
        second.mending(xcam.load(other, preprocess="tf"), [])
