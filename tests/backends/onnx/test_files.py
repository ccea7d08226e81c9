"""Opening ONNX files: weights stay in their files; broken and hostile files are errors in one line."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import onnx_small as small
import xcam
from xcam import InputError, ModelError
from xcam_onnx import files, weights

X = small.images()


def scores(source: Any) -> np.ndarray:
    return xcam.load(source, "onnx").predict(X)


def assert_right(source: Any) -> None:
    np.testing.assert_allclose(scores(source), small.by_hand(X)["y"], atol=1e-5)


def refused(source: Any, pattern: str) -> str:
    """Return the error's message: one line with a remedy, which matches `pattern`."""
    with pytest.raises((InputError, ModelError), match=pattern) as caught:
        scores(source)
    line = str(caught.value)
    assert "\n" not in line
    assert ";" in line, "no remedy"
    return line


def written(path: Path, model: onnx.ModelProto | bytes) -> Path:
    path.write_bytes(model if isinstance(model, bytes) else model.SerializeToString())
    return path


def with_weight_file(tmp_path: Path) -> Path:
    """Write a model whose weights are in w.bin."""
    path = tmp_path / "m.onnx"
    onnx.save(small.build(), path, save_as_external_data=True, location="w.bin", size_threshold=100)
    return path


def edited_location(path: Path, key: str, value: str | None) -> Path:
    """Write the model with another external location, offset or length, into the same folder."""
    model = onnx.load(path, load_external_data=False)
    for tensor in model.graph.initializer:
        kept = {e.key: e.value for e in tensor.external_data}
        del tensor.external_data[:]
        for k, v in (kept | {key: value}).items() if kept else ():
            if v is not None:
                tensor.external_data.add(key=k, value=v)
    return written(path.with_name("n.onnx"), model)


def test_weights_stay_in_the_file_and_are_the_same(tmp_path: Path) -> None:
    path = written(tmp_path / "m.onnx", small.build())
    data, opened = path.read_bytes(), weights.skeleton(path)
    whole = {t.name: numpy_helper.to_array(t) for t in small.build().graph.initializer}
    assert opened.ByteSize() < len(data) / 3
    offsets = {}
    for tensor in opened.graph.initializer:
        if tensor.data_location == TensorProto.EXTERNAL:
            entries = {e.key: e.value for e in tensor.external_data}
            assert entries["location"] == "m.onnx"
            start, length = int(entries["offset"]), int(entries["length"])
            value = np.frombuffer(data[start : start + length], np.float32).reshape(tensor.dims)
            offsets[tensor.name] = start
        else:
            value = numpy_helper.to_array(tensor)
        np.testing.assert_array_equal(value, whole[tensor.name])
    assert set(offsets) == {"w1", "w2"}
    assert weights.external_size(opened.graph.initializer) == 4 * (whole["w1"].size + whole["w2"].size)
    assert opened.graph.node == small.build().graph.node
    assert_right(path)


@pytest.mark.parametrize("shift", range(5))
def test_weights_at_any_offset(tmp_path: Path, shift: int) -> None:
    """protobuf does not align fields: each byte of a longer name moves the weights."""
    model = small.build()
    model.graph.doc_string = "d" * shift
    model.producer_name = "p" * (shift * 60)
    path = written(tmp_path / "m.onnx", model)
    assert_right(path)
    trace = xcam.load(path).trace(X, "relu1", small.cotangents(1, 3))
    np.testing.assert_allclose(trace.gradients[0], small.gradient(X, "r1", [1, 3]), atol=1e-6)


def test_weights_in_other_fields_than_raw_data_stay_in_the_graph(tmp_path: Path) -> None:
    model = small.build()
    for tensor in model.graph.initializer:
        value = numpy_helper.to_array(tensor).ravel()
        tensor.ClearField("raw_data")
        tensor.float_data.extend(value)
    path = written(tmp_path / "m.onnx", model)
    assert not weights.external(weights.skeleton(path))
    assert_right(path)


def test_fields_of_every_wire_type_are_skipped(tmp_path: Path) -> None:
    varint, fixed64, fixed32 = (
        b"\xa0\x06\x96\x01",
        b"\xa9\x06" + b"\1" * 8,
        b"\xb5\x06" + b"\2" * 4,
    )  # field 100, 101, 102
    path = written(tmp_path / "m.onnx", varint + fixed64 + small.build().SerializeToString() + fixed32)
    assert_right(path)


def test_a_file_cut_off_anywhere_is_one_line(tmp_path: Path) -> None:
    data = small.build().SerializeToString()
    path = tmp_path / "m.onnx"
    for size in [*range(0, 300, 13), *range(300, len(data), 997), *(len(data) - k for k in (1, 2, 9, 60, 200))]:
        path.write_bytes(data[:size])
        refused(path, "complete ONNX model|does not contain an ONNX graph|needs a float output|inputs")


def test_flipped_bits_are_one_line_or_a_model(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Most of them are in names and types, at both ends of the file."""
    data, r, path = small.build().SerializeToString(), np.random.default_rng(0), tmp_path / "m.onnx"
    failed = 0
    for _ in range(120):
        broken = bytearray(data)
        for index in r.integers(-250, 400, size=2):
            broken[index] ^= 1 << int(r.integers(8))
        path.write_bytes(broken)
        try:
            model = xcam.load(path, preprocess="unit")
            xcam.explain(model, np.zeros((9, 9, 3), np.uint8), normalize="none")
        except (InputError, ModelError):  # not a ContractError, which would blame the plugin
            failed += 1
    assert 20 < failed < 120
    assert "EP Error" not in capfd.readouterr().out, "ONNX Runtime prints"


@pytest.mark.filterwarnings("default::xcam.XcamWarning")
@pytest.mark.parametrize(
    "content", [b"", b"hello", b"\0" * 999, b"\xff" * 999, b"PK\3\4" + b"\0" * 99, b"\x89PNG\r\n\x1a\n"]
)
def test_files_of_other_formats(tmp_path: Path, content: bytes) -> None:
    refused(written(tmp_path / "m.onnx", content), "is not a complete ONNX model")


def test_a_folder_and_a_missing_file(tmp_path: Path) -> None:
    refused(tmp_path, "is a directory")
    refused(tmp_path / "none.onnx", "no such model file")


def test_weights_in_another_file(tmp_path: Path) -> None:
    path = with_weight_file(tmp_path)
    assert_right(path)
    trace = xcam.load(path).trace(X, "relu1", small.cotangents(0, 4))
    np.testing.assert_allclose(trace.gradients[0], small.gradient(X, "r1", [0, 4]), atol=1e-6)
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "v.bin").write_bytes((tmp_path / "w.bin").read_bytes())
    assert_right(edited_location(path, "location", "sub/v.bin"))
    assert_right(edited_location(path, "location", "./w.bin"))
    assert_right(edited_location(path, "length", None))


@pytest.mark.parametrize("kind", ["..", "absolute", "symlink", "loop"])
def test_weights_outside_the_folder_are_refused(tmp_path: Path, kind: str) -> None:
    inner = tmp_path / "inner"
    inner.mkdir()
    path, outer = with_weight_file(inner), tmp_path / "w.bin"
    (inner / "w.bin").rename(outer)
    (inner / "link.bin").symlink_to("link.bin" if kind == "loop" else outer)
    location = {"..": "../w.bin", "absolute": str(outer)}.get(kind, "link.bin")
    # Python 3.13 resolves a loop of links without an error: the file is then missing.
    loop = "location of its weight .* is invalid|weight file 'link.bin' is missing"
    pattern = loop if kind == "loop" else "refused .* outside its folder"
    refused(edited_location(path, "location", location), pattern)


def test_weights_outside_the_folder_are_refused_inside_a_branch_too(tmp_path: Path) -> None:
    hidden = TensorProto(name="hidden", data_type=TensorProto.FLOAT, dims=[1], data_location=TensorProto.EXTERNAL)
    hidden.external_data.add(key="location", value="/etc/passwd")

    def branch(op: str, *inputs: str) -> onnx.GraphProto:
        out = [helper.make_empty_tensor_value_info("t")]
        held = [hidden] if "hidden" in inputs else []
        return helper.make_graph([helper.make_node(op, inputs, ["t"])], op, [], out, held)

    step = helper.make_node(
        "If", ["k0"], ["q"], then_branch=branch("Mul", "r1", "hidden"), else_branch=branch("Neg", "r1")
    )
    refused(written(tmp_path / "m.onnx", small.build(small.inserted(2, [step]), more=[np.array(False)])), "refused")


@pytest.mark.parametrize(
    ("key", "value", "pattern"),
    [
        ("location", "gone.bin", "weight file 'gone.bin' is missing"),
        ("location", None, "outside its folder"),
        ("location", "a\0b", "location of its weight .* is invalid"),
        ("location", "x" * 5000, "location of its weight .* is invalid"),
        ("offset", "-4", "location of its weight .* is invalid"),
        ("offset", "abc", "location of its weight .* is invalid"),
        ("offset", "99999999999999", "ends before the weight"),
        ("length", "999999", "ends before the weight"),
        ("length", "5", "ONNX Runtime"),
    ],
)
def test_weights_at_an_invalid_location(tmp_path: Path, key: str, value: str | None, pattern: str) -> None:
    refused(edited_location(with_weight_file(tmp_path), key, value), pattern)


def test_weights_cut_off(tmp_path: Path) -> None:
    path = with_weight_file(tmp_path)
    os.truncate(tmp_path / "w.bin", 2000)
    refused(path, "ends before the weight")


def test_a_link_to_a_model_as_in_download_caches(tmp_path: Path) -> None:
    (tmp_path / "blobs").mkdir()
    (tmp_path / "snapshot").mkdir()
    written(tmp_path / "blobs" / "abc", small.build())
    link = tmp_path / "snapshot" / "model.onnx"
    link.symlink_to("../blobs/abc")
    assert_right(link)
    assert xcam.load(link).name == "model"


def test_a_live_model_is_not_changed_and_its_copy_is_deleted(tmp_path: Path) -> None:
    live = small.build()
    before = live.SerializeToString(deterministic=True)
    model = xcam.load(live)
    folder = model.recording.runtime.weights.folder
    assert folder.is_dir()
    np.testing.assert_allclose(model.predict(X), small.by_hand(X)["y"], atol=1e-5)
    assert live.SerializeToString(deterministic=True) == before
    trace = model.trace(X, "relu1")
    del model
    assert folder.is_dir(), "the trace's sessions map the weights"
    del trace
    assert not folder.exists()
    refused(onnx.load(with_weight_file(tmp_path), load_external_data=False), "their folder is unknown")


@pytest.mark.skipif(sys.platform == "win32", reason="Windows does not let a mapped file be changed")
@pytest.mark.parametrize("external", [False, True])
def test_a_file_that_changes_after_loading(tmp_path: Path, external: bool) -> None:
    path = with_weight_file(tmp_path) if external else written(tmp_path / "m.onnx", small.build())
    model = xcam.load(path)
    model.trace(X, "relu2")
    held = tmp_path / "w.bin" if external else path
    held.write_bytes(held.read_bytes()[:-100])
    with pytest.raises(ModelError, match=f"{re.escape(str(held))} was changed or removed"):
        model.trace(X, "relu1")
    held.unlink()
    with pytest.raises(ModelError, match="was changed or removed"):
        model.export(tmp_path / "e.onnx", None, None, {})


@pytest.mark.parametrize(("opset", "pattern"), [(0, "reads 7 to"), (6, "reads 7 to"), (99, "update onnx")])
def test_unknown_opsets(opset: int, pattern: str) -> None:
    refused(small.build(opset=opset), pattern)


@pytest.mark.parametrize(
    ("versions", "stated"), [({}, "none"), ({"ai.onnx.ml": 3}, "none"), ({"": 13, "ai.onnx": 9}, "9 and 13")]
)
def test_an_operator_set_that_is_not_stated_once(versions: dict[str, int], stated: str) -> None:
    model = small.build()
    del model.opset_import[:]
    model.opset_import.extend(helper.make_opsetid(domain, version) for domain, version in versions.items())
    refused(model, f"its opset_import states {stated}; set it with onnx.helper.make_opsetid")


@pytest.mark.parametrize("opset", [7, 8, 9, 10, 11, 12, 13, 17, 18, 21, 24])
def test_opsets_and_weights_that_are_inputs_too(opset: int) -> None:
    model = small.build(opset=opset)
    model.ir_version = 8 if opset < 21 else 10
    listed = [helper.make_tensor_value_info(t.name, t.data_type, t.dims) for t in model.graph.initializer]
    listed.append(model.graph.input[0])
    del model.graph.input[:]
    model.graph.input.extend(listed)
    assert_right(model)


def test_the_long_name_of_the_operators() -> None:
    model = small.build()
    for part in (*model.graph.node, *model.opset_import):
        part.domain = "ai.onnx"
    assert_right(model)
    trace = xcam.load(model).trace(X, "relu1", small.cotangents(1, 3))
    np.testing.assert_allclose(trace.gradients[0], small.gradient(X, "r1", (1, 3)), atol=1e-6)


def test_constant_nodes_and_sparse_weights(tmp_path: Path) -> None:
    model = small.build()
    constants = [helper.make_node("Constant", [], [t.name], value=t) for t in model.graph.initializer]
    steps = [*constants, *small.nodes()]
    assert_right(small.build(steps))

    thin = small.arrays()["w3"]
    for flat in (True, False):
        model = small.build()
        nonzero = np.nonzero(thin)
        indices = np.ravel_multi_index(nonzero, thin.shape) if flat else np.stack(nonzero, 1)
        sparse = onnx.SparseTensorProto(dims=thin.shape)
        sparse.values.CopyFrom(numpy_helper.from_array(thin[nonzero], "w3"))
        sparse.indices.CopyFrom(numpy_helper.from_array(indices.astype(np.int64), "w3.indices"))
        (dense,) = (t for t in model.graph.initializer if t.name == "w3")
        model.graph.initializer.remove(dense)
        model.graph.sparse_initializer.append(sparse)
        assert_right(written(tmp_path / "sparse.onnx", model))


def test_functions_of_the_model_are_inlined() -> None:
    body = [helper.make_node("Sigmoid", ["a"], ["s"]), helper.make_node("Mul", ["a", "s"], ["c"])]
    silu = helper.make_function("own", "Silu", ["a"], ["c"], body, [helper.make_opsetid("", 18)])
    step = helper.make_node("Silu", ["r1"], ["q"], "silu", domain="own")
    model = small.build(small.inserted(2, [step]), domains=["own"], functions=[silu])
    r1, w = small.by_hand(X)["r1"], small.arrays()
    q = r1 / (1 + np.exp(-r1))
    r2 = np.maximum(small.conv(q, w["w2"], w["b2"]), 0)
    np.testing.assert_allclose(scores(model), r2.mean((2, 3)) @ w["w3"].T + w["b3"], atol=1e-5)


def edited(edit: Callable[[onnx.ModelProto], Any]) -> onnx.ModelProto:
    model = small.build()
    edit(model)
    return model


@pytest.mark.parametrize(
    ("model", "pattern"),
    [
        (lambda m: m.graph.ClearField("node"), "does not contain an ONNX graph"),
        (lambda m: m.graph.ClearField("input"), "has 0 inputs"),
        (lambda m: m.graph.ClearField("output"), "returns nothing"),
        (lambda m: m.graph.input.append(helper.make_tensor_value_info("mask", 1, [1])), r"it takes 2 inputs, and the image is x; give the others values \(mask float32 \[1\]\)"),
        (lambda m: setattr(m.graph.input[0].type.tensor_type, "elem_type", 3), "input 'x' is int8"),
        (lambda m: setattr(m.graph.input[0].type.tensor_type, "elem_type", 77), "input 'x' is unknown"),
        (lambda m: m.graph.input[0].type.tensor_type.ClearField("shape"), "shape unknown"),
        (lambda m: m.graph.input[0].type.tensor_type.shape.dim.pop(), "."),
        (lambda m: setattr(m.graph.output[0], "name", "none"), "needs a float output"),
        (lambda m: m.graph.node[1].input.__setitem__(0, "none"), "'relu1' .Relu. reads 'none'.* is damaged; export"),
        (lambda m: m.graph.node[1].input.__setitem__(0, "c2"), "'relu1' .Relu. reads 'c2'.* has a cycle; export"),
        (lambda m: setattr(m.graph.node[2], "name", "conv1"), "two nodes with same node name"),
        (lambda m: setattr(m.graph.node[1], "op_type", "Nope"), "Nope.*; update onnxruntime"),
        (lambda m: setattr(m.graph.node[1], "domain", "my.own"), "my.own"),
    ],
)  # fmt: skip
def test_models_that_cannot_be_used(model: Callable[[onnx.ModelProto], Any], pattern: str) -> None:
    refused(edited(model), pattern)


def test_names_that_are_not_utf8(tmp_path: Path) -> None:
    data = small.build().SerializeToString().replace(b"relu1", b"\xff\xfelu1")
    refused(written(tmp_path / "m.onnx", data), "names that are not UTF-8")


def test_options_that_do_not_apply() -> None:
    for options, pattern in [
        ({"weights": "w.bin"}, "leave weights out"),
        ({"layout": "tokens"}, "leave layout out"),
        ({"threads": 0}, "threads=0: give an integer"),
        ({"threads": 1.5}, "threads=1.5: give"),
        ({"threads": 10**12}, "threads=1000000000000: give"),
        ({"device": "quantum"}, "unknown device 'quantum'"),
        ({"device": "cpu:x"}, "unknown device 'cpu:x'"),
        ({"size": (9, 9)}, "takes images of 8×8"),
    ]:
        with pytest.raises(InputError, match=pattern):
            xcam.load(small.build(), "onnx", **options)


def test_invalid_metadata_is_ignored() -> None:
    model = small.build()
    for key, value in {
        "xcam.preprocessing": "{",
        "xcam.labels": "3",
        "xcam.layers": "[]",
        "xcam.version": "0",
    }.items():
        model.metadata_props.add(key=key, value=value)
    assert files.description(model) == {}
    assert_right(model)


def test_channels_that_a_file_leaves_open_are_those_of_its_filters() -> None:
    model = xcam.load(small.build(shape=("N", "C", small.SIZE, small.SIZE)))
    assert (model.input.channels, model.input.channels_known) == (3, False)
    x = small.images()
    np.testing.assert_allclose(model.predict(x), small.by_hand(x)["y"], rtol=1e-4)
    assert xcam.load(small.build()).input.channels_known
    stated = xcam.load(small.build(shape=("N", "C", small.SIZE, small.SIZE)), channels=3).input
    assert (stated.channels, stated.channels_known) == (3, True)
    with pytest.raises(InputError, match="small takes images of 3 channels, not 1; leave channels out"):
        xcam.load(small.build(), channels=1)
