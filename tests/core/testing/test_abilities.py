"""The suite's tests of optional abilities: a right backend passes, and of each wrong one the test reports the mistake."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import onnx_networks
import xcam
from example import numpy_example
from xcam.contract.shuffling import shuffled, to_shuffle
from xcam.testing import Conformance, Network
from xcam.testing.abilities import Abilities

with numpy_example():
    from ops import graph
    from xcam_numpy.backend import NumpyModel


@dataclass
class Native:
    """A user's model that can be changed."""

    network: Network
    mode: dict[str, Any] = field(default_factory=lambda: {"training": True})


class Able(NumpyModel):
    """The NumPy backend with every ability that the suite tests in this module."""

    default_layer: str | None = "backbone/relu1"

    def __init__(self, native: Native) -> None:
        self.native = native
        super().__init__(graph(native.network))

    def to_onnx(self, path: Path) -> None:
        onnx.save(onnx_networks.build(self.native.network), path)

    def export(self, path: Path, layer: str, heatmap: str, facts: Any) -> None:
        xcam.load(onnx_networks.build(self.native.network), backend="onnx").export(path, layer, heatmap, facts)

    @property
    def parameter_layers(self) -> list[str]:
        return [step.name for step in self.native.network.steps if step.weights]

    def with_shuffled_weights(self, parts: list[str], seed: int = 0) -> Able:
        return type(self)(Native(self.network_with(self.draw(parts, seed))))

    def draw(self, parts: list[str], seed: int) -> dict[int, np.ndarray]:
        """Return the new value of each weight, by the old one's id."""
        weights = {step.name: step.weights for step in self.native.network.steps if step.weights}
        return {id(value): shuffled(value, rng) for value, rng in to_shuffle(weights, parts, seed, self.name)}

    def network_with(self, values: dict[int, np.ndarray]) -> Network:
        steps = self.native.network.steps
        new = (replace(step, weights=tuple(values.get(id(w), w) for w in step.weights)) for step in steps)
        return replace(self.native.network, steps=tuple(new))

    def trace(self, x: Any, layer: str, cotangents: Any = None) -> Any:
        if layer not in {known.name for known in self.layers}:
            raise xcam.InputError(f"unknown layer {layer!r}")
        return super().trace(x, layer, cotangents)

    def explain_missing_layer(self, name: str) -> str | None:
        return None

    def disable_spinning(self) -> None:
        pass

    precision = None

    def as_onnx(self) -> Any:
        return xcam.load(onnx_networks.build(self.native.network), backend="onnx")

    def stretch_sources(self, layers: Any, known: Any) -> Any:
        return self.as_onnx().stretch_sources(layers, known)

    def stretches(self, x: Any, values: Any, layers: Any) -> Any:
        return self.as_onnx().stretches(x, values, layers)


def failures(kind: Callable[[Native], Any], tmp_path: Path) -> dict[str, str]:
    """Return the message of each failed test of abilities; `skipped: …` for a skipped one."""

    class Suite(Conformance):
        def build(self, network: Network) -> Native:
            return Native(network)

        def load(self, native: Native, network: Network) -> Any:
            return kind(native)

        def snapshot(self, native: Native) -> Any:
            return dict(native.mode)

    result = {}
    for name in (name for name in vars(Abilities) if name.startswith("test_")):
        test = getattr(Suite(), name)
        folder = tmp_path / name
        folder.mkdir()
        try:
            test(**({"tmp_path": folder} if inspect.signature(test).parameters else {}))
        except pytest.skip.Exception as skip:
            result[name] = f"skipped: {skip}"
        except BaseException as error:
            result[name] = f"{type(error).__name__}: {error}"
    return result


def test_the_right_backend_passes(tmp_path: Path) -> None:
    assert failures(Able, tmp_path) == {}


def test_each_missing_ability_is_skipped_with_its_name(tmp_path: Path) -> None:
    class Plain(NumpyModel):
        def __init__(self, native: Native) -> None:
            super().__init__(graph(native.network))

    skips = failures(Plain, tmp_path)
    assert len(skips) == 10
    assert skips["test_onnx_export"] == (
        "skipped: backend 'numpy' does not implement ExportsOnnx (xcam.contract.abilities)"
    )
    assert all("does not implement" in skip for skip in skips.values())


def test_an_exporter_that_is_not_installed_is_a_skip(tmp_path: Path) -> None:
    class Uninstalled(Able):
        def to_onnx(self, path: Path) -> None:
            raise xcam.BackendError("cannot export: onnxscript is not installed; pip install onnxscript")

    assert failures(Uninstalled, tmp_path) == {
        "test_onnx_export": "skipped: to_onnx() needs more than is installed: cannot export: onnxscript is not "
        "installed; pip install onnxscript"
    }


class OtherWeights(Able):
    def to_onnx(self, path: Path) -> None:
        other = self.with_shuffled_weights(["scores"])
        onnx.save(onnx_networks.build(other.native.network), path)


class NamesLost(Able):
    def to_onnx(self, path: Path) -> None:
        model = onnx_networks.build(self.native.network)
        for node in model.graph.node:
            for names in (node.input, node.output):
                names[:] = [name.replace("backbone/", "") for name in names]
        for tensor in model.graph.initializer:
            tensor.name = tensor.name.replace("backbone/", "")
        onnx.save(model, path)


class NamesExchanged(Able):
    """Two layers of one shape."""

    def to_onnx(self, path: Path) -> None:
        model = onnx_networks.build(self.native.network)
        exchange = {"backbone/conv1": "backbone/relu1", "backbone/relu1": "backbone/conv1"}
        for node in model.graph.node:
            for names in (node.input, node.output):
                names[:] = [exchange.get(name, name) for name in names]
            node.name = f"node of {node.output[0]}"
        onnx.save(model, path)


class WritesNothing(Able):
    def to_onnx(self, path: Path) -> None:
        pass


class ExportChangesTheModel(Able):
    def export(self, path: Path, layer: str, heatmap: str, facts: Any) -> None:
        super().export(path, layer, heatmap, facts)
        self.native.mode["training"] = False


class AnotherLayer(Able):
    def export(self, path: Path, layer: str, heatmap: str, facts: Any) -> None:
        super().export(path, "backbone/conv2", heatmap, facts)


class InPlace(Able):
    def with_shuffled_weights(self, parts: list[str], seed: int = 0) -> Able:
        copy = super().with_shuffled_weights(parts, seed)
        self.native.network, self.graph = copy.native.network, copy.graph
        return copy


class Unshuffled(Able):
    def with_shuffled_weights(self, parts: list[str], seed: int = 0) -> Able:
        super().with_shuffled_weights(parts, seed)
        return Able(self.native)


class SeedIgnored(Able):
    def draw(self, parts: list[str], seed: int) -> dict[int, np.ndarray]:
        return super().draw(parts, 0)


class Unseeded(Able):
    def draw(self, parts: list[str], seed: int) -> dict[int, np.ndarray]:
        return super().draw(parts, int(np.random.default_rng().integers(2**31)))


class OneGenerator(Able):
    """The generator of a part continues where that of the part before it ended."""

    def draw(self, parts: list[str], seed: int) -> dict[int, np.ndarray]:
        super().draw(parts, seed)
        rng = np.random.default_rng(seed)
        weights = {step.name: step.weights for step in self.native.network.steps}
        return {id(value): shuffled(value, rng) for part in sorted(parts, reverse=True) for value in weights[part]}


class InTheOrderGiven(Able):
    """Each part by a generator for its position among the parts that are given."""

    def draw(self, parts: list[str], seed: int) -> dict[int, np.ndarray]:
        super().draw(parts, seed)
        weights = {step.name: step.weights for step in self.native.network.steps}
        return {
            id(value): shuffled(value, np.random.default_rng([seed, k]))
            for k, part in enumerate(parts)
            for value in weights[part]
        }


class LastPartFirst(Able):
    @property
    def parameter_layers(self) -> list[str]:
        return super().parameter_layers[::-1]


class UnknownPartIgnored(Able):
    def with_shuffled_weights(self, parts: list[str], seed: int = 0) -> Able:
        return super().with_shuffled_weights([part for part in parts if part in self.parameter_layers], seed)


class UnknownPartFails(Able):
    def draw(self, parts: list[str], seed: int) -> dict[int, np.ndarray]:
        return super().draw(parts, seed) if set(parts) <= set(self.parameter_layers) else {}[parts[0]]


class NoSuchDefault(Able):
    default_layer = "relu1"


class TwoLines(Able):
    def explain_missing_layer(self, name: str) -> str | None:
        return "it was folded\ninto another"


class NoReason(Able):
    def explain_missing_layer(self, name: str) -> Any:
        return False


class UnknownLayerFails(Able):
    def trace(self, x: Any, layer: str, cotangents: Any = None) -> Any:
        return super().trace(x, layer if "/" in layer else "backbone/conv1", cotangents)


class CleanStretches(Able):
    def stretches(self, x: Any, values: Any, layers: Any) -> Any:
        return self.as_onnx().stretches(x, {}, layers)


class SpinningLosesWeights(Able):
    def disable_spinning(self) -> None:
        self.graph = self.with_shuffled_weights(["scores"]).graph


WRONG = [
    (OtherWeights, r"the file that to_onnx\(\) wrote: relative error"),
    (NamesLost, r"to_onnx\(\) lost the name of layer 'backbone/conv1': the file has \["),
    (NamesExchanged, r"the file that to_onnx\(\) wrote: activations of backbone/conv1: relative error"),
    (WritesNothing, r"to_onnx\(\) wrote no file model.onnx"),
    (ExportChangesTheModel, r"export\(\) left the user's model changed: snapshot\['training'\] was True, is False"),
    (AnotherLayer, r"names the layer 'node of backbone/conv2'; export\(\) was given 'backbone/conv1'"),
    (InPlace, r"the model after with_shuffled_weights\(\): relative error"),
    (Unshuffled, r"with_shuffled_weights\(\) returned a copy with the same outputs"),
    (SeedIgnored, r"with_shuffled_weights\(\) ignores its seed"),
    (Unseeded, r"with_shuffled_weights\(\) gave two results for one seed"),
    (OneGenerator, "'backbone/conv1' is shuffled differently when 'scores' is shuffled too"),
    (InTheOrderGiven, r"with_shuffled_weights\(\) depends on the order of its parts"),
    (
        LastPartFirst,
        "parameter_layers is not in execution order: 'scores' changes no value before 'backbone/conv1'",
    ),
    (UnknownPartIgnored, r"with_shuffled_weights\(\['xcam-.*'\]\) raised nothing; raise an InputError"),
    (UnknownPartFails, r"with_shuffled_weights\(\['xcam-.*'\]\) raised KeyError: .*; raise an InputError"),
    (NoSuchDefault, "default_layer is 'relu1', which is not one of the model's layers"),
    (TwoLines, r"explain_missing_layer\(\) returned 'it was folded\\ninto another'; return one line"),
    (NoReason, r"explain_missing_layer\(\) returned False; return one line, or None"),
    (UnknownLayerFails, r"trace\(\) of layer 'xcam-.*' raised nothing; raise an InputError"),
    (CleanStretches, r"stretches\(\) does not compute a layer from the given values"),
    (SpinningLosesWeights, r"predict\(\) after its first disable_spinning\(\): relative error"),
]


@pytest.mark.parametrize(("kind", "message"), WRONG, ids=lambda value: getattr(value, "__name__", None))
def test_the_mistake_of_a_wrong_backend_is_reported(kind: Any, message: str, tmp_path: Path) -> None:
    result = failures(kind, tmp_path)
    assert any(re.search(message, text) for text in result.values()), result


def test_every_test_of_the_suite_fails_for_some_wrong_backend(tmp_path: Path) -> None:
    failed = set()
    for index, (kind, _) in enumerate(WRONG):
        folder = tmp_path / str(index)
        folder.mkdir()
        failed |= set(failures(kind, folder))
    assert failed == {name for name in vars(Abilities) if name.startswith("test_")}
