"""Sources of torch models, and errors for sources that are refused."""

from __future__ import annotations

import json
import logging
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import xcam
from xcam import InputError, ModelError

X = np.random.default_rng(0).normal(size=(2, 3, 12, 10)).astype(np.float32)


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.features = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True))
        self.out = nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(self.features(x).mean(dim=(2, 3)))


@pytest.fixture
def factory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    source = Path(__file__).read_text().split("class Small", 1)[1].split("@pytest.fixture", 1)[0]
    (tmp_path / "torch_models.py").write_text(f"import torch\nfrom torch import nn\n\n\nclass Small{source}")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "torch_models", raising=False)
    return "torch_models:Small"


def other() -> Small:
    """Return the same architecture with other weights."""
    module = Small()
    with torch.no_grad():
        for p in module.parameters():
            p.mul_(-0.5).add_(0.1)
    return module


def truth(module: nn.Module) -> np.ndarray:
    return module.eval()(torch.from_numpy(X)).detach().numpy()


@pytest.mark.parametrize("suffix", [".safetensors", ".pt", ".pth"])
def test_weights_for_a_factory(factory: str, tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"weights{suffix}"
    if suffix == ".safetensors":
        from safetensors.torch import save_file

        save_file(other().state_dict(), path)
    else:
        torch.save({"epoch": 3, "state_dict": {f"module.{k}": v for k, v in other().state_dict().items()}}, path)
    model = xcam.load(factory, weights=str(path), size=(12, 10))
    np.testing.assert_allclose(model.predict(X), truth(other()), atol=1e-6)
    np.testing.assert_allclose(xcam.load(factory, size=(12, 10)).predict(X), truth(Small()), atol=1e-6)
    with pytest.raises(ModelError, match=r"holds 4 weights without a model; name the function that builds it"):
        xcam.load(path)


def test_weights_given_for_a_live_module_do_not_change_it(tmp_path: Path) -> None:
    torch.save(other().state_dict(), tmp_path / "w.pt")
    module = Small()
    np.testing.assert_allclose(
        xcam.load(module, weights=str(tmp_path / "w.pt"), size=(12, 10)).predict(X), truth(other()), atol=1e-6
    )
    np.testing.assert_array_equal(truth(module), truth(Small()))


def test_weights_that_do_not_fit(factory: str, tmp_path: Path) -> None:
    torch.save(nn.Linear(2, 2).state_dict(), tmp_path / "w.pt")
    with pytest.raises(ModelError, match=r"do not fit Small: missing from the file: 4 \(features"):
        xcam.load(factory, weights=str(tmp_path / "w.pt"))
    with pytest.raises(InputError, match=r"cannot read weights from .*: it does not exist"):
        xcam.load(factory, weights=str(tmp_path / "absent.pt"))


class Evil:
    def __reduce__(self) -> Any:
        return (Path.touch, (Path("evil-was-here"),))


def test_pickles_that_bring_code_are_refused_and_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "evil.pkl.pt").write_bytes(pickle.dumps(Evil()))
    torch.save(Evil(), "evil.pt")
    torch.save(Small(), "whole.pt")
    for name in ("evil.pkl.pt", "evil.pt", "whole.pt"):
        with pytest.raises(ModelError, match="it is a pickle of more than weights"):
            xcam.load(name)
    assert not Path("evil-was-here").exists()


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("dynamic", [True, False])
def test_an_exported_program(tmp_path: Path, dynamic: bool) -> None:
    shapes = ({0: torch.export.Dim("batch")},) if dynamic else None
    example = torch.from_numpy(X if dynamic else X[:1])
    program = torch.export.export(Small().eval(), (example,), dynamic_shapes=shapes)
    torch.export.save(program, tmp_path / "small.pt2")
    for source in (tmp_path / "small.pt2", program):
        model = xcam.load(source, preprocess="unit")
        assert (model.input.size, model.input.fixed) == ((12, 10), True)
        assert [layer.name for layer in model.layers if layer.has_space] == ["features.0", "features", "features.1"]
        seen = []

        def cotangents(y: np.ndarray, seen: list[Any] = seen) -> list[np.ndarray]:
            seen.append(len(y))
            return [np.eye(3, dtype=np.float32)[[1, 1]], np.eye(3, dtype=np.float32)[[2, 2]]]

        result = model.trace(X, "features.0", cotangents)  # a batch fixed to 1 is fed one by one, and asks once
        assert seen == [2]
        expected = xcam.load(Small(), size=(12, 10)).trace(X, "features.0", cotangents)
        np.testing.assert_allclose(result.outputs, truth(Small()), atol=1e-6)
        for a, b in zip(result.gradients, expected.gradients, strict=True):
            np.testing.assert_allclose(a, b, atol=1e-7)
        np.testing.assert_allclose(model.resume(result, result.activations).outputs, result.outputs, atol=1e-6)


def test_files_without_a_model(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    level = logging.root.manager.disable
    for name in ("a.pt2", "a.pt", "a.safetensors"):
        (tmp_path / name).write_bytes(b"nothing of the kind")
        with pytest.raises(ModelError, match=f"{name}"):
            xcam.load(tmp_path / name)
    assert capfd.readouterr().err == ""
    assert logging.root.manager.disable == level  # the user's logging is as before
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(InputError, match=r"torch does not load such files; give a \.pt2 or TorchScript file"):
        xcam.load(tmp_path / "a.txt", backend="torch")


@pytest.mark.parametrize("name", ["torchvision:resnet50", "timm:vit_base_patch16_224"])
def test_zoos_that_are_not_installed_name_their_package(name: str) -> None:
    with pytest.raises(
        xcam.BackendError, match=f"cannot use {name.partition(':')[0]}: it is not installed; pip install"
    ):
        xcam.load(name)


def test_a_name_without_a_scheme() -> None:
    with pytest.raises(InputError, match="unknown torch model 'resnet50'; give torchvision:NAME, timm:NAME, hf:NAME"):
        xcam.load("resnet50", backend="torch")


HUGGING_FACE = {
    "ResNet": ({"num_labels": 5, "depths": [1, 1, 1, 1], "hidden_sizes": [8, 16, 32, 64], "embedding_size": 8}, None),
    "ConvNext": ({"depths": [1, 1, 2, 1], "hidden_sizes": [8, 16, 32, 64]}, None),
    "ViT": ({"image_size": [64, 96], "patch_size": 16}, (4, 6)),
    "DeiT": ({"image_size": 64, "patch_size": 16}, (4, 4)),
    "Swin": ({"image_size": 64, "embed_dim": 16, "depths": [1, 2], "num_heads": [2, 4], "window_size": 4}, (8, 8)),
}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:the map of")  # 2×2 positions, as the image is small
@pytest.mark.parametrize("kind", HUGGING_FACE)
def test_hugging_face_models(kind: str) -> None:
    import transformers

    changes, grid = HUGGING_FACE[kind]
    small = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 64}
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(**((small if kind in ("ViT", "DeiT") else {}) | changes))
    module = getattr(transformers, f"{kind}ForImageClassification")(config)
    size = (64, 96) if kind == "ViT" else (64, 64)
    model = xcam.load(module, preprocess="torch", size=size)
    assert model.labels[0] == "LABEL_0"
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    e = xcam.explain(model, image, target=1)
    if grid:
        assert e.cam.shape == grid
        assert "norm" in e.layer
    assert np.count_nonzero(e.cam) > e.cam.size / 2
    x = np.random.default_rng(1).normal(size=(2, 3, *size)).astype(np.float32)
    trace = model.trace(x, e.layer, lambda y: [np.eye(y.shape[1], dtype=np.float32)[[1, 1]]])
    with torch.no_grad():
        expected = module.eval()(torch.from_numpy(x)).logits.numpy()
    np.testing.assert_allclose(trace.outputs, expected, atol=1e-5)
    assert model.resume(trace, trace.activations).outputs == pytest.approx(trace.outputs, abs=1e-5)
    direction = np.random.default_rng(2).normal(size=trace.activations.shape).astype(np.float32)
    step = 1e-2 * np.abs(trace.activations).max()
    up, down = (model.resume(trace, trace.activations + s * step * direction).outputs[:, 1] for s in (1, -1))
    result = (trace.gradients[0] * direction).reshape(2, -1).sum(axis=1)
    np.testing.assert_allclose(result, (up - down) / (2 * step), rtol=0.1, atol=2e-2 * np.abs(result).max())


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:the map of")
def test_a_hugging_face_model_in_a_folder_by_the_command(tmp_path: Path, image_path: Path) -> None:
    import transformers

    torch.manual_seed(0)
    names = dict(enumerate(["ant", "bee", "cat", "dog", "elk"]))
    config = transformers.ResNetConfig(
        id2label=names, depths=[1, 1, 1, 1], hidden_sizes=[8, 16, 32, 64], embedding_size=8
    )
    transformers.ResNetForImageClassification(config).save_pretrained(tmp_path / "model")
    (tmp_path / "model" / "preprocessor_config.json").write_text(
        json.dumps({"size": {"height": 96, "width": 64}, "image_mean": [0.5] * 3, "image_std": [0.25] * 3})
    )
    arguments = ["-b", "torch", "-m", "hf:model", "-t", "dog", "--json", image_path, "-o", "cam.png"]
    done = subprocess.run(
        [sys.executable, "-m", "xcam_cli", *arguments], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    output = json.loads(done.stdout)
    assert (output["class"], output["index"]) == ("dog", 3)
    model = xcam.load(f"hf:{tmp_path / 'model'}")
    assert model.input.size == (96, 64)
    assert model.input.preprocessing.mean == (0.5, 0.5, 0.5)
    e = xcam.explain(model, image_path, target="dog")
    np.testing.assert_array_equal(xcam.images.reading.read(tmp_path / "cam.png"), e.overlay())


TORCHVISION = """
import sys, torch
sys.path.append(sys.argv[1])
library = torch.library.Library("torchvision", "DEF")  # what torchvision's CUDA library would have registered
for name in ("nms", "qnms"):
    library.define(name + "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
import numpy as np
import xcam
from xcam.models.layers import default
for name, expected in {"resnet18": "layer4.1.relu", "mobilenet_v3_small": "features.12.2", "swin_t": "norm",
                       "vit_b_16": "encoder.layers.encoder_layer_11.ln_1", "convnext_tiny": "features.7.2"}.items():
    model = xcam.load("torchvision:" + name, weights="none")
    if name == "vit_b_16":
        torch.nn.init.normal_(model.module.heads.head.weight)  # torchvision starts it with zeros
    assert model.labels[292] == "tiger" and model.input.size == (224, 224), (model.labels[292], model.input)
    assert model.input.preprocessing.name == "torch", model.input
    e = xcam.explain(model, np.random.default_rng(0).integers(0, 256, (224, 224, 3), dtype=np.uint8), target=1)
    assert e.layer == expected, (name, e.layer)
    assert np.count_nonzero(e.cam) > e.cam.size / 2, name
    print(name, e.layer, e.cam.shape)
"""


@pytest.mark.slow
def test_torchvision(tmp_path: Path) -> None:
    extra = Path(sys.prefix) / "torchvision"
    assert extra.is_dir(), "make test installs torchvision there, where other tests do not import it"
    done = subprocess.run(
        [sys.executable, "-c", TORCHVISION, extra], capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 5


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_channels_are_known_where_the_source_states_them(tmp_path: Path) -> None:
    grey = nn.Sequential(nn.Conv2d(1, 2, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    live = xcam.load(grey).input
    assert (live.channels, live.channels_known) == (1, False)  # the first convolution need not read the image
    stated = xcam.load(grey, channels=4).input
    assert (stated.channels, stated.channels_known) == (4, True)
    program = torch.export.export(grey, (torch.zeros(1, 1, 9, 9),))
    for exported in (xcam.load(program).input, xcam.load("demo", "torch").input):
        assert exported.channels_known
    assert xcam.load(program).input.channels == 1
    with pytest.raises(InputError, match="demo takes images of 3 channels, not 1; leave channels out"):
        xcam.load("demo", "torch", channels=1)
