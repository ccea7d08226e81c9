"""A network of an image, five numbers and the index of a domain, with the same weights in torch, ONNX and Keras."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

SIDE = 16
LAYER = "relu"
_RANDOM = np.random.default_rng(5)
WEIGHTS: dict[str, npt.NDArray[np.float32]] = {
    name: _RANDOM.normal(size=shape).astype(np.float32) * np.float32(0.5)
    for name, shape in {"conv": (6, 3, 3, 3), "meta": (4, 5), "domain": (3, 2), "head": (3, 12)}.items()
}
IMAGE = _RANDOM.integers(0, 256, (24, 20, 3), dtype=np.uint8)
META = np.array([0.4, -1.0, 2.0, 0.1, -0.5], np.float32)
DOMAIN = 2
VALUES: dict[str, Any] = {"meta": META, "domain": DOMAIN}


class Network(nn.Module):
    """The network in torch."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3, padding=1, bias=False)
        self.relu = nn.ReLU()
        self.mlp = nn.Linear(5, 4, bias=False)
        self.embedding = nn.Embedding(3, 2)
        self.head = nn.Linear(12, 3, bias=False)
        parts = {"conv": self.conv, "meta": self.mlp, "domain": self.embedding, "head": self.head}
        for name, part in parts.items():
            part.weight = nn.Parameter(torch.from_numpy(WEIGHTS[name].copy()))
        self.eval()

    def forward(self, image: torch.Tensor, meta: torch.Tensor, domain: torch.Tensor) -> torch.Tensor:
        """Return the scores [N, 3] of images, numbers [N, 5] and domains [N]."""
        features = self.relu(self.conv(image)).mean((2, 3))
        return self.head(torch.cat([features, torch.tanh(self.mlp(meta)), self.embedding(domain)], 1))


class OfDictionary(Network):
    """The same, of a dictionary."""

    def forward(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:  # type: ignore[override]
        """Return the scores."""
        return super().forward(batch["visual"], batch["meta"], batch["domain"])


class OfKeywords(Network):
    """The same, of any keywords, the image first."""

    def forward(self, image: torch.Tensor, **others: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        """Return the scores."""
        return super().forward(image, others["meta"], others["domain"])


def onnx_model(batches: tuple[Any, Any, Any] = ("n", "n", "n"), layout: str = "image") -> onnx.ModelProto:
    """Return the network in ONNX.

    Args:
        batches: The first size of each input.
        layout: The name of the image's input.
    """
    nodes = [
        helper.make_node("Conv", [layout, "conv"], ["conv_out"], "conv", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["conv_out"], [LAYER], LAYER),
        helper.make_node("GlobalAveragePool", [LAYER], ["pooled"], "pool"),
        helper.make_node("Flatten", ["pooled"], ["flat"], "flatten"),
        helper.make_node("Gemm", ["meta", "weight"], ["numbers"], "mlp", transB=1),
        helper.make_node("Tanh", ["numbers"], ["bounded"], "tanh"),
        helper.make_node("Gather", ["table", "domain"], ["row"], "embedding"),
        helper.make_node("Concat", ["flat", "bounded", "row"], ["joined"], "joined", axis=1),
        helper.make_node("Gemm", ["joined", "head"], ["scores"], "head", transB=1),
    ]
    names = {"conv": "conv", "meta": "weight", "domain": "table", "head": "head"}
    image, meta, domain = batches
    graph = helper.make_graph(
        nodes,
        "network",
        [
            helper.make_tensor_value_info(layout, TensorProto.FLOAT, [image, 3, SIDE, SIDE]),
            helper.make_tensor_value_info("meta", TensorProto.FLOAT, [meta, 5]),
            helper.make_tensor_value_info("domain", TensorProto.INT64, [domain]),
        ],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, [image, 3])],
        [numpy_helper.from_array(WEIGHTS[key], name) for key, name in names.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def expected(x: npt.NDArray[Any], index: int, meta: npt.NDArray[Any] = META, domain: int = DOMAIN) -> Any:
    """Return the raw map of Grad-CAM by plain torch at the ReLU [h, w], and the scores [3], for one input [1, 3, H, W]."""
    network = Network()
    features = network.relu(network.conv(torch.from_numpy(x))).detach().requires_grad_()
    others = torch.tanh(network.mlp(torch.from_numpy(meta)[None])), network.embedding(torch.tensor([domain]))
    scores = network.head(torch.cat([features.mean((2, 3)), *others], 1))
    (gradient,) = torch.autograd.grad(scores[0, index], features)
    cam = (gradient.mean((2, 3), keepdim=True) * features).sum(1)[0]
    return cam.detach().numpy(), scores[0].detach().numpy()
