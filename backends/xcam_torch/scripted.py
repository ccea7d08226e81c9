"""A TorchScript module as a torch.nn.Module whose parts can be hooked.

A script runs in torch's interpreter, where no hook is called. Here the graph of each module is run node by node: a call of
a part becomes a Python call of that part, and every other operation runs in torch's interpreter as a function of its own.
"""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from xcam.errors import ModelError
from xcam_torch.outputs import OUTPUT_ACTIVATIONS

MERGED = (
    "its parts were merged into one graph (torch.jit.freeze, torch.jit.optimize_for_inference), and no layer is left; "
    "save the script before that step, or export the original module with torch.export.save to a .pt2 file"
)

Values = dict[str, Any]
"""The values of a graph by their names."""

PYTHON: dict[str, Callable[..., Any]] = {
    "prim::ListConstruct": lambda *values: list(values),
    "prim::TupleConstruct": lambda *values: values,
    "prim::DictConstruct": lambda *values: dict(zip(values[::2], values[1::2], strict=True)),
    "prim::unchecked_cast": lambda value: value,
    "prim::Uninitialized": lambda: None,
    "aten::append": lambda values, value: values.append(value) or values,
    "aten::extend": lambda values, others: values.extend(others),
    "aten::_set_item": lambda values, key, value: values.__setitem__(key, value) or values,
}
"""Operations of lists, tuples and mappings: torch's interpreter would write to a copy of them."""
OF_ANY: dict[str, Callable[..., Any]] = {
    "aten::__getitem__": operator.getitem,
    "aten::__contains__": operator.contains,
    "aten::len": len,
    "aten::add": operator.add,
    "aten::list": list,
    "aten::slice": lambda values, start, end, step: values[start:end:step],
}
"""Operations of lists and mappings of any type, which torch's interpreter does not take from Python."""
UNPACK = ("prim::ListUnpack", "prim::TupleUnpack")


class Scripted(nn.Module):
    """A script module, opened into its parts. It shares the script's parameters and buffers."""

    def __init__(self, script: Any) -> None:
        super().__init__()
        self.original_name = script.original_name
        self.training = bool(getattr(script, "training", False))
        self._plan = _Plan(script)
        for name, parameter in script.named_parameters(recurse=False):
            self.register_parameter(name, nn.Parameter(parameter.detach(), parameter.requires_grad))
        for name, buffer in script.named_buffers(recurse=False):
            self.register_buffer(name, buffer)
        for name, part in script.named_children():
            self.add_module(name, Scripted(part))

    def forward(self, x: Any, *others: Any, method: str = "forward") -> Any:
        """Run the graph of a method. In traced modules the second call of a part is its method `forward1`."""
        block, arguments = self._plan.method(method), (x, *others)
        defaults = self._plan.defaults(method)[len(arguments) + 1 :]
        results = _run(block, dict(zip(block.inputs, (self, *arguments, *defaults), strict=True)))
        return results[0] if len(results) == 1 else tuple(results)

    @property
    def arguments(self) -> list[tuple[str, bool, Any]]:
        """The arguments of forward: name, whether it has a default, and the default."""
        listed = self._plan.script._c._get_method("forward").schema.arguments[1:]
        return [(a.name, a.has_default_value(), a.default_value if a.has_default_value() else None) for a in listed]

    def attribute(self, name: str) -> Any:
        """Return a weight, a part, the mode, or one of the script's settings."""
        is_part = name == "training" or any(
            name in names for names in (self._parameters, self._buffers, self._modules)
        )
        return getattr(self if is_part else self._plan.script, name)


def opened(script: Any) -> Scripted:
    """Return a script module, opened into its parts. Raises ModelError."""
    if not any(True for _ in script.children()):
        raise ModelError(f"cannot explain {script.original_name}: {MERGED}")
    return Scripted(script)


@dataclass
class _Block:
    """A graph, or a block inside a node."""

    inputs: list[str]
    steps: list[_Step]
    outputs: list[str]


@dataclass
class _Step:
    """A node."""

    kind: str
    inputs: list[str]
    outputs: list[str]
    detail: Any = None
    """A constant, the name of an attribute or method, the blocks, or a function of the inputs."""


class _Plan:
    """The graphs of a script module. Copies of a Scripted share it: they have their own weights, and its settings."""

    def __init__(self, script: Any) -> None:
        self.script = script
        self._blocks: dict[str, _Block] = {}

    def __deepcopy__(self, _: Any) -> _Plan:
        return self

    def defaults(self, name: str) -> list[Any]:
        """Return the default of each argument of a method; None where it has none."""
        arguments = self.script._c._get_method(name).schema.arguments
        return [argument.default_value if argument.has_default_value() else None for argument in arguments]

    def method(self, name: str) -> _Block:
        """Return the graph of a method."""
        if name not in self._blocks:
            self._blocks[name] = _block(self.script._c._get_method(name).graph)
        return self._blocks[name]


def _block(block: Any) -> _Block:
    return _Block(_names(block.inputs()), [_step(node) for node in block.nodes()], _names(block.outputs()))


def _names(values: Any) -> list[str]:
    return [value.debugName() for value in values]


def _step(node: Any) -> _Step:
    kind, inputs = node.kind(), _names(node.inputs())
    detail: Any = None
    if kind == "prim::Constant":
        detail = node.output().toIValue()
    elif kind in ("prim::GetAttr", "prim::CallMethod"):
        detail = node.s("name")
    elif kind in ("prim::If", "prim::Loop"):
        detail = [_block(block) for block in node.blocks()]
    elif kind in PYTHON:
        detail = PYTHON[kind]
    elif kind not in UNPACK:
        inputs, detail = _function(node)
    return _Step(kind, inputs, _names(node.outputs()), detail)


def _function(node: Any) -> tuple[list[str], Callable[..., Any]]:
    """Return a node as a function of its own, and the names of its arguments. Raises ModelError."""
    kind, names = node.kind(), _names(node.inputs())
    namespace, _, operation = kind.partition("::")
    if kind == "prim::CallFunction":
        path = next(node.inputs()).type().annotation_str.removeprefix("__torch__.")
        if (python := _python_function(path, len(names) - 1)) is not None:
            return names[1:], python
    elif operation in OUTPUT_ACTIVATIONS and hasattr(torch, operation):  # a call that EndActivation sees
        return names, getattr(torch, operation)
    elif namespace != "prim":
        return names, _operation(namespace, operation, torch._C.parse_schema(node.schema()))
    graph: Any = torch._C.Graph()
    copies: dict[str, Any] = {}
    for value in node.inputs():
        name = value.debugName()
        if name in copies:
            continue
        if value.type().kind() == "FunctionType":
            copies[name] = graph.appendNode(graph.createClone(value.node(), lambda other: other)).output()
        else:
            copies[name] = graph.addInput()
            copies[name].setType(value.type())
    clone = graph.appendNode(graph.createClone(node, lambda value: copies[value.debugName()]))
    for output in clone.outputs():
        graph.registerOutput(output)
    arguments = [name for name, copy in copies.items() if copy.type().kind() != "FunctionType"]
    return arguments, torch._C._create_function_from_graph("operation", graph)


def _python_function(path: str, count: int) -> Callable[..., Any] | None:
    """Return torch's own function of a path, where it takes `count` arguments; None for others."""
    module, _, name = path.rpartition(".")
    if module != "torch.nn.functional":
        return None
    function: Callable[..., Any] | None = getattr(nn.functional, name, None)
    try:
        assert function is not None
        inspect.signature(function).bind(*range(count))
    except (AssertionError, TypeError, ValueError):
        return None
    return function


def _operation(namespace: str, name: str, schema: Any) -> Callable[..., Any]:
    """Return an operation of torch, in the overload of a schema, as a function of positional arguments."""
    types = [str(argument.type) for argument in schema.arguments]
    of_any = any(kind.startswith(("List[t", "Dict[", "t")) for kind in types)
    writes = [argument.alias_info is not None and argument.alias_info.is_write for argument in schema.arguments]
    if of_any and schema.name in OF_ANY and not any(writes):
        return OF_ANY[schema.name]
    if of_any or any(write and "List" in kind for kind, write in zip(types, writes, strict=True)):
        raise ModelError(
            f"cannot explain the TorchScript module: it uses {schema.name}, which xcam cannot follow; export the "
            "original module with torch.export.save to a .pt2 file"
        )
    function = getattr(getattr(getattr(torch.ops, namespace), name), schema.overload_name or "default")
    positional = [argument for argument in schema.arguments if not argument.kwarg_only]
    keywords = [argument.name for argument in schema.arguments if argument.kwarg_only]

    def call(*values: Any) -> Any:
        return function(*values[: len(positional)], **dict(zip(keywords, values[len(positional) :], strict=True)))

    return call


def _run(block: _Block, values: Values) -> list[Any]:
    """Run a block and return its results; `values` has its inputs, and the values around it."""
    for step in block.steps:
        results = _results(step, [values[name] for name in step.inputs], values)
        values.update(zip(step.outputs, results, strict=True))
    return [values[name] for name in block.outputs]


def _results(step: _Step, inputs: list[Any], values: Values) -> Sequence[Any]:
    if step.kind == "prim::Constant":
        return [step.detail]
    if step.kind == "prim::GetAttr":
        part = inputs[0]
        return [part.attribute(step.detail) if isinstance(part, Scripted) else getattr(part, step.detail)]
    if step.kind == "prim::CallMethod":
        part, *arguments = inputs
        if not isinstance(part, Scripted):
            return [getattr(part, step.detail)(*arguments)]
        return [part(*arguments) if step.detail == "forward" else part(*arguments, method=step.detail)]
    if step.kind == "prim::If":
        return _run(step.detail[0 if inputs[0] else 1], values)
    if step.kind == "prim::Loop":
        most, active, *carried = inputs
        count = 0
        while active and count < most:
            values.update(zip(step.detail[0].inputs, (count, *carried), strict=True))
            active, *carried = _run(step.detail[0], values)
            count += 1
        return carried
    if step.kind in UNPACK:
        return list(inputs[0])
    result = step.detail(*inputs)
    return [result] if len(step.outputs) == 1 else list(result or ())
