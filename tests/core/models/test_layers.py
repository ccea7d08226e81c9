"""The choice of a layer."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from fake import FakeModel
from xcam import InputError, ModelError, XcamWarning
from xcam.models import layers


def changed(name: str, **changes: Any) -> FakeModel:
    model = FakeModel()
    model.layers = [replace(layer, **changes) if layer.name == name else layer for layer in model.layers]
    return model


def test_the_default_is_the_last_layer_with_spatial_axes_that_is_not_passive() -> None:
    assert layers.default(FakeModel()).name == "features"  # pool only pools, loose does not reach the output
    assert layers.default(changed("pool", kind="Conv")).name == "pool"
    assert layers.find(FakeModel(), None).name == "features"


@pytest.mark.parametrize("kind", ["LayerNorm", "MVN"])
def test_of_token_layers_the_default_is_the_last_normalisation(kind: str) -> None:
    model = changed("pool", kind="Dense", shape=(3, 6), layout="tokens")
    assert layers.default(model).name == "pool"
    model.layers = [replace(x, layout="tokens", kind=kind) if x.name == "features" else x for x in model.layers]
    assert layers.default(model).name == "features"


def test_the_default_has_tokens_that_fit_a_grid() -> None:
    """As the list of a detector's boxes where a probe is not possible."""
    assert layers.default(changed("pool", kind="Mul", shape=(4, 3234), layout="tokens")).name == "features"


def test_a_model_may_name_its_default() -> None:
    model = FakeModel()
    model.default_layer = "pool"  # type: ignore[attr-defined]
    assert layers.find(model, None).name == "pool"


def test_names_and_aliases() -> None:
    model = changed("pool", aliases=("features", "other"))
    assert layers.find(model, "other").name == "pool"
    assert layers.find(model, "features").name == "features"
    assert layers.find(model, model.layers[0]) is model.layers[0]


@pytest.mark.parametrize(
    ("model", "name", "message"),
    [
        (FakeModel(), "feature", "unknown layer 'feature' in fake; known: features, loose, pool; `xcam layers` lists them"),
        (FakeModel(), "scores", r"'scores': it has no spatial axes, its shape is 2 \(channels first\); choose another layer, for example 'features'"),
        (FakeModel(), "loose", "'loose': no output of fake depends on it; choose another layer, for example 'features'"),
        (changed("pool", folds_batch=True), "pool", "'pool': its batch axis contains windows or frames"),
    ],
)  # fmt: skip
def test_layers_that_cannot_be_explained(model: FakeModel, name: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        layers.find(model, name)


def test_a_model_without_spatial_axes() -> None:
    with pytest.raises(ModelError, match="cannot choose a layer of fake: none before its output has spatial axes"):
        layers.default(changed("features", shape=(3, 1, 1)))


@pytest.mark.parametrize(
    ("fixed", "remedy"), [(True, "no layer is finer"), (False, r"give a larger size= \(--size\)")]
)
def test_the_remedy_for_a_coarse_map_is_one_that_the_model_allows(fixed: bool, remedy: str) -> None:
    model = changed("features", shape=(3, 2, 2))
    model.layers = [layer for layer in model.layers if layer.name == "features"]
    model.input = replace(model.input, fixed=fixed)
    with pytest.warns(XcamWarning, match=rf"only 2×2 positions at its default layer 'features'; {remedy}$"):
        layers.warn_if_coarse(model, model.layers[0])
