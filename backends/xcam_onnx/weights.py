"""Weights stay in their file: what is read of a model is its graph, and each larger weight as a place in the file.

ONNX keeps a weight either in the model's own file (as `raw_data`, one field of a protobuf message) or in a file beside it
(external data). Both are written here as external data: name, offset, length. So opening a model of any size takes
little memory, and the sessions that are made of its parts map the same pages of the same file.
"""

from __future__ import annotations

import math
import mmap
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from google.protobuf.message import DecodeError
from onnx import FunctionProto, GraphProto, ModelProto, TensorProto, helper
from onnx.external_data_helper import ExternalDataInfo

from xcam.errors import ModelError

SMALL = 1024
"""Bytes: what is not larger stays in the graph; shapes and axes are read by shape inference."""

GRAPH, INITIALIZER, RAW_DATA, EXTERNAL, LOCATION = 7, 5, 9, 13, 14
"""Field numbers in onnx.proto: ModelProto.graph, GraphProto.initializer, and of TensorProto."""


def skeleton(path: Path) -> ModelProto:
    """The model in a file, its larger weights as external data. Raises ModelError for what is not an ONNX model."""
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            model = ModelProto.FromString(_model(data, path.name))
    except (ValueError, IndexError, OSError, DecodeError) as error:
        raise ModelError(
            f"{path} is not a whole ONNX model ({error or type(error).__name__}); export it again, or check the download"
        ) from error
    if not model.HasField("graph") or not model.graph.node or not model.opset_import:
        raise ModelError(f"{path} holds no ONNX graph; is it a model in another format?")
    names = [name for node in model.graph.node for name in (node.name, *node.input, *node.output)]
    if not all(isinstance(name, str) for name in names):  # protobuf gives bytes for what is no UTF-8
        raise ModelError(f"{path} has names that are no text; export it again, or check the download")
    return model


def _model(data: mmap.mmap, name: str) -> bytes:
    parts = []
    for number, start, begin, end in _fields(data, 0, len(data)):
        if number != GRAPH:
            parts.append(data[start:end])
            continue
        inner = []
        for field, first, begin_, end_ in _fields(data, begin, end):
            whole = field != INITIALIZER or end_ - begin_ <= SMALL
            inner.append(data[first:end_] if whole else _message(INITIALIZER, _tensor(data, begin_, end_, name)))
        parts.append(_message(GRAPH, b"".join(inner)))
    return b"".join(parts)


def _tensor(data: mmap.mmap, begin: int, end: int, name: str) -> bytes:
    """A TensorProto, its raw data told by where they are."""
    parts, place = [], None
    for number, start, inside, stop in _fields(data, begin, end):
        if number == RAW_DATA and stop - inside > SMALL:
            place = inside, stop - inside
        else:
            parts.append(data[start:stop])
    if place is not None:
        tensor = TensorProto(data_location=TensorProto.EXTERNAL)
        for key, value in (("location", name), ("offset", str(place[0])), ("length", str(place[1]))):
            tensor.external_data.add(key=key, value=value)
        parts.append(tensor.SerializeToString())
    return b"".join(parts)


def _fields(data: mmap.mmap, begin: int, end: int) -> Iterator[tuple[int, int, int, int]]:
    """(number, where it starts, where its content begins, where it ends) of each field of a protobuf message.

    Source: the protobuf encoding, protobuf.dev/programming-guides/encoding.
    """
    at = begin
    while at < end:
        start = at
        key, at = _varint(data, at)
        kind = key & 7
        if kind == 0:
            _, stop = _varint(data, at)
        elif kind == 2:
            length, at = _varint(data, at)
            stop = at + length
        elif kind in (1, 5):
            stop = at + (8 if kind == 1 else 4)
        else:
            raise ValueError("it is no protobuf message")
        if stop > end or key >> 3 == 0:
            raise ValueError("it ends in the middle" if key >> 3 else "it is no protobuf message")
        yield key >> 3, start, at, stop
        at = stop


def _varint(data: mmap.mmap, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value, at
        if shift > 63:
            raise ValueError("it is no protobuf message")


def _message(number: int, content: bytes) -> bytes:
    """A field that holds a message."""
    head = bytearray()
    for value in (number << 3 | 2, len(content)):
        while value > 127:
            head.append(value & 127 | 128)
            value >>= 7
        head.append(value)
    return bytes(head) + content


def tensors(within: GraphProto | FunctionProto) -> Iterator[TensorProto]:
    """Every constant in a graph, those in its branches and loops too."""
    yield from getattr(within, "initializer", ())
    for sparse in getattr(within, "sparse_initializer", ()):
        yield from (sparse.values, sparse.indices)
    for node in within.node:
        for given in node.attribute:
            yield from [given.t] if given.HasField("t") else given.tensors
            for sparse in [given.sparse_tensor] if given.HasField("sparse_tensor") else given.sparse_tensors:
                yield from (sparse.values, sparse.indices)
            for inner in [given.g] if given.HasField("g") else given.graphs:
                yield from tensors(inner)


def external(model: ModelProto) -> list[TensorProto]:
    """The weights that are told by where they are."""
    found = [*tensors(model.graph), *(tensor for function in model.functions for tensor in tensors(function))]
    return [tensor for tensor in found if tensor.data_location == TensorProto.EXTERNAL]


def fetch(model: ModelProto, folder: Path) -> None:
    """Read all weights into the model. (onnx's own way refuses linked files, which is how caches of downloads keep them.)"""
    for tensor in external(model):
        info = ExternalDataInfo(tensor)
        size = math.prod(tensor.dims) * helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
        with (folder / info.location).open("rb") as file:
            file.seek(info.offset or 0)
            tensor.raw_data = file.read(info.length or size)
        del tensor.external_data[:]
        tensor.ClearField("data_location")


class Pages:
    """The files that hold a model's weights, mapped once for all sessions that read a weight where it is."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._files: dict[str, mmap.mmap] = {}

    def array(self, tensor: TensorProto) -> npt.NDArray[Any]:
        """A weight in its file. Nothing is read before it is used."""
        told = {entry.key: entry.value for entry in tensor.external_data}
        if told["location"] not in self._files:
            with (self.folder / told["location"]).open("rb") as file:
                self._files[told["location"]] = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        data = self._files[told["location"]]
        kind = np.dtype(helper.tensor_dtype_to_np_dtype(tensor.data_type))
        return np.frombuffer(data, kind, math.prod(tensor.dims), int(told.get("offset", 0))).reshape(tensor.dims)


def bytes_of(tensors: Iterable[TensorProto]) -> int:
    """How much those of the tensors take that are told by where they are."""
    return sum(int(entry.value) for t in tensors for entry in t.external_data if entry.key == "length")
