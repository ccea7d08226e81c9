"""The registry of differentiation rules, and a node of the graph as a rule sees it.

The rules in `rules` register themselves here; the engine looks them up.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import onnx
from onnx import NodeProto

from xcam.contract import Array
from xcam_onnx.autodiff.values import Ops, Unsupported, Value
from xcam_onnx.graph import attribute

Rule = Callable[..., Any]


@dataclass(frozen=True)
class Entry:
    """A registered rule."""

    rule: Rule
    broadcasts: bool
    max_gradients: int
    """The number of outputs that may have a gradient."""


RULES: dict[tuple[str, str], Entry] = {}
"""Rules by domain and operator type."""


def vjp(*ops: str, broadcasts: bool = False, domain: str = "") -> Callable[[Rule], Rule]:
    """Register a rule that computes vector-Jacobian products.

    A rule takes the node and the gradients of its outputs. It returns the gradient of the first input as one Value, or
    those of the first inputs as a tuple or list. None means that the derivative is zero by definition (a shape, an
    index). It is an error when an input whose gradient is needed is missing from the tuple.

    Args:
        ops: Operator types.
        broadcasts: The returned gradients have the output's shape; they are summed down to the shapes of the inputs.
        domain: The domain of the operators; the standard's is "".

    Returns:
        A decorator that returns the rule unchanged.
    """

    def register(rule: Rule) -> Rule:
        parameters = list(inspect.signature(rule).parameters.values())
        variadic = any(p.kind is inspect.Parameter.VAR_POSITIONAL for p in parameters)
        for op in ops:
            RULES[domain, op] = Entry(rule, broadcasts, 1000 if variadic else len(parameters) - 1)
        return rule

    return register


class Node:
    """A node of the graph, as a rule sees it.

    Attributes:
        proto: The node itself.
        ops: Writes the nodes of the gradient graph.
    """

    def __init__(self, proto: NodeProto, ops: Ops) -> None:
        self.proto, self.ops = proto, ops

    @cached_property
    def inputs(self) -> list[Value]:
        """All inputs; read one that may be omitted by `input`."""
        return [self.ops.forward(name) for name in self.proto.input]

    @cached_property
    def outputs(self) -> list[Value]:
        """All outputs."""
        return [self.ops.forward(name) for name in self.proto.output]

    @property
    def x(self) -> Value:
        """The first input."""
        return self.inputs[0]

    @property
    def y(self) -> Value:
        """The first output."""
        return self.outputs[0]

    def input(self, index: int) -> Value | None:
        """Return an optional input, or None where it is omitted."""
        present = index < len(self.proto.input) and self.proto.input[index]
        return self.inputs[index] if present else None

    def const(self, index: int, kind: str) -> Array | None:
        """Return the value of an optional input that must be constant; None where it is omitted.

        Raises:
            Unsupported: The input is computed while the model runs. `kind` names it in the message.
        """
        tensor = self.input(index)
        if tensor is None:
            return None
        value = tensor.const
        if value is None:
            raise Unsupported(f"its {kind} is computed while the model runs")
        return value

    def attr(self, name: str, default: Any = None) -> Any:
        """Return an attribute's value."""
        return attribute(self.proto, name, default)

    def axis(self, default: int = 0, name: str = "axis") -> int:
        """Return an axis attribute, counted from the front."""
        return int(self.attr(name, default)) % max(self.x.rank, 1)

    @property
    def version(self) -> int:
        """The version of the operator set that last changed this operator."""
        domain = self.proto.domain
        return onnx.defs.get_schema(self.proto.op_type, self.ops.graph.opset.get(domain, 1), domain).since_version

    def extra(self, index: int, dtype: int) -> Value:
        """Return an optional output with the first output's shape, and request it where the node omits it."""
        while len(self.proto.output) <= index:
            self.proto.output.append("")
        if not self.proto.output[index]:
            self.proto.output[index] = self.ops.fresh(f"{self.proto.op_type}_output")
            self.ops.requested[self.proto.output[index]] = dtype, self.y.shape
        return Value(self.ops, self.proto.output[index], dtype)
