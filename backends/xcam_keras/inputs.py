"""The input of a Keras model: shape, layout, dtype, and whether the model scales pixels itself."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import keras

from xcam.contract.layouts import filled
from xcam.contract.messages import one_input
from xcam.contract.preprocessing import Preprocessing
from xcam.contract.types import InputSpec, Layout
from xcam_keras.scaling import computed


def data_format(model: keras.Model) -> Layout:
    """Return `channels_first` or `channels_last`: that of the first layer that declares one, or Keras' setting."""
    formats = (getattr(layer, "data_format", None) for layer in model._flatten_layers(include_self=False))
    known = (name for name in formats if name in ("channels_first", "channels_last"))
    result: Layout = next(known, keras.config.image_data_format())
    return result


def input_spec(
    model: keras.Model, layout: Layout, preprocessing: Preprocessing | None, size: tuple[int | None, ...] | None
) -> InputSpec:
    """Return the description of the model's input.

    Args:
        model: a model of any kind; a subclassed one that was never called has an open size.
        layout: layout of the input.
        preprocessing: as the model's library states it; None: as the model's own scaling needs it, otherwise unknown.
        size: size to use where the model leaves it open.

    Raises:
        ModelError: the model has several inputs.
    """
    try:
        shape = model.input_shape
    except (AttributeError, ValueError):  # subclassed: it has no symbolic input
        shape = getattr(model, "_build_shapes_dict", None) and next(iter(model._build_shapes_dict.values()))
    if isinstance(shape, dict | list) or (isinstance(shape, tuple) and any(isinstance(s, tuple) for s in shape)):
        shapes = list(shape.values()) if isinstance(shape, dict) else list(shape)
        if len(shapes) != 1 or not isinstance(shapes[0], tuple):
            raise one_input(model.name, len(shapes), "wrap it in a model that fixes the others")
        shape = shapes[0]
    dims = tuple(shape[1:]) if shape else (None, None, 3)
    if len(dims) == _axes_of_convolution(model):
        channels, space = 0, dims
    else:
        channels, space = (dims[0], dims[1:]) if layout == "channels_first" else (dims[-1], dims[:-1])
    dtypes = (keras.backend.standardize_dtype(tensor.dtype) for tensor in symbolic_inputs(model))
    dtype = next(dtypes, "float32")
    spec = InputSpec(
        size=filled(space, None) or size,
        channels=3 if channels is None else channels,
        layout=layout,
        dtype="float32" if dtype == "bfloat16" else dtype,  # NumPy does not have it, and Keras converts
        fixed=any(space),
        channels_known=channels is not None and bool(shape),
        axes=len(space) if shape else None,
    )
    needed = computed(model, spec)
    return dataclasses.replace(spec, preprocessing=preprocessing or needed, needs=needed)


def _axes_of_convolution(model: keras.Model) -> int | None:
    """Return the number of spatial axes of the first convolution: 2 for Conv2D; None without one.

    A model whose input has as many axes, the batch not counted, adds the channel axis itself.
    """
    ranks = (getattr(layer, "rank", None) for layer in model._flatten_layers(include_self=False))
    return next((rank for rank in ranks if isinstance(rank, int)), None)


def symbolic_inputs(model: keras.Model) -> Sequence[Any]:
    """Return the model's symbolic inputs; none for a subclassed model."""
    try:
        return list(model.inputs or ())
    except (AttributeError, ValueError):
        return ()
