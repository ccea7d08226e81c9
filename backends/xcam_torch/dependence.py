"""The calls that a tensor's value depends on: followed through every operation, with or without gradients.

The input and each call have a bit. Each operation passes the bits of its arguments on to its results, also under
`no_grad`, in inference mode, inside TorchScript, and for integers; sizes carry no bits. The bits belong to the storage:
views and writes in place share them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

INPUT = 1
"""The bit of the input."""

SIZES_ONLY = ("_like", "aten::new_")
"""Parts of the names of operations whose results have the size of an argument, and not its values."""

TO_PYTHON = ("numpy", "tolist", "item", "__array__", "__dlpack__")
"""Methods that return values which are no longer tensors; they may come back as new tensors."""


class Dependence(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Record on which calls each tensor depends, while it is entered."""

    supports_higher_order_operators = True

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._bits: dict[int, int] = {}
        self._alive: dict[int, Any] = {}  # weak references, so that no other storage gets a key
        self._outside = 0
        """The bits of values that left for Python and NumPy."""

    def mark(self, value: Any, bits: int) -> None:
        """Add bits to every tensor in a value."""
        for tensor in tensors_in(value):
            key = self._key(tensor)
            self._bits[key] = self._bits.get(key, 0) | bits

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
        self.mark(source, INPUT)
        with _ToPython(self), self:
            yield

    def leave(self, value: Any) -> None:
        """Note that a value leaves for Python."""
        self._outside |= self.of(value)

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = function(*args, **kwargs)
        name = function.name() if callable(getattr(function, "name", None)) else str(function)
        if any(part in name for part in SIZES_ONLY):
            bits = 0
        elif name.startswith("aten::lift_fresh"):
            bits = self._outside
        else:
            bits = self.of((args, kwargs))
        if name == "aten::_local_scalar_dense":
            self._outside |= bits
        self.mark(result, bits)
        schema = getattr(function, "_schema", None)
        if bits and schema is not None and schema.is_mutable:
            for argument, value in zip(schema.arguments, args, strict=False):
                if argument.alias_info is not None and argument.alias_info.is_write:
                    self.mark(value, bits)
        return result

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
