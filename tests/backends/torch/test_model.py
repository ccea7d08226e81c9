"""Behaviour specific to torch that the conformance suite does not test."""

from __future__ import annotations

import contextlib
import threading
from collections import namedtuple
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.ao import quantization as quantisation
from torch.ao.quantization import quantize_fx

import xcam
from xcam import InputError, ModelError, XcamWarning
from xcam.contract import Layer
from xcam.images.resizing import resize
from xcam.models import layers
from xcam.models.layers import default

X = np.random.default_rng(0).normal(size=(2, 3, 10, 8)).astype(np.float32)


def small(*tail: nn.Module) -> nn.Sequential:
    """Return conv → in-place ReLU → the given tail, or mean and scores."""
    torch.manual_seed(0)
    tail = tail or (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True), *tail)


def cotangents(k: int = 0) -> Any:
    return lambda y: [np.eye(y.shape[1], dtype=np.float32)[[k] * len(y)]]


def opened(module: nn.Module, **options: Any) -> Any:
    return xcam.load(module, **({"size": (10, 8)} | options))


def captured(model: Any, layer: str) -> Any:
    """Return the captured graph, if `resume` runs its tail behind a layer, or None where it could not be captured."""
    graph = model._recording(X)._graphs.latest
    return (graph and graph._checked.get(layer, lambda: pytest.fail(f"no tail was run behind {layer}"))[0]) or None


def by_hand(module: nn.Module, at: int, k: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return activations and gradient of a Sequential behind its module `at`, by plain autograd."""
    module = module.eval()
    head, tail = module[: at + 1], module[at + 1 :]
    value = head(torch.from_numpy(X)).detach().requires_grad_()
    kept = value.detach().clone()
    tail(value.clone())[:, k].sum().backward()
    return kept.numpy(), value.grad.numpy()


@pytest.mark.parametrize("layer", ["0", "1"])
def test_an_in_place_step_behind_the_layer_changes_nothing(layer: str) -> None:
    expected, gradient = by_hand(small(), int(layer))
    trace = opened(small()).trace(X, layer, cotangents())
    np.testing.assert_allclose(trace.activations, expected, atol=1e-6)
    np.testing.assert_allclose(trace.gradients[0], gradient, atol=1e-7)
    assert (expected < 0).any() == (layer == "0")
    np.testing.assert_allclose(opened(small()).activations(X, ["0"])["0"], by_hand(small(), 0)[0], atol=1e-6)


def test_nothing_before_the_layer_is_differentiated_and_no_grad_is_touched() -> None:
    module = small()
    module[4].weight.grad = torch.ones_like(module[4].weight)
    seen = []

    class Watch(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: Any, g: torch.Tensor) -> torch.Tensor:
            seen.append(1)
            return g

    class Watched(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return Watch.apply(x)

    whole = nn.Sequential(Watched(), module)
    with torch.no_grad():
        model = opened(whole)
    assert model.layers
    seen.clear()  # the look through the layers does differentiate, once
    model.trace(X, "1.1", cotangents())
    assert seen == []
    assert [p.grad is None for p in module.parameters()] == [True, True, False, True]
    np.testing.assert_array_equal(module[4].weight.grad, 1)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_under_a_callers_modes_and_with_frozen_parameters(mode: Any) -> None:
    _, expected = by_hand(small(), 0)
    module = small().requires_grad_(False)
    with mode():
        before = torch.is_grad_enabled(), torch.is_inference_mode_enabled()
        result = opened(module).trace(X, "0", cotangents()).gradients[0]
        assert (torch.is_grad_enabled(), torch.is_inference_mode_enabled()) == before
    np.testing.assert_allclose(result, expected, atol=1e-7)
    assert not any(p.requires_grad for p in module.parameters())


def test_weights_created_in_inference_mode() -> None:
    _, expected = by_hand(small(), 0)
    with torch.inference_mode():
        module = small()
    np.testing.assert_allclose(opened(module).trace(X, "0", cotangents()).gradients[0], expected, atol=1e-7)


def test_batch_norm_in_training_mode_is_explained_in_evaluation_mode_and_keeps_its_statistics() -> None:
    module = small(nn.BatchNorm2d(4), nn.Dropout(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    module.train()
    module[3].eval()  # one part is at rest already
    model = opened(module)
    first = model.trace(X, "0", cotangents())
    second = model.trace(X, "0", cotangents())
    np.testing.assert_array_equal(first.gradients[0], second.gradients[0])
    assert int(module[2].num_batches_tracked) == 0
    assert [part.training for part in module] == [True, True, True, False, True, True, True]
    with pytest.raises(ZeroDivisionError):
        model.trace(X, "0", lambda y: 1 / 0)
    assert [part.training for part in module] == [True, True, True, False, True, True, True]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_come_back_as_float32(dtype: torch.dtype) -> None:
    _, expected = by_hand(small(), 0)
    trace = opened(small().to(dtype)).trace(X, "0", cotangents())
    assert trace.activations.dtype == trace.gradients[0].dtype == trace.outputs.dtype == np.float32
    np.testing.assert_allclose(trace.gradients[0], expected, atol=2e-3)


class Twice(nn.Module):
    """One convolution, called three times."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.out = nn.Linear(3, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for _ in range(3):
            x = torch.tanh(self.conv(x))
        return self.out(x.mean(dim=(2, 3)))


def test_a_module_called_several_times_is_explained_at_its_last_call() -> None:
    module = Twice()
    model = opened(module)
    assert [layer.name for layer in model.layers][:3] == ["conv#0", "conv#1", "conv"]
    x = torch.from_numpy(X)
    with torch.no_grad():
        one = module.conv(x)
        two = module.conv(torch.tanh(one))
        three = module.conv(torch.tanh(two))
    for name, expected in {"conv#0": one, "conv#1": two, "conv": three}.items():
        trace = model.trace(X, name, cotangents())
        np.testing.assert_allclose(trace.activations, expected, atol=1e-6)
        leaf = expected.clone().requires_grad_()
        y = torch.tanh(leaf)
        for _ in range({"conv#0": 2, "conv#1": 1, "conv": 0}[name]):
            y = torch.tanh(module.conv(y))
        module.out(y.mean(dim=(2, 3)))[:, 0].sum().backward()
        np.testing.assert_allclose(trace.gradients[0], leaf.grad, atol=1e-7)
        np.testing.assert_allclose(model.resume(trace, trace.activations).outputs, trace.outputs, atol=1e-6)
        assert captured(model, name) is not None


Pair = namedtuple("Pair", ["first", "logits"])


class Returns(nn.Module):
    def __init__(self, make: Any) -> None:
        super().__init__()
        self.body, self.make = small(), make

    def forward(self, x: torch.Tensor) -> Any:
        z = self.body(x)
        return self.make(z, x)


@pytest.mark.parametrize(
    ("make", "names"),
    [
        (lambda z, x: z, None),
        (lambda z, x: (z,), None),
        (lambda z, x: [z.argmax(1), z, x], ["1", "2"]),
        (lambda z, x: {"extra": x, "logits": z}, ["logits", "extra"]),
        (lambda z, x: Pair(x.mean((1, 2, 3)), z), ["logits", "first"]),
    ],
)
def test_the_outputs_of_a_module(make: Any, names: list[str] | None, rng: np.random.Generator) -> None:
    model = opened(Returns(make), preprocess="unit")
    outputs = model.predict(X)
    assert (list(outputs) if isinstance(outputs, dict) else None) == names
    image = rng.integers(0, 256, (10, 8, 3), dtype=np.uint8)
    with pytest.warns(XcamWarning, match="has 2 outputs") if names else contextlib.nullcontext():
        e = xcam.explain(model, image, layer="body.1", target=2)
    assert e.outputs.shape == (3,)
    assert e.index == 2


def test_nested_outputs() -> None:
    """As of ultralytics' segmentation in its older versions: ((boxes, prototypes), [features])."""
    model = opened(Returns(lambda z, x: ((z, x.mean(1)), [x, 3])))
    outputs = model.predict(X)
    with torch.no_grad():
        z = model.module.body(torch.from_numpy(X.copy()))
    assert {name: value.shape for name, value in outputs.items()} == {
        "0.0": (2, 3),
        "0.1": (2, 10, 8),
        "1.0": (2, 3, 10, 8),
    }
    np.testing.assert_allclose(outputs["0.0"], z, atol=1e-6)


def test_a_module_without_a_float_output() -> None:
    with pytest.raises(ModelError, match="it returns tensors of int64, and a score needs a float tensor"):
        opened(Returns(lambda z, x: z.argmax(1))).predict(X)


def test_functional_softmax_and_sigmoid_are_cut_off() -> None:
    for function, name in (
        (lambda z, _: torch.softmax(z, 1), "softmax"),
        (lambda z, _: z.sigmoid().float(), "sigmoid"),
    ):
        model = opened(Returns(function))
        assert model.output_activation == name
        np.testing.assert_allclose(model.predict(X), small().eval()(torch.from_numpy(X)).detach(), atol=1e-6)
    gated = opened(Returns(lambda z, _: z * torch.sigmoid(z)))
    assert gated.output_activation is None


def test_layers_that_cannot_be_explained() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.unused, self.loose = small(), nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.loose(x)
            return self.body(x)

    model = opened(Odd(), preprocess="unit")
    image = np.zeros((10, 8, 3), np.uint8)
    with pytest.raises(InputError, match="layer 'unused': the forward pass of Odd never reaches it"):
        model.trace(X, "unused")
    with pytest.raises(InputError, match=r"layer 'loose': no output of .* depends on it"):
        xcam.explain(model, image, layer="loose")
    with pytest.raises(ModelError, match="cannot differentiate Odd at layer 'loose'"):
        model.trace(X, "loose", cotangents())
    with pytest.raises(InputError, match="unknown layer 'bdy' in Odd; nearest: body"):
        model.trace(X, "bdy")


def test_nan_is_traced_to_its_first_layer() -> None:
    module = small(nn.Conv2d(4, 4, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    with torch.no_grad():
        module[2].weight[0, 0] = torch.nan
    with pytest.raises(ModelError, match=r"gives NaN or infinity in its outputs .*the first layer with one is '2'"):
        xcam.explain(opened(module, preprocess="unit"), np.full((10, 8, 3), 9, np.uint8), layer="0")


def test_exhausted_memory_halves_the_batch_with_a_warning(rng: np.random.Generator) -> None:
    class Greedy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = small()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if len(x) > 2:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB")
            return self.body(x)

    model = opened(Greedy(), preprocess="unit")
    images = [rng.integers(0, 256, (10, 8, 3), dtype=np.uint8) for _ in range(5)]
    with pytest.warns(
        xcam.XcamWarning, match=r"out of memory with \d images in one batch \(CUDA out of memory.*trying \d"
    ):
        result = xcam.explain(model, images, layer="body.0", target=0)
    for image, e in zip(images, result, strict=True):
        np.testing.assert_allclose(e.cam, xcam.explain(model, image, layer="body.0", target=0).cam, atol=1e-6)


def test_wrapped_modules_are_unwrapped() -> None:
    _, expected = by_hand(small(), 0)
    for wrapped in (nn.DataParallel(small()), torch.compile(small())):
        model = opened(wrapped)
        assert [layer.name for layer in model.layers][:2] == ["0", "1"]
        np.testing.assert_allclose(model.trace(X, "0", cotangents()).gradients[0], expected, atol=1e-7)
    module = small()
    module[0] = torch.compile(module[0])
    np.testing.assert_allclose(opened(module).trace(X, "0", cotangents()).gradients[0], expected, atol=1e-7)


@pytest.mark.filterwarnings("ignore:Converting a tensor with requires_grad=True to a scalar")
def test_a_model_that_cannot_be_captured_is_resumed_whole() -> None:
    class Branching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = small()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.body(x) if float(x.sum()) > -1e9 else self.body(-x)

    model = opened(Branching())
    trace = model.trace(X, "body.0")
    variants = np.concatenate([trace.activations, 0 * trace.activations])
    result = model.resume(trace, variants, rows=[0, 1, 0, 1], cotangents=cotangents()).outputs
    assert captured(model, "body.0") is None
    np.testing.assert_allclose(result[:2], trace.outputs, atol=1e-6)
    bias = model.module.body[4].bias.detach().numpy()
    np.testing.assert_allclose(result[2:], [bias, bias], atol=1e-6)


def test_a_tail_follows_its_weights() -> None:
    module = small()
    model = opened(module)
    trace = model.trace(X, "0")
    model.resume(trace, trace.activations)
    with torch.no_grad():
        module[4].bias += 5  # in place: the same memory
    np.testing.assert_allclose(model.resume(trace, trace.activations).outputs, trace.outputs + 5, atol=1e-5)
    module[4].bias = nn.Parameter(module[4].bias + 2)  # another memory
    np.testing.assert_allclose(model.resume(trace, trace.activations).outputs, trace.outputs + 7, atol=1e-5)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:Please use quant_min:UserWarning")  # of torch.ao
def test_a_network_for_quantisation_aware_training_keeps_its_ranges() -> None:
    """Its observers are on in evaluation mode too; they would follow each image, and mix the rows of a batch."""
    mapping = quantisation.get_default_qat_qconfig_mapping("x86")
    prepared = quantize_fx.prepare_qat_fx(small().train(), mapping, (torch.from_numpy(X),))
    prepared(torch.from_numpy(X))
    prepared.eval()
    before = {name: value.clone() for name, value in prepared.state_dict().items()}
    model = opened(prepared)
    trace = model.trace(0.9 * X, default(model).name, cotangents())
    after = prepared.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    prepared.apply(quantisation.disable_observer)
    with torch.no_grad():
        np.testing.assert_allclose(trace.outputs, prepared(torch.from_numpy(0.9 * X)).numpy(), atol=1e-6)
    assert np.abs(trace.gradients[0]).max() > 0


@pytest.mark.parametrize(("factor", "cotangent"), [(1e-5, 1.0), (300.0, 64.0)])
def test_small_and_large_gradients_in_half_precision(factor: float, cotangent: float) -> None:
    """float16 rounds the small gradients to zero, unless they are scaled; the large ones exceed it if they are scaled too."""

    class Scale(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * factor

    parts = nn.Conv2d(4, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), Scale(), nn.Linear(4, 3)
    select = lambda y: [cotangent * np.eye(3, dtype=np.float32)[[1, 2]]]  # noqa: E731
    expected = opened(small(*parts)).trace(X, "1", select).gradients[0]
    trace = opened(small(*parts).half()).trace(X.astype(np.float16), "1", select)
    assert np.abs(trace.gradients[0] - expected).max() < 0.01 * np.abs(expected).max()


def test_the_types_of_layers() -> None:
    assert {layer.dtype for layer in opened(small().half()).layers} == {"float16"}
    assert {layer.dtype for layer in opened(small()).layers} == {"float32"}


def test_eight_threads_one_of_them_training_mode() -> None:
    """The last thread that finishes restores the modes, not the first."""
    module = small(nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)).train()
    expected = opened(module).trace(X, "0", cotangents()).gradients[0]
    model = opened(module)
    wrong = []

    def work() -> None:
        for _ in range(20):
            if not np.array_equal(model.trace(X, "0", cotangents()).gradients[0], expected):
                wrong.append(1)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert all(part.training for part in module.modules())
    assert int(module[2].num_batches_tracked) == 0


def test_values_that_are_channels_last_are_recognised() -> None:
    class Last(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm, self.act = nn.Conv2d(3, 6, 1), nn.LayerNorm(6), nn.GELU()
            self.out = nn.Linear(6, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.out(self.act(self.norm(self.conv(x).permute(0, 2, 3, 1))).mean(dim=(1, 2)))

    model = opened(Last())
    shapes = {layer.name: (layer.layout, layer.shape) for layer in model.layers}
    assert shapes["conv"] == ("channels_first", (6, 10, 8))
    assert shapes["norm"] == shapes["act"] == ("channels_last", (6, 10, 8))
    assert model.trace(X, "act").activations.shape == (2, 6, 10, 8)
    forced = opened(Last(), layout="channels_first")
    assert next(layer for layer in forced.layers if layer.name == "norm").shape == (10, 8, 6)


def test_one_and_three_dimensions() -> None:
    line = nn.Sequential(nn.Conv1d(2, 5, 3), nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(5, 3))
    model = xcam.load(line)
    assert model.trace(np.ones((2, 2, 20), np.float32), "0", cotangents()).gradients[0].shape == (2, 5, 18)
    cube = nn.Sequential(nn.Conv3d(1, 5, 3), nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(5, 3))
    assert xcam.load(cube).trace(np.ones((2, 1, 6, 7, 8), np.float32), "0", cotangents()).gradients[0].shape == (
        2,
        5,
        4,
        5,
        6,
    )


def test_the_default_layer() -> None:
    vgg = small(nn.MaxPool2d(2), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Dropout(), nn.Linear(16, 3))
    assert default(opened(vgg)).name == "1"
    flat = nn.Sequential(nn.Flatten(), nn.Linear(240, 2))
    with pytest.raises(ModelError, match="cannot choose a layer of Sequential"):
        default(opened(flat))
    assert isinstance(default(opened(vgg)), Layer)


def test_devices() -> None:
    assert opened(small(), device="cpu").trace(X, "0").activations.shape == (2, 4, 8, 6)
    with pytest.raises(InputError, match="unknown device 'cuda'; torch has: cpu"):
        opened(small(), device="cuda")
    with pytest.raises(InputError, match="unknown device 'warp9'"):
        opened(small(), device="warp9")


class Bypass(nn.Module):
    """A network whose bypass values do not have one row per image: windows folded into the batch, or one value for all."""

    def __init__(self, fold: bool) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.conv, self.side, self.out, self.fold = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1), nn.Linear(4, 3), fold

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.tanh(self.conv(x))
        if self.fold:  # [N·2, 4, 5, 8]: the upper and the lower half
            s = torch.tanh(self.side(x.unflatten(2, (2, 5)).transpose(1, 2).flatten(0, 1)))
            y = y * s.unflatten(0, (-1, 2)).transpose(1, 2).flatten(2, 3)
        else:
            y = y * torch.tanh(self.side(x)).mean()
        return self.out(y.mean(dim=(2, 3)))


@pytest.mark.parametrize("fold", [True, False])
def test_resume_where_bypass_values_do_not_have_one_row_per_image(fold: bool) -> None:
    module = Bypass(fold)
    model = opened(module)
    trace = model.trace(X, "conv")
    rows = [1, 0, 1]
    result = model.resume(trace, trace.activations[rows], rows).outputs
    with torch.no_grad():
        expected = module(torch.from_numpy(X[rows]))
    np.testing.assert_allclose(result, expected, atol=1e-6)
    assert captured(model, "conv") is not None


def test_a_layer_that_folds_windows_into_the_batch() -> None:
    model = opened(Bypass(True), preprocess="unit")
    assert {layer.name for layer in model.layers if layer.folds_batch} == {"side"}
    assert default(model).name == "conv"
    with pytest.raises(InputError, match="layer 'side': its batch axis contains windows or frames"):
        xcam.explain(model, np.zeros((10, 8, 3), np.uint8), layer="side")


def test_two_outputs_of_one_shape_at_one_layer_are_not_mixed_up() -> None:
    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1)

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return torch.tanh(self.a(x)), torch.tanh(self.b(x))

    class Whole(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.pair, self.out = Pair(), nn.Linear(4, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            a, b = self.pair(x)
            return 1e-4 * self.out((a - 0.5 * b).mean(dim=(2, 3)))

    model = opened(Whole())
    trace = model.trace(X, "pair")
    changed = trace.activations * 3
    bias = model.module.out.bias.detach().numpy() * 1e-4
    with torch.no_grad():
        b = model.module.pair(torch.from_numpy(X))[1]
        expected = 1e-4 * model.module.out((torch.from_numpy(changed) - 0.5 * b).mean(dim=(2, 3))).numpy()
    np.testing.assert_allclose(model.resume(trace, changed).outputs - bias, expected - bias, rtol=1e-3, atol=1e-9)


def test_gradients_turned_off_in_a_part_of_the_model() -> None:
    class Frozen(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.backbone, self.out = nn.Conv2d(3, 4, 3), nn.Linear(4, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            with torch.no_grad():
                f = self.backbone(x)
            return self.out(torch.tanh(f).mean(dim=(2, 3)))

    module = Frozen()
    model = opened(module)
    assert default(model).name == "backbone"
    trace = model.trace(X, "backbone", cotangents())
    a = torch.from_numpy(trace.activations).requires_grad_()
    module.out(torch.tanh(a).mean(dim=(2, 3)))[:, 0].sum().backward()
    np.testing.assert_allclose(trace.gradients[0], a.grad, atol=1e-7)


def test_checkpointed_parts() -> None:
    from torch.utils.checkpoint import checkpoint

    class Checkpointed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = small()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.body[2:](checkpoint(self.body[:2], x, use_reentrant=False))

    model = opened(Checkpointed())
    np.testing.assert_allclose(model.trace(X, "body.1", cotangents()).gradients[0], by_hand(small(), 1)[1], atol=1e-7)


def test_resumes_in_threads_while_others_trace_one_live_module() -> None:
    """The fake tensors of a capture must not reach concurrent passes or other captures."""
    module = small()
    expected = opened(module).trace(X, "1", cotangents())
    wrong: list[Any] = []

    def work(k: int) -> None:
        try:
            model = opened(module)
            for _ in range(6):
                trace = model.trace(X, "01"[k % 2], cotangents())
                if not np.allclose(trace.outputs, expected.outputs, atol=1e-6):
                    wrong.append(k)
                again = model.resume(trace, trace.activations)
                if not np.allclose(again.outputs, expected.outputs, atol=1e-6):
                    wrong.append(k)
            if captured(model, "01"[k % 2]) is None:
                wrong.append("not captured")
        except BaseException as error:
            wrong.append(error)

    threads = [threading.Thread(target=work, args=(k,)) for k in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_a_part_that_its_container_writes_to_comes_before_it() -> None:
    """`F.relu(norm(conv(x)), inplace=True)`: the container returns the same tensor with other values."""

    class Basic(nn.Module):
        def __init__(self, into: int) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(into, 4, 3), nn.BatchNorm2d(4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return nn.functional.relu(self.norm(self.conv(x)), inplace=True)

    module = nn.Sequential(Basic(3), nn.Sequential(Basic(4)), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    names = [layer.name for layer in xcam.load(module, size=(16, 16)).layers]
    assert names == ["0.conv", "0.norm", "0", "1.0.conv", "1.0.norm", "1", "1.0", "2", "3"]


def test_a_part_that_runs_in_inference_mode() -> None:
    """Inference tensors have no version counter. Layers behind the part can be explained."""

    class Frozen(nn.Sequential):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            with torch.inference_mode():
                result = super().forward(x)
            return result.clone()

    module = nn.Sequential(
        Frozen(nn.Conv2d(3, 4, 3)), nn.Conv2d(4, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    ).eval()
    model = xcam.load(module, size=(16, 16), preprocess="unit")
    assert [layer.name for layer in model.layers] == ["0.0", "0", "1", "2", "3"]
    image = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    x = np.moveaxis(image, -1, 0)[None].astype(np.float32) / 255
    cam = xcam.explain(model, image, layer="1", target=2).cam
    np.testing.assert_allclose(cam, model.activations(x, ["1"])["1"][0, 2] / 144, atol=1e-6)


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_a_fixed_height_and_an_open_width(tmp_path: Path) -> None:
    """As in networks that read text: the width follows from the image's ratio, in a module, a .pt2 file and an ONNX file."""
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Conv2d(3, 16, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 2)
    ).eval()
    with torch.no_grad():
        module[4].weight.abs_()  # a map that is not zero
    image = np.random.default_rng(0).integers(0, 256, (24, 61, 3), dtype=np.uint8)
    x = torch.from_numpy(np.moveaxis(resize(image, (12, 30)), -1, 0)[None].astype(np.float32) / 255)
    features = module[:2](x)
    weights = module[4].weight[0] / (10 * 28)
    expected = torch.einsum("chw,c->hw", features[0], weights).detach().numpy()
    open_width = {0: torch.export.Dim.DYNAMIC, 3: torch.export.Dim.DYNAMIC}
    program = torch.export.export(module, (torch.zeros(2, 3, 12, 40),), dynamic_shapes=(open_width,))
    model = xcam.load(module, preprocess="unit", size=(12, None))
    exported = xcam.export(model, tmp_path / "wide.onnx", layer="1")
    for opened in (model, xcam.load(program, preprocess="unit"), xcam.load(exported, preprocess="unit")):
        assert opened.input.size == (12, None)
        e = xcam.explain(opened, image, layer=layers.find(opened, None), target=0)
        np.testing.assert_allclose(e.outputs, module(x).detach().numpy()[0], rtol=1e-4)
        np.testing.assert_allclose(e.cam, expected, atol=1e-5)
