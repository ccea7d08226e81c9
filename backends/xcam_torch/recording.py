"""A module's layers for one input shape, and forward passes that are opened at one of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from xcam.contract import Array, Layer, Layout
from xcam.contract.caches import BoundedCache
from xcam.contract.rows import batch_slices
from xcam.errors import ModelError
from xcam_torch import inputs
from xcam_torch.calls import record
from xcam_torch.cut import Cut, Forward, not_called
from xcam_torch.gradients import hvp, vjp
from xcam_torch.guard import device_and_dtype, hooked, modules_of
from xcam_torch.outputs import first_float, float32
from xcam_torch.tail import Graph, Tail, captured

BYPASSES = 4
"""Tails whose bypass values are kept for one pass."""


class Recording:
    """See xcam.contract.recorded.Recording."""

    def __init__(
        self, module: nn.Module, name: str, shape: Sequence[int], layout: Layout | None, batch: int | None
    ) -> None:
        """Record `module` for inputs [N, *shape].

        Args:
            module: the module.
            name: its name, for messages.
            shape: of an input, without the batch.
            layout: of every layer, where the caller gives one.
            batch: the batch size that the module is fixed to; None: any.
        """
        self._module, self._name, self.batch = module, name, batch
        self._structure = self._modules()
        noise = np.random.default_rng(0).normal(size=(max(batch or 2, 2), *shape)).astype(np.float32)
        if not inputs.decide(module, self.tensor(noise[:2]), batch) and batch is None:
            raise ModelError(f"{name} takes one image at a time with its other inputs; give one")
        self.calls, self.output_activations = record(module, self.tensor(noise[: batch or 2]), layout)
        self.layers: Mapping[str, Layer] = {name: call.layer for name, call in self.calls.items()}
        self._forward = Forward(module, name, self.output_activations, self.calls)
        self._graphs: BoundedCache[int, Graph | None] = BoundedCache()

    @property
    def current(self) -> bool:
        """Whether the module still has the parts that were recorded."""
        return self._structure == self._modules()

    def predict(self, x: Array) -> Mapping[str, Array]:
        """See xcam.contract.recorded.Recording."""
        outputs = [self._forward(batch) for batch in self._batches(self.tensor(x))]
        return {name: np.concatenate([float32(part[name]) for part in outputs]) for name in self.output_activations}

    def values(self, x: Array, layers: Sequence[str]) -> list[Array]:
        """See xcam.contract.recorded.Recording."""
        calls = [self.calls[name] for name in layers]
        values: list[list[Array]] = [[] for _ in calls]
        count: dict[nn.Module, int] = {}

        def after(module: nn.Module, value: Any) -> None:
            index = count[module] = count.get(module, -1) + 1
            for call, batches in zip(calls, values, strict=True):
                if call.module is module and call.index == index:
                    tensor = first_float(value)
                    assert tensor is not None
                    batches.append(float32(tensor))  # a copy: a later operation may overwrite it

        with hooked({call.module for call in calls}, after):
            for batch in self._batches(self.tensor(x)):
                count.clear()
                self._module(batch)
        for call, batches in zip(calls, values, strict=True):
            if not batches:
                raise not_called(call, 0)
        return [batches[0] if len(batches) == 1 else np.concatenate(batches) for batches in values]

    def forward(self, x: Array, layers: Sequence[str], differentiate: bool) -> ForwardPass:
        """See xcam.contract.recorded.Recording."""
        return self.cut(self.tensor(x), layers, {}, differentiate)

    def cut(
        self, x: Tensor, layers: Sequence[str], constants: Mapping[str, Tensor], differentiate: bool
    ) -> ForwardPass:
        """Run the whole module, opened at some layers, with given values of layers."""
        batches = self._batches(x)
        parts = {name: self._batches(value) for name, value in constants.items()}
        opened = [self.calls[name] for name in layers]
        cuts = [
            self._forward.cut(batch, opened, {name: part[k] for name, part in parts.items()}, differentiate)
            for k, batch in enumerate(batches)
        ]
        return ForwardPass(self, x, cuts)

    def graph(self, x: Tensor) -> Graph | None:
        """Return the captured graph; None where the module cannot be captured."""

        def capture() -> Graph | None:
            return None if self.batch else captured(self._forward, x)

        return self._graphs.get(0, capture, valid=lambda graph: graph is None or graph.current)

    def tensor(self, x: Array) -> Tensor:
        """Return an array as a tensor of the module's device and type."""
        device, dtype = device_and_dtype(self._module)
        with torch.inference_mode(False):  # a tensor created in inference mode could not be differentiated
            return torch.tensor(np.ascontiguousarray(x), device=device).to(dtype)

    def _batches(self, x: Tensor) -> list[Tensor]:
        return [x[rows] for rows in batch_slices(len(x), self.batch, self._name)]

    def _modules(self) -> tuple[int, ...]:
        return tuple(map(id, modules_of(self._module)))


class ForwardPass:
    """See xcam.contract.recorded.ForwardPass."""

    def __init__(self, recording: Recording, x: Tensor, cuts: Sequence[Cut]) -> None:
        self._recording, self._x = recording, x
        self._values = {name: [cut.values[name] for cut in cuts] for name in cuts[0].values}
        with torch.enable_grad():
            self._outputs = {
                name: torch.cat([cut.outputs[name] for cut in cuts]) if len(cuts) > 1 else output
                for name, output in cuts[0].outputs.items()
            }
        self._inner: BoundedCache[Tail, list[Tensor]] = BoundedCache(BYPASSES)
        """The values that tails take in addition to that of the layer."""

    @property
    def outputs(self) -> Mapping[str, Array]:
        """See xcam.contract.recorded.ForwardPass."""
        return {name: float32(output) for name, output in self._outputs.items()}

    def value(self, layer: str) -> Array:
        """See xcam.contract.recorded.ForwardPass."""
        return _concatenated(self._values[layer])

    def gradients(self, cotangents: Sequence[Mapping[str, Array]]) -> Iterator[Mapping[str, Array]]:
        """See xcam.contract.recorded.ForwardPass."""
        for gradients in vjp(self._outputs, self._values, cotangents):
            yield {name: _concatenated(parts) for name, parts in gradients.items()}

    def hvp(self, layer: str, cotangents: Sequence[Mapping[str, Array]], vectors: Sequence[Array]) -> Iterator[Array]:
        """See xcam.contract.recorded.SecondOrderPass."""
        leaves = self._values[layer]
        for cotangent, vector in zip(cotangents, vectors, strict=True):
            parts = torch.split(self._recording.tensor(vector), [len(leaf) for leaf in leaves])
            pairs = zip(leaves, parts, strict=True)
            yield _concatenated([hvp(self._outputs, leaf, cotangent, part) for leaf, part in pairs])

    def resumed(
        self, values: Mapping[str, Array], rows: list[int], at: Sequence[str], differentiate: bool
    ) -> ForwardPass:
        """Run the captured tail where there is one, else the whole module."""
        recording, calls = self._recording, self._recording.calls
        constants = {name: recording.tensor(value) for name, value in values.items()}
        by_value = {calls[name].value: name for name in constants}
        same = {name: name if name in constants else by_value.get(calls[name].value, name) for name in at}
        opened, pick = list(dict.fromkeys(same.values())), torch.as_tensor(rows, device=self._x.device)
        graph = recording.graph(self._x)
        tail = graph.tail(list(constants), opened, differentiate, self._x) if graph else None
        if tail is None:
            result = recording.cut(self._x[pick], opened, constants, differentiate)
        else:
            inner = tail.rows(self._inner.get(tail, lambda: tail.inner(self._x)), self._x, pick)
            outputs, results = tail([*constants.values()], inner)
            result = ForwardPass(recording, self._x[pick], [Cut(results, outputs)])
        result._values = {name: result._values[key] for name, key in same.items()}
        return result


def _concatenated(tensors: Sequence[Tensor]) -> Array:
    return float32(tensors[0]) if len(tensors) == 1 else np.concatenate([float32(tensor) for tensor in tensors])
