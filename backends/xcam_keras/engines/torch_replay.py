"""`resume` on torch, spared the layers ahead of the one that is cut open.

torch keeps no graph to run a part of. So the whole model is called, but a layer call ahead of the cut returns what it
returned before, row by row, without being made: if what follows the cut reads it. The others return NaN, which nothing
is to read. Whether that holds, torch's own graph of one pass tells, and a trial against the whole model confirms.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import keras
import torch
from torch import Tensor
from torch.autograd.graph import get_gradient_edge

from xcam_keras import calls

if TYPE_CHECKING:
    from xcam_keras.engines.torch import Key, Recording

Beside = Mapping["Key", Any]
"""What calls that pass the layer by returned, for one batch."""


class Replay:
    """Which calls are spared when the model is cut open at one layer."""

    def __init__(self, recording: Recording, key: Key, ahead: Mapping[Key, Any], read: set[Key]) -> None:
        self._recording, self._key, self._read = recording, key, read
        self._shapes = {call: keras.tree.map_structure(_like, value) for call, value in ahead.items()}

    def beside(self, x: Tensor) -> Beside:
        """What the calls that are read behind the cut return for the batch `x`."""
        kept: dict[Key, Any] = {}

        def note(call: calls.Seen) -> Any:
            if (call.name, call.index) in self._read:
                kept[call.name, call.index] = keras.tree.map_structure(torch.clone, call.value)
            return call.value

        if self._read:
            with torch.no_grad():
                self._recording.forward(x, note)
        return kept

    def skip(self, beside: Beside, rows: Sequence[int]) -> calls.Skip:
        """What calls return for these rows of the batch that `beside` was made for."""

        def value(name: str, index: int) -> Any:
            call = (name, index)
            if call in beside:
                return keras.tree.map_structure(lambda t: t[list(rows)], beside[call])
            if call in self._shapes:
                return keras.tree.map_structure(lambda t: t.expand(len(rows), *t.shape[1:]), self._shapes[call])
            return None

        return value


def replay(recording: Recording, name: str) -> Replay | None:
    """The replay for a layer; None where nothing can be spared, or the trial fails."""
    try:
        found = _planned(recording, name)
        return found if found is not None and _holds(recording, name, found) else None
    except MemoryError:
        raise
    except Exception:  # whatever a model does with NaN, or a layer that notes something when it is called
        return None


def _planned(recording: Recording, name: str) -> Replay | None:
    from xcam_keras.engines.torch import ancestors, first_float

    _, cut_off, seen = recording.look()
    key = recording.keys[name]
    place = next(i for i, call in enumerate(seen) if (call.name, call.index) == key)
    cut = seen[place]
    batch = len(recording.noise)
    ahead: dict[Key, Any] = {}
    nodes: dict[Any, set[Key]] = {}
    for call in seen[:place]:
        if call.start > cut.start:  # a part of the layer itself
            continue
        tensors = keras.tree.flatten(call.value)
        if not all(isinstance(t, Tensor) and t.is_floating_point() and t.shape[:1] == (batch,) for t in tensors):
            return None
        ahead[call.name, call.index] = call.value
        for t in tensors:
            nodes.setdefault(get_gradient_edge(t).node, set()).add((call.name, call.index))
    here = get_gradient_edge(first_float(cut.value)).node
    reached = ancestors([t for t, _ in cut_off.values()], stop=[here, *nodes])
    return (
        Replay(recording, key, ahead, {k for node in reached - {here} for k in nodes.get(node, ())})
        if ahead
        else None
    )


def _holds(recording: Recording, name: str, replay: Replay) -> bool:
    """Whether it gives what the whole model gives, for other values of the layer, and rows in another order."""
    x = recording.tensor(recording.noise)
    rows = [1, 0, 1]
    _, own = recording.cut(x[rows], name, None, False)
    put = own * torch.rand(own.shape, generator=torch.Generator().manual_seed(0)).to(own)
    expected, _ = recording.cut(x[rows], name, put, False)
    found, _ = recording.cut(x[rows], name, put, False, replay.skip(replay.beside(x), rows))
    return all(
        torch.allclose(a, b, rtol=1e-3, atol=1e-4 * float(b.abs().max()))
        for a, b in zip(found, expected, strict=True)
    )


def _like(tensor: Tensor) -> Tensor:
    """NaN in the shape of one row, without its memory."""
    return torch.full((), float("nan"), dtype=tensor.dtype, device=tensor.device).expand(1, *tensor.shape[1:])
