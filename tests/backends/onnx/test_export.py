"""Self-explaining files: run without xcam, they return the same numbers as the core."""

from __future__ import annotations

import errno
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

import onnx_small as small
import xcam
from xcam import InputError, ModelError
from xcam.contract import preprocessing
from xcam.images import batches
from xcam.models import demo
from xcam.models.demo.scenes import scene
from xcam_onnx import export
from xcam_onnx.heatmaps import METHODS

X = small.images(3)
OWN = ["xcam/activations", "xcam/gradients"]
IMAGE = scene(np.random.default_rng(1), [3, 5], 96).image

ALONE = """
import sys
sys.path.append(sys.argv[1])
sys.modules["xcam"] = sys.modules["xcam_onnx"] = sys.modules["onnx"] = None  # importing these fails
import numpy as np, onnxruntime
feeds = dict(np.load(sys.argv[2]))
for path in sys.argv[3:]:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_outputs()]
    np.savez(path + ".npz", **dict(zip([n.replace("/", "|") for n in names], session.run(names, feeds))))
assert not any(name.partition(".")[0] in ("onnx", "torch", "keras") and module for name, module in sys.modules.items())
"""


def alone(paths: Sequence[Path], feeds: Mapping[str, Any]) -> list[dict[str, np.ndarray]]:
    """Run each file with ONNX Runtime, in an interpreter that has only this and NumPy."""
    file = paths[0].with_suffix(".feeds.npz")
    np.savez(file, **feeds)
    site = Path(ort.__file__).parents[1]
    command = [sys.executable, "-I", "-S", "-c", ALONE, str(site), str(file), *map(str, paths)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return [{k.replace("|", "/"): v for k, v in np.load(f"{path}.npz").items()} for path in paths]


def run(path: Path, feeds: Mapping[str, Any]) -> dict[str, np.ndarray]:
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_outputs()]
    return dict(zip(names, session.run(names, dict(feeds)), strict=True))


def cam(method: str, a: np.ndarray, g: np.ndarray) -> np.ndarray:
    """The papers' formulas, [N, h, w], before ReLU."""
    total, positive = a.sum((2, 3), keepdims=True), np.maximum(g, 0)
    weights = {
        "gradcam": lambda: g.mean((2, 3), keepdims=True),
        "gradcam++": lambda: (positive / (2 + np.maximum(total, 0) * positive)).sum((2, 3), keepdims=True),
        "layercam": lambda: positive,
        "hirescam": lambda: g,
        "xgradcam": lambda: (g * a).sum((2, 3), keepdims=True) / np.where(total == 0, np.inf, total),
    }
    return (weights[method]() * a).sum(1)


def heatmap(method: str, a: np.ndarray, g: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    maps = []
    for one in np.maximum(cam(method, a.astype(np.float64), g.astype(np.float64)), 0):
        scaled = one / one.max() if one.max() > 0 else one
        maps.append(cv2.resize(scaled, size[::-1], interpolation=cv2.INTER_LINEAR))
    return np.stack(maps)


def agree(value: np.ndarray, expected: Any, tolerance: float = 1e-5) -> None:
    expected = np.asarray(expected)
    assert value.shape == expected.shape
    np.testing.assert_allclose(value, expected, rtol=0, atol=tolerance * np.abs(expected).max())


def pooled(**options: Any) -> onnx.ModelProto:
    """Return the network with half the size behind conv2, so that the heatmap is enlarged."""
    steps = small.nodes()
    steps[2] = helper.make_node("Conv", ["r1", "w2", "b2"], ["c2"], "conv2", pads=[1] * 4, strides=[2, 2])
    return small.build(steps, **options)


def test_all_methods_without_xcam(tmp_path: Path) -> None:
    model = pooled()
    paths = [
        xcam.export(model, tmp_path / f"{i}.onnx", layer="conv2", heatmap=method) for i, method in enumerate(METHODS)
    ]
    for method, values in zip(METHODS, alone(paths, {"x": X}), strict=True):
        value = small.by_hand(X)["r1"]
        w = small.arrays()
        a = small.conv(value, w["w2"], w["b2"])[:, :, ::2, ::2]
        agree(values["xcam/activations"], a)
        y = np.maximum(a, 0).mean((2, 3)) @ w["w3"].T + w["b3"]
        agree(values["y"], y)
        g = w["w3"][y.argmax(1)][:, :, None, None] / a[0, 0].size * (a > 0)
        agree(values["xcam/gradients"], g)
        expected = heatmap(method, a, g, (small.SIZE, small.SIZE))
        np.testing.assert_allclose(values["xcam/heatmap"], expected, atol=1e-5)
        assert values["xcam/heatmap"].dtype == values["xcam/gradients"].dtype == np.float32
        assert expected.max() > 0.5


def test_the_requested_class(tmp_path: Path) -> None:
    path = xcam.export(small.build(), tmp_path / "e.onnx", layer="relu1")
    top = small.by_hand(X)["y"].argmax(1)
    for index, classes in (([2, 0, 4], [2, 0, 4]), ([-1, 3, -1], [top[0], 3, top[2]]), ([-1] * 3, top), (None, top)):
        feeds = {"x": X} if index is None else {"x": X, "xcam/class_index": np.array(index, np.int64)}
        agree(run(path, feeds)["xcam/gradients"], small.gradient(X, "r1", classes))
    one = run(path, {"x": X[:1], "xcam/class_index": np.array([3])})
    agree(one["xcam/gradients"], small.gradient(X[:1], "r1", [3]))


@pytest.mark.parametrize("shape", [(1,), ()])
def test_one_output_has_two_classes(tmp_path: Path, shape: tuple[int, ...]) -> None:
    y = small.by_hand(X)["y"][:, 1]
    steps = [*small.nodes(), helper.make_node("Slice", ["y", "k0", "k1", "k0"], ["w"])]
    steps.append(helper.make_node("Sub", ["w", "k2"], ["z"]))
    more = [np.array([1]), np.array([2]), np.float32([y.mean()])]
    steps += [helper.make_node("Squeeze", ["z", "k0"], ["s"])] if not shape else []
    steps += [helper.make_node("Sigmoid", ["z" if shape else "s"], ["p"])]
    output = helper.make_tensor_value_info("p", TensorProto.FLOAT, ["N", *shape])
    path = xcam.export(small.build(steps, outputs=[output], more=more), tmp_path / "e.onnx", layer="relu1")
    z = y - y.mean()
    assert {*np.sign(z)} == {-1, 1}
    one = small.gradient(X, "r1", [1, 1, 1])
    sign = np.sign(z).reshape(-1, 1, 1, 1)
    for index, expected in ((None, sign * one), ([0, 0, 0], -one), ([1, 1, 1], one), ([1, -1, -1], None)):
        feeds = {"x": X} if index is None else {"x": X, "xcam/class_index": np.array(index, np.int64)}
        values = run(path, feeds)
        agree(values["p"].ravel(), 1 / (1 + np.exp(-z)))
        agree(values["xcam/gradients"], np.concatenate([one[:1], (sign * one)[1:]]) if expected is None else expected)


def declared(values: Any) -> list[tuple[str, str]]:
    return [(value.name, str(value.type)) for value in values]


def test_metadata_and_declared_types(tmp_path: Path) -> None:
    model = small.build()
    model.metadata_props.add(key="their.own", value="kept")
    path = xcam.export(model, tmp_path / "e.onnx", layer="relu2", heatmap="gradcam")
    onnx.checker.check_model(path, full_check=True)
    assert [p.name for p in tmp_path.iterdir()] == ["e.onnx"]
    written = onnx.load(path)
    assert declared(written.graph.input)[:1] == declared(model.graph.input)
    assert [v.name for v in written.graph.output] == ["y", *OWN, "xcam/heatmap"]
    shapes = {}
    for value in (*written.graph.input, *written.graph.output):
        dims = value.type.tensor_type.shape.dim
        shapes[value.name] = [d.dim_param or d.dim_value for d in dims]
    n, size = small.CHANNELS, small.SIZE
    assert shapes["xcam/class_index"] == ["N"]
    assert shapes["xcam/activations"] == shapes["xcam/gradients"] == ["N", n, size, size]
    assert shapes["xcam/heatmap"] == ["N", size, size]
    assert {o.domain: o.version for o in written.opset_import} == {"": 18}
    facts = {entry.key: entry.value for entry in written.metadata_props}
    assert facts.pop("xcam.version")
    assert facts == {"their.own": "kept", "xcam.layer": "relu2", "xcam.heatmap": "gradcam"}


def test_metadata_that_load_reads_back(tmp_path: Path) -> None:
    labels = ["one", "zwei", "trois", "τέσσερα", "五"]
    scaling = preprocessing.Preprocessing("own", 0.5, (1.0, 2.0, 3.0), (4.0, 5.0, 6.0), "BGR")
    model = xcam.load(pooled(), labels=labels, preprocess=scaling)
    path = xcam.export(model, tmp_path / "e.onnx", layer="conv1", heatmap="gradcam")
    again = xcam.load(path)
    assert list(again.labels) == labels
    assert again.input.preprocessing == scaling
    assert [layer.name for layer in again.layers] == [layer.name for layer in model.layers]
    actual, expected = xcam.explain(again, IMAGE), xcam.explain(model, IMAGE, layer="conv1")
    assert (actual.layer, actual.label) == ("conv1", expected.label)
    agree(actual.cam, expected.cam)
    agree(again.predict(X), model.predict(X))


def input_for(model: Any) -> np.ndarray:
    return batches.batch([IMAGE], model.input, model.input.size, model.input.preprocessing)


@pytest.mark.parametrize(("backend", "method"), [("torch", "gradcam"), ("keras", "layercam"), ("onnx", "gradcam++")])
def test_the_demo_network_of_every_framework(tmp_path: Path, backend: str, method: str) -> None:
    model = xcam.load("demo", backend)
    path = xcam.export(model, tmp_path / "e.onnx", heatmap=method)
    again = xcam.load(path)
    assert list(again.labels) == list(demo.network().labels)
    assert again.input.preprocessing == model.input.preprocessing
    feeds = {ort.InferenceSession(path).get_inputs()[0].name: input_for(again)}
    expected = xcam.explain(model, IMAGE, method=method)
    feeds["xcam/class_index"] = np.array([expected.index])
    values = alone([path], feeds)[0]
    size = tuple(again.input.size)
    cam_ = np.maximum(expected.cam, 0)
    assert cam_.max() > 0
    resized = cv2.resize(cam_ / cam_.max(), size[::-1], interpolation=cv2.INTER_LINEAR)
    np.testing.assert_allclose(values["xcam/heatmap"][0], resized, atol=1e-4)
    agree(xcam.explain(again, IMAGE, method=method).cam, expected.cam, 1e-4)


@pytest.mark.parametrize("opset", [11, 12, 13, 16, 17, 18, 21])
def test_operators_of_every_version(tmp_path: Path, opset: int) -> None:
    path = xcam.export(small.build(opset=opset), tmp_path / "e.onnx", layer="relu1", heatmap="gradcam")
    values = run(path, {"x": X})
    top = small.by_hand(X)["y"].argmax(1)
    a, g = small.by_hand(X)["r1"], small.gradient(X, "r1", top)
    agree(values["xcam/gradients"], g)
    np.testing.assert_allclose(values["xcam/heatmap"], heatmap("gradcam", a, g, (small.SIZE,) * 2), atol=1e-5)


def test_a_file_of_ir_version_3(tmp_path: Path) -> None:
    """Up to IR version 3 each weight was an input too, and the graph may be unnamed."""
    model = small.build(opset=11)
    model.ir_version = 3
    model.graph.name = ""
    model.graph.input.extend(helper.make_tensor_value_info(t.name, 1, t.dims) for t in model.graph.initializer)
    values = run(xcam.export(model, tmp_path / "e.onnx", layer="relu1", heatmap="gradcam"), {"x": X})
    agree(values["xcam/gradients"], small.gradient(X, "r1", values["y"].argmax(1)))


def test_channels_last_an_open_size_and_a_softmax(tmp_path: Path) -> None:
    steps = small.inserted(0, [helper.make_node("Transpose", ["x"], ["xt"], "turn", perm=[0, 3, 1, 2])])
    steps[-1].output[0] = "z"
    steps.append(helper.make_node("Softmax", ["z"], ["y"], "end", axis=1))
    path = xcam.export(
        small.build(steps, shape=("N", "H", "W", 3)), tmp_path / "e.onnx", layer="relu1", heatmap="hirescam"
    )
    for h, w in ((8, 8), (6, 11)):
        x = np.random.default_rng(h).normal(size=(2, 3, h, w)).astype(np.float32)
        values = run(path, {"x": x.transpose(0, 2, 3, 1)})
        v = small.by_hand(x)
        shares = np.exp(v["y"]) / np.exp(v["y"]).sum(1, keepdims=True)
        agree(values["y"], shares)
        g = small.gradient(x, "r1", v["y"].argmax(1))  # of the logit
        agree(values["xcam/gradients"], g)
        np.testing.assert_allclose(values["xcam/heatmap"], heatmap("hirescam", v["r1"], g, (h, w)), atol=1e-5)


def test_a_layer_that_is_channels_last(tmp_path: Path) -> None:
    there = helper.make_node("Transpose", ["r1"], ["t"], "last", perm=[0, 2, 3, 1])
    back = helper.make_node("Transpose", ["t"], ["u"], "first", perm=[0, 3, 1, 2])
    path = xcam.export(
        small.build(small.inserted(2, [there, back])), tmp_path / "e.onnx", layer="last", heatmap="gradcam"
    )
    values = run(path, {"x": X})
    agree(values["xcam/activations"], small.by_hand(X)["r1"])
    agree(values["xcam/gradients"], small.gradient(X, "r1", values["y"].argmax(1)))


def test_a_fixed_batch(tmp_path: Path) -> None:
    path = xcam.export(small.build(shape=(1, 3, 8, 8)), tmp_path / "e.onnx", layer="relu1", heatmap="gradcam")
    values = run(path, {"x": X[:1], "xcam/class_index": np.array([4])})
    agree(values["xcam/gradients"], small.gradient(X[:1], "r1", [4]))
    assert values["xcam/heatmap"].shape == (1, 8, 8)


def test_several_outputs_and_half_precision(tmp_path: Path) -> None:
    steps = [*small.nodes(), helper.make_node("Tanh", ["r1"], ["t"])]
    path = xcam.export(small.build(steps, outputs=["y", "t"]), tmp_path / "e.onnx", layer="relu1")
    values = run(path, {"x": X})
    assert list(values) == ["y", "t", *OWN]
    agree(values["t"], np.tanh(small.by_hand(X)["r1"]))
    agree(values["xcam/gradients"], small.gradient(X, "r1", values["y"].argmax(1)))
    half = xcam.export(small.build(kind=TensorProto.FLOAT16), tmp_path / "h.onnx", layer="relu1", heatmap="gradcam")
    values = run(half, {"x": X.astype(np.float16)})
    assert (values["y"].dtype, values["xcam/gradients"].dtype) == (np.float16, np.float32)
    agree(values["xcam/gradients"], small.gradient(X, "r1", values["y"].argmax(1)), 1e-2)


def test_a_map_that_is_zero_stays_zero(tmp_path: Path) -> None:
    """The bias hides a black image, and not the images of the probe, which shows that the layer follows the image."""
    model = small.build()
    for tensor in model.graph.initializer:
        if tensor.name == "b1":
            tensor.CopyFrom(onnx.numpy_helper.from_array(np.full(16, -1, np.float32), "b1"))
    for i, method in enumerate(METHODS):
        values = run(xcam.export(model, tmp_path / f"{i}.onnx", layer="relu1", heatmap=method), {"x": 0 * X})
        assert not values["xcam/activations"].any()
        assert not values["xcam/heatmap"].any()


def test_a_large_model_keeps_its_weights_in_another_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, target = tmp_path / "from", tmp_path / "to"
    source.mkdir()
    target.mkdir()
    onnx.save(small.build(), source / "m.onnx", save_as_external_data=True, location="w.bin", size_threshold=100)
    (source / "w.bin").rename(source / "real.bin")
    (source / "w.bin").symlink_to("real.bin")  # onnx's own reader refuses links
    inside = xcam.export(source / "m.onnx", target / "a.onnx", layer="relu1")
    assert [p.name for p in target.iterdir()] == ["a.onnx"]
    monkeypatch.setattr(export, "LIMIT", 5000)
    outside = xcam.export(source / "m.onnx", target / "b.onnx", layer="relu1")
    assert sorted(p.name for p in target.iterdir()) == ["a.onnx", "b.onnx", "b.onnx.data"]
    for path in (inside, outside):
        agree(run(path, {"x": X})["xcam/gradients"], small.gradient(X, "r1", small.by_hand(X)["y"].argmax(1)))
    agree(xcam.load(outside).predict(X), small.by_hand(X)["y"])


@pytest.mark.parametrize("failure", [OSError(errno.ENOSPC, "No space left on device"), "checker"])
def test_a_failure_leaves_the_earlier_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: Any) -> None:
    earlier = tmp_path / "e.onnx"
    earlier.write_bytes(b"earlier")
    save = onnx.save_model

    def failing(proto: onnx.ModelProto, path: Path, **options: Any) -> None:
        if failure == "checker":
            proto.graph.node[0].op_type = "Nope"
        save(proto, path, **options)
        if failure != "checker":
            raise failure

    monkeypatch.setattr(onnx, "save_model", failing)
    error, pattern = (
        (ModelError, "does not pass onnx.checker") if failure == "checker" else (InputError, "No space left")
    )
    with pytest.raises(error, match=pattern):
        xcam.export(small.build(), earlier, layer="relu1", heatmap="gradcam")
    assert earlier.read_bytes() == b"earlier"
    assert list(tmp_path.iterdir()) == [earlier]


def test_models_that_cannot_be_exported(tmp_path: Path) -> None:
    path = tmp_path / "e.onnx"
    flat = helper.make_node("Unsqueeze", ["z", "k0"], ["y"])
    deep = small.nodes()
    deep[-1].output[0] = "z"
    upper = helper.make_node("Trilu", ["r1"], ["q"], "upper", domain="com.microsoft")
    custom = small.build(small.inserted(2, [upper]), domains=["com.microsoft"])
    labelled = xcam.load(small.build(), labels=["a", "b"])
    for source, layer, method, pattern in [
        (small.build(), None, "eigencam", "cannot export method 'eigencam': .*; known: gradcam,"),
        (small.build(), "nope", "gradcam", "unknown layer 'nope'"),
        (small.build(), "fc", "gradcam", "'fc': it has no spatial axes"),
        (small.build([*deep, flat], more=[np.array([2, 3])]), "relu1", None, "not .batch, classes."),
        (custom, "relu1", "gradcam", "com.microsoft:Trilu"),
        (labelled, "relu1", "gradcam", "there are 2 class names for its 5 classes"),
    ]:
        with pytest.raises((InputError, ModelError), match=pattern):
            xcam.export(source, path, layer=layer, heatmap=method)
        assert not list(tmp_path.iterdir())


def test_paths_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "folder.onnx").mkdir()
    for name, pattern in [
        ("e.bin", "not the name of an ONNX file; give one that ends in .onnx"),
        ("a\0.onnx", "not the name of an ONNX file"),
        ("none/e.onnx", "none does not exist; create it first"),
        ("folder.onnx", "it is a folder"),
        (f"{'x' * 300}.onnx", "File name too long; choose another name"),
    ]:
        with pytest.raises(InputError, match=pattern):
            xcam.export(small.build(), tmp_path / name)
    longest = tmp_path / f"{'x' * 250}.onnx"
    assert xcam.export(small.build(), longest) == longest


def test_a_file_is_not_exported_twice_and_does_not_overwrite_itself(tmp_path: Path) -> None:
    source, path = tmp_path / "m.onnx", tmp_path / "e.onnx"
    source.write_bytes(small.build().SerializeToString())
    before = source.read_bytes()
    (tmp_path / "link.onnx").symlink_to(source)
    for same in (source, tmp_path / "link.onnx"):
        with pytest.raises(InputError, match="it is the model itself"):
            xcam.export(source, same)
    assert source.read_bytes() == before
    xcam.export(source, path)
    with pytest.raises(InputError, match="self-explaining already; export the original model"):
        xcam.export(path, tmp_path / "f.onnx")
