"""The registry of expansions: for each operator outside the standard form, a function that writes it in standard operators.

@expands("FusedConv", domain=MICROSOFT)
def fused_conv(n: Original, w: Writer) -> None:
    y = w.Conv(*n.inputs[:3], **n.attributes("activation", "activation_params"))
    w.Relu(y, out=n.outputs[0])
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper

from xcam.contract import Array
from xcam_onnx.graph import Graph, Shape, attribute
from xcam_onnx.weights import WeightFiles

MICROSOFT = "com.microsoft"
"""The domain of ONNX Runtime's own operators."""
PREFIX = "xcam/s"
"""Begins the names of all tensors that expansions write."""

Expansion = Callable[["Original", "Writer"], None]

EXPANSIONS: dict[tuple[str, str], Expansion] = {}
"""Expansions by domain and operator type."""


class NotExpandable(Exception):  # noqa: N818  (internal: the node then remains as it is)
    """Error of an expansion for a node that standard operators cannot express; the message gives the reason."""


NEWER: dict[tuple[str, str], Expansion] = {}
"""Expansions of standard operators for models of an older operator set, which the runtime accepts too."""


def expands(*ops: str, domain: str = "", newer: bool = False) -> Callable[[Expansion], Expansion]:
    """Register an expansion.

    An expansion writes nodes by its Writer; the last ones name the outputs of the original node (`out=`), with the type
    that the original gives them.

    Args:
        ops: The operators.
        domain: Their domain.
        newer: They are standard operators, and expanded only where the model's operator set lacks them.
    """

    def register(expansion: Expansion) -> Expansion:
        for op in ops:
            (NEWER if newer else EXPANSIONS)[domain, op] = expansion
        return expansion

    return register


def expansion(node: NodeProto, opset: int) -> Expansion | None:
    """Return the expansion of a node in a model of an operator set; None for an operator of the standard form."""
    key = node.domain, node.op_type
    if key in NEWER and not onnx.defs.has(node.op_type, opset, node.domain):
        return NEWER[key]
    return EXPANSIONS.get(key)


class Original:
    """A node that is to be expanded.

    Attributes:
        proto: The node itself.
        inputs: The names of its inputs; "" where one is omitted.
        outputs: The names of its outputs.
        opset: The version of ONNX's operators in the model.
    """

    def __init__(self, proto: NodeProto, graph: Graph, weights: WeightFiles | None) -> None:
        self.proto, self._graph, self._weights = proto, graph, weights
        self.inputs: list[str] = list(proto.input)
        self.outputs: list[str] = list(proto.output)
        self.opset: int = graph.opset.get("", 1)

    def input(self, index: int) -> str:
        """Return the name of an optional input; "" where it is omitted."""
        return self.inputs[index] if index < len(self.inputs) else ""

    def attr(self, name: str, default: Any = None) -> Any:
        """Return an attribute's value."""
        return attribute(self.proto, name, default)

    def attributes(self, *without: str) -> dict[str, Any]:
        """Return the attributes, except some."""
        return {
            entry.name: attribute(self.proto, entry.name)
            for entry in self.proto.attribute
            if entry.name not in without
        }

    def shape(self, name: str) -> Shape | None:
        """Return the shape of a tensor; None where its rank is unknown."""
        return self._graph.shape(name)

    def dtype(self, name: str) -> int:
        """Return the TensorProto type of a tensor; 0 where it is unknown."""
        return self._graph.dtype(name)

    def constant(self, name: str) -> Array | None:
        """Return the value of a constant, also of a large one; None for computed tensors."""
        tensor = self._graph.initializers.get(name)
        if tensor is not None and tensor.data_location == TensorProto.EXTERNAL:
            return None if self._weights is None else self._weights.array(tensor)
        return self._graph.constant(name) if name else None


class Writer:
    """Writes nodes: `w.Conv(x, kernel, pads=[1, 1, 1, 1])`, `w.Add(y, 3.0, out="sum")`. Tensors are names.

    Args:
        opset: The version of ONNX's operators.
        prefix: Begins the names of the tensors that are written.
        taken: Names that the model has.
    """

    def __init__(self, opset: int, prefix: str = PREFIX, taken: Collection[str] = ()) -> None:
        self.opset = opset
        self.nodes: list[NodeProto] = []
        self.constants: list[TensorProto] = []
        self.domains: set[str] = set()
        """Domains, other than ONNX's own, of the operators that were written."""
        self._prefix, self._taken = prefix, taken
        self._count = 0

    def __getattr__(self, op: str) -> Callable[..., str]:
        if not op[:1].isupper():
            raise AttributeError(op)
        return lambda *inputs, **options: self(op, *inputs, **options)[0]

    def __call__(
        self,
        op: str,
        *inputs: Any,
        out: str | Sequence[str] = "",
        outputs: int = 1,
        domain: str = "",
        **attributes: Any,
    ) -> list[str]:
        """Write a node.

        Args:
            op: The operator.
            inputs: Names of tensors; arrays, which become constants; None for an omitted input.
            out: The name of the output, or of several; default: new names.
            outputs: The number of outputs where no names are given.
            domain: The operator's domain.
            attributes: Its attributes; those that are None are left out.

        Returns:
            The names of its outputs.
        """
        names = [
            source if isinstance(source, str) else "" if source is None else self.constant(source)
            for source in inputs
        ]
        results = [out] if isinstance(out, str) and out else list(out) or [self.fresh(op) for _ in range(outputs)]
        present = {name: value for name, value in attributes.items() if value is not None}
        self.nodes.append(helper.make_node(op, names, results, name=self.fresh(op), domain=domain, **present))
        if domain:
            self.domains.add(domain)
        return results

    def constant(self, value: Any) -> str:
        """Write a constant: an array; a list of integers becomes int64, a number float32."""
        if not isinstance(value, np.ndarray | np.generic):
            value = np.asarray(value, np.int64 if isinstance(value, list | tuple) else np.float32)
        name = self.fresh("constant")
        self.constants.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def fresh(self, suffix: str) -> str:
        """Return a new name."""
        self._count += 1
        name = f"{self._prefix}{self._count}_{suffix}"
        return self.fresh(suffix) if name in self._taken else name

    def dequantize(self, x: str, scale: str, zero: str = "", axis: int | None = None, out: str = "") -> str:
        """Write a DequantizeLinear. `axis`: that of the scales where there are several."""
        return self.DequantizeLinear(x, scale, *([zero] if zero else []), axis=axis, out=out)

    def quantize(self, x: str, scale: str, zero: str, axis: int | None = None, out: str = "") -> str:
        """Write a QuantizeLinear. `axis`: that of the scales where there are several."""
        return self.QuantizeLinear(x, scale, zero, axis=axis, out=out)
