"""Finding a layer: by name, with the nearest offered when there is none; or the default, by one rule for all frameworks."""

from __future__ import annotations

from xcam.contract import Layer, Model, validation
from xcam.errors import InputError, ModelError, nearest

PASSIVE = (
    "pool",
    "pad",
    "crop",
    "drop",
    "stochasticdepth",
    "flatten",
    "reshape",
    "permute",
    "transpose",
    "squeeze",
    "identity",
)
"""Kinds that only move, gather or thin out values (by a part of their name, in any framework)."""


def default(model: Model) -> Layer:
    """The last layer that still has space: convolutions, merges, normalisations and activations count.

    What only moves or gathers values (pooling, padding, dropout, reshaping) does not, nor what is itself the output,
    nor what leads to no output. Among tokens, the last normalisation whose patches still reach the output: behind the
    last attention of a vision transformer only the class token does.
    """
    fit = [
        layer
        for layer in validation.layers(model)
        if layer.has_space
        and not layer.inner
        and layer.reaches_output
        and not layer.folds_batch
        and not layer.is_output
        and not any(word in layer.kind.lower() for word in PASSIVE)
    ]
    if not fit:
        raise ModelError(
            f"no layer of {model.name} has space (more than one position) before its output: there is nothing to map; "
            "`xcam layers` shows their shapes"
        )
    if (
        fit[-1].layout == "tokens"
    ):  # inside attention stand projections; what all of it reads is normalised ahead of it
        fit = [layer for layer in fit if layer.layout == "tokens" and "norm" in layer.kind.lower()] or fit
    return fit[-1]


def find(model: Model, name: str | Layer | None) -> Layer:
    """The layer called `name`, or the default. Raises InputError when there is none, or when it cannot be mapped."""
    name = getattr(model, "default_layer", None) if name is None else name
    if name is None:
        return default(model)
    name = name.name if isinstance(name, Layer) else name
    known = validation.layers(model)
    layer = next((layer for layer in known if layer.name == name), None)
    layer = layer or next((layer for layer in known if name in layer.aliases), None)
    if layer is None:
        raise InputError(
            validation.explain_missing_layer(model, name)
            or f"no layer {name!r} in {model.name}; {nearest(name, [layer.name for layer in known if layer.has_space and not layer.inner])}; "
            "`xcam layers` lists them"
        )
    if not layer.has_space:
        shape = "×".join(map(str, layer.shape))
        raise InputError(
            f"layer {name!r} has no space: its shape is {shape}, channels first; "
            f"choose an earlier one, for example {default(model).name!r}"
        )
    if layer.folds_batch:
        raise InputError(
            f"layer {name!r} folds windows or frames into the batch, so it has no map of a whole picture; "
            f"choose another, for example {default(model).name!r}"
        )
    if not layer.reaches_output:
        raise InputError(
            f"layer {name!r} leads to no output of {model.name}: nothing that the model says depends on it; "
            f"choose another, for example {default(model).name!r}"
        )
    return layer
