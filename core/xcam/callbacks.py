"""Heatmaps of the same images after every epoch of a training.

    from xcam.callbacks import Heatmaps, KerasHeatmaps, LightningHeatmaps

`Heatmaps` is called in a training loop of any framework. The callbacks of frameworks are in the backends, and are
imported at first use: importing this module imports no framework.
"""

from __future__ import annotations

import contextlib
import importlib
import inspect
import os
import random
import warnings
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from xcam.contract import Model, validation
from xcam.contract.abilities import ExplainsInTraining, supports
from xcam.contract.plugins import registry
from xcam.errors import (
    BackendError,
    InputError,
    OptionError,
    XcamError,
    ZeroHeatmapWarning,
    first_line,
    nearest,
    warn,
)
from xcam.explanation.explain import explain
from xcam.explanation.result import Explanation
from xcam.explanation.run import ImageSource
from xcam.images import arrays, reading, writing
from xcam.images.montage import labelled
from xcam.images.overlay import check_drawing
from xcam.models import layers
from xcam.models.load import load

if TYPE_CHECKING:
    KerasHeatmaps: Any
    LightningHeatmaps: Any

__all__ = ["Heatmaps", "KerasHeatmaps", "LightningHeatmaps"]


def __getattr__(name: str) -> Any:
    """Return a framework's callback from its backend. Raises BackendError where the framework is not installed."""
    for plugin in registry().plugins.values():
        for target in plugin.spec.callbacks if plugin.spec else ():
            module, _, attribute = target.partition(":")
            if attribute == name:
                if plugin.state != "available":
                    raise BackendError(
                        f"cannot use {name}: backend {plugin.name!r} is {plugin.state}; {plugin.remedy}"
                    )
                return getattr(importlib.import_module(module), attribute)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


class Heatmaps:
    """Writes heatmaps of the same images whenever it is called.

    In a training loop::

        heatmaps = Heatmaps(["cat.jpg", "dog.jpg"], "heatmaps", target=["cat", "dog"], size=(224, 224))
        for epoch in range(epochs):
            train(model)
            heatmaps.on_epoch_end(model, epoch + 1)

    The model is opened once. Its mode, gradients and statistics remain as they are, and so do the random states of
    Python, NumPy and the framework: the training takes the same course with and without heatmaps.
    """

    def __init__(
        self,
        images: Sequence[ImageSource],
        folder: str | os.PathLike[str] | None = None,
        *,
        writer: Any = None,
        every: int = 1,
        **options: Any,
    ) -> None:
        """Read the images.

        Args:
            images: Paths or RGB uint8 arrays [H, W, 3], or arrays as the model takes them.
            folder: The heatmaps are written to FOLDER/epoch_001/NAME.jpg.
            writer: TensorBoard: an object with `add_image` (torch's or tensorboardX's SummaryWriter), or a function that
                takes a tag, an image [H, W, 3] and an epoch.
            every: Only epochs that are multiples of this number are explained.
            options: Those of `xcam.load`, `xcam.explain` and `Explanation.overlay`, by name: `target` (one, or one for
                each image; None: the top class, which may change from epoch to epoch), `layer`, `method`, `size`,
                `preprocess`, `colormap`, …

        Raises:
            InputError: An image cannot be read, or an option cannot be used.
        """
        if folder is None and writer is None:
            raise InputError("heatmaps are written nowhere; give a folder, a writer, or both")
        if isinstance(images, str | os.PathLike | np.ndarray) or not len(images):
            raise InputError("cannot use these images; give a list of at least one")
        if every < 1:
            raise InputError(f"cannot use every={every}; give a positive integer")
        self.folder = None if folder is None else Path(folder)
        self.write = writer if writer is None else _function(writer)
        self.every = every
        self.names = _names(images)
        self.images = [
            reading.read(image) if isinstance(image, str | os.PathLike) and not arrays.is_array_file(image) else image
            for image in images
        ]
        self._load, self._explain, self._draw = _split(options)
        check_drawing(**self._draw)
        self._opened: Model | None = None
        self._source: Any = None

    @property
    def is_open(self) -> bool:
        """Whether the model has been opened."""
        return self._opened is not None

    def on_epoch_end(self, model: Any, epoch: int) -> list[Any]:
        """Explain the images and write the heatmaps.

        The first call raises errors. Later ones issue them as warnings, so that the training continues.

        Args:
            model: The live model, as `xcam.load` takes it, or the result of `xcam.load`.
            epoch: The number in the names of the files.

        Returns:
            The result of `xcam.explain`: one Explanation for each image, or a list for several targets; an empty list
            where the epoch is left out, or an error was issued as a warning.

        Raises:
            XcamError: The model cannot be opened or explained, in the first call.
        """
        if epoch % self.every:
            return []
        is_first = self._opened is None
        try:
            with _random_state():
                rows = self._explained(model)
            self._write(rows, epoch)
        except (XcamError, OSError) as error:
            if is_first:
                raise
            warn(f"heatmaps of epoch {epoch} are missing: {first_line(error)}")
            return []
        return rows

    def _explained(self, model: Any) -> list[Any]:
        opened = self._model(model)
        with opened.random_state() if supports(opened, ExplainsInTraining) else contextlib.nullcontext():
            if self._explain.get("layer") is None:  # fixed from now on
                self._explain["layer"] = layers.find(opened, None).name
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ZeroHeatmapWarning)  # the image's caption states it
                rows: list[Any] = explain(opened, self.images, **self._explain)
                return rows

    def _model(self, model: Any) -> Model:
        """Return the opened model; one that may have copied the weights is opened again in each call."""
        if validation.is_model(model):
            self._opened = model
            return model
        opened = self._opened
        is_same = opened is not None and model is self._source
        if opened is None or not (is_same and supports(opened, ExplainsInTraining) and opened.is_live(model)):
            opened = self._opened = load(model, **self._load)
            self._source = model
        return opened

    def _write(self, rows: Sequence[Any], epoch: int) -> None:
        folder = self.folder and self.folder / f"epoch_{epoch:03d}"
        if folder:
            folder.mkdir(parents=True, exist_ok=True)
        for name, row in zip(self.names, rows, strict=True):
            for e, tag in _tagged(name, row):
                caption = e.caption if e.cam.max() > 0 else f"{e.caption}, empty map"
                image = labelled(e.overlay(**self._draw), caption)
                if folder:
                    writing.write(folder / f"{tag}.jpg", image)
                if self.write:
                    self.write(f"heatmaps/{tag}", image, epoch)


def _tagged(name: str, row: Any) -> Iterator[tuple[Explanation, str]]:
    """Yield the explanations of one image, each with the name of its file."""
    if not isinstance(row, list):
        yield row, name
        return
    for k, e in enumerate(row):
        text = "".join(c if c.isalnum() or c in "-_" else "_" for c in e.label)
        yield e, f"{name}.{k}.{text}"


@contextlib.contextmanager
def _random_state() -> Iterator[None]:
    """Restore the global random states of Python and NumPy."""
    states = random.getstate(), np.random.get_state()
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])


def _names(images: Sequence[Any]) -> list[str]:
    """Return a name for each image: its file's, with a number where it is not unique."""
    stems = [
        Path(image).stem if isinstance(image, str | os.PathLike) else f"image_{k}" for k, image in enumerate(images)
    ]
    counts = Counter(stems)
    return [f"{stem}_{k}" if counts[stem] > 1 else stem for k, stem in enumerate(stems)]


def _split(options: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Return the options of `load`, of `explain` and of `overlay`. Raises OptionError."""
    known: list[Collection[str]] = [
        [name for name in inspect.signature(function).parameters if name not in ("model", "image", "self")]
        for function in (explain, load, Explanation.overlay)
    ]
    parts: list[dict[str, Any]] = [{}, {}, {}]
    for name, value in options.items():
        part = next((part for part, names in zip(parts, known, strict=True) if name in names), None)
        if part is None:
            raise OptionError(
                f"heatmaps have no option {name!r}; {nearest(name, [n for names in known for n in names])}"
            )
        part[name] = value
    return parts[1], parts[0], parts[2]


def _function(writer: Any) -> Callable[[str, reading.Image, int], object]:
    """Return the function that adds an image to TensorBoard. Raises InputError."""
    add: Any = getattr(writer, "add_image", None)
    if add is not None:
        return lambda tag, image, epoch: add(tag, image, epoch, dataformats="HWC")
    if callable(writer):
        function: Callable[[str, reading.Image, int], object] = writer
        return function
    raise InputError(
        f"cannot write to {type(writer).__name__}; give a SummaryWriter, or a function of a tag, an image and an epoch"
    )
