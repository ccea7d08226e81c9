"""Modules with several inputs: a twin that takes the image alone, and passes fixed values for the others."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
import torch.utils._pytree as pytree
from torch import Tensor, fx, nn

from xcam.contract import Array
from xcam.contract.fixed import (
    FixedInputs,
    Form,
    TakenInput,
    TextValue,
    chosen,
    decided,
    fitted,
    forms,
    unknown_input,
)
from xcam.contract.messages import one_line
from xcam.errors import InputError, ModelError
from xcam_torch.guard import device_and_dtype, undisturbed
from xcam_torch.outputs import float32, tensors
from xcam_torch.scripted import Scripted
from xcam_torch.texts import tokenized

Arguments = tuple[list[Any], dict[str, Any]]
Arrange = Callable[[Mapping[str, Any]], Arguments]
"""The values by name → the arguments of forward."""
POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
FIXED = "xcam_fixed_{}"
"""The attribute of a fixed tensor: torch.export finds those of modules."""


class _MissingKeyError(KeyError):
    """A forward reads a key that its dictionary does not have."""


class _Batch(dict[str, Any]):
    """A dictionary that reports the first key that it lacks."""

    def __missing__(self, key: str) -> Any:
        raise _MissingKeyError(key)


@dataclass
class Signature:
    """The inputs of a module."""

    taken: list[TakenInput]
    arrange: Arrange
    any_name: bool = False
    """Whether the module takes names that its signature does not list."""


def signature(module: nn.Module) -> Signature:
    """Return the inputs of a module, as its forward or the schema of its script lists them."""
    if isinstance(module, Scripted):
        return _of_script(module)
    parameters = list(inspect.signature(module.forward).parameters.values())
    listed = [p for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    taken = [TakenInput(p.name, optional=p.default is not p.empty) for p in listed]
    order = [p.name for p in listed if p.kind is p.POSITIONAL_ONLY]

    def arrange(values: Mapping[str, Any]) -> Arguments:
        return [values[name] for name in order if name in values], {k: v for k, v in values.items() if k not in order}

    return Signature(taken, arrange, any(p.kind is p.VAR_KEYWORD for p in parameters))


def _of_script(module: Scripted) -> Signature:
    arguments = module.arguments
    taken = [TakenInput(name, optional=has_default) for name, has_default, _ in arguments]

    def arrange(values: Mapping[str, Any]) -> Arguments:
        return [values.get(name, default) for name, _, default in arguments], {}

    return Signature(taken, arrange)


def of_program(program: torch.export.ExportedProgram) -> Signature:
    """Return the inputs of an exported program, whose forward takes its arguments as they were at the export."""
    names = list(program.graph_signature.user_inputs)
    nodes = {node.name: node.meta.get("val") for node in program.graph.nodes if node.op == "placeholder"}
    taken = [_taken(str(name), nodes.get(str(name))) for name in names]
    structure: Any = program.call_spec.in_spec

    def arrange(values: Mapping[str, Any]) -> Arguments:
        args, kwargs = pytree.tree_unflatten([values[str(name)] for name in names], structure)
        return list(args), dict(kwargs)

    return Signature(taken, arrange)


def _taken(name: str, value: Any) -> TakenInput:
    if not isinstance(value, Tensor):
        return TakenInput(name)
    shape = tuple(n if isinstance(n, int) else None for n in value.shape)
    return TakenInput(name, shape, str(value.dtype).removeprefix("torch."))


def with_fixed(
    module: nn.Module,
    name: str,
    fixed: FixedInputs,
    known: Signature | None = None,
    tokenizer: Any = None,
    size: Sequence[int | None] | None = None,
) -> tuple[nn.Module, TakenInput | None]:
    """Return a twin of a module that takes the image alone, and that input; the module itself where it is the only one.

    Args:
        module: The module; it is not changed, and shares its parts and weights with the twin.
        name: Its name, for messages.
        fixed: The values of the other inputs.
        known: Its inputs; None: those of its forward.
        tokenizer: Turns texts into the values of inputs; None: that of the folder that the module was loaded from.
        size: The size of images, where the module leaves it open.

    Raises:
        InputError: A value or a name does not fit.
        ModelError: An input has no value.
    """
    known = known or signature(module)
    if not fixed and not _needs_names(known):
        return module, None
    fixed = _tokenized(fixed, known, module, name, tokenizer)
    names = [one.name for one in known.taken]
    unknown = [n for n in (*fixed.values, *filter(None, [fixed.image])) if n not in names]
    taken, arrange = known.taken, known.arrange
    if (
        unknown
        and not known.any_name
        and len([one for one in taken if not one.optional]) == 1
        and not isinstance(module, Scripted)
    ):
        arrange = _as_dictionary(known)
        image = TakenInput(fixed.image or _missing_key(module, name, arrange, fixed))
        taken = [image, *(TakenInput(n) for n in fixed.values)]
    elif unknown and known.any_name:
        taken = [*taken, *(TakenInput(n) for n in unknown)]
    image = chosen(name, taken, fixed)
    inputs = {one.name: one for one in taken}
    possible = {}
    for n, value in fixed.values.items():
        array = fitted(value, inputs[n], name, n in fixed.plain, size)
        stated = inputs[n].shape is not None
        scalar = isinstance(value, bool | int | float) and not stated
        possible[n] = forms(value if scalar else array, n in fixed.plain and inputs[n].dtype is None)
    return _twin(module, name, image.name, possible, arrange), image


def _needs_names(known: Signature) -> bool:
    """Return whether a call with the image as the first argument would fail, or give it to another input."""
    required = [one for one in known.taken if not one.optional]
    first = known.taken[0].name if known.taken else ""
    return len(required) > 1 or (
        not required and first != "pixel_values" and "pixel_values" in map(_name, known.taken)
    )


def _name(taken: TakenInput) -> str:
    return taken.name


def _tokenized(fixed: FixedInputs, known: Signature, module: nn.Module, name: str, tokenizer: Any) -> FixedInputs:
    """Return the values with each text as the numbers that the tokenizer gives for it, with those that belong to them."""
    texts = {name: value for name, value in fixed.values.items() if isinstance(value, TextValue)}
    if not texts or (tokenizer is None and not getattr(getattr(module, "config", None), "name_or_path", "")):
        return fixed
    values = dict(fixed.values)
    names = [one.name for one in known.taken]
    for key, text in texts.items():
        if key in names:
            for part, array in tokenized(module, name, text.lines, tokenizer).items():
                if part == "input_ids":
                    values[key] = array
                elif part in names:
                    values.setdefault(part, array)
    return FixedInputs(values, fixed.image, fixed.plain - set(texts))


def _as_dictionary(known: Signature) -> Arrange:
    """Return the arrangement of values in a dictionary, which is the only argument."""
    (only,) = [one.name for one in known.taken if not one.optional]
    return lambda values: known.arrange({only: _Batch(values)})


def _missing_key(module: nn.Module, name: str, arrange: Arrange, fixed: FixedInputs) -> str:
    """Return the first key that a forward reads from its dictionary and that has no value: that of the image."""
    (only,) = arrange({})[1] or {"x": None}
    device, dtype = device_and_dtype(module)
    values = {n: _tensor(np.asarray(fitted(v, TakenInput(n), name)), device, dtype) for n, v in fixed.values.items()}
    args, kwargs = arrange(values)
    try:
        with undisturbed(module):
            module(*args, **kwargs)
    except _MissingKeyError as error:
        return str(error.args[0])
    except Exception as error:
        raise unknown_input(next(iter(fixed.values)), name, [only]) from error
    raise unknown_input(next(iter(fixed.values)), name, [only])


def _twin(
    module: nn.Module, name: str, image: str, possible: Mapping[str, Sequence[Form]], arrange: Arrange
) -> nn.Module:
    """Return a module of the same parts and weights whose forward takes the image alone."""
    kind = type(module)
    patched = vars(module).get("forward")

    def forward(self: Any, x: Tensor, *others: Any, **named: Any) -> Any:
        if others or named:  # the module calls itself
            return self.xcam_inner(x, *others, **named)
        values = {image: x, **self.xcam_values(x)}
        args, kwargs = arrange(values)
        return self.xcam_inner(*args, **kwargs)

    def values(self: Any, x: Tensor) -> dict[str, Any]:
        result: dict[str, Any] = {}
        for k, (n, form) in enumerate(self.xcam_forms.items()):
            value = getattr(self, FIXED.format(k), form.value)
            if isinstance(value, Tensor):
                value = value.to(x.device)
                if form.repeated and len(value) == 1:
                    value = value.expand(x.shape[0], *value.shape[1:])
            result[n] = value
        return result

    members: dict[str, Any] = {"forward": forward, "xcam_values": values, "__module__": kind.__module__}
    if isinstance(module, fx.GraphModule):  # its copies have a forward of their own: it is called as it is
        twin: Any = type(kind.__name__, (_Holder,), members)()
        twin.xcam_graph = (module,)
        twin.__dict__ |= {key: module.__dict__[key] for key in ("_modules", "_parameters", "_buffers", "training")}
    else:
        inner = patched or (lambda self, *args, **kwargs: kind.forward(self, *args, **kwargs))
        members["xcam_inner"] = staticmethod(patched) if patched else inner
        twin = copy.copy(module)
        twin.__dict__.pop("forward", None)
        twin.__class__ = type(kind.__name__, (kind,), members)
    twin.__dict__["xcam_possible"], twin.__dict__["xcam_name"] = possible, name
    _choose(twin, {n: f[0] for n, f in possible.items()})
    return cast(nn.Module, twin)


class _Holder(nn.Module):
    """The parts and weights of a graph module, which is called as it is."""

    def xcam_inner(self, *args: Any, **kwargs: Any) -> Any:
        """Call the graph module."""
        graph: Any = self.xcam_graph
        return graph[0](*args, **kwargs)


def _choose(twin: nn.Module, form_of: Mapping[str, Form]) -> None:
    """Set the form of each value."""
    device, dtype = device_and_dtype(twin)
    twin.__dict__["xcam_forms"] = dict(form_of)
    for k, form in enumerate(form_of.values()):
        twin.__dict__.pop(FIXED.format(k), None)
        if isinstance(form.value, np.ndarray):
            twin.__dict__[FIXED.format(k)] = _tensor(form.value, device, dtype)


def _tensor(array: Array, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Return an array as a tensor; floats in the type of the module's weights."""
    tensor = torch.from_numpy(np.array(array)).to(device)
    return tensor.to(dtype) if tensor.is_floating_point() else tensor


def decide(module: nn.Module, x: Tensor, batch: int | None = None) -> bool:
    """Decide how the fixed values of a twin are passed, by runs on an image; return whether it takes several at once.

    Args:
        module: Any module; only a twin has fixed values.
        x: Two different images.
        batch: The batch size that the module is fixed to.

    Raises:
        InputError: The module does not run with the values.
    """
    possible = vars(module).get("xcam_possible")
    if not possible:
        return True
    before = vars(module)["xcam_forms"]

    def run(rows: list[int], form_of: Mapping[str, Form]) -> Mapping[str, Array]:
        _choose(module, form_of)
        padded = [*rows, *rows[-1:] * ((batch or 0) - len(rows))]
        with undisturbed(module):
            return {name: float32(value)[: len(rows)] for name, value in tensors(module(x[padded])).items()}

    try:
        form_of, together = decided(run, possible)
    except (MemoryError, ModelError):
        _choose(module, before)
        raise
    except Exception as error:
        _choose(module, before)
        listed = ", ".join(f"{n} {list(np.shape(f[0].value))}" for n, f in possible.items())
        raise InputError(
            f"cannot run {vars(module)['xcam_name']} on an image of shape {list(x.shape[1:])} with the inputs {listed}: "
            f"{type(error).__name__}: {one_line(error)}; give them in the shapes and types that it takes, or another size= "
            "(--size)"
        ) from error
    _choose(module, form_of)
    return together
