"""Models of images and texts (CLIP, SigLIP and their kind): the image's part alone, and the embeddings of texts."""

from __future__ import annotations

import copy
import inspect
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from xcam.contract import Array
from xcam.contract.messages import one_line
from xcam.errors import InputError, ModelError
from xcam.models.texts import TextHead
from xcam_torch.guard import undisturbed
from xcam_torch.outputs import float32

HUGGING_FACE = ("get_image_features", "get_text_features")
OPEN_CLIP = ("encode_image", "encode_text")


def is_dual(module: nn.Module) -> bool:
    """Return whether a module has one function for images and one for texts."""
    return any(all(callable(getattr(module, name, None)) for name in names) for names in (HUGGING_FACE, OPEN_CLIP))


def image_tower(module: nn.Module) -> nn.Module:
    """Return a module of the same parts and weights that takes the image alone and returns its embedding.

    `module` is not changed. The parts for texts keep their names, and are never called.
    """
    kind = type(module)
    function = HUGGING_FACE[0] if hasattr(kind, HUGGING_FACE[0]) else OPEN_CLIP[0]

    def forward(self: Any, image: Tensor) -> Tensor:
        return embedding(getattr(self, function)(image))

    twin = copy.copy(module)
    twin.__dict__.pop("forward", None)
    twin.__class__ = type(kind.__name__, (kind,), {"forward": forward, "__module__": kind.__module__})
    return twin


def embedding(value: Any) -> Tensor:
    """Return the embedding in a returned value: itself, or its part `pooler_output`."""
    return cast(Tensor, value if isinstance(value, Tensor) else value.pooler_output)


def text_head(module: nn.Module, name: str, texts: Sequence[str], tokenizer: Any = None) -> TextHead:
    """Return the embeddings of texts, the scale and the bias of a model of images and texts.

    Args:
        module: The model.
        name: Its name, for messages.
        texts: The texts.
        tokenizer: A tokenizer of transformers, or a function from a list of texts to a tensor of indices, as open_clip's;
            None: that of the folder that the model was loaded from.

    Raises:
        InputError: The module has no part for texts, or no tokenizer is known.
        ModelError: The tokenizer or the module fails.
    """
    if not is_dual(module):
        raise InputError(
            f"cannot use texts with {name}: it has no text encoder; give the embeddings of the texts in a file, made with the "
            "encoder that belongs to it: embeddings='texts.npz' (--embeddings)"
        )
    hugging_face = hasattr(type(module), HUGGING_FACE[0])
    tokenizer = tokenizer or _own_tokenizer(module, name)
    device = next((value.device for value in module.parameters()), torch.device("cpu"))
    try:
        tokens = _tokens(module, tokenizer, list(texts)) if hugging_face else tokenizer(list(texts))
        with undisturbed(module):
            if isinstance(tokens, Mapping):
                function: Callable[..., Any] = cast(Any, module).get_text_features
                taken = inspect.signature(function).parameters
                arguments = {key: torch.as_tensor(value).to(device) for key, value in tokens.items() if key in taken}
                embeddings = embedding(function(**arguments))
            else:
                embeddings = embedding(cast(Any, module).encode_text(torch.as_tensor(tokens).to(device)))
    except Exception as error:
        raise ModelError(
            f"cannot encode the texts with {name}: {type(error).__name__}: {one_line(error)}; check its tokenizer, or give "
            "embeddings= (--embeddings)"
        ) from error
    scale, bias = getattr(module, "logit_scale", None), getattr(module, "logit_bias", None)
    return TextHead(
        tuple(texts),
        float32(embeddings),
        1.0 if scale is None else float(torch.as_tensor(scale).detach().float().exp()),
        None if bias is None else float(torch.as_tensor(bias).detach()),
    )


def tokenized(module: nn.Module, name: str, texts: Sequence[str], tokenizer: Any = None) -> dict[str, Array]:
    """Return the numbers that a tokenizer gives for texts, by the names of inputs.

    Args:
        module: The model.
        name: Its name, for messages.
        texts: The texts.
        tokenizer: See `text_head`.

    Raises:
        InputError: No tokenizer is known.
        ModelError: The tokenizer fails.
    """
    tokenizer = tokenizer or _own_tokenizer(module, name)
    try:
        tokens = _tokens(module, tokenizer, list(texts))
        return {key: np.asarray(value) for key, value in tokens.items()}
    except Exception as error:
        raise ModelError(
            f"cannot tokenize the texts for {name}: {type(error).__name__}: {one_line(error)}; give the numbers (.npy, .json)"
        ) from error


def _tokens(module: Any, tokenizer: Any, texts: list[str]) -> Mapping[str, Any]:
    """Return the tokens as the model's own processor gives them: SigLIP was trained on texts of one length."""
    padding: bool | str = True
    options: dict[str, Any] = {}
    if getattr(module, "logit_bias", None) is not None:
        padding = "max_length"
        config = getattr(getattr(module, "config", None), "text_config", None)
        options = {"max_length": getattr(config, "max_position_embeddings", None)}
    if getattr(tokenizer, "pad_token", "") is None and (len(texts) > 1 or padding == "max_length"):
        raise InputError("its tokenizer has no pad token")
    result: Mapping[str, Any] = tokenizer(texts, padding=padding, truncation=True, return_tensors="pt", **options)
    return result


def _own_tokenizer(module: nn.Module, name: str) -> Any:
    """Return the tokenizer of the folder that a model was loaded from. Raises InputError."""
    hub, folder = sys.modules.get("transformers"), getattr(getattr(module, "config", None), "name_or_path", "")
    try:
        if hub is None or not folder:
            raise OSError("it was not loaded from a folder")
        return hub.AutoTokenizer.from_pretrained(folder, local_files_only=os.path.isdir(folder))
    except Exception as error:
        raise InputError(
            f"cannot use texts with {name}: it has no tokenizer ({one_line(error, 120)}); give tokenizer=, save one in its folder "
            "(tokenizer.save_pretrained), or give embeddings= (--embeddings)"
        ) from error
