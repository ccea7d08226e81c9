"""Detectors of torchvision and objects of ultralytics: their raw boxes and scores, and what is refused."""

from __future__ import annotations

import importlib
from collections import OrderedDict
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import xcam
from onnx_exports import torchvision, torchvision_unloaded
from xcam.contract import Array

SIDE = 64


def suppressed(boxes: Tensor, scores: Tensor, threshold: float) -> Tensor:
    """Return the indices of the boxes that non-maximum suppression keeps."""
    kept: list[int] = []
    for k in scores.argsort(descending=True).tolist():
        low, high = torch.maximum(boxes[k, :2], boxes[kept, :2]), torch.minimum(boxes[k, 2:], boxes[kept, 2:])
        common = (high - low).clamp(min=0).prod(-1)
        areas = [(b[..., 2:] - b[..., :2]).prod(-1) for b in (boxes[k], boxes[kept])]
        if not bool((common > threshold * (areas[0] + areas[1] - common)).any()):
            kept.append(k)
    return torch.tensor(kept, dtype=torch.int64)


@pytest.fixture(scope="module", autouse=True)
def with_torchvision() -> Iterator[None]:
    """Load torchvision, with a suppression in Python: the folder of the tests lacks its kernels."""
    torchvision().ops.boxes.nms = suppressed
    with torch.compiler.set_stance("force_eager"):  # it compiles its pooling of regions
        yield
    torchvision_unloaded()  # other tests need its absence


def detection() -> Any:
    return importlib.import_module("torchvision.models.detection")


class Backbone(nn.Module):
    """Two maps of 8 and 4 positions a side."""

    def __init__(self, channels: int = 32) -> None:
        super().__init__()
        self.out_channels: Any = channels
        self.stem = nn.Sequential(nn.Conv2d(3, channels, 3, stride=8, padding=1), nn.ReLU())
        self.deeper = nn.Sequential(nn.Conv2d(channels, channels, 3, stride=2, padding=1), nn.ReLU())

    def forward(self, x: Tensor) -> OrderedDict[str, Tensor]:
        x = self.stem(x)
        return OrderedDict([("0", x), ("1", self.deeper(x))])


def anchors(ratios: tuple[float, ...] = (0.5, 1.0)) -> Any:
    return detection().anchor_utils.AnchorGenerator(sizes=((16,), (32,)), aspect_ratios=(ratios,) * 2)


def ssd() -> Any:
    boxes = detection().anchor_utils.DefaultBoxGenerator([[2], [2]], min_ratio=20, max_ratio=80)
    backbone = Backbone()
    backbone.out_channels = [32, 32]
    return detection().ssd.SSD(backbone, boxes, (SIDE, SIDE), 4, score_thresh=0.2, nms_thresh=0.9)


def retinanet() -> Any:
    options = {
        "min_size": 2 * SIDE,
        "max_size": 2 * SIDE,
        "score_thresh": 0.001,
        "topk_candidates": 9,
        "nms_thresh": 0.9,
    }
    return detection().RetinaNet(Backbone(), 4, anchor_generator=anchors(), **options)


def fcos() -> Any:
    points = detection().anchor_utils.AnchorGenerator(sizes=((8,), (16,)), aspect_ratios=((1.0,),) * 2)
    options = {"min_size": SIDE, "max_size": SIDE, "score_thresh": 0.01, "topk_candidates": 9, "nms_thresh": 0.9}
    return detection().FCOS(Backbone(), 4, anchor_generator=points, **options)


def faster_rcnn() -> Any:
    options = {"min_size": SIDE, "max_size": SIDE, "rpn_pre_nms_top_n_test": 6, "rpn_post_nms_top_n_test": 8}
    return detection().FasterRCNN(Backbone(4), 4, rpn_anchor_generator=anchors(), box_score_thresh=0.1, **options)


DETECTORS = {"ssd": ssd, "retinanet": retinanet, "fcos": fcos, "faster_rcnn": faster_rcnn}


def images(seed: int = 0) -> Array:
    return np.random.default_rng(seed).random((2, 3, SIDE, SIDE)).astype(np.float32)


def built(name: str) -> Any:
    torch.manual_seed(0)
    return DETECTORS[name]().eval()


@pytest.mark.parametrize("name", DETECTORS)
def test_raw_boxes_and_scores_contain_the_detections(name: str) -> None:
    detector, x = built(name), images()
    model: Any = xcam.load(detector, size=(SIDE, SIDE))
    with torch.no_grad():
        detections = detector(list(torch.tensor(x)))
    outputs = model.predict(x)
    logits = outputs["scores"]
    probabilities = {
        "softmax": np.exp(logits) / np.exp(logits).sum(-1, keepdims=True),
        "sigmoid": 1 / (1 + np.exp(-logits)),
        None: logits,
    }[model.output_activation["scores"]]
    for row, detected in enumerate(detections):
        assert len(detected["boxes"]) >= 3
        for box, score, label in zip(*(detected[key].numpy() for key in ("boxes", "scores", "labels")), strict=True):
            near = np.abs(outputs["boxes"][row] - box).max(-1) + np.abs(probabilities[row, :, label] - score)
            if name == "faster_rcnn":  # a box for each class: raw ones have the box of the best class alone
                near = np.abs(probabilities[row, :, label] - score)
            assert near.min() < 1e-3


@pytest.mark.parametrize("name", DETECTORS)
def test_gradient_is_that_of_the_detectors_own_score(name: str) -> None:
    """The score of the best detection, differentiated by torch through the detector itself."""
    detector, x = built(name), images(1)[:1]
    model: Any = xcam.load(detector, size=(SIDE, SIDE))
    values: list[Tensor] = []

    def cut(_: nn.Module, __: Any, value: Tensor) -> Tensor:
        values.append(value.detach().requires_grad_())
        return values[-1].clone()

    with detector.backbone.stem.register_forward_hook(cut):
        (detected,) = detector([torch.tensor(x[0])])
    score, label = detected["scores"][0], int(detected["labels"][0])
    (expected,) = torch.autograd.grad(score, values)

    def slope(outputs: Any) -> list[Any]:
        """Return the derivative of the probability of the best box."""
        z = torch.tensor(outputs["scores"], requires_grad=True)
        kind = model.output_activation["scores"]
        p = z.softmax(-1) if kind == "softmax" else z.sigmoid() if kind == "sigmoid" else z
        best = int((p[0, :, label] - score).abs().argmin())
        (v,) = torch.autograd.grad(p[0, best, label], z)
        return [{"scores": v.numpy(), "boxes": np.zeros_like(outputs["boxes"])}]

    trace = model.trace(x, "backbone.stem", slope)
    np.testing.assert_allclose(trace.activations, values[0].detach().numpy(), atol=1e-6)
    difference = np.abs(trace.gradients[0] - expected.numpy()).max()
    assert difference < 1e-4 * float(expected.abs().max())


def test_names_size_and_state_are_the_detectors_own() -> None:
    detector = built("ssd").train()
    names = {name for name, _ in detector.named_modules()}
    model: Any = xcam.load(detector)
    assert model.name == "SSD"
    assert model.input.size == (SIDE, SIDE)
    assert {layer.name.partition("#")[0] for layer in model.layers} <= names
    assert detector.training
    assert not any(part._forward_hooks for part in detector.modules())
    assert xcam.load(built("retinanet")).input.size == (2 * SIDE, None)


def test_proposals_of_an_image_without_any() -> None:
    detector: Any = built("faster_rcnn")
    detector.rpn.score_thresh = 2.0  # keeps none
    outputs: Any = xcam.load(detector, size=(SIDE, SIDE)).predict(images())
    assert outputs["scores"].shape == (2, 8, 4)
    assert np.isfinite(outputs["boxes"]).all()
    assert (outputs["boxes"] == outputs["boxes"][:, :1]).all()


class Lists(nn.Module):
    """A detector that is not torchvision's own."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 5, 3, stride=8)

    def forward(self, x: Tensor) -> list[dict[str, Tensor]]:
        maps = self.conv(x).flatten(2).mean(1)
        return [{"scores": row[row > 0], "boxes": row[row > 0, None].expand(-1, 4)} for row in maps]


@pytest.mark.parametrize("batch", [1, 2])
def test_lists_of_detections_are_refused(batch: int) -> None:
    module: Any = Lists()

    def forward(x: Tensor) -> Any:
        assert len(x) <= batch  # a model that takes one image at a time
        return Lists.forward(module, x)

    module.forward = forward
    with pytest.raises(
        xcam.ModelError, match=r"returns a list with the detections.*wrap it in a module that returns"
    ):
        _ = xcam.load(module, size=(SIDE, SIDE)).layers


def test_dictionaries_for_the_loss_are_left_out() -> None:
    class Head(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 5, 3, stride=8)

        def forward(self, x: Tensor) -> Any:
            y = self.conv(x)
            return (y.flatten(2), y.mean(1)), {"scores": y, "feats": [y]}

    model: Any = xcam.load(Head(), size=(SIDE, SIDE))
    assert {name: y.shape for name, y in model.predict(images()).items()} == {"0": (2, 5, 64), "1": (2, 8, 8)}


class Model(nn.Module):
    """As ultralytics.engine.model.Model: holds a network, and prepares images on a call."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        raise AssertionError("not the network")


Model.__module__, Model.__qualname__ = "ultralytics.engine.model", "Model"


class YOLO(Model):
    pass


class Cached(nn.Module):
    """A head that keeps its anchors between calls, as that of ultralytics does."""

    anchors: Tensor | None = None

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 5, 3, stride=8)

    def forward(self, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        y = self.conv(x).flatten(2)
        if self.anchors is None or len(self.anchors) != y.shape[2]:
            self.anchors = torch.arange(1.0, y.shape[2] + 1)
        return y * self.anchors, {"scores": y}


def test_the_network_of_an_ultralytics_object_is_opened() -> None:
    network = Cached()
    model: Any = xcam.load(YOLO(network), size=(SIDE, SIDE))
    assert model.module is network
    x = images()
    np.testing.assert_allclose(model.predict(x), network(torch.tensor(x))[0].detach().numpy(), atol=1e-6)
    with pytest.raises(xcam.InputError, match=r"holds the file 'yolo\.onnx'; load that file"):
        xcam.load(YOLO("yolo.onnx"))


def test_values_cached_in_inference_mode() -> None:
    network = Cached()
    with torch.inference_mode():
        network(torch.zeros(1, 3, SIDE, SIDE))
    model: Any = xcam.load(network, size=(SIDE, SIDE))
    trace = model.trace(images(), "conv", lambda y: [np.ones_like(y)])
    expected = np.broadcast_to(np.arange(1, 65, dtype=np.float32).reshape(8, 8), (2, 5, 8, 8))
    np.testing.assert_array_equal(trace.gradients[0], expected)
    other = images()[:, :, :32, :32]  # another size: the anchors follow
    np.testing.assert_allclose(model.predict(other), network(torch.tensor(other))[0].detach().numpy(), atol=1e-6)


def test_a_part_that_several_layers_share_has_a_name_in_each() -> None:
    """As the activation of ultralytics' convolutions."""
    activation = nn.SiLU()
    block = [nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), activation) for _ in range(3)]
    model: Any = xcam.load(nn.Sequential(*block, block[0]), size=(SIDE, SIDE))
    names = [layer.name for layer in model.layers if layer.kind == "SiLU"]
    assert names == ["0.1#0", "1.1", "2.1", "0.1"]
    x = torch.tensor(images())
    for name, expected in zip(names, [block[0](x), block[1](block[0](x))], strict=False):
        np.testing.assert_allclose(model.activations(x.numpy(), [name])[name], expected.detach().numpy(), atol=1e-6)
