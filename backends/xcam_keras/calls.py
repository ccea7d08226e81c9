"""What a forward pass of a Keras model calls, in order: the same for every engine."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import keras

from xcam.errors import ModelError


@dataclass(frozen=True)
class Seen:
    """One call of one layer, noted when it ended."""

    start: int
    """Its place in the order in which calls began; a container begins before its parts and ends after them."""
    name: str
    """The names of the layers that it is in, and its own, joined by `/`."""
    index: int
    """Which of the calls of this name, from 0."""
    layer: keras.layers.Layer
    value: Any
    """What the call returned; from `named`, its first float tensor."""


Skip = Callable[[str, int], Any]
"""Name and index of a call that is about to begin → what it is taken to return, or None: it is called."""

_patching = threading.Lock()
_watching = 0
_original: Any = None
_local = threading.local()


@contextmanager
def watching(note: Callable[[Seen], Any], skip: Skip | None = None) -> Iterator[None]:
    """Give every layer call of this thread to `note`, but for the outermost; what it returns takes the value's place.

    skip: spares calls that need not be made; `note` hears nothing of what is within them.

    Keras has no hook for this: as long as some thread watches, the method of the class is another one, which hands the
    calls of all other threads on.
    """
    global _watching, _original
    with _patching:
        if not _watching:
            _original = keras.layers.Layer.__call__
            keras.layers.Layer.__call__ = _noting
        _watching += 1
    before = getattr(_local, "watch", None)
    _local.watch = _Watch(note, skip)
    try:
        yield
    finally:
        _local.watch = before
        with _patching:
            _watching -= 1
            if not _watching:
                keras.layers.Layer.__call__ = _original


class _Watch:
    def __init__(self, note: Callable[[Seen], Any], skip: Skip | None) -> None:
        self.note, self.skip = note, skip
        self.path: list[str] = []
        self.starts = itertools.count()
        self.count: dict[str, int] = {}


def _noting(layer: keras.layers.Layer, *args: Any, **kwargs: Any) -> Any:
    watch: _Watch | None = getattr(_local, "watch", None)
    if watch is None:
        return _original(layer, *args, **kwargs)
    watch.path.append(layer.name)
    name = "/".join(watch.path[1:])
    start = next(watch.starts)
    index = watch.count[name] = watch.count.get(name, -1) + 1
    try:
        value = watch.skip(name, index) if watch.skip and name else None
        if value is None:
            value = _original(layer, *args, **kwargs)
    finally:
        watch.path.pop()
    return watch.note(Seen(start, name, index, layer, value)) if name else value


def named(calls: Sequence[Seen], tensor: Callable[[Any], bool], key: Callable[[Any], Any] = id) -> dict[str, Seen]:
    """Calls by name, in execution order, each with its first tensor that `tensor` takes; those without one are left out.

    Of several calls of one layer the last has the plain name, the others a number. A container whose value is a part's
    value (a backbone) stands before that part; `key` says whether two tensors are the same.
    """
    inside = []
    for call in calls:
        value = next((t for t in keras.tree.flatten(call.value) if tensor(t)), None)
        if value is not None:
            inside.append(replace(call, value=value))
    total: dict[str, int] = {}
    for call in inside:
        total[call.name] = total.get(call.name, 0) + 1
    count: dict[str, int] = {}
    ordered: list[tuple[str, Seen]] = []
    for call in inside:
        k = count[call.name] = count.get(call.name, -1) + 1
        name = call.name if k == total[call.name] - 1 else f"{call.name}#{k}"
        same = (
            i for i, (_, part) in enumerate(ordered) if part.start > call.start and key(part.value) == key(call.value)
        )
        ordered.insert(next(same, len(ordered)), (name, call))
    return dict(ordered)


def outputs(model: keras.Model, structured: Any, is_float: Callable[[Any], bool]) -> dict[str, Any]:
    """The float outputs by name, of what the model returned. Raises ModelError when there is none."""
    flat = keras.tree.flatten(structured)
    if isinstance(structured, Mapping):
        declared = _declared(model)
        if isinstance(declared, Mapping) and set(declared) == set(structured):
            structured = {name: structured[name] for name in declared}  # on torch Keras sorts them
        names = [str(name) for name in structured] if len(flat) == len(structured) else []
        flat = [structured[name] for name in structured] if names else flat
    else:
        names = list(getattr(model, "output_names", None) or [])
    if len(names) != len(flat):
        names = [f"output_{i}" for i in range(len(flat))]
    found = {name: tensor for name, tensor in zip(names, flat, strict=True) if is_float(tensor)}
    if not found:
        raise ModelError(f"{model.name} has no float output, and a score needs one; wrap it in a model that has")
    return found


def _declared(model: keras.Model) -> Any:
    """The outputs that the model was made with; None for a subclassed one."""
    try:
        return model.output
    except (AttributeError, ValueError):
        return None
