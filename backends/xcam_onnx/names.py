"""Names of a graph's tensors: by the module path that torch's exporter records, by node, by tensor.

torch.onnx.export(dynamo=True) writes into each node's metadata the modules that it came from: `layer4`, `layer4.2`,
`layer4.2.bn3`. A module's output is that of its last node. A batch norm that was folded into its convolution leaves its
name on the node: the value of the convolution alone is no longer computed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from onnx import NodeProto

from xcam.contract.graphs import call_names
from xcam_onnx.graph import Graph, attribute
from xcam_onnx.scopes import Scope, is_live, modules, scopes, unknown_ends
from xcam_onnx.standard import attention, fused, nchwc
from xcam_onnx.standard.form import StandardForm
from xcam_onnx.standard.registry import EXPANSIONS

ADDED = "xcam/batch"
"""Suffix of the tensors to which xcam_onnx.batching adds a batch axis, and prefix of the names of its nodes."""


@dataclass
class TensorName:
    """A name of a tensor."""

    name: str
    tensor: str
    kind: str
    aliases: list[str] = field(default_factory=list)
    inner: bool = False
    """The tensor is a value inside a module."""


@dataclass
class _Call:
    """A call of a module."""

    path: str
    kind: str
    last: int
    """The index of its last node."""


def tensor_names(graph: Graph) -> list[TensorName]:
    """Name the first output of every node that depends on the input, in execution order.

    Where the file names modules, each module gets an entry, an outer one before the inner one that ends with it; tensors
    without a module's name are `inner` then.
    """
    scoped = scopes(graph)
    calls = _calls(scoped)
    unknown = unknown_ends(graph, scoped, [(call.path, call.last) for call in calls])
    ends: dict[int, list[tuple[str, str]]] = {}
    for name, call in zip(call_names([call.path for call in calls]), calls, strict=True):
        if (call.path, call.last) not in unknown:
            ends.setdefault(call.last, []).append((name, call.kind))
    result = []
    for i, node in enumerate(graph.nodes):
        if not is_live(graph, node) or any(name.startswith("xcam/") for name in (node.name, node.output[0])):
            continue
        node_names = _node_names(node)
        if i in ends:
            *outer, (name, kind) = sorted(ends[i], key=lambda entry: len(entry[0]))
            result += [TensorName(name, node.output[0], kind) for name, kind in outer]
            result.append(TensorName(name, node.output[0], kind, node_names))
        else:
            name, *aliases = node_names
            result.append(TensorName(name, node.output[0], _kind(graph, node), aliases, inner=bool(calls)))
    taken: set[str] = set()
    for entry in result:  # a name belongs to the first tensor that has it
        if entry.name in taken:
            entry.name = entry.tensor
        taken.add(entry.name)
    return result


FUSED = {key for key, function in EXPANSIONS.items() if function.__module__ in (attention.__name__, fused.__name__)}
"""Operators that an optimiser writes for several of the float file."""


def _node_names(node: NodeProto) -> list[str]:
    """Return the names of a node and of its output.

    A fused node has the value of the last one, whose name the output still has. Its own name is that of the first, and so
    of another value in the float file, or a new one.
    """
    tensor = node.output[0]
    is_renamed = tensor.removesuffix(OUTPUT_ENDS[0]) not in (tensor, node.name)
    is_fused = ((node.domain, node.op_type) in FUSED or is_renamed) and not nchwc.is_name(tensor)
    is_other = node.op_type in ("FusedConv", "NhwcFusedConv", "FusedGemm", nchwc.REORDER_IN, nchwc.REORDER_OUT)
    first = [] if is_other else [node.name]
    names = (
        dict.fromkeys([_without_end(tensor, OUTPUT_ENDS), tensor, *first])
        if is_fused or is_other
        else [*first, tensor]
    )
    return [name for name in names if name]


QUANTISED_OUTPUT = "_QuantizeLinear_Input"
QUANTISED_ENDS = ("_quant", "_quantized", QUANTISED_OUTPUT, "_quant_output_scale_mul", "_bias_add")
"""Suffixes that ONNX Runtime's quantiser adds to the names of nodes and tensors."""
UNSCALED_ENDS = ("_output_quantized_cast_output", "quant_scaled_output")
"""Suffixes of the values in front of the scale, or of the bias, that it adds behind an operator on integers."""
ABSORBING = ("Conv", "Gemm", "MatMul", "Add")
"""Operators whose quantisation absorbs the activation behind them."""
OUTPUT_ENDS = ("_output_0", ":0")
"""Suffixes that torch's exporter and tf2onnx add to a node's name for its first output."""


def layer_names(form: StandardForm) -> list[TensorName]:
    """Name the tensors of a model's standard form as the original file does.

    The value of a layer is the one that the nodes behind it read. In a quantised file this is the dequantised value: it
    has the names of the node that computes it, those of an activation that the quantiser absorbed, and those of the nodes
    that quantise and dequantise it.
    """
    graph = Graph(form.original)
    entries = tensor_names(graph)
    if not form.is_changed:
        return entries
    result: dict[str, TensorName] = {}
    named = _nodes_name_outputs(entries)
    inputs = {form.as_read(value.name) for value in graph.inputs}
    for entry in entries:
        read = form.as_read(entry.tensor)
        if read is None or read in inputs:
            continue
        is_unscaled = entry.tensor.endswith(UNSCALED_ENDS)
        is_written = any(name.endswith(QUANTISED_ENDS) for name in (entry.name, *entry.aliases))
        if (read != entry.tensor or is_written) and not is_unscaled:
            names = _float_names(entry, named)
        else:
            names = [entry.name, *entry.aliases]
        node = graph.nodes[graph.producer[entry.tensor]]
        if nchwc.is_name(entry.tensor):
            names = _names_in_blocks(node)
        if read in result and node.op_type == nchwc.REORDER_OUT and entry.tensor == read:
            layer = result[read]
            layer.aliases = [n for n in dict.fromkeys([*names[1:], layer.name, *layer.aliases]) if n != names[0]]
            layer.name = names[0]
        elif read in result and entry.kind.startswith(("QuantizeLinear", "DequantizeLinear", "Reorder")):
            result[read].aliases += [name for name in names if name not in result[read].aliases]
        else:
            key = read if read not in result else entry.name
            # A node that a tool wrote has lost the name of its module: it is not a part of another one.
            is_fused = (node.domain, node.op_type) in FUSED or nchwc.is_name(entry.tensor)
            is_inner = is_unscaled or (entry.inner and not is_written and not is_fused)
            result[key] = TensorName(names[0], read, entry.kind, names[1:], is_inner)
    return list(result.values())


BLOCK_ENDS = ("_bn_nchwc", "_nchwc", "/QuickGeluFusion/")
"""Suffixes of the names of nodes that ONNX Runtime's optimiser writes in the memory layout of a machine."""


def _names_in_blocks(node: NodeProto) -> list[str]:
    """Return the names of a value in the memory layout of a machine: those of the float file first.

    The optimiser names a convolution by its output, and fuses a sum, HardSwish, or the activation behind a batch norm into
    it later.
    """
    name, tensor = node.name, node.output[0]
    output, kind = _without_end(name, BLOCK_ENDS), attribute(node, "activation")
    if len(node.input) > 3 or kind == "HardSwish" or (kind and name.endswith(BLOCK_ENDS[0])):
        return [name, tensor]
    return [n for n in dict.fromkeys([_without_end(output, OUTPUT_ENDS), output, name, tensor]) if n]


def _float_names(entry: TensorName, nodes_name_outputs: bool) -> list[str]:
    """Return the names of a quantised value: those of the float file first.

    A quantiser that absorbs an activation keeps the name of its output, `/3/Relu_output_0`, and removes its node, `/3/Relu`:
    the value is the activation's.

    Args:
        entry: The value as the file names it.
        nodes_name_outputs: See `_nodes_name_outputs`.
    """
    names = [name for full in (entry.name, *entry.aliases) for name in (_without_end(full, QUANTISED_ENDS), full)]
    output = _without_end(_without_end(entry.tensor, QUANTISED_ENDS), OUTPUT_ENDS)
    if not entry.tensor.endswith(QUANTISED_OUTPUT) and (nodes_name_outputs or entry.tensor.endswith(OUTPUT_ENDS)):
        names.insert(0, output)
    return list(dict.fromkeys(names))


def _nodes_name_outputs(entries: Sequence[TensorName]) -> bool:
    """Return whether outputs have the names of their nodes in this file, as most tools name them.

    Operators that absorb activations do not count: they have the name of the activation's output.
    """
    names = [
        entry
        for entry in entries
        if len(entry.aliases) == 1 and not any(kind in entry.kind for kind in ("uantizeLinear", *ABSORBING))
    ]
    same = sum(_without_end(entry.tensor, OUTPUT_ENDS) in (entry.name, *entry.aliases[:-1]) for entry in names)
    return 2 * same > len(names)


def _without_end(name: str, ends: Sequence[str]) -> str:
    return name.removesuffix(next((end for end in ends if name.endswith(end)), ""))


def _kind(graph: Graph, node: NodeProto) -> str:
    """Return the operator; for a value that was dequantised also the one that computed it."""
    source = node
    if node.output[0].endswith(f"/{ADDED}"):
        return graph.nodes[graph.producer[node.input[0]]].op_type
    while source.op_type in ("DequantizeLinear", "QuantizeLinear"):
        if source.input[0] not in graph.producer:
            return node.op_type
        source = graph.nodes[graph.producer[source.input[0]]]
    return node.op_type if source is node else f"{node.op_type} of {source.op_type}"


def _calls(scoped: Sequence[Scope]) -> list[_Call]:
    """Return the calls of modules, in the order in which they begin, from the modules of each node."""
    calls: list[_Call] = []
    latest: dict[str, _Call] = {}
    for i, pairs in enumerate(scoped):
        for path, kind in pairs:
            if not kind:
                continue
            call = latest.get(path)
            # The call continues unless nodes of other modules are in between.
            between = [scope for scope in scoped[call.last + 1 : i] if scope] if call else []
            if call and all(any(p == path for p, _ in scope) for scope in between):
                call.last = i
            else:
                latest[path] = _Call(path, kind, i)
                calls.append(latest[path])
    return calls


def folded_into(graph: Graph, name: str) -> str | None:
    """Return the batch norm that was folded into the convolution `name`, or None."""
    for node in graph.nodes:
        if any(weight.startswith(f"{name}.weight") for weight in node.input[1:2]):
            paths = modules(node)
            if paths and paths[-1][0] != name:
                return paths[-1][0]
    return None
