"""Models with several inputs: all but the image have fixed values from the time when the model is opened."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from xcam.contract.layouts import full_size
from xcam.contract.types import Array
from xcam.errors import InputError, ModelError, nearest

IMAGE_NAMES = ("pixel_values", "image", "images", "img")
"""Names of inputs that take images."""
FORMS = "FILE.npy, .npz, .json, .txt, an image, or a number"
"""The values that the command takes."""
COMBINATIONS = 64
"""The number of combinations of forms that are tried."""


class UnknownInputError(InputError):
    """The model has no input of a name."""

    def __init__(self, message: str, name: str) -> None:
        super().__init__(message)
        self.name = name


@dataclass(frozen=True)
class ImageValue:
    """An image for an input that takes images: it is prepared as the model's own images are."""

    pixels: Array
    """RGB uint8 [H, W, 3]."""
    name: str


@dataclass(frozen=True)
class TextValue:
    """A text, which a tokenizer turns into numbers."""

    lines: tuple[str, ...]


@dataclass(frozen=True)
class FixedInputs:
    """The values of a model's other inputs, and the name of the input that takes the image."""

    values: Mapping[str, Any] = field(default_factory=dict)
    """By name: an array, a number, an ImageValue or a TextValue."""
    image: str | None = None
    """None: the only one that has no value."""
    plain: frozenset[str] = frozenset()
    """Names of values that were given as numbers or text, whose type is not stated: 0 may be an integer or a float."""

    def __bool__(self) -> bool:
        return bool(self.values) or self.image is not None


@dataclass(frozen=True)
class TakenInput:
    """An input that a model takes."""

    name: str
    shape: tuple[int | None, ...] | None = None
    """With the batch; None for a size that is open; None: not known."""
    dtype: str | None = None
    """NumPy's name of the type, or `string`; None: not known."""
    optional: bool = False
    """Whether the model has a default for it."""

    def __str__(self) -> str:
        if self.shape is None:
            return self.name
        sizes = ", ".join("any" if n is None else str(n) for n in self.shape)
        return f"{self.name} {self.dtype or ''}".strip() + f" [{sizes}]"

    @property
    def may_be_image(self) -> bool:
        """Whether an image fits: four axes, with one or three channels, of floats or of integers of 8 bits."""
        if self.shape is None:
            return True
        if self.dtype not in (None, "float16", "bfloat16", "float32", "float64", "uint8", "int8"):
            return False
        return len(self.shape) == 4 and any(self.shape[axis] in (1, 3, None) for axis in (1, -1))


def chosen(model: str, taken: Sequence[TakenInput], fixed: FixedInputs) -> TakenInput:
    """Return the input that takes the image: the one that is named, or the only one that has no value.

    Args:
        model: The model's name.
        taken: The inputs that it takes.
        fixed: The values of the others.

    Raises:
        UnknownInputError: The model has no input of a name.
        InputError: The image's input is not clear, or has a value.
        ModelError: Another input has no value.
    """
    known = {one.name: one for one in taken}
    for name in (*fixed.values, *([] if fixed.image is None else [fixed.image])):
        if name not in known:
            raise unknown_input(name, model, known)
    if fixed.image in fixed.values:
        raise InputError(
            f"the input {fixed.image!r} takes the image, and has a value; leave it out of inputs= (--input)"
        )
    left = [one for one in taken if one.name not in fixed.values]
    if not left:
        raise InputError(
            f"cannot use {model}: all of its inputs have values, and none is left for the image; leave one out of inputs= "
            "(--input)"
        )
    required = [one for one in left if not one.optional]
    if fixed.image is not None:
        image = known[fixed.image]
    else:
        named = [one for one in required or left if one.name in IMAGE_NAMES]
        possible = required or named[:1] or left[:1]
        fitting = [one for one in possible if one.may_be_image] or possible
        fitting = fitting if len(fitting) == 1 else [one for one in fitting if one in named] or fitting
        if len(fitting) > 1:
            first, *others = fitting
            raise InputError(
                f"cannot use {model}: it takes {len(required)} inputs ({'; '.join(map(str, required))}), and an image fits "
                f"{' and '.join(one.name for one in fitting)}; name the image's: image_input={first.name!r} (--image-input "
                f"{first.name}), and give the others values: {_shown(others)}"
            )
        (image,) = fitting
    missing = [one for one in required if one is not image]
    if missing:
        raise ModelError(
            f"cannot use {model}: it takes {len(required)} inputs, and the image is {image.name}; give the others values "
            f"({'; '.join(map(str, missing))}): {_shown(missing)}"
        )
    return image


def _shown(inputs: Sequence[TakenInput]) -> str:
    """Return how values are given, in Python and on the command line."""
    python = ", ".join(f"{one.name!r}: …" for one in inputs)
    command = " ".join(f"--input {one.name}=…" for one in inputs)
    return f"inputs={{{python}}} ({command}, with {FORMS})"


def unknown_input(name: str, model: str, known: Iterable[str]) -> UnknownInputError:
    """Return the error for a name that none of the model's inputs has."""
    return UnknownInputError(f"unknown input {name!r} of {model}; {nearest(name, known)}", name)


def without_tokenizer(name: str, model: str) -> InputError:
    """Return the error for a text that no tokenizer turns into numbers."""
    return InputError(
        f"cannot use a text for the input {name!r} of {model}: it has no tokenizer; give its numbers (.npy or .json), or load "
        "the model from a folder with a tokenizer (hf:FOLDER)"
    )


def fitted(
    value: Any, taken: TakenInput, model: str, plain: bool = False, size: Sequence[int | None] | None = None
) -> Array:
    """Return a value as an array of the type and rank that an input takes, its first axis included.

    Args:
        value: An array, a number, an ImageValue (zeros replace it, until it is prepared) or a TextValue.
        taken: The input.
        model: The model's name.
        plain: Whether the type of the value is not stated.
        size: The size of images, where the model leaves it open.

    Raises:
        InputError: The value does not fit.
    """
    shape, name = taken.shape, taken.name
    if isinstance(value, TextValue):
        raise without_tokenizer(name, model)
    if taken.dtype == "string":
        raise InputError(
            f"cannot use {model}: its input {name!r} takes strings, which cannot be constants of the graph; export the model "
            "from its numeric inputs on"
        )
    if isinstance(value, ImageValue):
        if shape is not None and not taken.may_be_image:
            raise InputError(
                f"cannot use {value.name} for the input {name!r} of {model}: an image does not fit {taken}; give numbers "
                "(.npy, .json)"
            )
        return stand_in(shape, taken.dtype, size)
    array = np.asarray(value)
    if array.dtype.kind not in "biuf":
        raise InputError(f"cannot use a value of type {array.dtype} for the input {name!r} of {model}; give numbers")
    if shape is not None:
        array = _shaped(array, shape, taken, model)
    return array if taken.dtype is None else _typed(array, taken, model, plain)


def stand_in(
    shape: Sequence[int | None] | None, dtype: str | None, size: Sequence[int | None] | None = None
) -> Array:
    """Return zeros in the shape of an image."""
    sides = full_size(size)
    axes = iter(sides)
    sizes = [1, 3, *sides] if shape is None else [1, *(n or next(axes, sides[0]) for n in shape[1:])]
    return np.zeros(sizes, "float32" if dtype in (None, "bfloat16") else dtype)


def _shaped(array: Array, shape: tuple[int | None, ...], taken: TakenInput, model: str) -> Array:
    """Return an array in the rank of an input: the axis of the batch may be missing, and a number fits a single value."""
    for candidate in (array, array[None]):
        sizes = zip(candidate.shape, shape, strict=False)
        if candidate.ndim == len(shape) and all(
            n is None or m == n or (k == 0 and m == 1) for k, (m, n) in enumerate(sizes)
        ):
            return candidate
    if array.size == 1 and all(n in (1, None) for n in shape):
        return array.reshape((1,) * len(shape))
    remedy = "give an array of that shape" + (", or without its first axis" if len(shape) > 1 else "")
    raise InputError(
        f"cannot use a value of shape {list(array.shape)} for the input {taken.name!r} of {model}, which takes {taken}; "
        f"{remedy}"
    )


def _typed(array: Array, taken: TakenInput, model: str, plain: bool) -> Array:
    """Return an array in the type of an input, where no value is lost."""
    dtype = np.dtype("float32" if taken.dtype == "bfloat16" else taken.dtype)
    if dtype.kind == "f":
        if array.dtype.kind != "b":
            return array.astype(dtype)
    elif dtype.kind == "b":
        if array.dtype.kind == "b" or (plain and np.isin(array, (0, 1)).all()):
            return array.astype(bool)
    elif array.dtype.kind in "iu" or (plain and array.dtype.kind == "f" and np.array_equal(array, np.rint(array))):
        limits = np.iinfo(dtype)
        if not array.size or (array.min() >= limits.min and array.max() <= limits.max):
            return array.astype(dtype)
    kinds = {"f": "numbers", "b": "true and false"}
    remedy = kinds.get(dtype.kind, "integers in its range")
    raise InputError(
        f"cannot use a value of type {array.dtype} for the input {taken.name!r} of {model}, which takes {taken.dtype}; give "
        f"{remedy}"
    )


@dataclass(frozen=True)
class Form:
    """A way to pass a value to a model that does not state the shapes that it takes."""

    value: Any
    """An array, or a number."""
    repeated: bool = False
    """Whether its first axis is the batch: it is repeated for each image."""


def forms(value: Any, plain: bool) -> list[Form]:
    """Return the ways to pass a value, the likeliest first.

    Args:
        value: An array or a number.
        plain: Whether its type is not stated: integers may be floats.
    """
    array = np.asarray(value)
    result = [Form(value if np.isscalar(value) else array)]
    if array.ndim == 0:
        result += [Form(array.reshape(1), True), Form(array.reshape(1, 1), True)]
    else:
        result.append(Form(array if len(array) == 1 else array[None], True))
    if plain and array.dtype.kind in "iu":
        others = [form.value for form in result]
        result += [
            Form(v.astype(np.float32) if isinstance(v, np.ndarray) else float(v), form.repeated)
            for v, form in zip(others, list(result), strict=True)
        ]
    return result


Run = Callable[[list[int], Mapping[str, Form]], Mapping[str, Array]]
"""(rows of a fixed batch of noise, forms of the values) → the outputs by name."""


def decided(run: Run, possible: Mapping[str, Sequence[Form]]) -> tuple[dict[str, Form], bool]:
    """Return the form of each value with which the model gives two images the outputs that each of them has alone.

    Args:
        run: Runs the model.
        possible: The forms of each value.

    Returns:
        The forms; and whether several images may be run together.

    Raises:
        Exception: The model fails with all of them; the error is that of the first.
    """
    error: Exception | None = None
    single: dict[str, Form] | None = None
    for combination in itertools.islice(itertools.product(*possible.values()), COMBINATIONS):
        current = dict(zip(possible, combination, strict=True))
        try:
            alone = [run([k], current) for k in (0, 1)]
        except Exception as failure:  # the model's own code
            error = error or failure
            continue
        single = single or current
        try:
            together = run([0, 1], current)
        except Exception:  # the value has no row for the second image
            continue
        if all(_agree(together[name], [one[name] for one in alone]) for name in together):
            return current, True
    if single is None:
        assert error is not None
        raise error
    return single, False


def _agree(together: Array, alone: Sequence[Array]) -> bool:
    """Return whether the rows of an output are those of each image alone."""
    rows = np.concatenate(alone) if alone[0].ndim else np.stack(alone)
    if together.shape != rows.shape:
        return False
    return bool(
        np.allclose(together, rows, rtol=1e-3, atol=1e-4 * float(np.abs(rows).max(initial=0)), equal_nan=True)
    )


def note(values: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the entry of `Model.notes` about fixed inputs."""

    def shown(value: Any) -> str:
        if isinstance(value, TextValue):
            return f" = {'; '.join(value.lines)!r:.60}"
        return f" {list(np.shape(value))}" if np.ndim(value) else f" = {value}"

    listed = ", ".join(f"{name}{shown(value)}" for name, value in values.items())
    return (f"other inputs are fixed: {listed}",) if values else ()
