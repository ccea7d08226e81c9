"""Signals and volumes in every framework: the maps are those of plain autograd, and an exported file has the same."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import xcam
from xcam_keras.backend import keras

METHODS = ("gradcam", "hirescam", "ablationcam", "scorecam", "reciprocam")


def array(*shape: int) -> Any:
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def volumes() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        *(nn.Conv3d(3, 8, 3), nn.BatchNorm3d(8), nn.LeakyReLU(0.1), nn.MaxPool3d(2)),
        *(nn.Conv3d(8, 16, 3), nn.Tanh(), nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(16, 2)),
    ).eval()


def heartbeats(channels: int = 1) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        *(nn.Conv1d(channels, 8, 5), nn.ReLU(), nn.Conv1d(8, 16, 5), nn.Tanh()),
        *(nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(16, 3)),
    ).eval()


def bands() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        *(nn.Conv2d(12, 8, 3), nn.ReLU(), nn.Conv2d(8, 6, 3), nn.Tanh()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 3)),
    ).eval()


def gradcam(activations: Any, gradients: Any) -> Any:
    """Return Grad-CAM's map of [N, C, *space]."""
    space = tuple(range(2, activations.ndim))
    return (gradients.mean(axis=space, keepdims=True) * activations).sum(axis=1)[0]


TORCH = {
    "volume": (volumes, (1, 3, 16, 12, 14), "5", (5, 3, 4)),
    "signal": (heartbeats, (1, 1, 200), "3", (192,)),
    "leads": (lambda: heartbeats(12), (1, 12, 90), "3", (82,)),
    "bands": (bands, (1, 12, 20, 24), "3", (16, 20)),
}


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::xcam.errors.ZeroHeatmapWarning")
@pytest.mark.parametrize("case", TORCH)
def test_torch(case: str, tmp_path: Path) -> None:
    build, shape, layer, size = TORCH[case]
    network, x = build(), array(*shape)
    model = xcam.load(network, size=(20, 24) if len(shape) == 4 else None)
    e = xcam.explain(model, x, target=1)
    assert (e.layer, e.cam.shape, e.heatmap.shape) == (layer, size, shape[2:])
    inside = network[: int(layer) + 1](torch.from_numpy(x)).detach().requires_grad_()
    score = network[int(layer) + 1 :](inside)[0, 1]
    (gradients,) = torch.autograd.grad(score, inside)
    expected = gradcam(inside.detach().numpy(), gradients.numpy())
    np.testing.assert_allclose(e.cam, expected, rtol=1e-4, atol=1e-6)
    assert e.score == pytest.approx(float(score.detach()), rel=1e-5)
    assert model.input.size == ((20, 24) if len(shape) == 4 else None)  # not changed

    sample = torch.from_numpy(array(2, *shape[1:]))
    sides = {k: f"side{k}" for k in range(2, len(shape))} if case != "leads" else {}
    options = {"input_names": ["x"], "dynamic_axes": {"x": {0: "batch"} | sides}, "dynamo": False}
    torch.onnx.export(network, (sample,), tmp_path / "x.onnx", **options)
    same(xcam.load(tmp_path / "x.onnx"), model, x)
    if case == "signal":
        model.to_onnx(tmp_path / "own.onnx")
        same(xcam.load(tmp_path / "own.onnx"), model, x)


def same(exported: Any, model: Any, x: Any) -> None:
    for method in METHODS:
        a, b = (xcam.explain(each, x, target=1, method=method) for each in (exported, model))
        assert a.cam.shape == b.cam.shape
        np.testing.assert_allclose(a.cam, b.cam, rtol=1e-3, atol=1e-4 * np.abs(b.cam).max(), err_msg=method)


def keras_network(space: Sequence[int | None], channels: int) -> Any:
    keras.utils.set_random_seed(0)
    rank, layers = len(space), keras.layers
    convolution = getattr(layers, f"Conv{rank}D")
    return keras.Sequential(
        [
            keras.Input((*space, channels)),
            convolution(8, 3, activation="relu"),
            convolution(6, 3, activation="tanh", name="last"),
            getattr(layers, f"GlobalAveragePooling{rank}D")(),
            layers.Dense(3, name="scores"),
        ]
    )


KERAS = {
    "signal": ((60,), 1, (60,)),
    "leads": ((60,), 12, (60,)),
    "any length": ((None,), 12, (60,)),
    "volume": ((10, 8, 9), 2, (10, 8, 9)),
    "any volume": ((None, None, None), 2, (10, 8, 9)),
    "bands": ((16, 20), 12, (16, 20)),
}


@pytest.mark.parametrize("case", KERAS)
def test_keras(case: str, tmp_path: Path) -> None:
    """The gradient of the mean and the dense layer behind it is known: the weights over the number of positions."""
    space, channels, size = KERAS[case]
    network, x = keras_network(space, channels), array(1, *size, channels)
    model = xcam.load(network)
    e = xcam.explain(model, x, target=1)
    assert (e.layer, e.heatmap.shape) == ("last", size)
    value = np.asarray(network.get_layer("last")(network.layers[0](x)))[0]
    weights = np.asarray(network.get_layer("scores").kernel)[:, 1]
    np.testing.assert_allclose(e.cam, value @ weights / e.cam.size, rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(xcam.explain(model, x[0], target=1).cam, e.cam)
    np.testing.assert_array_equal(e.values, np.moveaxis(x[0], -1, 0))
    model.to_onnx(tmp_path / "x.onnx")
    same(xcam.load(tmp_path / "x.onnx"), model, x)


def test_a_signal_without_its_channel_axis() -> None:
    x = array(200)
    model = xcam.load(heartbeats())
    np.testing.assert_array_equal(xcam.explain(model, x).cam, xcam.explain(model, x[None, None]).cam)
    network = keras_network((60,), 1)
    np.testing.assert_array_equal(xcam.explain(network, x[:60]).cam, xcam.explain(network, x[None, :60, None]).cam)


@pytest.mark.parametrize("build", [volumes, heartbeats, lambda: keras_network((60,), 1)])
def test_an_image_for_a_model_of_signals_or_volumes(build: Callable[[], Any]) -> None:
    with pytest.raises(
        xcam.ModelError, match=r"the model takes (signals|volumes).*, not images; give `explain` an array as it"
    ):
        xcam.explain(build(), np.zeros((20, 20, 3), np.uint8))


def test_the_layers_of_a_model_of_any_size_are_listed() -> None:
    model = xcam.load(volumes())
    assert [(layer.name, len(layer.shape)) for layer in model.layers][:2] == [("0", 4), ("1", 4)]
    assert len(xcam.load(heartbeats()).layers[0].shape) == 2


@pytest.mark.parametrize("size", [(1, 12, 16, 3), (2, 3, 12, 16, 4)])
def test_a_wrong_number_of_channels_or_axes_is_one_line(size: tuple[int, ...]) -> None:
    network = keras_network((10, 8, 9), 2)
    with pytest.raises(xcam.InputError, match=r"sequential\w* takes|takes \[D, H, W, C\]") as error:
        xcam.explain(network, array(*size))
    assert "\n" not in str(error.value)


class Recurrent(nn.Module):
    """[N, L, C] → scores, by the mean over the steps."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.LSTM(12, 5, batch_first=True)
        self.head = nn.Linear(5, 4)

    def forward(self, x: Any) -> Any:
        return self.head(self.rnn(x)[0].mean(1))


class LastStep(nn.Module):
    """A convolution, and the last step of a recurrent layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(3, 8, 5, stride=2)
        self.rnn = nn.GRU(8, 6, batch_first=True)
        self.head = nn.Linear(6, 4)

    def forward(self, x: Any) -> Any:
        return self.head(self.rnn(torch.tanh(self.conv(x)).transpose(1, 2))[0][:, -1])


class Transformer(nn.Module):
    """Patches of a signal and a class token; with `embedding` of [N, L, C] or of [N, C, L]."""

    def __init__(self, embedding: nn.Module) -> None:
        super().__init__()
        self.embedding = embedding
        self.token = nn.Parameter(torch.zeros(1, 1, 8))
        self.norm = nn.LayerNorm(8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Any) -> Any:
        h = self.embedding(x)
        h = h.transpose(1, 2) if isinstance(self.embedding, nn.Conv1d) else h
        h = self.norm(torch.cat([self.token.expand(len(h), -1, -1), h], dim=1))
        return self.head(self.attention(h, h, h)[0][:, 0])


class Rows(nn.Module):
    """[N, C, L], by a 2-D convolution over one row."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 6, (1, 5))
        self.head = nn.Linear(6, 3)

    def forward(self, x: Any) -> Any:
        return self.head(torch.tanh(self.conv(x[:, :, None])).mean((2, 3)))


class LastAxis(nn.Module):
    """Its own part moves the channels last."""

    class Moved(nn.Module):
        def forward(self, x: Any) -> Any:
            return x.movedim(1, -1)

    def __init__(self, rank: int) -> None:
        super().__init__()
        self.conv = (nn.Conv1d if rank == 1 else nn.Conv3d)(3, 8, 3)
        self.moved = self.Moved()
        self.head = nn.Linear(8, 4)

    def forward(self, x: Any) -> Any:
        return self.head(self.moved(self.conv(x).tanh()).tanh().flatten(1, -2).mean(1))


class Cubes(nn.Module):
    """A transformer on the patches of a video."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Conv3d(3, 8, (2, 8, 8), stride=(2, 8, 8))
        self.norm = nn.LayerNorm(8)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Any) -> Any:
        return self.head(self.norm(self.embedding(x).flatten(2).transpose(1, 2)).tanh().mean(1))


SEQUENCES = {
    "channels moved": (lambda: LastAxis(1), (1, 3, 60), "moved", lambda value: value.movedim(-1, 1), (60,)),
    "channels of a volume moved": (
        lambda: LastAxis(3),
        (1, 3, 9, 8, 7),
        "moved",
        lambda v: v.movedim(-1, 1),
        (9, 8, 7),
    ),
    "tokens of a video": (Cubes, (1, 3, 8, 16, 24), "embedding", lambda value: value, (8, 16, 24)),
    "recurrent": (Recurrent, (1, 50, 12), "rnn", lambda value: value.transpose(1, 2), (50,)),
    "last step": (LastStep, (1, 3, 64), "conv", lambda value: value, (64,)),
    "class token": (
        lambda: Transformer(nn.Conv1d(3, 8, 8, 8)),
        (1, 3, 128),
        "norm",
        lambda v: v.transpose(1, 2)[..., 1:],
        (128,),
    ),
    "steps": (lambda: Transformer(nn.Linear(3, 8)), (1, 40, 3), "norm", lambda v: v.transpose(1, 2)[..., 1:], (40,)),
    "one row": (Rows, (1, 2, 100), "conv", lambda value: value[:, :, 0], (100,)),
}


@pytest.mark.parametrize("case", SEQUENCES)
def test_models_of_sequences(case: str) -> None:
    """The default layer has the positions that the output reads, in the order of the signal, without a class token."""
    build, shape, layer, arranged, size = SEQUENCES[case]
    torch.manual_seed(0)
    network, x = build().eval(), array(*shape)
    e = xcam.explain(xcam.load(network), x, target=1)
    keep: dict[str, Any] = {}

    def hook(_: Any, __: Any, value: Any) -> None:
        keep["value"] = value[0] if isinstance(value, tuple) else value
        keep["value"].retain_grad()

    network.get_submodule(layer).register_forward_hook(hook)
    network(torch.from_numpy(x))[0, 1].backward()
    value, gradient = (arranged(t.detach()).numpy() for t in (keep["value"], keep["value"].grad))
    assert (e.layer, e.heatmap.shape) == (layer, size)
    if case not in (
        "class token",
        "steps",
    ):  # there the mean of the gradient is over the patches, as in any grid of tokens
        pass
    np.testing.assert_allclose(e.cam, gradcam(value, gradient), rtol=1e-4, atol=1e-6)


def test_a_layer_of_which_only_the_last_step_is_read() -> None:
    """Where the caller names such a layer, or a backend cannot see it, the empty map is explained."""
    inputs = keras.Input((30, 3))
    h = keras.layers.Conv1D(6, 3, padding="same", name="conv")(inputs)
    network = keras.Model(inputs, keras.layers.Dense(3)(h[:, -1]))
    with pytest.warns(
        xcam.XcamWarning, match="depends on 1 of 30 positions of layer 'conv', .* choose an earlier layer"
    ):
        xcam.explain(network, array(1, 30, 3), layer="conv")


def test_the_maximum_over_a_signal_needs_no_warning() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv1d(1, 8, 5), nn.Tanh(), nn.AdaptiveMaxPool1d(1), nn.Flatten(), nn.Linear(8, 3))
    assert xcam.explain(network, array(1, 1, 200), method="hirescam").layer == "1"


def test_a_video_whose_frames_go_through_a_network_of_images() -> None:
    """The first convolution suggests images, and the module takes five axes."""

    class Frames(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 8, 3)
            self.time = nn.Conv3d(8, 4, (3, 1, 1))

        def forward(self, x: Any) -> Any:
            n, c, t, h, w = x.shape
            y = self.conv(x.transpose(1, 2).reshape(n * t, c, h, w)).tanh()
            return self.time(y.view(n, t, 8, h - 2, w - 2).transpose(1, 2)).mean((2, 3, 4))

    e = xcam.explain(Frames().eval(), array(1, 3, 5, 9, 8), method="hirescam")
    assert (e.layer, e.cam.shape, e.heatmap.shape) == ("time", (3, 7, 6), (5, 9, 8))


def test_the_size_of_a_model_of_signals_or_volumes() -> None:
    """A head of fixed length needs it before any array is given: to list the layers."""
    convolution = [nn.Conv1d(2, 8, 5), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 196, 3)]
    signals = nn.Sequential(*convolution).eval()
    for size in ((200,), (200, 200)):  # the command line gives one number twice
        model = xcam.load(signals, size=size)
        assert model.input.size == (200,)
        assert model.layers[0].shape == (8, 196)
    with pytest.raises(
        xcam.ModelError, match=r"cannot run Sequential on an input of shape \[2, 1024\].*give another size="
    ):
        _ = xcam.load(signals).layers
    solid = nn.Sequential(nn.Conv3d(1, 4, 3), nn.Flatten(), nn.Linear(4 * 6 * 7 * 8, 2)).eval()
    assert xcam.load(solid, size=(8, 9, 10)).layers[0].shape == (4, 6, 7, 8)
    with pytest.raises(xcam.InputError, match=r"takes volumes: give size=\(depth, height, width\)"):
        xcam.load(keras_network((None, None, None), 2), size=(8, 9))
