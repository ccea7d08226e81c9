"""Replay of the layer calls before a cut, for `resume` on torch.

torch keeps no graph of which a part could be run. Therefore the whole model is called, but layer calls before the cut
are not computed: they return their earlier values row by row if the tail reads them, else NaN. torch's own graph of one
pass shows which values the tail reads, and a run of the whole model confirms it (see xcam_keras.engines.torch).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import torch
from torch import Tensor
from torch.autograd.graph import Node

from xcam_keras import calls
from xcam_keras.calls import Key
from xcam_keras.engines.torch_graph import ancestors, is_float, node_of

Bypass = Mapping[Key, Any]
"""The return values of the calls before the cut that the tail reads, for one batch."""


@dataclass(frozen=True)
class Replay:
    """The calls that need not be computed when the model is cut at one layer."""

    ahead: Mapping[Key, Any]
    """The calls before the cut, with NaN in the shape of one row of their values."""
    read: set[Key]
    """The calls whose values the tail reads."""

    def skip(self, bypass: Bypass, rows: Sequence[int]) -> calls.Skip:
        """Return the return values of these calls, for the given rows of the batch of `bypass`."""

        def value(key: Key) -> Any:
            if key in bypass:
                return keras.tree.map_structure(lambda t: t[list(rows)], bypass[key])
            if key in self.ahead:
                return keras.tree.map_structure(lambda t: t.expand(len(rows), *t.shape[1:]), self.ahead[key])
            return None

        return value


def planned(key: Key, seen: Sequence[calls.Call], outputs: Sequence[Tensor], batch: int) -> Replay | None:
    """Return the replay for the call `key`; None where no call comes before it, or one has a value that is not row by row.

    Args:
        key: the call at which the model is cut open.
        seen: all calls of a pass with torch's graph.
        outputs: the outputs of that pass.
        batch: its batch size.
    """
    position = next(i for i, call in enumerate(seen) if call.key == key)
    cut = seen[position]
    ahead: dict[Key, Any] = {}
    nodes: dict[Node, set[Key]] = {}
    for call in seen[:position]:
        if call.start > cut.start:  # a part of the layer itself
            continue
        tensors = keras.tree.flatten(call.value)
        if not all(is_float(t) and t.shape[:1] == (batch,) for t in tensors):
            return None
        ahead[call.key] = keras.tree.map_structure(_nan_row, call.value)
        for t in tensors:
            nodes.setdefault(node_of(t), set()).add(call.key)
    leaf = node_of(calls.first(cut.value, is_float))
    reached = ancestors(outputs, stop=[leaf, *nodes]) - {leaf}
    return Replay(ahead, {k for node in reached for k in nodes.get(node, ())}) if ahead else None


def _nan_row(tensor: Tensor) -> Tensor:
    """Return NaN in the shape of one row, without its memory."""
    return torch.full((), float("nan"), dtype=tensor.dtype, device=tensor.device).expand(1, *tensor.shape[1:])
