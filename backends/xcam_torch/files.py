"""Model files: `.pt2` and TorchScript hold a model; `.safetensors` and state dicts hold weights. No code is loaded from a pickle."""

from __future__ import annotations

import logging
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import nn

from xcam.contract.layouts import filled
from xcam.contract.messages import one_line, own_weights
from xcam.errors import InputError, ModelError
from xcam_torch import weights as weights_in
from xcam_torch.inputs import of_program
from xcam_torch.scripted import opened


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
        return scripted(path), {"name": path.name}
    if path.suffix.lower() in (".pt", ".pth", ".th", ".ckpt", ".bin", ".safetensors"):
        state = next(iter(weights_in.state_dicts(weights_in.content(path), path).values()))
        raise ModelError(
            f"cannot load {path}: it holds {len(state)} weights without a model; name the function that builds it: "
            f"-m package.module:factory --weights {path}"
        )
    raise InputError(
        f"cannot load {path}: torch does not load such files; give a .pt2 or TorchScript file, or package.module:factory with weights"
    )


def unflattened(program: torch.export.ExportedProgram, name: str) -> tuple[nn.Module, dict[str, Any]]:
    """Return an exported program with its module tree restored, so that its layers have their names."""
    known = of_program(program)
    facts: dict[str, Any] = {"name": name, "signature": known}
    if len(known.taken) == 1 and known.taken[0].shape is not None:
        convolves = any("conv2d" in str(node.target) for node in program.graph.nodes)
        facts |= input_facts(known.taken[0].shape, convolves)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about torch's own code
            return torch.export.unflatten(program), facts
    except KeyError as error:  # an argument of forward has the name of a part
        raise ModelError(
            f"cannot open {name}: torch.export.unflatten fails: {one_line(error)}; give the argument of forward another name "
            "than that of the part, and export it again"
        ) from error


def input_facts(shape: tuple[int | None, ...], convolves: bool = False) -> dict[str, Any]:
    """Return size, channels and batch of an input of a shape; `convolves`: one of three axes may be grey images."""
    size = filled(shape[2:], None) if len(shape) == 4 else None
    facts: dict[str, Any] = {"size": size, "fixed": any(size or ()), "batch": shape[0]}
    if len(shape) == 4:
        facts["channels"] = shape[1]
    elif len(shape) == 3 and convolves:
        facts |= {"channels": 0, "size": filled(shape[1:], None), "fixed": any(shape[1:])}
    return facts


def scripted(path: Path) -> nn.Module:
    """Return the module in a TorchScript archive, opened into its parts. Raises ModelError."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the format is deprecated
            script = torch.jit.load(path, map_location="cpu")  # type: ignore[no-untyped-call]
    except Exception as error:
        raise ModelError(f"cannot load {path}: {one_line(error)}; check that it is complete") from error
    return opened(script)


def is_torchscript(path: Path) -> bool:
    """Return whether a file is a TorchScript archive."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any("/code/" in name for name in archive.namelist())
