"""The operators of the suite's networks for a Graph, each with its derivative."""

from __future__ import annotations

from typing import Any

import numpy as np
from xcam_numpy.graph import Graph, Node

from xcam.testing import Network, Step
from xcam.testing.reference import OPS

KINDS = {
    "conv": "Conv",
    "relu": "ReLU",
    "pool": "MaxPool",
    "dense": "Dense",
    "norm": "LayerNorm",
    "softmax": "Softmax",
}


def graph(network: Network) -> Graph:
    """Return the network as a user of this framework would write it."""
    return Graph(network.name, network.input, [node(step) for step in network.steps], network.outputs)


def node(step: Step) -> Node:
    """Return a step of the network."""
    derivative = globals()[f"{step.op}_back"]

    def forward(*values: Any) -> Any:
        return OPS[step.op](*values, *step.weights)

    def backward(g: Any, *values: Any) -> Any:
        gradients = derivative(g, *values, *step.weights)
        return gradients if isinstance(gradients, tuple) else (gradients,)

    return Node(step.name, KINDS.get(step.op, step.op.capitalize()), step.inputs, forward, backward)


def conv_back(g: Any, x: Any, kernel: Any, bias: Any) -> Any:
    """A convolution with the kernel rotated, inputs and outputs exchanged."""
    return OPS["conv"](g, kernel[:, :, ::-1, ::-1].swapaxes(0, 1), np.zeros(kernel.shape[1], kernel.dtype))


def relu_back(g: Any, x: Any) -> Any:
    return g * (x > 0)


def tanh_back(g: Any, x: Any) -> Any:
    return g * (1 - np.tanh(x) ** 2)


def pool_back(g: Any, x: Any) -> Any:
    def wide(v: Any) -> Any:
        return v.repeat(2, axis=2).repeat(2, axis=3)

    return wide(g) * (x == wide(OPS["pool"](x)))


def mean_back(g: Any, x: Any) -> Any:
    return np.broadcast_to(g[:, :, None, None], x.shape) / (x.shape[2] * x.shape[3])


def dense_back(g: Any, x: Any, kernel: Any, bias: Any) -> Any:
    return g @ kernel


def add_back(g: Any, a: Any, b: Any) -> Any:
    return g, g


def concat_back(g: Any, a: Any, b: Any) -> Any:
    return g[:, : a.shape[1]], g[:, a.shape[1] :]


def softmax_back(g: Any, x: Any, axis: int = -1) -> Any:
    p = OPS["softmax"](x, axis)
    return p * (g - (g * p).sum(axis=axis, keepdims=True))


def tokens_back(g: Any, x: Any, first: Any) -> Any:
    return g[:, :, 1:].reshape(x.shape)


def first_back(g: Any, x: Any) -> Any:
    gradient = np.zeros_like(x)
    gradient[:, :, 0] = g
    return gradient


def norm_back(g: Any, x: Any, scale: Any, shift: Any) -> Any:
    spread = np.sqrt(x.var(axis=1, keepdims=True) + 1e-6)
    z, g = (x - x.mean(axis=1, keepdims=True)) / spread, g * scale[:, None]
    return (g - g.mean(axis=1, keepdims=True) - z * (g * z).mean(axis=1, keepdims=True)) / spread


def attend_back(g: Any, x: Any, wq: Any, wk: Any, wv: Any) -> Any:
    q, k, v = (w @ x for w in (wq, wk, wv))  # [N, C, T]
    root = np.sqrt(np.float32(x.shape[1]))
    share = OPS["softmax"](q.swapaxes(1, 2) @ k / root)  # [N, T, T]: row s attends to column t
    before = softmax_back(g.swapaxes(1, 2) @ v, q.swapaxes(1, 2) @ k / root) / root
    return g + wv.T @ (g @ share) + wq.T @ (k @ before.swapaxes(1, 2)) + wk.T @ (q @ before)
