"""Models by name: `torchvision:resnet50`, `timm:vit_base_patch16_224`, `hf:microsoft/resnet-50`, each as it says itself."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from xcam.contract.preprocessing import PRESETS, Preprocessing
from xcam.errors import BackendError, InputError, ModelError, nearest
from xcam.models import labels
from xcam_torch import files

RANDOM_WEIGHTS = "random weights: this shows nothing about a trained model"


def build(source: str, weights: str | None) -> tuple[nn.Module, dict[str, Any]]:
    """A model and what is known of it. weights: None or `imagenet` (the published ones), `none` (seeded), or a file."""
    scheme, _, name = source.partition(":")
    makers = {"torchvision": _torchvision, "timm": _timm, "hf": _hugging_face}
    if scheme not in makers or not name:
        raise InputError(
            f"torch knows no model {source!r}; give torchvision:NAME, timm:NAME, hf:NAME, package.module:factory, "
            "or a .pt2 file"
        )
    published = weights in (None, "imagenet")
    with torch.random.fork_rng(devices=[]):  # the user's generator stays where it was
        torch.manual_seed(0)
        module, facts = makers[scheme](name, published)
    if not published and weights != "none":
        files.fill(module, Path(str(weights)))
    return module, {"name": name, "notes": (RANDOM_WEIGHTS,) if weights == "none" else (), **facts}


def known(module: nn.Module) -> dict[str, Any]:
    """What a live module says of itself: Hugging Face models carry their labels and size, timm's their preprocessing."""
    config = getattr(module, "config", None)
    if config is not None and hasattr(config, "id2label"):
        return _of_config(config)
    timm = getattr(module, "pretrained_cfg", None)
    if isinstance(timm, dict) and "mean" in timm:
        return {"preprocessing": normalisation(timm["mean"], timm["std"])}
    return {}


def normalisation(mean: Sequence[float], std: Sequence[float], scale: float = 1 / 255) -> Preprocessing:
    """(pixel · scale − mean) / std, as a preset where it is one."""
    made = Preprocessing("own", scale=scale, mean=tuple(map(float, mean)), std=tuple(map(float, std)))
    same = (
        p for p in PRESETS.values() if (p.scale, p.mean, p.std, p.order) == (made.scale, made.mean, made.std, "RGB")
    )
    return next(same, made)


def _package(name: str, extra: str = "") -> Any:
    try:
        return importlib.import_module(name)
    except Exception as error:
        what = "is not installed" if isinstance(error, ModuleNotFoundError) else f"cannot be imported: {error}"
        raise BackendError(f"{name} {what}: pip install {name}{extra}, in the version that fits torch") from error


def _torchvision(name: str, published: bool) -> tuple[nn.Module, dict[str, Any]]:
    models = _package("torchvision").models
    if name not in models.list_models():
        raise InputError(f"torchvision has no model {name!r}; {nearest(name, models.list_models())}")
    weights = models.get_model_weights(name).DEFAULT
    made = _published("torchvision", name, lambda: models.get_model(name, weights=weights if published else None))
    how = weights.transforms()
    categories = weights.meta.get("categories")
    facts = {"preprocessing": normalisation(how.mean, how.std), "labels": categories}
    return made, facts | {"size": (how.crop_size[0], how.crop_size[0]) if hasattr(how, "crop_size") else None}


def _timm(name: str, published: bool) -> tuple[nn.Module, dict[str, Any]]:
    timm = _package("timm")
    if not timm.is_model(name.partition(".")[0]):
        raise InputError(f"timm has no model {name!r}; {nearest(name, timm.list_models())}")
    made = _published("timm", name, lambda: timm.create_model(name, pretrained=published))
    said = timm.data.resolve_model_data_config(made)
    return made, {
        "preprocessing": normalisation(said["mean"], said["std"]),
        "size": tuple(said["input_size"][1:]),
        "labels": labels.imagenet() if getattr(made, "num_classes", 0) == 1000 else None,
    }


def _hugging_face(name: str, published: bool) -> tuple[nn.Module, dict[str, Any]]:
    hub = _package("transformers")
    maker = hub.AutoModelForImageClassification

    def make() -> nn.Module:
        if published:
            return maker.from_pretrained(name)
        return maker.from_config(hub.AutoConfig.from_pretrained(name))

    made = _published("transformers", name, make)
    facts = _of_config(made.config)
    try:
        said, _ = hub.ImageProcessingMixin.get_image_processor_dict(name)
    except Exception:  # no preprocessor_config.json: the caller is told that the scale is unknown
        return made, facts
    size = said.get("crop_size") if said.get("do_center_crop") else said.get("size")
    size = said.get("size") if size is None else size
    if isinstance(size, dict):
        side = size.get("shortest_edge")
        size = (size.get("height", side), size.get("width", side))
    elif isinstance(size, int):
        size = (size, size)
    scale = float(said.get("rescale_factor", 1 / 255)) if said.get("do_rescale", True) else 1.0
    if said.get("do_normalize", True) and "image_mean" in said:
        facts["preprocessing"] = normalisation(said["image_mean"], said["image_std"], scale)
    else:
        facts["preprocessing"] = Preprocessing("own", scale=scale)
    return made, facts | ({"size": tuple(size)} if size and None not in size else {})


def _of_config(config: Any) -> dict[str, Any]:
    """Labels and size that a Hugging Face configuration states."""
    names = [config.id2label[i] for i in range(len(config.id2label))] if config.id2label else None
    side = getattr(config, "image_size", None)
    size = (side, side) if isinstance(side, int) else tuple(side) if isinstance(side, list | tuple) else None
    return {"labels": names, "size": size}


def _published(package: str, name: str, make: Any) -> nn.Module:
    """Build, and say what to do when what has to be downloaded cannot be."""
    try:
        return make()
    except XCAM_OWN:
        raise
    except Exception as error:
        text = " ".join(str(error).split())[:160]
        raise ModelError(
            f"{package} cannot build {name!r}: {type(error).__name__}: {text}; if it could not be downloaded, give a "
            "local folder or --weights FILE, or --weights none for random ones"
        ) from error


XCAM_OWN = (InputError, BackendError)
