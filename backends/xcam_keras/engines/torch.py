"""A Keras model on torch: the model runs unchanged, its layer calls are recorded, and the tail is differentiated.

Gradients are off before the layer. Its value becomes a leaf, from which torch's own graph starts. `.grad` of the user's
parameters is never changed. xcam_keras.engines.torch_replay saves `resume` the calls before the layer.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import keras
import numpy as np
import torch
from torch import Tensor

from xcam.contract.caches import BoundedCache
from xcam.contract.graphs import reachable
from xcam.contract.messages import out_of_memory
from xcam.contract.outputs import main_first
from xcam.contract.recorded import NoGradient
from xcam.contract.types import Array, Layer, Layout
from xcam_keras import calls
from xcam_keras.calls import Key
from xcam_keras.engines import standard_device
from xcam_keras.engines.torch_graph import (
    EndActivation,
    Flow,
    ancestors,
    differentiable,
    float32,
    in_graph,
    is_float,
    node_of,
    replaced,
    token_shares,
)
from xcam_keras.engines.torch_replay import Bypass, Replay, planned

BYPASSES = 4
"""Layers whose bypass values are kept for one pass."""
BATCH = 2
"""The batch size of the pass that lists the layers."""


def device_name(device: str | None) -> str | None:
    """Return torch's name of a device: `cpu`, `gpu:1` → `cuda:1`. Raises InputError."""
    if device is None:
        return None
    known = ["cpu:0", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
    known += ["mps:0"] if torch.backends.mps.is_available() else []
    name = standard_device(device, {"gpu": "cuda"}, known, "torch")
    return name if name.startswith("cuda") else name.partition(":")[0]


@contextlib.contextmanager
def running(device: str | None) -> Iterator[None]:
    """Create tensors on the device; exhausted memory is a MemoryError."""
    scope = keras.device(device) if device else contextlib.nullcontext()
    with out_of_memory(torch.OutOfMemoryError, signs=["not enough memory"]), scope:
        yield


def random_state() -> contextlib.AbstractContextManager[None]:
    """See xcam_keras.engines: layers draw from torch's global generators."""
    devices = range(torch.cuda.device_count())
    context: contextlib.AbstractContextManager[None] = torch.random.fork_rng(devices)
    return context


class Recording:
    """See xcam.contract.recorded.Recording: the layer calls of one pass over noise."""

    current = True

    def __init__(
        self, model: keras.Model, shape: Sequence[int], dtype: str, layout: Layout, batch: int | None = None
    ) -> None:
        self.batch = batch
        self.model, self.dtype = model, getattr(torch, dtype)
        self.device = next((v.value.device for v in model.variables), None)
        self.noise = np.random.default_rng(0).normal(size=(batch or BATCH, *shape))
        self._modules = calls.torch_modules(model)
        if not model.built:
            self._call(self.tensor(self.noise[:1]))
        self._replays: BoundedCache[str, Replay | None] = BoundedCache()
        self._watch_end = True
        with Flow() as flow:
            outputs, logits, seen = self._observed(flow)
        self.output_activations = main_first(
            {name: kind for name, (_, kind) in logits.items()},
            {name: tensor.shape for name, (tensor, _) in logits.items()},
            {name: node_of(tensor) if tensor.requires_grad else None for name, (tensor, _) in logits.items()},
            lambda node: reachable([node], lambda node: [n for n, _ in node.next_functions if n is not None]),
        )
        self._watch_end = any(self.output_activations.values())
        named = calls.named(seen, is_float)
        self.keys: dict[str, Key] = {name: call.key for name, call in named.items()}
        numbers: dict[int, int] = {}
        self.values_of = {name: numbers.setdefault(id(call.value), len(numbers)) for name, call in named.items()}
        """A number that layers with one value have in common: a container and its last part."""
        ends = {name: logits[name][0] for name in self.output_activations}
        self.layers = _described(named, {id(t) for t in outputs.values()}, ends, flow, layout, self.noise.shape)

    def tensor(self, x: Array) -> Tensor:
        """Return the input as the model takes it."""
        return torch.as_tensor(np.array(x), device=self.device).to(self.dtype)  # a copy: `x` may be read-only

    def predict(self, x: Array) -> dict[str, Array]:
        """See xcam.contract.recorded.Recording."""
        with torch.no_grad():
            return {name: float32(t) for name, t in self._forward(self.tensor(x), None).items()}

    def values(self, x: Array, layers: Sequence[str]) -> list[Array]:
        """See xcam.contract.recorded.Recording."""
        keys = [self.keys[name] for name in layers]
        values = self._values(self.tensor(x), keys, lambda value: float32(calls.first(value, is_float)))
        return [values[key] for key in keys]

    def forward(self, x: Array, layers: Sequence[str], differentiate: bool) -> ForwardPass:
        """See xcam.contract.recorded.Recording."""
        for layer in layers if differentiate else ():
            if not self.layers[layer].differentiable:
                raise NoGradient(layer)
        source = self.tensor(x)
        return ForwardPass(self, source, *self.cut(source, layers, {}, differentiate))

    def cut(
        self,
        x: Tensor,
        names: Sequence[str],
        constants: Mapping[str, Tensor],
        differentiate: bool,
        skip: calls.Skip | None = None,
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Run a pass, cut open at some layers.

        Args:
            x: the input.
            names: the layers.
            constants: values of layers, constants instead of their own.
            differentiate: whether gradients lead from the outputs to the layers' values.
            skip: see xcam_keras.calls.watching.

        Returns:
            The outputs by name, and the layers' values by name.

        Raises:
            NoGradient: gradients are asked for, and no output depends on the layers.
        """
        values: dict[str, Tensor] = {}
        opened = {self.keys[name]: name for name in (*names, *constants)}

        def note(call: calls.Call) -> Any:
            name = opened.get(call.key)
            if name is None:
                return call.value
            value = calls.first(call.value, is_float)
            current = constants[name].to(value).detach() if name in constants else value
            if name in names and differentiate:
                if not current.requires_grad or not any(t.requires_grad for t in values.values()):
                    current = current.detach().requires_grad_()
                torch.set_grad_enabled(True)  # from here until no_grad ends
            values[name] = current.clone() if current.requires_grad and not current.is_leaf else current
            return replaced(call.value, value, values[name].clone())  # a copy: the tail may write into it

        with torch.no_grad():
            outputs = self._forward(x, note, skip)
        if differentiate and not any(t.requires_grad for t in outputs.values()):
            raise NoGradient(names[0])
        return outputs, {name: values[name] for name in names}

    def replay(self, name: str) -> Replay | None:
        """Return the replay for a layer; None where all calls are needed, or its results differ from the whole model's."""
        return self._replays.get(name, lambda: self._tested_replay(name))

    def bypass(self, x: Tensor, replay: Replay) -> Bypass:
        """Return the values of the calls before the cut that the tail reads, for the batch `x`."""
        if not replay.read:
            return {}
        return self._values(x, replay.read, lambda value: keras.tree.map_structure(torch.clone, value))

    def _values(self, x: Tensor, keys: Collection[Key], convert: Callable[[Any], Any]) -> dict[Key, Any]:
        """Return the converted return values of some calls, from one pass."""
        values: dict[Key, Any] = {}

        def note(call: calls.Call) -> Any:
            if call.key in keys:
                values[call.key] = convert(call.value)
            return call.value

        with torch.no_grad():
            self._forward(x, note)
        return values

    def _observed(
        self, flow: Flow | None = None
    ) -> tuple[dict[str, Tensor], dict[str, tuple[Tensor, str | None]], list[calls.Call]]:
        """Run a pass over noise with torch's graph; return the outputs, their logits and activations, and every call."""
        seen: list[calls.Call] = []

        def note(call: calls.Call) -> Any:
            seen.append(replace(call, value=keras.tree.map_structure(in_graph, call.value)))
            return seen[-1].value

        with torch.enable_grad(), calls.watching(note), EndActivation() as end:
            noise = self.tensor(self.noise)
            if flow is not None:
                flow.source = noise
            outputs = self._outputs(noise)
            return outputs, {name: end.logits(output) for name, output in outputs.items()}, seen

    def _tested_replay(self, name: str) -> Replay | None:
        try:
            _, logits, seen = self._observed()
            replay = planned(self.keys[name], seen, [t for t, _ in logits.values()], BATCH)
            return replay if replay is not None and self._agrees(name, replay) else None
        except MemoryError:
            raise
        except Exception:  # a model may raise anything on NaN, and a layer may depend on being called
            return None

    def _agrees(self, name: str, replay: Replay) -> bool:
        """Return whether a replay gives the whole model's outputs, for a changed value and rows in another order."""
        x = self.tensor(self.noise)
        rows = [1, 0, 1]
        value = self.cut(x[rows], [name], {}, False)[1][name]
        changed = value * torch.rand(value.shape, generator=torch.Generator().manual_seed(0)).to(value)
        expected, _ = self.cut(x[rows], [], {name: changed}, False)
        outputs, _ = self.cut(x[rows], [], {name: changed}, False, replay.skip(self.bypass(x, replay), rows))
        return all(
            torch.allclose(outputs[name], output, rtol=1e-3, atol=1e-4 * float(output.abs().max()))
            for name, output in expected.items()
        )

    def _forward(self, x: Tensor, note: calls.Note | None, skip: calls.Skip | None = None) -> dict[str, Tensor]:
        """Return the outputs of one pass by name, as logits where an activation is cut off."""
        with calls.watching(note, skip) if note else contextlib.nullcontext():
            if not self._watch_end:  # watching every function costs time
                return self._outputs(x)
            with EndActivation() as end:
                return {name: end.logits(output)[0] for name, output in self._outputs(x).items()}

    def _outputs(self, x: Tensor) -> dict[str, Tensor]:
        with keras.StatelessScope():  # variables that the layers assign do not change the model
            return calls.float_outputs(self.model, self._call(x), is_float)

    def _call(self, x: Tensor) -> Any:
        # Keras creates some tensors on its current device, wherever the weights are.
        device = keras.device(str(self.device)) if self.device else contextlib.nullcontext()
        with device, calls.modes_restored(self._modules):
            return self.model(x, training=False)


def _described(
    named: Mapping[str, calls.Call],
    returned: set[int],
    ends: Mapping[str, Tensor],
    flow: Flow,
    layout: Layout,
    shape: Sequence[int],
) -> dict[str, Layer]:
    """Return the layers of an observed pass.

    Args:
        named: its calls.
        returned: the ids of the tensors that the model returns.
        ends: the logits by output, the first of them that of the output that is explained.
        flow: the record of the pass.
        layout: layout of layers that do not declare their own.
        shape: shape of the input.
    """
    image = len(shape) == 4
    read = {output: flow.read_by(tensor) for output, tensor in ends.items()}
    reach = {
        output: {name for name, call in named.items() if id(call.value) in items or node_of(call.value) in items}
        for output, items in read.items()
    }
    tokens = {name: call.value for name, call in named.items() if calls.is_tokens(call.value.shape[1:], image)}
    shares = calls.token_shares(reach, [*tokens], lambda names: token_shares(ends, {n: tokens[n] for n in names}))
    with_gradient = differentiable([*ends.values()])
    last = returned | {id(tensor) for tensor in ends.values()}
    passed = flow.passed(next(iter(ends.values())))
    return {
        name: calls.described(
            name,
            call,
            call.value.shape[1:],
            layout,
            image,
            is_output=id(call.value) in last,
            leads_to=calls.leads_to(name, reach, shares),
            differentiable=node_of(call.value) in with_gradient,
            folds_batch=call.value.ndim > 2 and len(call.value) != shape[0],
            bypassed=flow.item(call.value) not in passed,
        )
        for name, call in named.items()
    }


class ForwardPass:
    """See xcam.contract.recorded.ForwardPass."""

    def __init__(
        self, recording: Recording, x: Tensor, outputs: dict[str, Tensor], values: Mapping[str, Tensor]
    ) -> None:
        self._recording, self._x, self._tensors, self._values = recording, x, outputs, dict(values)
        self._bypass: BoundedCache[str, Bypass] = BoundedCache(BYPASSES)
        """The values of the calls before a layer that its tail reads, by the layer."""
        self.outputs = {name: float32(t) for name, t in outputs.items()}

    def value(self, layer: str) -> Array:
        """See xcam.contract.recorded.ForwardPass."""
        return float32(self._values[layer])

    def gradients(self, cotangents: Sequence[Mapping[str, Array]]) -> Iterator[Mapping[str, Array]]:
        """See xcam.contract.recorded.ForwardPass."""
        outputs = {name: t for name, t in self._tensors.items() if t.requires_grad}
        paths = ancestors([*outputs.values()])
        for name, value in self._values.items():
            if node_of(value) not in paths:
                raise NoGradient(name)
        for cotangent in cotangents:
            v = [
                torch.as_tensor(np.array(cotangent[name]), device=t.device).to(t.dtype) for name, t in outputs.items()
            ]
            values = list(self._values.values())
            gradients = torch.autograd.grad(list(outputs.values()), values, v, retain_graph=True, allow_unused=True)
            yield {
                name: float32(torch.zeros_like(value) if gradient is None else gradient)
                for (name, value), gradient in zip(self._values.items(), gradients, strict=True)
            }

    def resumed(
        self, values: Mapping[str, Array], rows: list[int], at: Sequence[str], differentiate: bool
    ) -> ForwardPass:
        """See xcam.contract.recorded.ForwardPass."""
        recording, x = self._recording, self._x[rows]
        constants = {name: torch.as_tensor(np.array(v), device=recording.device) for name, v in values.items()}
        by_value = {recording.values_of[name]: name for name in constants}
        same = {name: name if name in constants else by_value.get(recording.values_of[name], name) for name in at}
        opened = list(dict.fromkeys(same.values()))
        earliest = min(constants, key=list(recording.keys).index)
        replay, skip = recording.replay(earliest), None
        if replay is not None and not any(recording.keys[name] in replay.ahead for name in opened):
            bypass = self._bypass.get(earliest, partial(recording.bypass, self._x, replay))
            skip = replay.skip(bypass, rows)
        outputs, tensors = recording.cut(x, opened, constants, differentiate, skip)
        return ForwardPass(recording, x, outputs, {name: tensors[key] for name, key in same.items()})
