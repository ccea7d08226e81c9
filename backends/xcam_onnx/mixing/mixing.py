"""Building a mixed file: nodes of the float file replace what computes the same values in the quantised file.

Between two parts in float a value stays in float. Where a neighbour stays on integers, a DequantizeLinear is ahead of the
part, and a QuantizeLinear with the file's own scale is behind it. All other nodes are those of the quantised file.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper

from xcam.contract.quantization import Range
from xcam_onnx.graph import FLOATS, INFERRED, Graph, copied, reading, reads, sort
from xcam_onnx.mixing.parts import Parts
from xcam_onnx.mixing.ranges import with_ranges
from xcam_onnx.standard.form import DEQUANTIZE, Quantised
from xcam_onnx.weights import WeightFiles

PREFIX = "float/"


def mixed(
    parts: Parts,
    weights: tuple[WeightFiles, WeightFiles],
    targets: Collection[str],
    ranges: Mapping[str, Range],
    kept: Collection[str] = (),
) -> tuple[ModelProto, dict[str, str]]:
    """Return a mixed model, its weights in memory, and the tensor of each common value.

    Args:
        parts: The common values of both files, and the nodes between them.
        weights: The files with the weights of the float file, and of the quantised one.
        targets: The values that the float file's nodes compute.
        ranges: New ranges of quantised values.
        kept: Common values that the model computes as floats, whether an output needs them or not.

    Raises:
        ModelError: A range cannot be changed.
    """
    reduced, entries = with_ranges(parts, ranges, weights) if ranges else (parts.reduced.model, {})
    return _Builder(parts, reduced, entries, parts.with_carriers(targets)).build(weights, kept)


class _Builder:
    def __init__(
        self, parts: Parts, reduced: ModelProto, entries: Mapping[str, Quantised], targets: Sequence[str]
    ) -> None:
        self._parts, self._entries, self._targets = parts, entries, targets
        self._graph = Graph(reduced)
        self._nodes: list[NodeProto] = list(reduced.graph.node)
        self._values: dict[str, str] = {}
        """The tensor in float of common values, and of inputs."""
        self._constants: dict[str, str] = {}
        """Constants of the float file that are read → their names in the mixed file."""
        self._added: list[NodeProto] = []
        self._cast: dict[tuple[str, int], str] = {}
        self._written: set[str] = set()
        self._dequantisers: dict[str, list[NodeProto]] = {}
        self._readers: dict[str, list[int]] = {}
        for k, node in enumerate(self._nodes):
            for name in reads(node):
                self._readers.setdefault(name, []).append(k)
            if node.op_type == DEQUANTIZE and node.input[0] in self._graph.live:
                self._dequantisers.setdefault(node.input[0], []).append(node)

    def build(
        self, weights: tuple[WeightFiles, WeightFiles], kept: Collection[str]
    ) -> tuple[ModelProto, dict[str, str]]:
        parts = self._parts
        taken = set(self._targets)
        for target in self._targets:
            self._values[target] = f"{PREFIX}{target}"
        for target in self._targets:
            self._copy(target)
        for target in self._targets:
            self._hand_over(target, taken)
        for name in parts.partners:
            if name not in taken:
                self._values[name] = self._value(name) if name in kept else parts.partners[name].name
        return self._assembled(weights, [self._values[name] for name in kept])

    # The nodes of the float file

    def _copy(self, target: str) -> None:
        """Write the nodes that compute a value. Each part has its own copies of the tensors between common values."""
        reference, group = self._parts.reference, self._parts.groups[target]
        inner = {name for k in group.nodes for name in reference.nodes[k].output if name}
        names = {}
        for name in inner:
            is_own = name == target or name not in reference.live or f"{PREFIX}{name}" not in self._written
            names[name] = f"{PREFIX}{name}" if is_own else f"{PREFIX}{target}/{name}"
        for k in group.nodes:
            node = reference.nodes[k]
            outputs = [names[name] if name else "" for name in node.output]
            if node.output[0] in reference.live or outputs[0] not in self._written:  # parts share constants
                self._written.update(outputs)
                copy = _renamed(node, lambda name: names.get(name) or self._read(name), outputs)
                self._added.append(copy)

    def _read(self, name: str) -> str:
        """Return the name in the mixed file of a tensor that a node of the float file reads."""
        reference = self._parts.reference
        if not name:
            return ""
        if name in reference.initializers:
            self._constants[name] = f"{PREFIX}{name}"
            return f"{PREFIX}{name}"
        return self._as_type(self._value(name), reference.dtype(name) or TensorProto.FLOAT)

    def _value(self, name: str) -> str:
        """Return the tensor that holds a common value, or an input, as floats."""
        if name not in self._values:
            parts = self._parts
            if name in parts.inputs and name not in parts.partners:
                source = parts.inputs[name]
                entry = parts.form.quantised.get(parts.form.floats.get(source, ""))
                self._values[name] = source if entry is None else self._dequantised(entry)
            else:
                partner = parts.partners[name]
                self._values[name] = partner.name if partner.entry is None else self._dequantised(partner.entry)
        return self._values[name]

    def _dequantised(self, entry: Quantised) -> str:
        """Return the output of a DequantizeLinear; one is written where there is none."""
        entry = self._entries.get(entry.integers, entry)
        for node in self._dequantisers.get(entry.integers, []):
            if node.domain == entry.domain:
                return str(node.output[0])
        node = entry.dequantize(f"{PREFIX}{entry.integers}/dequantized")
        self._dequantisers.setdefault(entry.integers, []).append(node)
        self._added.append(node)
        return str(node.output[0])

    def _as_type(self, tensor: str, dtype: int, stored: int = 0) -> str:
        """Return a tensor of floats in another type of floats."""
        stored = stored or self._graph.dtype(tensor) or dtype
        if tensor.startswith(PREFIX) or stored == dtype or stored not in FLOATS:
            return tensor
        if (tensor, dtype) not in self._cast:
            self._cast[tensor, dtype] = name = f"{PREFIX}{tensor}/cast{dtype}"
            self._added.append(helper.make_node("Cast", [tensor], [name], name=name, to=dtype))
        return self._cast[tensor, dtype]

    # Their readers in the quantised file

    def _hand_over(self, target: str, taken: Collection[str]) -> None:
        """Let the readers of a value in the quantised file read the value in float."""
        parts, value = self._parts, self._values[target]
        partner = parts.partners[target]
        dtype = parts.reference.dtype(target) or TensorProto.FLOAT
        if partner.entry is None:
            self._replace(partner.name)
            stored = self._graph.dtype(partner.name) or dtype
            node = helper.make_node("Identity", [value], [partner.name], name=f"{value}/as")
            if stored != dtype:
                node = helper.make_node("Cast", [value], [partner.name], name=f"{value}/cast", to=stored)
            self._added.append(node)
            return
        for node in self._dequantisers.get(partner.name, []):
            real = node.output[0]
            if real.startswith(PREFIX) or self._stays_quantised(real, taken):
                continue
            self._replace(real)
            self._added.append(helper.make_node("Identity", [value], [real], name=f"{real}/as"))
        self._replace(partner.name)
        self._added.append(self._entries.get(partner.name, partner.entry).quantize(value, partner.name))

    def _stays_quantised(self, tensor: str, taken: Collection[str]) -> bool:
        """Return whether a node that stays on integers reads a dequantised tensor."""
        parts = self._parts
        readers = self._readers.get(tensor, [])
        return any(parts.integer_nodes.get(k, set()) - set(taken) for k in readers)

    def _replace(self, tensor: str) -> None:
        """Give the output of a node another name, so that another node can have its name."""
        for k, node in enumerate(self._nodes):
            if tensor in node.output:
                other = f"{PREFIX}{tensor}/replaced"
                self._nodes[k] = _renamed(node, str, [other if name == tensor else name for name in node.output])

    # The file

    def _assembled(
        self, weights: tuple[WeightFiles, WeightFiles], kept: Sequence[str]
    ) -> tuple[ModelProto, dict[str, str]]:
        parts, source = self._parts, self._graph.model
        nodes = _needed([*self._nodes, *self._added], [*(v.name for v in source.graph.output), *kept])
        nodes, alias = _without_identities(nodes, {v.name for v in source.graph.output}, self._added)
        read = {name for node in nodes for name in reads(node)} | {v.name for v in source.graph.output}
        result = copied(source)
        del result.graph.node[:], result.graph.initializer[:], result.graph.value_info[:]
        result.graph.node.extend(nodes)
        result.graph.initializer.extend(t for name, t in self._graph.initializers.items() if name in read)
        missing = read - set(self._graph.initializers)
        result.graph.initializer.extend(
            parts.form.graph.initializers[n] for n in missing if n in parts.form.graph.initializers
        )
        weights[1].fetch(result)
        floats = ModelProto()
        for name, new in self._constants.items():
            if new in read:
                floats.graph.initializer.add().CopyFrom(parts.reference.initializers[name])
                floats.graph.initializer[-1].name = new
        weights[0].fetch(floats)
        result.graph.initializer.extend(floats.graph.initializer)
        stated = {v.name: v for v in source.graph.value_info if v.doc_string != INFERRED}
        kept_names = {name for node in self._nodes for name in node.output}
        kept_names &= {name for node in nodes for name in node.output}
        result.graph.value_info.extend(value for name, value in stated.items() if name in kept_names)
        _import(result, parts.reference.model, nodes)
        names = _shorten(result)
        sort(result.graph)
        values = {name: alias.get(tensor, tensor) for name, tensor in self._values.items()}
        return result, {name: names.get(tensor, tensor) for name, tensor in values.items()}


def _needed(nodes: Iterable[NodeProto], outputs: Iterable[str]) -> list[NodeProto]:
    """Return the nodes that outputs depend on."""
    nodes = list(nodes)
    producer = {name: k for k, node in enumerate(nodes) for name in node.output if name}
    stack, used = list(outputs), set[int]()
    while stack:
        index = producer.get(stack.pop())
        if index is not None and index not in used:
            used.add(index)
            stack += reads(nodes[index])
    return [nodes[k] for k in sorted(used)]


def _without_identities(
    nodes: list[NodeProto], outputs: Collection[str], added: Sequence[NodeProto]
) -> tuple[list[NodeProto], dict[str, str]]:
    """Remove the Identity nodes that were written to give a value another name."""
    mine = {id(node) for node in added if node.op_type == "Identity" and node.name.endswith("/as")}
    names: dict[str, str] = {}
    producer = {name: node for node in nodes for name in node.output}
    for node in nodes:
        if id(node) in mine:
            source, target = node.input[0], node.output[0]
            if target in outputs and source in producer:
                names[source] = target
            elif target not in outputs:
                names[target] = source
    kept = [
        node
        for node in nodes
        if id(node) not in mine or (node.output[0] in outputs and names.get(node.input[0]) != node.output[0])
    ]

    def final(name: str) -> str:
        seen = set[str]()
        while name in names and name not in seen:
            seen.add(name)
            name = names[name]
        return name

    return [_renamed(node, final, [final(name) for name in node.output]) for node in kept], {
        n: final(n) for n in names
    }


def _shorten(model: ModelProto) -> dict[str, str]:
    """Give tensors and nodes of the float file their own names where these are free; return the new tensor names."""
    graph = model.graph
    tensors = [name for node in graph.node for name in node.output] + [t.name for t in graph.initializer]
    taken = {*tensors, *(v.name for v in graph.input)}
    names = {}
    for name in tensors:
        short = name.removeprefix(PREFIX)
        if name.startswith(PREFIX) and short not in taken:
            names[name] = short
            taken.add(short)
    nodes = [_renamed(node, lambda n: names.get(n, n), [names.get(n, n) for n in node.output]) for node in graph.node]
    used = set[str]()
    for node in sorted(nodes, key=lambda node: node.name.startswith(PREFIX)):
        name = short = node.name.removeprefix(PREFIX)
        count = 1
        while name and name in used:
            name, count = f"{short}_float{count if count > 1 else ''}", count + 1
        used.add(name)
        node.name = name
    del graph.node[:]
    graph.node.extend(nodes)
    for tensor in graph.initializer:
        tensor.name = names.get(tensor.name, tensor.name)
    return names


def _renamed(node: NodeProto, name: Callable[[str], str], outputs: Sequence[str]) -> NodeProto:
    """Return a copy of a node that reads tensors by other names, its branches included, and writes `outputs`."""
    result = reading(node, [name(each) if each else "" for each in node.input])
    del result.output[:]
    result.output.extend(outputs)
    for entry in result.attribute:
        for graph in [entry.g] if entry.HasField("g") else entry.graphs:
            _rename_within(graph, name, set())
    return result


def _rename_within(graph: GraphProto, name: Callable[[str], str], hidden: set[str]) -> None:
    local = hidden | {v.name for v in graph.input} | {t.name for t in graph.initializer}
    for node in graph.node:
        for k, each in enumerate(node.input):
            if each and each not in local:
                node.input[k] = name(each)
        for entry in node.attribute:
            for inner in [entry.g] if entry.HasField("g") else entry.graphs:
                _rename_within(inner, name, local)
        local |= set(node.output)
    for value in graph.output:
        if value.name not in local:
            value.name = name(value.name)


def _import(model: ModelProto, reference: ModelProto, nodes: Sequence[NodeProto]) -> None:
    """Declare the domains that the float file's nodes need, and drop those that no node needs."""
    used = {node.domain for node in nodes} | {""}
    known = {entry.domain: entry.version for entry in (*reference.opset_import, *model.opset_import)}
    del model.opset_import[:]
    model.opset_import.extend(
        helper.make_opsetid(domain, version) for domain, version in known.items() if domain in used
    )
    model.ir_version = max(model.ir_version, reference.ir_version)
