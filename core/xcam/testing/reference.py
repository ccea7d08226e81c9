"""The reference values of the networks, in plain NumPy and float64, channels first."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from xcam.testing.networks import Network, Step

Values = npt.NDArray[Any]
Cut = Mapping[tuple[str, str], Values]
"""(a step, one that reads it) → the value that the reader gets instead of the step's: a lost path."""


def run(
    network: Network, x: Values, replacements: Mapping[str, Values] | None = None, cut: Cut | None = None
) -> dict[str, Values]:
    """Return the value of every step.

    Args:
        network: The network.
        x: A batch [N, C, H, W].
        replacements: Values of steps, used instead of their own.
        cut: Values on edges, used instead of those of their steps.
    """
    replacements, cut = replacements or {}, cut or {}
    values: dict[str, Values] = {"x": np.asarray(x, np.float64)}
    for step in network.steps:
        if step.name in replacements:
            values[step.name] = np.asarray(replacements[step.name], np.float64)
        else:
            weights = [w.astype(np.float64) for w in step.weights]
            read = (cut.get((name, step.name), values[name]) for name in step.inputs)
            values[step.name] = OPS[step.op](*read, *weights)
    return values


def logits(network: Network, values: Mapping[str, Values]) -> dict[str, Values]:
    """Return the outputs by name, before a softmax."""
    steps = {step.name: step for step in network.steps}
    return {name: values[_before_softmax(steps[name])] for name in network.outputs}


def _before_softmax(step: Step) -> str:
    return step.inputs[0] if step.op == "softmax" else step.name


def gradient(
    network: Network,
    x: Values,
    layer: str,
    cotangents: Mapping[str, Values],
    at: Values | None = None,
    without: Collection[tuple[str, str]] = (),
    constants: Mapping[str, Values] | None = None,
) -> Values:
    """Return ∂⟨v, outputs⟩/∂(value of `layer`), by central differences in float64, with all entries in one batch.

    Args:
        network: The network.
        x: A batch [N, C, H, W].
        layer: The step to differentiate at.
        cotangents: v by output name.
        at: A replacement for the layer's value, where the gradient is taken.
        without: Edges that carry no change.
        constants: Values of other steps, constants instead of their own.
    """
    constants = {name: value for name, value in (constants or {}).items() if name != layer}
    known = run(network, x, constants if at is None else {**constants, layer: at})
    value = known[layer]
    grads = np.empty_like(value)
    step = 1e-6
    for n in range(len(value)):
        entries = value[n].size
        nudges = step * np.eye(entries).reshape(entries, *value[n].shape)
        variants = np.concatenate([value[n] + nudges, value[n] - nudges])
        cut = {edge: known[edge[0]][n : n + 1].repeat(2 * entries, axis=0) for edge in without}
        fixed = {name: given_value[n : n + 1].repeat(2 * entries, axis=0) for name, given_value in constants.items()}
        images = np.repeat(x[n : n + 1], 2 * entries, axis=0)
        outputs = logits(network, run(network, images, {**fixed, layer: variants}, cut))
        score = np.sum([(outputs[name] * v[n]).sum(axis=1) for name, v in cotangents.items()], axis=0)
        grads[n] = ((score[:entries] - score[entries:]) / (2 * step)).reshape(value[n].shape)
    return grads


def _conv(x: Values, kernel: Values, bias: Values) -> Values:
    pad = kernel.shape[-1] // 2
    padded = np.pad(x, ((0, 0), (0, 0), (pad, pad), (pad, pad)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, kernel.shape[2:], axis=(2, 3))
    return np.einsum("nihwkl,oikl->nohw", windows, kernel, optimize=True) + bias[:, None, None]


def _pool(x: Values) -> Values:
    n, c, h, w = x.shape
    return x.reshape(n, c, h // 2, 2, w // 2, 2).max(axis=(3, 5))


def _softmax(x: Values, axis: int = -1) -> Values:
    e = np.exp(x - x.max(axis=axis, keepdims=True))
    return e / e.sum(axis=axis, keepdims=True)


def _tokens(x: Values, first: Values) -> Values:
    positions = x.reshape(*x.shape[:2], -1)
    return np.concatenate([np.broadcast_to(first[:, None], (len(x), len(first), 1)), positions], axis=2)


def _norm(x: Values, scale: Values, shift: Values) -> Values:
    mean, variance = x.mean(axis=1, keepdims=True), x.var(axis=1, keepdims=True)
    return (x - mean) / np.sqrt(variance + 1e-6) * scale[:, None] + shift[:, None]


def _attend(x: Values, wq: Values, wk: Values, wv: Values) -> Values:
    q, k, v = (np.einsum("oc,nct->not", w, x) for w in (wq, wk, wv))
    share = _softmax(np.einsum("ncs,nct->nst", q, k) / np.sqrt(x.shape[1]))  # s attends to t
    return x + np.einsum("nst,nct->ncs", share, v)


OPS: dict[str, Callable[..., Values]] = {
    "conv": _conv,
    "relu": lambda x: np.maximum(x, 0),
    "tanh": np.tanh,
    "pool": _pool,
    "mean": lambda x: x.mean(axis=(2, 3)),
    "dense": lambda x, kernel, bias: x @ kernel.T + bias,
    "add": lambda a, b: a + b,
    "concat": lambda a, b: np.concatenate([a, b], axis=1),
    "softmax": _softmax,
    "tokens": _tokens,
    "norm": _norm,
    "attend": _attend,
    "first": lambda x: x[:, :, 0],
}
