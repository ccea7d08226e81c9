"""Class scores, and targets made of them: one class, weighted sums, differences, Finer-CAM."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np

from xcam.contract import Activation, Array, Outputs, like, one_output
from xcam.errors import InputError, ModelError, nearest

Score = Literal["logit", "probability", "log-probability"]
"""The number that is explained for a class."""


def softmax(z: Array) -> Array:
    """Return exp(z) / Σ exp(z) over the last axis, without overflow."""
    e = np.exp(z - z.max(axis=-1, keepdims=True))
    return np.asarray(e / e.sum(axis=-1, keepdims=True))


def sigmoid(z: Array) -> Array:
    """Return 1 / (1 + exp(−z)), without overflow."""
    return np.asarray(0.5 * (1 + np.tanh(0.5 * z)))


def is_distribution(y: Array) -> bool:
    """Return whether every row of [N, K] is ≥ 0 and sums to 1: the model applies a softmax that was not recognised."""
    return y.shape[-1] > 1 and bool((y >= 0).all() and np.allclose(y.sum(axis=-1, dtype=np.float64), 1, atol=1e-3))


def probabilities(outputs: Outputs, activation: Activation) -> Array:
    """Return class probabilities.

    Args:
        outputs: [N, K], [N, 1] or [N], or a mapping, of which the first output counts.
        activation: The activation that was cut off (`Model.output_activation`), which is applied again. None: outputs
            that are probabilities are unchanged, one output is the logit of a sigmoid, several are those of a softmax.
            `identity`: the outputs are probabilities.

    Returns:
        [N, K] in 0…1, of the outputs' data type; float32 for float16. For one output p or z: [1 − p, p], where
        p = sigmoid(z).

    Raises:
        ModelError: The outputs are not class scores.
    """
    link = _link(one_output(outputs), activation)
    z = _wide(scores(outputs, activation=link))
    match link:
        case "sigmoid":
            return sigmoid(z)
        case "softmax":
            return softmax(z)
    return z


def scores(outputs: Outputs, name: str | None = None, activation: str | None = None) -> Array:
    """Return the class scores.

    One output z is two classes, with the scores −z and z: those whose sigmoids are the probabilities of the two.

    Args:
        outputs: [N, K], [N, 1] or [N], or a mapping.
        name: The output's name; default: the first.
        activation: `identity` where one output is the probability of class 1: its scores are 1 − p and p.

    Returns:
        [N, K] with K ≥ 2.

    Raises:
        ModelError: The output has another shape.
    """
    z = one_output(outputs, name)
    if not has_classes(z):
        raise ModelError(f"cannot explain a class: the output has shape {z.shape}, not [batch, classes]; {_hint(z)}")
    if not is_single(z):
        return z
    z = z.reshape(-1, 1)
    return np.concatenate([1 - z if activation == "identity" else -z, z], axis=1)


def has_classes(z: Array) -> bool:
    """Return whether an output has the shape of class scores: [N, K], [N, 1] or [N]."""
    return z.ndim == 1 or (z.ndim == 2 and z.shape[1] > 0)


def is_single(z: Array) -> bool:
    """Return whether an output is one number for each image, [N, 1] or [N]: the score of two classes."""
    return z.ndim == 1 or (z.ndim == 2 and z.shape[1] == 1)


def _hint(z: Array) -> str:
    """Return a remedy for an output that has no class scores, with an example."""
    if z.ndim == 3:
        return (
            "for boxes give target=xcam.Detection(0, (x0, y0, x1, y1)), for an embedding "
            "target=xcam.Similarity(reference), for one number target=xcam.Element((0, 0))"
        )
    if z.ndim > 3:
        return (
            "for a map of classes give target=xcam.Segmentation(0), with last=True where classes are the last axis; "
            f"for one number target=xcam.Element({(0,) * (z.ndim - 1)})"
        )
    return "give another output, with output= (--model-output NAME)"


def _unfold(slope: Array, y: Array) -> Array:
    """Return the cotangent of an output y for the cotangent [N, K] of its scores: ∂z₁ − ∂z₀ for one output."""
    if is_single(y):
        slope = slope[:, 1] - slope[:, 0]
    return slope.reshape(y.shape).astype(y.dtype, copy=False)


def _wide(z: Array) -> Array:
    """Return float32 for float16, whose sums over many classes are inexact."""
    return z.astype(np.float32) if z.dtype == np.float16 else z


def _link(y: Array, activation: Activation) -> str:
    """Return the function from the scores of an output to probabilities; `identity` where they are probabilities.

    Raises ModelError.
    """
    if isinstance(activation, Mapping):
        activation = next(iter(activation.values()))
    if activation == "softmax" and is_single(y):
        raise ModelError(
            "cannot explain a class: the softmax is over one output, and so always 1; end the model in a sigmoid, or give "
            "target=xcam.Element((0,))"
        )
    if activation is not None:
        return activation
    if is_single(y):
        return "sigmoid"
    return "identity" if is_distribution(y) else "softmax"


@dataclass(frozen=True)
class ClassScore:
    """The logit, probability or log-probability of one class.

    One output z is two classes with the logits −z and z, and the probabilities 1 − p and p: `score="logit"` of class 1 is
    the output itself. With logits z, probabilities p and unit vectors e, the cotangents are e_c for the logit z_c; p_c·(e_c − p) for the
    probability p_c under softmax, and p_c·(1 − p_c)·e_c under sigmoid; these divided by p_c for log p_c. The latter
    does not vanish where the model is certain of another class.
    """

    index: int | None = None
    """The class; negative indices count from the end. None: the class of `rank`, which `resolve` fixes."""
    score: Score = "logit"
    """The number that is explained."""
    activation: Activation = None
    """The activation that was cut off the outputs, as `Model.output_activation`; `identity`: they are probabilities."""
    output: str | None = None
    """The name of the output, for models with several; default: the first."""
    rank: int = 0
    """The rank of the class among the scores where `index` is None; 0 is the top class."""

    def resolve(self, outputs: Outputs) -> ClassScore:
        """Return the target with its class and activation fixed.

        Args:
            outputs: [1, K], [1, 1] or [1] for the clean image, or a mapping.

        Raises:
            InputError: The class, output or score does not exist.
            ModelError: The output is not [1, K].
        """
        if isinstance(outputs, Mapping) and self.output is not None and self.output not in outputs:
            raise InputError(f"unknown output {self.output!r}; {nearest(self.output, outputs)}")
        if not isinstance(self.index, int | np.integer | None) or self.score not in get_args(Score):
            raise InputError(
                f"cannot use {self} as a target; give an integer as index and one of {get_args(Score)} as score"
            )
        y = one_output(outputs, self.output)
        activation = self.activation
        if isinstance(activation, Mapping):
            activation = activation[self.output or next(iter(activation))]
        # Fixed for later calls, whose outputs may look different.
        if has_classes(y) and (is_single(y) or (activation is None and self.score != "logit")):
            activation = _link(y, activation)
        z = scores(outputs, self.output, activation)
        count = z.shape[1]
        if self.index is None and not 0 <= self.rank < count:
            raise InputError(
                f"unknown class of rank {self.rank + 1}: the model has {count} classes; give top{count} or less"
            )
        best = np.argsort(-z[0], kind="stable")
        index = int(best[self.rank]) if self.index is None else self.index
        if not -count <= index < count:
            raise unknown_class(index, count)
        return replace(self, index=int(index) % count, activation=activation)

    def value(self, outputs: Outputs) -> Array:
        """Return the scores [N] of the class."""
        assert self.index is not None, "resolve() first"
        y = one_output(outputs, self.output)
        link = self._link(y)
        z = scores(y, activation=link)
        if self.score == "logit":
            return np.asarray(z[:, self.index])
        z = _wide(z)
        if self.score == "probability":
            return np.asarray(probabilities(y, link)[:, self.index])
        match link:
            case "softmax":
                highest = z.max(axis=1)
                return np.asarray(z[:, self.index] - highest - np.log(np.exp(z - highest[:, None]).sum(axis=1)))
            case "sigmoid":
                return np.asarray(-np.logaddexp(0, -z[:, self.index]))
        return np.asarray(np.log(np.maximum(z[:, self.index], np.finfo(np.float32).tiny)))

    def cotangent(self, outputs: Outputs) -> Outputs:
        """Return ∂value/∂outputs, shaped like `outputs`."""
        assert self.index is not None, "resolve() first"
        y = one_output(outputs, self.output)
        link = self._link(y)
        z = scores(y, activation=link)
        slope = _one_hot(z, self.index)
        if self.score != "logit" and link != "identity":
            p = probabilities(y, link)
            pc = p[:, self.index, None]
            slope = slope - p if link == "softmax" else (1 - pc) * slope
            slope = slope if self.score == "log-probability" else pc * slope
        elif self.score == "log-probability":
            slope = slope / np.maximum(_wide(z)[:, self.index, None], np.finfo(np.float32).tiny)
        return like(outputs, _unfold(slope, y), self.output)

    def _link(self, y: Array) -> str:
        """Return the function from the scores of the output y to probabilities."""
        activation = self.activation
        if isinstance(activation, Mapping):
            activation = activation.get(self.output or next(iter(activation)))
        return _link(y, activation)


@dataclass(frozen=True)
class Classes:
    """The weighted sum of several logits, Σ w·z, with the cotangent Σ w·e."""

    indices: tuple[int, ...]
    """One or more classes; negative indices count from the end."""
    weights: tuple[float, ...] = ()
    """A weight for each class; default: all 1."""
    output: str | None = None
    """The name of the output, for models with several; default: the first."""
    name: str = ""
    """The name of the target; default: the indices."""

    def resolve(self, outputs: Outputs) -> Classes:
        """Return the target with non-negative indices. Raises InputError for indices or weights that cannot be used."""
        whole = isinstance(self.indices, tuple | list) and all(isinstance(i, int | np.integer) for i in self.indices)
        if not whole or not self.indices:
            raise InputError(f"cannot use {self} as a target; give a tuple of one or more integers as indices")
        count = scores(outputs, self.output).shape[1]
        for index in self.indices:
            if not -count <= index < count:
                raise unknown_class(index, count)
        if self.weights and len(self.weights) != len(self.indices):
            raise InputError(
                f"cannot use {len(self.weights)} weights for {len(self.indices)} classes; give one for each"
            )
        if not np.isfinite(self.weights).all() or not self._weights(outputs).any():
            raise InputError(
                f"cannot use the weights of classes {list(self.indices)}: they are not finite, or cancel out; give others"
            )
        name = self.name or " + ".join(map(str, self.indices))
        return replace(self, indices=tuple(i % count for i in self.indices), name=name)

    def value(self, outputs: Outputs) -> Array:
        """Return the weighted sums [N]."""
        return np.asarray(scores(outputs, self.output) @ self._weights(outputs))

    def cotangent(self, outputs: Outputs) -> Outputs:
        """Return ∂value/∂outputs, shaped like `outputs`."""
        z = scores(outputs, self.output)
        slope = np.broadcast_to(self._weights(outputs), z.shape).astype(z.dtype)
        return like(outputs, _unfold(slope, one_output(outputs, self.output)), self.output)

    def _weights(self, outputs: Outputs) -> Array:
        """Return the weights of all classes [K]."""
        z = scores(outputs, self.output)
        weights = np.zeros(z.shape[1], z.dtype)
        np.add.at(weights, list(self.indices), self.weights or 1.0)
        return weights


def difference(first: int, second: int, name: str = "", output: str | None = None) -> Classes:
    """Return the difference of two logits as a target: why the first class, and not the second.

    Args:
        first: The class with weight 1.
        second: The class with weight −1.
        name: The name of the target; default: `first-second`.
        output: The name of the output, for models with several; default: the first.

    Raises:
        InputError: The classes are equal.
    """
    if first == second:
        raise InputError(f"the difference of class {first} and itself is zero; give two classes")
    return Classes((first, second), (1.0, -1.0), output, name or f"{first}-{second}")


@dataclass(frozen=True)
class Finer:
    """Finer-CAM (Zhang et al. 2025, Eq. 5): z_c − α·mean of the nearest logits, the features that distinguish a class."""

    index: int | None = None
    """The class c; None for the top class."""
    alpha: float = 1.0
    """The weight α of the other classes."""
    nearest: int = 3
    """The number of other classes: those whose logits are nearest to z_c."""
    output: str | None = None
    """The name of the output, for models with several; default: the first."""

    def resolve(self, outputs: Outputs) -> Classes:
        """Return the classes with their weights, fixed on the outputs [1, K] for the clean image. Raises InputError."""
        index = ClassScore(self.index, output=self.output).resolve(outputs).index
        assert index is not None
        z = scores(outputs, self.output)[0]
        if not math.isfinite(self.alpha):
            raise InputError(f"cannot use alpha={self.alpha}; give a finite number")
        if not isinstance(self.nearest, int | np.integer) or not 1 <= self.nearest < len(z):
            raise InputError(
                f"cannot use nearest={self.nearest}; give 1 to {len(z) - 1}, the number of other classes"
            )
        near = [int(i) for i in np.argsort(np.abs(z - z[index]), kind="stable") if i != index][: self.nearest]
        weights = (1.0, *[-self.alpha / len(near)] * len(near))
        return Classes((index, *near), weights, self.output, f"{index} against {', '.join(map(str, near))}")

    def value(self, outputs: Outputs) -> Array:
        """Return the values [N], each with the nearest classes of its row."""
        rows = _rows(outputs)
        return np.concatenate([self.resolve(row).value(row) for row in rows])

    def cotangent(self, outputs: Outputs) -> Outputs:
        """Return ∂value/∂outputs, shaped like `outputs`."""
        rows = [(row, self.resolve(row)) for row in _rows(outputs)]
        slope = np.concatenate([one_output(fixed.cotangent(row), self.output) for row, fixed in rows])
        return like(outputs, slope, self.output)


def _rows(outputs: Outputs) -> list[Outputs]:
    """Return the outputs of each row, [1, …]."""
    if isinstance(outputs, Mapping):
        count = len(next(iter(outputs.values())))
        return [{name: array[n : n + 1] for name, array in outputs.items()} for n in range(count)]
    return [outputs[n : n + 1] for n in range(len(outputs))]


def _one_hot(z: Array, index: int) -> Array:
    """Return the unit vector e_c for each row, [N, K]."""
    result = np.zeros_like(z)
    result[:, index] = 1
    return result


def unknown_class(index: object, count: int) -> InputError:
    """Return the error for a class index outside 0 … count − 1."""
    return InputError(f"unknown class {index}: there are {count} classes; give 0 to {count - 1}")
