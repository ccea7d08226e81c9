"""Models by name: `torchvision:resnet50`, `timm:vit_base_patch16_224`, `hf:microsoft/resnet-50`."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from xcam.contract.messages import RANDOM_WEIGHTS, one_line
from xcam.contract.processors import facts as of_processor
from xcam.errors import BackendError, InputError, ModelError, nearest
from xcam_torch.statements import known, of_timm, of_torchvision
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
            "or a .pt2 or TorchScript file"
        )
    published = weights in (None, "imagenet")
    with torch.random.fork_rng(devices=[]):  # the caller's generator is not advanced
        torch.manual_seed(0)
        module, facts = builders[scheme](name, published)
    notes = [RANDOM_WEIGHTS] if weights == "none" else [] if published else fill(module, Path(str(weights)))
    return module, {"name": name, "notes": notes, **facts}


def _package(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except Exception as error:
        cause = "is not installed" if isinstance(error, ModuleNotFoundError) else f"cannot be imported: {error}"
        raise BackendError(
            f"cannot use {name}: it {cause}; pip install {name}, in the version that fits torch"
        ) from error


def _torchvision(name: str, published: bool) -> tuple[nn.Module, dict[str, Any]]:
    models = _package("torchvision").models
    if name not in models.list_models():
        raise InputError(f"unknown torchvision model {name!r}; {nearest(name, models.list_models())}")
    weights = models.get_model_weights(name).DEFAULT
    options = {"weights": weights if published else None}
    if "weights_backbone" in inspect.signature(models.get_model_builder(name)).parameters:
        options["weights_backbone"] = None  # otherwise it is downloaded
    module = _built("torchvision", name, lambda: models.get_model(name, **options))
    return module, of_torchvision(weights)


def _timm(name: str, published: bool) -> tuple[nn.Module, dict[str, Any]]:
    timm = _package("timm")
    if not timm.is_model(name.partition(".")[0]):
        raise InputError(f"unknown timm model {name!r}; {nearest(name, timm.list_models())}")
    module = _built("timm", name, lambda: timm.create_model(name, pretrained=published))
    return module, of_timm(module)


def _hugging_face(name: str, published: bool) -> tuple[nn.Module, dict[str, Any]]:
    hub = _package("transformers")

    def make() -> Any:
        config = hub.AutoConfig.from_pretrained(name)
        kinds = [getattr(hub, each, None) for each in getattr(config, "architectures", None) or ()]
        kind = next((known for known in kinds if known is not None), None)
        is_dual = hasattr(kind, "get_image_features") and hasattr(kind, "get_text_features")
        if kind is None or (type(config) in hub.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING and not is_dual):
            auto = hub.AutoModelForImageClassification
            return auto.from_pretrained(name) if published else auto.from_config(config)
        return kind.from_pretrained(name) if published else kind(config)

    module = _built("transformers", name, make)
    try:
        processor, _ = hub.ImageProcessingMixin.get_image_processor_dict(name)
    except Exception:  # no preprocessor_config.json: the core reports that the preprocessing is unknown
        processor = {}
    return module, known(module) | of_processor(processor)


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
