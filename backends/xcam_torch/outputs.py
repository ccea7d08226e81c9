"""The outputs of a module as tensors by name, and the softmax or sigmoid at their end."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from xcam.contract import Array
from xcam.contract.graphs import reachable
from xcam.contract.outputs import cut_activation, main_first
from xcam.errors import ModelError

OUTPUT_ACTIVATIONS = {"softmax": "softmax", "_softmax": "softmax", "sigmoid": "sigmoid", "special_expit": "sigmoid"}
STORAGE_ONLY = ("to", "float", "double", "contiguous")
"""Functions that only change how a value is stored."""
SHAPES = ("squeeze", "unsqueeze", "flatten", "view", "reshape", "ravel")
"""Functions that only change the shape: followed where there is one number for each row."""


def parts(value: Any) -> dict[str, Any]:
    """Return the parts of a returned value by name: keys, fields or positions; `output` for a single value.

    Where all of them have parts themselves, these are returned: `0.1` is the second of the first. Dictionaries behind a
    result of another kind are left out: they hold the raw predictions for a loss.
    """
    if isinstance(value, Mapping):
        named = {str(key): part for key, part in value.items()}
    elif hasattr(value, "_asdict"):
        named = dict(value._asdict())
    elif isinstance(value, tuple | list):
        is_first = not value or isinstance(value[0], Mapping)
        named = {str(i): part for i, part in enumerate(value) if is_first or not isinstance(part, Mapping)}
        if len(value) > len(named) == 1 and isinstance(value[0], tuple | list):
            return parts(value[0])
    else:
        return {"output": value}
    if not all(isinstance(part, Mapping | tuple | list) for part in named.values()):
        return named
    return {f"{key}.{name}": part for key, inner in named.items() for name, part in parts(inner).items()}


def main_output_first(logits: Mapping[str, tuple[Tensor, str | None]]) -> dict[str, str | None]:
    """Return the activation of each output, the main output first: see xcam.contract.outputs.main_first."""
    return main_first(
        {name: kind for name, (_, kind) in logits.items()},
        {name: value.shape for name, (value, _) in logits.items()},
        {name: value.grad_fn for name, (value, _) in logits.items()},
        lambda node: reachable(
            [node], lambda node: [before for before, _ in node.next_functions if before is not None]
        ),
    )


def tensors(value: Any, name: str = "the model") -> dict[str, Tensor]:
    """Return the float tensors of a returned value by name.

    Parts of a tuple are named by their position, parts of a dict or of a Hugging Face output by their key.

    Raises:
        ModelError: none of them is a float tensor.
    """
    named = parts(value)
    floats = {key: part for key, part in named.items() if isinstance(part, Tensor) and part.is_floating_point()}
    if not floats:
        kinds = ", ".join(str(p.dtype).removeprefix("torch.") for p in named.values() if isinstance(p, Tensor))
        raise ModelError(
            f"cannot explain {name}: it returns {f'tensors of {kinds}' if kinds else type(value).__name__}, and a score "
            "needs a float tensor; wrap it in a module that returns its class scores"
        )
    return floats


def check_rows(value: Any, rows: int, name: str) -> None:
    """Check that a returned value has an entry for each of `rows` images in every tensor.

    Raises:
        ModelError: it is a list with one dictionary for each image, as detectors return, and not raw scores.
    """
    if not (isinstance(value, list) and len(value) == rows and all(isinstance(part, Mapping) for part in value)):
        return
    if rows == 1 or any(isinstance(t, Tensor) and len(t) != rows for part in value for t in part.values()):
        raise ModelError(
            f"cannot explain {name}: it returns a list with the detections of each image, whose number depends on the "
            "image; wrap it in a module that returns the boxes [N, B, 4] and the scores [N, B, classes] of its raw head"
        )


def first_float(value: Any) -> Tensor | None:
    """Return the tensor that is taken as a layer's value: itself, or the first float tensor in a tuple, list or dict.

    A quantised tensor represents float numbers too.
    """
    if isinstance(value, Tensor):
        return value if value.is_floating_point() or value.is_quantized else None
    parts = value.values() if isinstance(value, Mapping) else value if isinstance(value, tuple | list) else ()
    return next((tensor for part in parts if (tensor := first_float(part)) is not None), None)


def replaced(value: Any, old: Tensor, new: Tensor) -> Any:
    """Return `value` with `old` replaced by `new`."""
    if value is old:
        return new
    if isinstance(value, Mapping):
        changed: Any = type(value)(value)  # type: ignore[call-arg]
        for key, part in value.items():
            changed[key] = replaced(part, old, new)
        return changed
    if isinstance(value, tuple | list):
        parts = [replaced(part, old, new) for part in value]
        return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
    return value


class EndActivation(TorchFunctionMode):
    """Record the input of every softmax and sigmoid of this thread, to identify those at the model's outputs."""

    def __init__(self) -> None:
        super().__init__()
        self._producers: dict[int, tuple[str | None, Tensor]] = {}
        self._values: list[Tensor] = []  # alive, so that no other tensor gets its id

    def __torch_function__(self, function: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        value = function(*args, **(kwargs or {}))
        name = getattr(function, "__name__", "").split(".")[0]
        if name in (*OUTPUT_ACTIVATIONS, *STORAGE_ONLY, *SHAPES) and args and isinstance(args[0], Tensor):
            source = args[0]
            if name in SHAPES and not (source.ndim and source.numel() == len(source) == value.numel()):
                return value
            if value is not source and source.is_floating_point():
                self._producers[id(value)] = OUTPUT_ACTIVATIONS.get(name), source
                self._values.append(value)
        return value

    def pass_on(self, value: Tensor, source: Tensor) -> None:
        """Note that a value is another one as it is."""
        self._producers[id(value)] = None, source
        self._values.append(value)

    def logits(self, output: Tensor) -> tuple[Tensor, str | None]:
        """Return the input of the output's softmax or sigmoid and its name, or the output itself and None."""
        logits, kind = cut_activation(output, lambda tensor: self._producers.get(id(tensor)))
        if logits.shape == output.shape:
            return logits, kind
        with torch.set_grad_enabled(logits.requires_grad):  # as in the model, whatever mode the caller is in
            return logits.reshape(output.shape), kind


def dequantized(tensor: Tensor) -> Tensor:
    """Return a tensor in floating point."""
    return tensor.dequantize() if tensor.is_quantized else tensor


def requantized(value: Tensor, like: Tensor) -> Tensor:
    """Return a float tensor quantised as another one is; unchanged where that is a float tensor."""
    if not like.is_quantized:
        return value
    if like.qscheme() in (torch.per_tensor_affine, torch.per_tensor_symmetric):
        return torch.quantize_per_tensor(value, like.q_scale(), like.q_zero_point(), like.dtype)
    scales, zeros, axis = like.q_per_channel_scales(), like.q_per_channel_zero_points(), like.q_per_channel_axis()
    return torch.quantize_per_channel(value, scales, zeros, axis, like.dtype)


def float32(tensor: Tensor) -> Array:
    """Return a tensor as a float32 NumPy copy on the CPU."""
    tensor = dequantized(tensor)
    array: Array = tensor.detach().to("cpu", torch.float32, copy=True).contiguous().numpy()
    return array
