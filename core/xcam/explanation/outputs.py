"""The output of a model that a target reads: its activation, and warnings where a guess was necessary."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping
from weakref import WeakKeyDictionary

import numpy as np

from xcam.contract import Array, Model, Outputs, one_output
from xcam.contract.layouts import input_shape
from xcam.errors import warn
from xcam.targets import Classes, ClassScore, Finer, Target, has_classes, is_distribution, is_single

MAGNITUDES = (1.0, -1.0, 10.0, -10.0, 1e2, -1e2, 1e4, -1e4)
"""The factors of the noise on which a single output is tried."""

_tried: MutableMapping[Model, dict[str | None, bool]] = WeakKeyDictionary()
"""By model and output: whether the output was between 0 and 1 on all of the noise."""


def activation_of(model: Model, outputs: Outputs, name: str | None = None) -> str | None:
    """Return the function from an output to probabilities, as far as it is known.

    Args:
        model: The model.
        outputs: Its outputs for one image.
        name: The output's name; default: the first.

    Returns:
        The activation that the backend cut off. Where it cut off none, and a single output is between 0 and 1 for this
        image and on noise of any magnitude: `identity`, with a warning, as the output is a probability. Else None.
    """
    activation = model.output_activation
    if isinstance(activation, Mapping):
        activation = activation.get(name or next(iter(activation)))
    y = one_output(outputs, name)
    if activation is not None or not is_single(y) or not _in_unit_interval(y):
        return activation
    tried = _tried.setdefault(model, {})
    if name not in tried:
        tried[name] = _in_unit_interval(one_output(model.predict(_noise(model)), name))
    if not tried[name]:
        return None
    warn(
        f"the one output of {model.name} is between 0 and 1 on all inputs that were tried, and no sigmoid was recognised at "
        "its end: it is taken for the probability of class 1; for a logit give "
        'target=xcam.ClassScore(1, activation="sigmoid"), for a number target=xcam.Element((0,))'
    )
    return "identity"


def _noise(model: Model) -> Array:
    """Return inputs of very different magnitudes: a linear output leaves 0…1 on some, a probability on none."""
    noise = np.random.default_rng(0).normal(size=(len(MAGNITUDES), *input_shape(model.input)))
    dtype = np.dtype(model.input.dtype)
    if dtype.kind != "f":
        return np.where(noise > 0, 255, 0).astype(dtype)
    return (noise * np.reshape(MAGNITUDES, (-1, *[1] * (noise.ndim - 1)))).astype(dtype)


def _in_unit_interval(y: Array) -> bool:
    return bool(((y >= 0) & (y <= 1)).all())


def check(model: Model, target: Target, outputs: Outputs) -> None:
    """Warn where the caller named none of several outputs, and where an embedding is explained as class scores."""
    name = getattr(target, "output", "")
    if name is None and isinstance(outputs, Mapping) and getattr(model, "chosen_output", None) is None:
        first, *others = outputs
        warn(
            f"{model.name} has {len(outputs)} outputs, and {first!r} is explained, not {', '.join(map(repr, others))}; "
            "choose one with output= (--model-output NAME)"
        )
    if not isinstance(target, Classes | ClassScore | Finer):
        return
    y = one_output(outputs, target.output)
    if not has_classes(y) or is_single(y) or is_distribution(y):
        return
    if np.allclose(np.linalg.norm(y.astype(np.float64), axis=1), 1, atol=1e-4):
        warn(
            f"the output of {model.name} has the length 1, as an embedding has, and its numbers are explained as classes; "
            "for the similarity to another image give target=xcam.Similarity(reference), with that image's output"
        )
