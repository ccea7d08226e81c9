"""Facts about a tensor: the outputs that depend on it, and on how many of its tokens, its gradient, and the input."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import Tensor, nn

import xcam
from xcam import ModelError
from xcam.models.layers import default
from xcam_torch.export import to_onnx

SIZE = 8
IMAGE = np.random.default_rng(1).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
X = np.random.default_rng(0).normal(size=(2, 3, SIZE, SIZE)).astype(np.float32)


def some(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).normal(size=shape).astype(np.float32) * 0.4


WEIGHTS = {
    "w": some(4, 3, 3, 3),
    "v": some(5, 4, 3, 3),
    "u": some(4, 4, 3, 3),
    "d": some(5, 2),
    "e": some(4, 2),
    "four": np.float32(4),
    "depth": np.int64([4]),
    "sides": np.float32([0, 1]),
    "reference": some(1, 3, SIZE, SIZE),
}


def network(body: str, outputs: str = "float[N, 2] y") -> Any:
    text = f'<ir_version: 9, opset_import: ["": 17]> net (float[N, 3, {SIZE}, {SIZE}] x) => ({outputs}) {{ {body} }}'
    proto = onnx.parser.parse_model(text)
    read = {name for node in proto.graph.node for name in node.input}
    proto.graph.initializer.extend(numpy_helper.from_array(np.asarray(a), n) for n, a in WEIGHTS.items() if n in read)
    return xcam.load(proto, preprocess="unit")


def test_each_layer_states_the_outputs_that_it_leads_to() -> None:
    model = network(
        "t = Conv(x, w) l = Conv(t, v) r = Conv(t, u) lm = ReduceMean <axes = [2, 3], keepdims = 0> (l) a = MatMul(lm, d) "
        "rm = ReduceMean <axes = [2, 3], keepdims = 0> (r) b = MatMul(rm, e)",
        "float[N, 2] a, float[N, 2] b",
    )
    assert list(model.predict(X)) == ["a", "b"]
    leads = {layer.name: layer.leads_to for layer in model.layers}
    assert leads == {"t": ("a", "b"), "l": ("a",), "r": ("b",), "lm": ("a",), "rm": ("b",), "a": ("a",), "b": ("b",)}


def test_a_value_whose_shape_alone_is_read_leads_to_nothing() -> None:
    model = network(
        "s = Conv(x, u2) n = Shape(s) z = ConstantOfShape(n) a = Conv(x, w) c = Add(a, z) "
        "m = ReduceMean <axes = [2, 3], keepdims = 0> (c) y = MatMul(m, e)".replace("u2", "w")
    )
    facts = {layer.name: (layer.reaches_output, layer.depends_on_input) for layer in model.layers if layer.has_space}
    assert facts["s"] == (False, True)
    assert facts["a"] == facts["c"] == (True, True)


def test_a_branch_that_depends_on_the_size_of_the_batch_alone() -> None:
    model = network(
        "n = Shape(x) r = Expand(reference, n) p = Conv(x, w) q = Conv(r, w) pm = ReduceMean <axes = [2, 3], keepdims = 0> (p) "
        "qm = ReduceMean <axes = [2, 3], keepdims = 0> (q) g = Sub(pm, qm) h = Abs(g) y = MatMul(h, e)"
    )
    facts = {layer.name: layer.depends_on_input for layer in model.layers if layer.name in "pqr"}
    assert facts == {"p": True, "r": False, "q": False}
    assert default(model).name == "p"


BREAKS = {
    "rounded": "s = Mul(a, four) b = Round(s)",
    "floored": "s = Mul(a, four) b = Floor(s)",
    "signs": "b = Sign(a)",
    "integers": "s = Mul(a, four) i = Cast <to = 6> (s) b = Cast <to = 1> (i)",
    "indices": "i = ArgMax <axis = 1, keepdims = 0> (a) b = OneHot <axis = 1> (i, depth, sides)",
}


@pytest.mark.filterwarnings("ignore::xcam.errors.ZeroHeatmapWarning")
@pytest.mark.parametrize("name", BREAKS)
def test_methods_without_gradients_work_ahead_of_a_break(name: str) -> None:
    model = network(
        f"a = Conv(x, w) {BREAKS[name]} c = Conv(b, v) t = Tanh(c) m = ReduceMean <axes = [2, 3], keepdims = 0> (t) "
        "y = MatMul(m, d)"
    )
    layers = {layer.name: layer for layer in model.layers}
    assert (layers["a"].reaches_output, layers["a"].differentiable) == (True, False)
    assert all(layers[name].differentiable and layers[name].reaches_output for name in "bct")
    e = xcam.explain(model, IMAGE, layer="a", method="ablationcam", target=1)
    x = torch.from_numpy(IMAGE.transpose(2, 0, 1)[None] / np.float32(255))
    value = nn.functional.conv2d(x, torch.from_numpy(WEIGHTS["w"]))
    whole = score(value, name)
    weights = [(whole - score(value * (torch.arange(4) != c)[:, None, None], name)) / abs(whole) for c in range(4)]
    cam = np.einsum("c,chw->hw", weights, value[0].numpy())
    np.testing.assert_allclose(e.cam, cam, atol=1e-4 * max(1, np.abs(cam).max()))
    for method in ("eigencam", "reciprocam"):
        assert np.isfinite(xcam.explain(model, IMAGE, layer="a", method=method, target=1).cam).all()
    with pytest.raises(
        ModelError, match=r"at layer 'a': no differentiable path .*; choose layer '\w+', the next one with"
    ):
        xcam.explain(model, IMAGE, layer="a")


def score(value: Tensor, name: str) -> float:
    break_ = {
        "rounded": lambda a: torch.round(4 * a),
        "floored": lambda a: torch.floor(4 * a),
        "signs": torch.sign,
        "integers": lambda a: (4 * a).int().float(),
        "indices": lambda a: nn.functional.one_hot(a.argmax(1), 4).permute(0, 3, 1, 2).float(),
    }[name]
    z = nn.functional.conv2d(break_(value), torch.from_numpy(WEIGHTS["v"])).tanh().mean((2, 3))
    return float((z @ torch.from_numpy(WEIGHTS["d"]))[0, 1])


class Vit(nn.Module):
    """Two blocks of attention over a class token, further tokens and 16 patches."""

    def __init__(self, head: str, extra: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.kind, self.extra = head, nn.Parameter(torch.randn(1, extra, 8))
        self.patches = nn.Conv2d(3, 8, 2, 2)
        self.norms = nn.ModuleList(nn.LayerNorm(8) for _ in range(2))
        self.attentions = nn.ModuleList(nn.Linear(8, 24) for _ in range(2))
        self.last_norm, self.head = nn.LayerNorm(8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.extra.expand(x.shape[0], -1, -1), x], 1)
        for norm, attention in zip(self.norms, self.attentions, strict=True):
            q, k, v = attention(norm(x)).chunk(3, -1)
            x = x + (q @ k.transpose(1, 2)).softmax(-1) @ v
        x = self.last_norm(x)
        if self.kind == "class token":
            return self.head(x[:, 0])
        if self.kind == "two tokens":
            return self.head(x[:, :2].mean(1))
        if self.kind == "split":
            first, _ = x.split([1, x.shape[1] - 1], 1)
            return self.head(first.squeeze(1))
        if self.kind == "halves":
            first, second = x[:, :9], x[:, 9:]
            return self.head(first.mean(1) - second.mean(1))
        return self.head(x[:, self.extra.shape[1] :].mean(1))


@pytest.mark.parametrize(
    ("head", "extra", "most"),
    [
        ("class token", 1, False),
        ("class token", 4, False),
        ("two tokens", 2, False),
        ("split", 1, False),
        ("halves", 2, True),
        ("patches", 2, True),
    ],
)
def test_layers_of_tokens_reach_an_output_that_depends_on_most_of_them(
    head: str, extra: int, most: bool, tmp_path: Path
) -> None:
    """As torch's own gradient shows."""
    module = Vit(head, extra).eval()
    to_onnx(module, tmp_path / "vit.onnx", (SIZE, SIZE))
    layers = {layer.name: layer for layer in xcam.load(tmp_path / "vit.onnx").layers}
    values: dict[str, Tensor] = {}
    for name in ("norms.0", "norms.1", "last_norm"):
        module.get_submodule(name).register_forward_hook(lambda _, __, value, name=name: values.update({name: value}))
    outputs = module(torch.from_numpy(X))
    for name, value in values.items():
        gradient = torch.autograd.grad(outputs.sum(), value, retain_graph=True)[0]
        assert layers[name].reaches_output == bool((gradient != 0).any(-1).float().mean() > 0.5), name
    assert (layers["norms.1"].reaches_output, layers["last_norm"].reaches_output) == (True, most)


def test_tokens_lead_to_the_outputs_that_depend_on_most_of_them(tmp_path: Path) -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.tokens = Vit("class token", 1), nn.Linear(8, 5)

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            values: list[Tensor] = []
            handle = self.body.last_norm.register_forward_hook(lambda _, __, value: values.append(value))
            logits = self.body(x)
            handle.remove()
            return {"features": self.tokens(values[0]), "logits": logits}

    to_onnx(Two().eval(), tmp_path / "two.onnx", (SIZE, SIZE))
    model = xcam.load(tmp_path / "two.onnx")
    leads = {layer.name: set(layer.leads_to or ()) for layer in model.layers}
    logits, features = model.predict(X)
    assert leads["body.norms.1"] == {logits, features}
    assert leads["body.last_norm"] == {next(n for n, z in model.predict(X).items() if z.ndim == 3)}
