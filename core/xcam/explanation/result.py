"""The result of `explain`: a heatmap with its sources, which can be drawn, saved and shown in a notebook."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from xcam.contract import files
from xcam.errors import keywords_checked
from xcam.images import marks, opencv, reading, resizing, views, writing
from xcam.images.framing import Frame
from xcam.images.montage import with_notes
from xcam.images.overlay import Blend, Style, check_drawing, drawn
from xcam.methods import maps
from xcam.methods.maps import Normalize
from xcam.targets import Detected, Target


def class_label(labels: Sequence[str] | None, index: int) -> str:
    """Return the label of a class; its index in digits where there is none."""
    return labels[index] if labels is not None and index < len(labels) else str(index)


@dataclass(frozen=True, eq=False)
class Explanation:
    """An explanation: where a model looked on one image, for one target."""

    image: reading.Image = field(repr=False)
    """RGB uint8 [H, W, 3], upright; for an array its drawing: a curve for each channel, slices of a volume."""
    cam: npt.NDArray[np.float32] = field(repr=False)
    """The raw map at the layer's size ([h, w] for an image): signed, before ReLU and normalisation."""
    outputs: npt.NDArray[Any] = field(repr=False)
    """The class scores [K]: logits where the backend can give them. For one output z: [−z, z]."""
    scores: npt.NDArray[Any] = field(repr=False)
    """Class probabilities [K], for one output [1 − p, p]; the outputs themselves where they are not class scores."""
    target: Target
    """The explained target; its class is fixed."""
    index: int | None
    """The explained class; None for a target that is not a class."""
    label: str
    """The label of the class, or its index in digits, or the name of the target."""
    score: float
    """The explained value: the logit or the probability of the class, or the target's value."""
    layer: str
    """Name of the layer."""
    method: str
    """Name of the method."""
    backend: str
    """Name of the backend."""
    model: str
    """Name of the model."""
    normalize: Normalize = "max"
    """The normalisation of `heatmap`."""
    path: Path | None = None
    """The image's file, where it has one."""
    notes: tuple[str, ...] = ()
    """Facts that a reader of the heatmap must know; they are written below a saved overlay."""
    labels: Sequence[str] | None = field(default=None, repr=False)
    """The labels of all classes, where the model has them."""
    output: str | None = None
    """Name of the explained output; None where the model has only one."""
    values: npt.NDArray[Any] | None = field(default=None, repr=False)
    """The input [C, *space] where it was given as an array; None for an image."""
    frame: Frame | None = field(default=None, repr=False)
    """The location of the image on the model's input; None for an array. None for an image: it fills the input."""
    extent: tuple[float, float] | None = None
    """The smallest and the largest raw value of all maps that share one colour scale; None: this map has its own."""
    task: str = ""
    """The model's task, as in `detection, 80 classes, 8400 boxes, xywh, no objectness`; empty for class scores."""
    boxes: tuple[Detected, ...] = field(default=(), repr=False)
    """For a detector the explained box, and those that remain after suppression, the best first."""
    region: npt.NDArray[Any] | None = field(default=None, repr=False)
    """For segmentation the explained region, bool [h, w] of the output's size."""

    @property
    def mask(self) -> npt.NDArray[np.bool_] | None:
        """For segmentation the explained region at the size of the image, bool [H, W]; else None."""
        return None if self.region is None else self._on_image(self.region.astype(np.float32)) >= 0.5

    @property
    def size(self) -> tuple[int, ...]:
        """The spatial size of the input: (H, W) for an image, (L,) for a signal, (D, H, W) for a volume."""
        return self.image.shape[:2] if self.values is None else self.values.shape[1:]

    @property
    def positive(self) -> npt.NDArray[np.float32]:
        """max(cam, 0): the raw map after ReLU, at the layer's size, before normalisation."""
        return np.asarray(maps.relu(self.cam))

    @cached_property
    def heatmap(self) -> npt.NDArray[np.float32]:
        """float32, the size of the input ([H, W] for an image), in 0…1 (unbounded above with normalize="none").

        It is 0 where the model did not see the image: outside the crop.
        """
        if self.extent is not None:
            return self._on_image(maps.scaled(self.positive, self.extent, self.normalize))
        return self._on_image(maps.normalize(self.positive[None], self.normalize)[0])

    @property
    def unit_heatmap(self) -> npt.NDArray[np.float32]:
        """float32, the size of the input, in 0…1 for every `normalize`: the values that colours represent."""
        return replace(self, normalize="max").heatmap if self.normalize == "none" else self.heatmap

    @property
    def signed(self) -> npt.NDArray[np.float32]:
        """float32, the size of the input, in −1…1: the raw map with its sign, divided by the largest magnitude."""
        largest = float(np.abs(self.cam if self.extent is None else self.extent).max())
        return self._on_image(np.clip(self.cam / largest, -1, 1) if largest > 0 else self.cam)

    def _on_image(self, cam: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        """Return a map of the input at the size of the image."""
        return maps.resize(cam, self.size) if self.frame is None else self.frame.map_to_image(cam)

    @property
    def drawn_heatmap(self) -> npt.NDArray[np.float32]:
        """`unit_heatmap` arranged as `image` is, [H, W]: for a volume, the slices that are drawn.

        It is NaN where the model did not see the image: nothing is drawn there.
        """
        if self.values is None:
            values = self.unit_heatmap
            return values if self.frame is None else np.where(self.frame.mask, values, np.float32(np.nan))
        view = views.view(self.values)
        return np.where(view.mask, view.spread(self.unit_heatmap), np.float32(0))

    @property
    def caption(self) -> str:
        """The label with its probability, or with the explained value where the target is not a class."""
        if self.index is None or self.scores.ndim != 1 or self.index >= len(self.scores):
            return f"{self.label} {self.score:.3g}"
        return f"{self.label} {float(self.scores[self.index]):.0%}"

    @property
    def map_box(self) -> tuple[float, ...]:
        """The rectangle (x0, y0, x1, y1) of the image that `cam` covers, in pixels; empty for an array.

        It is beyond the image where the image has a border on the input.
        """
        if self.values is not None:
            return ()
        if self.frame is None:
            return (0.0, 0.0, float(self.image.shape[1]), float(self.image.shape[0]))
        return tuple(self.frame.boxes_to_image([0, 0, *self.frame.input[::-1]], clip=False).tolist())

    def top(self, n: int = 3) -> list[int]:
        """Return the `n` classes with the highest scores, the best first."""
        return [int(i) for i in np.argsort(-self.scores, kind="stable")[:n]] if self.scores.ndim == 1 else []

    def marked(self, image: reading.Image) -> reading.Image:
        """Draw the boxes of a detector, with the label of the explained one, or the outline of the explained region.

        Args:
            image: uint8 [H, W, 3] RGB of the image's size.

        Returns:
            A copy; the image itself where there is nothing to draw.
        """
        mask = self.mask
        if mask is not None:
            image = marks.with_outline(image, mask)
        if not self.boxes:
            return image
        return marks.with_boxes(image, [marks.Box(b.box, f"{b.label} {b.text}", b.explained) for b in self.boxes])

    def shrunk(self, side: int = resizing.THUMBNAIL) -> Explanation:
        """Return a copy with a smaller image, so that many can be kept. `cam` is not changed; arrays are kept whole.

        Args:
            side: The largest length of the image's longer side, in pixels.
        """
        return self if self.values is not None else self.with_image(resizing.shrunk(self.image, side))

    def with_image(self, image: reading.Image) -> Explanation:
        """Return a copy with the same image at another size, uint8 [H, W, 3]."""
        height, width = (n / m for n, m in zip(image.shape[:2], self.image.shape[:2], strict=True))
        boxes = tuple(
            replace(b, box=(b.box[0] * width, b.box[1] * height, b.box[2] * width, b.box[3] * height))
            for b in self.boxes
        )
        return replace(self, image=image, frame=self.frame and self.frame.resized(image.shape), boxes=boxes)

    @keywords_checked()
    def overlay(
        self,
        alpha: float = 0.5,
        colormap: str = "jet",
        blend: Blend = "mix",
        style: Style = "heat",
    ) -> reading.Image:
        """Draw the heatmap over the image; behind the curves of a signal; over slices of a volume.

        Boxes of a detector, and the outline of the region that is explained, are drawn over it.

        Args:
            alpha: The opacity of the heatmap, 0…1; not used by contours.
            colormap: An OpenCV colormap; not used by signed maps.
            blend: `mix`: (1 − alpha)·image + alpha·colour; `add`: image + alpha·colour. Used by `heat` only.
            style: `heat`: colours; `contour`: lines at 0.25, 0.5 and 0.75; `signed`: evidence for the target in red,
                against it in blue.

        Returns:
            uint8 [H, W, 3] RGB.

        Raises:
            InputError: An argument cannot be used.
        """
        check_drawing(style, alpha, colormap, blend)
        heatmap = self.signed if style == "signed" else self.unit_heatmap
        if self.values is None:
            seen = (slice(None), slice(None)) if self.frame is None else self.frame.seen
            result = self.image.copy()  # unchanged where the model did not see it
            result[seen] = drawn(self.image[seen], heatmap[seen], style, alpha, colormap, blend)
            return self.marked(result)
        view = views.view(self.values, np.abs(heatmap))
        result = drawn(view.image, view.spread(heatmap), style, alpha, colormap, blend)
        return np.where(view.mask[..., None], result, view.image)

    @keywords_checked()
    def save(
        self,
        path: str | os.PathLike[str],
        alpha: float = 0.5,
        colormap: str = "jet",
        blend: Blend = "mix",
        style: Style = "heat",
    ) -> None:
        """Write the overlay (.jpg, .png, …), the heatmap (.npy), or all arrays (.npz).

        The file is written completely or not at all. Notes are written in a strip below the image; the image's own pixels are unchanged.

        Args:
            path: The file to write.
            alpha: As for `overlay`.
            colormap: An OpenCV colormap.
            blend: `mix` or `add`.
            style: `heat`, `contour` or `signed`.

        Raises:
            InputError: The file cannot be written, or an argument cannot be used.
        """
        suffix = Path(path).suffix.lower()
        if suffix == ".npz":
            files.write_whole(path, self._npz())
        elif suffix == ".npy":
            buffer = io.BytesIO()
            np.save(buffer, self.heatmap)
            files.write_whole(path, buffer.getvalue())
        else:
            writing.write(path, with_notes(self.overlay(alpha, colormap, blend, style), self.notes))

    def _npz(self) -> bytes:
        buffer = io.BytesIO()
        np.savez_compressed(
            buffer,
            heatmap=self.heatmap,
            cam=self.cam,
            outputs=self.outputs,
            scores=self.scores,
            index=-1 if self.index is None else self.index,
            label=self.label,
            map_box=np.array(self.map_box, np.float64),
            score=self.score,
            layer=self.layer,
            method=self.method,
            backend=self.backend,
            model=self.model,
        )
        return buffer.getvalue()

    def _repr_png_(self) -> bytes:
        cv2 = opencv.load()
        image = with_notes(self.overlay(), self.notes)
        return bytes(cv2.imencode(".png", cv2.cvtColor(image, cv2.COLOR_RGB2BGR))[1].tobytes())
