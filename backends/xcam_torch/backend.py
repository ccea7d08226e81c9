"""From a file, a name or a live object to a torch module behind the contract."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from torch import nn

from xcam.contract import Layout
from xcam.errors import InputError, ModelError
from xcam.models import demo as network
from xcam_torch import demo, files, zoo
from xcam_torch.model import TorchModel


class TorchBackend:
    """PyTorch."""

    def load(
        self,
        source: Any,
        *,
        size: tuple[int, int] | None = None,
        device: str | None = None,
        layout: Layout | None = None,
        weights: str | None = None,
    ) -> TorchModel:
        """A `.pt2` file, `torchvision:…`, `timm:…`, `hf:…`, `demo`, or a live torch.nn.Module."""
        where = device_named(device)
        facts: dict[str, Any] = {}
        if source == "demo":
            if weights is not None:
                raise InputError("the demo network brings its own weights; leave weights out")
            made = network.network()
            module: nn.Module = demo.build()
            facts = {
                "name": "demo",
                "size": made.size,
                "fixed": True,
                "labels": made.labels,
                "preprocessing": made.preprocessing,
            }
        elif isinstance(source, str):
            module, facts = zoo.build(source, weights)
        elif isinstance(source, Path):
            module, facts = files.read(source, weights)
        else:
            module, facts = live(source, where, weights)
        if where is not None:
            module = module.to(where)
        return TorchModel(module, layout=layout, **({"size": size} | facts))


def live(source: Any, where: torch.device | None, weights: str | None) -> tuple[nn.Module, dict[str, Any]]:
    """A live object: wrappers taken off; copied before weights or a device would change the user's own."""
    if isinstance(source, torch.export.ExportedProgram):
        return files.unflattened(source, "the exported program")
    if isinstance(source, torch.jit.ScriptModule):
        raise ModelError(files.TORCHSCRIPT)
    name = type(source).__name__
    while isinstance(source, nn.DataParallel | nn.parallel.DistributedDataParallel) or hasattr(source, "_orig_mod"):
        source = source.module if hasattr(source, "module") else source._orig_mod
        name = type(source).__name__
    moves = where is not None and any(p.device != where for p in source.parameters())
    if weights not in (None, "none") or moves or any(p.is_inference() for p in source.parameters()):
        with torch.inference_mode(False):  # weights made under inference mode cannot be differentiated through
            source = copy.deepcopy(source)
    if weights not in (None, "none"):
        files.fill(source, Path(str(weights)))
    return source, {"name": name, **zoo.known(source)}


def device_named(name: str | None) -> torch.device | None:
    """A device that is there. Raises InputError."""
    if name is None:
        return None
    try:
        device = torch.device("cuda" if name == "gpu" else name)
        torch.empty(1, device=device)
    except Exception as error:
        known = ["cpu"] + [f"cuda:{i}" for i in range(torch.cuda.device_count())]
        known += ["mps"] if torch.backends.mps.is_available() else []
        raise InputError(f"no device {name!r} here; torch sees: {', '.join(known)}") from error
    if device.type == "meta":
        raise InputError("the device 'meta' computes nothing; use cpu")
    return device if device.index is not None or device.type != "cuda" else torch.device("cuda", 0)
