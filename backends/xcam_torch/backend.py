"""Load a file, a name or a live object as a torch module behind the contract."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from xcam.contract import InputSpec, Layout
from xcam.contract.fixed import FixedInputs, note
from xcam.contract.messages import own_weights, unknown_device
from xcam.contract.plugins import DEMOS
from xcam.errors import InputError
from xcam.models import demo as core_demo
from xcam_torch import demo, detectors, files, scaling, statements, zoo
from xcam_torch import inputs as fixed
from xcam_torch import texts as dual
from xcam_torch.guard import unwrapped
from xcam_torch.model import TorchModel
from xcam_torch.scripted import Scripted, opened
from xcam_torch.weights import fill


class TorchBackend:
    """PyTorch."""

    def load(
        self,
        source: Any,
        *,
        size: tuple[int | None, int | None] | None = None,
        device: str | None = None,
        layout: Layout | None = None,
        weights: str | None = None,
        inputs: FixedInputs | None = None,
        texts: Sequence[str] | None = None,
        tokenizer: Any = None,
    ) -> TorchModel:
        """Load a `.pt2` file, `torchvision:…`, `timm:…`, `hf:…`, `demo`, or a live torch.nn.Module."""
        target = find_device(device)
        facts: dict[str, Any]
        module: nn.Module
        if source in DEMOS:
            if weights is not None:
                raise own_weights("the demo network", weights)
            network = core_demo.network()
            module = demo.build() if source == "demo" else demo.Detector()
            facts = {
                "name": source,
                "size": network.size,
                "fixed": True,
                "channels": 3,
                "labels": network.labels,
                "preprocessing": network.preprocessing,
            }
        elif isinstance(source, str):
            module, facts = zoo.build(source, weights)
        elif isinstance(source, Path):
            module, facts = files.read(source, weights)
        else:
            module, facts = live(source, target, weights)
        if target is not None:
            module = module.to(target)
        module = detectors.raw(module)
        head = None if texts is None else dual.text_head(module, facts["name"], texts, tokenizer)
        if dual.is_dual(module) and not inputs:
            module, facts = dual.image_tower(module), facts | {"labels": None}
        inputs = inputs or FixedInputs()
        known, side = facts.get("signature"), facts.get("size") or size or stated_size(module)
        module, image = fixed.with_fixed(module, facts["name"], inputs, known, tokenizer, side)
        if image is not None and image.shape is not None:
            facts |= files.input_facts(image.shape)
        channels = facts.get("channels")
        fit = facts.get("fit")
        follows = fit is not None and fit.mode == "pad" and fit.resize is not None  # the size follows from the image
        spec = InputSpec(
            facts.get("size") or size or detectors.size(module) or (None if follows else stated_size(module)),
            channels=input_channels(module) if channels is None else channels,
            fixed=facts.get("fixed", False),
            channels_known=channels is not None,
            fit=fit,
            **input_axes(module),
        )
        needed = scaling.computed(module, spec, facts.get("batch"))
        spec = replace(spec, preprocessing=facts.get("preprocessing") or needed, needs=needed)
        others = {key: facts[key] for key in ("labels", "notes", "batch") if key in facts}
        others["notes"] = [*others.get("notes", ()), *note(inputs.values)]
        model = TorchModel(module, facts["name"], spec, layout=layout, **others)
        model.text_head = head
        return model


def live(source: Any, device: torch.device | None, weights: str | None) -> tuple[nn.Module, dict[str, Any]]:
    """Return the module of a live object, without its wrappers, and the facts that are known of it.

    It is copied where weights or a device would change the caller's module.
    """
    if isinstance(source, torch.export.ExportedProgram):
        return files.unflattened(source, "the exported program")
    if isinstance(source, torch.jit.ScriptModule):
        source = opened(source)
    source, name = unwrapped(source)
    source = detectors.network(source)
    moves = device is not None and any(p.device != device for p in source.parameters())
    if weights not in (None, "none") or moves or has_inference_tensors(source):
        with torch.inference_mode(False):  # tensors created in inference mode cannot be differentiated through
            source = copy.deepcopy(source)
    notes = [] if weights in (None, "none") else fill(source, Path(str(weights)))
    return source, {"name": name, "notes": notes, **statements.known(source)}


def has_inference_tensors(module: nn.Module) -> bool:
    """Return whether parameters, buffers or cached values of a module were created in inference mode."""
    return any(
        tensor.is_inference()
        for part in module.modules()
        for tensor in (*part._parameters.values(), *part._buffers.values(), *vars(part).values())
        if isinstance(tensor, torch.Tensor)
    )


def input_channels(module: nn.Module) -> int:
    """Return the number of channels that the first convolution takes; 3 where there is none."""
    for part in module.modules():
        weight = dict(part.named_parameters(recurse=False)).get("weight")
        if isinstance(part, Scripted) and weight is not None and weight.ndim > 2:
            return int(weight.shape[1])
        if isinstance(channels := getattr(part, "in_channels", getattr(part, "input_size", None)), int):
            return channels
    return 3


def input_axes(module: nn.Module) -> dict[str, Any]:
    """Return the axes of the input, for InputSpec, as the first part with weights shows them."""
    kinds = {1: (nn.Conv1d,), 2: (nn.Conv2d, nn.BatchNorm2d), 3: (nn.Conv3d, nn.BatchNorm3d)}
    for part in module.modules():
        for axes, types in kinds.items():
            if isinstance(part, types):
                return {"axes": axes}
        weight = dict(part.named_parameters(recurse=False)).get("weight")
        if isinstance(part, Scripted) and weight is not None and weight.ndim > 2:
            return {"axes": weight.ndim - 2}
        if isinstance(part, nn.RNNBase) and part.batch_first:
            return {"axes": 1, "layout": "channels_last"}
        is_leaf = not any(True for _ in part.children()) and any(True for _ in part.parameters())
        if is_leaf and not isinstance(part, nn.BatchNorm1d):  # that one is of vectors, or of signals
            return {}
    return {}


def stated_size(module: nn.Module) -> tuple[int, int] | None:
    """Return the image size that a part of a module states, as those that embed patches do; None where none does."""
    if input_axes(module).get("axes") not in (2, None):
        return None
    for part in module.modules():
        for owner, name in ((part, "img_size"), (part, "image_size"), (getattr(part, "config", None), "image_size")):
            side = getattr(owner, name, None)
            sides = tuple(side) if isinstance(side, list | tuple) else (side, side)
            if len(sides) == 2 and all(isinstance(n, int) and n > 1 for n in sides):
                return sides[0], sides[1]
    return None


def find_device(name: str | None) -> torch.device | None:
    """Return an available device by its name. Raises InputError."""
    if name is None:
        return None
    try:
        device = torch.device("cuda" if name == "gpu" else name)
        torch.empty(1, device=device)
    except Exception as error:
        known = ["cpu"] + [f"cuda:{i}" for i in range(torch.cuda.device_count())]
        known += ["mps"] if torch.backends.mps.is_available() else []
        raise unknown_device(name, "torch", known) from error
    if device.type == "meta":
        raise InputError("cannot run on the device 'meta': it computes no values; use cpu")
    return device if device.index is not None or device.type != "cuda" else torch.device("cuda", 0)
