"""Class scores, and targets made of them: one class, several, the difference of two, one against its nearest."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np

from xcam.contract import Activation, Array, Outputs, like, one_output
from xcam.errors import InputError, ModelError, nearest

Score = Literal["logit", "probability", "log-probability"]


def softmax(z: Array) -> Array:
    """exp(z) / Σ exp(z) over the last axis, without overflow."""
    e = np.exp(z - z.max(axis=-1, keepdims=True))
    return np.asarray(e / e.sum(axis=-1, keepdims=True))


def sigmoid(z: Array) -> Array:
    """1 / (1 + exp(−z)), without overflow."""
    return np.asarray(0.5 * (1 + np.tanh(0.5 * z)))


def is_distribution(y: Array) -> bool:
    """Every row is ≥ 0 and sums to 1: probabilities already, by an activation that nobody could see."""
    return y.shape[-1] > 1 and bool((y >= 0).all() and np.allclose(y.sum(axis=-1, dtype=np.float64), 1, atol=1e-3))


def probabilities(outputs: Outputs, activation: Activation) -> Array:
    """Class probabilities [N, K] of outputs [N, K]; of the first, where there are several.

    The activation that was cut off is applied again. Where none was seen: outputs that are probabilities already stay,
    one output is taken for the logit of a sigmoid, several for those of a softmax. Half precision becomes float32.
    """
    z = _wide(scores(outputs))
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


def _wide(z: Array) -> Array:
    return z.astype(np.float32) if z.dtype == np.float16 else z


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
    cotangent p_c·(1 − p_c)·e_c. log-probability: log p_c, cotangent that of p_c divided by p_c: it does not vanish where
    the model is sure of another class. `output` names one of several outputs (default: the first).
    """

    index: int | None = None
    score: Score = "logit"
    activation: Activation = None
    """What the model cuts off its outputs, as `Model.activation` says it."""
    output: str | None = None
    rank: int = 0
    """Without an index: the class of this rank, 0 being the top class."""

    def resolve(self, outputs: Outputs) -> ClassScore:
        """The same target with its class fixed, on the outputs [1, K] of the clean picture."""
        if isinstance(outputs, Mapping) and self.output is not None and self.output not in outputs:
            raise InputError(f"no output {self.output!r}; {nearest(self.output, outputs)}")
        if not isinstance(self.index, int | np.integer | None) or self.score not in get_args(Score):
            raise InputError(f"{self} is no target; its index is a whole number, its score {get_args(Score)}")
        z = scores(outputs, self.output)
        count = z.shape[1]
        if self.index is None and not 0 <= self.rank < count:
            raise InputError(
                f"no class of rank {self.rank + 1}: the model has {count} classes; give top{count} or less"
            )
        best = np.argsort(-z[0], kind="stable")
        index = int(best[self.rank]) if self.index is None else self.index
        if not -count <= index < count:
            raise InputError(f"no class {index}: the model has {count} classes, 0 to {count - 1}")
        activation = self.activation
        if isinstance(activation, Mapping):
            activation = activation[self.output or next(iter(activation))]
        if activation is None and self.score != "logit":  # what later calls see must not change what is explained
            activation = _link(z, None) or "identity"
        return replace(self, index=int(index) % count, activation=activation)

    def value(self, outputs: Outputs) -> Array:
        """[N] scores of the class."""
        assert self.index is not None, "resolve() first"
        z = scores(outputs, self.output)
        if self.score == "logit":
            return np.asarray(z[:, self.index])
        z = _wide(z)
        if self.score == "probability":
            return np.asarray(probabilities(z, self.activation)[:, self.index])
        match _link(z, self.activation):
            case "softmax":
                highest = z.max(axis=1)
                return np.asarray(z[:, self.index] - highest - np.log(np.exp(z - highest[:, None]).sum(axis=1)))
            case "sigmoid":
                return np.asarray(-np.logaddexp(0, -z[:, self.index]))
        return np.asarray(np.log(np.maximum(z[:, self.index], np.finfo(np.float32).tiny)))

    def cotangent(self, outputs: Outputs) -> Outputs:
        """∂value/∂outputs, shaped like `outputs`."""
        assert self.index is not None, "resolve() first"
        z = scores(outputs, self.output)
        one = _one(z, self.index)
        link = None if self.score == "logit" else _link(z, self.activation)
        if link in ("softmax", "sigmoid"):
            p = probabilities(z, link)
            pc = p[:, self.index, None]
            slope = one - p if link == "softmax" else (1 - pc) * one
            one = slope if self.score == "log-probability" else pc * slope
        elif self.score == "log-probability":
            one = one / np.maximum(_wide(z)[:, self.index, None], np.finfo(np.float32).tiny)
        return like(outputs, one.reshape(one_output(outputs, self.output).shape).astype(z.dtype), self.output)


@dataclass(frozen=True)
class Classes:
    """Σ w·z over several classes: `weights` are all 1 where none are given. Value Σ w·z, cotangent Σ w·e."""

    indices: tuple[int, ...]
    weights: tuple[float, ...] = ()
    output: str | None = None
    name: str = ""

    def resolve(self, outputs: Outputs) -> Classes:
        """The same, its indices held against the number of classes."""
        whole = isinstance(self.indices, tuple | list) and all(isinstance(i, int | np.integer) for i in self.indices)
        if not whole or not self.indices:
            raise InputError(f"{self} is no target; its indices are a tuple of whole numbers, one or more")
        count = scores(outputs, self.output).shape[1]
        for index in self.indices:
            if not -count <= index < count:
                raise InputError(f"no class {index}: the model has {count} classes, 0 to {count - 1}")
        if self.weights and len(self.weights) != len(self.indices):
            raise InputError(f"{len(self.weights)} weights for {len(self.indices)} classes; give one for each")
        if not np.isfinite(self.weights).all() or not self._weights(outputs).any():
            raise InputError(f"the weights of classes {list(self.indices)} are no numbers or cancel out; give others")
        name = self.name or " + ".join(map(str, self.indices))
        return replace(self, indices=tuple(i % count for i in self.indices), name=name)

    def value(self, outputs: Outputs) -> Array:
        """[N] weighed sums."""
        return np.asarray(scores(outputs, self.output) @ self._weights(outputs))

    def cotangent(self, outputs: Outputs) -> Outputs:
        """∂value/∂outputs, shaped like `outputs`."""
        z = scores(outputs, self.output)
        found = np.broadcast_to(self._weights(outputs), z.shape).astype(z.dtype)
        return like(outputs, found.reshape(one_output(outputs, self.output).shape), self.output)

    def _weights(self, outputs: Outputs) -> Array:
        z = scores(outputs, self.output)
        found = np.zeros(z.shape[1], z.dtype)
        np.add.at(found, list(self.indices), self.weights or 1.0)
        return found


def difference(first: int, second: int, name: str = "", output: str | None = None) -> Classes:
    """z_a − z_b: why this class, and not that one. Raises InputError for a class and itself."""
    if first == second:
        raise InputError(f"the difference of class {first} and itself is zero; name two classes")
    return Classes((first, second), (1.0, -1.0), output, name or f"{first}-{second}")


@dataclass(frozen=True)
class Finer:
    """y_c − α·mean of the classes whose logits are nearest: what sets a class apart. Zhang 2025, Eq. 5.

    `index` None is the top class. Works with every method that takes gradients.
    """

    index: int | None = None
    alpha: float = 1.0
    nearest: int = 3
    output: str | None = None

    def resolve(self, outputs: Outputs) -> Classes:
        """The classes, fixed on the clean outputs."""
        index = ClassScore(self.index, output=self.output).resolve(outputs).index
        assert index is not None
        z = scores(outputs, self.output)[0]
        if not math.isfinite(self.alpha):
            raise InputError(f"alpha is {self.alpha}; give a finite number")
        if not isinstance(self.nearest, int | np.integer) or not 1 <= self.nearest < len(z):
            raise InputError(f"nearest is {self.nearest}; give 1 to {len(z) - 1}, the other classes")
        near = [int(i) for i in np.argsort(np.abs(z - z[index]), kind="stable") if i != index][: self.nearest]
        weights = (1.0, *[-self.alpha / len(near)] * len(near))
        return Classes((index, *near), weights, self.output, f"{index} against {', '.join(map(str, near))}")

    def value(self, outputs: Outputs) -> Array:
        """[N] values, each row with the nearest classes of its own."""
        rows = _rows(outputs)
        return np.concatenate([self.resolve(row).value(row) for row in rows])

    def cotangent(self, outputs: Outputs) -> Outputs:
        """∂value/∂outputs, shaped like `outputs`."""
        rows = [(row, self.resolve(row)) for row in _rows(outputs)]
        found = np.concatenate([one_output(fixed.cotangent(row), self.output) for row, fixed in rows])
        return like(outputs, found, self.output)


def _rows(outputs: Outputs) -> list[Outputs]:
    if isinstance(outputs, Mapping):
        count = len(next(iter(outputs.values())))
        return [{name: array[n : n + 1] for name, array in outputs.items()} for n in range(count)]
    return [outputs[n : n + 1] for n in range(len(outputs))]


def _one(z: Array, index: int) -> Array:
    """e_c, for each row."""
    one = np.zeros_like(z)
    one[:, index] = 1
    return one
