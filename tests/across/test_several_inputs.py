"""Models with several inputs: the values of the others are fixed when the model is opened."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import pytest
import torch
from torch import nn

import several_inputs as network
import xcam
from several_inputs import DOMAIN, IMAGE, LAYER, META, SIDE, VALUES, Network, OfDictionary, OfKeywords, onnx_model
from xcam.errors import InputError, ModelError, XcamError
from xcam.images.resizing import resize


def _opened(model: Any, **options: Any) -> Any:
    options = {"inputs": VALUES, "preprocess": "unit"} | options
    return xcam.load(model, size=None if isinstance(model, onnx.ModelProto | str) else (SIDE, SIDE), **options)


def _input() -> Any:
    return np.moveaxis(resize(IMAGE, (SIDE, SIDE)), -1, 0)[None].astype(np.float32) / 255


MODELS = {
    "torch": lambda: _opened(Network()),
    "torch, a dictionary": lambda: _opened(OfDictionary()),
    "torch, a dictionary and the key": lambda: _opened(OfDictionary(), image_input="visual"),
    "torch, keywords": lambda: _opened(OfKeywords()),
    "torch, TorchScript": lambda: _opened(torch.jit.script(Network())),
    "torch, a traced graph": lambda: _opened(torch.fx.symbolic_trace(Network())),
    "torch, exported": lambda: _opened(_program()),
    "onnx": lambda: _opened(onnx_model()),
    "onnx, open sizes of other names": lambda: _opened(onnx_model(("n", "m", "k"))),
    "onnx, others of one": lambda: _opened(onnx_model(("n", 1, 1))),
    "onnx, a batch of one": lambda: _opened(onnx_model((1, 1, 1))),
}


def _program() -> torch.export.ExportedProgram:
    class Renamed(Network):  # torch cannot open a program whose argument has the name of a part
        pass

    batch = {0: torch.export.Dim("batch")}
    example = torch.rand(2, 3, SIDE, SIDE), torch.rand(2, 5), torch.tensor([0, 1])
    return torch.export.export(Renamed(), example, dynamic_shapes=(batch, batch, batch))


@pytest.mark.parametrize("kind", MODELS)
def test_map_and_scores_are_those_of_plain_torch(kind: str) -> None:
    model = MODELS[kind]()
    x = _input()
    for index in (0, 1):
        cam, scores = network.expected(x, index)
        for e in (
            xcam.explain(model, IMAGE, layer=LAYER, target=index),
            xcam.explain(model, [IMAGE[::-1].copy(), IMAGE, IMAGE], layer=LAYER, target=index)[1],
        ):
            np.testing.assert_allclose(e.cam, cam, atol=1e-4 * np.abs(cam).max())
            assert e.score == pytest.approx(scores[index], rel=1e-4)
            assert e.notes[-1] == "other inputs are fixed: meta [5], domain = 2"
    assert xcam.explain(model, IMAGE).layer == LAYER  # and not one of the other inputs
    assert not any(layer.name.startswith("fixed") and not layer.inner for layer in model.layers)
    if kind not in ("torch", "torch, exported", "onnx"):
        return
    without = xcam.explain(model, IMAGE, layer=LAYER, method="ablationcam", target=1)
    reference = xcam.explain(_opened(Network()), IMAGE, layer=LAYER, method="ablationcam", target=1)
    np.testing.assert_allclose(without.cam, reference.cam, atol=1e-3 * np.abs(reference.cam).max())


def test_another_value_gives_another_score_and_the_module_is_not_changed() -> None:
    module = Network()
    before = dict(vars(module))
    x, other = _input(), np.zeros(5, np.float32)
    for value in (META, other):
        _, scores = network.expected(x, 0, value)
        for model in (module, onnx_model()):
            opened = _opened(model, inputs={"meta": value, "domain": DOMAIN})
            np.testing.assert_allclose(opened.predict(x)[0], scores, rtol=1e-4, atol=1e-5)
    assert vars(module) == before
    assert type(module) is Network


@pytest.mark.parametrize("make", [Network, onnx_model])
def test_values_come_from_files_numbers_and_lists(make: Any, tmp_path: Path) -> None:
    np.save(tmp_path / "meta.npy", META.astype(np.float64))
    np.savez(tmp_path / "two.npz", a=META[:2], b=META[None])
    (tmp_path / "meta.json").write_text(json.dumps([META.tolist()]))
    (tmp_path / "meta.txt").write_text(" ".join(map(str, META)))
    (tmp_path / "column.csv").write_text("\n".join(map(str, META)))
    (tmp_path / "ones.json").write_text("[1, 0, 1, 0, 0]")
    _, scores = network.expected(_input(), 0)
    values = [*tmp_path.glob("meta.*"), tmp_path / "column.csv", f"{tmp_path / 'two.npz'}:b", META.tolist()]
    values += [json.dumps(META.tolist()), torch.from_numpy(META).requires_grad_()]
    domains = ("2", 2, np.array([2]), [2])
    for k, value in enumerate(values):
        model = _opened(make(), inputs={"meta": value, "domain": domains[k % 4]})
        np.testing.assert_allclose(model.predict(_input())[0], scores, rtol=1e-4, atol=1e-5)
    _, scores = network.expected(_input(), 0, np.array([1, 0, 1, 0, 0], np.float32))  # integers for floats
    model = _opened(make(), inputs={"meta": tmp_path / "ones.json", "domain": "2"})
    np.testing.assert_allclose(model.predict(_input())[0], scores, rtol=1e-4, atol=1e-5)


def test_the_same_value_in_both_frameworks_is_identical_and_the_exported_file_takes_the_image_alone(
    tmp_path: Path,
) -> None:
    models = [_opened(Network()), _opened(onnx_model())]
    assert xcam.compare(models, IMAGE).verdict == "identical"
    cam, _ = network.expected(_input(), 1)
    for k, model in enumerate(models):
        xcam.export(model, tmp_path / f"{k}.onnx", layer=LAYER)
        e = xcam.explain(xcam.load(tmp_path / f"{k}.onnx", preprocess="unit"), IMAGE, layer=LAYER, target=1)
        np.testing.assert_allclose(e.cam, cam, atol=1e-4 * np.abs(cam).max())


class Pair(nn.Module):
    """The similarity of two images."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.features = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())

    def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        """Return [N, 4]."""
        return self.features(a).mean((2, 3)) * self.features(b).amax((2, 3))


@pytest.mark.filterwarnings("ignore")
def test_a_fixed_image_is_prepared_as_the_model_s_own(tmp_path: Path) -> None:
    pair, reference = Pair().eval(), IMAGE[::-1, ::-1].copy()
    cv2.imwrite(str(tmp_path / "reference.png"), reference[..., ::-1])
    file = tmp_path / "pair.onnx"
    dims = {0: "n"}
    example = torch.rand(2, 3, SIDE, SIDE)
    torch.onnx.export(
        pair, (example, example), file, input_names=["a", "b"], dynamic_axes={"a": dims, "b": dims}, dynamo=False
    )

    def prepared(image: Any) -> torch.Tensor:
        x = resize(image, (SIDE, SIDE)) / 127.5 - 1
        return torch.from_numpy(np.moveaxis(x, -1, 0)[None].astype(np.float32))

    for source in (pair, str(file)):
        with pytest.raises(InputError, match="an image fits a and b; name the image's: image_input='a'"):
            xcam.load(source)
        for name, other in (("a", "b"), ("b", "a")):
            images = {name: prepared(IMAGE), other: prepared(reference)}
            scores = pair(images["a"], images["b"])[0].detach().numpy()
            for value in (tmp_path / "reference.png", reference):
                model = _opened(source, inputs={other: value}, preprocess="tf")
                e = xcam.explain(model, IMAGE, target=2)
                np.testing.assert_allclose(e.score, scores[2], rtol=1e-4)


class Text(nn.Module):
    """A model like those of Hugging Face: every input has a default, and the text comes first."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.conv, self.table = nn.Conv2d(3, 4, 3), nn.Embedding(9, 4)

    def forward(self, input_ids: Any = None, pixel_values: Any = None, scale: float = 1.0) -> torch.Tensor:
        """Return the similarity of N images and K texts [N, K]."""
        return scale * torch.relu(self.conv(pixel_values)).mean((2, 3)) @ self.table(input_ids).mean(1).T


def test_pixel_values_are_the_image_and_texts_are_not_repeated() -> None:
    text = Text().eval()
    ids = np.array([[1, 2, 3], [4, 5, 5]])
    x = np.random.default_rng(0).random((3, 3, SIDE, SIDE), dtype=np.float32)
    for value in (ids, ids[:1]):
        model = _opened(text, inputs={"input_ids": value})
        scores = text(torch.from_numpy(value), torch.from_numpy(x)).detach().numpy()
        np.testing.assert_allclose(model.predict(x), scores, rtol=1e-5)


REFUSED: list[tuple[dict[str, Any], type[XcamError], str]] = [
    (
        {"inputs": None},
        ModelError,
        r"it takes 3 inputs, and the image is image; give the others values \(meta.*--input meta=…",
    ),
    ({"inputs": {"meta": META}}, ModelError, r"give the others values \(domain"),
    ({"inputs": VALUES | {"mata": 1}}, InputError, "unknown input 'mata' of .*; known: image, meta, domain"),
    ({"image_input": "visual"}, InputError, "unknown input 'visual'"),
    ({"image_input": "meta"}, InputError, "the input 'meta' takes the image, and has a value"),
    ({"inputs": VALUES | {"image": META}}, InputError, "all of its inputs have values"),
    ({"inputs": {"meta": META[:3], "domain": 2}}, InputError, r"meta.*\[3\]|\[3\].*meta"),
    ({"inputs": {"meta": "some.wav", "domain": 2}}, InputError, "cannot use 'some.wav' for the input 'meta'"),
    ({"inputs": {"meta": "none.npy", "domain": 2}}, InputError, "cannot read none.npy: no such file"),
    ({"inputs": {"meta": ["a", "b"], "domain": 2}}, InputError, "cannot use a text for the input 'meta'"),
    ({"inputs": {"meta": [[1], [2, 3]], "domain": 2}}, InputError, "rows differ in length"),
    ({"inputs": [1]}, InputError, "give a dictionary"),
]


@pytest.mark.parametrize(("options", "kind", "message"), REFUSED)
@pytest.mark.parametrize("make", [Network, onnx_model])
def test_refused(make: Any, options: dict[str, Any], kind: type[XcamError], message: str) -> None:
    with pytest.raises(kind, match=message) as raised:
        xcam.explain(_opened(make(), **options), IMAGE)
    assert "\n" not in str(raised.value)


def test_types_that_lose_values_are_refused() -> None:
    for value, message in (
        (1.5, "takes int64; give integers"),
        (np.array([1.0]), "takes int64; give integers"),
        (2**63, "takes int64; give integers in its range"),
    ):
        with pytest.raises(InputError, match=message):
            _opened(onnx_model(), inputs={"meta": META, "domain": value})
    with pytest.raises(InputError, match="type bool for the input 'meta'"):
        _opened(onnx_model(), inputs={"meta": META > 0, "domain": 1})
    model = onnx_model()
    model.graph.input[1].type.tensor_type.elem_type = onnx.TensorProto.STRING
    with pytest.raises(InputError, match="its input 'meta' takes strings"):
        _opened(model)


def test_a_file_with_fixed_inputs_is_not_repaired() -> None:
    models = [_opened(onnx_model()), _opened(onnx_model())]
    with pytest.raises(XcamError, match=r"would contain the values of its other inputs \(meta, domain\)"):
        models[1].mending(models[0], [])
