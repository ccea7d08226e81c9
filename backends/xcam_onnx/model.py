"""The contract for an ONNX model, run by ONNX Runtime."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from onnx import ModelProto

from xcam.contract import Array, Capability, Layer, Layout, Model
from xcam.contract.fit import Fit
from xcam.contract.layouts import without_channel_axis
from xcam.contract.preprocessing import Preprocessing
from xcam.contract.quantization import Stretch
from xcam.contract.recorded import RecordedModel
from xcam.errors import InputError
from xcam_onnx import scaling, shuffling, stretches
from xcam_onnx.batching import with_batch
from xcam_onnx.control_flow import control_flow_nodes
from xcam_onnx.export import export
from xcam_onnx.files import store
from xcam_onnx.graph import FLOATS, Graph
from xcam_onnx.mixing.mending import Describe, OnnxMending, Side
from xcam_onnx.names import folded_into
from xcam_onnx.recording import Recording
from xcam_onnx.sessions import Runtime
from xcam_onnx.signature import read_signature
from xcam_onnx.standard.form import StandardForm

QUANTISED = "quantised: gradients pass straight through the rounding, and are zero where a value is clipped"

QUANTISING = ("quantize", "qlinear", "qgemm", "qattention", "integer")
"""Operators of quantised models have one of these in their names."""

DYNAMIC = "dynamically quantised: each image is run alone, as a batch would share its range"


class OnnxModel(RecordedModel[Recording]):
    """An ONNX model behind xcam's contract. See xcam.contract.Model.

    Args:
        graph: The model, its larger weights as external data.
        runtime: Creates sessions.
        name: The model's name.
        layout: The layout of the input; None: read it from the graph.
        size: The size of the input where the model leaves it open.
        labels: The class labels.
        preprocessing: The preprocessing that the file states; None: the one that the model's own scaling needs.
        default_layer: The layer that the file names.
        notes: Changes that were made when the file was opened.
        channels: The number of channels, where the caller gives one; 0: the input has no channel axis.
        fixed: The names of the file's other inputs, which are constants here.

    Raises:
        ModelError: The model does not take an image, or does not return scores.
    """

    backend = "onnx"
    capabilities: frozenset[Capability] = frozenset({"gradients", "resume"})

    def __init__(
        self,
        graph: Graph,
        runtime: Runtime,
        *,
        name: str,
        layout: Layout | None = None,
        size: tuple[int | None, ...] | None = None,
        labels: Sequence[str] | None = None,
        preprocessing: Preprocessing | None = None,
        fit: Fit | None = None,
        default_layer: str | None = None,
        notes: Sequence[str] = (),
        channels: int | None = None,
        fixed: Sequence[str] = (),
    ) -> None:
        self._graph, self._fixed = graph, tuple(fixed)
        form = StandardForm(graph, runtime.weights)
        signature = read_signature(form, name, layout, channels)
        if not signature.is_batched:
            model, signature = with_batch(form.model, signature)
            form = StandardForm(Graph(model), runtime.weights)
        if form.mixes_rows:
            signature, notes = dataclasses.replace(signature, batch=1), [*notes, DYNAMIC]
        spec = signature.spec(preprocessing, size)
        needed = scaling.computed(form.ends, signature, spec, runtime)
        spec = dataclasses.replace(spec, preprocessing=preprocessing or needed, needs=needed, fit=fit)
        quantised = any(part in node.op_type.lower() for node in form.ends.nodes for part in QUANTISING)
        super().__init__(name, spec, labels, tuple(dict.fromkeys([*notes, *([QUANTISED] if quantised else [])])))
        self.default_layer = default_layer
        self.recording = Recording(form, name, signature, spec, runtime)
        self._layout = layout
        self._decided = not control_flow_nodes(form.ends.model)

    @property
    def model(self) -> ModelProto:
        """The model with inferred types, its larger weights as external data."""
        return self._graph.typed.model

    @property
    def threads(self) -> int | None:
        """Threads within an operator (ONNX Runtime's intra_op_num_threads); None: the number of cores."""
        return self.recording.runtime.threads

    def _record(self, shape: tuple[int, ...], batch: int) -> Recording:
        """Return the only recording. Its layers are read once, for the model's input size at that time.

        A model with branches or loops that depend on the input's shape has a recording for each shape.
        """
        recording, fixed = self.recording, self.recording.batch
        recording.spec = self.input
        if fixed is None and batch == 1:
            recording, fixed = recording.one_by_one(), 1
        signature = recording.signature
        if self._decided or len(shape) != len(signature.size) + (signature.axis is not None):
            return recording
        # The sizes that may decide: those that the file fixes; those of this shape; a batch of one, image by image.
        for sizes in ((None,) * (1 + len(shape)), (fixed, *shape), (fixed or 1, *shape)):
            special = recording.specialised(sizes, (sizes[0] or fixed or 2, *shape), self._layout)
            if not control_flow_nodes(special.form.original):
                if not special.sizes and fixed == self.recording.batch:
                    self.recording, self._decided = special, True
                return special
        return recording.specialised((fixed, *shape), (fixed or 2, *shape), self._layout)

    def _running(self) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()

    def export(self, path: Path, layer: str | None, heatmap: str | None, facts: Mapping[str, str]) -> None:
        """Write the model as a self-explaining file: see xcam_onnx.export."""
        export(self, self._recording(), path, layer, heatmap, facts)

    @property
    def precision(self) -> str | None:
        """See xcam.contract.abilities.RunsStretches."""
        return stretches.precision(self._recording())

    def stretch_sources(self, layers: Sequence[str], known: Collection[str]) -> Collection[str]:
        """See xcam.contract.abilities.RunsStretches."""
        opened = self._opened()
        tensors = {name: opened.recording.tensor(self._layer(opened, name).name) for name in (*layers, *known)}
        nearest = stretches.sources(
            opened.recording, [tensors[name] for name in layers], {tensors[name] for name in known}
        )
        return [name for name in known if tensors[name] in nearest]

    def stretches(self, x: Array, values: Mapping[str, Array], layers: Sequence[str]) -> Mapping[str, Stretch]:
        """See xcam.contract.abilities.RunsStretches."""
        x = without_channel_axis(x, self.input)
        opened = self._opened(x)
        recording = opened.recording
        known = {name: self._layer(opened, name) for name in (*values, *layers)}
        tensors = {name: recording.tensor(layer.name) for name, layer in known.items()}
        starts = {tensors[name]: (known[name], value) for name, value in values.items()}
        results = stretches.run(recording, x, starts, {tensors[name]: known[name] for name in layers})
        return {name: results[tensors[name]] for name in layers}

    def mending(self, reference: Model, pairs: Sequence[tuple[str, str]]) -> OnnxMending:
        """See xcam.contract.abilities.Mends."""
        if not isinstance(reference, OnnxModel):
            raise InputError(
                f"cannot repair {self.name} with {reference.name} ({reference.backend}): its nodes are not those of an ONNX "
                "file; give the float ONNX file that it was made from"
            )
        if self._fixed:
            raise InputError(
                f"cannot repair {self.name}: the mended file would contain the values of its other inputs "
                f"({', '.join(self._fixed)}), and no longer take them; repair a file that takes the image alone"
            )
        sides = reference._side(), self._side()
        values = []
        for name, other in pairs:
            layer, tensor = sides[0].layers[reference._layer(reference._opened(), name).name]
            values.append((name, layer, tensor, sides[1].layers[self._layer(self._opened(), other).name][1]))

        def reopen(model: ModelProto) -> tuple[OnnxModel, Recording, Describe]:
            result = self._copy(model, f"{self.name}, mended", None)
            opened = result._opened()

            def describe(layers: Mapping[str, Layer]) -> None:
                opened.layers = layers

            return result, opened.recording, describe

        return OnnxMending(sides, values, reopen)

    def _side(self) -> Side:
        opened = self._opened()
        recording = opened.recording
        layers = {name: (layer, recording.tensor(name)) for name, layer in self._probed(opened).items()}
        return Side(self.name, self.model, recording, layers)

    def _copy(self, model: ModelProto, name: str, default_layer: str | None) -> OnnxModel:
        """Open another model, its weights in memory, with the options of this one."""
        opened = store(model)
        return OnnxModel(
            opened.graph,
            dataclasses.replace(self.recording.runtime, weights=opened.weights),
            name=name,
            layout=self.input.layout,
            channels=self.input.channels,
            size=self.input.size,
            labels=self.labels,
            preprocessing=self.input.preprocessing,
            fit=self.input.fit,
            default_layer=default_layer,
            notes=self.notes,
            fixed=self._fixed,
        )

    @property
    def parameter_layers(self) -> Sequence[str]:
        """See xcam.contract.abilities."""
        return shuffling.parameter_layers(self.recording.form.original)

    def with_shuffled_weights(self, parts: Sequence[str], seed: int = 0) -> OnnxModel:
        """See xcam.contract.abilities."""
        weights = self.recording.runtime.weights
        model = shuffling.with_shuffled_weights(self.model, weights, parts, seed, self.name)
        return self._copy(model, f"{self.name}, shuffled", self.default_layer)

    def disable_spinning(self) -> None:
        """See xcam.contract.abilities. Existing sessions are not changed."""
        self.recording.runtime = dataclasses.replace(self.recording.runtime, spinning=False)

    def explain_missing_layer(self, name: str) -> str | None:
        """Return why the model does not have a layer, and the nearest one that it has; None where nothing is known."""
        graph = self._recording().graph
        tensor = next((n.output[0] for n in graph.nodes if n.output and name in (n.name, *n.output)), "")
        if graph.dtype(tensor) not in (0, *FLOATS):
            return (
                f"cannot explain {name!r} of {self.name}: it consists of integers, which have neither a map nor a "
                "gradient; choose the DequantizeLinear or Cast behind it"
            )
        norm = folded_into(graph, name)
        return norm and (
            f"cannot explain {name!r} of {self.name}: the exporter folded the batch norm behind it into it; explain "
            f"{norm!r}, the value behind both"
        )
