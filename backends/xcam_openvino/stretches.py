"""Layers computed from given values at the layers ahead of them: see xcam.contract.abilities.RunsStretches."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence

import numpy as np
import openvino
from openvino import op

from xcam.contract import Array, Layer
from xcam.contract.layouts import from_trace, to_trace
from xcam.contract.quantization import Quantization, Stretch
from xcam_openvino.graph import Graph, Tensor
from xcam_openvino.layers import KERNELS, Entry
from xcam_openvino.recording import Recording

REDUCED = {
    **{name: f"{'u' if name[0] == 'u' else ''}int{name[1:]}" for name in ("i4", "u4", "i8", "u8")},
    **{"f16": "float16", "bf16": "bfloat16"},
}
"""Types to which weights are reduced, with NumPy's names."""


def precision(recording: Recording) -> str | None:
    """Return the type of most quantised values; without these that of most weights, where it is reduced; else None."""
    values = Counter(entry.layer.dtype for entry in recording.entries.values() if "int" in entry.layer.dtype)
    if not values:
        graph = recording.graph
        weights = [
            k for k, kind in enumerate(graph.kinds) if kind == "Constant" and len(graph.shape((k, 0)) or ()) > 1
        ]
        values = Counter(REDUCED[dtype] for k in weights if (dtype := graph.dtype((k, 0))) in REDUCED)
    return values.most_common(1)[0][0] if values else None


def sources(graph: Graph, targets: Collection[Tensor], known: Collection[Tensor]) -> set[Tensor]:
    """Return the `known` tensors nearest ahead of `targets`."""
    result, visited = set[Tensor](), set[int]()
    queue = [t[0] for t in targets]
    while queue:
        position = queue.pop()
        if position in visited:
            continue
        visited.add(position)
        for tensor in graph.inputs[position]:
            if tensor in known:
                result.add(tensor)
            else:
                queue.append(tensor[0])
    return result


def run(
    recording: Recording, x: Array, starts: Mapping[str, tuple[Layer, Array]], targets: Mapping[str, Layer]
) -> dict[str, Stretch]:
    """Compute each target from the given layers nearest ahead of it.

    Args:
        recording: The model.
        x: A batch.
        starts: Layers and their values [N, C, *spatial], by name in the recording.
        targets: Layers, by name in the recording.

    Returns:
        The stretches, by name.
    """
    graph, entries = recording.graph, recording.entries
    values = {entries[name].read: from_trace(value, layer) for name, (layer, value) in starts.items()}
    outputs = list(dict.fromkeys(t for name in targets for t in (entries[name].read, entries[name].tensor)))
    known = _run(recording, x, values, outputs, {})
    weights = _weights(recording)  # of floats in both runs: the runtime's integers round zero points, too
    clean, noisy = (
        _run(recording, x, values, outputs, {t: pair[k] for t, pair in weights.items()}) if weights else None
        for k in (0, 1)
    )
    result = {}
    for name, layer in targets.items():
        entry = entries[name]
        rounding = _quantization(graph, entry)
        value, before = (to_trace(known[tensor], layer) for tensor in (entry.read, entry.tensor))
        error = 0.0
        if clean is not None and noisy is not None:
            error = float(np.mean((noisy[entry.tensor] - clean[entry.tensor]) ** 2))
        unrounded = None if rounding is None else np.ascontiguousarray(before)
        result[name] = Stretch(np.ascontiguousarray(value), unrounded, rounding, noise=error or None)
    return result


def _run(
    recording: Recording,
    x: Array,
    values: Mapping[Tensor, Array],
    outputs: Sequence[Tensor],
    weights: Mapping[Tensor, Array],
) -> dict[Tensor, Array]:
    """Compute tensors from the given ones nearest ahead of them, with other weights where these are stated."""
    graph = recording.graph
    model, inputs = _cut(graph, values, outputs, weights)
    session = recording.runtime.session(model)
    batches = []
    for rows in recording.slices(len(x)):
        feeds = [
            recording.feed(x[rows])
            if tensor == graph.source
            else np.ascontiguousarray(values[tensor][rows], graph.output(tensor).get_element_type().to_dtype())
            for tensor in inputs
        ]
        batches.append(dict(zip(outputs, session(feeds), strict=True)))

    return {tensor: np.concatenate([batch[tensor] for batch in batches]) for tensor in outputs}


def _weights(recording: Recording) -> dict[Tensor, tuple[Array, Array]]:
    """Return the weights that are stored as integers, as floats, and with noise as rounding makes it.

    Each channel has a scale of its own.
    """
    graph, axes = recording.graph, dict[Tensor, tuple[int, ...]]()
    for k, kind in enumerate(graph.kinds):
        for index, tensor in enumerate(graph.inputs[k]):
            if (
                kind in KERNELS
                and k in graph.dependent
                and tensor[0] not in graph.live
                and _is_rounded(graph, tensor)
            ):
                rank = len(graph.shape(tensor) or ())
                transposed = kind == "MatMul" and graph.ops[k].get_attributes()["transpose_b"]
                first = {"GroupConvolution": (0, 1), "ConvolutionBackpropData": (1,)}.get(kind, (0,))
                axes[tensor] = first if kind != "MatMul" else (rank - 2 if transposed and index else rank - 1,)
    if not axes:
        return {}
    model = openvino.Model([Graph(graph.model.clone()).output(t) for t in axes], [], "weights")
    rng, result = np.random.default_rng(0), dict[Tensor, tuple[Array, Array]]()
    for (tensor, kept), value in zip(axes.items(), recording.runtime.session(model)([]), strict=True):
        others = tuple(k for k in range(value.ndim) if k not in kept)
        step = np.abs(value).max(axis=others, keepdims=True) * (2 / 255)
        result[tensor] = value, (value + step * rng.uniform(-0.5, 0.5, value.shape)).astype(np.float32)
    return result


def _is_rounded(graph: Graph, tensor: Tensor) -> bool:
    """Return whether a constant is computed from integers, or rounded."""
    queue, visited = [tensor[0]], set[int]()
    while queue:
        position = queue.pop()
        if position in visited:
            continue
        visited.add(position)
        if graph.kinds[position] == "FakeQuantize" or graph.dtype((position, 0)) in ("i8", "u8", "i4", "u4"):
            return True
        queue += [t[0] for t in graph.inputs[position]]
    return False


def _cut(
    graph: Graph, starts: Collection[Tensor], outputs: Collection[Tensor], weights: Mapping[Tensor, Array]
) -> tuple[openvino.Model, list[Tensor]]:
    """Return the model that computes tensors from the given ones nearest ahead of them, and its inputs."""
    read: dict[Tensor, None] = {}
    queue, visited = [t[0] for t in outputs], set[int]()
    while queue:
        position = queue.pop()
        if position in visited:
            continue
        visited.add(position)
        for tensor in graph.inputs[position]:
            if tensor in starts or tensor == graph.source:
                read[tensor] = None
            else:
                queue.append(tensor[0])
    copied = Graph(graph.model.clone())
    targets = [copied.output(t) for t in outputs]
    for tensor, value in weights.items():
        for reader in copied.output(tensor).get_target_inputs():
            reader.replace_source_output(op.Constant(value).output(0))
    parameters = []
    for tensor in read:
        output = copied.output(tensor)
        if tensor == graph.source:
            parameters.append(output.get_node())
            continue
        parameter = op.Parameter(output.get_element_type(), output.get_partial_shape())
        for reader in output.get_target_inputs():
            reader.replace_source_output(parameter.output(0))
        parameters.append(parameter)
    return openvino.Model(targets, parameters, "stretches"), list(read)


def _quantization(graph: Graph, entry: Entry) -> Quantization | None:
    """Return how a layer's value is quantised; None where it is not."""
    if entry.tensor == entry.read:
        return None
    (position,) = graph.readers[entry.tensor] if len(graph.readers[entry.tensor]) == 1 else (None,)
    if position is None or graph.kinds[position] != "FakeQuantize":
        return None
    low, high = (graph.constant(graph.inputs[position][k]) for k in (1, 2))
    if low is None or high is None:
        return None
    levels = int(graph.ops[position].get_attributes()["levels"])
    scale = (high.astype(np.float64) - low) / (levels - 1)
    smallest = 0 if entry.layer.dtype.startswith("u") else -(levels // 2)
    zero = np.rint(smallest - low / scale).astype(np.int64)
    return Quantization(entry.layer.dtype, _single(scale), _single(zero))


def _single(values: Array) -> Array:
    return values.reshape(()) if values.size == 1 else values.reshape(-1)
