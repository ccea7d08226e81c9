"""Tensors of a Keras model on torch: torch's graph of a pass, the softmax or sigmoid at its end, conversion to NumPy."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import keras
import torch
from torch import Tensor
from torch.autograd.graph import Node, get_gradient_edge
from torch.overrides import TorchFunctionMode

from xcam.contract.graphs import cuts, reachable
from xcam.contract.outputs import cut_activation
from xcam.contract.types import Array

OUTPUT_ACTIVATIONS = {"softmax": "softmax", "_softmax": "softmax", "sigmoid": "sigmoid", "special_expit": "sigmoid"}
STORAGE_ONLY = ("to", "float", "double", "contiguous")
"""Functions that change how values are stored, not the values."""
SHAPE_ONLY = {
    *("zeros_like", "ones_like", "empty_like", "full_like", "rand_like", "randn_like"),
    *("new_zeros", "new_ones", "new_empty", "new_full"),
}
"""Functions that read the shape of their tensor, and not its values."""
SHAPE_OF_OTHERS = {"expand_as", "view_as", "reshape_as", "type_as"}
"""Functions that read the values of the first tensor, and the shape or type of the second."""
STEPS = ("Round", "Floor", "Ceil", "Trunc", "Sign")
"""How the names of nodes begin whose gradient is zero everywhere."""


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


class Flow(TorchFunctionMode):
    """A record of the tensors that each tensor was computed from in this thread, also where torch keeps no graph."""

    def __init__(self) -> None:
        super().__init__()
        self._tensors: dict[int, Tensor] = {}
        """By id, and alive, so that no other tensor gets the id."""
        self._sources: dict[int, set[int]] = {}
        self.source: Tensor | None = None
        """The model's input."""

    def __torch_function__(self, function: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        value = function(*args, **(kwargs or {}))
        name = getattr(function, "__name__", "")
        if name in SHAPE_ONLY:
            return value
        read = args[:1] if name in SHAPE_OF_OTHERS else [*args, *(kwargs or {}).values()]
        written = _tensors(value)
        if name == "__setitem__" or (name.endswith("_") and not name.endswith("__")):
            written += [t for t in (args[0], args[0]._base) if isinstance(t, Tensor)]
        sources = {self._id(t) for t in _tensors(read)}
        for tensor in written:
            self._sources.setdefault(self._id(tensor), set()).update(sources)
        return value

    def _id(self, tensor: Tensor) -> int:
        self._tensors[id(tensor)] = tensor
        return id(tensor)

    def read_by(self, output: Tensor) -> set[Node | int]:
        """Return the ids of the tensors that an output is computed from, and their nodes of torch's graph.

        Functions that Python does not show (scripted modules) are in torch's graph.
        """
        leaves = {node_of(t): key for key, t in self._tensors.items() if t.requires_grad and t.is_leaf}

        def sources(item: Node | int) -> list[Node | int]:
            if isinstance(item, Node):
                return [*_inputs(item), *([leaves[item]] if item in leaves else [])]
            tensor = self._tensors.get(item, output)
            return [*self._sources.get(item, ()), *([node_of(tensor)] if tensor.requires_grad else [])]

        starts: list[Node | int] = [id(output)]
        return set(reachable(starts, sources))

    def item(self, tensor: Tensor) -> Node | int:
        """Return the item of a value in the graph of `passed`: its node of torch's graph, or its id where it has none."""
        return node_of(tensor) if tensor.requires_grad else id(tensor)

    def passed(self, output: Tensor) -> set[Node | int]:
        """Return the items through which every path from the input to an output leads; none where values were overwritten.

        A write in place gives a tensor another node, so that the order of those that read it before is not known any more.
        """
        if self.source is None:
            return set()
        sources: dict[Node | int, dict[Node | int, None]] = {}
        for key, tensor in self._tensors.items():
            reads = sources.setdefault(self.item(tensor), {})
            reads.update((self.item(self._tensors[source]), None) for source in self._sources.get(key, ()))

        def inputs(item: Node | int) -> list[Node | int]:
            before = list(sources.get(item, ()))
            before += _inputs(item) if isinstance(item, Node) else []
            return [other for other in dict.fromkeys(before) if other != item]

        order = _ordered(self.item(output), inputs)
        return cuts(order, inputs, self.item(self.source), self.item(output)) if order else set()


def _ordered(end: Node | int, inputs: Callable[[Node | int], list[Node | int]]) -> list[Node | int]:
    """Return the items that `end` is computed from, each after those that it reads; [] where such an order does not exist."""
    result: dict[Node | int, None] = {}
    open_items: set[Node | int] = set()
    stack: list[tuple[Node | int, bool]] = [(end, False)]
    while stack:
        item, done = stack.pop()
        if done:
            open_items.discard(item)
            result[item] = None
        elif item in open_items:
            return []
        elif item not in result:
            open_items.add(item)
            stack.append((item, True))
            stack += [(other, False) for other in inputs(item) if other not in result]
    return list(result)


def _tensors(value: Any) -> list[Tensor]:
    return [t for t in keras.tree.flatten(value) if isinstance(t, Tensor)]


def node_of(tensor: Tensor) -> Node:
    """Return the node of torch's graph that computed a tensor."""
    return get_gradient_edge(tensor).node


def ancestors(tensors: Sequence[Tensor], stop: Collection[Node] = ()) -> set[Node]:
    """Return the nodes of torch's graph that the tensors come from, except those that only `stop` needs."""
    return set(reachable([node_of(t) for t in tensors if t.requires_grad], _inputs, stop))


def differentiable(tensors: Sequence[Tensor]) -> set[Node]:
    """Return the nodes of torch's graph to which a gradient leads from the tensors."""
    starts = [node_of(t) for t in tensors if t.requires_grad]
    return set(reachable(starts, lambda node: [] if node.name().startswith(STEPS) else _inputs(node)))


def _inputs(node: Node) -> list[Node]:
    return [n for n, _ in node.next_functions if n is not None]


def token_shares(outputs: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> dict[str, dict[str, float]]:
    """Return for each output the share of each value's tokens at which its gradient arrives.

    Args:
        outputs: by name.
        values: [N, T, C], by name.
    """
    tensors = {name: value for name, value in values.items() if value.requires_grad}
    shares = {}
    for output, tensor in outputs.items():
        if not tensors or not tensor.requires_grad:
            continue
        mixture = 1 + torch.rand(tensor.shape, generator=torch.Generator().manual_seed(0)).to(tensor)
        try:
            gradients = torch.autograd.grad([tensor], [*tensors.values()], [mixture], True, allow_unused=True)
        except RuntimeError:  # reentrant checkpoints refuse gradients at inner values
            continue
        shares[output] = {
            name: float((g != 0).any(-1).float().mean())
            for name, g in zip(tensors, gradients, strict=True)
            if g is not None
        }
    return shares


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
