"""Files that optimisers save, opened: predictions as without xcam, layers and gradients as of the float file."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnxruntime.transformers import optimizer
from torch import nn

import xcam
from onnx_standard import optimised
from xcam.contract import Array
from xcam.errors import ModelError

X = np.random.default_rng(0).normal(size=(2, 3, 32, 32)).astype(np.float32)
CLASSES = np.eye(5, dtype=np.float32)[[1, 3]]


class Cnn(nn.Module):
    """A residual block, depthwise convolutions, and channels that are weighed by their means."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 12, 3, 2, 1), nn.ReLU())
        self.wide = nn.Sequential(nn.Conv2d(12, 12, 3, padding=1, groups=12), nn.ReLU6(), nn.Conv2d(12, 12, 1))
        self.down = nn.Sequential(nn.Conv2d(12, 20, 3, 2, 1), nn.Hardswish())
        self.more = nn.Conv2d(20, 20, 3, padding=1)
        self.gate = nn.Sequential(nn.Conv2d(20, 6, 1), nn.SiLU(), nn.Conv2d(6, 20, 1), nn.Sigmoid())
        self.head = nn.Linear(20, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        x = self.down(torch.relu(x + self.wide(x)))
        x = torch.relu(x + self.more(x))
        x = x * self.gate(x.mean((2, 3), keepdim=True))
        return self.head(x.mean((2, 3)))  # type: ignore[no-any-return]


class Vit(nn.Module):
    """A transformer of two blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, 16, 8, 8)
        self.position = nn.Parameter(torch.randn(1, 16, 16))
        self.blocks = nn.ModuleList(
            nn.ModuleDict(
                {
                    **{"norm1": nn.LayerNorm(16), "norm2": nn.LayerNorm(16)},
                    **{name: nn.Linear(16, 16) for name in ("q", "k", "v", "out")},
                    **{"up": nn.Linear(16, 32), "down": nn.Linear(32, 16)},
                }
            )
            for _ in range(2)
        )
        self.norm, self.head = nn.LayerNorm(16), nn.Linear(16, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2) + self.position
        for block in self.blocks:
            y = block["norm1"](x)
            q, k, v = (block[name](y).reshape(-1, 16, 2, 8).transpose(1, 2) for name in "qkv")
            y = (q @ k.transpose(-1, -2) / 8**0.5).softmax(-1) @ v
            x = x + block["out"](y.transpose(1, 2).reshape(-1, 16, 16))
            x = x + block["down"](nn.functional.gelu(block["up"](block["norm2"](x))))
        return self.head(self.norm(x).mean(1))  # type: ignore[no-any-return]


LAYERS = {
    "Cnn": ("/stem/stem.1/Relu", "/Relu", "/gate/gate.3/Sigmoid"),
    "Vit": ("/patch/Conv", "/Add_1", "/norm/LayerNormalization"),
    "Vit 12": (
        "/patch/Conv",
        "/Add_1",
        "/norm/Add_1",
    ),  # the optimiser writes layer norms that this operator set lacks
}


@pytest.fixture(scope="module", params=LAYERS)
def file(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A float file."""
    path = tmp_path_factory.mktemp("optimised") / f"{request.param}.onnx"
    torch.manual_seed(0)
    kind, _, opset = request.param.partition(" ")
    net = {"Cnn": Cnn, "Vit": Vit}[kind]().eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        names: dict[str, Any] = {"input_names": ["image"], "output_names": ["scores"]}
        axes = {"dynamic_axes": {"image": {0: "batch"}}}
        torch.onnx.export(
            net, torch.from_numpy(X), path, opset_version=int(opset or 17), dynamo=False, **names, **axes
        )
    return path


def plain(path: Path) -> Array:
    """Run a file without xcam."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"image": X})[0])


def check(path: Path, original: Path, tolerance: float = 1e-4) -> None:
    """Compare an opened file with plain inference, and with the opened float file."""
    model, reference = xcam.load(path), xcam.load(original)
    np.testing.assert_array_equal(model.predict(X), plain(path))
    names = {layer.name for layer in model.layers}
    shared = [layer.name for layer in reference.layers if layer.name in names]
    assert set(LAYERS[original.stem]) <= {*shared}
    values, expected = model.activations(X, shared), reference.activations(X, shared)
    for name in shared:
        np.testing.assert_allclose(values[name], expected[name], atol=tolerance, err_msg=name)
    for name in LAYERS[original.stem]:
        traces = [m.trace(X, name, lambda _: [CLASSES]) for m in (model, reference)]
        scale = np.abs(traces[1].gradients[0]).max()
        np.testing.assert_allclose(traces[0].gradients[0] / scale, traces[1].gradients[0] / scale, atol=tolerance)
        resumed = model.resume(traces[0], traces[0].activations)
        np.testing.assert_allclose(resumed.outputs, traces[0].outputs, atol=tolerance)


@pytest.mark.parametrize("level", ["BASIC", "EXTENDED", "ALL"])
def test_files_of_the_runtime(file: Path, level: str, tmp_path: Path) -> None:
    path = tmp_path / "optimised.onnx"
    saved = optimised(onnx.load(file), path, level)
    others = {node.domain for node in saved.graph.node} - {""}
    assert bool(others) == (level != "BASIC")
    assert ("com.microsoft.nchwc" in others) == (level == "ALL")
    check(path, file)


@pytest.mark.parametrize("kind", ["bert", "vit"])
def test_files_of_the_optimiser_for_transformers(file: Path, kind: str, tmp_path: Path) -> None:
    path = tmp_path / "optimised.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        saved = optimizer.optimize_model(str(file), kind, num_heads=2, hidden_size=16)
        saved.save_model_to_file(str(path))
    if file.stem.startswith("Vit"):
        assert {"SkipLayerNormalization", "BiasGelu"} <= {node.op_type for node in saved.model.graph.node}
        check_at(path, file, ("/patch/Conv", "/q/Add"))
    else:
        check(path, file)


def test_exported_files(file: Path, tmp_path: Path) -> None:
    """A self-explaining file of an optimised one returns the heatmap of `explain`."""
    path = tmp_path / "optimised.onnx"
    optimised(onnx.load(file), path)
    model, layer = xcam.load(path), LAYERS[file.stem][1]
    if file.stem == "Vit 12":  # ONNX converts no layer norms
        with pytest.raises(
            ModelError, match=r"its opset 12 is too old for the gradient.*; export the model again with"
        ):
            xcam.export(model, tmp_path / "explained.onnx", layer=layer, heatmap="gradcam")
        return
    exported = xcam.export(model, tmp_path / "explained.onnx", layer=layer, heatmap="gradcam")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(exported, options, providers=["CPUExecutionProvider"])
    heatmap = dict(zip([o.name for o in session.get_outputs()], session.run(None, {"image": X[:1]}), strict=True))
    expected = xcam.explain(model, X[:1], method="gradcam", layer=layer).heatmap
    np.testing.assert_allclose(heatmap["xcam/heatmap"][0], np.squeeze(expected), atol=1e-4)


@pytest.mark.parametrize("level", ["EXTENDED", "ALL"])
def test_shuffled_weights(file: Path, level: str, tmp_path: Path) -> None:
    """Zeros that fill up blocks remain: otherwise the runtime's pass and its tail would read other channels."""
    path = tmp_path / "optimised.onnx"
    optimised(onnx.load(file), path, level)
    model = xcam.load(path)
    fused = {"Cnn": "Conv", "Vit": "BiasGelu", "Vit 12": "LayerNormFusion"}[file.stem]
    assert any(fused in name for name in model.parameter_layers)
    shuffled = model.with_shuffled_weights(model.parameter_layers)
    trace = shuffled.trace(X, LAYERS[file.stem][0], lambda _: [CLASSES])
    assert np.abs(trace.outputs - model.predict(X)).max() > 0.01
    np.testing.assert_allclose(shuffled.resume(trace, trace.activations).outputs, trace.outputs, atol=1e-5)


def test_types_that_the_file_states(file: Path, tmp_path: Path) -> None:
    """The runtime fuses, and rounds, by them: it gets those of the file, and no others."""
    typed = tmp_path / "typed.onnx"
    onnx.save(onnx.shape_inference.infer_shapes(onnx.load(file), data_prop=True), typed)
    for path in (file, typed):
        np.testing.assert_array_equal(xcam.load(path).predict(X), plain(path))


def check_at(path: Path, original: Path, layers: tuple[str, ...]) -> None:
    """Compare at layers that the optimiser for transformers leaves."""
    model, reference = xcam.load(path), xcam.load(original)
    np.testing.assert_array_equal(model.predict(X), plain(path))
    for name in layers:
        first, second = (m.trace(X, name, lambda _: [CLASSES]) for m in (model, reference))
        np.testing.assert_allclose(first.gradients[0], second.gradients[0], atol=1e-5)


def test_a_fused_convolution_is_not_named_as_the_convolution_alone(file: Path, tmp_path: Path) -> None:
    if file.stem != "Cnn":
        pytest.skip("without fused convolutions")
    for level in ("EXTENDED", "ALL"):
        path = tmp_path / f"{level}.onnx"
        optimised(onnx.load(file), path, level)
        names = {name for layer in xcam.load(path).layers for name in (layer.name, *layer.aliases)}
        assert "/stem/stem.1/Relu" in names
        assert "/stem/stem.0/Conv" not in names
        assert ("/wide/wide.2/Conv" in names) == (level == "EXTENDED"), "a sum is fused into it in blocks"
        assert ("/down/down.0/Conv" in names) == (level == "EXTENDED"), "HardSwish is fused into it in blocks"
        assert not any(name.startswith("ReorderOutput") for name in names)
