"""Small networks, independent of any framework: steps with names, inputs and weights.

Each covers one possible mistake of a backend. A backend's tests build them with the layers of its framework, one for
each step, under the name of the step; a `/` in a name means a model inside the model.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

Op = Literal[
    "conv", "relu", "tanh", "pool", "mean", "dense", "add", "concat", "softmax", "tokens", "norm", "attend", "first"
]
"""The operation of a step on values [N, C, H, W] (tokens: [N, C, T], vectors: [N, C]):

conv: weights kernel [O, I, k, k], bias [O]; stride 1, zero padding so that the size is kept.
relu, tanh, add, concat (over channels), softmax (over the last axis of [N, C]): as usual.
pool: the maximum of 2×2, stride 2. mean: over space, to [N, C]. dense: kernel [O, I], bias [O], on [N, C].
tokens: [N, C, H, W] → [N, C, 1 + H·W]: the class token (weights [C]) first, then the positions row by row.
norm: layer normalisation over channels, ε = 1e-6, weights scale [C], shift [C].
attend: x + softmax(qᵀk/√C)·v over tokens, with q, k, v = W·x; weights Wq, Wk, Wv, each [C, C] (out, in); no bias.
first: the class token alone, to [N, C].
"""


@dataclass(frozen=True)
class Step:
    """One layer: its operation, its name, the steps that it reads (`x` is the input), and its weights."""

    op: Op
    name: str
    inputs: tuple[str, ...]
    weights: tuple[npt.NDArray[np.float32], ...] = ()


@dataclass(frozen=True)
class Network:
    """A small network. `explained` names the layers at which the suite checks gradients."""

    name: str
    input: tuple[int, int, int]
    """(C, H, W); H and W differ, so that exchanged axes are noticed."""
    steps: tuple[Step, ...]
    outputs: tuple[str, ...]
    explained: tuple[str, ...]
    activation: str | None = None

    def feeds(self, first: str, second: str) -> bool:
        """Return whether a path leads from one step to another."""
        sources = next(step.inputs for step in self.steps if step.name == second)
        return first in sources or any(self.feeds(first, source) for source in sources if source != "x")

    def avoids(self, layers: Collection[str], start: str = "x", outputs: Collection[str] | None = None) -> bool:
        """Return whether a path leads from a step to one of the outputs (None: the first) around `layers`."""
        ends = self.outputs[:1] if outputs is None else outputs
        reached = {start} - set(layers)
        for step in self.steps:
            if step.name not in layers and reached.intersection(step.inputs):
                reached.add(step.name)
        return not reached.isdisjoint(ends)

    def bypass(self, layer: str) -> list[tuple[str, str]]:
        """Return the edges of the bypass values: a step that is not after the layer, and one after it that reads it."""
        after = [step for step in self.steps if self.feeds(layer, step.name)]
        inside = {layer, *(step.name for step in after)}
        return [(source, step.name) for step in after for source in step.inputs if source not in inside]

    def forks(self, layer: str) -> list[tuple[str, str]]:
        """Return the edges out of the layer and the steps after it, where several steps read the same value."""
        edges: dict[str, list[str]] = {}
        for step in self.steps:
            for source in step.inputs:
                edges.setdefault(source, []).append(step.name)
        return [
            (source, reader)
            for source, readers in edges.items()
            if len(readers) > 1 and (source == layer or (source != "x" and self.feeds(layer, source)))
            for reader in readers
        ]


class _Builder:
    """A builder of networks: it collects steps and draws their weights."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.steps: list[Step] = []

    def draw(self, *shape: int, around: float = 0.0, spread: float = 1.5) -> npt.NDArray[np.float32]:
        fan_in = int(np.prod(shape[1:])) or 1
        return (around + self.rng.normal(size=shape) * spread / np.sqrt(fan_in)).astype(np.float32)

    def __call__(self, op: Op, name: str, *inputs: str, weights: tuple[npt.NDArray[np.float32], ...] = ()) -> str:
        self.steps.append(Step(op, name, inputs, weights))
        return name

    def conv(self, name: str, source: str, out: int, into: int, kernel: int = 3) -> str:
        return self("conv", name, source, weights=(self.draw(out, into, kernel, kernel), self.draw(out)))

    def dense(self, name: str, source: str, out: int, into: int) -> str:
        return self("dense", name, source, weights=(self.draw(out, into), self.draw(out)))


def _chain(m: _Builder) -> Network:
    h = m("tanh", "tanh1", m.conv("conv1", "x", 4, 3))  # no ReLU before the pool, which has a kink where all are zero
    h = m("relu", "relu2", m.conv("conv2", m("pool", "pool", h), 5, 4))
    m.dense("scores", m("mean", "mean", h), 4, 5)
    return Network("chain", (3, 8, 6), tuple(m.steps), ("scores",), ("conv1", "tanh1", "conv2", "relu2"))


def _residual(m: _Builder) -> Network:
    a = m("relu", "relu1", m.conv("conv1", "x", 4, 3))
    b = m("add", "add", a, m.conv("conv3", m("tanh", "tanh", m.conv("conv2", a, 4, 4)), 4, 4))
    m.dense("scores", m("mean", "mean", m("relu", "relu2", b)), 3, 4)
    return Network("residual", (3, 6, 8), tuple(m.steps), ("scores",), ("conv1", "relu1", "conv2", "tanh", "conv3"))


def _dense(m: _Builder) -> Network:
    a = m.conv("conv1", "x", 3, 3)
    b = m("concat", "concat1", a, m("tanh", "tanh1", m.conv("conv2", a, 3, 3)))
    c = m("concat", "concat2", b, m("tanh", "tanh2", m.conv("conv3", b, 2, 6)))
    m.dense("scores", m("mean", "mean", m("relu", "relu", c)), 3, 8)
    return Network("dense", (3, 6, 8), tuple(m.steps), ("scores",), ("conv1", "conv2", "conv3"))


def _branch(m: _Builder) -> Network:
    a = m("relu", "relu1", m.conv("conv1", "x", 4, 3))
    m.dense("kind", m("mean", "mean1", m("tanh", "tanh1", m.conv("conv2", a, 4, 4))), 4, 4)
    m.dense("position", m("mean", "mean2", m("tanh", "tanh2", m.conv("conv3", a, 3, 4))), 2, 3)
    return Network("branch", (3, 6, 8), tuple(m.steps), ("kind", "position"), ("relu1", "conv2", "conv3"))


def _nested(m: _Builder) -> Network:
    h = m("relu", "backbone/relu1", m.conv("backbone/conv1", "x", 4, 3))
    h = m("tanh", "backbone/tanh2", m.conv("backbone/conv2", h, 5, 4))
    m.dense("scores", m("mean", "mean", h), 3, 5)
    return Network("nested", (3, 8, 6), tuple(m.steps), ("scores",), ("backbone/conv1", "backbone/conv2"))


def _probable(m: _Builder) -> Network:
    h = m("tanh", "tanh", m.conv("conv1", "x", 4, 3))
    m("softmax", "softmax", m.dense("scores", m("mean", "mean", h), 4, 4))
    return Network("probable", (3, 8, 6), tuple(m.steps), ("softmax",), ("conv1", "tanh"), "softmax")


def _tokens(m: _Builder) -> Network:
    h = m("tokens", "tokens", m.conv("patches", "x", 6, 3), weights=(m.draw(6),))
    h = m("norm", "norm1", h, weights=(m.draw(6, around=1, spread=0.4), m.draw(6)))
    h = m("attend", "attend", h, weights=(m.draw(6, 6), m.draw(6, 6), m.draw(6, 6)))
    h = m("first", "first", m("norm", "norm2", h, weights=(m.draw(6, around=1, spread=0.4), m.draw(6))))
    m.dense("scores", h, 3, 6)
    return Network("tokens", (3, 3, 4), tuple(m.steps), ("scores",), ("patches", "norm1", "norm2"))


_BUILDERS: tuple[Callable[[_Builder], Network], ...] = (
    _chain,
    _residual,
    _dense,
    _branch,
    _nested,
    _probable,
    _tokens,
)
NETWORKS: dict[str, Network] = {
    network.name: network for seed, make in enumerate(_BUILDERS) for network in [make(_Builder(seed))]
}
"""The networks by name: chain, residual, dense, branch, nested, probable, tokens."""
