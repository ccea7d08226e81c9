"""Export of modules to ONNX files: same values in ONNX Runtime as in torch, and an unchanged module."""

from __future__ import annotations

import copy
import errno
import importlib.util
import logging
import re
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from torch import nn

import xcam
from xcam import BackendError, InputError, ModelError
from xcam_torch.export import to_onnx

SIZE = (12, 10)
X = np.random.default_rng(0).normal(size=(3, 3, *SIZE)).astype(np.float32)


class Block(nn.Module):
    """x + two convolutions with batch norms and one ReLU that is called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.conv2, self.bn2 = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.relu(x + self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x))))))


class Net(nn.Module):
    def __init__(self, returns: str = "tensor") -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.layer = nn.Conv2d(3, 4, 3, padding=1), nn.Sequential(Block(), Block())
        self.drop, self.fc = nn.Dropout(0.5), nn.Linear(4, 5)
        self.returns = returns
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.uniform_(module.running_mean, -1, 1)
                nn.init.uniform_(module.running_var, 0.5, 2)

    def forward(self, x: torch.Tensor) -> Any:
        features = self.layer(self.stem(x))
        z = self.fc(self.drop(features.mean((2, 3))))
        return {
            "tensor": z,
            "softmax": z.softmax(1),
            "dict": {"aux": z.tanh(), "logits": z},
            "tuple": (z, features),
            "nested": [z, [features]],
            "none": {"z": z, "nothing": None},
            "whole": {"z": z, "top": z.argmax(1)},
            "input": {"input": z, "conv2d": 2 * z},
            "twice": (z, z),
        }[self.returns]


def run(path: Path, x: np.ndarray = X) -> dict[str, np.ndarray]:
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_outputs()]
    return dict(zip(names, session.run(names, {session.get_inputs()[0].name: x}), strict=True))


def expected(module: nn.Module, x: np.ndarray = X) -> Any:
    with torch.no_grad():
        return copy.deepcopy(module).eval()(torch.from_numpy(x))


def agree(result: np.ndarray, value: Any) -> None:
    value = np.asarray(value)
    assert result.shape == value.shape
    np.testing.assert_allclose(result, value, rtol=0, atol=1e-4 * np.abs(value).max())


@pytest.mark.parametrize(
    ("returns", "names", "values"),
    [
        ("tensor", ["output"], lambda y: [y]),
        ("softmax", ["output"], lambda y: [y]),
        ("dict", ["aux", "logits"], lambda y: [y["aux"], y["logits"]]),
        ("tuple", ["0", "1"], list),
        ("nested", ["0"], lambda y: [y[0]]),
        ("none", ["z"], lambda y: [y["z"]]),
        ("whole", ["z"], lambda y: [y["z"]]),
        ("input", ["input", "conv2d"], lambda y: [y["input"], y["conv2d"]]),
        ("twice", ["0", "1"], list),
    ],
)
def test_outputs_by_key_for_any_batch(tmp_path: Path, returns: str, names: list[str], values: Any) -> None:
    module, path = Net(returns), tmp_path / "net.onnx"
    to_onnx(module, path, SIZE)
    onnx.checker.check_model(path, full_check=True)
    (source,) = onnx.load(path).graph.input
    assert source.name == ("input_image" if returns == "input" else "input")
    dims = source.type.tensor_type.shape.dim
    assert [dim.dim_param or dim.dim_value for dim in dims] == ["batch", 3, *SIZE]
    for x in (X, X[:1]):
        result = run(path, x)
        assert list(result) == names
        for value, wanted in zip(result.values(), values(expected(module, x)), strict=True):
            agree(value, wanted)


def test_every_layer_has_torchs_name_value_and_gradient(tmp_path: Path) -> None:
    module = Net()
    to_onnx(module, tmp_path / "net.onnx", SIZE)
    ours, theirs = xcam.load(tmp_path / "net.onnx"), xcam.load(module, size=SIZE)
    seen = []
    for layer in theirs.layers:
        if layer.name == "drop":
            continue
        folded = re.fullmatch(r"(layer\.\d\.)conv(\d)", layer.name)
        if folded:
            batch_norm = "{}bn{}".format(*folded.groups())
            with pytest.raises(InputError, match=f"folded .* explain '{re.escape(batch_norm)}'"):
                ours.trace(X, layer.name)
            continue
        cotangents = lambda y: [np.eye(5, dtype=np.float32)[[1, 2, 3]]]  # noqa: E731
        a, b = ours.trace(X, layer.name, cotangents), theirs.trace(X, layer.name, cotangents)
        agree(a.activations, b.activations)
        np.testing.assert_allclose(a.gradients[0], b.gradients[0], atol=1e-3 * np.abs(b.gradients[0]).max())
        seen.append(layer.name)
    assert {"stem", "layer", "layer.0", "layer.0.bn1", "layer.1.relu#0", "layer.1.relu", "fc"} <= set(seen)


def test_the_module_is_unchanged(tmp_path: Path) -> None:
    module = Net().train()
    module.fc.requires_grad_(False)
    module.stem.weight.grad = torch.ones_like(module.stem.weight)
    called = []
    module.layer.register_forward_hook(lambda *_: called.append(1))
    weights = {name: (value, value.clone()) for name, value in module.state_dict(keep_vars=True).items()}
    forward, level = vars(module).copy(), logging.root.manager.disable
    to_onnx(module, tmp_path / "net.onnx", SIZE)
    assert all(part.training for part in module.modules())
    assert vars(module).keys() == forward.keys()
    for name, value in module.state_dict(keep_vars=True).items():
        assert value is weights[name][0], name
        assert torch.equal(value, weights[name][1]), name
    assert [p.requires_grad for p in module.fc.parameters()] == [False, False]
    assert torch.equal(module.stem.weight.grad, torch.ones_like(module.stem.weight))
    assert module.layer[0].conv1.weight.grad is None
    assert logging.root.manager.disable == level
    called.clear()
    module(torch.from_numpy(X))
    assert called == [1]


def test_half_precision(tmp_path: Path) -> None:
    module = Net().half()
    to_onnx(module, tmp_path / "net.onnx", SIZE)
    result = run(tmp_path / "net.onnx", X.astype(np.float16))["output"]
    assert result.dtype == np.float16
    np.testing.assert_allclose(result, expected(Net()).numpy(), atol=1e-2)


def test_shared_and_computed_weights(tmp_path: Path) -> None:
    torch.manual_seed(0)
    first = nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 3, 3, padding=1))
    shared = nn.Conv2d(3, 3, 3, padding=1)
    module = nn.Sequential(first, shared, nn.ReLU(), shared, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    to_onnx(module, tmp_path / "net.onnx", SIZE)
    agree(run(tmp_path / "net.onnx")["output"], expected(module))
    names = [tensor.name for tensor in onnx.load(tmp_path / "net.onnx").graph.initializer if len(tensor.dims) == 4]
    assert len(names) == 2


def test_a_module_that_takes_one_image_only(tmp_path: Path) -> None:
    class One(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = Net()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            rows = [self.net(x[i : i + 1]) for i in range(x.shape[0])]  # unrolled: the batch becomes a number
            return torch.cat(rows)

    module = One()
    to_onnx(module, tmp_path / "net.onnx", SIZE)
    (source,) = onnx.load(tmp_path / "net.onnx").graph.input
    assert source.type.tensor_type.shape.dim[0].dim_value == 1
    agree(run(tmp_path / "net.onnx", X[:1])["output"], expected(module, X[:1]))
    agree(xcam.load(tmp_path / "net.onnx").predict(X), expected(module))


class Branch(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = Net()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(2 * x if x.sum() > 0 else x)


class Whole(Net):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x).argmax(1)


class Two(Net):
    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return super().forward(x + y)


class Raising(Net):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        raise ValueError("first line\nsecond line")


class Uncopied(Net):
    def __deepcopy__(self, memo: Any) -> Any:
        raise TypeError("no copies")


@pytest.mark.parametrize(
    ("module", "channels", "message"),
    [
        (Branch(), 3, r"cannot export Branch to ONNX: .*; change that part of its forward"),
        (Whole(), 3, r"cannot explain Whole: it returns tensors of int64, and a score needs a float"),
        (
            Two(),
            3,
            r"cannot run Two on an input of shape \[3, 12, 10\]: TypeError: .*; wrap it in a model that takes the image alone",
        ),
        (Raising(), 3, r"cannot run Raising .*: ValueError: first line second line; give another size="),
        (
            Net(),
            4,
            r"cannot run Net on an input of shape \[4, 12, 10\]: RuntimeError: .*; give another size= or channels=",
        ),
        (
            Uncopied(),
            3,
            r"cannot export Uncopied to ONNX: it cannot be copied \(TypeError: no copies\); export a module that",
        ),
    ],
)
def test_modules_that_cannot_be_written(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], module: nn.Module, channels: int, message: str
) -> None:
    with pytest.raises(ModelError, match=message) as caught:
        to_onnx(module, tmp_path / "net.onnx", SIZE, channels)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())
    assert capfd.readouterr() == ("", "")


def test_no_partial_file_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "net.onnx"
    path.write_bytes(b"earlier")
    with pytest.raises(
        InputError, match=r"cannot write .*none/net.onnx: No such file or directory; give an existing folder"
    ):
        to_onnx(Net(), tmp_path / "none" / "net.onnx", SIZE)

    def full(program: Any, target: Path, **_: Any) -> None:
        target.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(torch.onnx.ONNXProgram, "save", full)
    with pytest.raises(InputError, match="No space left on device; give an existing folder with enough free space"):
        to_onnx(Net(), path, SIZE)
    assert path.read_bytes() == b"earlier"
    assert list(tmp_path.iterdir()) == [path]


def test_without_onnxscript(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnxscript" else find_spec(name))
    with pytest.raises(BackendError, match="to ONNX: onnxscript is not installed; pip install onnxscript"):
        to_onnx(Net(), tmp_path / "net.onnx", SIZE)
