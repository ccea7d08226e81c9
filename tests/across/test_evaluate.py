"""Measures of trust in three frameworks: equal values, equally shuffled weights, and methods that are better than random."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import xcam
from ground_truth import scenes_with_two
from xcam import InputError
from xcam.models import demo

BACKENDS = ("onnx", "torch", "keras")


@cache
def model(backend: str) -> Any:
    return xcam.load("demo", backend)


@cache
def evaluated(backend: str) -> Any:
    scenes = scenes_with_two(3)
    return xcam.evaluate(
        model(backend),
        [scene.image for scene in scenes],
        methods=["gradcam", "hirescam", "eigencam"],
        layer="conv5",
        target=[scene.shapes[0].label for scene in scenes],
        masks=[scene.shapes[0].mask for scene in scenes],
        measures={m: {"steps": 8} if m in ("deletion", "insertion") else {} for m in MEASURES},
    )


MEASURES = (
    "deletion",
    "insertion",
    "average-drop",
    "increase",
    "coherency",
    "complexity",
    "adcc",
    "pointing",
    "energy",
)


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS[1:])
def test_the_frameworks_agree(backend: str) -> None:
    first, other = evaluated("onnx"), evaluated(backend)
    for method in first.methods:
        for name in MEASURES:
            ours, theirs = (e.values[method][name] for e in (first, other))
            np.testing.assert_allclose(theirs, ours, atol=2e-3, err_msg=f"{method} by {name}")
    assert [r.method for r in other.ranking] == [r.method for r in first.ranking]
    assert np.std([first.values[m]["energy"][0] for m in first.methods]) > 0.05


@pytest.mark.slow
def test_a_batch_has_the_values_of_its_images_alone() -> None:
    scenes = scenes_with_two(3)
    measures = {"insertion": {"steps": 4}, "sensitivity": {"n": 2}, "road": {"noise": 0.0}}
    methods = ["gradcam", "layercam"]
    images, targets = [scene.image for scene in scenes], [scene.shapes[1].label for scene in scenes]
    together = xcam.evaluate(model("onnx"), images, methods=methods, target=targets, measures=measures, floor=False)
    for k, (image, target) in enumerate(zip(images, targets, strict=True)):
        alone = xcam.evaluate(model("onnx"), [image], methods=methods, target=target, measures=measures, floor=False)
        for method in methods:
            for name in measures:
                assert alone.values[method][name][0] == pytest.approx(together.values[method][name][k], abs=1e-3)


@pytest.mark.slow
def test_methods_are_better_than_random_with_separate_intervals(record_property: Any) -> None:
    scenes = scenes_with_two(32)
    result = xcam.evaluate(
        model("onnx"),
        [scene.image for scene in scenes],
        methods=["gradcam", "layercam", "hirescam"],
        target=[scene.shapes[0].label for scene in scenes],
        masks=[scene.shapes[0].mask for scene in scenes],
        measures=["deletion", "insertion", "adcc", "pointing", "energy"],
    )
    for method in ("gradcam", "layercam", "hirescam"):
        for measure in result.measures:
            ours, floor = result.row(method, measure.name), result.row("random", measure.name)
            record_property(f"{method} {measure.name}", (ours.mean, ours.low, ours.high))
            assert ours.above, (method, measure.name)
            better = ours.low > floor.high if measure.better == "higher" else ours.high < floor.low
            # A tight map that covers less than the shape loses some of the score, which is a part of ADCC.
            assert better or (method, measure.name) == ("gradcam", "adcc"), (ours, floor)
    assert result.ranking[-1].method == "random"


# The promises of `parameter_layers` and `with_shuffled_weights`.


def values(opened: Any, layers: Any) -> Any:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 128, 128, 3) if opened.input.layout == "channels_last" else (2, 3, 128, 128))
    activations = opened.activations(x.astype(np.float32), layers)
    return [*(activations[name] for name in layers), opened.predict(x.astype(np.float32))]


def same(first: Any, second: Any) -> list[bool]:
    return [bool(np.array_equal(a, b)) for a, b in zip(first, second, strict=True)]


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
def test_shuffled_weights(backend: str) -> None:
    opened, layers = model(backend), ("conv1", "conv4", "conv5")
    parts = list(opened.parameter_layers)
    before = values(opened, layers)
    assert len(parts) == 6
    for part, name in zip(parts, ("conv1", "conv2", "conv3", "conv4", "conv5", "scores"), strict=True):
        assert name in part, "in execution order"
    last, first, every = (opened.with_shuffled_weights(chosen, 1) for chosen in (parts[-1:], parts[:1], parts))
    assert same(values(last, layers), before) == [True, True, True, False]
    assert same(values(first, layers), before) == [False, False, False, False]
    assert same(values(every, layers), values(first, layers)) == [True, False, False, False]
    assert all(same(values(opened.with_shuffled_weights(parts, 1), layers), values(every, layers))), "the same seed"
    assert not any(same(values(opened.with_shuffled_weights(parts, 2), layers), values(every, layers))), (
        "another seed"
    )
    assert all(same(values(opened, layers), before)), "the model itself is unchanged"
    assert every.output_activation == opened.output_activation
    assert every.labels == opened.labels
    with pytest.raises(InputError, match=r"(no|unknown) part 'conv9'"):
        opened.with_shuffled_weights(["conv9"], 1)


def test_weights_are_exchanged_and_statistics_stay_in_torch() -> None:
    import torch
    from torch import nn

    torch.manual_seed(0)
    shared = nn.Conv2d(3, 3, 3, padding=1)
    net = nn.Sequential(shared, nn.BatchNorm2d(3), nn.ReLU(), shared, nn.Flatten(), nn.Linear(192, 2))
    net[1].running_mean += torch.arange(3)
    with torch.no_grad():
        net[1].weight += torch.arange(3)
    opened = xcam.load(net, size=(8, 8), preprocess="unit")
    assert list(opened.parameter_layers) == ["0", "1", "5"]
    copied = opened.with_shuffled_weights(["0", "1"], 0).module.state_dict()
    for name, value in net.state_dict().items():
        assert torch.equal(copied[name].flatten().sort().values, value.flatten().sort().values), name
        moved = not torch.equal(copied[name], value)
        assert moved == (name in ("0.weight", "0.bias", "1.weight", "3.weight", "3.bias")), name
    assert copied["0.weight"].equal(copied["3.weight"]), "a shared weight stays shared"


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")  # torch.export's own
def test_an_exported_program_is_shuffled_in_torch(tmp_path: Path) -> None:
    """An exported program holds symbols that copy.deepcopy refuses."""
    import torch

    x = torch.zeros(2, 3, 128, 128)
    program = torch.export.export(model("torch").module, (x,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    torch.export.save(program, tmp_path / "demo.pt2")
    opened = xcam.load(tmp_path / "demo.pt2", preprocess="tf")
    before = values(opened, ("conv4",))
    last = opened.with_shuffled_weights(opened.parameter_layers[-1:], 1)
    assert same(values(last, ("conv4",)), before) == [True, False]
    assert same(values(opened.with_shuffled_weights(opened.parameter_layers, 1), ("conv4",)), before) == [
        False,
        False,
    ]
    assert all(same(values(opened, ("conv4",)), before))


def test_weights_are_exchanged_and_statistics_stay_in_keras() -> None:
    from xcam_keras.backend import keras
    from xcam_keras.shuffling import parameter_layers, with_shuffled_weights

    keras.utils.set_random_seed(0)
    inner = keras.Sequential(
        [
            keras.layers.Input((8, 8, 3)),
            keras.layers.Conv2D(4, 3, name="conv"),
            keras.layers.BatchNormalization(name="norm"),
        ],
        name="inner",
    )
    net = keras.Sequential(
        [keras.layers.Input((8, 8, 3)), inner, keras.layers.Flatten(), keras.layers.Dense(2, name="end")]
    )
    inner.trainable = False
    rng = np.random.default_rng(0)
    net.set_weights([rng.normal(size=w.shape) for w in net.get_weights()])
    assert list(parameter_layers(net)) == ["inner/conv", "inner/norm", "end"]
    before = [w.copy() for w in net.get_weights()]
    copied = with_shuffled_weights(net, ["inner/conv", "inner/norm"], 0)
    after = {w.path.partition("/")[2]: np.asarray(w) for w in copied.weights}
    moved = {path for (path, value), old in zip(after.items(), before, strict=True) if not np.array_equal(value, old)}
    assert {path.rpartition("/")[2] for path in moved} == {"kernel", "bias", "gamma", "beta"}
    for value, old in zip(copied.get_weights(), before, strict=True):
        np.testing.assert_array_equal(np.sort(value.ravel()), np.sort(old.ravel()))
    for value, old in zip(net.get_weights(), before, strict=True):
        np.testing.assert_array_equal(value, old)


def test_weights_are_exchanged_and_statistics_stay_in_onnx() -> None:
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    rng = np.random.default_rng(0)
    arrays = {
        "kernel": rng.normal(size=(4, 3, 3, 3)),
        "bias": rng.normal(size=4),
        "scale": rng.normal(size=4),
        "shift": rng.normal(size=4),
        "mean": rng.normal(size=4),
        "var": rng.uniform(1, 2, size=4),
        "sizes": np.array([1, 1, 2, 2]),
        "end": rng.normal(size=(4, 2)),
    }
    nodes = [
        helper.make_node("Conv", ["x", "kernel", "bias"], ["a"], "conv"),
        helper.make_node("BatchNormalization", ["a", "scale", "shift", "mean", "var"], ["b"], "norm"),
        helper.make_node("Resize", ["b", "", "sizes"], ["c"], "resize"),
        helper.make_node("GlobalMaxPool", ["c"], ["d"], "pool"),
        helper.make_node("Flatten", ["d"], ["e"], "flatten"),
        helper.make_node("MatMul", ["e", "end"], ["y"], "matmul"),
    ]
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 2])],
        [numpy_helper.from_array(value.astype(np.float32), name) for name, value in arrays.items()],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    onnx.checker.check_model(proto)
    opened = xcam.load(proto, preprocess="unit")
    assert list(opened.parameter_layers) == ["conv", "norm", "matmul"]
    copied = opened.with_shuffled_weights(opened.parameter_layers, 0)
    copied.recording.runtime.weights.fetch(copied.recording.form.original)
    after = {t.name: numpy_helper.to_array(t) for t in copied.recording.form.original.graph.initializer}
    moved = {name for name, value in arrays.items() if not np.array_equal(after[name], value.astype(np.float32))}
    assert moved == {"kernel", "bias", "scale", "shift", "end"}
    for name, value in arrays.items():
        np.testing.assert_array_equal(np.sort(after[name].ravel()), np.sort(value.astype(np.float32).ravel()))


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_maps_change_when_the_weights_do(backend: str) -> None:
    result = xcam.evaluate(
        model(backend),
        [str(path) for path in demo.image_paths()[:3]],
        methods=["gradcam", "hirescam"],
        measures=["randomization", "efficient-randomization"],
        stages=3,
        floor=False,
    )
    for method in result.methods:
        assert abs(result.row(method, "randomization").mean) < 0.5
        assert result.row(method, "efficient-randomization").mean > 0.05


def test_a_shuffled_network_that_fails_affects_only_its_measure(monkeypatch: pytest.MonkeyPatch) -> None:
    opened = model("onnx")

    def with_shuffled_weights(parts: Any, seed: int) -> Any:
        raise xcam.ModelError("the copy gives NaN; check the weights")

    monkeypatch.setattr(opened, "with_shuffled_weights", with_shuffled_weights, raising=False)
    result = xcam.evaluate(opened, [str(demo.image_paths()[0])], measures=["deletion", "randomization"])
    assert result.row("gradcam", "deletion").n == 1
    assert result.row("gradcam", "randomization").n == 0
    assert "the randomisation test failed: the copy gives NaN; check the weights" in result.notes
