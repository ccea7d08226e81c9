"""The contract for a torch.nn.Module."""

from __future__ import annotations

import contextlib
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
    InputSpec,
    Layer,
    Layout,
    Outputs,
    Seeds,
    Trace,
    rows_of,
)
from xcam.errors import InputError, ModelError, nearest
from xcam.preprocessing import Preprocessing
from xcam_torch.gradients import asked, vjp
from xcam_torch.guard import hooked, modules_of, undisturbed
from xcam_torch.outputs import EndActivation, first_float, float32, replaced, tensors
from xcam_torch.recording import Call, Recording, module_names, record
from xcam_torch.tail import Tail, capture

RECORDINGS = 4
"""Input shapes whose layers are remembered."""


@dataclass
class _State:
    """What `resume` needs of a trace."""

    x: Tensor
    call: Call
    kept: tuple[Tail, list[Tensor]] | None = None
    """The tail that was last used, and what passes the layer by."""


@dataclass
class _Opened:
    """One forward pass, cut open."""

    leaf: Tensor
    outputs: dict[str, Tensor]


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
    def activation(self) -> Activation:
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
        with self._running():
            parts = [self._forward(chunk, recording) for chunk in self._chunks(self._tensor(x))]
            return _arrays({name: torch.cat([part[name] for part in parts]) for name in parts[0]})

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

        with self._running(), hooked({call.module for call in calls.values()}, after):
            for chunk in self._chunks(self._tensor(x)):
                count.clear()
                self.module(chunk)
        for name, values in parts.items():
            if not values:
                raise _skipped(calls[name], 0)
        return {name: np.concatenate(values) for name, values in parts.items()}

    def trace(self, x: Array, layer: str, seeds: Seeds | None = None) -> Trace:
        """See xcam.contract.Model.trace."""
        recording = self._recording(x)
        call = self._call(recording, layer)
        source = self._tensor(x)
        with self._running():
            opened = [self._open(chunk, call, recording) for chunk in self._chunks(source)]
            return self._finish(opened, call, seeds, _State(source, call))

    def resume(
        self, trace: Trace, activations: Array, rows: Sequence[int] | None = None, seeds: Seeds | None = None
    ) -> Trace:
        """See xcam.contract.Model.resume. Runs the captured tail where there is one, else the whole model."""
        state: _State = trace.state
        picked = rows_of(rows, len(state.x), len(activations))
        pick = torch.as_tensor(picked, device=state.x.device)
        value = self._value(activations, state.call)
        recording = self._recording(state.x)
        tail = self._tail(state.call, state.x, recording)
        with self._running():
            if tail is not None:
                if state.kept is None or state.kept[0] is not tail:
                    state.kept = (tail, tail.frontier(state.x))
                leaf = value.requires_grad_(seeds is not None)
                with torch.set_grad_enabled(seeds is not None):
                    outputs = tail(leaf, tail.rows(state.kept[1], state.x, pick))  # it writes nothing in place
                opened = [_Opened(leaf, outputs)]
            else:
                parts = zip(self._chunks(state.x[pick]), self._chunks(value), strict=True)
                opened = [self._open(chunk, state.call, recording, put) for chunk, put in parts]
            given = np.asarray(activations, np.float32)
            return self._finish(opened, state.call, seeds, _State(state.x[pick], state.call), given)

    def hvp(self, x: Array, layer: str, seeds: Seeds, vectors: Sequence[Array]) -> list[Array]:
        """∂²⟨v, outputs⟩/∂A² times a vector, for each cotangent v of `seeds`, by double backward.

        vectors: one [N, C, *spatial] for each cotangent. The cotangent counts as a constant.
        """
        recording = self._recording(x)
        call = self._call(recording, layer)
        with self._running():
            if self.batch not in (None, len(x)):
                raise InputError(f"{self.name} takes batches of {self.batch}, not {len(x)}")
            opened = self._open(self._tensor(x), call, recording)
            said = _arrays(opened.outputs)
            found = []
            for cotangent, vector in zip(seeds(said), vectors, strict=True):
                outputs, v = asked(opened.outputs, cotangent)
                (gradient,) = torch.autograd.grad(outputs, [opened.leaf], v, create_graph=True, allow_unused=True)
                along = self._value(vector, call).to(opened.leaf)
                product = None
                if gradient is not None and gradient.requires_grad:
                    (product,) = torch.autograd.grad(
                        gradient, [opened.leaf], along, retain_graph=True, allow_unused=True
                    )
                zero = torch.zeros_like(opened.leaf)
                found.append(_channels_first(float32(zero if product is None else product), call))
            return found

    def to_onnx(self, path: Path) -> None:
        """See xcam_torch.export."""
        from xcam_torch.export import to_onnx

        size = self.input.size or DEFAULT_SIZE
        to_onnx(self.module, path, (size[0], size[1]), self.input.channels)

    def _open(self, x: Tensor, call: Call, recording: Recording, put: Tensor | None = None) -> _Opened:
        """A forward pass that stops differentiating at the layer: its value becomes a leaf, or `put` takes its place."""
        count = 0
        leaf: Tensor | None = None

        def after(module: nn.Module, value: Any) -> Any:
            nonlocal count, leaf
            count += 1
            if count - 1 != call.index:
                return None
            tensor = first_float(value)
            assert tensor is not None
            leaf = (tensor if put is None else put.to(tensor)).detach().requires_grad_()
            torch.set_grad_enabled(True)  # from here on; the caller's own mode comes back with `undisturbed`
            return replaced(value, tensor, leaf.clone())  # a copy: what follows may write into it

        with hooked([call.module], after):
            outputs = self._forward(x, recording)
            if leaf is not None and not any(output.requires_grad for output in outputs.values()):
                # A part of the model turned gradients off and on again behind the layer, and so back to where they were
                # outside: off. Outside they are on in this second try, which costs the memory of a whole graph.
                count = 0
                with torch.enable_grad():
                    outputs = self._forward(x, recording)
        if leaf is None:
            raise _skipped(call, count)
        return _Opened(leaf, outputs)

    def _forward(self, x: Tensor, recording: Recording) -> dict[str, Tensor]:
        """The outputs of one pass, as logits where an end was seen."""
        if not any(recording.activations.values()):  # watching every function costs time: only where there is need
            return tensors(self.module(x), self.name)
        with EndActivation() as end:
            said = tensors(self.module(x), self.name)
        return {name: end.logits(output)[0] for name, output in said.items()}

    def _finish(
        self, opened: list[_Opened], call: Call, seeds: Seeds | None, state: _State, values: Array | None = None
    ) -> Trace:
        """Ask for the cotangents, differentiate, hand everything over as NumPy; `values` are those of the layer."""
        names = list(opened[0].outputs)
        outputs = {
            name: opened[0].outputs[name] if len(opened) == 1 else torch.cat([part.outputs[name] for part in opened])
            for name in names
        }
        leaves = [part.leaf for part in opened]
        said = _arrays(outputs)
        gradients: list[Array] = []
        cotangents = list(seeds(said)) if seeds else []
        if cotangents:
            for found in vjp(outputs, leaves, cotangents, call.layer.name, self.name):
                gradients.append(_channels_first(np.concatenate([float32(g) for g in found]), call))
        if values is None:
            values = _channels_first(np.concatenate([float32(leaf) for leaf in leaves]), call)
        return Trace(said, values, gradients, state)

    def _tail(self, call: Call, x: Tensor, recording: Recording) -> Tail | None:
        """The captured tail behind a call, made once; None where the model cannot be captured."""
        with self._lock:
            tail = recording.tails.get(call.layer.name)
            if call.layer.name not in recording.tails or (tail is not None and not tail.fits(self.module)):
                recording.tails[call.layer.name] = tail = self._captured(call, x, recording)
            return tail

    def _captured(self, call: Call, x: Tensor, recording: Recording) -> Tail | None:
        """Capture, then hold it against the whole model with changed values put in, for chosen rows of two pictures."""
        if self.batch is not None:
            return None
        with self._running():
            path = module_names(self.module)[call.module]
            tail = capture(self.module, x[:1], call, path, recording.activations)
            if tail is None:
                return None
            try:
                two = torch.cat([x[:1], x[:1].flip(-1) * 0.5])
                pick = torch.as_tensor([1, 0, 1], device=x.device)
                plain = self._open(two[pick], call, recording)
                generator = torch.Generator().manual_seed(0)
                noise = 2 * torch.rand(plain.leaf.shape, generator=generator).to(plain.leaf)
                changed = (plain.leaf.detach() * noise).contiguous()
                expected = self._open(two[pick], call, recording, changed).outputs
                found = tail(changed, tail.rows(tail.frontier(two), two, pick))
                return tail if _same(found, expected, plain.outputs) else None
            except Exception:
                return None

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
            with self._running():
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

    @contextlib.contextmanager
    def _running(self) -> Iterator[None]:
        """Run the user's module undisturbed; memory that runs out is a MemoryError, for all backends alike."""
        try:
            with undisturbed(self.module):
                yield
        except torch.OutOfMemoryError as error:
            raise MemoryError(str(error).splitlines()[0]) from error
        except RuntimeError as error:
            if "can't allocate memory" in str(error):
                raise MemoryError(str(error).splitlines()[0]) from error
            raise


def _same(found: Mapping[str, Tensor], expected: Mapping[str, Tensor], plain: Mapping[str, Tensor]) -> bool:
    """Equal where the changed value moved the outputs: to a hundredth of how far it moved them, or to rounding."""
    for name, value in expected.items():
        moved, error, size = (
            float(difference.detach().abs().max()) for difference in (value - plain[name], value - found[name], value)
        )
        if error > max(1e-2 * moved, 1e-5 * size):
            return False
    return any(bool((value != plain[name]).any()) for name, value in expected.items())


def _skipped(call: Call, count: int) -> ModelError:
    return ModelError(
        f"the forward pass called {call.layer.name!r} {count} times, and {call.of} times when its layers were "
        "listed: it depends on the input; explain a module that is always called"
    )


def _arrays(outputs: Mapping[str, Tensor]) -> Outputs:
    arrays = {name: float32(tensor) for name, tensor in outputs.items()}
    return arrays if len(arrays) > 1 else next(iter(arrays.values()))


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
