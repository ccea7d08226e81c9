"""A network of residual blocks in NumPy, behind the contract, with mistakes planted at will: for tests of the core."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from example import numpy_example
from xcam.contract.preprocessing import PRESETS

with numpy_example():
    from xcam_numpy.backend import NumpyModel
    from xcam_numpy.graph import Graph, Node

SIZE, WIDTH, BLOCKS, CLASSES = (16, 16), 8, 4, 5


class Blocks(NumpyModel):
    """A model that counts its passes."""

    backend = "numpy"

    def __init__(self, graph: Graph) -> None:
        super().__init__(graph)
        self.input = replace(self.input, preprocessing=PRESETS["unit"])
        self.passes: list[str] = []

    def predict(self, x: Any) -> Any:
        self.passes.append("predict")
        return super().predict(x)

    def trace(self, x: Any, layer: Any, cotangents: Any = None) -> Any:
        self.passes.append("trace" if cotangents is None else "gradients")
        return super().trace(x, layer, cotangents)

    def resume(self, trace: Any, activations: Any, rows: Any = None, cotangents: Any = None, at: Any = None) -> Any:
        self.passes.append("resume")
        return super().resume(trace, activations, rows, cotangents, at)


def network(
    name: str = "first", labels: Any = None, dense: bool = False, width: int = WIDTH, **changes: Any
) -> Blocks:
    """Return the network.

    Args:
        name: Its name.
        labels: Its labels.
        dense: Whether a block's value is its input and the new channels side by side, instead of their sum.
        width: The number of channels between the blocks.
        changes: For the weights of that name (`stem`, `a0`, `b0`, …, `fc`), a function that changes them; for `relu2`, … the
            function of that activation.
    """
    rng = np.random.default_rng(5)
    nodes: list[Node] = []
    space = np.indices(SIZE).sum(axis=0) / sum(SIZE) - 0.5

    def weights(key: str, out: int, into: int) -> Any:
        value = (rng.normal(size=(out, into)) * np.sqrt(2 / into)).astype(np.float32)
        return changes.get(key, lambda w: w)(value)

    def conv(key: str, source: str, out: int, into: int) -> str:
        w = weights(key, out, into)
        shift = (rng.normal(size=out)[:, None, None] * space).astype(np.float32)  # makes maps differ between channels
        nodes.append(
            Node(
                key,
                "Conv",
                (source,),
                lambda x: np.einsum("oc,nc...->no...", w, x) + shift,
                lambda g, x: [np.einsum("oc,no...->nc...", w, g)],
            )
        )
        return key

    def relu(key: str, source: str) -> str:
        function = changes.get(key, lambda x: np.maximum(x, 0))
        nodes.append(Node(key, "ReLU", (source,), function, lambda g, x: [g * (x > 0)]))
        return key

    value, width = relu("stem_relu", conv("stem", "x", width, 3)), width
    for k in range(BLOCKS):
        inside = relu(f"inside{k}", conv(f"a{k}", value, WIDTH, width))
        branch = conv(f"b{k}", inside, width if not dense else 4, WIDTH)
        if dense:
            nodes.append(
                Node(
                    f"join{k}",
                    "Concat",
                    (value, branch),
                    lambda a, b: np.concatenate([a, b], 1),
                    lambda g, a, b: [g[:, : a.shape[1]], g[:, a.shape[1] :]],
                )
            )
            width += 4
        else:
            nodes.append(Node(f"join{k}", "Add", (value, branch), lambda a, b: a + b, lambda g, a, b: [g, g]))
        value = relu(f"relu{k}", f"join{k}")
    nodes.append(
        Node(
            "pool",
            "AveragePool",
            (value,),
            lambda x: x.mean(axis=(2, 3)),
            lambda g, x: [np.broadcast_to(g[:, :, None, None] / np.prod(SIZE), x.shape)],
        )
    )
    fc = weights("fc", CLASSES, width)
    nodes.append(Node("fc", "Dense", ("pool",), lambda x: x @ fc.T, lambda g, x: [g @ fc]))
    return named(Blocks(Graph(name, (3, *SIZE), nodes, ("fc",), labels)), name)


def named(model: Blocks, name: str) -> Blocks:
    model.name = name
    return model


def images(count: int = 1) -> list[Any]:
    rng = np.random.default_rng(11)
    coarse = rng.integers(0, 256, (count, 4, 4, 3), dtype=np.uint8)
    return [np.kron(image, np.ones((4, 4, 1), np.uint8)) for image in coarse]
