"""What follows a layer, as a graph of its own: captured by torch.export, cut at the layer, run with any batch.

Only the tail is run again for each variant of the layer's value; what passes the layer by (skip connections) is
computed once and handed in. Models that torch.export cannot capture have no tail, and are run whole.
"""

from __future__ import annotations

import copy
import threading
import warnings
from collections.abc import Iterable, Mapping, Sequence

import torch
import torch.utils._pytree as pytree
from torch import Tensor, fx, nn

from xcam_torch.guard import running
from xcam_torch.opening import cut_open
from xcam_torch.outputs import ENDS, logits_first, parts
from xcam_torch.recording import Call, Recording, module_names

SEEN_THROUGH = ("_to_copy", "clone", "alias")
"""Operations that change how values are kept, not what they are."""

_capturing = threading.Lock()
"""torch.export keeps state for the whole process: two captures at once break each other."""


class Tail:
    """A captured tail. Holds the module's own parameters, so new values in them count."""

    def __init__(
        self, module: nn.Module, graph: fx.GraphModule, cut: fx.Node, outputs: Mapping[str, fx.Node]
    ) -> None:
        x = next(node for node in graph.graph.nodes if node.op == "placeholder")
        frontier = _frontier(graph, x, cut, outputs.values())
        self._pointers = _pointers(module)
        self._names = list(outputs)
        self._head = _extract(graph, [x], frontier) if frontier else None
        self._tail = _extract(graph, [cut, *frontier], outputs.values())
        batch = _shape(x)[0]
        self._row_by_row = all(
            len(_shape(node)) > 0
            and str(_shape(node)[0]) == str(batch)
            and all(isinstance(n, int) for n in _shape(node)[1:])
            for node in frontier
        )

    def fits(self, module: nn.Module) -> bool:
        """Whether the module still holds the parameters that were captured: not moved, not exchanged."""
        return self._pointers == _pointers(module)

    def frontier(self, x: Tensor) -> list[Tensor]:
        """The values that pass the layer by, for the batch `x`."""
        return list(self._head(x)) if self._head else []

    def rows(self, frontier: list[Tensor], x: Tensor, pick: Tensor) -> list[Tensor]:
        """The frontier for chosen rows of `x`: taken from it, or made anew where it is not one row for each picture."""
        return [t[pick] for t in frontier] if self._row_by_row else self.frontier(x[pick])

    def __call__(self, value: Tensor, frontier: Sequence[Tensor]) -> dict[str, Tensor]:
        """The outputs (logits where an end was seen) for a value of the layer."""
        return dict(zip(self._names, self._tail(value, *frontier), strict=True))


def verified(module: nn.Module, x: Tensor, call: Call, recording: Recording, name: str) -> Tail | None:
    """A captured tail that agrees with the whole model, with changed values put in, for chosen rows of two pictures.

    None where the model cannot be captured, or the tail says something else.
    """
    with running(module):
        tail = capture(module, x[:1], call, module_names(module)[call.module], recording.activations)
        if tail is None:
            return None
        try:
            two = torch.cat([x[:1], x[:1].flip(-1) * 0.5])
            pick = torch.as_tensor([1, 0, 1], device=x.device)
            plain = cut_open(module, two[pick], call, recording, name)
            generator = torch.Generator().manual_seed(0)
            noise = 2 * torch.rand(plain.leaf.shape, generator=generator).to(plain.leaf)
            changed = (plain.leaf.detach() * noise).contiguous()
            expected = cut_open(module, two[pick], call, recording, name, changed).outputs
            found = tail(changed, tail.rows(tail.frontier(two), two, pick))
            return tail if _same(found, expected, plain.outputs) else None
        except Exception:
            return None


def _same(found: Mapping[str, Tensor], expected: Mapping[str, Tensor], plain: Mapping[str, Tensor]) -> bool:
    """Equal where the changed value moved the outputs: to a hundredth of how far it moved them, or to rounding."""
    for name, value in expected.items():
        moved, error, size = (
            float(difference.detach().abs().max()) for difference in (value - plain[name], value - found[name], value)
        )
        if error > max(1e-2 * moved, 1e-5 * size):
            return False
    return any(bool((value != plain[name]).any()) for name, value in expected.items())


def capture(
    module: nn.Module, x: Tensor, call: Call, path: str, activations: Mapping[str, str | None]
) -> Tail | None:
    """The tail behind `call` of the module at `path`; None where torch.export or the cut cannot be made.

    x: one picture [1, C, H, W]. activations: what is cut off each output, by its name.
    """
    try:
        with _capturing, warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")  # of the exporter's own making, nothing a user could act on
            # The exporter puts fakes in the place of parameters: in a copy that shares them, for other threads are running.
            shared = {id(t): t for t in (*module.parameters(), *module.buffers())}
            module = copy.deepcopy(module, shared)
            two = x.expand(2, *x.shape[1:]).contiguous()  # a batch of one would be taken for a constant
            program = torch.export.export(
                module, (two,), dynamic_shapes=({0: torch.export.Dim("batch", min=1)},), strict=False
            )
            # Without operations that write in place: their effect would pass the cut unseen.
            graph = program.run_decompositions({}).module(check_guards=False)
        cut = _cut(graph, call, path)
        outputs = _outputs(graph, activations)
        return Tail(module, graph, cut, outputs)
    except Exception:  # whatever the exporter stumbles over: the model is run whole instead
        return None


def _cut(graph: fx.GraphModule, call: Call, path: str) -> fx.Node:
    """The node that makes the layer's value: the last of the layer's call that has its shape."""
    shape = call.layer.shape
    native = shape if call.layer.layout == "channels_first" else (*shape[1:], shape[0])
    fit = [
        n for n in graph.graph.nodes if (path, call.index) in _calls(n) and _is_float(n) and _shape(n)[1:] == native
    ]
    return fit[-1]


def _outputs(graph: fx.GraphModule, activations: Mapping[str, str | None]) -> dict[str, fx.Node]:
    """The output nodes by name, seen through the softmax or sigmoid that is cut off."""
    said = next(node for node in graph.graph.nodes if node.op == "output").args[0]
    named = logits_first(parts(pytree.tree_unflatten(list(said), graph._out_spec)))
    floats = {name: node for name, node in named.items() if isinstance(node, fx.Node) and _is_float(node)}
    if list(floats) != list(activations):
        raise ValueError(f"the captured outputs are {list(floats)}, the model's {list(activations)}")
    return {name: _logits(node) if activations[name] else node for name, node in floats.items()}


def _logits(node: fx.Node) -> fx.Node:
    while _operation(node) in SEEN_THROUGH:
        node = node.all_input_nodes[0]
    if _operation(node) not in ENDS:
        raise ValueError(f"no softmax or sigmoid makes {node}")
    return node.all_input_nodes[0]


def _frontier(graph: fx.GraphModule, x: fx.Node, cut: fx.Node, outputs: Iterable[fx.Node]) -> list[fx.Node]:
    """The float values made from the input alone that the tail reads. Sizes are computed again from such values."""
    behind, from_x = _following(cut), _following(x)
    found: set[fx.Node] = set()
    seen = {cut}
    todo = list(outputs)
    while todo:
        node = todo.pop()
        if node in seen:
            continue
        seen.add(node)
        if node in from_x and node not in behind and _is_float(node):
            found.add(node)
        else:
            todo.extend(node.all_input_nodes)
    return [node for node in graph.graph.nodes if node in found]


def _following(start: fx.Node) -> set[fx.Node]:
    """`start` and every node that is computed from it."""
    seen = {start}
    todo = [start]
    while todo:
        new = [user for user in todo.pop().users if user not in seen]
        seen.update(new)
        todo.extend(new)
    return seen


def _extract(graph: fx.GraphModule, inputs: Sequence[fx.Node], outputs: Iterable[fx.Node]) -> fx.GraphModule:
    """The part of a graph between `inputs` and `outputs`, as a module that takes and returns tensors."""
    outputs = list(outputs)
    needed: set[fx.Node] = set(inputs)
    todo = list(outputs)
    while todo:
        node = todo.pop()
        if node not in needed:
            needed.add(node)
            todo.extend(node.all_input_nodes)
    made = fx.Graph()
    copies = {node: made.placeholder(f"input_{i}") for i, node in enumerate(inputs)}
    for node in graph.graph.nodes:
        if node in needed and node not in copies:
            copies[node] = made.node_copy(node, copies.__getitem__)
    made.output(tuple(copies[node] for node in outputs))
    return fx.GraphModule(graph, made)


def _calls(node: fx.Node) -> set[tuple[str, int]]:
    """The module calls that a node belongs to, as (path, which call)."""
    found = set()
    for key, (path, _) in (node.meta.get("nn_module_stack") or {}).items():
        _, at, index = key.rpartition("@")
        clean = ".".join(part for part in path.split(".") if part != "_orig_mod")
        found.add((clean, int(index) if at and index.isdigit() else 0))
    return found


def _operation(node: fx.Node) -> str:
    return getattr(node.target, "__name__", str(node.target)).split(".")[0]


def _is_float(node: fx.Node) -> bool:
    value = node.meta.get("val")
    return isinstance(value, Tensor) and value.is_floating_point()


def _shape(node: fx.Node) -> tuple[int, ...]:
    return tuple(node.meta["val"].shape)


def _pointers(module: nn.Module) -> tuple[int, ...]:
    return tuple(tensor.data_ptr() for tensor in (*module.parameters(), *module.buffers()))
