"""Model files: `.pt2` is a model; `.safetensors` and state dicts are weights for one. Pickles bring no code in."""

from __future__ import annotations

import logging
import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import nn

from xcam.errors import InputError, ModelError

TORCHSCRIPT = (
    "TorchScript models cannot be explained: the format is deprecated and takes no hooks inside; "
    "export the original module with torch.export.save to a .pt2 file"
)


def read(path: Path, weights: str | None) -> tuple[nn.Module, dict[str, Any]]:
    """A model from a file. Raises ModelError for what holds no model, with what it does hold."""
    if weights is not None:
        raise InputError(f"{path} brings its own weights; leave weights out")
    if path.suffix.lower() == ".pt2":
        before = logging.root.manager.disable
        logging.disable(logging.WARNING)  # a damaged file would be logged with a traceback, besides the error
        try:
            program = torch.export.load(path)
        except Exception as error:
            text = " ".join(str(error).split())[:200]
            raise ModelError(
                f"cannot load {path}: {text}; check that torch.export.save wrote it and all arrived"
            ) from error
        finally:
            logging.disable(before)
        return unflattened(program, path.name)
    if is_torchscript(path):
        raise ModelError(f"{path}: {TORCHSCRIPT}")
    if path.suffix.lower() in (".pt", ".pth", ".bin", ".safetensors"):
        state = state_dict(path)
        raise ModelError(
            f"{path} holds {len(state)} weights without a model; name the function that builds it: "
            f"-m package.module:factory --weights {path}"
        )
    raise InputError(f"{path} is no file that torch loads; give a .pt2 file, or package.module:factory with weights")


def unflattened(program: torch.export.ExportedProgram, name: str) -> tuple[nn.Module, dict[str, Any]]:
    """An exported program with its modules put back, so that its layers have their names."""
    inputs = program.graph_signature.user_inputs
    if len(inputs) != 1:
        raise ModelError(f"{name} has {len(inputs)} inputs, and a picture fills one; export a module with one input")
    node = next(node for node in program.graph.nodes if node.name == inputs[0])
    shape = node.meta["val"].shape
    sizes = tuple(n if isinstance(n, int) else None for n in shape)
    fixed = len(sizes) == 4 and all(n is not None for n in sizes[2:])
    facts = {
        "name": name,
        "size": sizes[2:] if fixed else None,
        "fixed": fixed,
        "batch": sizes[0],
    }
    return torch.export.unflatten(program), facts


def is_torchscript(path: Path) -> bool:
    """Whether a file is a TorchScript archive."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any("/code/" in name for name in archive.namelist())


def state_dict(path: Path) -> dict[str, torch.Tensor]:
    """Weights by name. A pickle that would need more than weights_only is refused. Raises ModelError, InputError."""
    if not path.is_file():
        raise InputError(f"no such weights file: {path}; check the path")
    try:
        if path.suffix.lower() == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        held = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        if not isinstance(error, pickle.UnpicklingError) and "weights_only" not in str(error):
            text = " ".join(str(error).split())[:200] or type(error).__name__
            raise ModelError(f"cannot load {path}: {text}; check that it arrived whole") from error
        raise ModelError(
            f"{path} is refused: it is a pickle of more than weights, and loading one runs code from the file; "
            "save model.state_dict() instead, or load it yourself if you trust it and pass the module"
        ) from error
    for key in ("state_dict", "model_state_dict", "model"):  # what training scripts wrap weights in
        if isinstance(held, dict) and isinstance(held.get(key), dict):
            held = held[key]
    if not isinstance(held, dict) or not all(isinstance(value, torch.Tensor) for value in held.values()):
        raise ModelError(f"{path} holds {type(held).__name__}, not weights by name; save model.state_dict()")
    return held


def fill(module: nn.Module, path: Path) -> None:
    """Put the weights of a file into a module; all must fit. Raises ModelError."""
    state = {name.removeprefix("module."): value for name, value in state_dict(path).items()}
    try:
        module.load_state_dict(state)
    except RuntimeError as error:
        lines = [" ".join(line.split()) for line in str(error).splitlines() if line.strip()]
        raise ModelError(
            f"the weights in {path} do not fit {type(module).__name__}: {' '.join(lines[1:])[:200]}; "
            "use the factory they were saved from"
        ) from error
