"""The contract for a torch.nn.Module."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from xcam.contract import (
    DEFAULT_SIZE,
    Activation,
    Array,
    Capability,
    Cotangents,
    InputSpec,
    Layer,
    Layout,
    Outputs,
    Trace,
    rows_of,
)
from xcam.contract.preprocessing import Preprocessing
from xcam.errors import InputError, ModelError, nearest
from xcam_torch.gradients import hvp, vjp
from xcam_torch.guard import hooked, modules_of, running
from xcam_torch.opening import Opened, cut_open, forward, skipped
from xcam_torch.outputs import arrays, first_float, float32
from xcam_torch.recording import Call, Recording, record
from xcam_torch.tail import Tail, verified

RECORDINGS = 4
"""Input shapes whose layers are remembered."""


@dataclass
class _State:
    """What `resume` needs of a trace."""

    x: Tensor
    call: Call
    kept: tuple[Tail, list[Tensor]] | None = None
    """The tail that was last used, and what passes the layer by."""


class TorchModel:
    """A torch.nn.Module behind xcam's contract. See xcam.contract.Model."""

    backend = "torch"
    capabilities: frozenset[Capability] = frozenset({"gradients", "resume", "hvp"})

    def __init__(
        self,
        module: nn.Module,
        *,
        name: str | None = None,
        preprocessing: Preprocessing | None = None,
        labels: Sequence[str] | None = None,
        notes: Sequence[str] = (),
        layout: Layout | None = None,
        size: tuple[int, int] | None = None,
        fixed: bool = False,
        batch: int | None = None,
    ) -> None:
        self.module = module
        self.name = name or type(module).__name__
        self.labels = labels
        self.notes = tuple(notes)
        self.layout = layout
        self.batch = batch
        """The batch size that the model is fixed to, when it is."""
        self.input = InputSpec(
            size=size,
            channels=input_channels(module),
            layout="channels_first",
            preprocessing=preprocessing,
            fixed=fixed,
        )
        self._recordings: dict[tuple[int, ...], Recording] = {}
        self._structure: tuple[int, ...] = ()
        self._lock = threading.RLock()

    @property
    def output_activation(self) -> Activation:
        """What is cut off the output: `softmax`, `sigmoid`, None; by output name when there are several."""
        found = self._recording(None).activations
        return found if len(found) > 1 else next(iter(found.values()))

    @property
    def layers(self) -> Sequence[Layer]:
        """Every module call with a float value, in execution order."""
        return [call.layer for call in self._recording(None).calls.values()]

    def predict(self, x: Array) -> Outputs:
        """See xcam.contract.Model.predict."""
        recording = self._recording(x)
        with running(self.module):
            parts = [forward(self.module, chunk, recording, self.name) for chunk in self._chunks(self._tensor(x))]
            return arrays({name: torch.cat([part[name] for part in parts]) for name in parts[0]})

    def activations(self, x: Array, layers: Sequence[str]) -> Mapping[str, Array]:
        """See xcam.contract.Model.activations."""
        recording = self._recording(x)
        calls = {name: self._call(recording, name) for name in layers}
        parts: dict[str, list[Array]] = {name: [] for name in layers}
        count: dict[nn.Module, int] = {}

        def after(module: nn.Module, value: Any) -> None:
            k = count[module] = count.get(module, -1) + 1
            for name, call in calls.items():
                if call.module is module and call.index == k:
                    tensor = first_float(value)
                    assert tensor is not None
                    parts[name].append(
                        _channels_first(float32(tensor), call)
                    )  # copied: a later step may overwrite it

        with running(self.module), hooked({call.module for call in calls.values()}, after):
            for chunk in self._chunks(self._tensor(x)):
                count.clear()
                self.module(chunk)
        for name, values in parts.items():
            if not values:
                raise skipped(calls[name], 0)
        return {name: np.concatenate(values) for name, values in parts.items()}

    def trace(self, x: Array, layer: str, cotangents: Cotangents | None = None) -> Trace:
        """See xcam.contract.Model.trace."""
        recording = self._recording(x)
        call = self._call(recording, layer)
        source = self._tensor(x)
        with running(self.module):
            opened = [self._open(chunk, call, recording) for chunk in self._chunks(source)]
            return self._finish(opened, call, cotangents, _State(source, call))

    def resume(
        self,
        trace: Trace,
        activations: Array,
        rows: Sequence[int] | None = None,
        cotangents: Cotangents | None = None,
    ) -> Trace:
        """See xcam.contract.Model.resume. Runs the captured tail where there is one, else the whole model."""
        state: _State = trace.state
        picked = rows_of(rows, len(state.x), len(activations))
        pick = torch.as_tensor(picked, device=state.x.device)
        value = self._value(activations, state.call)
        recording = self._recording(state.x)
        tail = self._tail(state.call, state.x, recording)
        with running(self.module):
            if tail is not None:
                if state.kept is None or state.kept[0] is not tail:
                    state.kept = (tail, tail.frontier(state.x))
                leaf = value.requires_grad_(cotangents is not None)
                with torch.set_grad_enabled(cotangents is not None):
                    outputs = tail(leaf, tail.rows(state.kept[1], state.x, pick))  # it writes nothing in place
                opened = [Opened(leaf, outputs)]
            else:
                parts = zip(self._chunks(state.x[pick]), self._chunks(value), strict=True)
                opened = [self._open(chunk, state.call, recording, put) for chunk, put in parts]
            given = np.asarray(activations, np.float32)
            return self._finish(opened, state.call, cotangents, _State(state.x[pick], state.call), given)

    def hvp(self, x: Array, layer: str, cotangents: Cotangents, vectors: Sequence[Array]) -> list[Array]:
        """∂²⟨v, outputs⟩/∂A² times a vector, for each cotangent v of `cotangents`, by double backward.

        vectors: one [N, C, *spatial] for each cotangent. The cotangent counts as a constant.
        """
        recording = self._recording(x)
        call = self._call(recording, layer)
        with running(self.module):
            if self.batch not in (None, len(x)):
                raise InputError(f"{self.name} takes batches of {self.batch}, not {len(x)}")
            opened = self._open(self._tensor(x), call, recording)
            said = arrays(opened.outputs)
            found = []
            for cotangent, vector in zip(cotangents(said), vectors, strict=True):
                product = hvp(opened.outputs, opened.leaf, cotangent, self._value(vector, call))
                found.append(_channels_first(float32(product), call))
            return found

    def to_onnx(self, path: Path) -> None:
        """See xcam_torch.export."""
        from xcam_torch.export import to_onnx

        size = self.input.size or DEFAULT_SIZE
        to_onnx(self.module, path, (size[0], size[1]), self.input.channels)

    @property
    def parameter_layers(self) -> Sequence[str]:
        """See xcam_torch.randomizing."""
        from xcam_torch.randomizing import parameter_layers

        return parameter_layers(self.module, [name.partition("#")[0] for name in self._recording(None).calls])

    def with_shuffled_weights(self, parts: Sequence[str], seed: int = 0) -> TorchModel:
        """See xcam_torch.randomizing."""
        from xcam_torch.randomizing import shuffled

        return TorchModel(
            shuffled(self.module, parts, seed),
            name=f"{self.name}, shuffled",
            preprocessing=self.input.preprocessing,
            labels=self.labels,
            notes=self.notes,
            layout=self.layout,
            size=self.input.size,  # type: ignore[arg-type]
            fixed=self.input.fixed,
            batch=self.batch,
        )

    def _open(self, x: Tensor, call: Call, recording: Recording, put: Tensor | None = None) -> Opened:
        return cut_open(self.module, x, call, recording, self.name, put)

    def _finish(
        self,
        opened: list[Opened],
        call: Call,
        cotangents: Cotangents | None,
        state: _State,
        values: Array | None = None,
    ) -> Trace:
        """Ask for the cotangents, differentiate, hand everything over as NumPy; `values` are those of the layer."""
        names = list(opened[0].outputs)
        outputs = {
            name: opened[0].outputs[name] if len(opened) == 1 else torch.cat([part.outputs[name] for part in opened])
            for name in names
        }
        leaves = [part.leaf for part in opened]
        said = arrays(outputs)
        gradients: list[Array] = []
        vectors = list(cotangents(said)) if cotangents else []
        if vectors:
            for found in vjp(outputs, leaves, vectors, call.layer.name, self.name):
                gradients.append(_channels_first(np.concatenate([float32(g) for g in found]), call))
        if values is None:
            values = _channels_first(np.concatenate([float32(leaf) for leaf in leaves]), call)
        return Trace(said, values, gradients, state)

    def _tail(self, call: Call, x: Tensor, recording: Recording) -> Tail | None:
        """The captured tail behind a call, made once; None where the model cannot be captured."""
        with self._lock:
            tail = recording.tails.get(call.layer.name)
            if call.layer.name not in recording.tails or (tail is not None and not tail.fits(self.module)):
                tail = None if self.batch else verified(self.module, x, call, recording, self.name)
                recording.tails[call.layer.name] = tail
            return tail

    def _recording(self, x: Array | Tensor | None) -> Recording:
        """The layers for the shape of `x`, or for the model's own input shape."""
        shape = (self.input.channels, *(self.input.size or DEFAULT_SIZE)) if x is None else tuple(x.shape[1:])
        structure = tuple(map(id, modules_of(self.module)))
        with self._lock:
            if structure != self._structure:  # a part was exchanged: what was seen of the others may not hold
                self._structure = structure
                self._recordings.clear()
            if shape not in self._recordings:
                while len(self._recordings) >= RECORDINGS:
                    del self._recordings[next(iter(self._recordings))]
                noise = np.random.default_rng(0).normal(size=(self.batch or 2, *shape)).astype(np.float32)
                self._recordings[shape] = self._recorded(noise, shape)
            return self._recordings[shape]

    def _recorded(self, noise: Array, shape: tuple[int, ...]) -> Recording:
        try:
            with running(self.module):
                return record(self.module, self._tensor(noise), self.layout)
        except (ModelError, MemoryError):
            raise
        except (Exception, SystemExit) as error:
            text = " ".join(str(error).split())[:300]
            raise ModelError(
                f"{self.name} cannot run on an input of shape {list(shape)}: {text}; "
                "check size and channels, and that it takes one tensor"
            ) from error

    def _call(self, recording: Recording, name: str) -> Call:
        if name in recording.calls:
            return recording.calls[name]
        if name in dict(self.module.named_modules()):
            raise InputError(
                f"the forward pass of {self.name} never reaches {name!r} (or it returns no float tensor); "
                f"{nearest(name, recording.calls)}"
            )
        raise InputError(f"no layer {name!r} in {self.name}; {nearest(name, recording.calls)}")

    def _tensor(self, x: Array) -> Tensor:
        device, dtype = where(self.module)
        with torch.inference_mode(
            False
        ):  # a tensor made under the caller's inference mode could not be differentiated
            return torch.tensor(np.ascontiguousarray(x), device=device).to(dtype)

    def _value(self, activations: Array, call: Call) -> Tensor:
        """An array [K, C, *spatial] as the layer itself keeps it."""
        if call.layer.layout != "channels_first" and activations.ndim > 2:
            activations = np.moveaxis(activations, 1, -1)
        return self._tensor(activations)

    def _chunks(self, x: Tensor) -> Iterator[Tensor]:
        """`x` whole, or in the batches that the model is fixed to."""
        if self.batch is None:
            yield x
            return
        if len(x) % self.batch:
            raise InputError(
                f"{self.name} takes batches of {self.batch}, not {len(x)}; export it with a dynamic batch"
            )
        yield from x.split(self.batch)


def _channels_first(array: Array, call: Call) -> Array:
    if call.layer.layout != "channels_first" and array.ndim > 2:
        array = np.ascontiguousarray(np.moveaxis(array, -1, 1))
    return array


def where(module: nn.Module) -> tuple[torch.device, torch.dtype]:
    """Device and float type of a module's first float parameter or buffer."""
    for tensor in itertools.chain(module.parameters(), module.buffers()):
        if tensor.is_floating_point():
            return tensor.device, tensor.dtype
    return torch.device("cpu"), torch.float32


def input_channels(module: nn.Module) -> int:
    """The channels that the first convolution takes; 3 where there is none."""
    found = (part.in_channels for part in module.modules() if isinstance(getattr(part, "in_channels", None), int))
    return next(found, 3)
