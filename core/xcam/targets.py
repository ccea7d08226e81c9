"""What is explained: a function of a model's outputs and its gradient with respect to them (its cotangent).

Written once, in NumPy, for every framework. A target of your own is any object with `value` and `cotangent`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, Protocol, get_args, runtime_checkable

import numpy as np

from xcam.contract import Activation, Array, Outputs, like, one_output
from xcam.errors import InputError, ModelError, nearest

Score = Literal["logit", "probability"]


@runtime_checkable
class Target(Protocol):
    """A differentiable function of the outputs of one model, row by row."""

    def value(self, outputs: Outputs) -> Array:
        """[N, …] outputs → [N] values."""

    def cotangent(self, outputs: Outputs) -> Outputs:
        """∂value/∂outputs, shaped like `outputs`."""


def softmax(z: Array) -> Array:
    """exp(z) / Σ exp(z) over the last axis, without overflow."""
    e = np.exp(z - z.max(axis=-1, keepdims=True))
    return np.asarray(e / e.sum(axis=-1, keepdims=True))


def sigmoid(z: Array) -> Array:
    """1 / (1 + exp(−z)), without overflow."""
    return np.asarray(0.5 * (1 + np.tanh(0.5 * z)))


def is_distribution(y: Array) -> bool:
    """Every row is ≥ 0 and sums to 1: probabilities already, by an activation that nobody could see."""
    return y.shape[-1] > 1 and bool((y >= 0).all() and np.allclose(y.sum(axis=-1), 1, atol=1e-3))


def probabilities(outputs: Outputs, activation: Activation) -> Array:
    """Class probabilities [N, K] of outputs [N, K]; of the first, where there are several.

    The activation that was cut off is applied again. Where none was seen: outputs that are probabilities already stay,
    one output is taken for the logit of a sigmoid, several for those of a softmax.
    """
    z = scores(outputs)
    match _link(z, activation):
        case "sigmoid":
            return sigmoid(z)
        case "softmax":
            return softmax(z)
    return z


def scores(outputs: Outputs, name: str | None = None) -> Array:
    """The class scores [N, K] among `outputs`. Raises ModelError when they are not of that shape."""
    z = one_output(outputs, name)
    if z.ndim == 1:
        z = z[:, None]
    if z.ndim != 2 or not z.shape[1]:
        raise ModelError(
            f"the output has shape {z.shape}, and a class needs [batch, classes]; "
            "pass a target of your own, an object with value() and cotangent()"
        )
    return z


def _link(z: Array, activation: Activation) -> str | None:
    if isinstance(activation, Mapping):
        activation = next(iter(activation.values()))
    if activation is not None:
        return activation
    if z.shape[-1] == 1:
        return "sigmoid"
    return None if is_distribution(z) else "softmax"


@dataclass(frozen=True)
class ClassScore:
    """The logit or the probability of one class. `index` None is the top class, fixed by `resolve`.

    logit: value z_c, cotangent e_c. Probability under softmax: p_c, cotangent p_c·(e_c − p); under sigmoid: p_c,
    cotangent p_c·(1 − p_c)·e_c. `output` names one of several outputs (default: the first).
    """

    index: int | None = None
    score: Score = "logit"
    activation: Activation = None
    """What the model cuts off its outputs, as `Model.activation` says it."""
    output: str | None = None

    def resolve(self, outputs: Outputs) -> ClassScore:
        """The same target with its class fixed, on the outputs [1, K] of the clean picture."""
        if isinstance(outputs, Mapping) and self.output is not None and self.output not in outputs:
            raise InputError(f"no output {self.output!r}; {nearest(self.output, outputs)}")
        if not isinstance(self.index, int | np.integer | None) or self.score not in get_args(Score):
            raise InputError(f"{self} is no target; its index is a whole number, its score {get_args(Score)}")
        z = scores(outputs, self.output)
        count = z.shape[1]
        index = int(z[0].argmax()) if self.index is None else self.index
        if not -count <= index < count:
            raise InputError(f"no class {index}: the model has {count} classes, 0 to {count - 1}")
        activation = self.activation
        if isinstance(activation, Mapping):
            activation = activation[self.output or next(iter(activation))]
        return replace(self, index=int(index) % count, activation=activation)

    def value(self, outputs: Outputs) -> Array:
        """[N] scores of the class."""
        assert self.index is not None, "resolve() first"
        z = scores(outputs, self.output)
        y = z if self.score == "logit" else probabilities(z, self.activation)
        return np.asarray(y[:, self.index])

    def cotangent(self, outputs: Outputs) -> Outputs:
        """∂value/∂outputs, shaped like `outputs`."""
        assert self.index is not None, "resolve() first"
        z = scores(outputs, self.output)
        one = np.zeros_like(z)
        one[:, self.index] = 1
        link = _link(z, self.activation) if self.score == "probability" else None
        if link is not None:
            p = probabilities(z, link)
            pc = p[:, self.index, None]
            one = pc * (one - p) if link == "softmax" else pc * (1 - pc) * one
        return like(outputs, one.reshape(one_output(outputs, self.output).shape), self.output)


def target(
    value: int | str | Target | None,
    score: Score = "logit",
    activation: Activation = None,
    labels: Sequence[str] | None = None,
) -> Target:
    """None (the top class), an index, a label or a Target → a Target. Raises InputError."""
    if score not in get_args(Score):
        raise InputError(f"no score {score!r}; {nearest(str(score), get_args(Score))}")
    if isinstance(value, str):
        value = class_index(value, labels)
    if value is None or isinstance(value, int | np.integer):
        return ClassScore(None if value is None else int(value), score, activation)
    if isinstance(value, ClassScore) and value.activation is None:
        return replace(value, activation=activation)
    if isinstance(value, Target) and not isinstance(value, type):
        return value
    raise InputError(
        f"{value!r} is no target; give a class index, a label, or an object with value() and cotangent()"
    )


def class_index(label: str, labels: Sequence[str] | None) -> int:
    """The index of a label, compared without case, `_` as a space; or of an index in digits. Raises InputError."""
    try:
        return int(label)
    except ValueError:
        pass
    if not labels:
        raise InputError(
            f"no class {label!r}: this model has no class names; give an index, or the names with labels= (--labels FILE)"
        )
    names = [_plain(name) for name in labels]
    found = [i for i, name in enumerate(names) if name == _plain(label)]
    if len(found) > 1:
        raise InputError(f"{len(found)} classes are called {label!r}; give the index: {', '.join(map(str, found))}")
    if not found:
        raise InputError(f"no class {label!r}; {nearest(_plain(label), names)}")
    return found[0]


def _plain(label: str) -> str:
    return label.replace("_", " ").casefold().strip()
