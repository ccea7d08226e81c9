"""The parts of a quantised model that a float model can take over: what lies between values that both models have.

A part is the part of the float graph that computes one common value from the nearest common values ahead of it. It replaces
what computes that value in the quantised graph: the names, the kinds and the number of nodes may differ.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from onnx import ModelProto, NodeProto

from xcam.contract.quantization import Part
from xcam.errors import ModelError
from xcam_onnx.graph import FLOATS, Graph, Shape, reads
from xcam_onnx.standard.form import DEQUANTIZE, MOVING, QUANTIZE, Quantised, StandardForm

CARRIERS = {*MOVING, "Relu", "Clip", "Dropout", "Cast", "Shape", "Constant", "ConstantOfShape", "GatherND"}
"""Operators that round nothing: they follow the parts ahead of them."""
INTEGER = ("QLinear", "QGemm", "QAttention", "Integer", "NBits", "Bnb4", "DynamicQuantize", "QMoE")
"""Parts of the names of operators on integers."""
PRODUCTS = {"Gemm", "MatMul", "Add", "Mul", "QLinearMatMul", "QGemm", "MatMulNBits", "MatMulIntegerToFloat"}
"""Operators by which one file may compute a matrix product with a bias, where the other has another one of them."""
TRUSTED = 0.8
"""Tensors of one name have one value where this share of them comes from the same operators: a quantiser keeps names."""


@dataclass(frozen=True)
class Partner:
    """The tensor of the quantised file that holds a value of the float file."""

    name: str
    """A tensor of floats, or of integers."""
    entry: Quantised | None = None
    """How integers represent the value."""


@dataclass(frozen=True)
class Group:
    """The nodes of the float file that compute a common value from those ahead of it."""

    target: str
    """The tensor of the float file."""
    sources: tuple[str, ...]
    """The common values that the nodes read."""
    nodes: tuple[int, ...]
    """Indices, in order; those that compute constants included."""


class Parts:
    """The common values of a float and a quantised graph, and the nodes between them.

    Args:
        reference: The float file.
        reduced: The quantised file.
        form: The standard form of the quantised file.
        pairs: Tensors of the float file, and of the standard form of the quantised file, that hold the same values.
        inputs: The inputs of both files that correspond.

    Raises:
        ModelError: The files have no quantised part in common.
    """

    def __init__(
        self,
        reference: ModelProto,
        reduced: ModelProto,
        form: StandardForm,
        pairs: Iterable[tuple[str, str]],
        inputs: Mapping[str, str],
    ) -> None:
        self.reference, self.reduced, self.form = Graph(reference), Graph(reduced), form
        self._computed = {name for node in self.reduced.nodes for name in node.output if name}
        self._computed |= {value.name for value in self.reduced.inputs}
        self.inputs = dict(inputs)
        self.partners: dict[str, Partner] = {}
        """The common values: tensor of the float file → that of the quantised file."""
        kept = list(self._same_names())
        agree = sum(self._same_operator(*pair) for pair in kept)
        self._pair([*kept, *pairs] if agree >= TRUSTED * max(len(kept), 1) else [*pairs, *kept])
        self._drop_cycles()
        self.groups = {name: self._group(name) for name in self.partners if name in self.reference.producer}
        self.replaced = {name: self._replaced(name) for name in self.groups}
        """The nodes of the quantised file that compute a common value, by index."""
        self.quantised = {name for name in self.groups if self._is_quantised(name)}
        self.parts: dict[str, Part] = {}
        """By the tensor of the float file."""
        names: set[str] = set()
        for target, group in self.groups.items():
            if target in self.quantised and not self.carries(target):
                part = self._part(group, names)
                names.add(part.name)
                self.parts[target] = part

    def _same_names(self) -> Iterator[tuple[str, str]]:
        """Yield the tensors whose names a quantiser keeps: those of the outputs first."""
        outputs = [value.name for value in self.reference.proto.output]
        others = [value.name for value in self.reduced.proto.output]
        yield from (
            (name, name if name in others else others[k])
            for k, name in enumerate(outputs)
            if name in others or len(outputs) == len(others)
        )
        for name in self.reference.producer:
            for suffix in ("_quantized", "_QuantizeLinear_Output"):
                integers = f"{name}{suffix}"
                if integers in self.form.floats:
                    yield name, self.form.floats[integers]
            if name in self._computed and name not in self.form.graph.initializers:
                yield name, self.form.as_read(name) or name

    def _same_operator(self, name: str, other: str) -> bool:
        """Return whether both files compute a value by the same operator, apart from an activation that was absorbed."""
        partner = self._partner(other)
        if partner is None or name not in self.reference.producer or partner.name not in self.reduced.producer:
            return False
        mine, theirs = (
            self.reference.nodes[self.reference.producer[name]],
            self.reduced.nodes[self.reduced.producer[partner.name]],
        )
        while theirs.op_type in (QUANTIZE, "Cast") and theirs.input[0] in self.reduced.producer:
            theirs = self.reduced.nodes[self.reduced.producer[theirs.input[0]]]
        kinds = {mine.op_type}
        if mine.op_type in CARRIERS and mine.input[0] in self.reference.producer:
            kinds.add(self.reference.nodes[self.reference.producer[mine.input[0]]].op_type)
        return any(kind in theirs.op_type or {kind, theirs.op_type} <= PRODUCTS for kind in kinds)

    def _pair(self, pairs: Iterable[tuple[str, str]]) -> None:
        """Keep one tensor of each file for a value: of the float file the last, behind an activation that was absorbed."""
        order = list(self.reference.producer)
        taken: dict[str, str] = {}
        for name, other in pairs:
            partner = self._partner(other)
            if (
                name not in self.reference.producer
                or name in self.partners
                or partner is None
                or not self._fits(name, other)
            ):
                continue
            rival = taken.get(partner.name)
            if rival is not None:
                if not self._is_limited(name, rival):
                    continue
                del self.partners[rival]
            self.partners[name] = partner
            taken[partner.name] = name
        self.partners = {name: self.partners[name] for name in order if name in self.partners}

    def _is_limited(self, name: str, source: str) -> bool:
        """Return whether a tensor of the float file is another one behind activations that a quantiser may absorb."""
        while name != source:
            index = self.reference.producer.get(name)
            if index is None or self.reference.nodes[index].op_type not in CARRIERS:
                return False
            name = self.reference.nodes[index].input[0]
        return True

    def _partner(self, tensor: str) -> Partner | None:
        entry = self.form.quantised.get(tensor)
        if entry is not None and entry.integers in self._computed:
            return Partner(entry.integers, entry)
        return Partner(tensor) if tensor in self._computed and self._is_float(tensor) else None

    def _is_float(self, tensor: str) -> bool:
        return (self.reduced.dtype(tensor) or self.form.graph.dtype(tensor)) in (0, *FLOATS)

    def _fits(self, name: str, other: str) -> bool:
        a, b = self.reference.shape(name), self.form.graph.shape(other)
        if self.reference.dtype(name) not in (0, *FLOATS) or name not in self.reference.live:
            return False
        return a is None or b is None or _same_shape(a, b)

    def _drop_cycles(self) -> None:
        """Drop pairs in another order: a value may not be computed from one behind it in the quantised file."""
        position = self.reduced.producer
        for name in list(self.partners):
            key = self.partners[name].name
            later = [
                source
                for source in self._group(name).sources
                if source in self.partners
                and position.get(self.partners[source].name, -1) >= position.get(key, -1)
                and self.partners[source].name in self.reduced.after([key])
            ]
            if later:
                del self.partners[name]

    def _group(self, target: str) -> Group:
        """Return the nodes between a common value and the nearest ones ahead of it."""
        graph = self.reference
        stops = {*self.partners, *self.inputs} - {target}
        stack, nodes, sources, unknown = [target], set[int](), dict[str, None](), set[str]()
        known = {value.name for value in graph.inputs}
        while stack:
            name = stack.pop()
            if name not in graph.producer:
                unknown |= {name} & known
            elif graph.producer[name] not in nodes:
                nodes.add(graph.producer[name])
                for source in reads(graph.nodes[graph.producer[name]]):
                    if source in stops:
                        sources[source] = None
                    else:
                        stack.append(source)
        if unknown:
            raise ModelError(
                f"cannot repair: the float model computes {target!r} from its input {sorted(unknown)[0]!r}, to which no input "
                "of the quantised model corresponds; give the float model that it was made from"
            )
        return Group(target, tuple(sources), tuple(sorted(nodes)))

    def _replaced(self, target: str) -> set[int]:
        graph = self.reduced
        stops = {partner.name for partner in self.partners.values()} | set(self.inputs.values())
        stack, result = [self.partners[target].name], set[int]()
        while stack:
            index = graph.producer.get(stack.pop())
            if index is not None and index not in result:
                result.add(index)
                stack += [name for name in reads(graph.nodes[index]) if name not in stops]
        return result

    def _is_quantised(self, target: str) -> bool:
        if self.partners[target].entry is not None:
            return True
        return any(self._is_integer(self.reduced.nodes[k]) for k in self.replaced[target])

    def _is_integer(self, node: NodeProto) -> bool:
        if any(part in node.op_type for part in INTEGER):
            return True
        return node.op_type == DEQUANTIZE and node.input[0] not in self.reduced.live

    def common(self, name: str, other: str) -> str | None:
        """Return the common value that a pair of tensors has; None where it is none.

        In the float file, that may be the value behind an activation, or ahead of it.
        """
        partner = self._partner(other)
        if name in self.partners or partner is None:
            return name if name in self.partners else None
        common = next((target for target, each in self.partners.items() if each.name == partner.name), "")
        return common if self._is_limited(common, name) or self._is_limited(name, common) else None

    def entry(self, name: str) -> Quantised | None:
        """Return how the quantised file represents a common value, or an input, as integers."""
        if name in self.inputs:
            source = self.form.as_read(self.inputs[name])
            partner = self._partner(source) if source else None
        else:
            partner = self.partners.get(name)
        return None if partner is None else partner.entry

    def carries(self, target: str) -> bool:
        """Return whether the nodes of a group only move values, or limit them."""
        graph = self.reference
        live = [
            graph.nodes[k] for k in self.groups[target].nodes if any(n in graph.live for n in graph.nodes[k].output)
        ]
        return all(node.op_type in CARRIERS for node in live)

    def _part(self, group: Group, names: Collection[str]) -> Part:
        graph = self.reference
        nodes = [node for k in group.nodes if (node := graph.nodes[k]).output[0] in graph.live]
        listed = [node for node in nodes if graph.dtype(node.output[0]) in (0, *FLOATS)]
        weighted = [node for node in listed if any(name and name not in graph.live for name in node.input)]
        others = [node for node in listed if node.op_type not in CARRIERS]
        main = next(iter([n for n in weighted if n in others] or others or nodes))
        name = main.name or main.output[0]
        count = sum(node.op_type not in CARRIERS for node in listed)
        return Part(
            name if name not in names else f"{name} ({group.target})",
            tuple(node.name or node.output[0] for node in listed or nodes),
            tuple(node.op_type for node in listed or nodes),
            max(count, 1),
        )

    def with_carriers(self, targets: Collection[str]) -> list[str]:
        """Return the groups to take from the float file: those of `targets`, and carriers between values in float."""
        taken = set(targets)
        floats = {*taken, *self.inputs, *(set(self.groups) - self.quantised)}
        carriers = set[str]()
        for name in self.groups:
            if name in self.quantised and self.carries(name) and floats.issuperset(self.groups[name].sources):
                floats.add(name)
                carriers.add(name)
        for name in self.groups:  # behind a part
            if name in carriers and taken.intersection(self.groups[name].sources):
                taken.add(name)
        for name in reversed(self.groups):  # ahead of a part
            if name in taken:
                taken |= carriers.intersection(self.groups[name].sources)
        return [name for name in self.groups if name in taken]

    @cached_property
    def integer_nodes(self) -> dict[int, set[str]]:
        """The nodes of the quantised file that belong to quantised values, with the tensors of these in the float file."""
        result: dict[int, set[str]] = {}
        for name in self.quantised:
            for k in self.replaced[name]:
                result.setdefault(k, set()).add(name)
        return result


def _same_shape(a: Sequence[int | str | None] | Shape, b: Sequence[int | str | None] | Shape) -> bool:
    return len(a) == len(b) and all(
        m == n for m, n in zip(a, b, strict=True) if isinstance(m, int) and isinstance(n, int)
    )
