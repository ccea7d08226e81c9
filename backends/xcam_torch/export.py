"""Export of a module to an ONNX file, by torch's own exporter."""

from __future__ import annotations

import contextlib
import copy
import logging
import os
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from xcam.contract.files import whole_or_not
from xcam.contract.layouts import full_size
from xcam.contract.messages import first_run, require
from xcam.errors import ModelError, first_line
from xcam_torch.guard import device_and_dtype, undisturbed
from xcam_torch.outputs import tensors
from xcam_torch.tail import CAPTURING

INPUT = "input"
BATCH = "batch"
"""Names in the ONNX model: of its input, and of the size of the batch."""


def to_onnx(module: nn.Module, path: Path, size: Sequence[int | None], channels: int = 3) -> None:
    """Write `module`, in evaluation mode, as an ONNX model of one input [batch, channels, *size], or [batch, *size].

    The batch size is open if the module can be captured with an open one, else 1; sides that are None likewise. Outputs are the float tensors that
    the module returns, by key; a single one is named `output`. Weights of more than 1.5 GB are stored next to the file,
    in `<name>.data`. The file appears when it is complete.

    Raises:
        BackendError: onnx or onnxscript is not installed.
        ModelError: the module cannot be exported.
        InputError: the file cannot be written.
    """
    require(["onnx", "onnxscript"], "export a torch module to ONNX")
    module = getattr(module, "_orig_mod", module)
    name = type(module).__name__
    with CAPTURING, _quiet():
        twin = _twin(module, name)
        with undisturbed(twin):
            shape = ([channels] if channels else []) + list(full_size(size))
            example = torch.zeros(2, *shape, dtype=device_and_dtype(twin)[1])
            names = _return_tuple(twin, example, name)
            sides = [axis + example.ndim - len(size) for axis, side in enumerate(size) if side is None]
            program = None
            for axes in ([0, *sides], [0]) if sides else ([0],):
                with contextlib.suppress(Exception):  # the cause does not matter: a fixed shape may still work
                    program = program or _exported(twin, example, dict.fromkeys(axes, torch.export.Dim.DYNAMIC))
            try:
                program = program or _exported(twin, example[:1], None)
            except Exception as error:
                raise ModelError(
                    f"cannot export {name} to ONNX: {_cause(error)}; change that part of its forward, "
                    "or export a module that leaves it out"
                ) from error
        _rename(program.model.graph, names)
        with whole_or_not(path) as file:
            program.save(file, external_data=False)  # torch itself respects protobuf's limit of 2 GB


def _twin(module: nn.Module, name: str) -> nn.Module:
    """Return a copy on the CPU that shares weights on the CPU. The exporter replaces parameters by fake tensors."""
    with torch.no_grad():
        shared: dict[int, Any] = {
            id(value): nn.Parameter(value.detach().cpu(), value.requires_grad) for value in module.parameters()
        }
        for part in module.modules():  # weights that weight_norm computes cannot be copied, and are computed again
            computed = (value for value in vars(part).values() if isinstance(value, Tensor))
            shared |= {id(value): value.detach().cpu() for value in computed}
        try:
            return copy.deepcopy(module, shared).cpu()
        except Exception as error:
            raise ModelError(
                f"cannot export {name} to ONNX: it cannot be copied ({first_line(error)}); export a module that "
                "copy.deepcopy can copy"
            ) from error


def _return_tuple(twin: nn.Module, example: Tensor, name: str) -> list[str]:
    """Make `twin` return its float outputs as a tuple; return their names."""
    forward = twin.forward
    with first_run(name, example.shape[1:]):
        names = list(tensors(forward(example), name))

    def outputs(x: Tensor) -> tuple[Tensor, ...]:
        return tuple(tensors(forward(x), name).values())

    twin.forward = outputs
    return names


def _exported(twin: nn.Module, example: Tensor, sizes: dict[int, Any] | None) -> Any:
    """Return torch's ONNXProgram."""
    shapes = None if sizes is None else (sizes,)
    program: Any = torch.onnx.export(twin, (example,), dynamo=True, dynamic_shapes=shapes, verbose=False)
    if sizes is not None:
        program.rename_axes({program.model.graph.inputs[0].shape[0]: BATCH})
    return program


def _rename(graph: Any, names: list[str]) -> None:
    """Name the input and the outputs."""
    source = INPUT if INPUT not in names else f"{INPUT}_image"
    taken = {source, *names}
    for value in [*graph.initializers.values(), *(value for node in graph for value in node.outputs)]:
        if value.name in taken:
            value.name = f"{value.name}_inside"
    for value, name in zip([*graph.inputs, *graph.outputs], [source, *names], strict=True):
        value.name = name


def _cause(error: BaseException) -> str:
    """Return the exporter's original error, without colours, in one line."""
    while error.__cause__ is not None:
        error = error.__cause__
    return re.sub(r"\x1b\[[0-9;]*m", "", first_line(error))


@contextmanager
def _quiet() -> Iterator[None]:
    """Suppress the exporter's warnings, log and prints (of failed attempts), which do not help a user."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with contextlib.ExitStack() as stack:
            null = stack.enter_context(open(os.devnull, "w"))
            stack.enter_context(warnings.catch_warnings())
            warnings.simplefilter("ignore")
            stack.enter_context(redirect_stdout(null))
            stack.enter_context(redirect_stderr(null))
            yield
    finally:
        logging.disable(before)
