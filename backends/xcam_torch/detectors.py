"""Detectors of other libraries as modules of raw outputs: the boxes and scores ahead of the suppression.

torchvision's detectors return a list with one dictionary for each image, of boxes that were selected from many. Their
number depends on the image. `raw` returns a module with the same parts, under the same names, that computes every box
and its scores as the detector does, and selects none.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from xcam.errors import InputError

ULTRALYTICS = "ultralytics.engine.model.Model"
"""The class of ultralytics' objects (YOLO, RTDETR, …), which hold a network and are modules themselves."""
TORCHVISION = "torchvision.models.detection."


def network(source: nn.Module) -> nn.Module:
    """Return the network inside an object of ultralytics; any other module as it is.

    Raises:
        InputError: the object holds a file in another format, and no network.
    """
    if ULTRALYTICS not in (f"{kind.__module__}.{kind.__qualname__}" for kind in type(source).__mro__):
        return source
    inner: Any = source.model
    if not isinstance(inner, nn.Module):
        raise InputError(
            f"cannot open this {type(source).__name__}: it holds the file {str(inner)!r}; load that file"
        )
    return inner


def raw(detector: nn.Module) -> nn.Module:
    """Return the raw head of a detector of torchvision; any other module as it is."""
    kind: Any = next((kind for kind in type(detector).__mro__ if kind.__module__.startswith(TORCHVISION)), None)
    if kind is None or type(detector).forward is not kind.forward:
        return detector
    names = {base.__name__ for base in kind.__mro__}
    if "GeneralizedRCNN" in names:
        return _TwoStages(detector)
    return _OneStage(detector) if names & {"SSD", "RetinaNet", "FCOS"} else detector


def size(module: nn.Module) -> tuple[int | None, int | None] | None:
    """Return the size (height, width) to which a detector of torchvision resizes images; None for any other module."""
    if not isinstance(module, _Raw):
        return None
    transform: Any = module.transform
    if transform.fixed_size is not None:
        width, height = transform.fixed_size
        return int(height), int(width)
    return int(transform.min_size[-1]), None


class _Raw(nn.Module):
    """The parts of a detector, and a forward pass [N, 3, H, W] → boxes [N, B, 4] and scores [N, B, K].

    Boxes are (x0, y0, x1, y1) in the pixels of the input. Column 0 of the scores is the background where the detector
    has one.
    """

    def __init__(self, detector: nn.Module) -> None:
        super().__init__()
        for name, part in detector.named_children():
            self.add_module(name, part)
        self._detector = (detector,)  # not a part of this module
        self.training = detector.training

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        detector: Any = self._detector[0]
        images, _ = detector.transform(list(x))
        features = detector.backbone(images.tensors)
        features = {"0": features} if isinstance(features, Tensor) else features
        boxes, scores = self._heads(detector, images, features)
        (height, width), (*_, full_height, full_width) = images.image_sizes[0], x.shape
        across, down = boxes[..., 0::2].clamp(0, width), boxes[..., 1::2].clamp(0, height)
        boxes = torch.stack([across * (full_width / width), down * (full_height / height)], dim=-1).flatten(-2)
        return {"scores": scores, "boxes": boxes}

    def _heads(self, detector: Any, images: Any, features: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Return boxes in the pixels of the resized images, and scores."""
        raise NotImplementedError


class _OneStage(_Raw):
    """SSD, RetinaNet and FCOS: a box for each anchor."""

    def _heads(self, detector: Any, images: Any, features: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        maps = list(features.values())
        heads = detector.head(maps)
        anchors = torch.stack(detector.anchor_generator(images, maps))
        decode = getattr(detector.box_coder, "decode_single", detector.box_coder.decode)
        deltas, logits = heads["bbox_regression"], heads["cls_logits"]
        boxes = decode(deltas.flatten(0, 1), anchors.flatten(0, 1)).reshape(deltas.shape)
        if "bbox_ctrness" in heads:
            return boxes, (logits.sigmoid() * heads["bbox_ctrness"].sigmoid()).sqrt()
        is_ssd = any(kind.__name__ == "SSD" for kind in type(detector).__mro__)
        return boxes, logits.softmax(-1) if is_ssd else logits.sigmoid()


class _TwoStages(_Raw):
    """Faster R-CNN and its like: the boxes of the proposals, each that of its best class.

    The number of proposals depends on the image: the last one is repeated up to the largest number.
    """

    def _heads(self, detector: Any, images: Any, features: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        proposals, _ = detector.rpn(images, features)
        proposals = list(_not_empty(proposals, images.image_sizes))
        heads = detector.roi_heads
        pooled = heads.box_roi_pool(features, proposals, images.image_sizes)
        logits, deltas = heads.box_predictor(heads.box_head(pooled))
        scores = logits.softmax(-1)
        best = scores[:, 1:].argmax(-1) + 1
        boxes = heads.box_coder.decode(deltas, proposals)
        boxes = boxes[torch.arange(len(best), device=best.device), best]
        rows, start = [], 0
        for one in proposals:
            index = torch.arange(detector.rpn.post_nms_top_n(), device=best.device).clamp(max=len(one) - 1)
            rows.append(start + index)
            start += len(one)
        picked = torch.stack(rows)
        return boxes[picked], logits[picked].softmax(-1)


def _not_empty(proposals: list[Tensor], sizes: list[tuple[int, int]]) -> Iterator[Tensor]:
    """Yield the proposals of each image; its whole area where it has none."""
    for one, (height, width) in zip(proposals, sizes, strict=True):
        yield one if len(one) else one.new_tensor([[0, 0, width, height]])
