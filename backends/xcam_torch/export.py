"""A module written to an ONNX file, by torch's own exporter."""

from __future__ import annotations

import copy
import importlib.util
import logging
import os
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from xcam.contract.files import whole_or_not
from xcam.errors import BackendError, ModelError, first_line
from xcam_torch.guard import undisturbed
from xcam_torch.model import where
from xcam_torch.outputs import tensors
from xcam_torch.tail import _capturing as capturing

INPUT = "input"
BATCH = "batch"
"""What the ONNX model calls its input, and the size of the batch."""


def to_onnx(module: nn.Module, path: Path, size: tuple[int, int], channels: int = 3) -> None:
    """Write `module`, in evaluation mode, as an ONNX model of one input [batch, channels, *size].

    The batch is of any size where the module can be captured so, else of one. Outputs are the float tensors that the
    module returns, by key; a lone one is `output`. Weights of more than 1.5 GB lie beside the file, in `<name>.data`.
    The file appears when it is complete. Raises BackendError without onnxscript, ModelError where the module cannot
    be exported, InputError where the file cannot be written.
    """
    for package in ("onnx", "onnxscript"):
        if importlib.util.find_spec(package) is None:
            raise BackendError(f"torch exports to ONNX with {package}, which is not installed: pip install {package}")
    module = getattr(module, "_orig_mod", module)
    name = type(module).__name__
    with capturing, _quiet():
        twin = _twin(module, name)
        with undisturbed(twin):
            example = torch.zeros(2, channels, *size, dtype=where(twin)[1])
            names = _named(twin, example, name)
            try:
                program = _exported(twin, example, {0: torch.export.Dim.DYNAMIC})
            except Exception:  # of many kinds: whatever stands in the way of a batch of any size
                try:
                    program = _exported(twin, example[:1], None)
                except Exception as error:
                    raise ModelError(
                        f"torch cannot export {name} to ONNX: {_reason(error)}; change that part of its forward, "
                        "or export a module that leaves it out"
                    ) from error
        _rename(program.model.graph, names)
        with whole_or_not(path) as file:
            program.save(file, external_data=False)  # torch sees to the limit of 2 GB


def _twin(module: nn.Module, name: str) -> nn.Module:
    """A copy on the CPU that shares what already lies there. (The exporter puts fakes in the place of parameters.)"""
    with torch.no_grad():
        shared: dict[int, Any] = {
            id(value): nn.Parameter(value.detach().cpu(), value.requires_grad) for value in module.parameters()
        }
        for part in module.modules():  # what weight_norm computes cannot be copied, and is computed again
            kept = (value for value in vars(part).values() if isinstance(value, Tensor))
            shared |= {id(value): value.detach().cpu() for value in kept}
        try:
            return copy.deepcopy(module, shared).cpu()
        except Exception as error:
            raise ModelError(
                f"{name} cannot be copied: {first_line(error)}; export a module that copy.deepcopy can copy"
            ) from error


def _named(twin: nn.Module, example: Tensor, name: str) -> list[str]:
    """The names of the outputs; from here on, `twin` returns these, as a tuple."""
    forward = twin.forward
    try:
        names = list(tensors(forward(example), name))
    except ModelError:
        raise
    except Exception as error:
        shape = "×".join(map(str, example.shape[1:]))
        raise ModelError(
            f"{name} fails on pictures of {shape}: {first_line(error)}; check size and channels, and that it takes "
            "one tensor"
        ) from error

    def outputs(x: Tensor) -> tuple[Tensor, ...]:
        return tuple(tensors(forward(x), name).values())

    twin.forward = outputs
    return names


def _exported(twin: nn.Module, example: Tensor, sizes: dict[int, Any] | None) -> Any:
    """torch's ONNXProgram."""
    shapes = None if sizes is None else (sizes,)
    program: Any = torch.onnx.export(twin, (example,), dynamo=True, dynamic_shapes=shapes, verbose=False)
    if sizes is not None:
        program.rename_axes({program.model.graph.inputs[0].shape[0]: BATCH})
    return program


def _rename(graph: Any, names: list[str]) -> None:
    """Call the input and the outputs what they are to be called."""
    source = INPUT if INPUT not in names else f"{INPUT}_picture"
    taken = {source, *names}
    for value in [*graph.initializers.values(), *(value for node in graph for value in node.outputs)]:
        if value.name in taken:
            value.name = f"{value.name}_inside"
    for value, name in zip([*graph.inputs, *graph.outputs], [source, *names], strict=True):
        value.name = name


def _reason(error: BaseException) -> str:
    """The exporter's own cause, without colours, in one line."""
    while error.__cause__ is not None:
        error = error.__cause__
    return re.sub(r"\x1b\[[0-9;]*m", "", first_line(error))


@contextmanager
def _quiet() -> Iterator[None]:
    """The exporter's warnings, log and prints (of graphs that it gave up), which a user could not act on, are dropped."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), open(os.devnull, "w") as nowhere, redirect_stdout(nowhere):
            warnings.simplefilter("ignore")
            with redirect_stderr(nowhere):
                yield
    finally:
        logging.disable(before)
