"""What the suite's networks compute, in plain NumPy and float64, channels first: the truth that backends are held to."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from xcam.testing.networks import Network, Step

Values = npt.NDArray[Any]


Cut = Mapping[tuple[str, str], Values]
"""(a step, one that reads it) → what the reader is given in place of the step's value: a path that is lost."""


def run(
    network: Network, x: Values, put: Mapping[str, Values] | None = None, cut: Cut | None = None
) -> dict[str, Values]:
    """The value of every step for a batch x [N, C, H, W]; with the values of `put` in place of those steps' own."""
    put, cut = put or {}, cut or {}
    values: dict[str, Values] = {"x": np.asarray(x, np.float64)}
    for step in network.steps:
        if step.name in put:
            values[step.name] = np.asarray(put[step.name], np.float64)
        else:
            weights = [w.astype(np.float64) for w in step.weights]
            read = (cut.get((name, step.name), values[name]) for name in step.inputs)
            values[step.name] = OPS[step.op](*read, *weights)
    return values


def logits(network: Network, values: Mapping[str, Values]) -> dict[str, Values]:
    """The outputs by name, under their softmax where they have one."""
    steps = {step.name: step for step in network.steps}
    return {name: values[_under(steps[name])] for name in network.outputs}


def _under(step: Step) -> str:
    return step.inputs[0] if step.op == "softmax" else step.name


def gradient(
    network: Network,
    x: Values,
    layer: str,
    cotangents: Mapping[str, Values],
    at: Values | None = None,
    without: Collection[tuple[str, str]] = (),
) -> Values:
    """∂⟨v, outputs⟩/∂(value of `layer`), by central differences in float64; all entries at once, as one batch.

    At the layer's own value for `x`, or at the value `at` put in its place. `without`: steps, each with one that
    reads it, between which no change passes.
    """
    known = run(network, x) if at is None else run(network, x, {layer: at})
    here = known[layer]
    grads = np.empty_like(here)
    step = 1e-6
    for n in range(len(here)):
        entries = here[n].size
        nudges = step * np.eye(entries).reshape(entries, *here[n].shape)
        around = np.concatenate([here[n] + nudges, here[n] - nudges])
        cut = {edge: known[edge[0]][n : n + 1].repeat(2 * entries, axis=0) for edge in without}
        said = logits(network, run(network, np.repeat(x[n : n + 1], 2 * entries, axis=0), {layer: around}, cut))
        score = np.sum([(said[name] * v[n]).sum(axis=1) for name, v in cotangents.items()], axis=0)
        grads[n] = ((score[:entries] - score[entries:]) / (2 * step)).reshape(here[n].shape)
    return grads


def _conv(x: Values, kernel: Values, bias: Values) -> Values:
    around = kernel.shape[-1] // 2
    padded = np.pad(x, ((0, 0), (0, 0), (around, around), (around, around)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, kernel.shape[2:], axis=(2, 3))
    return np.einsum("nihwkl,oikl->nohw", windows, kernel, optimize=True) + bias[:, None, None]


def _pool(x: Values) -> Values:
    n, c, h, w = x.shape
    return x.reshape(n, c, h // 2, 2, w // 2, 2).max(axis=(3, 5))


def _softmax(x: Values, axis: int = -1) -> Values:
    e = np.exp(x - x.max(axis=axis, keepdims=True))
    return e / e.sum(axis=axis, keepdims=True)


def _tokens(x: Values, first: Values) -> Values:
    places = x.reshape(*x.shape[:2], -1)
    return np.concatenate([np.broadcast_to(first[:, None], (len(x), len(first), 1)), places], axis=2)


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
