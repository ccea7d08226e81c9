"""Keras models with several inputs: a callable that takes the image alone, and passes fixed values for the others."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import keras
import numpy as np

from xcam.contract.fixed import FixedInputs, Form, TakenInput, chosen, decided, fitted, forms
from xcam.contract.messages import one_line
from xcam.contract.types import Array
from xcam.errors import InputError, ModelError
from xcam_keras.calls import all_outputs
from xcam_keras.inputs import symbolic_inputs

Arrange = Callable[[Mapping[str, Any]], tuple[Sequence[Any], Mapping[str, Any]]]
"""The values by name → the arguments of the model."""
AROUND = ("self", "training", "mask")


@dataclass
class OneInput:
    """A model that takes the image alone; every other attribute is the model's. See `with_fixed`."""

    model: keras.Model
    image: TakenInput
    arrange: Arrange
    forms: dict[str, Form]
    possible: Mapping[str, Sequence[Form]] = field(default_factory=dict)
    """The forms of values of a model that does not state the shapes that it takes: see `decide`."""

    def __call__(self, x: Any, training: bool = False) -> Any:
        """Run the model."""
        values = {self.image.name: x}
        for name, form in self.forms.items():
            value = form.value
            if isinstance(value, np.ndarray):
                value = keras.ops.convert_to_tensor(value)
                if form.repeated and len(form.value) == 1:
                    value = keras.ops.broadcast_to(value, (keras.ops.shape(x)[0], *form.value.shape[1:]))
            values[name] = value
        args, kwargs = self.arrange(values)
        return self.model(*args, **kwargs, training=training)

    def __getattr__(self, name: str) -> Any:
        if name in ("model", "image"):  # not set yet, in a copy
            raise AttributeError(name)
        return getattr(self.model, name)

    @property
    def inputs(self) -> list[Any]:
        """The symbolic input that takes the image; none in a subclassed model."""
        symbols = list(symbolic_inputs(self.model))
        names = [one.name for one in _taken(self.model)] if symbols else []
        return [symbol for symbol, name in zip(symbols, names, strict=True) if name == self.image.name]

    @property
    def input_shape(self) -> tuple[int | None, ...] | None:
        """The shape of the image's input."""
        return self.image.shape


def with_fixed(model: keras.Model, fixed: FixedInputs, size: Sequence[int | None] | None = None) -> Any:
    """Return a model that takes the image alone; the model itself where it has one input.

    Args:
        model: The model; it is not changed.
        fixed: The values of the other inputs.
        size: The size of images, where the model leaves it open.

    Raises:
        InputError: A value or a name does not fit.
        ModelError: An input has no value.
    """
    taken = _taken(model)
    symbolic = bool(symbolic_inputs(model))
    if not fixed and len([one for one in taken if not one.optional]) < 2:
        return model
    arrange = _functional(model, taken) if symbolic else _by_keyword
    if not symbolic and len(taken) == 1 and {*fixed.values, fixed.image} - {None} - {taken[0].name}:
        taken, arrange = _structured(model.name, taken[0].name, fixed)
    image = chosen(model.name, taken, fixed)
    known = {one.name: one for one in taken}
    values = {n: fitted(v, known[n], model.name, n in fixed.plain, size) for n, v in fixed.values.items()}
    if symbolic:
        return OneInput(model, image, arrange, {n: Form(v, bool(v.ndim)) for n, v in values.items()})
    scalars = (bool, int, float)
    possible = {
        n: forms(fixed.values[n] if isinstance(fixed.values[n], scalars) else v, n in fixed.plain)
        for n, v in values.items()
    }
    return OneInput(model, image, arrange, {n: f[0] for n, f in possible.items()}, possible)


def _taken(model: keras.Model) -> list[TakenInput]:
    """Return the inputs of a model: those of its graph, or the arguments of its `call`."""
    symbols = symbolic_inputs(model)
    if symbols:
        struct = getattr(model, "_inputs_struct", None)
        keys = {id(value): str(key) for key, value in struct.items()} if isinstance(struct, Mapping) else {}
        return [
            TakenInput(
                keys.get(id(symbol), symbol.name),
                tuple(symbol.shape),
                keras.backend.standardize_dtype(symbol.dtype),
            )
            for symbol in symbols
        ]
    shapes = {str(k).removesuffix("_shape"): v for k, v in (getattr(model, "_build_shapes_dict", None) or {}).items()}
    parameters = inspect.signature(model.call).parameters.values()
    plain = [p for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD) and p.name not in AROUND]
    return [TakenInput(p.name, _shape(shapes.get(p.name)), optional=p.default is not p.empty) for p in plain]


def _shape(shape: Any) -> tuple[int | None, ...] | None:
    """Return a shape that a built model states, with an open batch; None where it is of several tensors."""
    if not isinstance(shape, tuple | list) or not all(n is None or isinstance(n, int) for n in shape):
        return None
    return (None, *shape[1:])


def _functional(model: keras.Model, taken: Sequence[TakenInput]) -> Arrange:
    """Return the arrangement of values as the model was built: a list, a dictionary, or nested ones."""
    struct: Any = getattr(model, "_inputs_struct", None)
    names = [one.name for one in taken]

    def arrange(values: Mapping[str, Any]) -> tuple[Sequence[Any], Mapping[str, Any]]:
        listed = [values[name] for name in names]
        if isinstance(struct, Mapping):
            return [dict(zip(struct, (values[str(key)] for key in struct), strict=True))], {}
        return [listed if struct is None else keras.tree.pack_sequence_as(struct, listed)], {}

    return arrange


def _by_keyword(values: Mapping[str, Any]) -> tuple[Sequence[Any], Mapping[str, Any]]:
    first, *others = values.items()
    return [], dict([first, *others])


def _structured(model: str, name: str, fixed: FixedInputs) -> tuple[list[TakenInput], Arrange]:
    """Return the inputs of a subclassed model that takes a dictionary, or a list where the names are numbers."""
    if fixed.image is None:
        raise InputError(
            f"cannot use the inputs {', '.join(fixed.values)} of {model}: its call takes {name!r} alone; if that is a "
            "dictionary or a list, name the image's key or index: image_input='image' (--image-input image)"
        )
    names = [fixed.image, *fixed.values]

    def arrange(values: Mapping[str, Any]) -> tuple[Sequence[Any], Mapping[str, Any]]:
        if all(key.isdigit() for key in names):
            return [[values[key] for key in sorted(names, key=int)]], {}
        return [dict(values)], {}

    return [TakenInput(key) for key in names], arrange


def decide(model: Any, shape: Sequence[int], dtype: str) -> bool:
    """Decide how fixed values are passed, by runs on noise; return whether several images may be run together.

    Args:
        model: Any model; only a OneInput has fixed values.
        shape: Of the image's input, without the batch.
        dtype: Its type.

    Raises:
        InputError: The model does not run with the values.
    """
    if not isinstance(model, OneInput) or not model.possible:
        return True
    noise = np.random.default_rng(0).uniform(0, 1, (2, *shape)).astype(dtype)
    before = model.forms

    def run(rows: list[int], form_of: Mapping[str, Form]) -> Mapping[str, Array]:
        model.forms = dict(form_of)
        outputs = all_outputs(model.model, model(keras.ops.convert_to_tensor(noise[rows])))
        return {name: np.asarray(keras.ops.convert_to_numpy(value)) for name, value in outputs.items()}

    try:
        model.forms, together = decided(run, model.possible)
    except (MemoryError, ModelError):
        model.forms = before
        raise
    except Exception as error:
        model.forms = before
        listed = ", ".join(f"{n} {list(np.shape(f[0].value))}" for n, f in model.possible.items())
        raise InputError(
            f"cannot run {model.name} on an image of shape {list(shape)} with the inputs {listed}: {type(error).__name__}: "
            f"{one_line(error)}; give them in the shapes and types that it takes, or another size= (--size)"
        ) from error
    return together
