"""Which calls a value depends on: through views, writes in place, integers, NumPy, and parts without gradients."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.ao import quantization
from torch.utils.checkpoint import checkpoint

import xcam
from xcam import InputError, ModelError
from xcam_torch.dependence import Dependence

X = np.random.default_rng(0).normal(size=(2, 3, 10, 8)).astype(np.float32)
IMAGE = np.random.default_rng(0).integers(0, 256, (10, 8, 3), dtype=np.uint8)


def written(x: Tensor) -> Tensor:
    buffer = torch.zeros(len(x), 4)
    buffer[:, 1] = x.mean((1, 2, 3))
    return buffer


def each_written(x: Tensor) -> Tensor:
    buffer = torch.zeros_like(x)
    torch._foreach_add_([buffer], [x])
    return buffer


def written_out(x: Tensor) -> Tensor:
    buffer = torch.zeros(x.shape)
    torch.mul(x, 2, out=buffer)
    return buffer


def inferred(x: Tensor) -> Tensor:
    with torch.inference_mode():
        return x * 2


class Halved(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.detach() / 2

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> None:
        return None


VALUES: dict[str, Callable[[Tensor], Any]] = {
    "detach": lambda x: x.detach() + 1,
    "a view": lambda x: x[:, :1].flatten(1),
    "a write in place": written,
    "a write to a list": each_written,
    "an argument for the result": written_out,
    "inference": inferred,
    "an own function": Halved.apply,
    "an index": lambda x: torch.eye(3)[x.argmax(1)],
    "a mask": lambda x: torch.ones(2, 10, 8).masked_fill(x[:, 0] > 0, 2.0),
    "positions": lambda x: torch.nonzero(x > 0),
    "a part of a tuple": lambda x: (torch.ones(2), {"x": x.topk(2)}),
    "NumPy": lambda x: torch.from_numpy(x.numpy() * 2) + 1,
    "a list": lambda x: torch.tensor(x.tolist()) + 1,
    "a number": lambda x: torch.tensor(x.mean().item()),
    "vmap": torch.vmap(lambda x: x * 2),
    "a condition": lambda x: torch.cond(x.sum() > 0, lambda a: a * 2, lambda a: -a, (torch.ones(2),)),
    "a sparse tensor": lambda x: x[:, 0, 0].to_sparse() * 2,
}
CONSTANTS: dict[str, Callable[[Tensor], Any]] = {
    "a size": lambda x: torch.arange(x.shape[2]) * len(x),
    "an expanded constant": lambda x: torch.ones(1, 3).expand(len(x), -1) * 2,
    "zeros like it": lambda x: torch.zeros_like(x) + x.new_ones(x.shape),
    "a constant after NumPy": lambda x: (x.numpy(), torch.ones(3) + 1)[1],
}


@pytest.mark.parametrize("kind", [*VALUES, *CONSTANTS])
def test_values_count_and_sizes_do_not(kind: str) -> None:
    dependence, x = Dependence(), torch.from_numpy(X.copy())
    with dependence.recording(x):
        result = (VALUES | CONSTANTS)[kind](x)
    assert dependence.of(result) == (kind in VALUES)


def test_a_call_is_followed_from_its_value_on() -> None:
    dependence, x = Dependence(), torch.from_numpy(X.copy())
    with dependence.recording(x):
        a, b = x * 2, x * 3
        start = dependence.reads(x)
        dependence.pass_through(a, 2, start)
        dependence.pass_through(b, 4, start)
        results = [a.relu(), b.relu(), a + b, a.add_(1), x * 4]
    assert [dependence.of(result) for result in results] == [3, 5, 7, 3, 1]


class Net(nn.Module):
    """Features, a step between, and a head: `step` decides whether a gradient leads through."""

    def __init__(self, step: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.backbone = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU())
        self.neck, self.head = nn.Conv2d(8, 4, 1), nn.Linear(4, 5)
        self.step = step

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.neck(self.step(self.backbone(x))).mean((2, 3)))


def facts(model: Any) -> dict[str, tuple[bool, bool]]:
    return {layer.name: (layer.reaches_output, layer.differentiable) for layer in model.layers}


STEPS: dict[str, Callable[[Tensor], Tensor]] = {
    "detach": lambda a: a.detach(),
    "no_grad": torch.no_grad()(lambda a: a * 1.0),
    "NumPy": lambda a: torch.from_numpy(a.detach().numpy().copy()),
    "a function without a gradient": Halved.apply,
    "integers": lambda a: (a > 0.1).float(),
}


@pytest.mark.parametrize("kind", STEPS)
def test_features_without_a_gradient(kind: str) -> None:
    """Their value leads to the output: methods that need no gradient work, and the others name the layer behind."""
    net = Net(STEPS[kind]).eval()
    model = xcam.load(net, preprocess="unit", size=(10, 8))
    assert facts(model) == dict.fromkeys(["backbone.0", "backbone", "backbone.1"], (True, False)) | {
        "neck": (True, True),
        "head": (True, True),
    }
    assert [layer.leads_to for layer in model.layers] == [("output",)] * 5
    trace = model.trace(X, "backbone.1")
    with torch.no_grad():
        features = net.backbone(torch.from_numpy(X))
        changed = net.head(net.neck(net.step(features * 0.3)).mean((2, 3)))
    np.testing.assert_allclose(trace.activations, features, atol=1e-6)
    np.testing.assert_allclose(trace.outputs, net(torch.from_numpy(X)).detach(), atol=1e-6)
    np.testing.assert_allclose(model.resume(trace, trace.activations * 0.3).outputs, changed, atol=1e-6)
    for method in ("eigencam", "scorecam", "ablationcam", "fem"):
        assert xcam.explain(model, IMAGE, layer="backbone.1", method=method, target=2).cam.shape == (8, 6)
    with pytest.raises(ModelError, match=r"cannot differentiate Net at layer 'backbone\.1': .*'neck'.*eigencam"):
        xcam.explain(model, IMAGE, layer="backbone.1", target=2)
    assert xcam.explain(model, IMAGE, layer="neck", target=2).cam.any()


def test_a_reference_branch_does_not_depend_on_the_input() -> None:
    class Siamese(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.encoder, self.mixed, self.unused = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 1), nn.Conv2d(3, 4, 1)
            self.reference = torch.ones(1, 3, 10, 8)

        def forward(self, x: Tensor) -> Tensor:
            self.unused(x)
            reference = self.encoder(self.reference.expand(len(x), -1, -1, -1))
            return self.mixed(self.encoder(x) - reference).mean((2, 3))

    layers = {layer.name: layer for layer in xcam.load(Siamese(), size=(10, 8)).layers}
    assert {name: layer.depends_on_input for name, layer in layers.items()} == {
        "unused": True,
        "encoder#0": False,
        "encoder": True,
        "mixed": True,
    }
    assert {name: layer.leads_to for name, layer in layers.items()} == {
        "unused": (),
        "encoder#0": ("output",),
        "encoder": ("output",),
        "mixed": ("output",),
    }


def test_layers_of_several_outputs() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.a, self.b = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            x = self.body(x)
            return {
                "a": self.a(x).mean((2, 3)),
                "b": self.b(x.detach()).mean((2, 3)),
                "anchors": torch.ones(len(x), 2),
            }

    layers = xcam.load(Two(), size=(10, 8)).layers
    assert {layer.name: layer.leads_to for layer in layers} == {"body": ("a", "b"), "a": ("a",), "b": ("b",)}


def test_tokens_lead_to_the_outputs_that_read_most_of_them() -> None:
    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.patch, self.norm, self.head = nn.Conv2d(3, 6, 2, 2), nn.LayerNorm(6), nn.Linear(6, 2)

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            tokens = self.norm(self.patch(x).flatten(2).transpose(1, 2))
            return {"class": self.head(tokens[:, 0]), "all": self.head(tokens).mean(1)}

    layers = {layer.name: layer.leads_to for layer in xcam.load(Tokens(), size=(10, 8)).layers}
    assert layers["norm"] == ("all",)
    assert layers["patch"] == ("class", "all")


def quantized() -> nn.Module:
    class Quantized(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.before, self.after = quantization.QuantStub(), quantization.DeQuantStub()
            self.conv, self.act, self.head = nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.after(self.head(self.act(self.conv(self.before(x))).mean((2, 3))))

    module = Quantized().eval()
    module.qconfig = quantization.get_default_qconfig(torch.backends.quantized.engine)
    quantization.prepare(module, inplace=True)
    module(torch.from_numpy(X))
    return quantization.convert(module)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_an_int8_module() -> None:
    """Values are dequantised, replacements quantised as the value was. No gradient leads through."""
    module = quantized()
    model = xcam.load(module, preprocess="unit", size=(10, 8))
    assert facts(model)["act"] == (True, False)
    with torch.no_grad():
        value = module.act(module.conv(module.before(torch.from_numpy(X))))
        changed = torch.quantize_per_tensor(
            value.dequantize() * 0.4, value.q_scale(), value.q_zero_point(), value.dtype
        )
        expected = module.after(module.head(changed.mean((2, 3))))
    trace = model.trace(X, "act")
    np.testing.assert_array_equal(trace.activations, value.dequantize())
    np.testing.assert_array_equal(trace.outputs, module(torch.from_numpy(X)))
    np.testing.assert_allclose(model.resume(trace, trace.activations * 0.4).outputs, expected, atol=1e-6)
    for method in ("eigencam", "scorecam"):
        assert xcam.explain(model, IMAGE, layer="act", method=method, target=1).cam.any()
    with pytest.raises(ModelError, match="cannot differentiate Quantized at layer 'act'"):
        xcam.explain(model, IMAGE, layer="act", target=1)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_a_dynamically_quantised_head() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)).eval()
    model = xcam.load(quantization.quantize_dynamic(net, {nn.Linear}), preprocess="unit", size=(10, 8))
    assert facts(model)["1"] == (True, False)
    np.testing.assert_allclose(model.trace(X, "1").activations, net[:2](torch.from_numpy(X)).detach(), atol=1e-6)


def part() -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()


SCRIPTED: dict[str, Callable[[], Any]] = {
    "scripted": lambda: torch.jit.script(part()),
    "traced": lambda: torch.jit.trace(part(), torch.from_numpy(X)),
    "frozen": lambda: torch.jit.freeze(torch.jit.script(part())),
    "optimised": lambda: torch.jit.optimize_for_inference(torch.jit.script(part())),
}


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("kind", SCRIPTED)
def test_a_torchscript_part(kind: str) -> None:
    """The part is one layer; gradients lead through it, unless it was optimised for inference."""
    stem = nn.Sequential(nn.Conv2d(3, 3, 1), nn.Tanh()).eval()
    head = nn.Linear(4, 5)
    module = nn.Sequential(stem, SCRIPTED[kind](), head).eval()
    model = xcam.load(module, preprocess="unit", size=(10, 8))
    differentiable = kind != "optimised"
    assert facts(model)["0.1"] == (True, differentiable)
    assert facts(model)["1"] == (True, True)
    assert next(layer.kind for layer in model.layers if layer.name == "1") == "Sequential"
    if kind in ("scripted", "traced"):
        with pytest.raises(
            InputError, match=r"layer '1\.0': it is inside the TorchScript module '1', which runs as a whole"
        ):
            model.trace(X, "1.0")
    trace = model.trace(X, "0.1", (lambda y: [np.ones_like(y)]) if differentiable else None)
    value = stem(torch.from_numpy(X)).detach().requires_grad_()
    head(part()(value)).sum().backward()
    np.testing.assert_allclose(trace.activations, value.detach(), atol=1e-6)
    if differentiable:
        np.testing.assert_allclose(trace.gradients[0], value.grad, atol=1e-6)
    expected = head(part()(value * 0.3)).detach()
    np.testing.assert_allclose(model.resume(trace, trace.activations * 0.3).outputs, expected, atol=1e-5)


class Checkpointed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.body, self.head = nn.Conv2d(3, 3, 1), part(), nn.Linear(4, 5)
        self.reentrant = True

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head(checkpoint(self.body, x, use_reentrant=True) if self.reentrant else self.body(x))


@pytest.mark.parametrize("layer", ["stem", "body.0", "body.1"])
def test_a_reentrant_checkpoint(layer: str) -> None:
    """Torch refuses gradients inside and before it."""
    plain = Checkpointed()
    plain.reentrant = False

    def cotangents(y: np.ndarray) -> list[np.ndarray]:
        return [np.ones_like(y)]

    trace = xcam.load(Checkpointed(), size=(10, 8)).trace(X, layer, cotangents)
    expected = xcam.load(plain, size=(10, 8)).trace(X, layer, cotangents)
    assert expected.gradients[0].any()
    np.testing.assert_allclose(trace.gradients[0], expected.gradients[0], atol=1e-7)
    np.testing.assert_allclose(trace.outputs, expected.outputs, atol=1e-6)


def test_checkpoints_of_other_threads_are_kept() -> None:
    original = torch.utils.checkpoint.CheckpointFunction
    classes, module, ready, done = [], Checkpointed(), threading.Event(), threading.Event()

    class Waiting(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            ready.set()
            done.wait(10)
            return x.mean((2, 3))

    def train() -> None:
        ready.wait(10)
        x = torch.from_numpy(X).requires_grad_()
        classes.append(type(checkpoint(module.body, x, use_reentrant=True).grad_fn).__name__)
        done.set()

    thread = threading.Thread(target=train)
    thread.start()
    xcam.load(Waiting(), size=(10, 8)).predict(X)
    thread.join()
    assert classes == ["CheckpointFunctionBackward"]
    assert torch.utils.checkpoint.CheckpointFunction is original


class ClassToken(nn.Module):
    """A class token reads a map of the patches, which passes a convolution behind that read (as in CoaT)."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.patch, self.norm, self.late = nn.Conv2d(3, 8, 4, 4), nn.LayerNorm(8), nn.Conv2d(8, 8, 1)
        self.attention, self.head = nn.MultiheadAttention(8, 2, batch_first=True), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        patches = self.patch(x)
        tokens = self.norm(patches.flatten(2).transpose(1, 2))
        tokens = torch.cat([tokens.mean(1, keepdim=True), tokens], 1)
        seen = self.attention(tokens, tokens, tokens, need_weights=False)[0]
        late = self.late(seen[:, 1:].transpose(1, 2).unflatten(2, patches.shape[2:]))
        seen = torch.cat([seen[:, :1], late.flatten(2).transpose(1, 2)], 1)
        return self.head(seen[:, 0])  # type: ignore[no-any-return]


@pytest.mark.filterwarnings("ignore::xcam.ZeroHeatmapWarning")
@pytest.mark.parametrize("zero_head", [False, True])
def test_a_map_behind_the_last_read_of_a_class_token(zero_head: bool) -> None:
    net = ClassToken().eval()
    image = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    if zero_head:  # zeros everywhere are not evidence
        nn.init.zeros_(net.head.weight)
    explanation = xcam.explain(xcam.load(net, preprocess="unit", size=(32, 32)), image, target=1)
    assert explanation.layer == ("late" if zero_head else "norm")
    if zero_head:
        return
    tokens = net.norm(net.patch(torch.from_numpy(image).permute(2, 0, 1)[None] / 255).flatten(2).transpose(1, 2))
    whole = torch.cat([tokens.mean(1, keepdim=True), tokens], 1)
    score = net.head(net.attention(whole, whole, whole, need_weights=False)[0][:, 0])[0, 1]
    (gradient,) = torch.autograd.grad(score, tokens)
    expected = (gradient.mean(1, keepdim=True) * tokens).sum(2).reshape(8, 8).detach().numpy()
    np.testing.assert_allclose(explanation.cam, expected, atol=1e-4 * np.abs(expected).max())
