"""A network to try the backend with: how red, green and blue is an image, and where?"""

from typing import Any

import numpy as np
from xcam_numpy.graph import Graph, Node


def build() -> Graph:
    """Return the network."""

    def colours(x: Any) -> Any:
        return np.maximum(x - x.mean(axis=1, keepdims=True), 0)

    def colours_back(g: Any, x: Any) -> Any:
        g = g * (colours(x) > 0)
        return [g - g.mean(axis=1, keepdims=True)]

    def mean(x: Any) -> Any:
        return x.mean(axis=(2, 3))

    def mean_back(g: Any, x: Any) -> Any:
        return [np.broadcast_to(g[:, :, None, None], x.shape) / (x.shape[2] * x.shape[3])]

    nodes = [
        Node("colours", "Conv", ("x",), colours, colours_back),
        Node("scores", "Mean", ("colours",), mean, mean_back),
    ]
    return Graph("toy", (3, 64, 64), nodes, ("scores",), ("red", "green", "blue"))
