"""Models whose layers are not as their names and shapes suggest, in torch, in ONNX files exported from them, and in Keras.

Maps are compared with plain torch: the layer's value and gradient by autograd, arranged by hand.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import keras
import numpy as np
import pytest
import torch
from torch import Tensor, nn

import xcam

pytestmark = pytest.mark.filterwarnings("ignore::xcam.ZeroHeatmapWarning")  # the raw maps are compared
SIZE = 64
TARGET = 1


@pytest.fixture
def image() -> Any:
    blocks = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
    return cv2.resize(blocks, (SIZE, SIZE), interpolation=cv2.INTER_CUBIC)


def batch(image: Any) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)[None]) / np.float32(255))


def exported(net: nn.Module, path: Path, channels: int = 3) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            net.eval(),
            (torch.zeros(1, channels, SIZE, SIZE),),
            path,
            dynamo=False,
            input_names=["x"],
            dynamic_axes={"x": {0: "n"}},
        )
    return path


def opened(net: nn.Module, backend: str, folder: Path, channels: int = 3) -> Any:
    source: Any = net if backend == "torch" else exported(net, folder / "net.onnx", channels)
    return xcam.load(source, preprocess="unit", size=(SIZE, SIZE))


def gradcam(value: Tensor, output: Tensor, arranged: Callable[[Tensor], Tensor] = lambda t: t) -> Any:
    """Return Grad-CAM's raw map of a value that `arranged` turns into [1, C, h, w]."""
    (gradient,) = torch.autograd.grad(output[0, TARGET], value)
    a, g = arranged(value.detach()), arranged(gradient)
    return (g.mean((2, 3), keepdim=True) * a).sum(1)[0].numpy()


def agree(result: Any, expected: Any) -> None:
    assert result.shape == expected.shape
    assert np.abs(result - expected).max() <= 1e-4 * np.abs(expected).max()


class Siamese(nn.Module):
    """Two images through one encoder; the second is a fixed reference, repeated for the batch."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.encoder = nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.ReLU(), nn.Conv2d(8, 16, 3, 2), nn.ReLU())
        self.head = nn.Linear(16, 2)
        self.reference = nn.Parameter(torch.rand(1, 3, SIZE, SIZE))

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.encoder(x), self.encoder(self.reference.expand(len(x), -1, -1, -1))
        return self.head((a.mean((2, 3)) - b.mean((2, 3))).abs())  # type: ignore[no-any-return]


@pytest.mark.parametrize("backend", ["torch", "onnx"])
def test_the_map_of_a_siamese_network_is_that_of_the_image(backend: str, image: Any, tmp_path: Path) -> None:
    net = Siamese()
    a, b = net.encoder(batch(image)), net.encoder(net.reference)
    expected = gradcam(a, net.head((a.mean((2, 3)) - b.mean((2, 3))).abs()))
    model = opened(net, backend, tmp_path)
    agree(xcam.explain(model, image, target=TARGET).cam, expected)
    reference = [layer.name for layer in model.layers if layer.has_space and not layer.depends_on_input]
    if backend == "torch":  # the exporter computes constants at once
        assert reference
    for name in reference:
        with pytest.raises(xcam.InputError, match="does not depend on the image"):
            xcam.explain(model, image, layer=name)


def test_the_map_of_a_siamese_network_in_keras(image: Any) -> None:
    reference = np.random.default_rng(1).random((1, SIZE, SIZE, 3), np.float32)
    keras.utils.set_random_seed(0)
    layers = keras.layers
    encoder = keras.Sequential(
        [layers.Conv2D(8, 3, 2, activation="relu"), layers.Conv2D(16, 3, 2, activation="relu")]
    )
    head = layers.Dense(2)

    class Fixed(keras.Model):
        def __init__(self) -> None:
            super().__init__()
            self.encoder, self.head = encoder, head

        def call(self, x: Any) -> Any:
            other = keras.ops.broadcast_to(reference, keras.ops.shape(x))
            a, b = (keras.ops.mean(self.encoder(t), (1, 2)) for t in (x, other))
            return self.head(keras.ops.abs(a - b))

    model = xcam.load(Fixed(), preprocess="unit", size=(SIZE, SIZE))
    explanation = xcam.explain(model, image, target=TARGET)
    x = image[None] / np.float32(255)
    values = model.activations(x, [explanation.layer])[explanation.layer]
    np.testing.assert_allclose(values, np.moveaxis(np.asarray(encoder(x)), -1, 1), atol=1e-5)


class TokensFirst(nn.Module):
    """Tokens first, batch second: the default of nn.TransformerEncoder."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.patch, self.pre = nn.Conv2d(3, 32, 8, 8), nn.LayerNorm(32)
        self.attention, self.norm = nn.MultiheadAttention(32, 4), nn.LayerNorm(32)
        self.head = nn.Linear(32, 5)

    def tokens(self, x: Tensor) -> Tensor:
        t = self.pre(self.patch(x).flatten(2).permute(2, 0, 1))
        return self.norm(t + self.attention(t, t, t, need_weights=False)[0])  # type: ignore[no-any-return]

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.tokens(x).mean(0))  # type: ignore[no-any-return]


@pytest.mark.parametrize("backend", ["torch", "onnx"])
def test_tokens_first_and_batch_second(backend: str, image: Any, tmp_path: Path) -> None:
    net = TokensFirst().eval()
    t = net.tokens(batch(image))
    expected = gradcam(t, net.head(t.mean(0)), lambda t: t.permute(1, 2, 0).reshape(1, 32, 8, 8))
    model = opened(net, backend, tmp_path)
    layer = next(layer for layer in model.layers if "norm" in layer.name.lower() and layer.batch_axis == 1)
    explanations = xcam.explain(model, [image, image[::-1].copy()], target=TARGET)
    agree(explanations[0].cam, expected)
    alone = xcam.explain(model, image[::-1].copy(), target=TARGET).cam
    agree(explanations[1].cam, alone)
    masked = xcam.explain(model, image, layer=layer.name, target=TARGET, method="ablationcam")
    assert masked.cam.shape == (8, 8)


class Windows(nn.Module):
    """Tokens in the order of windows of 4×4, as in Hiera."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.patch, self.norm, self.mlp = nn.Conv2d(3, 32, 8, 8), nn.LayerNorm(32), nn.Linear(32, 32)
        self.head = nn.Linear(32, 5)

    def tokens(self, x: Tensor) -> Tensor:
        f = self.patch(x)
        n, c, h, w = f.shape
        return f.reshape(n, c, 2, h // 2, 2, w // 2).permute(0, 3, 5, 2, 4, 1).reshape(n, h * w, c)

    def behind(self, t: Tensor, normed: Tensor) -> Tensor:
        return self.head((t + self.mlp(normed).relu()).mean(1))  # type: ignore[no-any-return]

    def forward(self, x: Tensor) -> Tensor:
        t = self.tokens(x)
        return self.behind(t, self.norm(t))


def in_rows(t: Tensor) -> Tensor:
    """Return tokens of `Windows` as [N, C, 8, 8]."""
    return t.reshape(len(t), 4, 4, 2, 2, 32).permute(0, 5, 3, 1, 4, 2).reshape(len(t), 32, 8, 8)


@pytest.mark.parametrize("backend", ["torch", "onnx"])
def test_tokens_in_the_order_of_windows(backend: str, image: Any, tmp_path: Path) -> None:
    net = Windows().eval()
    t = net.tokens(batch(image))
    normed = net.norm(t)
    expected = gradcam(normed, net.behind(t, normed), in_rows)
    model = opened(net, backend, tmp_path)
    name = next(layer.name for layer in reversed(model.layers) if "orm" in layer.kind and layer.has_space)
    agree(xcam.explain(model, image, layer=name, target=TARGET).cam, expected)
    trace = model.trace(batch(image).numpy(), name)
    np.testing.assert_allclose(model.resume(trace, trace.activations).outputs, trace.outputs, atol=1e-5)
    np.testing.assert_allclose(trace.activations.reshape(1, 32, 8, 8), in_rows(normed.detach()).numpy(), atol=1e-5)


class Gated(nn.Module):
    """A block that keeps [N, H, W, C], with "Conv" in the name of its class."""

    def __init__(self, into: int, out: int) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(into, out, 3, 2, 1), nn.LayerNorm(out)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)).relu()  # type: ignore[no-any-return]


class GatedConvNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.head = Gated(3, 16), Gated(16, 16), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.b(self.a(x.permute(0, 2, 3, 1))).mean((1, 2)))  # type: ignore[no-any-return]


@pytest.mark.parametrize("backend", ["torch", "onnx"])
def test_channels_last_with_as_many_channels_as_columns(backend: str, image: Any, tmp_path: Path) -> None:
    net = GatedConvNet().eval()
    value = net.b(net.a(batch(image).permute(0, 2, 3, 1)))
    expected = gradcam(value, net.head(value.mean((1, 2))), lambda t: t.permute(0, 3, 1, 2))
    agree(xcam.explain(opened(net, backend, tmp_path), image, target=TARGET).cam, expected)


class OneImage(nn.Module):
    """A network that runs on a batch of one alone."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.features = nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.ReLU(), nn.AvgPool2d(5))
        self.head = nn.Linear(288, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x).view(1, -1))  # type: ignore[no-any-return]


@pytest.mark.parametrize("backend", ["torch", "onnx"])
@pytest.mark.parametrize("method", ["gradcam", "scorecam", "ablationcam"])
def test_a_network_of_one_image_at_a_time(backend: str, method: str, image: Any, tmp_path: Path) -> None:
    net = OneImage().eval()
    layer = "features.1" if backend == "torch" else "/features/features.1/Relu"
    other = image[:, ::-1].copy()
    model = opened(net, backend, tmp_path)
    both = xcam.explain(model, [image, other], layer=layer, target=TARGET, method=method)
    if method == "gradcam":
        for explanation, source in zip(both, (image, other), strict=True):
            a = net.features[1](net.features[0](batch(source)))
            agree(explanation.cam, gradcam(a, net.head(net.features[2](a).view(1, -1))))
    alone = xcam.explain(opened(net, backend, tmp_path), other, layer=layer, target=TARGET, method=method)
    agree(both[1].cam, alone.cam)


@pytest.mark.parametrize("fixed", [True, False])
def test_a_keras_network_of_one_image_at_a_time(image: Any, fixed: bool) -> None:
    layers = keras.layers
    keras.utils.set_random_seed(0)
    x = keras.Input((SIZE, SIZE, 3), batch_size=1 if fixed else None)
    h = layers.Conv2D(8, 3, 4, activation="relu")(x)
    h = keras.ops.reshape(layers.GlobalAveragePooling2D()(h), (1, 8))
    net = keras.Model(x, layers.Dense(5)(h))
    model = xcam.load(net, preprocess="unit")
    both = xcam.explain(model, [image, image[:, ::-1].copy()], target=TARGET)
    for explanation, source in zip(both, (image, image[:, ::-1]), strict=True):
        conv, dense = net.layers[1], net.layers[-1]
        a = np.asarray(conv(source[None] / np.float32(255)))[0]
        weights = np.asarray(dense.kernel)[:, TARGET] / a[..., 0].size
        agree(explanation.cam, a @ weights)
    assert model.predict(np.zeros((3, SIZE, SIZE, 3), np.float32)).shape == (3, 5)


def focus(x: Tensor) -> Tensor:
    return nn.functional.pixel_unshuffle(x, 2)


def repeated(x: Tensor) -> Tensor:
    return x.repeat(1, 3, 1, 1)


class Stem(nn.Module):
    """The first convolution does not take the image itself."""

    def __init__(self, before: Callable[[Tensor], Tensor], channels: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.before, self.conv, self.head = before, nn.Conv2d(channels, 16, 3), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.conv(self.before(x)).relu().mean((2, 3)))  # type: ignore[no-any-return]


@pytest.mark.parametrize(("before", "into", "channels"), [(focus, 12, 3), (repeated, 3, 1)])
@pytest.mark.parametrize("backend", ["torch", "onnx"])
def test_the_number_of_channels_is_tried(
    before: Callable[[Tensor], Tensor], into: int, channels: int, backend: str, image: Any, tmp_path: Path
) -> None:
    net = Stem(before, into).eval()
    model = opened(net, backend, tmp_path, channels)
    explanation = xcam.explain(model, image, target=TARGET)
    assert model.input.channels == channels
    grey = torch.from_numpy(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)[None, None] / np.float32(255))
    x = batch(image) if channels == 3 else grey
    a = net.conv(before(x))
    if backend == "onnx":  # the default layer is the ReLU, which is not a module in torch
        a = a.relu()
        agree(explanation.cam, gradcam(a, net.head(a.mean((2, 3)))))
    else:
        agree(explanation.cam, gradcam(a, net.head(a.relu().mean((2, 3)))))


@pytest.mark.parametrize("backend", ["torch", "onnx"])
def test_a_coarse_default_map_is_announced(backend: str, image: Any, tmp_path: Path) -> None:
    torch.manual_seed(0)
    steps = [nn.Conv2d(3, 8, 8, 8), nn.ReLU(), nn.MaxPool2d(4), nn.Conv2d(8, 8, 1), nn.ReLU()]
    net = nn.Sequential(*steps, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3))
    with pytest.warns(xcam.XcamWarning, match=r"only 2×2 positions at its default layer .*; choose a finer one"):
        assert xcam.explain(opened(net, backend, tmp_path), image, target=TARGET).cam.shape == (2, 2)
