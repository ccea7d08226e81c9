"""The answer: a heatmap, with everything it was made from, that can draw, save and show itself."""

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
from xcam.images import opencv, reading, resizing, writing
from xcam.images.montage import with_notes
from xcam.images.overlay import Blend, Style, check_drawing, contours, overlay, signed_overlay
from xcam.methods import maps
from xcam.methods.maps import Normalize
from xcam.targets import Target


@dataclass(frozen=True, eq=False)
class Explanation:
    """Where one network looked, on one picture, for one target."""

    image: reading.Image = field(repr=False)
    """RGB uint8 [H, W, 3], as it was given, upright."""
    cam: npt.NDArray[np.float32] = field(repr=False)
    """The raw map at the layer's size [h, w]: signed, before ReLU and normalisation."""
    outputs: npt.NDArray[Any] = field(repr=False)
    """The class scores [K] as the model gave them: logits where the backend could find them."""
    scores: npt.NDArray[Any] = field(repr=False)
    """Class probabilities [K]; the outputs themselves where they are no class scores."""
    target: Target
    """What was explained, with its class fixed."""
    index: int | None
    """The explained class, None for a target that is no class."""
    label: str
    """Its name, or its index in digits, or the name of the target."""
    score: float
    """The value that was explained: the class's logit or probability."""
    layer: str
    method: str
    backend: str
    model: str
    normalize: Normalize = "max"
    path: Path | None = None
    """Where the picture came from, when it came from a file."""
    notes: tuple[str, ...] = ()
    """What a reader of the picture must know: written under it when it is saved."""
    labels: Sequence[str] | None = field(default=None, repr=False)
    """Class names, where the model has them."""

    @property
    def positive(self) -> npt.NDArray[np.float32]:
        """max(cam, 0): the raw map after ReLU, at the layer's size, before normalisation."""
        return np.asarray(maps.relu(self.cam))

    @cached_property
    def heatmap(self) -> npt.NDArray[np.float32]:
        """float32 [H, W], the image's size, in 0…1 (unbounded above with normalize="none")."""
        small = maps.normalize(self.positive[None], self.normalize)[0]
        height, width = self.image.shape[:2]
        return maps.resize(small, (height, width))

    @property
    def signed(self) -> npt.NDArray[np.float32]:
        """float32 [H, W], the image's size, in −1…1: the raw map with its sign, divided by its largest magnitude."""
        most = float(np.abs(self.cam).max())
        height, width = self.image.shape[:2]
        return maps.resize(self.cam / most if most > 0 else self.cam, (height, width))

    def top(self, n: int = 3) -> list[int]:
        """The `n` classes with the highest scores, best first."""
        return [int(i) for i in np.argsort(-self.scores, kind="stable")[:n]] if self.scores.ndim == 1 else []

    def shrunk(self, side: int = resizing.THUMBNAIL) -> Explanation:
        """The same on a small copy of the picture, for keeping many: its longer side is `side` at most. `cam` stays."""
        return replace(self, image=resizing.shrunk(self.image, side))

    def overlay(
        self,
        alpha: float = 0.5,
        colormap: str = "jet",
        blend: Blend = "mix",
        style: Style = "heat",
    ) -> reading.Image:
        """The heatmap over the picture, uint8 [H, W, 3] RGB. See xcam.images.overlay.

        style: `heat`, in colours; `contour`, as lines at 0.25, 0.5 and 0.75; `signed`, what speaks for the target in red,
        what speaks against it in blue. Contours have no alpha and no blend, signed maps no colormap and no blend.
        Raises InputError.
        """
        check_drawing(style, alpha, colormap, blend)
        if style == "signed":
            return signed_overlay(self.image, self.signed, alpha)
        # Colours need 0…1; the map keeps its own scale.
        heatmap = replace(self, normalize="max").heatmap if self.normalize == "none" else self.heatmap
        if style == "contour":
            return contours(self.image, heatmap, colormap)
        return overlay(self.image, heatmap, alpha, colormap, blend)

    def save(self, path: str | os.PathLike[str], **drawing: Any) -> None:
        """Write the overlay (.jpg, .png, …), or the arrays (.npz). Takes the arguments of `overlay`.

        The file appears whole or not at all. Notes are written in a strip under the picture, which leaves the
        picture's own pixels alone. Raises InputError.
        """
        if Path(path).suffix.lower() == ".npz":
            files.write_whole(path, self._npz())
        else:
            writing.write(path, with_notes(self.overlay(**drawing), self.notes))

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
            score=self.score,
            layer=self.layer,
            method=self.method,
            backend=self.backend,
            model=self.model,
        )
        return buffer.getvalue()

    def _repr_png_(self) -> bytes:
        cv2 = opencv.load()
        picture = with_notes(self.overlay(), self.notes)
        return bytes(cv2.imencode(".png", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))[1].tobytes())
