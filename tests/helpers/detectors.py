"""Small detectors of two scales in the layouts of the usual tools, and a network for segmentation, in torch and Keras."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

SIDE = 64
CLASSES = 3


class TwoScales(nn.Module):
    """A detector with scales of strides 8 and 16; the finer leads to the coarser, as in YOLO.

    Args:
        layout: `v8` [N, 4 + 3, 80]; `v5` [N, 240, 5 + 3]; `ssd`: relative corners, and a softmax whose class 0 is the
            background; `selected` [N, 20, 6].
    """

    def __init__(self, layout: str = "v8") -> None:
        super().__init__()
        self.layout = layout
        self.anchors = 3 if layout == "v5" else 1
        columns = {"v5": 5 + CLASSES, "ssd": 5 + CLASSES}.get(layout, 4 + CLASSES)
        self.fine = nn.Sequential(nn.Conv2d(3, 8, 5, 4, 2), nn.ReLU(), nn.Conv2d(8, 12, 3, 2, 1), nn.ReLU())
        self.coarse = nn.Sequential(nn.Conv2d(12, 12, 3, 2, 1), nn.ReLU())
        self.boxes = nn.ModuleList(
            nn.Sequential(nn.Conv2d(12, 8, 3, 1, 1), nn.ReLU(), nn.Conv2d(8, 4 * self.anchors, 1)) for _ in range(2)
        )
        self.scores = nn.ModuleList(
            nn.Sequential(nn.Conv2d(12, 8, 3, 1, 1), nn.ReLU(), nn.Conv2d(8, (columns - 4) * self.anchors, 1))
            for _ in range(2)
        )

    def forward(self, x: Tensor) -> Any:
        fine = self.fine(x)
        parts = [self._scale(k, f, 8 * 2**k) for k, f in enumerate((fine, self.coarse(fine)))]
        boxes, z = (torch.cat(same, 1) for same in zip(*parts, strict=True))
        if self.layout == "ssd":
            centre, half = boxes[..., :2], boxes[..., 2:] / 2
            return {"boxes": torch.cat([centre - half, centre + half], 2) / SIDE, "scores": z.softmax(2)}
        joint = torch.cat([boxes, z.sigmoid()], 2)
        if self.layout == "selected":
            best, number = z.sigmoid().max(2)
            score, order = best.topk(20)
            rows = torch.cat([boxes, number[..., None].to(boxes.dtype)], 2).gather(
                1, order[..., None].expand(-1, -1, 5)
            )
            centre, half = rows[..., :2], rows[..., 2:4] / 2
            return torch.cat([centre - half, centre + half, score[..., None], rows[..., 4:]], 2)
        return joint if self.layout == "v5" else joint.transpose(1, 2)

    def _scale(self, k: int, f: Tensor, stride: int) -> tuple[Tensor, Tensor]:
        """Return boxes by centre and size [N, B, 4] in pixels, and scores [N, B, columns]."""
        n = SIDE // stride
        y, x = torch.meshgrid(torch.arange(n), torch.arange(n), indexing="ij")
        centre = (torch.stack([x, y], -1).reshape(1, -1, 1, 2) + 0.5) * float(stride)
        raw = self.boxes[k](f).permute(0, 2, 3, 1).reshape(len(f), n * n, self.anchors, 4)
        size = stride * 2 * raw[..., 2:].exp()
        boxes = torch.cat([centre + raw[..., :2], size], 3).flatten(1, 2)
        z = self.scores[k](f).permute(0, 2, 3, 1).reshape(len(f), n * n * self.anchors, -1)
        return boxes, z


class Segments(nn.Module):
    """Encoder and decoder: 8 × 8 positions at the deepest layer, 32 × 32 ahead of the classes."""

    def __init__(self, classes: int = 4) -> None:
        super().__init__()
        self.down = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU())
        self.deep = nn.Sequential(nn.Conv2d(8, 16, 5, 4, 2), nn.ReLU(), nn.Conv2d(16, 16, 3, 1, 1), nn.ReLU())
        self.up = nn.Sequential(nn.Upsample(scale_factor=4), nn.Conv2d(16, 8, 3, 1, 1))
        self.mix = nn.Sequential(nn.Conv2d(16, 8, 3, 1, 1), nn.ReLU())
        self.classes = nn.Conv2d(8, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        f = self.down(x)
        z = self.classes(self.mix(torch.cat([self.up(self.deep(f)), f], 1)))
        return nn.functional.interpolate(z, scale_factor=2, mode="nearest")


def built(module: nn.Module, seed: int = 0) -> nn.Module:
    """Return a module in evaluation mode with random weights that spread the scores."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for parameter in module.parameters():
            if parameter.ndim > 1:
                nn.init.kaiming_normal_(parameter)
            else:
                nn.init.constant_(parameter, 0.3)
    return module.eval()


def keras_detector() -> Any:
    """Return a detector [N, 64, 4 + 3] of one scale, and one of two outputs, in Keras."""
    import keras
    from keras import layers

    keras.utils.set_random_seed(0)
    x = keras.Input((SIDE, SIDE, 3))
    f = layers.Conv2D(12, 5, 8, "same", activation="relu", name="neck")(x)
    b = layers.Conv2D(8, 3, 1, "same", activation="relu")(f)
    s = layers.Conv2D(8, 3, 1, "same", activation="relu")(f)
    boxes = layers.Reshape((64, 4))(layers.Conv2D(4, 1, activation="sigmoid")(b))
    scores = layers.Reshape((64, CLASSES))(layers.Conv2D(CLASSES, 1)(s))
    return keras.Model(
        x,
        {
            "boxes": layers.Activation("sigmoid", name="b")(boxes),
            "scores": layers.Activation("sigmoid", name="s")(scores),
        },
    )
