"""Tensors of a Keras model on torch: torch's graph of a pass, the softmax or sigmoid at its end, conversion to NumPy."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any

import keras
import torch
from torch import Tensor
from torch.autograd.graph import Node, get_gradient_edge
from torch.overrides import TorchFunctionMode

from xcam.contract.graphs import reachable
from xcam.contract.outputs import cut_activation
from xcam.contract.types import Array

OUTPUT_ACTIVATIONS = {"softmax": "softmax", "_softmax": "softmax", "sigmoid": "sigmoid", "special_expit": "sigmoid"}
STORAGE_ONLY = ("to", "float", "double", "contiguous")
"""Functions that change how values are stored, not the values."""


class EndActivation(TorchFunctionMode):
    """A recorder of the inputs of softmax and sigmoid in this thread, to identify the one that computes the model's output."""

    def __init__(self) -> None:
        super().__init__()
        self._steps: list[tuple[Tensor, str | None, Tensor]] = []

    def __torch_function__(self, function: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        value = function(*args, **(kwargs or {}))
        name = getattr(function, "__name__", "")
        if (
            (name in OUTPUT_ACTIVATIONS or name in STORAGE_ONLY)
            and args
            and isinstance(args[0], Tensor)
            and args[0] is not value
        ):
            self._steps.append((value, OUTPUT_ACTIVATIONS.get(name), args[0]))
        return value

    def logits(self, output: Tensor) -> tuple[Tensor, str | None]:
        """Return the input of the output's softmax or sigmoid and its name, or the output itself and None."""
        return cut_activation(output, self._activation_of)

    def _activation_of(self, value: Tensor) -> tuple[str | None, Tensor] | None:
        steps = (step for step in reversed(self._steps) if step[0] is value and step[2].is_floating_point())
        return next((step[1:] for step in steps), None)


def node_of(tensor: Tensor) -> Node:
    """Return the node of torch's graph that computed a tensor."""
    return get_gradient_edge(tensor).node


def ancestors(tensors: Sequence[Tensor], stop: Collection[Node] = ()) -> set[Node]:
    """Return the nodes of torch's graph that the tensors come from, except those that only `stop` needs."""
    starts = [node_of(t) for t in tensors if t.requires_grad]
    return set(reachable(starts, lambda node: [n for n, _ in node.next_functions if n is not None], stop))


def is_float(value: Any) -> bool:
    """Return whether a value is a tensor that can be differentiated."""
    return isinstance(value, Tensor) and value.is_floating_point()


def in_graph(value: Any) -> Any:
    """Return a value that is part of torch's graph: a float tensor without gradient becomes a leaf."""
    return value.detach().requires_grad_() if is_float(value) and not value.requires_grad else value


def replaced(value: Any, old: Tensor, new: Tensor) -> Any:
    """Return a layer's return value with the tensor `new` instead of `old`."""
    return keras.tree.map_structure(lambda t: new if t is old else t, value)


def float32(tensor: Tensor) -> Array:
    """Return a float32 NumPy copy."""
    array: Array = tensor.detach().to("cpu", torch.float32, copy=True).contiguous().numpy()
    return array
