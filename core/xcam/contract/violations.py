"""Errors for a backend that violates the contract, and helpers that detect violations."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeGuard

import numpy as np

from xcam.contract.plugins import described
from xcam.contract.types import Array
from xcam.errors import ContractError, XcamError, first_line


def violation(backend: str, fact: str, required: str) -> ContractError:
    """Return the error: what the backend did, and what the contract requires instead."""
    return ContractError(
        f"{described(backend)} {fact}; the contract requires {required}: report it to the plugin's authors"
    )


def get_member(model: Any, name: str, backend: str) -> Any:
    """Return a member of a model, which may be a property that runs code. Raises ContractError."""
    return guarded(lambda: getattr(model, name), backend, f"its model's {name}")


def guarded(call: Callable[[], Any], backend: str, subject: str) -> Any:
    """Return the result of `call`; an error that is not raised on purpose is the plugin's: a ContractError."""
    try:
        return call()
    except (XcamError, MemoryError):
        raise
    except (Exception, SystemExit) as error:
        raise violation(backend, f"{subject} failed: {first_line(error)}", "a value") from error


def kind(value: Any) -> str:
    """Describe a value: `float64 (3, 8)`, `a torch Tensor`, `None`, `'text'`."""
    if is_array(value):
        return f"{value.dtype} {value.shape}"
    if value is None or isinstance(value, str | int | float):
        return repr(value)
    package = type(value).__module__.partition(".")[0]
    return f"a {type(value).__name__}" if package == "builtins" else f"a {package} {type(value).__name__}"


def is_array(value: Any) -> TypeGuard[Array]:
    """Return whether a value is a NumPy array without a mask."""
    return isinstance(value, np.ndarray) and not isinstance(value, np.ma.MaskedArray)


def are_strings(values: Any) -> bool:
    """Return whether a value is a sequence of strings."""
    return isinstance(values, Sequence) and not isinstance(values, str) and all(isinstance(v, str) for v in values)
