"""The scaling that a module computes before its first part with a kernel."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import xcam
from xcam.contract.preprocessing import PRESETS

IMAGE = np.random.default_rng(0).integers(0, 256, (8, 10, 3), np.uint8)
MEAN, STD = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1), torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)


class Normalize(nn.Module):
    """As torchvision's and kornia's: mean and std as attributes, buffers or parameters."""

    def __init__(self, factor: float = 1, kind: str = "buffer") -> None:
        super().__init__()
        for name, value in (("mean", MEAN * factor), ("std", STD * factor)):
            if kind == "buffer":
                self.register_buffer(name, value)
            else:
                setattr(self, name, nn.Parameter(value) if kind == "parameter" else value)

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.std


class Scaled(nn.Module):
    """A function in front of a network, in `forward`."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.head, self.conv, self.function = nn.Linear(4, 3), nn.Conv2d(3, 4, 3), function

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.conv(self.function(x)).mean((2, 3)))


class Patches(nn.Module):
    """A vision transformer's embedding: class token, positions, and a linear map of patches."""

    def __init__(self) -> None:
        super().__init__()
        self.token, self.positions = nn.Parameter(torch.zeros(1, 1, 5)), nn.Parameter(torch.zeros(1, 21, 5))
        self.patch, self.head = nn.Linear(12, 5), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.unfold(x / 255, 2, stride=2).transpose(1, 2)
        x = torch.cat([self.token.expand(len(x), -1, -1), self.patch(x)], 1) + self.positions
        return self.head(x.mean(1))


def sequential(*first: nn.Module) -> nn.Module:
    tail = [nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)]
    return nn.Sequential(*first, *tail).eval()


def batch_norm() -> nn.Module:
    norm = nn.BatchNorm2d(3)
    norm.running_mean, norm.running_var = MEAN.flatten() * 255, (STD.flatten() * 255) ** 2
    return norm


CASES: dict[str, tuple[Callable[[], nn.Module], str | None]] = {
    "nothing": (sequential, None),
    "Normalize, buffers": (lambda: sequential(Normalize()), "unit"),
    "Normalize, parameters": (lambda: sequential(Normalize(kind="parameter")), "unit"),
    "Normalize of pixels": (lambda: sequential(nn.Identity(), Normalize(255, "attribute")), "raw"),
    "nested": (lambda: nn.Sequential(nn.Sequential(Normalize(), sequential())), "unit"),
    "batch norm of pixels": (lambda: sequential(batch_norm()), "raw"),
    "fresh batch norm": (lambda: sequential(nn.BatchNorm2d(3)), None),
    "x / 255": (lambda: Scaled(lambda x: x / 255), "raw"),
    "x / 127.5 − 1": (lambda: Scaled(lambda x: x / 127.5 - 1), "raw"),
    "2x − 1": (lambda: Scaled(lambda x: 2 * x - 1), "unit"),
    "of −1…1": (lambda: Scaled(lambda x: ((x + 1) / 2 - MEAN) / STD), "tf"),
    "transform_input": (lambda: Scaled(lambda x: (x * STD + MEAN - 0.5) / 0.5), "torch"),
    "blue first": (lambda: Scaled(lambda x: x - MEAN.flip(0) * 255), "raw, BGR"),
    "flip": (lambda: Scaled(lambda x: x.flip(1) - MEAN.flip(0) * 255), "raw"),
    "patches": (Patches, "raw"),
    "instance norm": (lambda: sequential(nn.InstanceNorm2d(3)), None),
}


@pytest.mark.parametrize("name", CASES)
def test_the_scaling_in_front_of_the_first_kernel_decides(name: str) -> None:
    build, expected = CASES[name]
    spec = xcam.load(build(), size=(8, 10)).input
    assert (spec.needs and spec.needs.name) == expected
    assert spec.preprocessing == spec.needs


@pytest.mark.parametrize(
    "name", ["Normalize, buffers", "Normalize of pixels", "x / 255", "of −1…1", "blue first", "patches"]
)
def test_explain_gives_the_module_its_own_input(name: str) -> None:
    build, expected = CASES[name]
    module = build().eval()
    pixel = torch.tensor(IMAGE.transpose(2, 0, 1)[None].astype(np.float32))
    x = {"unit": pixel / 255, "raw": pixel, "tf": pixel / 127.5 - 1, "raw, BGR": pixel.flip(1)}[str(expected)]
    with torch.no_grad():
        outputs = module(x)[0].numpy()
    explanation = xcam.explain(xcam.load(module, size=(8, 10)), IMAGE, target=0, method="eigencam")
    np.testing.assert_allclose(explanation.outputs, outputs, rtol=1e-4, atol=1e-4)


def test_a_compiled_wrapped_and_half_precision_module() -> None:
    assert (
        xcam.load(nn.DataParallel(sequential(Normalize()))).input.needs
        == xcam.load(sequential(Normalize())).input.needs
    )
    assert xcam.load(Scaled(lambda x: x / 255).bfloat16()).input.needs == xcam.Preprocessing("raw")


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_scripted_parts_take_no_hooks() -> None:
    stem, head = (
        torch.jit.script(nn.Sequential(Normalize(), nn.Conv2d(3, 8, 3))),
        torch.jit.script(nn.Conv2d(4, 4, 3)),
    )
    assert xcam.load(nn.Sequential(stem, nn.Conv2d(8, 4, 3), nn.Flatten())).input.needs is None
    model = nn.Sequential(Normalize(), nn.Conv2d(3, 4, 3), head, nn.Flatten())
    assert xcam.load(model).input.needs == PRESETS["unit"]


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("batch", [1, 2])
def test_an_exported_program_with_a_fixed_batch(batch: int) -> None:
    program = torch.export.export(sequential(Normalize(255)), (torch.zeros(batch, 3, 8, 10),))
    assert xcam.load(program).input.needs == xcam.Preprocessing("raw")


def test_the_module_is_left_as_it_was() -> None:
    module = sequential(Normalize()).train()
    xcam.load(module)
    assert module.training
    assert not any(part._forward_pre_hooks for part in module.modules())


def test_a_module_that_cannot_run_is_not_refused() -> None:
    def leave(x: Tensor) -> Tensor:
        raise SystemExit

    assert xcam.load(Scaled(leave)).input.needs is None


def test_a_preset_in_front_of_the_modules_own_scaling_is_warned_of() -> None:
    message = (
        "Sequential scales its input itself and takes values in 0…1, and 'torch' scales .*; use preprocess='unit'"
    )
    with pytest.warns(xcam.XcamWarning, match=message):
        xcam.load(sequential(Normalize()), preprocess="torch")


def test_a_statement_wins_and_is_warned_of() -> None:
    module: Any = sequential(Normalize())
    module.pretrained_cfg = {"mean": (0.5,) * 3, "std": (0.5,) * 3, "input_size": (3, 8, 10)}
    with pytest.warns(xcam.XcamWarning, match="takes values in 0…1, and 'tf' scales images before it"):
        assert xcam.load(module).input.preprocessing.name == "tf"
