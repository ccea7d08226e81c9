"""Models by name: `torchvision:resnet50`, `timm:vit_base_patch16_224`, `hf:microsoft/resnet-50`."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from xcam.contract.messages import RANDOM_WEIGHTS, one_line
from xcam.contract.preprocessing import Preprocessing, preset
from xcam.errors import BackendError, InputError, ModelError, nearest
from xcam.models import labels
from xcam_torch.weights import fill


def build(source: str, weights: str | None) -> tuple[nn.Module, dict[str, Any]]:
    """Return a model, and the facts that its library states of it.

    Args:
        source: a name `torchvision:…`, `timm:…` or `hf:…`.
        weights: None or `imagenet` (the published ones), `none` (random, seeded), or a file.

    Raises:
        InputError: the name is unknown.
        BackendError: the library is not installed.
        ModelError: the model cannot be built or downloaded.
    """
    scheme, _, name = source.partition(":")
    builders = {"torchvision": _torchvision, "timm": _timm, "hf": _hugging_face}
    if scheme not in builders or not name:
        raise InputError(
            f"unknown torch model {source!r}; give torchvision:NAME, timm:NAME, hf:NAME, package.module:factory, "
            "or a .pt2 file"
        )
    published = weights in (None, "imagenet")
    with torch.random.fork_rng(devices=[]):  # the caller's generator is not advanced
        torch.manual_seed(0)
        module, facts = builders[scheme](name, published)
    notes = [RANDOM_WEIGHTS] if weights == "none" else [] if published else fill(module, Path(str(weights)))
    return module, {"name": name, "notes": notes, **facts}


def known(module: nn.Module) -> dict[str, Any]:
    """Return the facts that a live module declares: labels and size (Hugging Face), or preprocessing (timm)."""
    config = getattr(module, "config", None)
    if config is not None and hasattr(config, "id2label"):
        return _of_config(config)
    timm = getattr(module, "pretrained_cfg", None)
    if isinstance(timm, dict) and "mean" in timm:
        return {"preprocessing": normalisation(timm["mean"], timm["std"])}
    return {}


def normalisation(mean: Sequence[float], std: Sequence[float], scale: float = 1 / 255) -> Preprocessing:
    """Return (pixel · scale − mean) / std, as a preset where it is one."""
    return preset(Preprocessing("own", scale=scale, mean=tuple(map(float, mean)), std=tuple(map(float, std))))


def _package(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except Exception as error:
        cause = "is not installed" if isinstance(error, ModuleNotFoundError) else f"cannot be imported: {error}"
        raise BackendError(f"{name} {cause}: pip install {name}, in the version that fits torch") from error


def _torchvision(name: str, published: bool) -> tuple[nn.Module, dict[str, Any]]:
    models = _package("torchvision").models
    if name not in models.list_models():
        raise InputError(f"unknown torchvision model {name!r}; {nearest(name, models.list_models())}")
    weights = models.get_model_weights(name).DEFAULT
    module = _built("torchvision", name, lambda: models.get_model(name, weights=weights if published else None))
    transforms = weights.transforms()
    return module, {
        "preprocessing": normalisation(transforms.mean, transforms.std),
        "labels": weights.meta.get("categories"),
        "size": (transforms.crop_size[0], transforms.crop_size[0]) if hasattr(transforms, "crop_size") else None,
        "channels": 3,
    }


def _timm(name: str, published: bool) -> tuple[nn.Module, dict[str, Any]]:
    timm = _package("timm")
    if not timm.is_model(name.partition(".")[0]):
        raise InputError(f"unknown timm model {name!r}; {nearest(name, timm.list_models())}")
    module = _built("timm", name, lambda: timm.create_model(name, pretrained=published))
    config = timm.data.resolve_model_data_config(module)
    return module, {
        "preprocessing": normalisation(config["mean"], config["std"]),
        "size": tuple(config["input_size"][1:]),
        "channels": config["input_size"][0],
        "labels": labels.imagenet() if getattr(module, "num_classes", 0) == 1000 else None,
    }


def _hugging_face(name: str, published: bool) -> tuple[nn.Module, dict[str, Any]]:
    hub = _package("transformers")
    auto = hub.AutoModelForImageClassification

    def make() -> Any:
        if published:
            return auto.from_pretrained(name)
        return auto.from_config(hub.AutoConfig.from_pretrained(name))

    module = _built("transformers", name, make)
    facts = _of_config(module.config)
    try:
        processor, _ = hub.ImageProcessingMixin.get_image_processor_dict(name)
    except Exception:  # no preprocessor_config.json: the core reports that the preprocessing is unknown
        return module, facts
    size = processor.get("crop_size") if processor.get("do_center_crop") else processor.get("size")
    size = processor.get("size") if size is None else size
    if isinstance(size, dict):
        side = size.get("shortest_edge")
        size = (size.get("height", side), size.get("width", side))
    elif isinstance(size, int):
        size = (size, size)
    scale = float(processor.get("rescale_factor", 1 / 255)) if processor.get("do_rescale", True) else 1.0
    if processor.get("do_normalize", True) and "image_mean" in processor:
        facts["preprocessing"] = normalisation(processor["image_mean"], processor["image_std"], scale)
    else:
        facts["preprocessing"] = Preprocessing("own", scale=scale)
    return module, facts | ({"size": tuple(size)} if size and None not in size else {})


def _of_config(config: Any) -> dict[str, Any]:
    """Return the labels and the size that a Hugging Face configuration declares."""
    names = [config.id2label[i] for i in range(len(config.id2label))] if config.id2label else None
    side = getattr(config, "image_size", None)
    size = (side, side) if isinstance(side, int) else tuple(side) if isinstance(side, list | tuple) else None
    return {"labels": names, "size": size, "channels": getattr(config, "num_channels", None)}


def _built(package: str, name: str, build: Callable[[], Any]) -> Any:
    """Build a model, with a remedy where its files cannot be downloaded."""
    try:
        return build()
    except (InputError, BackendError):
        raise
    except Exception as error:
        raise ModelError(
            f"cannot build {name!r} with {package}: {type(error).__name__}: {one_line(error, 160)}; if it could not be "
            "downloaded, give a local folder or --weights FILE, or --weights none for random ones"
        ) from error
