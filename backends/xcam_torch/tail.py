"""The tail behind a layer as a separate graph, run with any batch.

torch.export captures a module once; its graph is cut at any layer. Only the tail runs again for each variant of the
layer's value; the bypass values (skip connections) are computed once. Modules that torch.export cannot capture have no
tail, and are run whole.
"""

from __future__ import annotations

import copy
import threading
import warnings
from collections.abc import Collection, Iterable, Mapping, Sequence

import torch
import torch.utils._pytree as pytree
from torch import Tensor, fx, nn

from xcam.contract.caches import BoundedCache
from xcam.contract.graphs import reachable
from xcam.contract.layouts import shape_from_channels_first
from xcam.contract.outputs import cut_activation
from xcam_torch.calls import Call, module_names
from xcam_torch.cut import Forward
from xcam_torch.guard import running
from xcam_torch.outputs import OUTPUT_ACTIVATIONS, parts

STORAGE_ONLY = ("_to_copy", "clone", "alias")
"""Operations that only change how a value is stored."""

TAILS = 64
"""Tails that are kept: they have no weights of their own."""

CAPTURING = threading.Lock()
"""torch.export keeps state for the whole process: concurrent captures fail."""


class Graph:
    """A module's forward pass as a graph. It shares the module's parameters and therefore uses their current values."""

    def __init__(self, forward: Forward, graph: fx.GraphModule) -> None:
        self.module, self.graph = forward.module, graph
        self.nodes: Sequence[fx.Node] = list(graph.graph.nodes)
        self.x = next(node for node in self.nodes if node.op == "placeholder")
        self.outputs = _outputs(graph, forward.output_activations)
        self._forward = forward
        self._paths = module_names(forward.module)
        self._pointers = _pointers(forward.module)
        self._checked: BoundedCache[str, tuple[bool, bool]] = BoundedCache()
        self._tails: BoundedCache[tuple[str, ...], Tail] = BoundedCache(TAILS)
        self._expected: tuple[list[int], dict[str, Tensor]] | None = None
        """The module's outputs for the input of `check`, and the versions of its weights."""

    @property
    def current(self) -> bool:
        """Whether the module still holds the parameters that were captured: neither moved nor replaced."""
        return self._pointers == _pointers(self.module)

    def tail(self, constants: Sequence[str], at: Sequence[str], differentiate: bool, x: Tensor) -> Tail | None:
        """Return the tail behind some layers. None where it was not verified.

        Args:
            constants: the layers whose values are given.
            at: the layers whose values are asked for.
            differentiate: whether their gradients are, too.
            x: an input, to verify with.
        """
        calls = self._forward.calls
        if not all(self.check(calls[name], x)[0] for name in constants) or not all(
            self.check(calls[name], x)[1] for name in at
        ):
            return None
        starts = [name for name in at if differentiate and calls[name].layer.differentiable]
        return self._tails.get((*constants, "", *at, "", *starts), lambda: Tail(self, constants, at, starts))

    def node(self, name: str) -> fx.Node:
        """Return the node that computes a layer's value: the last of the layer's call that has its shape."""
        call = self._forward.calls[name]
        shape = shape_from_channels_first(call.layer.shape, call.layer.layout)
        key = self._paths[call.module], call.index
        return [n for n in self.nodes if key in _calls(n) and _is_float(n) and _shape(n)[1:] == shape][-1]

    def check(self, call: Call, x: Tensor) -> tuple[bool, bool]:
        """Return whether the tail behind a layer agrees with the whole module for a changed value; and whether the value does.

        Args:
            call: the layer.
            x: an input.
        """
        return self._checked.get(call.layer.name, lambda: self._check(call, x[:1]))

    def _check(self, call: Call, x: Tensor) -> tuple[bool, bool]:
        name, forward = call.layer.name, self._forward
        with running(self.module):
            try:
                two = torch.cat([x, x.flip(-1) * 0.5])
                pick = torch.as_tensor([1], device=x.device)
                versions = [0 if t.is_inference() else t._version for t in _tensors(self.module)]
                if self._expected is None or self._expected[0] != versions:
                    self._expected = versions, forward(two[pick])
                clean: list[Tensor] = []

                def noisy(value: Tensor) -> Tensor:
                    clean.append(value.clone())
                    generator = torch.Generator().manual_seed(0)
                    return (value * (2 * torch.rand(value.shape, generator=generator).to(value))).contiguous()

                expected = forward.cut(two[pick], [call], {name: noisy}, differentiate=False)
                tail = Tail(self, [name], [])
                outputs, _ = tail([expected.values[name]], tail.rows(tail.inner(two), two, pick))
                value = extract(self.graph, [self.x], [self.node(name)])(two[pick])[0]
                agrees = value.shape == clean[0].shape and bool(
                    (value - clean[0]).abs().max() <= 1e-4 * clean[0].abs().max()
                )
                return agrees and _same(outputs, expected.outputs, self._expected[1]), agrees
            except Exception:
                return False, False


class Tail:
    """The part of a graph behind some layers with given values."""

    def __init__(self, graph: Graph, constants: Sequence[str], at: Sequence[str], starts: Sequence[str] = ()) -> None:
        """Split a graph.

        Args:
            graph: the graph.
            constants: the layers with given values.
            at: the layers whose values are asked for. That of one which is computed from none of `given` is taken.
            starts: those of `at` from which torch records its graph.
        """
        sources, x = [graph.node(name) for name in constants], graph.x
        nodes = {name: graph.node(name) for name in at}
        stop = set(sources)
        behind = {node for source in sources for node in reachable([source], _users, stop - {source})}
        free: list[fx.Node] = []
        for node in graph.nodes:  # in the order of execution: the earliest ones are taken, the others computed
            if node in nodes.values() and node not in behind:
                free.append(node)
                behind |= set(reachable([node], _users, stop))
        outputs = [*graph.outputs.values(), *nodes.values()]
        passing = {node for node in reachable([x], _users) if node not in behind and _is_float(node)}
        read = reachable(outputs, _inputs, stop={*passing, *sources, *free})
        inner = [*free, *(node for node in graph.nodes if node in passing and node in read)]
        self._names, self._at = list(graph.outputs), list(nodes)
        self._head = extract(graph.graph, [x], inner) if inner else None
        self._tail = extract(graph.graph, [*sources, *inner], outputs, {nodes[name] for name in starts})
        batch = str(_shape(x)[0])
        self._row_by_row = all(
            len(_shape(node)) > 0
            and str(_shape(node)[0]) == batch
            and all(isinstance(n, int) for n in _shape(node)[1:])
            for node in inner
        )

    def inner(self, x: Tensor) -> list[Tensor]:
        """Return the values that the tail takes in addition to those given: bypass values, and those of layers ahead."""
        return list(self._head(x)) if self._head else []

    def rows(self, inner: list[Tensor], x: Tensor, pick: Tensor) -> list[Tensor]:
        """Return `inner` for chosen rows of `x`: computed again where it does not have one row per image."""
        return [t[pick] for t in inner] if self._row_by_row else self.inner(x[pick])

    def __call__(
        self, constants: Sequence[Tensor], inner: Sequence[Tensor]
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Run the tail.

        Args:
            constants: the given values. They are not written to, and not copied.
            inner: see `inner`.

        Returns:
            The outputs by name, as logits where an activation is cut off; and the values of the layers by name.
        """
        with torch.no_grad():  # until the first of `starts`
            results, count = self._tail(*constants, *inner), len(self._names)
        return dict(zip(self._names, results[:count], strict=True)), dict(zip(self._at, results[count:], strict=True))


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


def captured(forward: Forward, x: Tensor) -> Graph | None:
    """Return the graph of a module; None where torch.export fails, or the graph gives other outputs.

    Args:
        forward: the module's forward pass.
        x: a batch [N, C, H, W].
    """
    with running(forward.module):
        try:
            result = Graph(forward, _exported(forward.module, x[:1]))
            two = torch.cat([x[:1], x[:1].flip(-1) * 0.5])[[1, 0, 1]]
            outputs = extract(result.graph, [result.x], result.outputs.values())(two)
            pairs = zip(outputs, forward(two).values(), strict=True)
            same = all(float((a - b).abs().max()) <= 1e-4 * float(b.abs().max()) for a, b in pairs)
            return result if same else None
        except Exception:  # the exporter failed: the whole module is run instead
            return None


def _exported(module: nn.Module, x: Tensor) -> fx.GraphModule:
    """Return the exported graph of a module, for an image [1, C, H, W]."""
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
    return graph


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


def extract(
    graph: fx.GraphModule, inputs: Sequence[fx.Node], outputs: Iterable[fx.Node], starts: Collection[fx.Node] = ()
) -> fx.GraphModule:
    """Return the part of a graph between `inputs` and `outputs`, as a module that takes and returns tensors.

    torch's graph begins at the nodes `starts`.
    """
    outputs = list(outputs)
    needed = reachable(outputs, _inputs, stop=set(inputs))
    part = fx.Graph()

    def opened(node: fx.Node, value: fx.Node) -> fx.Node:
        return part.call_function(_start, (value,)) if node in starts else value

    taken = {node: part.placeholder(f"input_{i}") for i, node in enumerate(inputs)}
    copies = {node: opened(node, value) for node, value in taken.items()}
    for node in graph.graph.nodes:
        if node in needed and node not in copies:
            copies[node] = opened(node, part.node_copy(node, copies.__getitem__))
    part.output(tuple(copies[node] for node in outputs))
    return fx.GraphModule(graph, part)


def _start(value: Tensor) -> Tensor:
    """Return a value of which torch records what is computed from it: until the caller restores the mode."""
    torch.set_grad_enabled(True)
    return value if value.requires_grad else value.detach().requires_grad_()


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
    return tuple(tensor.data_ptr() for tensor in _tensors(module))


def _tensors(module: nn.Module) -> list[Tensor]:
    return [*module.parameters(), *module.buffers()]
