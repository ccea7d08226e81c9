"""Graphs with several inputs: all but the image become constants, repeated for each image where they have a batch axis."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from onnx import ModelProto, helper, numpy_helper

from xcam.contract import Array
from xcam.contract.fixed import FixedInputs, Form, TakenInput, chosen, decided, fitted, stand_in
from xcam_onnx.graph import FIXED, Graph, copied, type_name
from xcam_onnx.sessions import Runtime, array

COUNT = f"{FIXED}count"
"""The tensor with the number of images."""


def with_fixed(
    graph: Graph, name: str, fixed: FixedInputs, runtime: Runtime, size: Sequence[int | None] | None = None
) -> Graph:
    """Return the graph that takes the image alone; the graph itself where it has one input.

    Args:
        graph: The model.
        name: Its name, for messages.
        fixed: The values of the other inputs.
        runtime: Creates sessions: they show whether a value is repeated where the shapes do not.
        size: The size of images, where the model leaves it open.

    Raises:
        InputError: A value or a name does not fit.
        ModelError: An input has no value.
    """
    if not graph.inputs or (len(graph.inputs) == 1 and not fixed):
        return graph
    taken = {value.name: _taken(graph, value.name) for value in graph.inputs}
    image = chosen(name, list(taken.values()), fixed)
    values = {n: fitted(v, taken[n], name, n in fixed.plain, size) for n, v in fixed.values.items()}
    batch = _first(graph, image.name)
    possible: dict[str, list[Form]] = {}
    for n, value in values.items():
        first = _first(graph, n)
        if value.ndim and len(value) == 1 and isinstance(first, int) and first > 1:
            value = value.repeat(first, 0)
        kinds = [False, True]
        if not value.ndim or len(value) != 1 or isinstance(first, int) or isinstance(batch, int):
            kinds = [False]
        elif first is not None and first == batch:
            kinds = [True]
        possible[n] = [Form(value, repeated) for repeated in kinds]
    form_of = {n: forms[0] for n, forms in possible.items()}
    if any(len(forms) > 1 for forms in possible.values()):
        form_of = _decided(graph, image, possible, runtime, size)
    return Graph(_constant(graph, image.name, form_of))


def _taken(graph: Graph, name: str) -> TakenInput:
    shape, dtype = graph.shape(name), graph.dtype(name)
    sizes = None if shape is None else tuple(n if isinstance(n, int) else None for n in shape)
    return TakenInput(name, sizes, type_name(dtype) if dtype else None)


def _first(graph: Graph, name: str) -> int | str | None:
    """Return the first size that an input states."""
    return (graph.shape(name) or (None,))[0]


def _decided(
    graph: Graph,
    image: TakenInput,
    possible: Mapping[str, Sequence[Form]],
    runtime: Runtime,
    size: Sequence[int | None] | None,
) -> dict[str, Form]:
    """Decide by runs which values are repeated; where the model fails, those that may be."""
    zeros = stand_in(image.shape, image.dtype, size)
    noise = np.random.default_rng(0).uniform(0, 1, (2, *zeros.shape[1:])).astype(zeros.dtype)

    def run(rows: list[int], form_of: Mapping[str, Form]) -> Mapping[str, Array]:
        session = runtime.session(_constant(graph, image.name, form_of), once=True)
        return {name: array(value) for name, value in session({image.name: noise[rows]}).items()}

    try:
        return decided(run, possible)[0]
    except Exception:  # the first image shows why
        return {n: forms[-1] for n, forms in possible.items()}


def _constant(graph: Graph, image: str, form_of: Mapping[str, Form]) -> ModelProto:
    """Return the model with the other inputs as constants."""
    model = copied(graph.model)
    kept = [value for value in model.graph.input if value.name not in form_of]
    del model.graph.input[:]
    model.graph.input.extend(kept)
    nodes = []
    for name, form in form_of.items():
        constant = f"{FIXED}{name}" if form.repeated else name
        model.graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(form.value), constant))
        if form.repeated:
            sizes = f"{constant}/sizes"
            nodes.append(
                helper.make_node("Concat", [COUNT, f"{constant}/shape"], [sizes], f"{constant}/Concat", axis=0)
            )
            nodes.append(helper.make_node("Expand", [constant, sizes], [name], f"{constant}/Expand"))
            shape = np.array(form.value.shape[1:], np.int64)
            model.graph.initializer.append(numpy_helper.from_array(shape, f"{constant}/shape"))
    if nodes:
        model.graph.initializer.append(numpy_helper.from_array(np.zeros(1, np.int64), f"{FIXED}zero"))
        first = [
            helper.make_node("Shape", [image], [f"{FIXED}sizes"], f"{FIXED}Shape"),
            helper.make_node("Gather", [f"{FIXED}sizes", f"{FIXED}zero"], [COUNT], f"{FIXED}Gather", axis=0),
        ]
        rest = list(model.graph.node)
        del model.graph.node[:]
        model.graph.node.extend([*first, *nodes, *rest])
    return model
