"""The contract for an OpenVINO model."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import openvino

from xcam.contract import Array, Capability, InputSpec, Layout, scaling
from xcam.contract.fit import Fit
from xcam.contract.layouts import filled, without_channel_axis
from xcam.contract.messages import one_input, out_of_memory
from xcam.contract.outputs import cut_activation
from xcam.contract.preprocessing import Preprocessing
from xcam.contract.quantization import Stretch
from xcam.contract.recorded import RecordedModel
from xcam.errors import ModelError
from xcam_openvino import stretches
from xcam_openvino.graph import FLOATS, Graph, Tensor
from xcam_openvino.layers import ELEMENTWISE, KERNELS, input_channel_axis
from xcam_openvino.recording import Output, Recording
from xcam_openvino.sessions import Runtime, Session

ACTIVATIONS = {"Softmax": "softmax", "Sigmoid": "sigmoid"}
SHAPES = ("Squeeze", "Unsqueeze", "Reshape")
"""Operators that only change the shape: followed where there is one number for each row."""
PIXELS = {
    "u8": "uint8",
    "u16": "uint16",
    "i16": "int16",
    "u32": "uint32",
    "i32": "int32",
    "u64": "uint64",
    "i64": "int64",
}
"""Integer types that hold 0…255, with NumPy's names."""
QUANTISED = "quantised: values are those behind the rounding, and resumed values are rounded again"
MEMORY = ("bad_alloc", "out of memory", "CL_OUT_OF_RESOURCES", "CL_MEM_OBJECT_ALLOCATION_FAILURE", "Cannot allocate")
"""Parts of the runtime's errors for exhausted memory."""


class OpenVinoModel(RecordedModel[Recording]):
    """An OpenVINO model behind xcam's contract. See xcam.contract.Model.

    Args:
        model: The model, which is not changed.
        runtime: Creates sessions.
        name: The model's name.
        layout: The layout of the input; None: read it from the graph.
        size: The size of the input where the model leaves it open.
        labels: The class labels.
        preprocessing: The preprocessing that the model states; None: the one that its own scaling needs.
        fit: How images fit the size, where the model states it.
        channels: The number of channels, where the model does not state it.
        notes: Facts that a reader of a heatmap must know.

    Raises:
        ModelError: The model does not take an image, or does not return scores.
    """

    backend = "openvino"
    capabilities: frozenset[Capability] = frozenset({"resume"})

    def __init__(
        self,
        model: openvino.Model,
        runtime: Runtime,
        *,
        name: str,
        layout: Layout | None = None,
        size: tuple[int | None, ...] | None = None,
        labels: Sequence[str] | None = None,
        preprocessing: Preprocessing | None = None,
        fit: Fit | None = None,
        channels: int | None = None,
        notes: Sequence[str] = (),
    ) -> None:
        self._model, self._runtime = model.clone(), runtime
        _check(self._model, name)
        self.graph = Graph(self._model)
        self._signature = _signature(self.graph, name, layout, channels)
        self._outputs = _outputs(self.graph, name)
        spec = self._signature.spec(preprocessing, size, fit)
        needed = _scaling(self.graph, self._signature, spec, runtime)
        if preprocessing is None and needed is not None:
            spec = InputSpec(**{**vars(spec), "preprocessing": needed})
        spec = InputSpec(**{**vars(spec), "needs": needed})
        quantised = any(self.graph.is_quantiser(k) for k in range(len(self.graph.ops)))
        super().__init__(name, spec, labels, (*notes, *([QUANTISED] if quantised else [])))

    @cached_property
    def _whole(self) -> Session:
        """The session of the outputs alone: the runtime fuses and rounds as it does without xcam."""
        if all(output.activation is None for output in self._outputs) and len(self._outputs) == len(
            self.graph.results
        ):
            return self._runtime.session(self._model)
        return self._runtime.session(self.graph.head([output.tensor for output in self._outputs]))

    def _record(self, shape: tuple[int, ...], batch: int) -> Recording:
        """Record the graph for inputs of one size.

        Its batch is open where the model leaves it open. In a model of one image, it is opened where all shapes show that
        rows stay apart: many variants of a layer are then run at once.
        """
        fixed = self._signature.batch
        if fixed == 1:
            with contextlib.suppress(Exception):  # shapes that fit one image alone
                recording = self._recorded(shape, None)
                if recording.keeps_rows_apart:
                    return recording
        return self._recorded(shape, fixed)

    def _recorded(self, shape: tuple[int, ...], batch: int | None) -> Recording:
        special = self.graph.reshaped((batch or -1, *shape)).with_static_shapes()
        return Recording(
            special,
            self.name,
            _outputs(special, self.name),
            shape,
            self._signature.axis,
            batch,
            self._runtime,
            self._whole,
            self._signature.batch,
        )

    @property
    def precision(self) -> str | None:
        """See xcam.contract.abilities.RunsStretches."""
        return stretches.precision(self._recording())

    def stretch_sources(self, layers: Sequence[str], known: Collection[str]) -> Collection[str]:
        """See xcam.contract.abilities.RunsStretches."""
        opened = self._opened()
        entries = opened.recording.entries
        tensors = {name: entries[self._layer(opened, name).name] for name in (*layers, *known)}
        nearest = stretches.sources(
            opened.recording.graph,
            [tensors[name].tensor for name in layers],
            {tensors[name].read for name in known},
        )
        return [name for name in known if tensors[name].read in nearest]

    def stretches(self, x: Array, values: Mapping[str, Array], layers: Sequence[str]) -> Mapping[str, Stretch]:
        """See xcam.contract.abilities.RunsStretches."""
        x = without_channel_axis(x, self.input)
        opened = self._opened(x)
        known = {name: self._layer(opened, name) for name in (*values, *layers)}
        starts = {known[name].name: (known[name], value) for name, value in values.items()}
        with self._running():
            results = stretches.run(opened.recording, x, starts, {known[name].name: known[name] for name in layers})
        return {name: results[known[name].name] for name in layers}

    def _running(self) -> contextlib.AbstractContextManager[None]:
        return out_of_memory(signs=MEMORY)


@dataclass(frozen=True)
class Signature:
    """The input of a model."""

    size: tuple[int | None, ...]
    """The spatial size, None where it is open."""
    channels: int
    """A guess where the model leaves it open."""
    channels_known: bool
    axis: int
    """The channel axis."""
    dtype: str
    batch: int | None
    """The batch size that the model is fixed to."""

    def spec(
        self, preprocessing: Preprocessing | None, size: tuple[int | None, ...] | None, fit: Fit | None
    ) -> InputSpec:
        """Return the contract's description of the input; `size` is used where the model leaves it open."""
        return InputSpec(
            size=filled(self.size, None) or size,
            channels=self.channels,
            layout="channels_first" if self.axis == 1 else "channels_last",
            dtype=self.dtype,
            preprocessing=preprocessing,
            fixed=any(self.size),
            axes=len(self.size),
            channels_known=self.channels_known,
            fit=fit,
        )


def _check(model: openvino.Model, name: str) -> None:
    """Raise ModelError for a model that cannot be explained as a function of its input."""
    if model.get_variables() or model.get_sinks():
        raise ModelError(
            f"cannot use {name}: it has a state, which one run passes on to the next (ReadValue, Assign); export it without "
            "a state"
        )
    if len(model.inputs) != 1:
        raise one_input(name, len(model.inputs), "export a model that takes an image")


def _signature(graph: Graph, name: str, layout: Layout | None, channels: int | None) -> Signature:
    shape, dtype = graph.shape(graph.source), graph.dtype(graph.source)
    if dtype not in FLOATS and dtype not in PIXELS:
        raise ModelError(
            f"cannot use {name}: its input has the type {dtype}, not floats or pixels; convert it with a float input"
        )
    if shape is None or not 3 <= len(shape) <= 5:
        raise ModelError(
            f"cannot use {name}: its input has the shape {'unknown' if shape is None else list(shape)}, and an image has "
            "[batch, channels, height, width]; convert it with the shape of its input"
        )
    axis = _channel_axis(graph, shape, layout)
    stated = shape[axis]
    return Signature(
        size=tuple(n for k, n in enumerate(shape) if k not in (0, axis)),
        channels=channels or _filter_channels(graph) or 3 if stated is None else stated,
        channels_known=stated is not None,
        axis=axis,
        dtype=PIXELS.get(dtype, "float32"),
        batch=shape[0],
    )


def _channel_axis(graph: Graph, shape: Sequence[int | None], layout: Layout | None) -> int:
    """Return the channel axis: as the caller states it, by the input's own layout, by the operators, or by its size."""
    last = len(shape) - 1
    if layout in ("channels_first", "channels_last"):
        return last if layout == "channels_last" else 1
    stated = str(graph.ops[graph.source[0]].get_layout()).strip("[]").replace(",", "")
    if "C" in stated and "..." not in stated and len(stated) == len(shape) and stated.index("C") in (1, last):
        return stated.index("C")
    read = input_channel_axis(graph)
    if read in (1, last):
        return read
    few = [axis for axis in (1, last) if shape[axis] in (1, 3, 4)]
    return few[0] if len(few) == 1 else 1


def _filter_channels(graph: Graph) -> int | None:
    """Return the number of channels that the first convolution takes; None without one."""
    for k, kind in enumerate(graph.kinds):
        if kind == "Convolution" and k in graph.live:
            shape = graph.shape(graph.inputs[k][1])
            return shape[1] if shape else None
    return None


def _outputs(graph: Graph, name: str) -> list[Output]:
    """Return the outputs of floats, without the softmax or sigmoid that ends them."""

    def producer(tensor: Tensor) -> tuple[str | None, Tensor] | None:
        kind = graph.kinds[tensor[0]]
        inputs = graph.inputs[tensor[0]]
        if not inputs or inputs[0][0] not in graph.dependent:
            return None
        if kind in ACTIVATIONS:
            return ACTIVATIONS[kind], inputs[0]
        shapes = [graph.shape(t) for t in (inputs[0], tensor)]
        is_shape = kind in SHAPES and all(shape is not None and shape[1:] in ((), (1,)) for shape in shapes)
        is_storage = kind == "FakeQuantize" or (kind == "Convert" and graph.dtype(inputs[0]) in FLOATS)
        return (None, inputs[0]) if is_shape or is_storage else None

    result: list[Output] = []
    for tensor, port in zip(graph.results, graph.model.outputs, strict=True):
        if graph.dtype(tensor) not in FLOATS or tensor[0] not in graph.dependent:
            continue
        names = sorted(port.get_names())
        friendly = graph.name(tensor)
        label = friendly if friendly in names or not names else names[0]
        while any(output.name == label for output in result):
            label += "'"
        logits, activation = cut_activation(tensor, producer)
        result.append(Output(label, logits, activation))
    if not result:
        listed = ", ".join(f"{graph.name(tensor)} ({graph.dtype(tensor)})" for tensor in graph.results)
        raise ModelError(
            f"cannot use {name}: it returns {listed or 'nothing'}, and a score needs a float output that depends on the "
            "image; convert it with its class scores"
        )
    return result


MOVES = {
    *("Convert", "Transpose", "Reshape", "Squeeze", "Unsqueeze", "Broadcast", "Slice", "StridedSlice", "Gather"),
    *("Split", "VariadicSplit", "Concat", "SpaceToDepth", "Pad", "Interpolate", "MaxPool", "AvgPool", "ShapeOf"),
    *("FakeQuantize", "Parameter", "Constant"),
}
"""Operators that leave plain colours as they are."""


def _scaling(graph: Graph, signature: Signature, spec: InputSpec, runtime: Runtime) -> Preprocessing | None:
    """Return the preprocessing that the model's own scaling needs: see xcam.contract.scaling.computed."""
    tensor = _first_kernels_input(graph)
    if tensor is None or tensor == graph.source or not _scales(graph, tensor):
        return None
    try:
        session = runtime.session(graph.head([tensor]))
        dtype: Any = graph.output(graph.source).get_element_type().to_dtype()

        def reach(x: Array) -> Array:
            return session([np.repeat(x, signature.batch or 1, 0).astype(dtype)])[0]

        return scaling.computed(spec, reach)
    except Exception:  # the part does not run on such an input
        return None


def _first_kernels_input(graph: Graph) -> Tensor | None:
    """Return the tensor that the first operator with a kernel reads, before it is quantised; None without one."""
    for k, kind in enumerate(graph.kinds):
        if kind in KERNELS and k in graph.dependent:
            tensor = graph.inputs[k][0]
            while graph.kinds[tensor[0]] == "FakeQuantize":
                tensor = graph.inputs[tensor[0]][0]
            return tensor
    return None


def _scales(graph: Graph, tensor: Tensor) -> bool:
    """Return whether an operator ahead of a tensor changes plain colours."""
    queue, visited = [tensor[0]], set[int]()
    while queue:
        position = queue.pop()
        if position not in visited:
            visited.add(position)
            queue += [t[0] for t in graph.inputs[position] if t[0] in graph.live]
    return any(
        graph.kinds[k] not in MOVES and (graph.kinds[k] in ELEMENTWISE or k in graph.dependent) for k in visited
    )
