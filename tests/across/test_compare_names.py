"""Names of one value share their partner, whatever an exporter kept of them; the layer that a user names is explained."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import xcam
from xcam.comparison.compare import corresponding

IMAGE = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)


def torch_network(*, is_normalised: bool) -> Any:
    """Return blocks that end in ReLU, Dropout and Identity, with statistics that are not trivial."""
    import torch
    from torch import nn

    torch.manual_seed(0)

    def block(channels: int) -> Any:
        norm = [nn.BatchNorm2d(8)] if is_normalised else []
        return nn.Sequential(nn.Conv2d(channels, 8, 3, padding=1), *norm, nn.ReLU(), nn.Dropout(), nn.Identity())

    net = nn.Sequential(block(3), block(8), block(8), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3))
    for _ in range(20):
        net(torch.rand(8, 3, 32, 32))
    return net.eval()


def opened(model: Any) -> Any:
    return xcam.load(model, preprocess="unit", size=None if isinstance(model, Path) else (32, 32))


def old_export(net: Any, path: Path) -> Any:
    """Return the file of torch's old exporter, which folds batch normalisations."""
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it is deprecated
        torch.onnx.export(net, (torch.rand(1, 3, 32, 32),), str(path), dynamo=False)
    return opened(path)


@pytest.fixture(scope="module")
def torch_and_file(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    net = torch_network(is_normalised=True)
    return opened(net), old_export(net, tmp_path_factory.mktemp("names") / "old.onnx")


@pytest.mark.parametrize("name", ["1", "1.2", "1.3", "1.4", "1.1"])
def test_every_name_of_a_value_finds_its_counterpart(torch_and_file: Any, name: str) -> None:
    """A block, its ReLU, Dropout and Identity; and the batch normalisation that was folded into the convolution."""
    expected = "/1/1.0/Conv" if name == "1.1" else "/1/1.2/Relu"
    first, second = torch_and_file
    result = xcam.compare([first, second], IMAGE, layer=[name, None])
    assert (result.verdict, result.layers, result.findings) == ("identical", (name, expected), ())
    others = [pair.second for pair in corresponding([first, second], IMAGE) if name in pair.first_names]
    assert others == [expected]


def test_the_layer_of_the_second_model_may_be_named_alone(torch_and_file: Any) -> None:
    first, second = torch_and_file
    for models, layer, expected in (
        ([first, second], "/1/1.2/Relu", "1.2"),
        ([first, second], "/1/1.0/Conv", "1.1"),
        ([second, first], "1", "/1/1.2/Relu"),
    ):
        result = xcam.compare(models, IMAGE, layer=[None, layer])
        assert (result.verdict, result.layers, result.findings) == ("identical", (expected, layer), ())
    result = xcam.compare([first, second, first], IMAGE, layer=[None, None, "0"])
    assert (result.verdict, result.layers) == ("identical", ("0", "/0/0.2/Relu", "0"))


def test_a_layer_without_a_counterpart_is_a_finding(torch_and_file: Any) -> None:
    result = xcam.compare(list(torch_and_file), IMAGE, layer=["1.0", None])
    (finding,) = result.findings
    assert "corresponds to '1.0' in shape and values" in finding
    assert finding.endswith("its default layer is explained ('1.1' is the next layer that both have)")


def test_the_default_of_the_first_model_is_explained(torch_and_file: Any) -> None:
    """The default is the last name of a value whose other names were dropped."""
    first, second = torch_and_file
    default = xcam.explain(first, IMAGE).layer
    result = xcam.compare([first, second], IMAGE)
    assert (result.verdict, result.layers) == ("identical", (default, "/2/2.2/Relu"))


@pytest.mark.parametrize("scale", [1.05, 0.8])
def test_a_folded_normalisation_is_paired_by_its_value(scale: float, tmp_path: Path) -> None:
    net = torch_network(is_normalised=True)
    bad = copy.deepcopy(net)
    bad[1][0].weight.data *= scale
    (divergence,) = xcam.compare([opened(net), old_export(bad, tmp_path / "bad.onnx")], IMAGE).divergences
    step = divergence.steps[divergence.index]
    assert (step.first, step.second) == ("1.1", "/1/1.0/Conv")
    assert step.error == pytest.approx(abs(scale - 1), rel=0.5)
    assert [pair.first for pair in divergence.steps][:3] == ["0.1", "0.2", "1.1"]


def test_each_value_is_listed_once(torch_and_file: Any) -> None:
    pairs = corresponding(list(torch_and_file), IMAGE)
    assert [pair.first for pair in pairs] == ["0.1", "0.2", "1.1", "1.2", "2.1", "2.2", "3", "4", "5"]
    assert max(pair.error for pair in pairs) < 1e-4
    assert set(pairs[1].first_names) == {"0", "0.2", "0.3", "0.4"}
    assert "/0/0.2/Relu" in pairs[1].second_names
    swapped = corresponding(list(torch_and_file)[::-1], IMAGE)
    assert [(p.second_names, p.first_names) for p in swapped] == [(p.first_names, p.second_names) for p in pairs]


def keras_network(bias: float = 0.0) -> Any:
    keras = pytest.importorskip("keras")
    keras.utils.set_random_seed(0)
    inputs = x = keras.Input((32, 32, 3))
    for name in ("c1", "c2"):
        x = keras.layers.Conv2D(8, 3, name=name)(x)
        x = keras.layers.BatchNormalization(name=f"{name}_bn")(x)
        x = keras.layers.Activation("relu", name=f"{name}_relu")(x)
        x = keras.layers.Dropout(0.5, name=f"{name}_drop")(x)
        x = keras.layers.MaxPooling2D(name=f"{name}_pool")(x)
    x = keras.layers.Conv2D(8, 3, activation="relu", padding="same", name="c3")(x)
    x = keras.layers.Dropout(0.5, name="drop")(x)
    x = keras.layers.GlobalAveragePooling2D(name="mean")(x)
    model = keras.Model(inputs, keras.layers.Dense(3, name="fc")(x))
    random = np.random.default_rng(0)
    model.set_weights(
        [
            np.float32(
                random.uniform(0.3, 1.2, w.shape)
                * (1 if w.ndim == 1 else random.normal(size=w.shape) / w[..., 0].size ** 0.5)
            )
            for w in model.get_weights()
        ]
    )
    layer = model.get_layer("c1")
    layer.set_weights([layer.get_weights()[0], layer.get_weights()[1] + bias])
    return model


def keras_in_torch() -> Any:
    """Return `keras_network` in PyTorch, without Dropout, with the batch normalisations folded."""
    import torch
    from torch import nn

    model = keras_network()

    def conv(name: str, *, has_norm: bool) -> Any:
        kernel, bias = model.get_layer(name).get_weights()
        if has_norm:
            gamma, beta, mean, variance = model.get_layer(f"{name}_bn").get_weights()
            factor = gamma / np.sqrt(variance + model.get_layer(f"{name}_bn").epsilon)
            kernel, bias = kernel * factor, (bias - mean) * factor + beta
        result = nn.Conv2d(kernel.shape[2], 8, 3, padding=0 if has_norm else 1)
        result.weight.data = torch.tensor(kernel.transpose(3, 2, 0, 1).copy())
        result.bias.data = torch.tensor(bias)
        return result

    fc = nn.Linear(8, 3)
    kernel, bias = model.get_layer("fc").get_weights()
    fc.weight.data, fc.bias.data = torch.tensor(kernel.T.copy()), torch.tensor(bias)
    parts = [
        conv("c1", has_norm=True),
        nn.ReLU(),
        nn.MaxPool2d(2),
        conv("c2", has_norm=True),
        nn.ReLU(),
        nn.MaxPool2d(2),
    ]
    return nn.Sequential(
        *parts, conv("c3", has_norm=False), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), fc
    ).eval()


KERAS_NAMES = ["c1_bn", "c1_relu", "c1_drop", "c2_relu", "c2_drop", "c2_pool", "c3", "drop"]


@pytest.mark.parametrize("name", KERAS_NAMES)
def test_keras_layers_in_torch(name: str) -> None:
    first, second = opened(keras_network()), opened(keras_in_torch())
    expected = ["0", "1", "1", "4", "4", "5", "7", "7"][KERAS_NAMES.index(name)]
    result = xcam.compare([first, second], IMAGE, layer=[name, None], method="layercam")
    assert (result.verdict, result.layers, result.findings) == ("identical", (name, expected), ())
    result = xcam.compare([second, first], IMAGE, layer=[expected, None], method="layercam")
    assert result.verdict == "identical"
    assert name in next(p.second_names for p in corresponding([second, first], IMAGE) if p.first == expected)


@pytest.mark.slow
def test_keras_layers_in_a_file(tmp_path: Path) -> None:
    keras = pytest.importorskip("keras")
    if keras.backend.backend() != "tensorflow":
        pytest.skip("the exporter needs TensorFlow")
    first = opened(keras_network())
    files = []
    for bias in (0.0, 0.05):
        path = tmp_path / f"{bias}.onnx"
        opened(keras_network(bias)).to_onnx(path)
        files.append(opened(path))
    default = xcam.explain(first, IMAGE).layer
    result = xcam.compare([first, files[0]], IMAGE)
    assert (result.verdict, result.layers[0], result.findings) == ("identical", default, ())
    for name in KERAS_NAMES:
        result = xcam.compare([first, files[0]], IMAGE, layer=[name, None], method="layercam")
        assert (result.verdict, result.findings) == ("identical", ()), name
    opened_twin = opened(
        keras_in_torch()
    )  # the convolutions of the file are inner layers, behind which an activation follows
    for name in ("0", "3", "6"):
        result = xcam.compare([opened_twin, files[0]], IMAGE, layer=[name, None], method="layercam")
        assert (result.verdict, result.findings) == ("identical", ()), name
        back = xcam.compare([opened_twin, files[0]], IMAGE, layer=[None, result.layers[1]], method="layercam")
        assert back.layers == result.layers
    errors = {}
    for pair in corresponding([first, files[1]], IMAGE):
        errors |= dict.fromkeys(pair.first_names, pair.error)
    for name in KERAS_NAMES:
        assert 0 < errors[name] < 0.2, name
