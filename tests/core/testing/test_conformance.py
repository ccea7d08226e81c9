"""The suite that checks backends, checked: a right one passes; of each wrong one it says what is wrong, in words."""

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


TESTS = [name for name in dir(Conformance) if name.startswith("test_") and name not in vars(Abilities)]


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


def test_second_derivatives_that_are_right_pass() -> None:
    assert failures(Hvp, NETWORKS["probable"]) == {}


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

    def _finish(self, layer: str, values: Any, cotangents: Any) -> Any:
        trace = super()._finish(layer, values, cotangents)
        return replace(
            trace,
            activations=np.moveaxis(trace.activations, 1, -1),
            gradients=[np.moveaxis(g, 1, -1) for g in trace.gradients],
        )


class TokensLast(Mine):
    """As transformers have it."""

    def _finish(self, layer: str, values: Any, cotangents: Any) -> Any:
        trace = super()._finish(layer, values, cotangents)
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
        found = {node: np.asarray(v[name]) for name, node in self.logits.items()}
        for node in reversed(self.graph.nodes):
            if node.name in found and node.name in self._behind(layer) - {layer}:
                gradients = node.backward(found[node.name], *(values[name] for name in node.inputs))
                found |= {
                    name: g for name, g in zip(node.inputs, gradients, strict=True) if name in self._behind(layer)
                }
        return found[layer].astype(np.float32)


class SkipDropped(Mine):
    """`resume` keeps nothing besides the layer."""

    def resume(self, trace: Any, activations: Any, rows: Any = None, cotangents: Any = None) -> Any:
        layer, values = trace.state
        behind = self._behind(layer)
        kept = {
            name: np.zeros((len(activations), *value.shape[1:]), np.float32)
            for name, value in values.items()
            if name not in behind
        }
        return self._finish(layer, self.graph.run(kept | {layer: activations}), cotangents)


class SkipStale(Mine):
    """`resume` changes what the next node reads, and no other."""

    def resume(self, trace: Any, activations: Any, rows: Any = None, cotangents: Any = None) -> Any:
        layer, values = trace.state
        rows = range(len(activations)) if rows is None else rows
        rows = [0] * len(activations) if len(values["x"]) == 1 else rows
        kept = {name: value[rows] for name, value in values.items() if name not in self._behind(layer)}
        kept |= {layer: activations}
        first = next((n for n in self.graph.nodes if layer in n.inputs), None)
        if first is not None:
            kept[first.name] = first.forward(*(kept[name] for name in first.inputs))
        run = self.graph.run(kept | {layer: values[layer][rows]})
        return self._finish(layer, run | {layer: activations}, cotangents)


class RowsIgnored(Mine):
    def resume(self, trace: Any, activations: Any, rows: Any = None, cotangents: Any = None) -> Any:
        n = len(trace.activations)
        return super().resume(trace, activations, [k % n for k in range(len(activations))], cotangents)


class Unchanged(Mine):
    def resume(self, trace: Any, activations: Any, rows: Any = None, cotangents: Any = None) -> Any:
        layer, values = trace.state
        own = super().resume(trace, activations, rows, None)
        rows = [0] * len(activations) if rows is None and len(values["x"]) == 1 else rows
        whole = super().resume(trace, values[layer] if rows is None else values[layer][rows], rows, cotangents)
        return replace(whole, activations=own.activations)


class ModeChanged(Mine):
    def _finish(self, layer: str, values: Any, cotangents: Any) -> Any:
        self.native.mode["training"] = False
        return super()._finish(layer, values, cotangents)


class ModeChangedByPredict(Mine):
    def predict(self, x: Any) -> Any:
        self.native.mode["training"] = False
        return super().predict(x)


class HookLeft(Mine):
    """Put back, and not where an exception passes."""

    def _finish(self, layer: str, values: Any, cotangents: Any) -> Any:
        self.native.mode["hooks"] += 1
        trace = super()._finish(layer, values, cotangents)
        self.native.mode["hooks"] -= 1
        return trace


class KeptOnTheModel(Mine):
    """What one thread keeps, another overwrites."""

    def _finish(self, layer: str, values: Any, cotangents: Any) -> Any:
        self.kept = values
        return super()._finish(layer, values, cotangents)

    def _gradient(self, layer: str, values: Any, v: Any) -> Any:
        return super()._gradient(layer, self.kept, v)


class SoftmaxOn(Mine):
    """It says that it cut the softmax off."""

    def __init__(self, native: Native) -> None:
        super().__init__(native)
        self.logits = {name: name for name in self.logits}


class SoftmaxUnseen(Mine):
    def __init__(self, native: Native) -> None:
        super().__init__(native)
        self.logits, self.output_activation = {name: name for name in self.logits}, None


class SeedsTwice(Mine):
    def trace(self, x: Any, layer: str, cotangents: Any = None) -> Any:
        if cotangents:
            cotangents(self.predict(x))
        return super().trace(x, layer, cotangents)


class SeedsTwiceInResume(Mine):
    def resume(self, trace: Any, activations: Any, rows: Any = None, cotangents: Any = None) -> Any:
        if cotangents:
            super().resume(trace, activations, rows, cotangents)
        return super().resume(trace, activations, rows, cotangents)


class OneGradient(Mine):
    def _finish(self, layer: str, values: Any, cotangents: Any) -> Any:
        trace = super()._finish(layer, values, cotangents)
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
    def _finish(self, layer: str, values: Any, cotangents: Any) -> Any:
        try:
            return super()._finish(layer, values, cotangents)
        except KeyError:
            return super()._finish(layer, values, None)


class Wrapped(Mine):
    def _finish(self, layer: str, values: Any, cotangents: Any) -> Any:
        try:
            return super()._finish(layer, values, cotangents)
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
    def trace(self, x: Any, layer: str, cotangents: Any = None) -> Any:
        found = super().trace(x.copy(), layer, cotangents)
        x /= 2
        return found


class OneBuffer(Mine):
    """Activations are handed over in memory that the next call writes to."""

    buffer: Any = None

    def _finish(self, layer: str, values: Any, cotangents: Any) -> Any:
        trace = super()._finish(layer, values, cotangents)
        if self.buffer is None or self.buffer.shape != trace.activations.shape:
            self.buffer = np.empty_like(trace.activations)
        self.buffer[...] = trace.activations
        return replace(trace, activations=self.buffer)


class SpoilsTheTrace(Mine):
    def resume(self, trace: Any, activations: Any, rows: Any = None, cotangents: Any = None) -> Any:
        found = super().resume(trace, activations, rows, cotangents)
        if rows is None:
            trace.state[1].update((name, value * 2) for name, value in trace.state[1].items())
        return found


def squeezed(outputs: Any) -> Any:
    """As a user who has one picture likes it."""
    return np.squeeze(outputs) if isinstance(outputs, np.ndarray) else outputs


class PredictSqueezed(Mine):
    def predict(self, x: Any) -> Any:
        return squeezed(super().predict(x))


class ActivationsSqueezed(Mine):
    def activations(self, x: Any, layers: Any) -> Any:
        return {name: np.squeeze(a) for name, a in super().activations(x, layers).items()}


class TraceSqueezed(Mine):
    def _outputs(self, values: Any) -> Any:
        return squeezed(super()._outputs(values))


class OneTimesTwo(Mine):
    """The right shape, and wrong values, where the batch is one picture."""

    def predict(self, x: Any) -> Any:
        return super().predict(x) * (2 if len(x) == 1 else 1)


class OfTheBatch(Mine):
    """As a batch normalisation that goes on learning."""

    def predict(self, x: Any) -> Any:
        return super().predict((x - 0.1 * x.mean(axis=0) if len(x) > 1 else x).astype(np.float32))


class OneBufferOfOutputs(Mine):
    buffer: Any = None

    def _outputs(self, values: Any) -> Any:
        said: Any = super()._outputs(values)
        if self.buffer is None or self.buffer.shape != said.shape:
            self.buffer = np.empty_like(said)
        self.buffer[...] = said
        return self.buffer


class PredictInOneBuffer(OneBufferOfOutputs):
    def _finish(self, layer: str, values: Any, cotangents: Any) -> Any:
        trace = super()._finish(layer, values, cotangents)
        return replace(trace, outputs=trace.outputs.copy())


class ActivationsInOneBuffer(Mine):
    buffers: Any = None

    def activations(self, x: Any, layers: Any) -> Any:
        self.buffers = self.buffers or {}
        found = super().activations(x, layers)
        for name, value in found.items():
            if name not in self.buffers or self.buffers[name].shape != value.shape:
                self.buffers[name] = np.empty_like(value)
            self.buffers[name][...] = value
        return {name: self.buffers[name] for name in found}


class PredictWrites(Mine):
    def predict(self, x: Any) -> Any:
        found = super().predict(x)
        x *= 2
        return found


class Relisted(Mine):
    """Layers whose facts are others."""

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


class OfNoStep(Mine):
    """A layer that is no step of the suite's network, as frameworks have them, with another shape."""

    def __init__(self, native: Native) -> None:
        super().__init__(native)
        self.layers = [replace(self.layers[0], name="entry", shape=(3, 6, 8)), *self.layers]

    def activations(self, x: Any, layers: Any) -> Any:
        found = super().activations(x, [name for name in layers if name != "entry"])
        return {name: x if name == "entry" else found[name] for name in layers}


class LastListedFirst(Mine):
    """In order but for the layers that nobody explains."""

    def __init__(self, native: Native) -> None:
        super().__init__(native)
        self.layers = [self.layers[-1], *self.layers[:-1]]


class PredictKeepsItsBatch(Mine):
    def predict(self, x: Any) -> Any:
        self.x = x
        time.sleep(1e-4)  # as a framework's own code lets other threads run
        return super().predict(self.x)


class ActivationsKeepTheirBatch(Mine):
    def activations(self, x: Any, layers: Any) -> Any:
        self.x = x
        time.sleep(1e-4)
        return super().activations(self.x, layers)


class Hvp(Mine):
    """By differences of the gradient: right, where these are."""

    capabilities = frozenset({"gradients", "resume", "hvp"})

    def hvp(self, x: Any, layer: str, cotangents: Any, vectors: Any) -> Any:
        trace = self.trace(x, layer)
        given, step = cotangents(trace.outputs), 1e-2

        def slope(v: Any, vector: Any, side: int) -> Any:
            put = trace.activations + np.float32(side * step) * vector
            return self.resume(trace, put, range(len(x)), lambda _: [v]).gradients[0]

        return [
            ((slope(v, vector, 1) - slope(v, vector, -1)) / np.float32(2 * step)).astype(np.float32)
            for v, vector in zip(given, vectors, strict=True)
        ]


class HvpFirstVector(Hvp):
    def hvp(self, x: Any, layer: str, cotangents: Any, vectors: Any) -> Any:
        return super().hvp(x, layer, cotangents, [vectors[0]] * len(vectors))


class HvpFirstProduct(Hvp):
    def hvp(self, x: Any, layer: str, cotangents: Any, vectors: Any) -> Any:
        return super().hvp(x, layer, cotangents, vectors)[:1]


class HvpSeedsTwice(Hvp):
    def hvp(self, x: Any, layer: str, cotangents: Any, vectors: Any) -> Any:
        cotangents(self.predict(x))
        return super().hvp(x, layer, cotangents, vectors)


class Gradients(Mine):
    """What comes of the gradients of all cotangents."""

    def made(self, gradients: Any) -> Any:
        raise NotImplementedError

    def _finish(self, layer: str, values: Any, cotangents: Any) -> Any:
        trace = super()._finish(layer, values, cotangents)
        return replace(trace, gradients=self.made(trace.gradients)) if trace.gradients else trace


class Backwards(Gradients):
    def made(self, gradients: Any) -> Any:
        return gradients[::-1]


class Summed(Gradients):
    def made(self, gradients: Any) -> Any:
        return [sum(gradients)] * len(gradients)


class FirstForAll(Gradients):
    def made(self, gradients: Any) -> Any:
        return [gradients[0]] * len(gradients)


class WritesToCotangents(Mine):
    def _gradient(self, layer: str, values: Any, v: Any) -> Any:
        gradient = super()._gradient(layer, values, v)
        for array in v.values():
            array *= 3
        return gradient


class FirstOutputAlone(Mine):
    def _gradient(self, layer: str, values: Any, v: Any) -> Any:
        kept = {name: value * (name == next(iter(self.logits))) for name, value in v.items()}
        return super()._gradient(layer, values, kept)


class OutputsTurned(Mine):
    def _outputs(self, values: Any) -> Any:
        return dict(reversed(super()._outputs(values).items()))


class ThroughTheSoftmax(Mine):
    """Logits are given, and probabilities differentiated."""

    def _gradient(self, layer: str, values: Any, v: Any) -> Any:
        p, ((name, v),) = values["softmax"], v.items()
        return super()._gradient(layer, values, {name: p * (v - (v * p).sum(axis=1, keepdims=True))})


class InPlace(Mine):
    """A ReLU writes over what a trace keeps of the layer before it."""

    def _finish(self, layer: str, values: Any, cotangents: Any) -> Any:
        trace = super()._finish(layer, values, cotangents)
        over = any(node.kind == "ReLU" and layer in node.inputs for node in self.graph.nodes)
        return replace(trace, activations=np.maximum(trace.activations, 0)) if over else trace


class ResumedOnce(Mine):
    def resume(self, trace: Any, activations: Any, rows: Any = None, cotangents: Any = None) -> Any:
        found = super().resume(trace, activations, rows, cotangents)
        trace.state = None
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
        r"an exception in cotangents left the user's model changed \(trace\(\)\): snapshot\['hooks'\] was 0, is 1",
    ),
    (KeptOnTheModel, "chain", "not safe for threads: .*it belongs to another thread's batch"),
    (SoftmaxOn, "probable", "predict of picture 0 alone: softmax: .*these are probabilities: a softmax is still on"),
    (SoftmaxUnseen, "probable", "activation is None; the network ends in 'softmax': cut it off"),
    (SeedsTwice, "chain", r"cotangents was called 2 times in one trace\(\); call it once"),
    (SeedsTwiceInResume, "chain", r"cotangents was called 2 times in one resume\(\); call it once"),
    (OneGradient, "chain", "1 gradients for 3 cotangents; one for each"),
    (Float64, "chain", r"gradient at conv1: float64, not float32; end with astype"),
    (
        Tensors,
        "chain",
        "predict of picture 0 alone: scores: a .* Tensor, not a NumPy array; convert it in the backend",
    ),
    (Swallowed, "chain", r"cotangents raised KeyError\('raised in cotangents'\), and trace\(\) swallowed it"),
    (
        Wrapped,
        "chain",
        r"cotangents raised KeyError.* and trace\(\) raised RuntimeError\('the session failed'\) instead; let it",
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
    (OneBuffer, "chain", r"the activations of trace\(\) changed in a later call: they are views of memory"),
    (
        SpoilsTheTrace,
        "residual",
        "resume of itself, behind a resume on changed values: the first one spoiled the trace",
    ),
    (PredictSqueezed, "chain", r"predict of picture 0 alone: scores: shape \(4,\), .*: the batch's axis is gone"),
    (ActivationsSqueezed, "chain", r"activations of conv1 for one picture: shape \(4, 8, 6\), .*: the batch's axis"),
    (TraceSqueezed, "chain", "outputs of trace of row 0 alone: scores: shape .*: the batch's axis is gone"),
    (OneTimesTwo, "chain", "predict of picture 0 alone: scores: .*it is 2 times what it should be"),
    (OfTheBatch, "chain", "predict of a batch, whose pictures alone are right .* not depend on the others"),
    (OneBufferOfOutputs, "chain", r"the outputs of trace\(\) changed in a later call: they are views of memory"),
    (PredictInOneBuffer, "chain", r"the outputs of predict\(\) changed in a later call: they are views of memory"),
    (ActivationsInOneBuffer, "chain", r"the activations of activations\(\) changed in a later call"),
    (PredictWrites, "chain", r"predict\(\) changed the batch that it was given"),
    (TokensUnsaid, "tokens", r"tokens: Layer.layout is 'channels_first', and its values are tokens, \[N, C, T\]"),
    (TokensEverywhere, "chain", r"conv1: Layer.layout is 'tokens', and its values are a map, \[N, C, H, W\]"),
    (LayoutOfItsOwn, "chain", "pool: Layer.layout 'NCHW' is unknown; known: channels_first, channels_last, tokens"),
    (NoOutput, "chain", "scores: Layer.is_output is False; it is True of outputs"),
    (AllInner, "chain", "conv1: Layer.inner is True, and it is a layer of its own"),
    (PoolLost, "chain", "pool: Layer.reaches_output is False, and it does"),
    (PoolTurned, "chain", r"pool: Layer.shape is \(4, 3, 4\), expected \(4, 4, 3\): the axes look exchanged"),
    (OfNoStep, "chain", r"entry: Layer.shape is \(3, 6, 8\), activations\(\) gives \(3, 8, 6\) for each picture"),
    (DeadAlias, "chain", "trace at conv1 by its alias 'first' failed: KeyError: 'first'"),
    (AnothersAlias, "chain", "activations of trace at tanh1 by its alias 'conv1': .*it is the value of conv1"),
    (LastListedFirst, "chain", "layers are not in execution order: conv1 feeds scores, and is listed behind it"),
    (
        PredictKeepsItsBatch,
        "chain",
        "not safe for threads: .*predict: scores: .*it belongs to another thread's batch",
    ),
    (ActivationsKeepTheirBatch, "chain", "not safe for threads: .*activations of .*another thread's batch"),
    (HvpFirstVector, "probable", "product at conv1: .*it is the product of cotangent 1 and vector 0, not of 1 and 1"),
    (HvpFirstProduct, "probable", "hvp at conv1 gives 1 products for 2 cotangents; one for each"),
    (HvpSeedsTwice, "probable", r"cotangents was called 2 times in one hvp\(\); call it once"),
    (Backwards, "chain", "gradient at conv1: .*it belongs to cotangent 2, not to 0"),
    (Summed, "chain", "gradient at conv1: .*it is the sum over all cotangents"),
    (FirstForAll, "chain", "gradient at conv1: .*it belongs to cotangent 0, not to 1"),
    (WritesToCotangents, "chain", r"trace\(\) wrote to a cotangent that cotangents returned; work on a copy"),
    (
        FirstOutputAlone,
        "branch",
        "gradient at relu1: .*it is what comes without output 'place': use its cotangent too",
    ),
    (OutputsTurned, "branch", r"outputs are in the order \['place', 'kind'\], .*; a target reads the first"),
    (
        ThroughTheSoftmax,
        "probable",
        "gradient at conv1: .*it is the gradient of probabilities: the softmax is cut off",
    ),
    (InPlace, "chain", "activations of trace at conv2: .*it is the value of relu2, which reads it: was it written"),
    (ResumedOnce, "chain", r"the second resume\(\) of one trace failed: TypeError: .*Trace.state must serve many"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("made", "network", "words"), WRONG, ids=lambda v: getattr(v, "__name__", None))
def test_a_wrong_backend_is_told_what_is_wrong(made: Any, network: str, words: str) -> None:
    found = failures(made, NETWORKS[network])
    assert found, "the suite passes it"
    assert any(re.search(words, message) for message in found.values()), found
