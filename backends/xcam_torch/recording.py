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
from xcam_torch.calls import Call, record
from xcam_torch.cut import Cut, Forward, not_called
from xcam_torch.gradients import hvp, vjp
from xcam_torch.guard import device_and_dtype, hooked, modules_of
from xcam_torch.outputs import first_float, float32
from xcam_torch.tail import Tail, verified


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
        noise = np.random.default_rng(0).normal(size=(batch or 2, *shape)).astype(np.float32)
        self.calls, self.output_activations = record(module, self.tensor(noise), layout)
        self.layers: Mapping[str, Layer] = {name: call.layer for name, call in self.calls.items()}
        self._forward = Forward(module, name, self.output_activations)
        self._tails: BoundedCache[str, Tail | None] = BoundedCache()

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

    def forward(self, x: Array, layer: str, differentiate: bool) -> ForwardPass:
        """See xcam.contract.recorded.Recording."""
        return self.cut(self.tensor(x), self.calls[layer])

    def cut(self, x: Tensor, call: Call, replacement: Tensor | None = None) -> ForwardPass:
        """Run the whole module, opened at a call, with an optional replacement of the layer's value."""
        batches = self._batches(x)
        replacements = [None] * len(batches) if replacement is None else self._batches(replacement)
        cuts = [self._forward.cut(batch, call, value) for batch, value in zip(batches, replacements, strict=True)]
        return ForwardPass(self, call, x, cuts)

    def tail(self, x: Tensor, call: Call) -> Tail | None:
        """Return the captured tail behind a call; None where the module cannot be captured."""

        def capture() -> Tail | None:
            return None if self.batch else verified(self._forward, x, call)

        return self._tails.get(call.layer.name, capture, valid=lambda tail: tail is None or tail.fits(self._module))

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

    def __init__(self, recording: Recording, call: Call, x: Tensor, cuts: Sequence[Cut]) -> None:
        self._recording, self._call, self._x = recording, call, x
        self._leaves = [cut.leaf for cut in cuts]
        with torch.enable_grad():
            self._outputs = {
                name: torch.cat([cut.outputs[name] for cut in cuts]) if len(cuts) > 1 else output
                for name, output in cuts[0].outputs.items()
            }
        self._bypass: tuple[Tail, list[Tensor]] | None = None
        """The tail that was used last, and the bypass values."""

    @property
    def outputs(self) -> Mapping[str, Array]:
        """See xcam.contract.recorded.ForwardPass."""
        return {name: float32(output) for name, output in self._outputs.items()}

    @property
    def value(self) -> Array:
        """See xcam.contract.recorded.ForwardPass."""
        return _concatenated(self._leaves)

    def gradients(self, cotangents: Sequence[Mapping[str, Array]]) -> Iterator[Array]:
        """See xcam.contract.recorded.ForwardPass."""
        return map(_concatenated, vjp(self._outputs, self._leaves, cotangents))

    def hvp(self, cotangents: Sequence[Mapping[str, Array]], vectors: Sequence[Array]) -> Iterator[Array]:
        """See xcam.contract.recorded.SecondOrderPass."""
        for cotangent, vector in zip(cotangents, vectors, strict=True):
            parts = torch.split(self._recording.tensor(vector), [len(leaf) for leaf in self._leaves])
            pairs = zip(self._leaves, parts, strict=True)
            yield _concatenated([hvp(self._outputs, leaf, cotangent, part) for leaf, part in pairs])

    def resumed(self, value: Array, rows: list[int], differentiate: bool) -> ForwardPass:
        """Run the captured tail where there is one, else the whole module."""
        recording, replacement = self._recording, self._recording.tensor(value)
        pick = torch.as_tensor(rows, device=self._x.device)
        tail = recording.tail(self._x, self._call)
        if tail is None:
            return recording.cut(self._x[pick], self._call, replacement)
        if self._bypass is None or self._bypass[0] is not tail:
            self._bypass = tail, tail.bypass(self._x)
        leaf = replacement.requires_grad_(differentiate)  # not copied: the tail writes nothing in place
        with torch.set_grad_enabled(differentiate):
            outputs = tail(leaf, tail.rows(self._bypass[1], self._x, pick))
        return ForwardPass(recording, self._call, self._x[pick], [Cut(leaf, outputs)])


def _concatenated(tensors: Sequence[Tensor]) -> Array:
    return float32(tensors[0]) if len(tensors) == 1 else np.concatenate([float32(tensor) for tensor in tensors])
