"""CLIP, SigLIP and models like open_clip's: the texts are the classes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import xcam
from xcam.errors import InputError, ModelError

pytestmark = pytest.mark.filterwarnings("ignore")
TEXTS = ["a dog", "a cat on the mat", "one red apple"]
IMAGE = np.random.default_rng(0).integers(0, 256, (40, 32, 3), dtype=np.uint8)
X = np.random.default_rng(1).normal(size=(2, 3, 32, 32)).astype(np.float32)
LAYER = "vision_model.encoder.layers.1"
TEXT = {"vocab_size": 32, "max_position_embeddings": 16, "eos_token_id": 2, "pad_token_id": 0, "bos_token_id": 1}
PART = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4}
VISION = PART | {"image_size": 32, "patch_size": 8}


@pytest.fixture(scope="module")
def hub() -> Any:
    return pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def tokenizer(hub: Any) -> Any:
    """Return a tokenizer of terms, with an end of each text."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    terms = sorted({term for text in TEXTS for term in text.split()})
    special = ["[PAD]", "[UNK]", "[EOS]"]
    vocabulary = {term: k for k, term in enumerate([*special, *terms])}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    inner.post_processor = processors.TemplateProcessing(single="$A [EOS]", special_tokens=[("[EOS]", 2)])
    names = {"pad_token": "[PAD]", "eos_token": "[EOS]", "unk_token": "[UNK]"}
    return hub.PreTrainedTokenizerFast(tokenizer_object=inner, model_max_length=16, **names)


def clip(hub: Any) -> Any:
    config = hub.CLIPConfig(text_config=PART | TEXT, vision_config=VISION, projection_dim=24)
    return _random(hub.CLIPModel, config), True


def siglip(hub: Any) -> Any:
    config = hub.SiglipConfig(text_config=PART | TEXT | {"projection_size": 32}, vision_config=VISION)
    return _random(hub.SiglipModel, config), "max_length"


def _random(kind: Any, config: Any) -> Any:
    torch.manual_seed(0)
    model = kind(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(3)
        if hasattr(model, "logit_bias"):
            model.logit_bias.fill_(-3.0)
            model.logit_scale.fill_(2.0)
    return model


@pytest.mark.parametrize("make", [clip, siglip])
def test_scores_and_gradients_are_logits_per_image(
    make: Callable[[Any], Any], hub: Any, tokenizer: Any, tmp_path: Path
) -> None:
    module, padding = make(hub)
    module.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    options = {"max_length": 16} if padding == "max_length" else {}
    tokens = tokenizer(TEXTS, padding=padding, truncation=True, return_tensors="pt", **options)
    tokens = {name: value for name, value in tokens.items() if name != "token_type_ids"}
    stored: list[Any] = []

    def hook(_: Any, __: Any, value: Any) -> Any:
        first = value[0] if isinstance(value, tuple) else value
        stored.append(first.detach().requires_grad_())
        return (stored[-1], *value[1:]) if isinstance(value, tuple) else stored[-1]

    handle = dict(module.named_modules())[LAYER].register_forward_hook(hook)
    scores = module(pixel_values=torch.from_numpy(X), **tokens).logits_per_image
    gradients = [torch.autograd.grad(scores[:, k].sum(), stored[-1], retain_graph=True)[0] for k in range(3)]
    handle.remove()
    before = dict(vars(module))
    live = xcam.load(module, texts=TEXTS, tokenizer=tokenizer, preprocess="unit")
    assert vars(module) == before
    for model in (live, xcam.load(f"hf:{tmp_path}", texts="; ".join(TEXTS), preprocess="unit")):
        assert model.input.size == (32, 32)
        assert list(model.labels) == TEXTS
        assert model.output_activation == ("softmax" if padding is True else "sigmoid")
        np.testing.assert_allclose(model.predict(X), scores.detach().numpy(), rtol=1e-4, atol=1e-5)
        trace = model.trace(
            X, LAYER, lambda z: [np.tile(np.eye(3, dtype=np.float32)[k], (len(z), 1)) for k in range(3)]
        )
        for k, gradient in enumerate(gradients):
            wanted = gradient.numpy().transpose(0, 2, 1)
            np.testing.assert_allclose(trace.gradients[k], wanted, atol=1e-3 * np.abs(wanted).max())
    assert not any(layer.name.startswith("text_model") for layer in live.layers)
    e = xcam.explain(live, IMAGE, target="a cat")
    assert e.label == "a cat on the mat"
    assert e.cam.any()
    assert np.shape(xcam.load(f"hf:{tmp_path}").predict(X))[1] in (24, 32)  # embeddings, without texts


def test_a_live_model_without_a_tokenizer_and_one_that_fails_are_refused(hub: Any) -> None:
    module, _ = clip(hub)
    with pytest.raises(InputError, match=r"it has no tokenizer .*; give tokenizer="):
        xcam.load(module, texts=TEXTS)
    with pytest.raises(Exception, match="cannot encode the texts with CLIPModel: ZeroDivisionError"):
        xcam.load(module, texts=TEXTS, tokenizer=lambda *_, **__: 1 // 0)


class Pair(nn.Module):
    """A model with the functions of open_clip's."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.visual = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.table, self.logit_scale = nn.Embedding(9, 6), nn.Parameter(torch.tensor(2.0))

    def encode_image(self, image: Tensor, normalize: bool = False) -> Tensor:
        """Return [N, 6]."""
        value = self.visual(image)
        return nn.functional.normalize(value, dim=-1) if normalize else value  # type: ignore[no-any-return]

    def encode_text(self, text: Tensor) -> Tensor:
        """Return [K, 6]."""
        return self.table(text).mean(1)  # type: ignore[no-any-return]

    def forward(self, image: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        """Return both."""
        return self.encode_image(image, True), self.encode_text(text)


def test_a_model_with_encode_image_and_encode_text() -> None:
    pair, tokens = Pair().eval(), torch.tensor([[1, 2], [3, 3]])
    model = xcam.load(pair, texts=["a", "b"], tokenizer=lambda texts: tokens[: len(texts)], size=(32, 32))
    image, texts = pair(torch.from_numpy(X), tokens)
    scores = pair.logit_scale.exp() * image @ nn.functional.normalize(texts, dim=-1).T
    np.testing.assert_allclose(model.predict(X), scores.detach().numpy(), rtol=1e-4, atol=1e-5)
    assert model.labels == ("a", "b") or list(model.labels) == ["a", "b"]


def test_a_text_is_the_value_of_an_input_by_the_folder_s_tokenizer(hub: Any, tokenizer: Any, tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = hub.ViltConfig(
        **PART, image_size=32, patch_size=8, vocab_size=32, max_position_embeddings=16, num_labels=5
    )
    module = hub.ViltForQuestionAnswering(config).eval()
    module.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    (tmp_path / "question.txt").write_text("a cat on the mat\n")
    model = xcam.load(f"hf:{tmp_path / 'model'}", inputs={"input_ids": tmp_path / "question.txt"}, preprocess="unit")
    assert model.notes[-1] == "other inputs are fixed: input_ids = 'a cat on the mat'"
    tokens = tokenizer(["a cat on the mat"], return_tensors="pt")
    tokens = {name: value.expand(2, -1) for name, value in tokens.items() if name != "token_type_ids"}
    scores = module(pixel_values=torch.from_numpy(X), **tokens).logits.detach().numpy()
    np.testing.assert_allclose(model.predict(X), scores, rtol=1e-4, atol=1e-5)
    assert xcam.explain(model, IMAGE).cam.any()
    with pytest.raises(
        ModelError,
        match=r"specify.*; wrap it in a model that takes the image alone, or give the others: inputs=.*\(--input name=…\)",
    ):
        xcam.explain(xcam.load(f"hf:{tmp_path / 'model'}", preprocess="unit"), IMAGE)
    live = hub.ViltForQuestionAnswering(config)
    with pytest.raises(
        InputError, match=r"cannot use a text for the input 'input_ids' of Vilt.*: it has no tokenizer"
    ):
        xcam.load(live, inputs={"input_ids": tmp_path / "question.txt"}, preprocess="unit")
