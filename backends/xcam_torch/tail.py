"""The tail behind a layer as a separate graph: captured by torch.export, cut at the layer, run with any batch.

Only the tail runs again for each variant of the layer's value; the bypass values (skip connections) are computed once.
Modules that torch.export cannot capture have no tail, and are run whole.
"""

from __future__ import annotations

import copy
import threading
import warnings
from collections.abc import Iterable, Mapping, Sequence

import torch
import torch.utils._pytree as pytree
from torch import Tensor, fx, nn

from xcam.contract.graphs import reachable
from xcam.contract.layouts import shape_from_channels_first
from xcam.contract.outputs import cut_activation
from xcam_torch.calls import Call, module_names
from xcam_torch.cut import Forward
from xcam_torch.guard import running
from xcam_torch.outputs import OUTPUT_ACTIVATIONS, parts

STORAGE_ONLY = ("_to_copy", "clone", "alias")
"""Operations that only change how a value is stored."""

CAPTURING = threading.Lock()
"""torch.export keeps state for the whole process: concurrent captures fail."""


class Tail:
    """A captured tail. It shares the module's parameters and therefore uses their current values."""

    def __init__(
        self, module: nn.Module, graph: fx.GraphModule, cut: fx.Node, outputs: Mapping[str, fx.Node]
    ) -> None:
        """Split a captured graph at the node `cut`; `outputs` are the output nodes by name."""
        x = next(node for node in graph.graph.nodes if node.op == "placeholder")
        bypass = _bypass(graph, x, cut, outputs.values())
        self._pointers = _pointers(module)
        self._names = list(outputs)
        self._head = _extract(graph, [x], bypass) if bypass else None
        self._tail = _extract(graph, [cut, *bypass], outputs.values())
        batch = _shape(x)[0]
        self._row_by_row = all(
            len(_shape(node)) > 0
            and str(_shape(node)[0]) == str(batch)
            and all(isinstance(n, int) for n in _shape(node)[1:])
            for node in bypass
        )

    def fits(self, module: nn.Module) -> bool:
        """Return whether the module still holds the parameters that were captured: neither moved nor replaced."""
        return self._pointers == _pointers(module)

    def bypass(self, x: Tensor) -> list[Tensor]:
        """Return the bypass values for the batch `x`."""
        return list(self._head(x)) if self._head else []

    def rows(self, bypass: list[Tensor], x: Tensor, pick: Tensor) -> list[Tensor]:
        """Return the bypass values for chosen rows of `x`: computed again where they do not have one row per image."""
        return [t[pick] for t in bypass] if self._row_by_row else self.bypass(x[pick])

    def __call__(self, value: Tensor, bypass: Sequence[Tensor]) -> dict[str, Tensor]:
        """Return the outputs, as logits where an activation is cut off, for a value of the layer."""
        return dict(zip(self._names, self._tail(value, *bypass), strict=True))


def verified(forward: Forward, x: Tensor, call: Call) -> Tail | None:
    """Return a captured tail that agrees with the whole module, for changed values and chosen rows of two images.

    None where the module cannot be captured, or the tail gives other outputs.
    """
    with running(forward.module):
        tail = capture(forward, x[:1], call)
        if tail is None:
            return None
        try:
            two = torch.cat([x[:1], x[:1].flip(-1) * 0.5])
            pick = torch.as_tensor([1, 0, 1], device=x.device)
            plain = forward.cut(two[pick], call)
            generator = torch.Generator().manual_seed(0)
            noise = 2 * torch.rand(plain.leaf.shape, generator=generator).to(plain.leaf)
            changed = (plain.leaf.detach() * noise).contiguous()
            expected = forward.cut(two[pick], call, changed).outputs
            outputs = tail(changed, tail.rows(tail.bypass(two), two, pick))
            return tail if _same(outputs, expected, plain.outputs) else None
        except Exception:
            return None


def _same(outputs: Mapping[str, Tensor], expected: Mapping[str, Tensor], plain: Mapping[str, Tensor]) -> bool:
    """Return whether outputs agree: to a hundredth of the change that the changed value caused, or to rounding."""
    for name, value in expected.items():
        moved, error, size = (
            float(difference.detach().abs().max())
            for difference in (value - plain[name], value - outputs[name], value)
        )
        if error > max(1e-2 * moved, 1e-5 * size):
            return False
    return any(bool((value != plain[name]).any()) for name, value in expected.items())


def capture(forward: Forward, x: Tensor, call: Call) -> Tail | None:
    """Return the tail behind a call; None where torch.export fails or the layer is not found in its graph.

    Args:
        forward: the module's forward pass.
        x: one image [1, C, H, W].
        call: the call of the layer.
    """
    module = forward.module
    path = module_names(module)[call.module]
    try:
        with CAPTURING, warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")  # warnings of the exporter, which do not help a user
            # The exporter replaces parameters by fake tensors: only in a copy, as other threads use the module.
            shared = {id(t): t for t in (*module.parameters(), *module.buffers())}
            module = copy.deepcopy(module, shared)
            two = x.expand(2, *x.shape[1:]).contiguous()  # a batch of one would be taken for a constant
            program = torch.export.export(
                module, (two,), dynamic_shapes=({0: torch.export.Dim("batch", min=1)},), strict=False
            )
            # Operations that write in place are replaced: their effect would bypass the cut.
            graph = program.run_decompositions({}).module(check_guards=False)
        assert isinstance(graph, fx.GraphModule)
        cut = _cut(graph, call, path)
        outputs = _outputs(graph, forward.output_activations)
        return Tail(module, graph, cut, outputs)
    except Exception:  # the exporter failed: the whole module is run instead
        return None


def _cut(graph: fx.GraphModule, call: Call, path: str) -> fx.Node:
    """Return the node that computes the layer's value: the last of the layer's call that has its shape."""
    shape = shape_from_channels_first(call.layer.shape, call.layer.layout)
    nodes: list[fx.Node] = [
        n for n in graph.graph.nodes if (path, call.index) in _calls(n) and _is_float(n) and _shape(n)[1:] == shape
    ]
    return nodes[-1]


def _outputs(graph: fx.GraphModule, output_activations: Mapping[str, str | None]) -> dict[str, fx.Node]:
    """Return the output nodes by name, or the logits under them where an activation is cut off."""
    returned = next(node for node in graph.graph.nodes if node.op == "output").args[0]
    assert graph._out_spec is not None
    named = parts(pytree.tree_unflatten(list(returned), graph._out_spec))
    floats = {name: node for name, node in named.items() if isinstance(node, fx.Node) and _is_float(node)}
    if set(floats) != set(output_activations):
        raise ValueError(f"the captured outputs are {list(floats)}, the module's {list(output_activations)}")
    return {name: _logits(node) if output_activations[name] else node for name, node in floats.items()}


def _logits(output: fx.Node) -> fx.Node:
    def producer(node: fx.Node) -> tuple[str | None, fx.Node] | None:
        operation = _operation(node)
        if operation not in STORAGE_ONLY and operation not in OUTPUT_ACTIVATIONS:
            return None
        return OUTPUT_ACTIVATIONS.get(operation), node.all_input_nodes[0]

    logits, kind = cut_activation(output, producer)
    if kind is None:
        raise ValueError(f"no softmax or sigmoid computes {output}")
    return logits


def _bypass(graph: fx.GraphModule, x: fx.Node, cut: fx.Node, outputs: Iterable[fx.Node]) -> list[fx.Node]:
    """Return the float values computed from the input alone that the tail reads. Sizes are computed again from them."""
    behind, from_x = reachable([cut], _users), reachable([x], _users)
    passing = {node for node in from_x if node not in behind and _is_float(node)}
    read = reachable(outputs, _inputs, stop=passing | {cut})
    return [node for node in graph.graph.nodes if node in passing and node in read]


def _extract(graph: fx.GraphModule, inputs: Sequence[fx.Node], outputs: Iterable[fx.Node]) -> fx.GraphModule:
    """Return the part of a graph between `inputs` and `outputs`, as a module that takes and returns tensors."""
    outputs = list(outputs)
    needed = reachable(outputs, _inputs, stop=set(inputs))
    part = fx.Graph()
    copies = {node: part.placeholder(f"input_{i}") for i, node in enumerate(inputs)}
    for node in graph.graph.nodes:
        if node in needed and node not in copies:
            copies[node] = part.node_copy(node, copies.__getitem__)
    part.output(tuple(copies[node] for node in outputs))
    return fx.GraphModule(graph, part)


def _inputs(node: fx.Node) -> Sequence[fx.Node]:
    return node.all_input_nodes


def _users(node: fx.Node) -> Iterable[fx.Node]:
    return node.users


def _calls(node: fx.Node) -> set[tuple[str, int]]:
    """Return the module calls that a node belongs to, as (path, index of the call)."""
    calls = set()
    for key, (path, _) in (node.meta.get("nn_module_stack") or {}).items():
        _, at, index = key.rpartition("@")
        clean = ".".join(part for part in path.split(".") if part != "_orig_mod")
        calls.add((clean, int(index) if at and index.isdigit() else 0))
    return calls


def _operation(node: fx.Node) -> str:
    return getattr(node.target, "__name__", str(node.target)).split(".")[0]


def _is_float(node: fx.Node) -> bool:
    value = node.meta.get("val")
    return isinstance(value, Tensor) and value.is_floating_point()


def _shape(node: fx.Node) -> tuple[int, ...]:
    return tuple(node.meta["val"].shape)


def _pointers(module: nn.Module) -> tuple[int, ...]:
    return tuple(tensor.data_ptr() for tensor in (*module.parameters(), *module.buffers()))
