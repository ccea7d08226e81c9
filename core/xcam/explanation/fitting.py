"""The values of a layer in the spatial axes of the input, for inputs of any number of axes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from xcam.contract import Array, InputSpec, Layer, Model, Trace, validation
from xcam.contract.layouts import MOST_EXTRA
from xcam.errors import ModelError, warn
from xcam.explanation import tokens
from xcam.explanation.tokens import Grid
from xcam.models.load import by

INPUTS = {1: "a signal", 2: "an image", 3: "a volume"}
AXES = {1: "one spatial axis", 2: "two spatial axes", 3: "three spatial axes"}
CHANGES_LENGTH = ("conv", "pad", "pool", "sampl", "resize")
"""Parts of the names of layer kinds that change the number of positions, and add no class token."""


@dataclass(frozen=True)
class Squeezed(Grid):
    """The values of a layer without leading spatial axes of length one, which the model's input does not have.

    A converted model of signals often runs on images of one row.
    """

    size: tuple[int, ...] | None = ()  # type: ignore[assignment]
    """The spatial size with the leading axes."""

    def view(self, tokens: Array) -> Array:
        """Return [N, C, 1, …, *space] as [N, C, *space]."""
        return tokens.reshape(*tokens.shape[:2], *tokens.shape[2 + self.extra :])

    def restore(self, view: Array, tokens: Array) -> Array:
        """Return [N, C, *space] as [N, C, 1, …, *space]."""
        return view.reshape(*view.shape[:2], *[1] * self.extra, *view.shape[2:])


def fitted_grid(
    model: Model, layer: Layer, trace: Trace, spec: InputSpec, batch_shape: Sequence[int], rank: int
) -> Grid:
    """Return the grid in which a layer's values have the spatial axes of the input.

    Args:
        model: The model.
        layer: The layer.
        trace: A trace at the layer.
        spec: The model's input.
        batch_shape: The shape of the batch in the model's layout.
        rank: The number of spatial axes of the input.

    Raises:
        ModelError: The layer does not have these axes.

    Warns:
        XcamWarning: Most positions of the layer do not reach the output.
    """
    if layer.layout == "tokens" and rank != 2:
        raise ModelError(
            f"layer {layer.name!r} has tokens, and their grid is known for images only; choose a layer with {AXES[rank]}"
        )
    count = trace.activations.shape[-1]
    grid = tokens.grid(layer, count, spec, batch_shape)
    space = grid.view(trace.activations).shape[2:]
    extra = len(space) - rank
    if extra > 0 and grid == Grid() and set(space[:extra]) == {1}:
        grid = Squeezed(extra)
    elif extra:
        raise ModelError(
            f"layer {layer.name!r} has values of {by(space)} for each channel, and a map over {INPUTS[rank]} needs "
            f"{AXES[rank]}; choose another layer"
        )
    elif rank == 1:
        class_tokens = _class_tokens(model, layer, count)
        grid = Grid(class_tokens, (count - class_tokens,)) if class_tokens else grid  # type: ignore[arg-type]
    if rank != 2 and trace.gradients:
        _warn_if_sparse(layer, trace.gradients)
    return grid


def _class_tokens(model: Model, layer: Layer, count: int) -> int:
    """Return the number of class tokens in front of the positions of a sequence.

    The first layer with as many positions has a few more than an earlier one, and does not itself change their number as
    convolutions and padding do.
    """
    before: set[int] = set()
    for other in validation.layers(model):
        length = other.shape[1] if len(other.shape) == 2 else None
        if length == count:
            if any(part in other.kind.lower() for part in CHANGES_LENGTH):
                return 0
            shorter = [n for n in before if 1 < n < count < 2 * n and count - n <= MOST_EXTRA]
            return count - max(shorter) if shorter else 0
        if length is not None and other.reaches_output and other.depends_on_input is not False:
            before.add(length)
    return 0


def _warn_if_sparse(layer: Layer, gradients: Sequence[Array]) -> None:
    """Warn where the output reads only few positions of a layer, in all channels alike: a class token, the last step."""
    read = np.any([gradient != 0 for gradient in gradients], axis=(0, 1)).reshape(gradients[0].shape[1], -1)
    positions = read.any(axis=0)
    if positions.any() and positions.mean() <= 0.5 and read[:, positions].mean() > 0.25:
        warn(
            f"the output depends on {np.count_nonzero(positions)} of {len(positions)} positions of layer {layer.name!r}, "
            "and the map is zero at all others; choose an earlier layer"
        )
