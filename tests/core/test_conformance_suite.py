"""The suite that checks backends, checked: a right one passes; of each wrong one it says what is wrong, in words."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest

from example import numpy_example
from xcam.testing import NETWORKS, Conformance, Network

with numpy_example():
    from ops import graph
    from xcam_numpy.backend import NumpyModel


@dataclass
class Native:
    """A user's model that can be changed."""

    graph: Any
    mode: dict[str, Any] = field(default_factory=lambda: {"training": True, "hooks": 0})


class Mine(NumpyModel):
    """The right backend, on such a model."""

    def __init__(self, native: Native) -> None:
        self.native = native
        super().__init__(native.graph)


def suite(made: Callable[[Native], Any]) -> Conformance:
    class Suite(Conformance):
        def build(self, network: Network) -> Native:
            return Native(graph(network))

        def load(self, native: Native, network: Network) -> Any:
            return made(native)

        def snapshot(self, native: Native) -> Any:
            return dict(native.mode)

    return Suite()


TESTS = [name for name in dir(Conformance) if name.startswith("test_")]


def failures(made: Callable[[Native], Any], network: Network) -> dict[str, str]:
    """What each failed test of the suite says."""
    found = {}
    for name in TESTS:
        own = suite(made)
        x = np.random.default_rng(5).normal(size=(3, *network.input)).astype(np.float32)
        native = own.build(network)
        given = {"network": network, "native": native, "model": own.load(native, network), "x": x}
        test = getattr(own, name)
        try:
            test(**{key: given[key] for key in inspect.signature(test).parameters})
        except pytest.skip.Exception:
            pass
        except BaseException as error:
            found[name] = f"{type(error).__name__}: {error}"
    return found


@pytest.mark.parametrize("network", NETWORKS)
def test_the_right_backend_passes(network: str) -> None:
    assert failures(Mine, NETWORKS[network]) == {}


class Twice(Mine):
    def _gradient(self, *args: Any) -> Any:
        return 2 * super()._gradient(*args)


class OverTheBatch(Mine):
    def _gradient(self, layer: str, values: Any, v: Any) -> Any:
        return super()._gradient(layer, values, v) / np.float32(len(values["x"]))


class Negative(Mine):
    def _gradient(self, *args: Any) -> Any:
        return -super()._gradient(*args)


class ChannelsLast(Mine):
    """As NHWC frameworks have it."""

    def _traced(self, layer: str, values: Any, seeds: Any) -> Any:
        trace = super()._traced(layer, values, seeds)
        return replace(
            trace,
            activations=np.moveaxis(trace.activations, 1, -1),
            gradients=[np.moveaxis(g, 1, -1) for g in trace.gradients],
        )


class TokensLast(Mine):
    """As transformers have it."""

    def _traced(self, layer: str, values: Any, seeds: Any) -> Any:
        trace = super()._traced(layer, values, seeds)
        return replace(trace, activations=trace.activations.swapaxes(1, -1)) if values[layer].ndim == 3 else trace


class ShapeChannelsLast(Mine):
    def _layer(self, node: Any, shape: Any) -> Any:
        return super()._layer(node, (*shape[1:], shape[0]))


class SizeTurned(Mine):
    def activations(self, x: Any, layers: Any) -> Any:
        return {name: a.swapaxes(2, 3) for name, a in super().activations(x, layers).items()}


class LastPathAlone(Mine):
    """A value that two nodes read is given the gradient of one of them."""

    def _gradient(self, layer: str, values: Any, v: Any) -> Any:
        found = {end: np.asarray(v) for end in self.ends.values()}
        for node in reversed(self.graph.nodes):
            if node.name in found and node.name in self._from(layer) - {layer}:
                gradients = node.backward(found[node.name], *(values[name] for name in node.inputs))
                found |= {
                    name: g for name, g in zip(node.inputs, gradients, strict=True) if name in self._from(layer)
                }
        return found[layer].astype(np.float32)


class SkipDropped(Mine):
    """`resume` keeps nothing besides the layer."""

    def resume(self, trace: Any, activations: Any, rows: Any = None, seeds: Any = None) -> Any:
        layer, values = trace.state
        behind = self._from(layer)
        kept = {
            name: np.zeros((len(activations), *value.shape[1:]), np.float32)
            for name, value in values.items()
            if name not in behind
        }
        return self._traced(layer, self.graph.run(kept | {layer: activations}), seeds)


class SkipStale(Mine):
    """`resume` changes what the next node reads, and no other."""

    def resume(self, trace: Any, activations: Any, rows: Any = None, seeds: Any = None) -> Any:
        layer, values = trace.state
        rows = range(len(activations)) if rows is None else rows
        rows = [0] * len(activations) if len(values["x"]) == 1 else rows
        kept = {name: value[rows] for name, value in values.items() if name not in self._from(layer)}
        kept |= {layer: activations}
        first = next((n for n in self.graph.nodes if layer in n.inputs), None)
        if first is not None:
            kept[first.name] = first.forward(*(kept[name] for name in first.inputs))
        run = self.graph.run(kept | {layer: values[layer][rows]})
        return self._traced(layer, run | {layer: activations}, seeds)


class RowsIgnored(Mine):
    def resume(self, trace: Any, activations: Any, rows: Any = None, seeds: Any = None) -> Any:
        n = len(trace.activations)
        return super().resume(trace, activations, [k % n for k in range(len(activations))], seeds)


class Unchanged(Mine):
    def resume(self, trace: Any, activations: Any, rows: Any = None, seeds: Any = None) -> Any:
        layer, values = trace.state
        own = super().resume(trace, activations, rows, None)
        rows = [0] * len(activations) if rows is None and len(values["x"]) == 1 else rows
        whole = super().resume(trace, values[layer] if rows is None else values[layer][rows], rows, seeds)
        return replace(whole, activations=own.activations)


class ModeChanged(Mine):
    def _traced(self, layer: str, values: Any, seeds: Any) -> Any:
        self.native.mode["training"] = False
        return super()._traced(layer, values, seeds)


class ModeChangedByPredict(Mine):
    def predict(self, x: Any) -> Any:
        self.native.mode["training"] = False
        return super().predict(x)


class HookLeft(Mine):
    """Put back, and not where an exception passes."""

    def _traced(self, layer: str, values: Any, seeds: Any) -> Any:
        self.native.mode["hooks"] += 1
        trace = super()._traced(layer, values, seeds)
        self.native.mode["hooks"] -= 1
        return trace


class KeptOnTheModel(Mine):
    """What one thread keeps, another overwrites."""

    def _traced(self, layer: str, values: Any, seeds: Any) -> Any:
        self.kept = values
        return super()._traced(layer, values, seeds)

    def _gradient(self, layer: str, values: Any, v: Any) -> Any:
        return super()._gradient(layer, self.kept, v)


class SoftmaxOn(Mine):
    """It says that it cut the softmax off."""

    def __init__(self, native: Native) -> None:
        super().__init__(native)
        self.ends = {name: name for name in self.ends}


class SoftmaxUnseen(Mine):
    def __init__(self, native: Native) -> None:
        super().__init__(native)
        self.ends, self.activation = {name: name for name in self.ends}, None


class SeedsTwice(Mine):
    def trace(self, x: Any, layer: str, seeds: Any = None) -> Any:
        if seeds:
            seeds(self.predict(x))
        return super().trace(x, layer, seeds)


class SeedsTwiceInResume(Mine):
    def resume(self, trace: Any, activations: Any, rows: Any = None, seeds: Any = None) -> Any:
        if seeds:
            super().resume(trace, activations, rows, seeds)
        return super().resume(trace, activations, rows, seeds)


class OneGradient(Mine):
    def _traced(self, layer: str, values: Any, seeds: Any) -> Any:
        trace = super()._traced(layer, values, seeds)
        return replace(trace, gradients=trace.gradients[:1])


class Float64(Mine):
    def _gradient(self, *args: Any) -> Any:
        return super()._gradient(*args).astype(np.float64)


class Tensor:
    """What a framework has in place of an array."""

    def __init__(self, values: Any) -> None:
        self.values = values

    def __getattr__(self, name: str) -> Any:
        return getattr(self.values, name)


class Tensors(Mine):
    def predict(self, x: Any) -> Any:
        return Tensor(super().predict(x))


class Swallowed(Mine):
    def _traced(self, layer: str, values: Any, seeds: Any) -> Any:
        try:
            return super()._traced(layer, values, seeds)
        except KeyError:
            return super()._traced(layer, values, None)


class Wrapped(Mine):
    def _traced(self, layer: str, values: Any, seeds: Any) -> Any:
        try:
            return super()._traced(layer, values, seeds)
        except KeyError as error:
            raise RuntimeError("the session failed") from error


class Sorted(Mine):
    def activations(self, x: Any, layers: Any) -> Any:
        return super().activations(x, sorted(layers))


class Mixed(Mine):
    """The right names, over values in execution order."""

    def activations(self, x: Any, layers: Any) -> Any:
        names = [layer.name for layer in self.layers]
        found = super().activations(x, sorted(layers, key=names.index))
        return dict(zip(layers, found.values(), strict=True))


class Alphabetical(Mine):
    def __init__(self, native: Native) -> None:
        super().__init__(native)
        self.layers = sorted(self.layers, key=lambda layer: layer.name)


class Listed(Mine):
    def __init__(self, native: Native) -> None:
        super().__init__(native)
        self.layers = [*self.layers, self.layers[0]]


class DeclaresHvp(Mine):
    capabilities = frozenset({"gradients", "resume", "hvp"})


class DeclaresResume(Mine):
    def resume(self, *_: Any, **__: Any) -> Any:
        raise NotImplementedError("one day")


class DeclaresNonsense(Mine):
    capabilities = frozenset({"gradients", "speed"})


class WritesToTheBatch(Mine):
    def trace(self, x: Any, layer: str, seeds: Any = None) -> Any:
        found = super().trace(x.copy(), layer, seeds)
        x /= 2
        return found


class OneBuffer(Mine):
    """Activations are handed over in memory that the next call writes to."""

    buffer: Any = None

    def _traced(self, layer: str, values: Any, seeds: Any) -> Any:
        trace = super()._traced(layer, values, seeds)
        if self.buffer is None or self.buffer.shape != trace.activations.shape:
            self.buffer = np.empty_like(trace.activations)
        self.buffer[...] = trace.activations
        return replace(trace, activations=self.buffer)


class SpoilsTheTrace(Mine):
    def resume(self, trace: Any, activations: Any, rows: Any = None, seeds: Any = None) -> Any:
        found = super().resume(trace, activations, rows, seeds)
        if rows is None:
            trace.state[1].update((name, value * 2) for name, value in trace.state[1].items())
        return found


WRONG = [
    (Twice, "chain", "gradient at conv1: relative error 1, allowed 0.001: it is 2 times what it should be"),
    (
        OverTheBatch,
        "chain",
        r"0\.333 times what it should be \(the batch has that many rows: a sum or a mean over it",
    ),
    (Negative, "chain", "it is -1 times what it should be"),
    (ChannelsLast, "chain", r"shape \(3, 8, 6, 4\), expected \(3, 4, 8, 6\): the axes look exchanged: channels last"),
    (
        TokensLast,
        "tokens",
        r"norm1: shape \(3, 13, 6\), expected \(3, 6, 13\): the axes look exchanged: channels last",
    ),
    (ShapeChannelsLast, "chain", r"conv1: Layer.shape is \(8, 6, 4\), expected \(4, 8, 6\): the .* channels last"),
    (SizeTurned, "chain", "activations of conv1: .*: the axes look exchanged: height and width"),
    (LastPathAlone, "residual", "gradient at conv1: .*the skip path is missing: .* without relu1 → add"),
    (LastPathAlone, "dense", "gradient at conv1: .*the skip path is missing: it is what comes without"),
    (
        SkipDropped,
        "residual",
        "resume .*at conv2.*the skip path is missing: it is what comes when relu1 → add carries",
    ),
    (SkipStale, "residual", "resume at relu1.*: the skip path relu1 → add carries the old value of the layer"),
    (
        RowsIgnored,
        "residual",
        "outputs of resume at conv2: .*`rows` is ignored: values that pass the layer by are anoth",
    ),
    (Unchanged, "chain", "outputs of resume at conv1: .*the changed ones are not used"),
    (ModeChanged, "chain", r"trace\(\) left the user's model changed: snapshot\['training'\] was True, is False"),
    (ModeChangedByPredict, "chain", r"predict\(\) left the user's model changed: snapshot\['training'\] was True"),
    (
        HookLeft,
        "chain",
        r"an exception in seeds left the user's model changed \(trace\(\)\): snapshot\['hooks'\] was 0, is 1",
    ),
    (KeptOnTheModel, "chain", "not safe for threads: .*it belongs to another thread's batch"),
    (SoftmaxOn, "probable", "predict: softmax: .*these are probabilities: a softmax is still on"),
    (SoftmaxUnseen, "probable", "activation is None; the network ends in 'softmax': cut it off"),
    (SeedsTwice, "chain", r"seeds was called 2 times in one trace\(\); call it once"),
    (SeedsTwiceInResume, "chain", r"seeds was called 2 times in one resume\(\); call it once"),
    (OneGradient, "chain", "1 gradients for 3 cotangents; one for each"),
    (Float64, "chain", r"gradient at conv1: float64, not float32; end with astype"),
    (Tensors, "chain", "predict: scores: a .* Tensor, not a NumPy array; convert it in the backend"),
    (Swallowed, "chain", r"seeds raised KeyError\('raised in seeds'\), and trace\(\) swallowed it"),
    (
        Wrapped,
        "chain",
        r"seeds raised KeyError.* and trace\(\) raised RuntimeError\('the session failed'\) instead; let it",
    ),
    (Sorted, "chain", r"asked for \['conv1', 'tanh1', .*returned \['conv1', 'conv2', .*in the order asked"),
    (Mixed, "chain", "activations of relu2: .*(it is the value of conv1|shape)"),
    (Mixed, "residual", "activations of conv3: .*it is the value of conv1"),
    (Alphabetical, "residual", "layers are not in execution order: .* feeds .*, and is listed behind it"),
    (Listed, "chain", r"layers \['conv1'\] are listed twice"),
    (DeclaresHvp, "chain", "'hvp' is declared in capabilities, and is not there: AttributeError"),
    (DeclaresResume, "chain", "'resume' is declared in capabilities, and is not there: NotImplementedError: one day"),
    (DeclaresNonsense, "chain", r"capabilities \['speed'\] are unknown; known: \['gradients', 'hvp', 'resume'\]"),
    (WritesToTheBatch, "chain", r"trace\(\) changed the batch that it was given"),
    (OneBuffer, "chain", "the activations of one trace changed in the next call: they are views of memory"),
    (
        SpoilsTheTrace,
        "residual",
        "resume of itself, behind a resume on changed values: the first one spoiled the trace",
    ),
]


@pytest.mark.parametrize(("made", "network", "words"), WRONG, ids=lambda v: getattr(v, "__name__", None))
def test_a_wrong_backend_is_told_what_is_wrong(made: Any, network: str, words: str) -> None:
    found = failures(made, NETWORKS[network])
    assert found, "the suite passes it"
    assert any(re.search(words, message) for message in found.values()), found
