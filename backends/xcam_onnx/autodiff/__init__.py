"""Reverse-mode differentiation of ONNX graphs, written in plain ONNX operators: one rule per operator, in `rules`."""

from xcam_onnx.autodiff import rules  # registers the rules
from xcam_onnx.autodiff.engine import OPSET, Backward, NoPath, differentiable, differentiate, inline_undifferentiable
from xcam_onnx.autodiff.registry import RULES, Node, vjp
from xcam_onnx.autodiff.values import Ops, TooOld, Unsupported, Value

__all__ = [
    "OPSET",
    "RULES",
    "Backward",
    "NoPath",
    "Node",
    "Ops",
    "TooOld",
    "Unsupported",
    "Value",
    "differentiable",
    "differentiate",
    "inline_undifferentiable",
    "rules",
    "vjp",
]
