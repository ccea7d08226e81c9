"""A quantised model that can be mended with the float model it was made from: see xcam.contract.abilities.Mends."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import onnx
from onnx import ModelProto, version_converter

from xcam.contract import Array, Layer, Model
from xcam.contract.layouts import joined, to_trace, without_channel_axis
from xcam.contract.quantization import INPUT, Part, Range
from xcam.errors import ModelError
from xcam_onnx.graph import FLOATS, Graph, inferred, part
from xcam_onnx.mixing.mixing import mixed
from xcam_onnx.mixing.parts import Parts
from xcam_onnx.mixing.ranges import with_ranges
from xcam_onnx.recording import Recording
from xcam_onnx.sessions import array
from xcam_onnx.weights import WeightFiles

LIMIT = 1_500_000_000
"""The largest size in bytes of a file that contains its weights."""


Describe = Callable[[Mapping[str, Layer]], None]
"""Takes the layers by name."""


@dataclass(frozen=True)
class Side:
    """One of the two files."""

    name: str
    model: ModelProto
    recording: Recording
    layers: Mapping[str, tuple[Layer, str]]
    """Its layers by name, each with its tensor in the standard form."""


class OnnxMending:
    """The parts of a quantised model that the nodes of a float model can take over.

    Args:
        sides: The float file and the quantised one.
        values: The values that both have: the name of the float model's layer, the layer, its tensor in the float file, and
            that in the standard form of the quantised one.
        reopen: Opens a mixed file with the options of the quantised one; and describes its layers, so that no probe does.

    Raises:
        ModelError: The models have no quantised part in common.
    """

    def __init__(
        self,
        sides: tuple[Side, Side],
        values: Sequence[tuple[str, Layer, str, str]],
        reopen: Callable[[ModelProto], tuple[Model, Recording, Describe]],
    ) -> None:
        self._reference, self._reduced = sides
        self._reopen = reopen
        first, second = (side.recording for side in sides)
        source = first.signature.source, second.signature.source
        others = {v.name for v in Graph(sides[1].model).inputs} - {source[1]}
        inputs = {v.name: v.name for v in Graph(sides[0].model).inputs if v.name in others} | {source[0]: source[1]}
        reference = _in_opset(sides[0].model, sides[1].model)
        pairs = [pair for _, _, *pair in values]
        self._parts = Parts(reference, sides[1].model, second.form, [(a, b) for a, b in pairs], inputs)
        self._layers: dict[str, tuple[Layer, str]] = {}
        """The layers of the float model that have a common value, and their tensors."""
        for name, (layer, tensor) in sides[0].layers.items():
            if tensor in self._parts.partners:
                self._layers[name] = layer, tensor
        for name, layer, tensor, other in values:
            common = self._parts.common(tensor, other)
            if common is not None:
                self._layers.setdefault(name, (layer, common))
        self._names = {entry.name: target for target, entry in self._parts.parts.items()}
        if not self._names:
            raise ModelError(
                f"cannot repair {sides[1].name}: none of its quantised values corresponds to a value of {sides[0].name}; give "
                "the float model that it was made from"
            )

    @property
    def parts(self) -> Sequence[Part]:
        """See xcam.contract.abilities.Mending."""
        return list(self._parts.parts.values())

    def nodes(self, parts: Collection[str]) -> list[str]:
        """See xcam.contract.abilities.Mending."""
        reference = self._parts.reference
        dynamic = any(node.op_type == "DynamicQuantizeLinear" for node in self._parts.reduced.nodes)
        names = dict[str, None]()
        for target in self._parts.with_carriers([self._names[name] for name in parts]):
            for node in (reference.nodes[k] for k in self._parts.groups[target].nodes):
                if node.output[0] in reference.live and reference.dtype(node.output[0]) in (0, *FLOATS):
                    name = node.name or node.output[0]
                    names[name] = None
                    if dynamic and node.op_type == "Gemm":  # quantize_dynamic first replaces it by MatMul and Add
                        names[f"{name}_MatMul"] = None
        return list(names)

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """See xcam.contract.abilities.Mending."""
        form = self._reduced.recording.form
        names = {tensor: name for name, (_, tensor) in reversed(list(self._reduced.layers.items()))}
        results: dict[str, tuple[str, str]] = {}
        for name, (_, tensor) in self._layers.items():
            other = form.as_read(self._parts.partners[tensor].name)
            if other in names:
                results.setdefault(tensor, (name, names[other]))
        return list(results.values())

    def has_range(self, layer: str) -> bool:
        """See xcam.contract.abilities.Mending."""
        try:
            with_ranges(self._parts, self._tensors({layer: (0.0, 1.0)}), self._weights)
        except (KeyError, ModelError):
            return False
        return True

    @property
    def _weights(self) -> tuple[WeightFiles, WeightFiles]:
        return self._reference.recording.runtime.weights, self._reduced.recording.runtime.weights

    def _tensors(self, ranges: Mapping[str, Range]) -> dict[str, Range]:
        source = self._reference.recording.signature.source
        return {source if name == INPUT else self._layers[name][1]: value for name, value in ranges.items()}

    def _built(
        self, parts: Collection[str], ranges: Mapping[str, Range], kept: Collection[str] = ()
    ) -> tuple[ModelProto, dict[str, str]]:
        targets = [self._names[name] for name in parts]
        return mixed(self._parts, self._weights, targets, self._tensors(ranges), kept)

    def mended(
        self, parts: Collection[str], ranges: Mapping[str, Range], layers: Sequence[str] = (), quick: bool = False
    ) -> tuple[Model, dict[str, str | None]]:
        """See xcam.contract.abilities.Mending."""
        model, tensors = self._built(parts, ranges)
        result, recording, describe = self._reopen(model)
        known = {recording.tensor(name): name for name in recording.layers}
        names: dict[str, str | None] = {}
        for name in layers:
            tensor = tensors.get(self._layers[name][1], "") if name in self._layers else ""
            read = recording.form.as_read(tensor) if tensor else None
            names[name] = known.get(read or "") or known.get(tensor)
        if quick:
            described = dict(recording.layers)
            for name, other in names.items():
                if other is not None:
                    stated = described[other]
                    described[other] = replace(
                        self._layers[name][0], name=stated.name, aliases=stated.aliases, dtype=stated.dtype
                    )
            describe(described)
        return result, names

    def run(
        self, parts: Collection[str], ranges: Mapping[str, Range], x: Array, values: Sequence[str]
    ) -> tuple[Array, dict[str, Array]]:
        """See xcam.contract.abilities.Mending."""
        common = {name: self._layers[name][1] if name in self._layers else self._names[name] for name in values}
        model, tensors = self._built(parts, ranges, list(common.values()))
        recording = self._reduced.recording
        x = without_channel_axis(x, recording.spec)
        targets = {name: tensors[tensor] for name, tensor in common.items()}
        graph = Graph(model)
        scores = graph.proto.output[0].name
        cut = part(graph, [recording.signature.source], list(dict.fromkeys([scores, *targets.values()])))[0]
        session = recording.runtime.session(cut, once=True)
        batches = [
            {name: array(value) for name, value in session(recording.feed(x[rows])).items()}
            for rows in recording.slices(len(x))
        ]
        results = {name: joined([batch[tensor] for batch in batches]) for name, tensor in targets.items()}
        results |= {
            name: to_trace(value, self._layers[name][0]) for name, value in results.items() if name in self._layers
        }
        return joined([batch[scores] for batch in batches]), results

    def write(self, path: Path, parts: Collection[str], ranges: Mapping[str, Range]) -> None:
        """See xcam.contract.abilities.Mending."""
        model, _ = self._built(parts, ranges)
        if model.ByteSize() <= LIMIT:
            path.write_bytes(model.SerializeToString())
        else:
            onnx.save(model, path, save_as_external_data=True, location=f"{path.name}.data")

    def size(self, parts: Collection[str], ranges: Mapping[str, Range]) -> int:
        """See xcam.contract.abilities.Mending."""
        return self._built(parts, ranges)[0].ByteSize()


def _in_opset(reference: ModelProto, reduced: ModelProto) -> ModelProto:
    """Return the float model in the version of ONNX's operators that the quantised one uses."""
    versions = [next((e.version for e in model.opset_import if not e.domain), 1) for model in (reference, reduced)]
    if versions[0] == versions[1]:
        return reference
    try:
        return inferred(version_converter.convert_version(reference, versions[1]))
    except Exception as error:
        raise ModelError(
            f"cannot repair: the float model uses opset {versions[0]} and the quantised one {versions[1]}, and the float model "
            f"cannot be converted; quantise it again from a float model of opset {versions[1]}"
        ) from error
