"""Weights under the names that training scripts give them: what fits is loaded, and the rest is refused or noted."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import xcam
from xcam import ModelError

X = np.random.default_rng(0).normal(size=(2, 3, 12, 10)).astype(np.float32)
RESNET20 = Path(__file__).parents[4] / "shared/models/resnet20-cifar10.th"


def build(seed: int = 0, classes: int = 5) -> nn.Sequential:
    torch.manual_seed(seed)
    norm = nn.BatchNorm2d(8)
    nn.init.normal_(norm.running_mean)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, 2), norm, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, classes)
    )


class Wrapper(nn.Module):
    """A module with its network inside, and a loss with weights of its own, as Lightning's."""

    def __init__(self, name: str, seed: int = 1) -> None:
        super().__init__()
        self.add_module(name, build(seed))
        self.loss = nn.CrossEntropyLoss(torch.ones(5))
        self.name = name

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.get_submodule(self.name)(x)


def prefixed(prefix: str, state: dict[str, Any]) -> dict[str, Any]:
    return {prefix + name: value for name, value in state.items()}


def trained() -> dict[str, Any]:
    return build(1).state_dict()


def averaged() -> dict[str, Any]:
    return build(2).state_dict()


def thop() -> dict[str, Any]:
    return trained() | {"total_ops": torch.zeros(1), "0.total_ops": torch.zeros(1), "0.total_params": torch.zeros(1)}


def partly_compiled() -> dict[str, Any]:
    module = build(1)
    module[0] = torch.compile(module[0])
    return module.state_dict()


def loaded(module: nn.Module, state: Any, path: Path) -> Any:
    torch.save(state, path)
    return xcam.load(module, weights=str(path), preprocess="unit", size=(12, 10))


def truth(module: nn.Module) -> np.ndarray:
    return module.eval()(torch.from_numpy(X)).detach().numpy()


FILES: dict[str, Callable[[], Any]] = {
    "compiled": lambda: torch.compile(build(1)).state_dict(),
    "partly compiled": partly_compiled,
    "parallel": lambda: nn.DataParallel(build(1)).state_dict(),
    "compiled in parallel": lambda: {"state_dict": nn.DataParallel(torch.compile(build(1))).state_dict(), "epoch": 3},
    "parallel inside a wrapper": lambda: {"state_dict": prefixed("model.module.", trained())},
    "net": lambda: {"net": prefixed("net.", trained()), "acc": 0.9},
    "checkpoint": lambda: {"model_state_dict": trained(), "optimizer": {"state": {0: {"step": torch.ones(1)}}}},
    "twice nested": lambda: {"checkpoint": {"model": trained()}, "args": {"lr": 0.1}},
    "average alone": lambda: {"model_ema": prefixed("module.", trained()) | {"n_averaged": torch.tensor(3)}},
    "swa": lambda: torch.optim.swa_utils.AveragedModel(build(1)).state_dict(),
    "thop": thop,
    "old batch norm": lambda: {n: v for n, v in trained().items() if "num_batches" not in n},
    "hugging face": lambda: prefixed("vit.", trained()),
}


@pytest.mark.parametrize("kind", FILES)
def test_names_are_fitted(kind: str, tmp_path: Path) -> None:
    model = loaded(build(), FILES[kind](), tmp_path / "w.pt")
    np.testing.assert_allclose(model.predict(X), truth(build(1)), atol=1e-6)
    assert model.notes == ()


def test_prefixes_are_added_for_a_wrapped_module(tmp_path: Path) -> None:
    module = Wrapper("backbone", 0)
    module.loss = nn.Identity()
    np.testing.assert_allclose(loaded(module, trained(), tmp_path / "w.pt").predict(X), truth(build(1)), atol=1e-6)
    compiled = torch.nn.Sequential(torch.compile(build()))
    np.testing.assert_allclose(loaded(compiled, trained(), tmp_path / "w.pt").predict(X), truth(build(1)), atol=1e-6)


def test_what_surrounds_the_module_is_left_out_with_a_note(tmp_path: Path) -> None:
    state = {"state_dict": Wrapper("net").state_dict(), "pytorch-lightning_version": "2.0"}
    model = loaded(build(), state, tmp_path / "epoch.ckpt")
    np.testing.assert_allclose(model.predict(X), truth(build(1)), atol=1e-6)
    assert model.notes == ("weights in epoch.ckpt outside 'state_dict.net' were left out: 1 (loss.weight)",)


@pytest.mark.parametrize(
    ("state", "key", "others"),
    [
        ({"ema": averaged(), "model": trained()}, "model", "1 (ema)"),
        ({"state_dict_ema": averaged(), "state_dict": trained()}, "state_dict", "1 (state_dict_ema)"),
        (prefixed("teacher.", averaged()) | prefixed("student.", trained()), "student", "1 (teacher)"),
    ],
)
def test_the_weights_are_taken_before_their_averages(state: Any, key: str, others: str, tmp_path: Path) -> None:
    model = loaded(build(), state, tmp_path / "w.pt")
    np.testing.assert_allclose(model.predict(X), truth(build(1)), atol=1e-6)
    assert model.notes[0] == f"weights of {key!r} in w.pt, which also holds {others}"


def test_what_fits_is_taken_before_what_does_not(tmp_path: Path) -> None:
    model = loaded(build(), {"model": build(2, classes=7).state_dict(), "ema": trained()}, tmp_path / "w.pt")
    np.testing.assert_allclose(model.predict(X), truth(build(1)), atol=1e-6)


def test_what_does_not_fit_is_listed_in_one_line(tmp_path: Path) -> None:
    state = prefixed("model.", build(1, classes=7).state_dict())
    del state["model.0.bias"]
    state |= {"model.6.weight": torch.ones(2), "model.6.bias": torch.ones(2)}
    module = build()
    with pytest.raises(ModelError) as error:
        loaded(module, {"state_dict": state}, tmp_path / "w.pt")
    assert str(error.value) == (
        f"cannot load the weights in {tmp_path / 'w.pt'}: they do not fit Sequential: missing from the file: 1 (0.bias), "
        "unknown to the module: 2 (6.weight, 6.bias), of another shape: 2 (5.weight is 7×8 in the file and 5×8 in the "
        "module, 5.bias is 7 in the file and 5 in the module); use the factory that they were saved from"
    )
    np.testing.assert_array_equal(truth(module), truth(build()))


def test_names_that_the_module_converts(tmp_path: Path) -> None:
    """Weights of an older version of a class, which renames them as it loads them."""

    class Old(nn.Sequential):
        def _load_from_state_dict(self, state: dict[str, Any], prefix: str, *rest: Any) -> None:
            for name in [name for name in state if name.startswith("old.")]:
                state[name.removeprefix("old.")[::-1]] = state.pop(name)

    module = Old(*build())
    state = {f"old.{name[::-1]}": value for name, value in trained().items()}
    np.testing.assert_allclose(loaded(module, state, tmp_path / "w.pt").predict(X), truth(build(1)), atol=1e-6)


def test_tied_weights_that_a_safetensors_file_leaves_out(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    class Tied(nn.Module):
        def __init__(self, seed: int) -> None:
            super().__init__()
            torch.manual_seed(seed)
            self.a, self.b = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)
            self.b.weight = self.a.weight

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.b(self.a(x)).mean((2, 3))

    state = {name: value for name, value in Tied(1).state_dict().items() if name != "b.weight"}
    save_file(state, tmp_path / "w.safetensors")
    model = xcam.load(Tied(0), weights=str(tmp_path / "w.safetensors"), size=(12, 10))
    np.testing.assert_allclose(model.predict(X), truth(Tied(1)), atol=1e-6)


class BasicBlock(nn.Module):
    def __init__(self, into: int, planes: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(into, planes, 3, stride, 1, bias=False), nn.BatchNorm2d(planes)
        self.conv2, self.bn2 = nn.Conv2d(planes, planes, 3, 1, 1, bias=False), nn.BatchNorm2d(planes)
        self.stride, self.pad = stride, (planes - into) // 2

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.bn2(self.conv2(nn.functional.relu(self.bn1(self.conv1(x)))))
        return nn.functional.relu(
            y + nn.functional.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.pad, self.pad))
        )


class ResNet20(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16)
        for i, (into, planes) in enumerate([(16, 16), (16, 32), (32, 64)]):
            blocks = [BasicBlock(into if k == 0 else planes, planes, 2 if i and not k else 1) for k in range(3)]
            self.add_module(f"layer{i + 1}", nn.Sequential(*blocks))
        self.linear = nn.Linear(64, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = nn.functional.relu(self.bn1(self.conv1(x)))
        return self.linear(self.layer3(self.layer2(self.layer1(x))).mean((2, 3)))


@pytest.mark.skipif(
    not RESNET20.is_file(), reason=f"{RESNET20} is not there: a trained model of others, not copied here"
)
def test_a_published_checkpoint() -> None:
    expected = ResNet20()
    state = torch.load(RESNET20, map_location="cpu", weights_only=True)["state_dict"]
    expected.load_state_dict({name.removeprefix("module."): value for name, value in state.items()})
    model = xcam.load(ResNet20(), weights=str(RESNET20), preprocess="torch", size=(12, 10))
    np.testing.assert_allclose(model.predict(X), truth(expected), atol=1e-5)
    assert model.notes == ()
