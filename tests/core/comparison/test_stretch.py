"""Stretches: a model is run from given values at a layer to a later layer, against plain torch."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import xcam
from xcam import Layer
from xcam.comparison.stretch import BOTH, ComparedModel, NamePair, Runs, Stretch
from xcam.errors import ModelError

X = np.random.default_rng(0).uniform(0, 1, (2, 3, 16, 16)).astype(np.float32)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    parts = [
        nn.Conv2d(3, 6, 3),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(6, 4, 3),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    ]
    return nn.Sequential(*parts, nn.Linear(4, 5)).eval()


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[ComparedModel, ComparedModel]:
    path: Path = tmp_path_factory.mktemp("stretch") / "second.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.onnx.export(network(), (torch.rand(2, 3, 16, 16),), str(path), dynamo=False)
    opened = xcam.load(network(), size=(16, 16)), xcam.load(path)
    first, second = (ComparedModel(model, model.input, X) for model in opened)
    return first, second


def through(parts: slice, values: Any) -> np.ndarray:
    with torch.no_grad():
        result: np.ndarray = network()[parts](torch.from_numpy(np.ascontiguousarray(values, np.float32))).numpy()
    return result


@pytest.mark.parametrize(
    ("start", "end", "parts"),
    [
        (None, NamePair("3", "/3/Conv"), slice(0, 4)),
        (None, NamePair("6", "/6/Gemm"), slice(0, 7)),  # an output
        (NamePair("2", "/2/MaxPool"), NamePair("3", "/3/Conv"), slice(3, 4)),
        (NamePair("2", "/2/MaxPool"), NamePair("6", "/6/Gemm"), slice(3, 7)),
        (NamePair("2", "/2/MaxPool"), NamePair("5", "/5/Flatten"), slice(3, 6)),  # to a vector
        (NamePair("5", "/5/Flatten"), NamePair("6", "/6/Gemm"), slice(6, 7)),  # from a vector
    ],
)
def test_the_second_model_is_run_from_given_values(
    models: tuple[ComparedModel, ComparedModel], start: NamePair | None, end: NamePair, parts: slice
) -> None:
    stretch = Stretch(models, start, end)
    assert stretch.can_run(0)
    assert stretch.can_run(1)
    for which in BOTH:
        np.testing.assert_allclose(stretch.end_value(which), through(slice(0, parts.stop), X), atol=1e-5)
    values = np.random.default_rng(1).normal(size=stretch.start_value(1).shape).astype(np.float32)
    for which in BOTH:
        np.testing.assert_allclose(stretch.run(which, values), through(parts, values), atol=1e-5)
    np.testing.assert_allclose(stretch.local(), stretch.end_value(1), atol=1e-5)


def test_on_other_images(models: tuple[ComparedModel, ComparedModel]) -> None:
    stretch = Stretch(models, None, NamePair("3", "/3/Conv")).on((X[:, :, ::-1], X[:, :, ::-1]))
    np.testing.assert_allclose(stretch.end_value(1), through(slice(0, 4), X[:, :, ::-1]), atol=1e-5)
    np.testing.assert_array_equal(stretch.start_value(0), X[:, :, ::-1])


class Fixed:
    """A model of bytes, channels last, that cannot be run from a layer."""

    name = backend = "fixed"
    input = xcam.InputSpec((4, 4), layout="channels_last", dtype="uint8")
    capabilities = frozenset({"gradients"})
    layers = (Layer("half", "Scale", (3, 4, 4)), Layer("rest", "Scale", (3, 4, 4)))

    def activations(self, x: np.ndarray, layers: Any) -> dict[str, np.ndarray]:
        assert x.dtype == np.uint8
        return {name: np.moveaxis(x, -1, 1).astype(np.float32) / 2 for name in layers}


def test_the_input_is_channels_first_and_rounded_to_the_type_of_the_model() -> None:
    x = np.random.default_rng(0).integers(0, 256, (1, 4, 4, 3), dtype=np.uint8)
    model: Any = Fixed()
    runs = Runs(ComparedModel(model, model.input, x))
    np.testing.assert_array_equal(runs.value(None), np.moveaxis(x, -1, 1))
    values = np.full((1, 3, 4, 4), 300.4, np.float32)
    values[:, 0] = 6.8
    assert runs.run(None, values, "half")[0, :, 0, 0].tolist() == [3.5, 127.5, 127.5]
    assert not runs.can_start_at("half")
    with pytest.raises(ModelError, match="cannot run fixed from its layer 'half'"):
        runs.run("half", values, "rest")
