"""Several layers in one pass, and traces at a layer behind the changed one, against plain torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import xcam
from guarded import differentiated

X = np.random.default_rng(0).normal(size=(2, 3, 12, 10)).astype(np.float32)
ROWS = [1, 0, 1]


class Block(nn.Module):
    """relu(conv2(relu(conv1(x))) + skip(x)), with writes in place, as ResNet has them."""

    def __init__(self, into: int, out: int) -> None:
        super().__init__()
        self.conv1, self.norm = nn.Conv2d(into, out, 3, padding=1), nn.BatchNorm2d(out)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(out, out, 3, padding=1)
        self.skip = nn.Identity() if into == out else nn.Conv2d(into, out, 1)

    def forward(self, x: Tensor) -> Tensor:
        out = self.conv2(self.relu(self.norm(self.conv1(x))))
        out += self.skip(x)
        return self.relu(out)


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 3, stride=2), nn.Identity())
        self.blocks = nn.Sequential(Block(4, 4), Block(4, 6))
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(), nn.Linear(6, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.stem(x)))


class Dense(nn.Module):
    """Each step reads all those before it."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second, self.third = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 1), nn.Conv2d(8, 4, 1)
        self.last, self.join = nn.Conv2d(12, 5, 1), nn.Tanh()
        self.scores = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        a = self.first(x)
        b = torch.cat([a, self.second(a).tanh()], 1)
        c = torch.cat([b, self.third(b).relu()], 1)
        return self.scores(self.join(self.last(c)).mean((2, 3)))


class Scripted(nn.Module):
    """A network with a scripted block."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.block = nn.Conv2d(3, 4, 3), torch.jit.script(nn.Sequential(nn.Conv2d(4, 4, 1), nn.ReLU()))
        self.after, self.scores = nn.Tanh(), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        a = self.stem(x)
        return self.scores(self.after(self.block(a) + a).mean((2, 3)))


class Uncaptured(Residual):
    """torch.export cannot follow NumPy, so that the whole module is run for each `resume`."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * float(np.float32(x.detach().numpy().shape[0] > 0))


NETWORKS: dict[str, tuple[Callable[[], nn.Module], list[str]]] = {
    "residual": (Residual, ["stem.0", "blocks.0.conv1", "blocks.0.conv2", "blocks.0", "blocks.1.norm", "blocks.1.skip", "blocks.1"]),
    "dense": (Dense, ["first", "second", "third", "last", "join"]),
    "scripted part": (Scripted, ["stem", "block", "after"]),
    "without a captured graph": (Uncaptured, ["stem.0", "blocks.0.conv1", "blocks.0.conv2", "blocks.0", "blocks.1.skip", "blocks.1"]),
}  # fmt: skip


def plain(
    module: nn.Module, x: Tensor, at: Sequence[str], changed: Mapping[str, Tensor] | None = None
) -> tuple[Tensor, dict[str, Tensor], list[dict[str, Tensor]]]:
    """Return outputs, values and gradients of each score at the modules `at`, by hooks of torch alone."""
    values: dict[str, Tensor] = {}
    parts = dict(module.named_modules())
    changed = changed or {}

    def hook(name: str) -> Any:
        def after(_: Any, __: Any, value: Tensor) -> Tensor:
            value = changed[name].clone().requires_grad_() if name in changed else value.clone()
            values[name] = value if value.requires_grad else value.requires_grad_()
            return values[name].clone()

        return after

    handles = [nn.Module.register_forward_hook(parts[name], hook(name)) for name in {*at, *changed}]
    outputs = module.eval()(x)
    for handle in handles:
        handle.remove()
    gradients = [
        dict(zip(at, torch.autograd.grad(outputs[:, k].sum(), [values[n] for n in at], retain_graph=True, allow_unused=True), strict=True))
        for k in range(outputs.shape[1])
    ]  # fmt: skip
    return outputs, values, gradients


def cotangents(outputs: Any) -> list[Any]:
    return [np.eye(outputs.shape[1], dtype=np.float32)[[k] * len(outputs)] for k in range(outputs.shape[1])]


def agree(result: Any, expected: Tensor, label: str) -> None:
    expected = expected.detach().numpy()
    np.testing.assert_allclose(result, expected, rtol=1e-4, atol=1e-4 * float(np.abs(expected).max()), err_msg=label)


def check(trace: Any, name: str, expected: Any) -> None:
    outputs, values, gradients = expected
    agree(trace.outputs, outputs, f"outputs at {name}")
    agree(trace.activations, values[name], f"value of {name}")
    assert len(trace.gradients) == len(gradients)
    for k, gradient in enumerate(gradients):
        agree(trace.gradients[k], gradient[name], f"gradient {k} at {name}")


@pytest.mark.parametrize("kind", NETWORKS)
def test_several_layers_have_the_gradients_of_each_alone(kind: str) -> None:
    make, names = NETWORKS[kind]
    module = make()
    model = xcam.load(module, size=(12, 10))
    expected = plain(module, torch.from_numpy(X), names)
    calls: list[int] = []
    module.register_forward_hook(lambda *_: calls.append(1))
    for order in (names, names[::-1]):
        model.trace(X, order[0])
        calls.clear()
        traces = model.trace(X, order, cotangents)
        assert len(calls) == 1, "one forward pass"
        for name, trace in zip(order, traces, strict=True):
            check(trace, name, expected)
            check(model.trace(X, name, cotangents), name, expected)


@pytest.mark.parametrize("kind", NETWORKS)
def test_a_resumed_trace_is_at_the_layers_in_its_own_run(kind: str) -> None:
    make, names = NETWORKS[kind]
    module = make()
    model = xcam.load(module, size=(12, 10))
    traces = model.trace(X, names)
    x = torch.from_numpy(X[ROWS])
    for i, (name, trace) in enumerate(zip(names, traces, strict=True)):
        changed = trace.activations[ROWS] * np.random.default_rng(i).uniform(0, 2, trace.activations[ROWS].shape)
        changed = changed.astype(np.float32)
        at = names[i:]
        constants = {name: torch.from_numpy(changed)}
        expected = plain(module, x, at, constants)
        resumed = model.resume(trace, changed, ROWS, cotangents, at=at)
        for other, one in zip(at, resumed, strict=True):
            reached = expected[2][0][other] is not None
            assert reached, "the test's own layers are on a path"
            check(one, other, expected)
        check(model.resume(trace, changed, ROWS, cotangents, at=at[-1]), at[-1], expected)
        if len(at) > 1:  # again, at the next layer: the rest has the values of this run
            one, rows = resumed[1], [2, 1]
            more = (1.3 * one.activations[rows]).astype(np.float32)
            fixed = {name: constants[name][rows], at[1]: torch.from_numpy(more)}
            expected = plain(module, x[rows], at[1:], fixed)
            for other, last in zip(at[1:], model.resume(one, more, rows, cotangents, at=at[1:]), strict=True):
                check(last, other, expected)


def test_a_layer_that_follows_nothing_keeps_its_value() -> None:
    """Its gradient is that of the paths around the changed layer."""
    module = Residual()
    model = xcam.load(module, size=(12, 10))
    trace = model.trace(X, "blocks.1.conv2")
    changed = (2 * trace.activations[ROWS]).astype(np.float32)
    at = ["stem.0", "blocks.1.skip", "blocks.0", "blocks.1"]
    expected = plain(module, torch.from_numpy(X[ROWS]), at, {"blocks.1.conv2": torch.from_numpy(changed)})
    for name, one in zip(at, model.resume(trace, changed, ROWS, cotangents, at=at), strict=True):
        check(one, name, expected)
    cut = model.trace(X, "blocks.1")
    with pytest.raises(
        xcam.ModelError, match=r"cannot differentiate Residual at layer 'stem.0': no differentiable path"
    ):
        model.resume(cut, cut.activations, cotangents=cotangents, at="stem.0")
    np.testing.assert_array_equal(
        model.resume(cut, cut.activations, at="stem.0").activations, model.trace(X, "stem.0").activations
    )


CUTS = {  # a module that is called twice has its own name at the last call
    "residual": {"stem.0", "stem.1", "stem", "blocks", "blocks.0", "blocks.0.relu", "blocks.1", "blocks.1.relu", "head", "head.0", "head.1", "head.2", "head.3"},
    "dense": {"first", "last", "join", "scores"},
    "scripted part": {"stem", "after", "scores"},
}  # fmt: skip


@pytest.mark.parametrize("kind", CUTS)
def test_layers_that_a_path_passes_by(kind: str) -> None:
    model = xcam.load(NETWORKS[kind][0](), size=(12, 10))
    assert {layer.name for layer in model.layers if not layer.bypassed} == CUTS[kind]


class Around(nn.Module):
    """A module that changes nothing, which a skip connection passes by or not."""

    def __init__(self, skip: bool, written: bool = False) -> None:
        super().__init__()
        self.conv, self.same, self.scores, self.skip, self.written = (
            nn.Conv2d(3, 4, 1),
            nn.Identity(),
            nn.Linear(4, 3),
            skip,
            written,
        )
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        a = self.conv(x)
        b = self.same(a)
        if self.written:
            b = self.relu(b)
        return self.scores((b + a if self.skip else b).mean((2, 3)))  # fmt: skip


@pytest.mark.parametrize(
    ("skip", "written", "passed"), [(False, False, set()), (True, False, {"same"}), (True, True, {"same"})]
)
def test_a_module_that_changes_nothing(skip: bool, written: bool, passed: set[str]) -> None:
    """One that writes in place changes the skipped value too, so that no path avoids it."""
    model = xcam.load(Around(skip, written), size=(12, 10))
    assert {layer.name for layer in model.layers if layer.bypassed} == passed


class Aside(nn.Module):
    """A second output, and a part that the first does not read."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.other, self.scores, self.aux = (
            nn.Conv2d(3, 4, 1),
            nn.Conv2d(3, 4, 1),
            nn.Linear(4, 3),
            nn.Linear(4, 2),
        )

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        features = self.conv(x)
        return {"logits": self.scores(features.mean((2, 3))), "aux": self.aux((self.other(x) + features).mean((2, 3)))}  # fmt: skip


def test_the_first_output_decides() -> None:
    model = xcam.load(Aside(), size=(12, 10))
    assert {layer.name for layer in model.layers if layer.bypassed} == {"other", "aux"}


def test_nothing_ahead_of_the_earliest_layer_is_differentiated() -> None:
    module = Residual()
    model = xcam.load(module, size=(12, 10))
    assert model.layers
    with differentiated(module) as seen:
        model.trace(X, ["blocks.1", "blocks.0"], cotangents)
    assert "stem.0" not in seen
    assert "blocks.1.conv1" in seen


def test_a_layer_by_another_name_of_its_value() -> None:
    """A container and its last part are one value: both have the changed one."""
    module = Residual()
    model = xcam.load(module, size=(12, 10))
    whole, last, again = model.trace(X, ["blocks", "blocks.1", "blocks"], cotangents)
    assert again is whole
    np.testing.assert_array_equal(whole.activations, last.activations)
    np.testing.assert_allclose(whole.gradients[0], last.gradients[0])
    changed = 0.5 * whole.activations
    for one in model.resume(whole, changed, cotangents=cotangents, at=["blocks.1", "blocks"]):
        np.testing.assert_array_equal(one.activations, changed)
    again = model.resume(model.resume(last, changed, at="blocks"), 2 * changed, at="blocks.1")
    np.testing.assert_allclose(again.outputs, whole.outputs, rtol=1e-5)


class TokensFirst(nn.Module):
    """Values [T, N, C], as older transformers have them."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.patches, self.head = nn.Conv2d(3, 8, 4, 4), nn.Linear(8, 3)
        self.a, self.b = (nn.TransformerEncoderLayer(8, 2, 16, dropout=0) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patches(x).flatten(2).permute(2, 0, 1)
        return self.head(self.b(self.a(tokens)).mean(0))


class ChannelsLast(nn.Module):
    """Values [N, H, W, C] with skips around linear layers."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.patches, self.norm, self.head = nn.Conv2d(3, 8, 4, 4), nn.LayerNorm(8), nn.Linear(8, 3)
        self.one, self.two = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        value = self.norm(self.patches(x).permute(0, 2, 3, 1))
        value = value + self.one(value).tanh()
        return self.head((value + self.two(value).tanh()).mean((1, 2)))


class OneImage(ChannelsLast):
    """A model that takes one image at a time."""

    def forward(self, x: Tensor) -> Tensor:
        if len(x) != 1:
            raise ValueError("one image, please")
        return super().forward(x)


@pytest.mark.parametrize(("make", "inner"), [(TokensFirst, "a.linear1"), (ChannelsLast, "one"), (OneImage, "one")])
def test_layouts_and_batches_of_one(make: Callable[[], nn.Module], inner: str) -> None:
    """The rows of a resumed run are picked along the batch, wherever the framework has it."""
    model = xcam.load(make(), size=(16, 24))
    x = np.random.default_rng(0).normal(size=(2, 3, 16, 24)).astype(np.float32)
    layers = [layer for layer in model.layers if layer.has_space and layer.differentiable and not layer.is_output]
    assert {layer.name for layer in layers if layer.bypassed} >= {inner}
    names, rows, few = [layer.name for layer in layers], [1, 0, 1, 1, 0], [4, 1, 2]
    for k, trace in enumerate(model.trace(x, names, cotangents)):
        alone = model.trace(x, names[k], cotangents)
        np.testing.assert_allclose(trace.gradients[0], alone.gradients[0], rtol=1e-3, atol=1e-6)
        scale = np.random.default_rng(k).uniform(0.5, 1.5, (len(rows), *trace.activations.shape[1:]))
        changed = (trace.activations[rows] * scale).astype(np.float32)
        for one in model.resume(trace, changed, rows, cotangents, at=names[k + 1 :]):
            again = model.resume(one, one.activations[few], few, cotangents)
            np.testing.assert_allclose(again.outputs, one.outputs[few], rtol=1e-3, atol=1e-5)
            np.testing.assert_allclose(again.gradients[0], one.gradients[0][few], rtol=1e-2, atol=1e-6)
