"""The calls that a tensor's value depends on: followed through every operation, with or without gradients.

The input and each call have a bit. Each operation passes the bits of its arguments on to its results, also under
`no_grad`, in inference mode, inside TorchScript, and for integers; sizes carry no bits. The bits belong to the storage:
views and writes in place share them.

A second number has the bit of each call that some path from the input AVOIDS: the input has all of them, and the value
of a call lacks its own. These belong to the tensor, as a view or the value of an Identity is read in addition to its
source; where a tensor is not known any more, those of all tensors of its storage are used.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakTensorKeyDictionary

INPUT = 1
"""The bit of the input."""

SIZES_ONLY = ("_like", "aten::new_")
"""Parts of the names of operations whose results have the size of an argument, and not its values."""

TO_PYTHON = ("numpy", "tolist", "item", "__array__", "__dlpack__")
"""Methods that return values which are no longer tensors; they may come back as new tensors."""


ALL = -1
"""Every bit."""


@dataclass
class Reads:
    """The arguments of a call, when it began."""

    bits: int = 0
    avoiding: int = 0
    time: int = 0
    """See Dependence."""


@dataclass
class _Storage:
    """The facts of a storage."""

    created: int
    written: int
    """The times of its creation and of the last write in place."""
    avoiding: int = 0
    """The paths of all its tensors."""


class Dependence(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Record on which calls each tensor depends, while it is entered."""

    supports_higher_order_operators = True

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._bits: dict[int, int] = {}
        self._alive: dict[int, Any] = {}  # weak references, so that no other storage gets a key
        self._outside = Reads()
        """The bits of values that left for Python and NumPy."""
        self._times = itertools.count()
        self._storages: dict[int, _Storage] = {}
        self._paths: MutableMapping[Any, tuple[int, int | None, int]] = WeakTensorKeyDictionary()
        """The paths of a tensor, the last write to its storage at that time, and the time when it was first seen."""

    def mark(self, value: Any, reads: Reads) -> None:
        """Add the bits and the paths of some arguments to every tensor in a value."""
        for tensor in tensors_in(value):
            key = self._key(tensor)
            self._bits[key] = self._bits.get(key, 0) | reads.bits
            self._set_paths(tensor, reads.avoiding)

    def pass_through(self, tensor: Tensor, bit: int, arguments: Reads) -> None:
        """Note that a tensor is the value of a call: every path to it leads through the call.

        Args:
            tensor: the tensor.
            bit: the call's.
            arguments: those of the call.
        """
        key = self._key(tensor)
        self._bits[key] = self._bits.get(key, 0) | bit
        storage = self._storage(tensor)
        if max(storage.created, storage.written) >= arguments.time:  # no older value can be read any more
            storage.avoiding &= ~bit
        self._set_paths(tensor, self.avoiding(tensor) & ~bit, storage.avoiding)

    def avoiding(self, tensor: Tensor) -> int:
        """Return the bits of the calls that a path from the input to a tensor avoids."""
        storage = self._storage(tensor)
        paths, written, _ = self._paths.get(tensor, (0, None, 0))
        return int(paths if written == storage.written else storage.avoiding)

    def is_older(self, tensor: Tensor, arguments: Reads) -> bool:
        """Return whether a call returns a tensor that existed when it began, unchanged."""
        _, _, seen = self._paths.get(tensor, (0, 0, arguments.time))
        return bool(max(seen, self._storage(tensor).written) < arguments.time)

    def reads(self, value: Any) -> Reads:
        """Return the bits and paths of all tensors in a value."""
        tensors = list(tensors_in(value))
        avoiding = 0
        for tensor in tensors:
            avoiding |= self.avoiding(tensor)
        return Reads(self.of(tensors), avoiding, next(self._times))

    def of(self, value: Any) -> int:
        """Return the bits of all tensors in a value."""
        bits = 0
        for tensor in tensors_in(value):
            bits |= self._bits.get(self._key(tensor), 0)
        return bits

    def is_known(self, tensor: Tensor) -> bool:
        """Return whether a tensor was the result of an operation; those of foreign kernels are not known."""
        return self._key(tensor) in self._bits

    @contextlib.contextmanager
    def recording(self, source: Tensor) -> Iterator[None]:
        """Record until the end of the context; `source` is the model's input."""
        self.mark(source, Reads(INPUT, ALL))
        with _ToPython(self), self:
            yield

    def also(self, value: Any, reads: Reads) -> Reads:
        """Return some arguments together with the paths of a value."""
        return Reads(reads.bits, reads.avoiding | self.reads(value).avoiding)

    def leave(self, value: Any) -> None:
        """Note that a value leaves for Python."""
        reads = self.reads(value)
        self._outside = Reads(self._outside.bits | reads.bits, self._outside.avoiding | reads.avoiding)

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = function.name() if callable(getattr(function, "name", None)) else str(function)
        if any(part in name for part in SIZES_ONLY):
            reads = Reads()
        elif name.startswith("aten::lift_fresh"):
            reads = self._outside
        else:
            reads = self.reads((args, kwargs))
        result = function(*args, **kwargs)
        if name == "aten::_local_scalar_dense":
            self.leave((args, kwargs))
        schema = getattr(function, "_schema", None)
        if schema is not None and schema.is_mutable:
            for argument, value in zip(schema.arguments, args, strict=False):
                if argument.alias_info is not None and argument.alias_info.is_write:
                    for tensor in tensors_in(value):
                        self._storage(tensor).written = reads.time
                    self.mark(value, reads)
        self.mark(result, reads)
        return result

    def _set_paths(self, tensor: Tensor, paths: int, of_all: int | None = None) -> None:
        storage = self._storage(tensor)
        storage.avoiding = storage.avoiding | paths if of_all is None else of_all
        *_, seen = self._paths.get(tensor, (next(self._times),))
        self._paths[tensor] = paths, storage.written, seen

    def _storage(self, tensor: Tensor) -> _Storage:
        key = self._key(tensor)
        if key not in self._storages:
            self._storages[key] = _Storage(next(self._times), -1)
        return self._storages[key]

    def _key(self, tensor: Tensor) -> int:
        try:
            reference = StorageWeakRef(tensor.untyped_storage())  # type: ignore[no-untyped-call]
        except (NotImplementedError, RuntimeError):  # sparse tensors and those of other libraries
            key = -id(tensor)
            self._alive[key] = tensor
            return key
        return self._alive.setdefault(reference.cdata, reference).cdata


class _ToPython(TorchFunctionMode):
    def __init__(self, dependence: Dependence) -> None:
        super().__init__()
        self._dependence = dependence

    def __torch_function__(self, function: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(function, "__name__", "") in TO_PYTHON:
            self._dependence.leave(args)
        return function(*args, **(kwargs or {}))


def tensors_in(value: Any) -> Iterator[Tensor]:
    """Yield the tensors in a value of nested tuples, lists, mappings and data classes."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, tuple | list | set):
        for part in value:
            yield from tensors_in(part)
    elif isinstance(value, Mapping):
        for part in value.values():
            yield from tensors_in(part)
    elif hasattr(value, "__dataclass_fields__"):
        yield from tensors_in(vars(value))
