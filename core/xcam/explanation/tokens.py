"""Tokens as a grid: a transformer's [N, C, T] as [N, C, h, w], and back.

Class and register tokens come before the patches; they are left out of the grid, and inserted again when values are
passed to the model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from xcam.contract import Array, InputSpec, Layer
from xcam.contract.layouts import token_grid
from xcam.errors import ModelError


@dataclass(frozen=True)
class Grid:
    """The grid of the patches."""

    extra: int = 0
    """The number of tokens before the patches."""
    size: tuple[int, int] | None = None
    """(h, w) of the patches; None for a layer without tokens."""

    def view(self, tokens: Array) -> Array:
        """Return [N, C, T] as [N, C, h, w], row by row; the values of a layer without tokens unchanged."""
        return tokens if self.size is None else tokens[..., self.extra :].reshape(*tokens.shape[:2], *self.size)

    def restore(self, view: Array, tokens: Array) -> Array:
        """Return [N, C, h, w] as [N, C, T], after the extra tokens of `tokens` [N, C, T]: the inverse of `view`."""
        if self.size is None:
            return view
        return np.concatenate([tokens[..., : self.extra], view.reshape(*view.shape[:2], -1)], axis=-1)


def grid(layer: Layer, count: int, spec: InputSpec, batch_shape: Sequence[int]) -> Grid:
    """Return the grid of a layer with `count` tokens, from the shape of the model's input. Raises ModelError."""
    space = batch_shape[1:-1] if spec.layout == "channels_last" else batch_shape[2:]
    if layer.layout == "tokens" and len(layer.shape) != 2:
        raise ModelError(
            f"layer {layer.name!r} has {len(layer.shape)} axes, and tokens have two; leave layout out (--layout)"
        )
    if len(layer.shape) != 2 or len(space) != 2:
        return Grid()
    result = token_grid(count, (space[0], space[1]))
    if result is None and layer.layout != "tokens":
        return Grid()
    if result is None:
        raise ModelError(
            f"the {count} tokens of layer {layer.name!r} do not fit a grid over an image of {space[0]}×{space[1]}; "
            "choose a layer whose tokens are patches, or one with rows and columns"
        )
    return Grid(*result)
