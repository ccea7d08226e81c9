"""Tokens as a grid: a transformer's [N, C, T] seen as [N, C, h, w], and back.

Class and register tokens stand before the patches; they are set aside, and put back when a value goes back into the
model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from xcam.contract import Array, InputSpec, Layer
from xcam.errors import ModelError

MOST_EXTRA = 8
"""More class and register tokens than this are not looked for."""


@dataclass(frozen=True)
class Grid:
    """How many tokens stand before the patches, and the patches' (h, w); None where there is nothing to unfold."""

    extra: int = 0
    size: tuple[int, int] | None = None

    def view(self, tokens: Array) -> Array:
        """[N, C, T] → [N, C, h, w], row by row; anything else as it is."""
        return tokens if self.size is None else tokens[..., self.extra :].reshape(*tokens.shape[:2], *self.size)

    def restore(self, view: Array, tokens: Array) -> Array:
        """[N, C, h, w] → [N, C, T], with the extra tokens of `tokens` [N, C, T] before it. The inverse of `view`."""
        if self.size is None:
            return view
        return np.concatenate([tokens[..., : self.extra], view.reshape(*view.shape[:2], -1)], axis=-1)


def grid(layer: Layer, count: int, spec: InputSpec, batch_shape: Sequence[int]) -> Grid:
    """The grid of a layer with `count` tokens, from the shape of the batch that went in. Raises ModelError."""
    if layer.layout != "tokens":
        return Grid()
    if len(layer.shape) != 2:
        raise ModelError(
            f"layer {layer.name!r} keeps {len(layer.shape)} axes, and tokens have two; leave --layout out"
        )
    space = batch_shape[1:-1] if spec.layout == "channels_last" else batch_shape[2:]
    found = infer(count, (space[0], space[1]))
    if found is None:
        raise ModelError(
            f"the {count} tokens of layer {layer.name!r} make no grid over a picture of {space[0]}×{space[1]}; "
            "choose a layer whose tokens are patches, or give --layout if they are no tokens"
        )
    return found


def infer(count: int, picture: tuple[int, int]) -> Grid | None:
    """The grid of `count` tokens over a picture (height, width): square patches, as few extra tokens as it takes."""
    height, width = picture
    for extra in range(min(MOST_EXTRA, count - 1) + 1):
        for patch in range(1, min(height, width) + 1):
            cut_off = (height // patch, width // patch)
            padded = (-(-height // patch), -(-width // patch))
            for size in (cut_off, padded):
                if size[0] * size[1] == count - extra > 1:
                    return Grid(extra, size)
    return None
