"""A Keras model on torch: run as it is, layer calls watched, and differentiated from the layer on.

Ahead of the layer gradients are off; its value becomes a leaf, from which torch's own graph starts. `.grad` of the
user's parameters is never touched. What `resume` need not run again is in xcam_keras.engines.torch_replay.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
import numpy as np
import torch
from torch import Tensor
from torch.autograd.graph import get_gradient_edge
from torch.overrides import TorchFunctionMode

from xcam.contract import Array
from xcam.errors import InputError
from xcam_keras import calls
from xcam_keras.engines import Call, NoGradient

BATCH = 2
"""The batch size that shows the layers."""
ENDS = {"softmax": "softmax", "_softmax": "softmax", "sigmoid": "sigmoid", "special_expit": "sigmoid"}
SEEN_THROUGH = ("to", "float", "double", "contiguous")
"""Functions that change how values are kept, not what they are."""

_MODES = threading.RLock()

Key = tuple[str, int]
"""A layer call: its path of names, and which of the calls of this name."""


def device_name(device: str | None) -> str | None:
    """`cpu`, `cuda`, `gpu:1` → torch's `cpu`, `cuda:1`. Raises InputError when it is not there."""
    if device is None:
        return None
    kind, _, number = device.lower().partition(":")
    kind = "cuda" if kind == "gpu" else kind
    known = ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
    known += ["mps"] if torch.backends.mps.is_available() else []
    name = f"cuda:{number or 0}" if kind == "cuda" else kind
    if name not in known:
        raise InputError(f"no device {device!r} here; torch sees: {', '.join(known)}")
    return name


@contextlib.contextmanager
def running(device: str | None) -> Iterator[None]:
    """What is made goes to the device; memory that runs out is a MemoryError."""
    try:
        with keras.device(device) if device else contextlib.nullcontext():
            yield
    except RuntimeError as error:
        if isinstance(error, torch.OutOfMemoryError) or "not enough memory" in str(error):
            raise MemoryError(str(error).splitlines()[0]) from error
        raise


class Recording:
    """What one pass over noise showed of a model for one input shape."""

    def __init__(self, model: keras.Model, shape: Sequence[int | None], dtype: str) -> None:
        self.model, self.dtype = model, getattr(torch, dtype)
        self.where = next((v.value.device for v in model.variables), None)
        self.noise = np.random.default_rng(0).normal(size=(BATCH, *shape))
        layers = model._flatten_layers(include_self=False)
        wrappers = [layer for layer in layers if isinstance(layer, keras.layers.TorchModuleWrapper)]
        self._modules = list({module: None for wrapper in wrappers for module in wrapper.modules()})
        if not model.built:
            self._call(self.tensor(self.noise[:1]))
        self._replays: dict[str, Any] = {}
        self._lock = threading.Lock()
        self._watch_ends = True
        said, cut_off, seen = self.look()
        self.activations = {name: kind for name, (_, kind) in cut_off.items()}
        self._watch_ends = any(self.activations.values())
        ends = {id(t) for t in said.values()} | {id(t) for t, _ in cut_off.values()}
        nodes = ancestors([t for t, _ in cut_off.values()])
        found = calls.named(seen, is_float)
        self.keys: dict[str, Key] = {name: (call.name, call.index) for name, call in found.items()}
        self.calls = {
            name: Call(
                call.layer,
                tuple(call.value.shape[1:]),
                is_output=id(call.value) in ends,
                reaches_output=get_gradient_edge(call.value).node in nodes,
                folds_batch=call.value.ndim > 2 and len(call.value) != BATCH,
            )
            for name, call in found.items()
        }

    def look(self) -> tuple[dict[str, Tensor], dict[str, tuple[Tensor, str | None]], list[calls.Seen]]:
        """A pass over noise with torch's graph: what the model said, the same under what is cut off, and every call."""
        seen: list[calls.Seen] = []

        def note(call: calls.Seen) -> Any:
            value = keras.tree.map_structure(_in_graph, call.value)
            seen.append(calls.Seen(call.start, call.name, call.index, call.layer, value))
            return value

        with torch.enable_grad(), calls.watching(note), Ends() as end:
            said = self._said(self.tensor(self.noise))
            return said, {name: end.logits(output) for name, output in said.items()}, seen

    def tensor(self, x: Array) -> Tensor:
        """The input, as the model takes it."""
        return torch.as_tensor(np.array(x), device=self.where).to(self.dtype)  # a copy: the user's may be read-only

    def predict(self, x: Array) -> list[Array]:
        """See xcam_keras.engines.Recording."""
        with torch.no_grad():
            return [float32(t) for t in self.forward(self.tensor(x), None)]

    def values(self, x: Array, names: Sequence[str]) -> list[Array]:
        """See xcam_keras.engines.Recording."""
        wanted = {self.keys[name] for name in names}
        kept: dict[Key, Array] = {}

        def note(call: calls.Seen) -> Any:
            if (call.name, call.index) in wanted:
                kept[call.name, call.index] = float32(first_float(call.value))
            return call.value

        with torch.no_grad():
            self.forward(self.tensor(x), note)
        return [kept[self.keys[name]] for name in names]

    def open(self, x: Array, name: str, differentiate: bool) -> Opened:
        """See xcam_keras.engines.Recording."""
        if not self.calls[name].reaches_output:
            raise NoGradient
        source = self.tensor(x)
        return Opened(self, name, source, *self.cut(source, name, None, differentiate))

    def cut(
        self, x: Tensor, name: str, put: Tensor | None, differentiate: bool, skip: calls.Skip | None = None
    ) -> tuple[list[Tensor], Tensor]:
        """The outputs and the layer's value: its own or `put`. Gradients lead from one to the other, if asked for."""
        leaf: list[Tensor] = []

        def note(call: calls.Seen) -> Any:
            if (call.name, call.index) != self.keys[name]:
                return call.value
            own = first_float(call.value)
            leaf.append((own if put is None else put.to(own)).detach().requires_grad_(differentiate))
            torch.set_grad_enabled(differentiate)  # from here on, until no_grad ends
            return replaced(call.value, own, leaf[0].clone())  # a copy: what follows may write into it

        with torch.no_grad():
            outputs = self.forward(x, note, skip)
        if differentiate and not any(t.requires_grad for t in outputs):
            raise NoGradient
        return outputs, leaf[0]

    def replay(self, name: str) -> Any:
        """What spares `resume` the layers ahead of this one; None where nothing does."""
        from xcam_keras.engines.torch_replay import replay

        with self._lock:
            if name not in self._replays:
                self._replays[name] = replay(self, name)
            return self._replays[name]

    def forward(
        self, x: Tensor, note: Callable[[calls.Seen], Any] | None, skip: calls.Skip | None = None
    ) -> list[Tensor]:
        """The outputs of one pass, in the order of `activations`, as logits where something was cut off."""
        with calls.watching(note, skip) if note else contextlib.nullcontext():
            if not self._watch_ends:  # watching every function costs time: only where there is need
                return list(self._said(x).values())
            with Ends() as end:
                return [end.logits(output)[0] for output in self._said(x).values()]

    def _said(self, x: Tensor) -> dict[str, Tensor]:
        with keras.StatelessScope():  # nothing that the layers assign reaches the model
            return calls.outputs(self.model, self._call(x), is_float)

    def _call(self, x: Tensor) -> Any:
        # Keras makes some tensors where it is told to, whatever the weights' device.
        with keras.device(str(self.where)) if self.where else contextlib.nullcontext(), _modes_kept(self._modules):
            return self.model(x, training=False)


@contextlib.contextmanager
def _modes_kept(modules: Sequence[torch.nn.Module]) -> Iterator[None]:
    """Modules of torch in a Keras model, which sets them to a mode as it runs: one thread at a time, and back again."""
    if not modules:
        yield
        return
    with _MODES:
        before = [module.training for module in modules]
        try:
            yield
        finally:
            for module, mode in zip(modules, before, strict=True):
                module.training = mode


class Opened:
    """See xcam_keras.engines.Opened."""

    def __init__(self, recording: Recording, name: str, x: Tensor, said: list[Tensor], leaf: Tensor) -> None:
        self._recording, self._name, self._x, self._said, self._leaf = recording, name, x, said, leaf
        self._beside: Any = None
        """What passes the layer by, once `resume` has asked for it."""

    @property
    def outputs(self) -> list[Array]:
        return [float32(t) for t in self._said]

    @property
    def value(self) -> Array:
        return float32(self._leaf)

    def gradient(self, cotangents: Sequence[Array]) -> Array:
        """See xcam_keras.engines.Opened."""
        pairs = [
            (output, torch.as_tensor(np.array(v), device=output.device).to(output.dtype))
            for output, v in zip(self._said, cotangents, strict=True)
            if output.requires_grad
        ]
        outputs, v = map(list, zip(*pairs, strict=True))
        (found,) = torch.autograd.grad(outputs, [self._leaf], v, retain_graph=True, allow_unused=True)
        return float32(torch.zeros_like(self._leaf) if found is None else found)

    def resumed(self, value: Array, rows: Sequence[int], differentiate: bool) -> Opened:
        """See xcam_keras.engines.Opened."""
        put = torch.as_tensor(np.array(value), device=self._leaf.device).to(self._leaf.dtype)
        x = self._x[list(rows)]
        replay = self._recording.replay(self._name)
        skip = None
        if replay is not None:
            if self._beside is None:
                self._beside = replay.beside(self._x)
            skip = replay.skip(self._beside, rows)
        said, leaf = self._recording.cut(x, self._name, put, differentiate, skip)
        return Opened(self._recording, self._name, x, said, leaf)


class Ends(TorchFunctionMode):
    """Notes the input of every softmax and sigmoid of this thread, to find the one whose output is the model's."""

    def __init__(self) -> None:
        super().__init__()
        self._made: list[tuple[Tensor, Tensor, str | None]] = []

    def __torch_function__(self, function: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        value = function(*args, **(kwargs or {}))
        name = getattr(function, "__name__", "")
        if (name in ENDS or name in SEEN_THROUGH) and args and isinstance(args[0], Tensor):
            self._made.append((value, args[0], ENDS.get(name)))
        return value

    def logits(self, output: Tensor) -> tuple[Tensor, str | None]:
        """The tensor under the output's softmax or sigmoid and its name, or the output itself and None."""
        look = output
        for value, given, kind in reversed(self._made):
            if value is look and given.is_floating_point():
                if kind:
                    return given, kind
                look = given
        return output, None


def ancestors(tensors: Sequence[Tensor], stop: Sequence[Any] = ()) -> set[Any]:
    """The nodes of torch's graph that the tensors come from, `stop` among them, but nothing that only those come from."""
    todo = [get_gradient_edge(t).node for t in tensors if t.requires_grad]
    seen = set()
    while todo:
        node = todo.pop()
        if node is not None and node not in seen:
            seen.add(node)
            if node not in stop:
                todo.extend(before for before, _ in node.next_functions)
    return seen


def is_float(value: Any) -> bool:
    """Whether it is a tensor that can be differentiated."""
    return isinstance(value, Tensor) and value.is_floating_point()


def first_float(value: Any) -> Tensor:
    """The tensor that stands for a layer's value."""
    return next(t for t in keras.tree.flatten(value) if is_float(t))


def replaced(value: Any, old: Tensor, new: Tensor) -> Any:
    """`value` with `new` where `old` stood."""
    return keras.tree.map_structure(lambda t: new if t is old else t, value)


def _in_graph(value: Any) -> Any:
    return value.detach().requires_grad_() if is_float(value) and not value.requires_grad else value


def float32(tensor: Tensor) -> Array:
    """float32 NumPy, on the CPU, in memory of its own."""
    return tensor.detach().to("cpu", torch.float32, copy=True).contiguous().numpy()
