"""A quantised model that can be mended with the float model it was made from: see xcam.contract.abilities.Mends."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import onnx
from onnx import ModelProto, version_converter

from xcam.contract import Array, Layer
from xcam.contract.layouts import joined, to_trace, without_channel_axis
from xcam.contract.quantization import Place, Range
from xcam.errors import ModelError
from xcam_onnx.files import store
from xcam_onnx.graph import FLOATS, Graph, inferred, part
from xcam_onnx.mixing.mixing import mixed
from xcam_onnx.mixing.places import Places
from xcam_onnx.sessions import array

if TYPE_CHECKING:
    from xcam_onnx.model import OnnxModel

LIMIT = 1_500_000_000
"""The largest size in bytes of a file that contains its weights."""


class OnnxMending:
    """The places of a quantised model that the nodes of a float model can take over.

    Args:
        reduced: The quantised model.
        reference: The float model.
        pairs: Names of layers of the float model and the quantised one that have the same values.

    Raises:
        ModelError: The models have no quantised place in common.
    """

    def __init__(self, reduced: OnnxModel, reference: OnnxModel, pairs: Sequence[tuple[str, str]]) -> None:
        self._reduced, self._reference = reduced, reference
        first, second = reference._opened(), reduced._opened()
        self._layers: dict[str, tuple[Layer, str]] = {}
        """The layers of the float model that have a common value, and their tensors."""
        tensors = []
        for name, other in pairs:
            layer = reference._layer(first, name)
            tensor = first.recording.tensor(layer.name)
            tensors.append((tensor, second.recording.tensor(reduced._layer(second, other).name)))
            self._layers[name] = layer, tensor
        source = first.recording.signature.source, second.recording.signature.source
        others = {v.name for v in Graph(reduced.model).inputs} - {source[1]}
        inputs = {v.name: v.name for v in Graph(reference.model).inputs if v.name in others} | {source[0]: source[1]}
        form = second.recording.form
        self._places = Places(_in_opset(reference.model, reduced.model), reduced.model, form, tensors, inputs)
        self._layers = {
            name: (layer, self._places.common(*pair))
            for (name, (layer, _)), pair in zip(self._layers.items(), tensors, strict=True)
        }
        self._names = {place.name: target for target, place in self._places.places.items()}
        if not self._names:
            raise ModelError(
                f"cannot mend {reduced.name}: none of its quantised values corresponds to a value of {reference.name}; give "
                "the float model that it was made from"
            )

    @property
    def places(self) -> Sequence[Place]:
        """See xcam.contract.abilities.Mending."""
        return list(self._places.places.values())

    def nodes(self, places: Collection[str]) -> list[str]:
        """See xcam.contract.abilities.Mending."""
        reference = self._places.reference
        dynamic = any(node.op_type == "DynamicQuantizeLinear" for node in self._places.reduced.nodes)
        names = dict[str, None]()
        for target in self._places.with_carriers([self._names[name] for name in places]):
            for node in (reference.nodes[k] for k in self._places.groups[target].nodes):
                if node.output[0] in reference.live and reference.dtype(node.output[0]) in (0, *FLOATS):
                    name = node.name or node.output[0]
                    names[name] = None
                    if dynamic and node.op_type == "Gemm":  # quantize_dynamic first replaces it by MatMul and Add
                        names[f"{name}_MatMul"] = None
        return list(names)

    def layer(self, place: str) -> str | None:
        """See xcam.contract.abilities.Mending."""
        target = self._names[place]
        return next((name for name, (_, tensor) in self._layers.items() if tensor == target), None)

    def _built(
        self, places: Collection[str], ranges: Mapping[str, Range], kept: Collection[str] = ()
    ) -> tuple[ModelProto, dict[str, str]]:
        weights = self._reference.recording.runtime.weights, self._reduced.recording.runtime.weights
        tensors = {self._layers[name][1]: range_ for name, range_ in ranges.items()}
        return mixed(self._places, weights, [self._names[name] for name in places], tensors, kept)

    def mended(
        self, places: Collection[str], ranges: Mapping[str, Range], layers: Sequence[str] = ()
    ) -> tuple[OnnxModel, dict[str, str | None]]:
        """See xcam.contract.abilities.Mending."""
        from xcam_onnx.model import OnnxModel

        model, tensors = self._built(places, ranges)
        opened, reduced = store(model), self._reduced
        runtime = reduced.recording.runtime
        result = OnnxModel(
            opened.model,
            dataclasses.replace(runtime, weights=opened.weights),
            name=f"{reduced.name}, mended",
            layout=reduced.input.layout,
            channels=reduced.input.channels,
            size=reduced.input.size,
            labels=reduced.labels,
            preprocessing=reduced.input.preprocessing,
            default_layer=None,
            notes=reduced.notes,
        )
        recording = result._recording()
        known = {recording.tensor(name): name for name in recording.layers}
        names: dict[str, str | None] = {}
        for name in layers:
            tensor = tensors.get(self._layers[name][1], "") if name in self._layers else ""
            read = recording.form.as_read(tensor) if tensor else None
            names[name] = known.get(read or "") or known.get(tensor)
        return result, names

    def run(
        self, places: Collection[str], ranges: Mapping[str, Range], x: Array, layers: Sequence[str]
    ) -> tuple[Array, dict[str, Array]]:
        """See xcam.contract.abilities.Mending."""
        reduced = self._reduced
        model, tensors = self._built(places, ranges, [self._layers[name][1] for name in layers])
        recording = reduced._opened(without_channel_axis(x, reduced.input)).recording
        targets = {name: tensors[self._layers[name][1]] for name in layers}
        graph = Graph(model)
        scores = graph.proto.output[0].name
        cut = part(graph, [recording.signature.source], list(dict.fromkeys([scores, *targets.values()])))[0]
        session = recording.runtime.session(cut, once=True)
        batches = [
            {name: array(value) for name, value in session(recording.feed(x[rows])).items()}
            for rows in recording.slices(len(x))
        ]
        values = {
            name: joined([to_trace(batch[tensor], self._layers[name][0]) for batch in batches])
            for name, tensor in targets.items()
        }
        return joined([batch[scores] for batch in batches]), values

    def write(self, path: Path, places: Collection[str], ranges: Mapping[str, Range]) -> None:
        """See xcam.contract.abilities.Mending."""
        model, _ = self._built(places, ranges)
        if model.ByteSize() <= LIMIT:
            path.write_bytes(model.SerializeToString())
        else:
            onnx.save(model, path, save_as_external_data=True, location=f"{path.name}.data")

    def size(self, places: Collection[str], ranges: Mapping[str, Range]) -> int:
        """See xcam.contract.abilities.Mending."""
        return self._built(places, ranges)[0].ByteSize()


def _in_opset(reference: ModelProto, reduced: ModelProto) -> ModelProto:
    """Return the float model in the version of ONNX's operators that the quantised one uses."""
    versions = [next((e.version for e in model.opset_import if not e.domain), 1) for model in (reference, reduced)]
    if versions[0] == versions[1]:
        return reference
    try:
        return inferred(version_converter.convert_version(reference, versions[1]))
    except Exception as error:
        raise ModelError(
            f"cannot mend: the float model uses opset {versions[0]} and the quantised one {versions[1]}, and the float model "
            f"cannot be converted; quantise it again from a float model of opset {versions[1]}"
        ) from error
