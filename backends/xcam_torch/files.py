"""Model files: `.pt2` holds a model; `.safetensors` and state dicts hold weights. No code is loaded from a pickle."""

from __future__ import annotations

import logging
import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import nn

from xcam.contract.messages import one_input, one_line, own_weights
from xcam.errors import InputError, ModelError

TORCHSCRIPT = (
    "it is a TorchScript model, a deprecated format that allows no hooks inside; export the original module with "
    "torch.export.save to a .pt2 file"
)


def read(path: Path, weights: str | None) -> tuple[nn.Module, dict[str, Any]]:
    """Return the module in a file and the facts that are known of it.

    Raises:
        ModelError: the file holds no model; the message names what it holds.
        InputError: torch does not load such files, or `weights` were given.
    """
    if weights is not None:
        raise own_weights(str(path), weights)
    if path.suffix.lower() == ".pt2":
        before = logging.root.manager.disable
        logging.disable(logging.WARNING)  # torch logs a damaged file with a traceback before it raises
        try:
            program = torch.export.load(path)
        except Exception as error:
            raise ModelError(
                f"cannot load {path}: {one_line(error)}; check that torch.export.save wrote it and that it is complete"
            ) from error
        finally:
            logging.disable(before)
        return unflattened(program, path.name)
    if is_torchscript(path):
        raise ModelError(f"cannot load {path}: {TORCHSCRIPT}")
    if path.suffix.lower() in (".pt", ".pth", ".bin", ".safetensors"):
        count = len(state_dict(path))
        raise ModelError(
            f"cannot load {path}: it holds {count} weights without a model; name the function that builds it: "
            f"-m package.module:factory --weights {path}"
        )
    raise InputError(
        f"cannot load {path}: torch does not load such files; give a .pt2 file, or package.module:factory with weights"
    )


def unflattened(program: torch.export.ExportedProgram, name: str) -> tuple[nn.Module, dict[str, Any]]:
    """Return an exported program with its module tree restored, so that its layers have their names."""
    inputs = program.graph_signature.user_inputs
    if len(inputs) != 1:
        raise one_input(name, len(inputs), "export a module with one input")
    node = next(node for node in program.graph.nodes if node.name == inputs[0])
    shape = tuple(n if isinstance(n, int) else None for n in node.meta["val"].shape)
    fixed = len(shape) == 4 and None not in shape[2:]
    facts = {"name": name, "size": shape[2:] if fixed else None, "fixed": fixed, "batch": shape[0]}
    if len(shape) == 4:
        facts["channels"] = shape[1]
    return torch.export.unflatten(program), facts


def is_torchscript(path: Path) -> bool:
    """Return whether a file is a TorchScript archive."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any("/code/" in name for name in archive.namelist())


def state_dict(path: Path) -> dict[str, torch.Tensor]:
    """Return the weights in a file by name.

    Raises:
        InputError: the file does not exist.
        ModelError: it cannot be read, holds no weights, or is a pickle that needs more than `weights_only`.
    """
    if not path.is_file():
        raise InputError(f"cannot read weights from {path}: it does not exist; check the path")
    try:
        if path.suffix.lower() == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        if not isinstance(error, pickle.UnpicklingError) and "weights_only" not in str(error):
            raise ModelError(f"cannot load {path}: {one_line(error)}; check that it is complete") from error
        raise ModelError(
            f"cannot load {path}: it is a pickle of more than weights, and loading one runs code from the file; "
            "save model.state_dict() instead, or load it yourself if you trust it and pass the module"
        ) from error
    for key in ("state_dict", "model_state_dict", "model"):  # the keys under which training scripts store weights
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict) or not all(isinstance(value, torch.Tensor) for value in content.values()):
        raise ModelError(
            f"cannot load {path}: it holds {type(content).__name__}, not weights by name; save model.state_dict()"
        )
    return content


def fill(module: nn.Module, path: Path) -> None:
    """Load the weights of a file into a module; all must fit. Raises ModelError."""
    state = {name.removeprefix("module."): value for name, value in state_dict(path).items()}
    try:
        module.load_state_dict(state)
    except RuntimeError as error:
        lines = [" ".join(line.split()) for line in str(error).splitlines() if line.strip()]
        raise ModelError(
            f"cannot load the weights in {path}: they do not fit {type(module).__name__}: {' '.join(lines[1:])[:200]}; "
            "use the factory that they were saved from"
        ) from error
