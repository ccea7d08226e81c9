"""Weights that stay in their files: only the graph of a model is read, and the location of each larger weight.

ONNX stores a weight either in the model file (as `raw_data`, a field of a protobuf message) or in another file (external
data). Here both become external data: file name, offset, length. Opening a model of any size then takes little memory,
and the sessions of its parts share the mapped pages.
"""

from __future__ import annotations

import math
import mmap
import tempfile
import weakref
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from google.protobuf.message import DecodeError
from onnx import AttributeProto, FunctionProto, GraphProto, ModelProto, TensorProto, helper
from onnx.external_data_helper import ExternalDataInfo

from xcam.contract import Array
from xcam.errors import ModelError

SMALL = 1024
"""Bytes: smaller constants stay in the graph, as shape inference reads shapes and axes."""

GRAPH, INITIALIZER, RAW_DATA = 7, 5, 9
"""Field numbers in onnx.proto: ModelProto.graph, GraphProto.initializer, TensorProto.raw_data."""
WITHOUT_TENSORS = {
    *(AttributeProto.FLOAT, AttributeProto.INT, AttributeProto.STRING),
    *(AttributeProto.FLOATS, AttributeProto.INTS, AttributeProto.STRINGS),
}
"""Types of attributes, of which all others may hold tensors."""
NOT_PROTOBUF = "it is not a protobuf message"


def skeleton(path: Path) -> ModelProto:
    """Read the model in a file, its larger weights as external data.

    Raises:
        ModelError: The file is not an ONNX model.
    """
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            model = ModelProto.FromString(_model(data, path.name))
    except (ValueError, IndexError, OSError, DecodeError) as error:
        raise ModelError(
            f"{path} is not a complete ONNX model ({error or type(error).__name__}); export it again, or check the "
            "download"
        ) from error
    if not model.HasField("graph") or not model.graph.node:
        raise ModelError(f"{path} does not contain an ONNX graph; check whether it is a model in another format")
    kinds = {kind for node in model.graph.node for kind in map(type, (node.name, *node.input, *node.output))}
    if kinds != {str}:  # protobuf returns bytes where they are not UTF-8
        raise ModelError(f"{path} has names that are not UTF-8; export it again, or check the download")
    return model


def _model(data: mmap.mmap, name: str) -> bytes:
    parts = []
    for number, start, begin, end in _fields(data, 0, len(data)):
        if number != GRAPH:
            parts.append(data[start:end])
            continue
        inner, copied = [], begin
        for field, field_start, content, stop in _fields(data, begin, end):
            if field == INITIALIZER and stop - content > SMALL:
                inner += [data[copied:field_start], _message(INITIALIZER, _tensor(data, content, stop, name))]
                copied = stop
        inner.append(data[copied:end])
        parts.append(_message(GRAPH, b"".join(inner)))
    return b"".join(parts)


def _tensor(data: mmap.mmap, begin: int, end: int, name: str) -> bytes:
    """Return a TensorProto with the location of its raw data instead of the data."""
    parts, external_data = [], b""
    for number, start, content, stop in _fields(data, begin, end):
        if number == RAW_DATA and stop - content > SMALL:
            tensor = TensorProto(data_location=TensorProto.EXTERNAL)
            for key, value in (("location", name), ("offset", str(content)), ("length", str(stop - content))):
                tensor.external_data.add(key=key, value=value)
            external_data = tensor.SerializeToString()
        else:
            parts.append(data[start:stop])
    return b"".join([*parts, external_data])


def _fields(data: mmap.mmap, begin: int, end: int) -> Iterator[tuple[int, int, int, int]]:
    """Yield (number, start, start of the content, end) of each field of a protobuf message.

    Source: the protobuf encoding, protobuf.dev/programming-guides/encoding.
    """
    position = begin
    while position < end:
        start = position
        key, position = data[start], start + 1
        if key > 127:
            key, position = _varint(data, start)
        wire_type = key & 7
        if wire_type == 0:
            _, stop = _varint(data, position)
        elif wire_type == 2:
            length, position = data[position], position + 1
            if length > 127:
                length, position = _varint(data, position - 1)
            stop = position + length
        elif wire_type in (1, 5):
            stop = position + (8 if wire_type == 1 else 4)
        else:
            raise ValueError(NOT_PROTOBUF)
        if stop > end or key >> 3 == 0:
            raise ValueError("it is truncated" if key >> 3 else NOT_PROTOBUF)
        yield key >> 3, start, position, stop
        position = stop


def _varint(data: mmap.mmap, position: int) -> tuple[int, int]:
    """Return the number that is encoded at a position, and the position behind it."""
    value = shift = 0
    while True:
        byte = data[position]
        value |= (byte & 127) << shift
        position, shift = position + 1, shift + 7
        if byte < 128:
            return value, position
        if shift > 63:
            raise ValueError(NOT_PROTOBUF)


def _message(number: int, content: bytes) -> bytes:
    """Encode a field that contains a message."""
    head = bytearray()
    for value in (number << 3 | 2, len(content)):
        while value > 127:
            head.append(value & 127 | 128)
            value >>= 7
        head.append(value)
    return bytes(head) + content


def tensors(within: GraphProto | FunctionProto) -> Iterator[TensorProto]:
    """Yield every constant of a graph, those in its branches and loops included."""
    yield from getattr(within, "initializer", ())
    for sparse in getattr(within, "sparse_initializer", ()):
        yield from (sparse.values, sparse.indices)
    for node in within.node:
        for entry in node.attribute:
            if entry.type in WITHOUT_TENSORS:
                continue
            yield from [entry.t] if entry.HasField("t") else entry.tensors
            for sparse in [entry.sparse_tensor] if entry.HasField("sparse_tensor") else entry.sparse_tensors:
                yield from (sparse.values, sparse.indices)
            for inner in [entry.g] if entry.HasField("g") else entry.graphs:
                yield from tensors(inner)


def external(model: ModelProto) -> list[TensorProto]:
    """Return the weights that are external data."""
    constants = [*tensors(model.graph), *(tensor for function in model.functions for tensor in tensors(function))]
    return [tensor for tensor in constants if tensor.data_location == TensorProto.EXTERNAL]


def external_entries(tensor: TensorProto) -> dict[str, str]:
    """Return the location, offset and length of external data, as far as the model states them."""
    return {entry.key: entry.value for entry in tensor.external_data}


class WeightFiles:
    """The files that hold a model's weights, mapped once for all sessions that read them in shared memory.

    Args:
        path: The model file.
        weights: Those of its weights that are external data.
        temporary: The folder of these files, if it is to be deleted when neither the model nor a session needs it.

    Attributes:
        folder: The folder of the files.
    """

    def __init__(
        self, path: Path, weights: Iterable[TensorProto], temporary: tempfile.TemporaryDirectory[str] | None = None
    ) -> None:
        self.folder = path.parent.resolve()
        locations = {external_entries(tensor)["location"] for tensor in weights}
        self._stamps = {file: _stamp(file) for file in {path, *(path.parent / location for location in locations)}}
        self._maps: dict[str, mmap.mmap] = {}
        if temporary is not None:
            weakref.finalize(self, _delete, temporary, self._maps)

    def check(self) -> None:
        """Raise ModelError unless the files are still those that were opened."""
        for path, stamp in self._stamps.items():
            if _stamp(path) != stamp:
                raise ModelError(f"{path} was changed or removed after it was loaded; load the model again")

    def fetch(self, model: ModelProto) -> None:
        """Read all weights into a model; onnx.load would refuse linked files, which download caches use."""
        self.check()
        for tensor in external(model):
            info = ExternalDataInfo(tensor)
            size = math.prod(tensor.dims) * helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
            with (self.folder / info.location).open("rb") as file:
                file.seek(info.offset or 0)
                tensor.raw_data = file.read(info.length or size)
            del tensor.external_data[:]
            tensor.ClearField("data_location")

    def array(self, tensor: TensorProto) -> Array:
        """Return a weight as an array in its mapped file, which is read only when it is used."""
        info = ExternalDataInfo(tensor)
        if info.location not in self._maps:
            with (self.folder / info.location).open("rb") as file:
                self._maps[info.location] = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        dtype = np.dtype(helper.tensor_dtype_to_np_dtype(tensor.data_type))
        flat = np.frombuffer(self._maps[info.location], dtype, math.prod(tensor.dims), info.offset or 0)
        return flat.reshape(tensor.dims)


def _delete(temporary: tempfile.TemporaryDirectory[str], maps: dict[str, mmap.mmap]) -> None:
    maps.clear()  # Windows does not delete mapped files
    temporary.cleanup()


def _stamp(path: Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_size, status.st_mtime_ns


def external_size(tensors: Iterable[TensorProto]) -> int:
    """Return the number of bytes of those tensors that are external data."""
    return sum(int(external_entries(tensor).get("length", 0)) for tensor in tensors)
