"""Reverse-mode differentiation of ONNX graphs, emitting plain ONNX operators. One rule for each operator, in `rules`."""

from xcam_onnx.autodiff.engine import OPSET, RULES, Backward, Node, differentiate, ready, vjp
from xcam_onnx.autodiff.values import Ops, TooOld, Unsupported, Value

__all__ = [
    "OPSET",
    "RULES",
    "Backward",
    "Node",
    "Ops",
    "TooOld",
    "Unsupported",
    "Value",
    "differentiate",
    "ready",
    "vjp",
]
