"""The layer calls of a forward pass, in execution order: the same for every engine."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, cast

import keras
import numpy as np

from xcam.contract.graphs import call_names
from xcam.contract.layouts import shape_to_channels_first
from xcam.contract.types import Layer, Layout
from xcam.errors import ModelError

Key = tuple[str, int]
"""A call's path of layer names, and its index among the calls of that path."""


@dataclass(frozen=True)
class Call:
    """One call of one layer, recorded when it ended."""

    start: int
    """Its rank in the order in which calls begin. A container begins before its parts and ends after them."""
    name: str
    """The names of the layers that contain it, and its own, joined by `/`."""
    index: int
    """Its index among the calls of this name."""
    layer: keras.layers.Layer
    value: Any
    """The return value; from `named`, its first float tensor."""
    outer: tuple[keras.layers.Layer, ...] = ()
    """The layers that contain it, outermost first."""

    @property
    def key(self) -> Key:
        """The key that identifies the call in every pass of the same model."""
        return self.name, self.index


Note = Callable[[Call], Any]
"""A finished call → the value that replaces its return value."""
Shares = Mapping[str, Mapping[str, float]]
"""By output and layer, the share of the layer's tokens at which the output's gradient arrives."""
TokenGradients = Callable[[Sequence[str]], Shares]
"""Layers of tokens → their shares, where a gradient arrives."""
Skip = Callable[[Key], Any]
"""A call that is about to begin → a return value that replaces the call, or None to make the call."""
Enter = Callable[[keras.layers.Layer, Sequence[Any], Mapping[str, Any]], None]
"""The layer and the arguments of a call that is about to begin."""

FIRST_EXAMINED = 12
"""Number of layers of tokens that are examined first: those of one block of a transformer and more."""
MOST = 0.5
"""The share of a layer's tokens that an output has to depend on."""
ATTENTIONS = (
    keras.layers.MultiHeadAttention,
    keras.layers.GroupQueryAttention,
    keras.layers.Attention,
    keras.layers.AdditiveAttention,
)
NORMALISATIONS = (
    keras.layers.BatchNormalization,
    keras.layers.LayerNormalization,
    keras.layers.GroupNormalization,
    keras.layers.RMSNormalization,
)

_patching = threading.Lock()
_modes = threading.RLock()
_watching = 0
_original: Any = None
_local = threading.local()


@contextmanager
def watching(note: Note, skip: Skip | None = None, enter: Enter | None = None) -> Iterator[None]:
    """Pass every layer call of this thread, except the outermost, to `note`.

    Keras has no hook for this: while a thread records its calls, `Layer.__call__` is replaced by a method that forwards
    the calls of all other threads.

    Args:
        note: called when a call has ended.
        skip: called when a call is about to begin. Calls inside a skipped one are not noted.
        enter: called when a call is about to begin, before `skip`.
    """
    global _watching, _original
    with _patching:
        if not _watching:
            _original = keras.layers.Layer.__call__
            keras.layers.Layer.__call__ = _watched_call
        _watching += 1
    before = getattr(_local, "watch", None)
    _local.watch = _Watch(note, skip, enter)
    try:
        yield
    finally:
        _local.watch = before
        with _patching:
            _watching -= 1
            if not _watching:
                keras.layers.Layer.__call__ = _original


class _Watch:
    def __init__(self, note: Note, skip: Skip | None, enter: Enter | None) -> None:
        self.note, self.skip, self.enter = note, skip, enter
        self.path: list[keras.layers.Layer] = []
        self.starts = itertools.count()
        self.count: dict[str, int] = {}


def _watched_call(layer: keras.layers.Layer, *args: Any, **kwargs: Any) -> Any:
    watch: _Watch | None = getattr(_local, "watch", None)
    if watch is None:
        return _original(layer, *args, **kwargs)
    outer = tuple(watch.path[1:])
    watch.path.append(layer)
    name = "/".join(part.name for part in watch.path[1:])
    start = next(watch.starts)
    index = watch.count[name] = watch.count.get(name, -1) + 1
    try:
        if watch.enter and name:
            watch.enter(layer, args, kwargs)
        value = watch.skip((name, index)) if watch.skip and name else None
        if value is None:
            value = _original(layer, *args, **kwargs)
    finally:
        watch.path.pop()
    return watch.note(Call(start, name, index, layer, value, outer)) if name else value


def torch_modules(model: keras.Model) -> list[Any]:
    """Return the torch modules that the model wraps."""
    layers = model._flatten_layers(include_self=False)
    wrappers = [layer for layer in layers if isinstance(layer, keras.layers.TorchModuleWrapper)]
    return list({module: None for wrapper in wrappers for module in wrapper.modules()})


@contextmanager
def modes_restored(modules: Sequence[Any]) -> Iterator[None]:
    """Restore the modes of torch modules in a Keras model, which sets them when it runs; one thread at a time."""
    if not modules:
        yield
        return
    with _modes:
        before = [module.training for module in modules]
        try:
            yield
        finally:
            for module, mode in zip(modules, before, strict=True):
                module.training = mode


def first(value: Any, is_float: Callable[[Any], bool]) -> Any:
    """Return the first float tensor in a layer's return value, or None."""
    return next((t for t in keras.tree.flatten(value) if is_float(t)), None)


def named(calls: Sequence[Call], is_float: Callable[[Any], bool]) -> dict[str, Call]:
    """Return calls by layer name, in execution order, each with its first float tensor; calls without one are left out.

    A container whose value is a part's value (a backbone) comes before that part.
    """
    floats = [replace(call, value=first(call.value, is_float)) for call in calls]
    floats = [call for call in floats if call.value is not None]
    ordered: list[tuple[str, Call]] = []
    for name, call in zip(call_names([call.name for call in floats]), floats, strict=True):
        same = (i for i, (_, c) in enumerate(ordered) if c.start > call.start and c.value is call.value)
        ordered.insert(next(same, len(ordered)), (name, call))
    return dict(ordered)


def is_tokens(shape: Sequence[int | None], image: bool) -> bool:
    """Return whether a value of this shape, without the batch, has several tokens: [T, C] in a model of images."""
    return image and len(shape) == 2 and shape[0] != 1


def token_shares(reach: Mapping[str, Collection[str]], names: Sequence[str], gradients: TokenGradients) -> Shares:
    """Return for each output the share of each layer's tokens at which its gradient arrives, from the last layers on.

    Layers before one whose tokens all lead on are not examined, to save the gradient of the whole model.

    Args:
        reach: by output, the layers that it is computed from.
        names: the layers of tokens, in execution order.
        gradients: computes the shares for some layers.
    """
    shares: dict[str, dict[str, float]] = {output: {} for output in reach}
    end, count = len(names), FIRST_EXAMINED
    while end > 0:
        start = max(0, end - count)
        for output, part in gradients(names[start:end]).items():
            shares[output].update(part)
        open_outputs = [output for output, of_output in shares.items() if max(of_output.values(), default=0) <= MOST]
        end, count = start, 2 * count
        if not any(name in reach[output] for output in open_outputs for name in names[:end]):
            break
    return shares


def leads_to(name: str, reach: Mapping[str, Collection[str]], shares: Shares) -> tuple[str, ...]:
    """Return the names of the outputs that depend on a layer; for tokens, on most of them.

    Behind the last attention of a vision transformer only the class token leads on: a map there would be blank.

    Args:
        name: the layer.
        reach: by output, the layers that it is computed from.
        shares: see `token_shares`. Where one is 0, or unknown, `reach` decides: the gradient may be cut off, or the weights
            of a head zero.
    """
    return tuple(
        output for output, layers in reach.items() if name in layers and not 0 < shares[output].get(name, 0) <= MOST
    )


def described(
    name: str,
    call: Call,
    shape: Sequence[int | None],
    layout: Layout,
    image: bool,
    *,
    is_output: bool,
    leads_to: tuple[str, ...],
    differentiable: bool,
    depends_on_input: bool | None = None,
    folds_batch: bool = False,
    bypassed: bool = True,
) -> Layer:
    """Return the contract's description of a layer.

    Args:
        name: the name of the call.
        call: the call.
        shape: shape of its value in Keras, without the batch.
        layout: layout of layers that do not declare their own.
        image: whether the model's input is an image (2 spatial axes), in which values of two axes are tokens.
        is_output: see xcam.contract.Layer, also for the rest.
        leads_to: also gives `reaches_output`.
        differentiable: …
        depends_on_input: …
        folds_batch: …
        bypassed: …
    """
    layout = "tokens" if len(shape) == 2 and image else _implied_layout(call.layer) or layout
    return Layer(
        name=name,
        kind=type(call.layer).__name__,
        shape=shape_to_channels_first(shape, layout),
        layout=layout,
        is_output=is_output,
        has_map=not (image and len(shape) > 2 and _has_heads(call)),
        folds_batch=folds_batch,
        reaches_output=bool(leads_to),
        leads_to=leads_to,
        differentiable=differentiable,
        depends_on_input=depends_on_input,
        bypassed=bypassed,
        dtype=str(getattr(call.layer, "compute_dtype", None) or "float32"),
    )


def _implied_layout(layer: keras.layers.Layer) -> Layout | None:
    """Return the layout that a layer declares, or that follows from the axis that it works on; None: unknown."""
    declared = getattr(layer, "data_format", None)
    if declared in ("channels_first", "channels_last"):
        return cast(Layout, declared)
    if isinstance(layer, keras.layers.Dense | keras.layers.EinsumDense):
        return "channels_last"
    axes = list(np.ravel(layer.axis)) if isinstance(layer, NORMALISATIONS) else []
    return ("channels_first" if axes == [1] else "channels_last") if len(axes) == 1 else None


def _has_heads(call: Call) -> bool:
    """Return whether a value has an axis of attention heads: queries [N, T, heads, C], weights [N, heads, T, T]."""
    if isinstance(call.layer, keras.layers.EinsumDense):
        operands, written = call.layer.equation.split("->")
        return len(written) > len(operands.split(",")[0])
    return any(isinstance(layer, ATTENTIONS) for layer in call.outer)


def all_outputs(model: keras.Model, structured: Any) -> dict[str, Any]:
    """Return the model's outputs by name: Keras' names, or `output_0`, `output_1`, … where it has none.

    Args:
        model: the model.
        structured: its return value.
    """
    flat = keras.tree.flatten(structured)
    names = list(getattr(model, "output_names", None) or [])
    if isinstance(structured, Mapping) and len(structured) == len(flat):
        declared = _declared_outputs(model)
        if isinstance(declared, Mapping) and set(declared) == set(structured):
            structured = {name: structured[name] for name in declared}  # on torch Keras sorts them
        names, flat = [str(name) for name in structured], list(structured.values())
    if not len(names) == len(flat) == len(set(names)):
        names = [f"output_{i}" for i in range(len(flat))]
    return dict(zip(names, flat, strict=True))


def float_outputs(model: keras.Model, structured: Any, is_float: Callable[[Any], bool]) -> dict[str, Any]:
    """Return the float tensors of `all_outputs`.

    Raises:
        ModelError: there is none.
    """
    result = {name: tensor for name, tensor in all_outputs(model, structured).items() if is_float(tensor)}
    if not result:
        raise ModelError(
            f"cannot explain {model.name}: it has no float output, which a score needs; wrap it in a model "
            "that returns its class scores"
        )
    return result


def _declared_outputs(model: keras.Model) -> Any:
    """Return the outputs that the model was built with; None for a subclassed one."""
    try:
        return model.output
    except (AttributeError, ValueError):
        return None
