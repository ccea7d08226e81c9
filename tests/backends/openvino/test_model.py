"""Values of models that OpenVINO runs: files, precisions, steps of its own in a model, and the demo network's scenes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import openvino
import pytest
from openvino import opset13 as ops
from openvino.preprocess import ColorFormat, PrePostProcessor

import xcam
from ground_truth import hits, scenes_with_two
from openvino_small import quantised
from xcam_onnx.demo import build as onnx_demo
from xcam_openvino.demo import build
from xcam_openvino.sessions import Session

FULL = {"INFERENCE_PRECISION_HINT": "f32"}


def plain(model: Any, x: Any) -> np.ndarray:
    """Return what the runtime computes without xcam."""
    return np.asarray(openvino.Core().compile_model(model, "CPU", FULL)(x)[0])


def images(count: int = 2) -> np.ndarray:
    return np.random.default_rng(0).uniform(-1, 1, (count, 3, 128, 128)).astype(np.float32)


@pytest.mark.parametrize("suffix", [".xml", ".onnx"])
@pytest.mark.parametrize("compressed", [False, True], ids=["float32", "float16"])
def test_predictions_of_files_are_the_runtimes_own(tmp_path: Path, suffix: str, compressed: bool) -> None:
    network = onnx_demo()
    network.graph.output[0].name = "scores/dense"  # without the softmax, the outputs are compared as they are
    del network.graph.node[-1]
    path = tmp_path / f"network{suffix}"
    if suffix == ".onnx":
        path.write_bytes(network.SerializeToString())
    else:
        model = openvino.Core().read_model(network.SerializeToString())
        openvino.save_model(model, path, compress_to_fp16=compressed)
    opened = xcam.load(path, backend="openvino" if suffix == ".onnx" else None)
    x = images()
    assert opened.backend == "openvino"
    np.testing.assert_array_equal(opened.predict(x), plain(path, x))


def test_the_demo_network_is_that_of_the_other_backends() -> None:
    model, reference = xcam.load("openvino:demo"), xcam.load("onnx:demo")
    scenes = scenes_with_two(6)
    for scene in scenes[:2]:
        target = [shape.label for shape in scene.shapes]
        for one, other in zip(
            xcam.explain(model, scene.image, target=target),
            xcam.explain(reference, scene.image, target=target),
            strict=True,
        ):
            assert (one.layer, one.label) == (other.layer, other.label)
            np.testing.assert_allclose(one.heatmap, other.heatmap, atol=1e-3)
            assert any("differences" in note for note in one.notes)
    assert hits(model, scenes, "gradcam") >= 0.95


def test_names_of_the_framework_are_aliases() -> None:
    model = xcam.load(openvino.Core().read_model(onnx_demo().SerializeToString()))
    listed = {layer.name: layer for layer in model.layers}
    assert listed["conv1/conv"].kind == "Convolution"  # its bias is added by an operator of its own
    assert [name for name, layer in listed.items() if layer.inner and "conv1" in name] == ["conv1/conv/WithoutBiases"]
    assert [layer.name for layer in model.layers if layer.bypassed and not layer.is_output] == []


def test_an_int8_file_has_the_runtimes_predictions_and_the_quantised_values() -> None:
    native = quantised()
    model = xcam.load(native)
    x = np.random.default_rng(1).uniform(-2, 2, (3, 3, 12, 16)).astype(np.float32)
    np.testing.assert_array_equal(model.predict(x), plain(native, x))
    listed = {layer.name: layer for layer in model.layers}
    assert listed["conv1/relu"].dtype == listed["conv2/relu"].dtype == "uint8"
    assert listed["conv1/relu"].aliases == ("conv1/fq_output_0",)
    assert "conv1/fq_output_0" not in listed
    assert listed["conv2/relu"].bypassed
    assert not listed["add"].bypassed
    trace = model.trace(x, "conv1/relu")
    np.testing.assert_array_equal(trace.outputs, model.predict(x))
    steps = trace.activations / (15 / 255)
    np.testing.assert_allclose(steps, np.rint(steps), atol=1e-3)
    assert trace.activations.max() <= 15 + 1e-4
    resumed = model.resume(trace, trace.activations)
    np.testing.assert_allclose(resumed.outputs, trace.outputs, atol=2e-3 * np.abs(trace.outputs).max())
    moved = model.resume(trace, trace.activations + np.float32(0.4 * 15 / 255))  # less than half a step: rounded away
    np.testing.assert_array_equal(moved.outputs, resumed.outputs)


def test_a_quantised_value_that_a_pool_passes_on_is_quantised_again() -> None:
    model = xcam.load(quantised())
    x = np.random.default_rng(1).uniform(-2, 2, (2, 3, 12, 16)).astype(np.float32)
    trace = model.trace(x, "pool")
    resumed, moved = (
        model.resume(trace, trace.activations + np.float32(share * 15 / 255)).outputs for share in (0.0, 0.4)
    )
    np.testing.assert_array_equal(moved, resumed)


def test_a_model_of_one_image_is_run_image_by_image() -> None:
    model, free = xcam.load(quantised(batch=1)), xcam.load(quantised())
    x = np.random.default_rng(1).uniform(-2, 2, (3, 3, 12, 16)).astype(np.float32)
    np.testing.assert_array_equal(model.predict(x), np.concatenate([plain(quantised(1), row[None]) for row in x]))
    trace = model.trace(x, "conv2/relu")
    changed = trace.activations[[2, 0]] * np.float32(0.5)
    expected = free.resume(free.trace(x, "conv2/relu"), changed, [2, 0]).outputs
    np.testing.assert_allclose(model.resume(trace, changed, [2, 0]).outputs, expected, rtol=1e-4, atol=1e-3)


def test_variants_of_a_model_of_one_image_run_together(monkeypatch: pytest.MonkeyPatch) -> None:
    model = xcam.load(quantised(batch=1))
    x = np.random.default_rng(1).uniform(-2, 2, (1, 3, 12, 16)).astype(np.float32)
    trace = model.trace(x, "conv2/relu")
    sizes: list[int] = []
    call = Session.__call__
    monkeypatch.setattr(Session, "__call__", lambda self, feeds: (sizes.append(len(feeds[0])), call(self, feeds))[1])
    model.resume(trace, np.repeat(trace.activations, 5, 0))
    assert 5 in sizes
    assert 1 not in sizes[1:]


def flat(*shape: int) -> openvino.Model:
    """Return a network of one image that reshapes its features to a constant shape."""
    image = ops.parameter([1, 3, 12, 16], np.float32, "image")
    weights = np.random.default_rng(0).normal(size=(4, 3, 3, 3)).astype(np.float32)
    conv = ops.convolution(image, weights, [1, 1], [1, 1], [1, 1], [1, 1])
    conv.set_friendly_name("conv")
    pooled = ops.reduce_mean(ops.relu(conv), np.array([2, 3]), False)
    vector = ops.softmax(ops.reshape(pooled, np.array(shape), False), -1)
    scores = ops.reduce_sum(ops.multiply(vector, np.float32(3)), np.array([0]), True) if shape == (-1, 2) else vector
    return openvino.Model([ops.multiply(scores, np.float32(2)).output(0)], [image], "flat")


@pytest.mark.parametrize("shape", [(1, 4), (1, -1), (-1, 2)])
def test_rows_that_the_shapes_of_one_image_would_mix_run_alone(shape: tuple[int, ...]) -> None:
    native = flat(*shape)
    model = xcam.load(native)
    x = np.random.default_rng(1).normal(size=(3, 3, 12, 16)).astype(np.float32)
    trace = model.trace(x, "conv")
    expected = np.concatenate([plain(native, row[None]) for row in x])
    np.testing.assert_allclose(trace.outputs, expected, rtol=1e-5)
    np.testing.assert_allclose(model.resume(trace, trace.activations).outputs, expected, rtol=1e-5)


def test_steps_of_a_preprocessor_are_a_part_of_the_model(demo_image: Path) -> None:
    steps = PrePostProcessor(build())
    steps.input().tensor().set_element_type(openvino.Type.u8).set_layout(openvino.Layout("NHWC"))
    steps.input().tensor().set_color_format(ColorFormat.BGR)
    steps.input().preprocess().convert_element_type(openvino.Type.f32).reverse_channels().mean(127.5).scale(127.5)
    steps.input().model().set_layout(openvino.Layout("NCHW"))
    model, reference = xcam.load(steps.build()), xcam.load("onnx:demo")
    assert (model.input.layout, model.input.dtype, model.input.size) == ("channels_last", "uint8", (128, 128))
    expected = xcam.explain(reference, demo_image)
    e = xcam.explain(model, expected.image[..., ::-1], layer="conv5")
    assert e.target == expected.target
    np.testing.assert_allclose(e.heatmap, expected.heatmap, atol=2e-3)


def test_a_models_own_scaling_is_found() -> None:
    steps = PrePostProcessor(build())
    steps.input().preprocess().mean(127.5).scale(127.5)
    steps.input().model().set_layout(openvino.Layout("NCHW"))
    model = xcam.load(steps.build())
    assert model.input.needs is not None
    assert model.input.needs.name == "raw"


def test_open_sizes(demo_image: Path) -> None:
    native = build()
    native.reshape([-1, 3, -1, -1])
    model = xcam.load(native, size=(96, 160), preprocess="tf")
    e = xcam.explain(model, demo_image, layer="conv5")
    assert e.cam.shape == (12, 20)
    other = xcam.load(native, size=(64, 64), preprocess="tf")
    assert xcam.explain(other, demo_image, layer="conv5").cam.shape == (8, 8)


def test_devices() -> None:
    x = images(1)
    np.testing.assert_allclose(
        xcam.load("openvino:demo", device="auto").predict(x), xcam.load("openvino:demo").predict(x), rtol=1e-5
    )
    with pytest.raises(xcam.InputError, match=r"unknown device 'cuda'; OpenVINO has: CPU.*AUTO"):
        xcam.load("openvino:demo", device="cuda")


def test_a_comparison_with_the_file_that_it_was_made_from(demo_image: Path) -> None:
    pytest.importorskip("skimage")
    c = xcam.compare(["onnx:demo", "openvino:demo"], demo_image)
    assert c.verdict in ("identical", "equivalent")
    changed = build()
    kernel = next(
        node
        for node in changed.get_ordered_ops()
        if node.get_type_name() == "Constant" and node.shape == [48, 24, 3, 3]
    )
    for reader in kernel.output(0).get_target_inputs():
        reader.replace_source_output(ops.constant(kernel.data * np.float32(0.5)).output(0))
    worse = xcam.compare(["onnx:demo", xcam.load(changed, preprocess="tf")], demo_image)
    assert worse.verdict not in ("identical", "equivalent")
    assert worse.divergence is not None
    assert "conv3" in str(worse.divergence)


def test_the_statements_of_model_api_are_read(tmp_path: Path) -> None:
    """As ultralytics and Geti write them."""
    native = build()
    native.set_rt_info("disc ring six_pointed_star box cross bar", ["model_info", "labels"])
    native.set_rt_info([127.5, 127.5, 127.5], ["model_info", "mean_values"])
    native.set_rt_info([127.5], ["model_info", "scale_values"])
    native.set_rt_info("fit_to_window_letterbox", ["model_info", "resize_type"])
    openvino.save_model(native, tmp_path / "network.xml")
    for source in (native, tmp_path / "network.xml"):
        model = xcam.load(source)
        assert model.labels == ("disc", "ring", "six pointed star", "box", "cross", "bar")
        assert model.input.preprocessing is not None
        pixels = np.array([0.0, 127.5, 255.0]).reshape(1, 1, 3)
        np.testing.assert_allclose(model.input.preprocessing(pixels), [[[-1, 0, 1]]], atol=1e-6)
        assert model.input.fit is not None
        assert model.input.fit.mode == "letterbox"


def test_the_parts_of_a_torch_module_are_aliases() -> None:
    """OpenVINO names operators after the module and the function that computed them."""
    native = build()
    for node in native.get_ordered_ops():
        if node.get_friendly_name() == "conv4/conv":
            node.set_friendly_name("__module.stage.block/aten::_convolution/Add")
        if node.get_friendly_name() == "conv4":
            node.set_friendly_name("__module.stage.act/aten::relu/Relu")
    model = xcam.load(native)
    listed = {alias: layer.name for layer in model.layers for alias in layer.aliases}
    assert listed["stage.block"] == "__module.stage.block/aten::_convolution/Add"
    assert listed["stage"] == listed["stage.act"] == "__module.stage.act/aten::relu/Relu"


def test_layers_without_names_of_tensors_are_listed() -> None:
    """A conversion from TensorFlow keeps the names of the input and of the outputs alone."""
    native = build()
    for node in native.get_ordered_ops()[1:]:
        if node.get_output_size() and node.get_friendly_name() != "scores":
            node.output(0).set_names(set())
    model = xcam.load(native)
    listed = [layer.name for layer in model.layers if not layer.inner]
    assert {"conv1", "conv5", "mean", "scores"} <= set(listed)
