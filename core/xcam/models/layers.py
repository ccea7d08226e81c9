"""Choice of a layer: by its name, or the default layer, by one rule for all frameworks."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from xcam.contract import Layer, Model, validation
from xcam.contract.abilities import NamesDefaultLayer, supports
from xcam.contract.layouts import full_size, token_grid
from xcam.contract.messages import unknown_layer
from xcam.errors import InputError, ModelError, warn

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

NORMS = ("norm", "mvn", "rms")
"""Parts of the names of normalisations; OpenVINO calls that of a layer MVN."""

COARSE = 2
"""A map with an axis of at most this many positions shows hardly any location."""


def default(model: Model, outputs: Collection[str] | None = (), gradients: bool = False) -> Layer:
    """Return the last layer that still has spatial axes.

    Convolutions, merges, normalisations and activations are candidates. Layers that only move or pool values (pooling,
    padding, dropout, reshaping), outputs, and layers without a path to an output are not; nor are layers whose value
    does not depend on the image, or does not follow its rows and columns. Where the last candidate is a layer of
    tokens, the last normalisation of tokens is returned: all of the following attention reads it, whereas after the
    last attention of a vision transformer only the class token reaches the output.

    Args:
        model: The model.
        outputs: The names of the outputs that are explained; empty: the first; None: not known.
        gradients: Whether the layer must have a gradient.

    Raises:
        ModelError: The model has no such layer.
    """
    able = candidates(model, outputs)
    if gradients and able:
        without = able
        able = [layer for layer in able if layer.differentiable]
        if not able:
            raise ModelError(
                f"cannot differentiate {model.name}: the gradient of its output reaches no layer with spatial axes (the "
                f"last one, {without[-1].name!r}, is detached or followed by operations without a gradient); choose a "
                "method without gradients, for example eigencam or scorecam"
            )
    if not able:
        raise ModelError(
            f"cannot choose a layer of {model.name}: none before its output has spatial axes with more than one position; "
            "`xcam layers` shows their shapes"
        )
    return _last(able)


def _last(candidates: Sequence[Layer]) -> Layer:
    if candidates[-1].layout == "tokens":
        tokens = [layer for layer in candidates if layer.layout == "tokens"]
        norms = [layer for layer in tokens if any(part in layer.kind.lower() for part in NORMS)]
        candidates = norms or candidates
    return candidates[-1]


def candidates(model: Model, outputs: Collection[str] | None) -> list[Layer]:
    """Return the layers that may be the default layer."""
    outputs = _named(model, outputs)
    return [
        layer
        for layer in validation.layers(model)
        if layer.has_space
        and not layer.inner
        and layer.reaches_output
        and layer.depends_on_input is not False
        and not layer.folds_batch
        and not layer.is_output
        and (layer.leads_to is None or set(outputs) <= set(layer.leads_to))
        and not any(part in layer.kind.lower() for part in PASSIVE)
        and not (layer.layout == "tokens" and model.input.rank == 2 and grid_size(model, layer) is None)
    ]


def _named(model: Model, outputs: Collection[str] | None) -> Collection[str]:
    """Return the names of the explained outputs; none where the model has one output, or they are not known."""
    activation = validation.activation(model)
    if outputs is None or not isinstance(activation, Mapping):
        return ()
    return outputs or (next(iter(activation)),)


def warn_if_coarse(model: Model, layer: Layer, outputs: Collection[str] | None = ()) -> None:
    """Warn where a default layer has two positions or fewer along an axis, and name a finer layer."""
    size = grid_size(model, layer)
    if model.input.rank not in (2, None) or size is None or len(size) != 2 or min(size) > COARSE:
        return
    others = [other for other in candidates(model, outputs) if min(grid_size(model, other) or (0,)) > COARSE]
    grid = "×".join(map(str, size))
    if others:
        remedy = f"choose a finer one, for example layer={_last(others).name!r} (--layer)"
    else:
        remedy = "no layer is finer" if model.input.fixed else "give a larger size= (--size)"
    warn(f"the map of {model.name} has only {grid} positions at its default layer {layer.name!r}; {remedy}")


def grid_size(model: Model, layer: Layer) -> tuple[int, ...] | None:
    """Return the size of a layer's map; None where it is not known."""
    if layer.layout == "tokens":
        sides = full_size(model.input.size)
        grid = token_grid(layer.shape[-1] or 0, (sides[0], sides[1])) if len(sides) == 2 else None
        return grid[1] if grid else None
    space = layer.shape[1:]
    return tuple(n for n in space if n is not None) if None not in space else None


def find(
    model: Model, name: str | Layer | None, outputs: Collection[str] | None = (), gradients: bool = False
) -> Layer:
    """Return a layer that can be explained.

    Args:
        model: The model.
        name: The layer's name, an alias of it, or a layer; None for the default layer.
        outputs: The names of the outputs that are explained; empty: the first; None: not known.
        gradients: Whether a default layer must have a gradient.

    Returns:
        The layer.

    Raises:
        InputError: The layer does not exist, or has no map: it has no spatial axes, has parts of an image on its batch
            axis, does not depend on the image, or does not reach the output.
        ModelError: No name is given, and the model has no layer that can be explained.
    """
    if name is None and supports(model, NamesDefaultLayer):
        name = model.default_layer
    if name is None:
        return default(model, outputs, gradients)
    name = name.name if isinstance(name, Layer) else name
    known = validation.layers(model)
    layer = next((layer for layer in known if layer.name == name), None)
    layer = layer or next((layer for layer in known if name in layer.aliases), None)
    if layer is None:
        reason = validation.explain_missing_layer(model, name)
        listed = [layer.name for layer in known if layer.has_space and not layer.inner]
        raise InputError(reason) if reason else unknown_layer(name, model.name, listed)
    cause = _without_map(model, layer, outputs)
    if cause is not None:
        raise InputError(f"cannot explain layer {name!r}: {cause}; choose {_another(model, outputs)}")
    return layer


def _without_map(model: Model, layer: Layer, outputs: Collection[str] | None) -> str | None:
    """Return the reason why a layer has no map of the image; None where it has one."""
    if layer.depends_on_input is False:
        return "its value does not depend on the image (a constant, or the branch of a fixed reference image)"
    shape = "×".join(map(str, layer.shape))
    if not layer.has_map and not layer.folds_batch:
        return (
            f"its values ({shape}) do not follow the image's rows and columns (heads of attention, windows, channels)"
        )
    if not layer.has_space:
        return f"it has no spatial axes, its shape is {shape} (channels first)"
    if layer.folds_batch:
        return "its batch axis contains windows or frames of an image"
    if not layer.reaches_output:
        return f"no output of {model.name} depends on it"
    missing = [output for output in _named(model, outputs) if output not in (layer.leads_to or (output,))]
    if missing:
        leads_to = ", ".join(layer.leads_to or ()) or "none"
        return f"the output {missing[0]!r} does not depend on it (it leads to: {leads_to})"
    return None


def _another(model: Model, outputs: Collection[str] | None) -> str:
    able = candidates(model, outputs)
    return f"another layer, for example {_last(able).name!r}" if able else "another model"
