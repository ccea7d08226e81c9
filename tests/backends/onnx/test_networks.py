"""Whole networks compared with their framework's autograd at three depths (exports by torch.onnx and tf2onnx).

The criterion holds on any processor. A gradient jumps where a ReLU's input is zero or two values of a pool are equal, and
near such a kink rounding, which differs between processors, decides the side. Therefore the gradient is compared at inputs that stay
away from the kinks behind the layer: of many images, the two with the largest distance (see `kinks`), measured on the
processor that the test runs on, in units of the shift that rounding causes. No branch can change there: the gradient is
that of a smooth function, and every entry must agree. A rule that is wrong by 1 % fails.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import kinks
import xcam
from onnx_exports import NETWORKS, Network, images, torchvision_unloaded, truth
from xcam_onnx import sessions
from xcam_onnx.autodiff import RULES, engine
from xcam_torch.export import to_onnx

TOLERANCE = 2e-4
"""Relative to the largest entry: ten times the error of float32 here, and a fiftieth of an error of 1 %."""
MEASURED = ("vgg16", "efficientnet_b0")
"""Networks of the benchmarks, with no operators that the others lack."""
CLEARANCE = 4
"""Distance of the nearest value from its kink, in units of about twice its shift by rounding."""


def worst(result: np.ndarray, exact: np.ndarray) -> float:
    return float(np.abs(result - exact).max() / np.abs(exact).max())


@pytest.fixture(scope="module", autouse=True)
def without_torchvision() -> Iterator[None]:
    """Unload torchvision afterwards, as other tests need its absence."""
    yield
    torchvision_unloaded()


class Case:
    """A network as a file, inputs that stay away from kinks, and the gradients of torch in double precision."""

    def __init__(self, network: Network, folder: Path) -> None:
        self.network, self.path = network, folder / f"{network.name}.onnx"
        module, size = network.build(network.small), network.small
        to_onnx(module, self.path, (size, size))
        candidates = images(64, size, 2)
        rows, self.clearance = kinks.clearest(self.path, network.layers[0], candidates)
        self.x = candidates[rows]
        self.v = torch.randn(2, 1000, generator=torch.Generator().manual_seed(11))
        outputs, values = truth(copy.deepcopy(module).double(), network.layers, torch.from_numpy(self.x), self.v)
        self.outputs = outputs.numpy()
        self.exact = [(a.numpy(), g.numpy()) for a, g in values]

    def check(self, x: np.ndarray | None = None) -> None:
        """Raise AssertionError where an output, an activation or a gradient is wrong."""
        model = xcam.load(self.path)
        for layer, (a, g) in zip(self.network.layers, self.exact, strict=True):
            trace = model.trace(self.x if x is None else x, layer, lambda _: [self.v.numpy()])
            assert worst(trace.outputs, self.outputs) < TOLERANCE
            if a.shape != trace.activations.shape:  # torch keeps these channels last
                a, g = (np.moveaxis(value, -1, 1) for value in (a, g))
            assert worst(trace.activations, a) < TOLERANCE, f"activations at {layer}"
            assert worst(trace.gradients[0], g) < TOLERANCE, f"gradient at {layer}"


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in NETWORKS if name not in MEASURED])
def test_torchvision(name: str, tmp_path: Path) -> None:
    case = Case(NETWORKS[name], tmp_path)
    assert case.clearance > CLEARANCE
    case.check()


@pytest.fixture(scope="module", params=["squeezenet1_1", "mobilenet_v3_large"])
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    return Case(NETWORKS[request.param], tmp_path_factory.mktemp("case"))


@pytest.mark.slow
def test_the_criterion_fails_for_a_rule_that_is_wrong_by_one_percent(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each operator's rule is falsified in turn."""
    used: set[tuple[str, str]] = set()
    for key, entry in list(RULES.items()):
        monkeypatch.setitem(RULES, key, replace(entry, rule=watched(entry.rule, key, used)))
    case.check()
    expected = {
        "squeezenet1_1": {"Conv", "Relu", "MaxPool", "Concat"},
        "mobilenet_v3_large": {"Conv", "Relu", "Add", "Mul", "HardSwish", "HardSigmoid", "Gemm"},
    }
    assert expected[case.network.name] <= {op for _, op in used}
    for key in sorted(used):
        with monkeypatch.context() as patch:
            patch.setitem(RULES, key, replace(RULES[key], rule=scaled(RULES[key].rule, 1.01)))
            with pytest.raises(AssertionError, match="gradient at"):
                case.check()


def watched(rule: engine.Rule, key: tuple[str, str], used: set[tuple[str, str]]) -> engine.Rule:
    def call(*args: Any) -> Any:
        used.add(key)
        return rule(*args)

    return call


def scaled(rule: engine.Rule, factor: float) -> engine.Rule:
    def call(*args: Any) -> Any:
        result = rule(*args)
        results = result if isinstance(result, tuple | list) else (result,)
        return tuple(None if gradient is None else gradient * factor for gradient in results)

    return call


@pytest.mark.slow
def test_another_processor_changes_nothing(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other kernels are simulated by ONNX Runtime without optimisations, and by slightly changed pixels."""
    rng = np.random.default_rng(5)
    for _ in range(3):
        case.check(case.x * (1 + kinks.ROUNDING * rng.normal(size=case.x.shape)).astype(np.float32))
    make = sessions.ort.SessionOptions

    def plain() -> Any:
        options = make()
        options.graph_optimization_level = sessions.ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        return options

    monkeypatch.setattr(sessions.ort, "SessionOptions", plain)
    case.check()


@pytest.fixture(scope="module")
def keras() -> Any:
    from xcam_keras.backend import keras

    return keras


def randomised(keras: Any, build: Any, size: int) -> Any:
    """Set weights and statistics at which values neither vanish nor explode."""
    keras.utils.set_random_seed(7)
    model = build(weights=None, input_shape=(size, size, 3))
    rng = np.random.default_rng(7)
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            draws = {
                "gamma": lambda c: rng.uniform(0.5, 1.5, c),
                "beta": lambda c: rng.normal(0, 0.3, c),
                "moving_mean": lambda c: rng.normal(0, 0.1, c),
                "moving_variance": lambda c: rng.uniform(0.5, 2, c),
            }
            layer.set_weights([draws[weight.name](weight.shape[0]) for weight in layer.weights])
    return model


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "layers", "size"),
    [
        ("ResNet50V2", ("conv2_block1_out", "conv4_block1_out", "post_relu"), 64),
        ("EfficientNetV2B0", ("block1a_project_activation", "block4a_expand_activation", "top_activation"), 64),
    ],
)
def test_keras_applications(keras: Any, name: str, layers: Sequence[str], size: int, tmp_path: Path) -> None:
    """The reference is the Keras backend, whose gradients other tests check."""
    source = xcam.load(randomised(keras, getattr(keras.applications, name), size))
    source.to_onnx(tmp_path / "model.onnx")
    model = xcam.load(tmp_path / "model.onnx")
    assert model.output_activation == source.output_activation == "softmax"
    candidates = np.ascontiguousarray(np.moveaxis(images(64, size, 3), 1, -1))
    rows, clearance = kinks.clearest(tmp_path / "model.onnx", layers[0], candidates)
    assert clearance > CLEARANCE
    x = candidates[rows]
    v = np.random.default_rng(3).normal(size=(2, 1000)).astype(np.float32)
    for layer in layers:
        theirs, ours = (m.trace(x, layer, lambda _: [v]) for m in (source, model))
        assert worst(ours.outputs, theirs.outputs) < TOLERANCE
        assert worst(ours.activations, theirs.activations) < TOLERANCE, layer
        assert worst(ours.gradients[0], theirs.gradients[0]) < TOLERANCE, layer
