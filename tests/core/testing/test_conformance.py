"""Tests of the conformance suite: a correct backend passes; for each wrong one, a message names the mistake."""

from __future__ import annotations

import inspect
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest

from example import numpy_example
from xcam.testing import NETWORKS, Conformance, Network
from xcam.testing.abilities import Abilities

with numpy_example():
    from ops import graph
    from xcam_numpy.backend import NumpyModel


@dataclass
class Native:
    """A user's model that can be changed."""

    graph: Any
    mode: dict[str, Any] = field(default_factory=lambda: {"training": True, "hooks": 0})


class Correct(NumpyModel):
    """The correct backend, on such a model."""

    def __init__(self, native: Native) -> None:
        self.native = native
        super().__init__(native.graph)

    def _finish(self, layers: Any, values: Any, constants: Any, cotangents: Any) -> Any:
        traces = super()._finish(layers, values, constants, cotangents)
        if isinstance(layers, str):
            return self.spoiled(traces, layers, values)
        return [self.spoiled(trace, layer, values) for trace, layer in zip(traces, layers, strict=True)]

    def spoiled(self, trace: Any, layer: str, values: Any) -> Any:
        """Return the trace at a layer: for a wrong backend to change."""
        return trace

    def _gradients(self, layers: Any, values: Any, constants: Any, v: Any) -> Any:
        return {layer: self.gradient(layer, values, constants, v) for layer in layers}

    def gradient(self, layer: str, values: Any, constants: Any, v: Any) -> Any:
        """Return the gradient at a layer: for a wrong backend to change."""
        return super()._gradients([layer], values, constants, v)[layer]


def suite(backend: Callable[[Native], Any]) -> Conformance:
    class Suite(Conformance):
        def build(self, network: Network) -> Native:
            return Native(graph(network))

        def load(self, native: Native, network: Network) -> Any:
            return backend(native)

        def snapshot(self, native: Native) -> Any:
            return dict(native.mode)

    return Suite()


TESTS = [name for name in dir(Conformance) if name.startswith("test_") and name not in vars(Abilities)]


def failures(backend: Callable[[Native], Any], network: Network) -> dict[str, str]:
    """Return the message of each test that fails."""
    result = {}
    for name in TESTS:
        instance = suite(backend)
        x = np.random.default_rng(5).normal(size=(3, *network.input)).astype(np.float32)
        native = instance.build(network)
        fixtures = {"network": network, "native": native, "model": instance.load(native, network), "x": x}
        test = getattr(instance, name)
        try:
            test(**{key: fixtures[key] for key in inspect.signature(test).parameters})
        except pytest.skip.Exception:
            pass
        except BaseException as error:
            result[name] = f"{type(error).__name__}: {error}"
    return result


@pytest.mark.parametrize("network", NETWORKS)
def test_a_correct_backend_passes(network: str) -> None:
    assert failures(Correct, NETWORKS[network]) == {}


def test_correct_second_derivatives_pass() -> None:
    assert failures(Hvp, NETWORKS["probable"]) == {}


class WithoutGradients(Correct):
    """A runtime that only runs models: the core computes gradients by differences."""

    capabilities = frozenset({"resume"})

    def _finish(self, layers: Any, values: Any, constants: Any, cotangents: Any) -> Any:
        assert cotangents is None
        return super()._finish(layers, values, constants, None)


@pytest.mark.parametrize("network", ["dense", "branch"])
def test_a_correct_backend_without_gradients_passes(network: str) -> None:
    assert failures(WithoutGradients, NETWORKS[network]) == {}


class WrongRowsWithoutGradients(WithoutGradients):
    def resume(self, trace: Any, activations: Any, rows: Any = None, cotangents: Any = None, at: Any = None) -> Any:
        return super().resume(trace, activations, None if rows is None else rows[::-1], cotangents, at)


def test_values_of_a_backend_without_gradients_are_checked() -> None:
    assert "test_resume" in failures(WrongRowsWithoutGradients, NETWORKS["residual"])


class Twice(Correct):
    def gradient(self, *args: Any) -> Any:
        return 2 * super().gradient(*args)


class OverTheBatch(Correct):
    def gradient(self, layer: str, values: Any, constants: Any, v: Any) -> Any:
        return super().gradient(layer, values, constants, v) / np.float32(len(values["x"]))


class Negative(Correct):
    def gradient(self, *args: Any) -> Any:
        return -super().gradient(*args)


class ChannelsLast(Correct):
    """As NHWC frameworks have it."""

    def spoiled(self, trace: Any, layer: str, values: Any) -> Any:
        return replace(
            trace,
            activations=np.moveaxis(trace.activations, 1, -1),
            gradients=[np.moveaxis(g, 1, -1) for g in trace.gradients],
        )


class TokensLast(Correct):
    """As transformers have it."""

    def spoiled(self, trace: Any, layer: str, values: Any) -> Any:
        return replace(trace, activations=trace.activations.swapaxes(1, -1)) if values[layer].ndim == 3 else trace


class ShapeChannelsLast(Correct):
    def _layer(self, node: Any, shape: Any) -> Any:
        return super()._layer(node, (*shape[1:], shape[0]))


class SizeTurned(Correct):
    def activations(self, x: Any, layers: Any) -> Any:
        return {name: a.swapaxes(2, 3) for name, a in super().activations(x, layers).items()}


class LastPathAlone(Correct):
    """A value that two nodes read gets the gradient of only one of them."""

    def gradient(self, layer: str, values: Any, constants: Any, v: Any) -> Any:
        result = {node: np.asarray(v[name]) for name, node in self.logits.items()}
        for node in reversed(self.graph.nodes):
            if node.name in result and node.name in self._behind([layer], constants) - {layer}:
                gradients = node.backward(result[node.name], *(values[name] for name in node.inputs))
                result |= {
                    name: g
                    for name, g in zip(node.inputs, gradients, strict=True)
                    if name in self._behind([layer], constants)
                }
        return result[layer].astype(np.float32)


class SkipDropped(Correct):
    """`resume` keeps no bypass values."""

    def resume(self, trace: Any, activations: Any, rows: Any = None, cotangents: Any = None, at: Any = None) -> Any:
        layer, values, constants = trace.state
        behind = self._behind([layer], constants)
        kept = {
            name: np.zeros((len(activations), *value.shape[1:]), np.float32)
            for name, value in values.items()
            if name not in behind
        }
        run = self.graph.run(kept | {layer: activations})
        return self._finish(layer if at is None else at, run, constants | {layer}, cotangents)


class SkipStale(Correct):
    """`resume` changes the value for the next node, and for no other."""

    def resume(self, trace: Any, activations: Any, rows: Any = None, cotangents: Any = None, at: Any = None) -> Any:
        layer, values, constants = trace.state
        rows = range(len(activations)) if rows is None else rows
        rows = [0] * len(activations) if len(values["x"]) == 1 else rows
        kept = {name: value[rows] for name, value in values.items() if name not in self._behind([layer], constants)}
        kept |= {layer: activations}
        first = next((n for n in self.graph.nodes if layer in n.inputs), None)
        if first is not None:
            kept[first.name] = first.forward(*(kept[name] for name in first.inputs))
        run = self.graph.run(kept | {layer: values[layer][rows]})
        return self._finish(layer if at is None else at, run | {layer: activations}, constants | {layer}, cotangents)


class RowsIgnored(Correct):
    def resume(self, trace: Any, activations: Any, rows: Any = None, cotangents: Any = None, at: Any = None) -> Any:
        n = len(trace.activations)
        return super().resume(trace, activations, [k % n for k in range(len(activations))], cotangents, at)


class Unchanged(Correct):
    def resume(self, trace: Any, activations: Any, rows: Any = None, cotangents: Any = None, at: Any = None) -> Any:
        layer, values, _ = trace.state
        resumed = super().resume(trace, activations, rows, None, at)
        rows = [0] * len(activations) if rows is None and len(values["x"]) == 1 else rows
        whole = super().resume(trace, values[layer] if rows is None else values[layer][rows], rows, cotangents, at)
        return replace(whole, activations=resumed.activations)


class ModeChanged(Correct):
    def _finish(self, layers: Any, values: Any, constants: Any, cotangents: Any) -> Any:
        self.native.mode["training"] = False
        return super()._finish(layers, values, constants, cotangents)


class ModeChangedByPredict(Correct):
    def predict(self, x: Any) -> Any:
        self.native.mode["training"] = False
        return super().predict(x)


class HookLeft(Correct):
    """The hook is removed, except after an exception."""

    def _finish(self, layers: Any, values: Any, constants: Any, cotangents: Any) -> Any:
        self.native.mode["hooks"] += 1
        trace = super()._finish(layers, values, constants, cotangents)
        self.native.mode["hooks"] -= 1
        return trace


class KeptOnTheModel(Correct):
    """One thread overwrites the values of another."""

    def _finish(self, layers: Any, values: Any, constants: Any, cotangents: Any) -> Any:
        self.kept = values
        return super()._finish(layers, values, constants, cotangents)

    def gradient(self, layer: str, values: Any, constants: Any, v: Any) -> Any:
        return super().gradient(layer, self.kept, constants, v)


class SoftmaxOn(Correct):
    """A model that claims to have cut the softmax off."""

    def __init__(self, native: Native) -> None:
        super().__init__(native)
        self.logits = {name: name for name in self.logits}


class SoftmaxUnseen(Correct):
    def __init__(self, native: Native) -> None:
        super().__init__(native)
        self.logits, self.output_activation = {name: name for name in self.logits}, None


class CotangentsTwice(Correct):
    def trace(self, x: Any, layer: str, cotangents: Any = None) -> Any:
        if cotangents:
            cotangents(self.predict(x))
        return super().trace(x, layer, cotangents)


class CotangentsTwiceInResume(Correct):
    def resume(self, trace: Any, activations: Any, rows: Any = None, cotangents: Any = None, at: Any = None) -> Any:
        if cotangents:
            super().resume(trace, activations, rows, cotangents, at)
        return super().resume(trace, activations, rows, cotangents, at)


class OneGradient(Correct):
    def spoiled(self, trace: Any, layer: str, values: Any) -> Any:
        return replace(trace, gradients=trace.gradients[:1])


class Float64(Correct):
    def gradient(self, *args: Any) -> Any:
        return super().gradient(*args).astype(np.float64)


class Tensor:
    """A framework's tensor instead of an array."""

    def __init__(self, values: Any) -> None:
        self.values = values

    def __getattr__(self, name: str) -> Any:
        return getattr(self.values, name)


class Tensors(Correct):
    def predict(self, x: Any) -> Any:
        return Tensor(super().predict(x))


class Swallowed(Correct):
    def _finish(self, layers: Any, values: Any, constants: Any, cotangents: Any) -> Any:
        try:
            return super()._finish(layers, values, constants, cotangents)
        except KeyError:
            return super()._finish(layers, values, constants, None)


class Wrapped(Correct):
    def _finish(self, layers: Any, values: Any, constants: Any, cotangents: Any) -> Any:
        try:
            return super()._finish(layers, values, constants, cotangents)
        except KeyError as error:
            raise RuntimeError("the session failed") from error


class Sorted(Correct):
    def activations(self, x: Any, layers: Any) -> Any:
        return super().activations(x, sorted(layers))


class Mixed(Correct):
    """The right names, for values in execution order."""

    def activations(self, x: Any, layers: Any) -> Any:
        names = [layer.name for layer in self.layers]
        result = super().activations(x, sorted(layers, key=names.index))
        return dict(zip(layers, result.values(), strict=True))


class Alphabetical(Correct):
    def __init__(self, native: Native) -> None:
        super().__init__(native)
        self.layers = sorted(self.layers, key=lambda layer: layer.name)


class Listed(Correct):
    def __init__(self, native: Native) -> None:
        super().__init__(native)
        self.layers = [*self.layers, self.layers[0]]


class DeclaresHvp(Correct):
    capabilities = frozenset({"gradients", "resume", "hvp"})


class DeclaresResume(Correct):
    def resume(self, *_: Any, **__: Any) -> Any:
        raise NotImplementedError("one day")


class DeclaresNonsense(Correct):
    capabilities = frozenset({"gradients", "speed"})


class WritesToTheBatch(Correct):
    def trace(self, x: Any, layer: str, cotangents: Any = None) -> Any:
        result = super().trace(x.copy(), layer, cotangents)
        x /= 2
        return result


class OneBuffer(Correct):
    """A model that returns activations in memory which the next call overwrites."""

    buffer: Any = None

    def spoiled(self, trace: Any, layer: str, values: Any) -> Any:
        if self.buffer is None or self.buffer.shape != trace.activations.shape:
            self.buffer = np.empty_like(trace.activations)
        self.buffer[...] = trace.activations
        return replace(trace, activations=self.buffer)


class SpoilsTheTrace(Correct):
    def resume(self, trace: Any, activations: Any, rows: Any = None, cotangents: Any = None, at: Any = None) -> Any:
        result = super().resume(trace, activations, rows, cotangents, at)
        if rows is None:
            trace.state[1].update((name, value * 2) for name, value in trace.state[1].items())
        return result


def squeezed(outputs: Any) -> Any:
    """A model that omits the batch axis, as for a single image."""
    return np.squeeze(outputs) if isinstance(outputs, np.ndarray) else outputs


class PredictSqueezed(Correct):
    def predict(self, x: Any) -> Any:
        return squeezed(super().predict(x))


class ActivationsSqueezed(Correct):
    def activations(self, x: Any, layers: Any) -> Any:
        return {name: np.squeeze(a) for name, a in super().activations(x, layers).items()}


class TraceSqueezed(Correct):
    def _outputs(self, values: Any) -> Any:
        return squeezed(super()._outputs(values))


class OneTimesTwo(Correct):
    """The right shape, but wrong values for a batch of one image."""

    def predict(self, x: Any) -> Any:
        return super().predict(x) * (2 if len(x) == 1 else 1)


class OfTheBatch(Correct):
    """Like a batch normalisation in training mode."""

    def predict(self, x: Any) -> Any:
        return super().predict((x - 0.1 * x.mean(axis=0) if len(x) > 1 else x).astype(np.float32))


class OneBufferOfOutputs(Correct):
    buffer: Any = None

    def _outputs(self, values: Any) -> Any:
        outputs: Any = super()._outputs(values)
        if self.buffer is None or self.buffer.shape != outputs.shape:
            self.buffer = np.empty_like(outputs)
        self.buffer[...] = outputs
        return self.buffer


class PredictInOneBuffer(OneBufferOfOutputs):
    def spoiled(self, trace: Any, layer: str, values: Any) -> Any:
        return replace(trace, outputs=trace.outputs.copy())


class ActivationsInOneBuffer(Correct):
    buffers: Any = None

    def activations(self, x: Any, layers: Any) -> Any:
        self.buffers = self.buffers or {}
        result = super().activations(x, layers)
        for name, value in result.items():
            if name not in self.buffers or self.buffers[name].shape != value.shape:
                self.buffers[name] = np.empty_like(value)
            self.buffers[name][...] = value
        return {name: self.buffers[name] for name in result}


class PredictWrites(Correct):
    def predict(self, x: Any) -> Any:
        result = super().predict(x)
        x *= 2
        return result


class Relisted(Correct):
    """Layers with wrong facts."""

    facts: dict[str, Any]
    of: Any = None

    def __init__(self, native: Native) -> None:
        super().__init__(native)
        self.layers = [
            replace(layer, **self.facts) if self.of in (None, layer.name) else layer for layer in self.layers
        ]


class TokensUnsaid(Relisted):
    facts = {"layout": "channels_first"}  # noqa: RUF012


class TokensEverywhere(Relisted):
    facts = {"layout": "tokens"}  # noqa: RUF012


class LayoutOfItsOwn(Relisted):
    facts, of = {"layout": "NCHW"}, "pool"


class NoOutput(Relisted):
    facts = {"is_output": False}  # noqa: RUF012


class AllInner(Relisted):
    facts = {"inner": True}  # noqa: RUF012


class PoolLost(Relisted):
    facts, of = {"reaches_output": False}, "pool"


class PoolTurned(Relisted):
    facts, of = {"shape": (4, 3, 4)}, "pool"


class DeadAlias(Relisted):
    facts, of = {"aliases": ("first",)}, "conv1"


class AnothersAlias(Relisted):
    facts, of = {"aliases": ("conv1",)}, "tanh1"


class OfNoStep(Correct):
    """A layer in addition to the steps of the network, as frameworks have them, with a wrong shape."""

    def __init__(self, native: Native) -> None:
        super().__init__(native)
        self.layers = [replace(self.layers[0], name="entry", shape=(3, 6, 8)), *self.layers]

    def activations(self, x: Any, layers: Any) -> Any:
        result = super().activations(x, [name for name in layers if name != "entry"])
        return {name: x if name == "entry" else result[name] for name in layers}


class LastListedFirst(Correct):
    """In order, except for layers that are not explained."""

    def __init__(self, native: Native) -> None:
        super().__init__(native)
        self.layers = [self.layers[-1], *self.layers[:-1]]


class PredictKeepsItsBatch(Correct):
    def predict(self, x: Any) -> Any:
        self.x = x
        time.sleep(1e-4)  # other threads run, as during the code of a framework
        return super().predict(self.x)


class ActivationsKeepTheirBatch(Correct):
    def activations(self, x: Any, layers: Any) -> Any:
        self.x = x
        time.sleep(1e-4)
        return super().activations(self.x, layers)


class Hvp(Correct):
    """By differences of the gradient: correct for smooth networks."""

    capabilities = frozenset({"gradients", "resume", "hvp"})

    def hvp(self, x: Any, layer: str, cotangents: Any, vectors: Any) -> Any:
        trace = self.trace(x, layer)
        fixed, step = cotangents(trace.outputs), 1e-2

        def slope(v: Any, vector: Any, side: int) -> Any:
            replacement = trace.activations + np.float32(side * step) * vector
            return self.resume(trace, replacement, range(len(x)), lambda _: [v]).gradients[0]

        return [
            ((slope(v, vector, 1) - slope(v, vector, -1)) / np.float32(2 * step)).astype(np.float32)
            for v, vector in zip(fixed, vectors, strict=True)
        ]


class HvpFirstVector(Hvp):
    def hvp(self, x: Any, layer: str, cotangents: Any, vectors: Any) -> Any:
        return super().hvp(x, layer, cotangents, [vectors[0]] * len(vectors))


class HvpFirstProduct(Hvp):
    def hvp(self, x: Any, layer: str, cotangents: Any, vectors: Any) -> Any:
        return super().hvp(x, layer, cotangents, vectors)[:1]


class HvpCotangentsTwice(Hvp):
    def hvp(self, x: Any, layer: str, cotangents: Any, vectors: Any) -> Any:
        cotangents(self.predict(x))
        return super().hvp(x, layer, cotangents, vectors)


class Gradients(Correct):
    """The gradients of all cotangents are changed."""

    def changed(self, gradients: Any) -> Any:
        raise NotImplementedError

    def spoiled(self, trace: Any, layer: str, values: Any) -> Any:
        return replace(trace, gradients=self.changed(trace.gradients)) if trace.gradients else trace


class Backwards(Gradients):
    def changed(self, gradients: Any) -> Any:
        return gradients[::-1]


class Summed(Gradients):
    def changed(self, gradients: Any) -> Any:
        return [sum(gradients)] * len(gradients)


class FirstForAll(Gradients):
    def changed(self, gradients: Any) -> Any:
        return [gradients[0]] * len(gradients)


class WritesToCotangents(Correct):
    def gradient(self, layer: str, values: Any, constants: Any, v: Any) -> Any:
        gradient = super().gradient(layer, values, constants, v)
        for array in v.values():
            array *= 3
        return gradient


class FirstOutputAlone(Correct):
    def gradient(self, layer: str, values: Any, constants: Any, v: Any) -> Any:
        kept = {name: value * (name == next(iter(self.logits))) for name, value in v.items()}
        return super().gradient(layer, values, constants, kept)


class OutputsTurned(Correct):
    def _outputs(self, values: Any) -> Any:
        return dict(reversed(super()._outputs(values).items()))


class ThroughTheSoftmax(Correct):
    """Logits are returned, but probabilities differentiated."""

    def gradient(self, layer: str, values: Any, constants: Any, v: Any) -> Any:
        p, ((name, v),) = values["softmax"], v.items()
        return super().gradient(layer, values, constants, {name: p * (v - (v * p).sum(axis=1, keepdims=True))})


class InPlace(Correct):
    """A ReLU overwrites the value of the layer before it."""

    def spoiled(self, trace: Any, layer: str, values: Any) -> Any:
        over = any(node.kind == "ReLU" and layer in node.inputs for node in self.graph.nodes)
        return replace(trace, activations=np.maximum(trace.activations, 0)) if over else trace


class ResumedOnce(Correct):
    def resume(self, trace: Any, activations: Any, rows: Any = None, cotangents: Any = None, at: Any = None) -> Any:
        result = super().resume(trace, activations, rows, cotangents, at)
        trace.state = None
        return result


class Reference(Correct):
    """The activations of a fixed image, as those of the second branch of a siamese network."""

    def activations(self, x: Any, layers: Any) -> Any:
        fixed = np.random.default_rng(1).normal(size=x.shape[1:]).astype(np.float32)
        return super().activations(np.broadcast_to(fixed, x.shape), layers)


class Folded(Correct):
    """Values of the upper and the lower half of each image, one after the other on the axis of the batch."""

    def activations(self, x: Any, layers: Any) -> Any:
        values = super().activations(x, layers).items()
        return {name: np.concatenate([a, a[:, :, ::-1]])[1:-1] if a.ndim == 4 else a for name, a in values}


class ChannelsLastActivations(Correct):
    def activations(self, x: Any, layers: Any) -> Any:
        return {name: np.moveaxis(a, 1, -1) for name, a in super().activations(x, layers).items()}


class BatchSecond(Correct):
    def activations(self, x: Any, layers: Any) -> Any:
        return {name: a.swapaxes(0, 1) for name, a in super().activations(x, layers).items()}


class Columns(Correct):
    """Tokens column by column, after the class token."""

    def activations(self, x: Any, layers: Any) -> Any:
        order = [0, *(1 + np.arange(12).reshape(3, 4).T.ravel())]
        values = super().activations(x, layers).items()
        return {name: a[..., order] if a.shape[-1] == 13 else a for name, a in values}


class CleanValues(Correct):
    """A resumed trace at another layer has the value of the clean run."""

    def resume(self, trace: Any, activations: Any, rows: Any = None, cotangents: Any = None, at: Any = None) -> Any:
        _, values, _ = trace.state
        results = super().resume(trace, activations, rows, cotangents, at)
        for name, result in zip(at, results, strict=True) if isinstance(at, list) else ():
            if name != trace.state[0]:
                result.activations = values[name][rows]
        return results


class StopsAtOthers(Correct):
    """The backward pass of several layers stops at each of them."""

    def _gradients(self, layers: Any, values: Any, constants: Any, v: Any) -> Any:
        return {layer: self.gradient(layer, values, constants | (set(layers) - {layer}), v) for layer in layers}


class OldBypass(Correct):
    """A resumed trace is resumed again with the values of the clean run."""

    def resume(self, trace: Any, activations: Any, rows: Any = None, cotangents: Any = None, at: Any = None) -> Any:
        _, values, _ = trace.state
        results = super().resume(trace, activations, rows, cotangents, at)
        for result in results if isinstance(at, list) else ():
            name, _, constants = result.state
            result.state = name, {key: value[rows] for key, value in values.items()}, constants
        return results


class ThroughTheGiven(Correct):
    """Gradients pass through the changed layer, to the values that it was computed from."""

    def gradient(self, layer: str, values: Any, constants: Any, v: Any) -> Any:
        return super().gradient(layer, values, frozenset(), v)


class OneForTwoNames(Correct):
    def _finish(self, layers: Any, values: Any, constants: Any, cotangents: Any) -> Any:
        return super()._finish(
            layers if isinstance(layers, str) else list(dict.fromkeys(layers)), values, constants, cotangents
        )


class ByName(Correct):
    def _finish(self, layers: Any, values: Any, constants: Any, cotangents: Any) -> Any:
        traces = super()._finish(layers, values, constants, cotangents)
        return traces if isinstance(layers, str) else dict(zip(layers, traces, strict=True))


class AllAreCuts(Relisted):
    facts, of = {"bypassed": False}, "conv2"


class NoneIsACut(Relisted):
    facts, of = {"bypassed": True}, "conv1"


WRONG = [
    (
        CleanValues,
        "residual",
        "resume at relu1, from changed values of conv1: activations: .*of the clean run; return",
    ),
    (StopsAtOthers, "residual", "trace of conv1, relu1, .*: gradient at conv1: .*it is zero"),
    (StopsAtOthers, "dense", "gradient at conv1: .*it stops at conv2 and conv3; let gradients pass through"),
    (OldBypass, "residual", "resume at conv2, of a trace .* at conv1: outputs: .*are those of the first, clean run"),
    (ThroughTheGiven, "residual", "resume at conv1, from changed values of conv2: gradient: relative error"),
    (OneForTwoNames, "chain", r"trace\(\) of 5 layers, one of them twice, returned 4 traces"),
    (ByName, "chain", r"trace\(\) of a list of layers returned dict; return a list"),
    (
        AllAreCuts,
        "residual",
        "conv2: Layer.bypassed is False, but a path from the input to the first output avoids it",
    ),
    (NoneIsACut, "residual", "conv1: Layer.bypassed is True, but every path leads through it; set it to False"),
    (Reference, "chain", "conv1: its values do not depend on the image; set Layer.depends_on_input to False"),
    (Folded, "chain", "conv1: a change of one image appears in no single row: windows or frames are folded"),
    (BatchSecond, "chain", r"conv1: the axis of the batch is 1; return \[N, C, \*spatial\]"),
    (ChannelsLastActivations, "chain", r"conv1: a change of the image moves along its channels; return \[N, C"),
    (Columns, "tokens", "tokens: its tokens are not in row order; reorder them in activations"),
    (Twice, "chain", "gradient at conv1: relative error 1, allowed 0.001: it is 2 times the expected value"),
    (
        OverTheBatch,
        "chain",
        r"0\.333 times the expected value \(the batch has that many rows: a sum or a mean over it",
    ),
    (Negative, "chain", "it is -1 times the expected value"),
    (ChannelsLast, "chain", r"shape \(3, 8, 6, 4\), expected \(3, 4, 8, 6\): the axes are exchanged: channels last"),
    (
        TokensLast,
        "tokens",
        r"norm1: shape \(3, 13, 6\), expected \(3, 6, 13\): the axes are exchanged: channels last",
    ),
    (ShapeChannelsLast, "chain", r"conv1: Layer.shape is \(8, 6, 4\), expected \(4, 8, 6\): the .* channels last"),
    (SizeTurned, "chain", "activations of conv1: .*: the axes are exchanged: height and width"),
    (
        LastPathAlone,
        "residual",
        "gradient at conv1: .*the skip path is missing: it is the gradient without relu1 → add",
    ),
    (LastPathAlone, "dense", "gradient at conv1: .*the skip path is missing: it is the gradient without"),
    (
        SkipDropped,
        "residual",
        "resume .*at conv2.*the skip path is missing: it is the output with relu1 → add set to zero",
    ),
    (
        SkipStale,
        "residual",
        "resume at relu1.*: the skip path relu1 → add has the old value of the layer; use the replacement",
    ),
    (
        RowsIgnored,
        "residual",
        "outputs of resume at conv2: .*`rows` is ignored: the bypass values are those of another image",
    ),
    (
        Unchanged,
        "chain",
        "outputs of resume at conv1: .*it is the output for the unchanged values; use the replacement",
    ),
    (ModeChanged, "chain", r"trace\(\) left the user's model changed: snapshot\['training'\] was True, is False"),
    (ModeChangedByPredict, "chain", r"predict\(\) left the user's model changed: snapshot\['training'\] was True"),
    (
        HookLeft,
        "chain",
        r"an exception in cotangents\(\) left the user's model changed \(trace\(\)\): snapshot\['hooks'\] was 0, is 1",
    ),
    (KeptOnTheModel, "chain", "not thread-safe: .*it belongs to the batch of another thread"),
    (SoftmaxOn, "probable", "predict of image 0 alone: softmax: .*these are probabilities: cut the softmax off"),
    (SoftmaxUnseen, "probable", "output_activation is None, but the network ends in 'softmax'; cut it off"),
    (CotangentsTwice, "chain", r"cotangents was called 2 times in one trace\(\); call it once"),
    (CotangentsTwiceInResume, "chain", r"cotangents was called 2 times in one resume\(\); call it once"),
    (OneGradient, "chain", "1 gradients for 3 cotangents; return one for each"),
    (Float64, "chain", r"gradient at conv1: float64, not float32; convert it with astype"),
    (
        Tensors,
        "chain",
        "predict of image 0 alone: scores: a .* Tensor, not a NumPy array; convert it in the backend",
    ),
    (
        Swallowed,
        "chain",
        r"cotangents\(\) raised KeyError\('raised in cotangents'\), but trace\(\) suppressed it; let it propagate",
    ),
    (
        Wrapped,
        "chain",
        r"cotangents\(\) raised KeyError.* but trace\(\) raised RuntimeError\('the session failed'\) instead; let it propagate",
    ),
    (
        Sorted,
        "chain",
        r"activations\(\) of \['conv1', 'tanh1', .*returned \['conv1', 'conv2', .*in the requested order",
    ),
    (Mixed, "chain", "activations of relu2: .*(it is the value of conv1|shape)"),
    (Mixed, "residual", "activations of conv3: .*it is the value of conv1"),
    (Alphabetical, "residual", "layers are not in execution order: .* feeds .*, and is listed after it"),
    (Listed, "chain", r"layers \['conv1'\] are listed twice"),
    (DeclaresHvp, "chain", "'hvp' is declared in capabilities, but does not work: AttributeError"),
    (
        DeclaresResume,
        "chain",
        "'resume' is declared in capabilities, but does not work: NotImplementedError: one day",
    ),
    (DeclaresNonsense, "chain", r"unknown capabilities \['speed'\]; known: \['gradients', 'hvp', 'resume'\]"),
    (WritesToTheBatch, "chain", r"trace\(\) changed its batch; work on a copy"),
    (OneBuffer, "chain", r"the activations of trace\(\) changed in a later call: they are views of reused memory"),
    (
        SpoilsTheTrace,
        "residual",
        "resume with the unchanged value, after a resume with a replacement that changed the trace",
    ),
    (PredictSqueezed, "chain", r"predict of image 0 alone: scores: shape \(4,\), .*: the batch axis is missing"),
    (
        ActivationsSqueezed,
        "chain",
        r"activations of conv1 for one image: shape \(4, 8, 6\), .*: the batch axis is missing",
    ),
    (TraceSqueezed, "chain", "outputs of trace of row 0 alone: scores: shape .*: the batch axis is missing"),
    (OneTimesTwo, "chain", "predict of image 0 alone: scores: .*it is 2 times the expected value"),
    (OfTheBatch, "chain", "predict of a batch of images that are correct alone .* not depend on the others"),
    (
        OneBufferOfOutputs,
        "chain",
        r"the outputs of trace\(\) changed in a later call: they are views of reused memory",
    ),
    (
        PredictInOneBuffer,
        "chain",
        r"the outputs of predict\(\) changed in a later call: they are views of reused memory",
    ),
    (ActivationsInOneBuffer, "chain", r"the activations of activations\(\) changed in a later call"),
    (PredictWrites, "chain", r"predict\(\) changed its batch; work on a copy"),
    (TokensUnsaid, "tokens", r"tokens: Layer.layout is 'channels_first', but its values are tokens, \[N, C, T\]"),
    (TokensEverywhere, "chain", r"conv1: Layer.layout is 'tokens', but its values are a map, \[N, C, H, W\]"),
    (LayoutOfItsOwn, "chain", "pool: Layer.layout 'NCHW' is unknown; known: channels_first, channels_last, tokens"),
    (NoOutput, "chain", "scores: Layer.is_output is False; set it to True only for outputs"),
    (AllInner, "chain", "conv1: Layer.inner is True, but it is not part of another layer; set it to False"),
    (PoolLost, "chain", "pool: Layer.reaches_output is False, but a path leads to an output; set it to True"),
    (PoolTurned, "chain", r"pool: Layer.shape is \(4, 3, 4\), expected \(4, 4, 3\): the axes are exchanged"),
    (OfNoStep, "chain", r"entry: Layer.shape is \(3, 6, 8\), but activations\(\) returns \(3, 8, 6\) for each image"),
    (DeadAlias, "chain", "trace at conv1 by its alias 'first' failed: KeyError: 'first'"),
    (AnothersAlias, "chain", "activations of trace at tanh1 by its alias 'conv1': .*it is the value of conv1"),
    (LastListedFirst, "chain", "layers are not in execution order: conv1 feeds scores, and is listed after it"),
    (
        PredictKeepsItsBatch,
        "chain",
        "not thread-safe: .*predict: scores: .*it belongs to the batch of another thread",
    ),
    (ActivationsKeepTheirBatch, "chain", "not thread-safe: .*activations of .*the batch of another thread"),
    (
        HvpFirstVector,
        "probable",
        "product at conv1: .*it is the product of cotangent 1 and vector 0; use cotangent 1 and vector 1",
    ),
    (HvpFirstProduct, "probable", "hvp at conv1 returned 1 products for 2 cotangents; return one for each"),
    (HvpCotangentsTwice, "probable", r"cotangents was called 2 times in one hvp\(\); call it once"),
    (Backwards, "chain", "gradient at conv1: .*it belongs to cotangent 2, not to 0"),
    (Summed, "chain", "gradient at conv1: .*it is the sum over all cotangents"),
    (FirstForAll, "chain", "gradient at conv1: .*it belongs to cotangent 0, not to 1"),
    (WritesToCotangents, "chain", r"trace\(\) wrote to a cotangent that cotangents\(\) returned; work on a copy"),
    (
        FirstOutputAlone,
        "branch",
        "gradient at relu1: .*it is the gradient without output 'position'; use its cotangent too",
    ),
    (OutputsTurned, "branch", r"outputs are in the order \['position', 'kind'\], .*; a target reads the first"),
    (
        ThroughTheSoftmax,
        "probable",
        "gradient at conv1: .*it is the gradient of probabilities; the softmax is cut off",
    ),
    (
        InPlace,
        "chain",
        "activations of trace at conv2: .*it is the value of relu2, which reads it: was it overwritten in place",
    ),
    (
        ResumedOnce,
        "chain",
        r"the second resume\(\) of one trace failed: TypeError: .*keep Trace.state usable for any number of calls",
    ),
]


@pytest.mark.slow
@pytest.mark.parametrize(("backend", "network", "message"), WRONG, ids=lambda v: getattr(v, "__name__", None))
def test_the_message_for_a_wrong_backend(backend: Any, network: str, message: str) -> None:
    messages = failures(backend, NETWORKS[network])
    assert messages, "the suite passes it"
    assert any(re.search(message, text) for text in messages.values()), messages
