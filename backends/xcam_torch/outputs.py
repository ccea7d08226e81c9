"""What a module returns, as tensors by name; and the softmax or sigmoid at its end, taken off."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from xcam.contract import Outputs
from xcam.errors import ModelError

ENDS = {"softmax": "softmax", "_softmax": "softmax", "sigmoid": "sigmoid", "special_expit": "sigmoid"}
SEEN_THROUGH = ("to", "float", "double", "contiguous")
"""Functions that change how values are kept, not what they are."""


def parts(value: Any) -> dict[str, Any]:
    """What a forward pass returned, by name: `output` for one thing alone, else places or keys."""
    if isinstance(value, Mapping):
        return {str(key): part for key, part in value.items()}
    if hasattr(value, "_asdict"):
        return dict(value._asdict())
    if isinstance(value, tuple | list):
        return {str(place): part for place, part in enumerate(value)}
    return {"output": value}


def logits_first(found: dict[str, Any]) -> dict[str, Any]:
    """The same, with `logits` ahead of the others: the output that is explained when none is named."""
    return {"logits": found["logits"], **found} if "logits" in found else found


def tensors(value: Any, name: str = "the model") -> dict[str, Tensor]:
    """The float tensors that a forward pass returned, by name; `logits` first where there is one.

    Parts of a tuple are called by their place, parts of a dict or a Hugging Face output by their key. Raises ModelError
    when there is none.
    """
    found = parts(value)
    floats = {key: part for key, part in found.items() if isinstance(part, Tensor) and part.is_floating_point()}
    if not floats:
        kinds = ", ".join(str(p.dtype).removeprefix("torch.") for p in found.values() if isinstance(p, Tensor))
        raise ModelError(
            f"{name} returns {f'tensors of {kinds}' if kinds else type(value).__name__}, and a score needs a float "
            "tensor; wrap it in a module that returns its class scores"
        )
    return logits_first(floats)


def first_float(value: Any) -> Tensor | None:
    """The tensor that stands for a layer's value: itself, or the first float tensor in a tuple, list or dict."""
    if isinstance(value, Tensor):
        return value if value.is_floating_point() else None
    parts = value.values() if isinstance(value, Mapping) else value if isinstance(value, tuple | list) else ()
    return next((found for part in parts if (found := first_float(part)) is not None), None)


def replaced(value: Any, old: Tensor, new: Tensor) -> Any:
    """`value` with `new` where `old` stood."""
    if value is old:
        return new
    if isinstance(value, Mapping):
        changed = type(value)(value)  # type: ignore[call-arg]
        for key, part in value.items():
            changed[key] = replaced(part, old, new)  # type: ignore[index]
        return changed
    if isinstance(value, tuple | list):
        parts = [replaced(part, old, new) for part in value]
        return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
    return value


class EndActivation(TorchFunctionMode):
    """Notes the input of every softmax and sigmoid of this thread, to find the one whose output is the model's."""

    def __init__(self) -> None:
        super().__init__()
        self._seen: list[tuple[Tensor, Tensor, str | None]] = []

    def __torch_function__(self, function: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        value = function(*args, **(kwargs or {}))
        name = getattr(function, "__name__", "").split(".")[0]
        if (name in ENDS or name in SEEN_THROUGH) and args and isinstance(args[0], Tensor):
            self._seen.append((value, args[0], ENDS.get(name)))
        return value

    def logits(self, output: Tensor) -> tuple[Tensor, str | None]:
        """The tensor under the output's softmax or sigmoid and its name, or the output itself and None."""
        look = output
        for value, given, kind in reversed(self._seen):
            if value is look and given.is_floating_point():
                if kind:
                    return given, kind
                look = given
        return output, None


def float32(tensor: Tensor) -> Any:
    """float32 NumPy, on the CPU, in memory of its own."""
    return tensor.detach().to("cpu", torch.float32, copy=True).contiguous().numpy()


def arrays(outputs: Mapping[str, Tensor]) -> Outputs:
    """As the contract has them: one array, or a mapping where there are several."""
    made = {name: float32(tensor) for name, tensor in outputs.items()}
    return made if len(made) > 1 else next(iter(made.values()))
