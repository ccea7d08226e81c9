"""Choice of a layer: by its name, or the default layer, by one rule for all frameworks."""

from __future__ import annotations

from xcam.contract import Layer, Model, validation
from xcam.contract.abilities import NamesDefaultLayer, supports
from xcam.contract.messages import unknown_layer
from xcam.errors import InputError, ModelError

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
"""Parts of the names of layer kinds, in any framework, that only move, pool or drop values."""


def default(model: Model) -> Layer:
    """Return the last layer that still has spatial axes.

    Convolutions, merges, normalisations and activations are candidates. Layers that only move or pool values (pooling,
    padding, dropout, reshaping), outputs, and layers without a path to an output are not. Where the last candidate
    is a layer of tokens, the last normalisation of tokens is returned: all of the following attention reads it,
    whereas after the last attention of a vision transformer only the class token reaches the output.

    Raises:
        ModelError: The model has no such layer.
    """
    candidates = [
        layer
        for layer in validation.layers(model)
        if layer.has_space
        and not layer.inner
        and layer.reaches_output
        and not layer.folds_batch
        and not layer.is_output
        and not any(part in layer.kind.lower() for part in PASSIVE)
    ]
    if not candidates:
        raise ModelError(
            f"cannot choose a layer of {model.name}: none before its output has spatial axes with more than one position; "
            "`xcam layers` shows their shapes"
        )
    if candidates[-1].layout == "tokens":
        norms = [layer for layer in candidates if layer.layout == "tokens" and "norm" in layer.kind.lower()]
        candidates = norms or candidates
    return candidates[-1]


def find(model: Model, name: str | Layer | None) -> Layer:
    """Return a layer that can be explained.

    Args:
        model: The model.
        name: The layer's name, an alias of it, or a layer; None for the default layer.

    Returns:
        The layer.

    Raises:
        InputError: The layer does not exist, or has no map: it has no spatial axes, has parts of an image on its batch
            axis, or does not reach the output.
        ModelError: No name is given, and the model has no layer that can be explained.
    """
    if name is None and supports(model, NamesDefaultLayer):
        name = model.default_layer
    if name is None:
        return default(model)
    name = name.name if isinstance(name, Layer) else name
    known = validation.layers(model)
    layer = next((layer for layer in known if layer.name == name), None)
    layer = layer or next((layer for layer in known if name in layer.aliases), None)
    if layer is None:
        reason = validation.explain_missing_layer(model, name)
        listed = [layer.name for layer in known if layer.has_space and not layer.inner]
        raise InputError(reason) if reason else unknown_layer(name, model.name, listed)
    if not layer.has_space:
        shape = "×".join(map(str, layer.shape))
        raise InputError(
            f"cannot explain layer {name!r}: it has no spatial axes, its shape is {shape} (channels first); "
            f"choose an earlier layer, for example {default(model).name!r}"
        )
    if layer.folds_batch:
        raise InputError(
            f"cannot explain layer {name!r}: its batch axis contains windows or frames of an image; "
            f"choose another layer, for example {default(model).name!r}"
        )
    if not layer.reaches_output:
        raise InputError(
            f"cannot explain layer {name!r}: no output of {model.name} depends on it; "
            f"choose another layer, for example {default(model).name!r}"
        )
    return layer
