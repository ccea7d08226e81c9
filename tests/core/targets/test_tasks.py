"""The task of a model, recognised from outputs in the layouts of the usual tools; what stays open is a caution or an error."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from xcam import InputError
from xcam.targets.tasks import recognised, statement

SIZE = (320, 320)
RNG = np.random.default_rng(0)


def cells(anchors: int = 1) -> np.ndarray:
    """Return the boxes [B, 4] of the three scales of YOLO: centres on a grid, and sizes of the stride's order."""
    parts = []
    for stride in (8, 16, 32):
        n = SIZE[0] // stride
        y, x = np.mgrid[:n, :n].reshape(2, -1) * stride + stride / 2
        sizes = RNG.uniform(1, 6, (2, n * n)) * stride
        parts += [np.stack([x, y, *sizes], 1)] * anchors
    return np.concatenate(parts)


def corners(b: np.ndarray) -> np.ndarray:
    return np.concatenate([b[..., :2] - b[..., 2:] / 2, b[..., :2] + b[..., 2:] / 2], -1)


def p(count: int, classes: int) -> np.ndarray:
    return RNG.uniform(0, 0.2, (count, classes))


def joint(
    classes: int = 80, anchors: int = 1, objectness: bool = False, boxes_last: bool = True, **kind: Any
) -> np.ndarray:
    b = cells(anchors)
    b = corners(b) if kind.get("xyxy") else b
    y = np.concatenate([b / (320 if kind.get("relative") else 1), p(len(b), classes + objectness)], 1)[None]
    return (np.moveaxis(y, 1, 2) if boxes_last else y).astype(np.float32)


def selected(masks: int = 0) -> np.ndarray:
    b = corners(cells()[::7][:300])
    score = np.sort(RNG.uniform(0, 1, 300))[::-1]
    extra = RNG.normal(size=(300, masks))
    return np.concatenate([b, score[:, None], RNG.integers(0, 80, (300, 1)), extra], 1)[None]


def ssd(classes: int, kind: str, relative: bool = True) -> dict[str, np.ndarray]:
    b = corners(cells()) / (320 if relative else 1)
    z = RNG.normal(size=(len(b), classes)) - (4.6 if kind == "sigmoid" else 0)
    if kind == "softmax":
        z[:, 0] += 8
    return {"scores": z[None], "boxes": b[None]}


def detr(classes: int) -> dict[str, np.ndarray]:
    b = RNG.uniform(0.3, 0.7, (1, 100, 4))
    return {"logits": RNG.normal(size=(1, 100, classes)), "pred_boxes": b}


CASES: dict[str, tuple[Any, dict[str, Any], str]] = {
    "YOLOv8": (joint(), {}, "detection, 80 classes, 2100 boxes, xywh, no objectness"),
    "YOLOv8, own classes": (joint(3), {}, "detection, 3 classes, 2100 boxes, xywh, no objectness"),
    "YOLOv8, one class": (joint(1), {"labels": ["cell"]}, "detection, 1 class, 2100 boxes, xywh, no objectness"),
    "boxes first": (joint(80, boxes_last=False), {}, "detection, 80 classes, 2100 boxes, xywh, no objectness"),
    "relative corners": (
        joint(80, xyxy=True, relative=True),
        {},
        "detection, 80 classes, 2100 boxes, relative xyxy, no objectness",
    ),
    "YOLOv5": (
        joint(80, 3, True, boxes_last=False),
        {},
        "detection, 80 classes, 6300 boxes, xywh, objectness",
    ),
    "YOLOv7, own classes": (
        joint(3, 3, True, boxes_last=False),
        {},
        "detection, 3 classes, 6300 boxes, xywh, objectness",
    ),
    "YOLOX, labels": (
        joint(3, 1, True, boxes_last=False),
        {"labels": list("abc")},
        "detection, 3 classes, 2100 boxes, xywh, objectness",
    ),
    "YOLOv10": (selected(), {}, "detection, 80 classes, 300 selected boxes, xyxy"),
    "YOLO26-seg": (
        {"0": selected(32), "1": RNG.normal(size=(1, 32, 80, 80))},
        {},
        "detection, 80 classes, 300 selected boxes, xyxy",
    ),
    "YOLOv8-seg": (
        {
            "0": np.concatenate([joint(), RNG.normal(size=(1, 32, 2100))], 1),
            "1": RNG.normal(size=(1, 32, 80, 80)),
        },
        {},
        "detection, 80 classes, 2100 boxes, xywh, no objectness",
    ),
    "YOLOv8-pose": (
        np.concatenate([joint(1), RNG.uniform(2, 300, (1, 51, 2100))], 1),
        {},
        "detection, 1 class, 2100 boxes, xywh, no objectness",
    ),
    "SSD, cut softmax": (
        ssd(21, "softmax"),
        {"activation": {"scores": "softmax", "boxes": None}},
        "detection, 20 classes, 2100 boxes, relative xyxy, no objectness, background 0",
    ),
    "SSD, two classes": (
        ssd(2, "softmax"),
        {"activation": {"scores": "softmax", "boxes": None}},
        "detection, 1 class, 2100 boxes, relative xyxy, no objectness, background 0",
    ),
    "RetinaNet": (
        ssd(90, "sigmoid", relative=False),
        {"activation": {"scores": "sigmoid", "boxes": None}},
        "detection, 90 classes, 2100 boxes, xyxy, no objectness",
    ),
    "RetinaNet, logits": (ssd(90, "sigmoid"), {}, "detection, 90 classes, 2100 boxes, relative xyxy, no objectness"),
    "DETR": (
        detr(92),
        {"labels": [str(i) for i in range(91)]},
        "detection, 91 classes, 100 boxes, relative xywh, no objectness, background 91",
    ),
    "RT-DETR": (
        detr(80),
        {"labels": [str(i) for i in range(80)]},
        "detection, 80 classes, 100 boxes, relative xywh, no objectness",
    ),
    "TensorFlow's detectors": (
        {
            "detection_scores": np.sort(RNG.uniform(0, 1, (1, 100)))[:, ::-1],
            "detection_boxes": corners(cells()[::21][:100])[None] / 320,
            "detection_classes": np.arange(100, dtype=np.float32)[None] % 90,
        },
        {},
        "detection, 90 classes, 100 selected boxes, relative yxyx",
    ),
    "DeepLab": (
        {"out": RNG.normal(size=(1, 21, 320, 320)), "aux": RNG.normal(size=(1, 21, 320, 320))},
        {},
        "segmentation, 21 classes, 320×320, background 0",
    ),
    "SegFormer": (
        RNG.normal(size=(1, 150, 80, 80)),
        {"labels": [str(i) for i in range(150)]},
        "segmentation, 150 classes, 80×80",
    ),
    "U-Net, one class": (RNG.normal(size=(1, 1, 320, 320)), {}, "segmentation, 1 class, 320×320"),
    "channels last": (RNG.normal(size=(1, 160, 160, 5)), {}, "segmentation, 5 classes, 160×160, background 0"),
    "classes": (RNG.normal(size=(1, 10)), {}, "classification, 10 classes"),
    "one output": (RNG.normal(size=(1, 1)), {}, "classification, 2 classes"),
    "labels": (RNG.normal(size=(1, 10)), {"activation": "sigmoid"}, "multi-label, 10 labels"),
    "embedding": (np.eye(8)[:1], {}, "classification, 8 classes"),
    "unit vector": (np.full((1, 4), -0.5), {}, "embedding, 4 numbers"),
    "tokens": (RNG.normal(size=(1, 197, 64)), {}, "unknown"),
    "raw heads": ({"a": RNG.normal(size=(1, 255, 40, 40)), "b": RNG.normal(size=(1, 255, 20, 20))}, {}, "unknown"),
    "features": (RNG.normal(size=(1, 512, 10, 10)), {}, "unknown"),
    "depth": (RNG.uniform(0, 9, (1, 320, 320)), {}, "unknown"),
    "offsets to anchors": (
        {"scores": RNG.normal(size=(1, 99, 5)), "boxes": RNG.normal(size=(1, 99, 4))},
        {},
        "unknown",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_each_layout_is_recognised(case: str) -> None:
    outputs, known, text = CASES[case]
    task = recognised(outputs, SIZE, **known)
    assert (task.text, task.cautions) == (text, ())


def test_masks_and_keypoints_are_columns_after_the_classes() -> None:
    assert recognised(CASES["YOLOv8-seg"][0], SIZE).boxes.extra == 32  # type: ignore[union-attr]
    assert recognised(CASES["YOLOv8-pose"][0], SIZE).boxes.extra == 51  # type: ignore[union-attr]


def test_an_open_objectness_is_a_caution_that_the_option_ends() -> None:
    y = joint(3, 1, True, boxes_last=False)
    task = recognised(y, SIZE)
    assert task.text == "detection, 4 classes, 2100 boxes, xywh, no objectness"
    assert "--boxes objectness" in task.cautions[0]
    task = recognised(y, SIZE, stated=statement(boxes="objectness"))
    assert (task.text, task.cautions) == ("detection, 3 classes, 2100 boxes, xywh, objectness", ())


def test_open_logits_of_queries_are_a_caution() -> None:
    task = recognised(detr(21), SIZE)
    assert (task.background, 'boxes="sigmoid"' in task.cautions[0]) == (20, True)
    assert recognised(detr(21), SIZE, stated=statement(boxes="sigmoid,no-background")).background is None


def test_boxes_that_could_be_of_two_forms_are_a_caution() -> None:
    b = RNG.uniform(0.45, 0.55, (1, 100, 4))
    b[..., 2:] += 0.1
    task = recognised({"scores": p(100, 5)[None], "boxes": b}, SIZE)
    assert "boxes='xyxy' or boxes='xywh'" in task.cautions[0]
    assert recognised({"scores": p(100, 5)[None], "boxes": b}, SIZE, stated=statement(boxes="xywh")).cautions == ()


@pytest.mark.parametrize(
    ("terms", "message"),
    [
        ("xyxx", "unknown term 'xyxx'"),
        ("xyxy,xywh", "contradicts"),
        ("classes=many", "unknown term"),
        ("scores=nothing", "unknown output 'nothing'"),
    ],
)
def test_statements_that_cannot_be_used(terms: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        recognised(joint(), SIZE, stated=statement(boxes=terms))


def test_a_task_that_the_outputs_contradict_is_an_error() -> None:
    with pytest.raises(InputError, match="unknown task 'detektion'"):
        statement("detektion")
    with pytest.raises(InputError, match=r"cannot read boxes from \(1, 10\); state the layout with boxes="):
        recognised(np.zeros((1, 10)), SIZE, stated=statement("detection"))
    with pytest.raises(InputError, match="cannot read a map of classes"):
        recognised(np.zeros((1, 10)), SIZE, stated=statement("segmentation"))
    assert recognised(joint(), SIZE, stated=statement("unknown")).kind == "unknown"


def test_labels_without_the_background_get_one() -> None:
    task = recognised(ssd(3, "softmax"), SIZE, {"scores": "softmax", "boxes": None}, ["cat", "dog"])
    assert task.labels(["cat", "dog"]) == ["background", "cat", "dog"]
    assert task.labels(None) == ["background", "1", "2"]


def test_a_sigmoid_that_was_cut_off_the_boxes_is_applied_again() -> None:
    """Torch's DETR ends in it, as the output of a few queries of small models, which fit other layouts too."""
    boxes = detr(6)["pred_boxes"][:, :12]
    y = {
        "logits": RNG.normal(size=(1, 12, 6)),
        "pred_boxes": np.log(boxes / (1 - boxes)),
        "last": RNG.normal(size=(1, 12, 32)),
    }
    activation = {"logits": None, "pred_boxes": "sigmoid", "last": None}
    task = recognised(y, SIZE, activation, labels=["a", "b", "c", "d", "e"])
    assert task.text == "detection, 5 classes, 12 boxes, relative xywh, no objectness, background 5"
    assert task.boxes is not None
    np.testing.assert_allclose(task.boxes.corners_in(y, SIZE), corners(boxes) * 320, rtol=1e-6)


def test_selected_boxes_are_recognised_by_their_values() -> None:
    """Torchvision's detectors as ONNX: numbers as names, and no output has the numbers of the classes."""
    y = {"4177": selected()[..., 4], "4208": selected()[..., :4]}
    assert recognised(y, SIZE).text == "detection, 300 selected boxes, xyxy"
    assert recognised({"4177": y["4177"][:, ::-1], "4208": y["4208"]}, SIZE).kind == "classification"
