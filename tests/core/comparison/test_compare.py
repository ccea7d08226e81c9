"""`compare` and `corresponding` on networks whose values are known."""

from __future__ import annotations

import dataclasses
import json
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import xcam
from fake import FakeModel
from xcam import InputError, OptionError, Preprocessing
from xcam.comparison.compare import corresponding

IMAGE = np.random.default_rng(3).integers(0, 256, (4, 6, 3), dtype=np.uint8)
RAW = Preprocessing("raw")


def opened(spec: xcam.InputSpec, weights: Any = None) -> FakeModel:
    model = FakeModel(weights)
    model.input = spec
    return model


@pytest.mark.parametrize("run", [xcam.compare, corresponding])
def test_the_models_are_unchanged(run: Callable[..., Any]) -> None:
    """A later explain() with the second model must use the second model's own preprocessing and size."""
    specs = xcam.InputSpec((4, 6), preprocessing=RAW), xcam.InputSpec(None)
    models = [opened(spec) for spec in specs]
    before = [dict(vars(model)) for model in models]
    result = run(models, IMAGE)
    assert [model.input for model in models] == list(specs)
    for model, values in zip(models, before, strict=True):
        assert {name: value for name, value in vars(model).items() if values.get(name) is not value} == {}
    if run is xcam.compare:
        assert result.verdict == "identical", "the second model is given the preprocessing and the size of the first"


def test_the_images_of_the_result_are_copies() -> None:
    image = IMAGE.copy()
    result = xcam.compare([opened(xcam.InputSpec((4, 6), preprocessing=RAW)) for _ in range(2)], image)
    image[:] = 0
    for e in result.images[0].explanations:
        np.testing.assert_array_equal(e.image, IMAGE)


def test_another_preprocessing_is_diagnosed_and_stated() -> None:
    spec = xcam.InputSpec((4, 6), preprocessing=RAW)
    models = [opened(spec), opened(dataclasses.replace(spec, preprocessing=Preprocessing("half", scale=0.5)))]
    result = xcam.compare(models, IMAGE, align=True)
    assert result.findings == (
        "fake (fake) states that it takes images scaled as 'half', the others are given 'raw'",
    )
    assert result.divergence is not None
    cause = result.divergence.cause
    assert cause is not None
    assert (cause.code, cause.proof) == ("input-scale", "rerun")
    assert cause.text == (
        "the scale of the input: the second model agrees on images scaled as 'raw', and is given images scaled as 'half'"
    )


def test_another_activation_at_the_outputs_is_a_finding() -> None:
    spec = xcam.InputSpec((4, 6), preprocessing=RAW)
    models = [opened(spec), opened(spec)]
    models[1].output_activation = "sigmoid"
    (finding,) = xcam.compare(models, IMAGE).findings
    assert finding.startswith(
        "the activations at the outputs differ: softmax in fake (fake), sigmoid in fake (fake); heatmaps and class scores"
    )
    assert xcam.compare([opened(spec), opened(spec)], IMAGE).findings == ()


def test_misspelt_arguments_and_options_of_methods() -> None:
    models = [opened(xcam.InputSpec((4, 6), preprocessing=RAW)) for _ in range(2)]
    with pytest.raises(OptionError, match=r"compare\(\) has no option 'aling'; nearest: align$"):
        xcam.compare(models, IMAGE, aling=True)  # type: ignore[call-arg]
    with pytest.raises(InputError, match="method 'gradcam' has no option 'k'"):
        xcam.compare(models, IMAGE, method_options={"k": 1.0})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = xcam.compare(models, IMAGE, method="fem", method_options={"k": 0.5})
    assert result.method == "fem"


@pytest.mark.parametrize(
    ("models", "message"),
    [([], "cannot compare fewer than two models"), ([FakeModel()], "give two or more")],
)
def test_fewer_than_two_models(models: list[Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        xcam.compare(models, IMAGE)
    with pytest.raises(InputError, match=f"cannot match the layers of {len(models)} models; give two"):
        corresponding(models)


def test_labels_that_are_only_indices_count_as_none() -> None:
    spec = xcam.InputSpec((4, 6), preprocessing=RAW)
    named, numbered = opened(spec), opened(spec)
    numbered.labels = ["0", "1"]
    comparison = xcam.compare([named, numbered], IMAGE, layer="features")
    assert comparison.verdict == "identical"
    assert [p.index for p in comparison.images[0].predictions] == [comparison.images[0].predictions[0].index] * 2
    assert numbered.labels == ["0", "1"]


def test_zero_heatmaps_are_a_finding() -> None:
    spec = xcam.InputSpec((4, 6), preprocessing=RAW)
    models = [opened(spec), opened(spec)]
    dark = np.zeros_like(IMAGE)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", xcam.ZeroHeatmapWarning)
        one = xcam.compare(models, dark, layer="features")
        both = xcam.compare(models, [IMAGE, dark], layer="features")
    remedy = "only the class scores are compared there; choose another layer, class or method"
    assert (one.verdict, one.findings) == (
        "equivalent",
        (f"the heatmaps are zero everywhere on the image: {remedy}",),
    )
    assert [image.verdict for image in both.images] == ["identical", "equivalent"]
    pair = json.loads(json.dumps(both.to_dict(), allow_nan=False))["images"][1]["pairs"][0]
    assert (pair["both_zero"], pair["pearson"], pair["logits"]) == (True, None, 0)
