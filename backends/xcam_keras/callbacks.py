"""Heatmaps while Keras trains a model: see xcam.callbacks."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import keras

from xcam.callbacks import Heatmaps
from xcam.explanation.run import ImageSource


class KerasHeatmaps(keras.callbacks.Callback):  # type: ignore[misc]
    """A callback of `fit`: heatmaps before the first epoch, and after each."""

    def __init__(
        self,
        images: Sequence[ImageSource],
        folder: str | os.PathLike[str] | None = None,
        *,
        writer: Any = None,
        **options: Any,
    ) -> None:
        """Read the images.

        Args:
            images: See xcam.callbacks.Heatmaps.
            folder: See xcam.callbacks.Heatmaps.
            writer: One of TensorFlow's, from `tf.summary.create_file_writer`, or one that xcam.callbacks.Heatmaps takes.
            options: See xcam.callbacks.Heatmaps.
        """
        super().__init__()
        self.heatmaps = Heatmaps(images, folder, writer=_summary(writer), **options)

    def _batch_hooks(self) -> bool:
        return False

    # Keras 2 asks for these; its callbacks have the same calls otherwise.
    _implements_train_batch_hooks = _implements_test_batch_hooks = _batch_hooks
    _implements_predict_batch_hooks = _batch_hooks

    def on_epoch_begin(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Write the heatmaps of the weights with which the training begins."""
        if not self.heatmaps.is_open:
            self.heatmaps.on_epoch_end(self.model, epoch)

    def on_epoch_end(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Write the heatmaps of an epoch; the first has the number 1."""
        self.heatmaps.on_epoch_end(self.model, epoch + 1)


def _summary(writer: Any) -> Any:
    """Return the function that adds an image to a writer of TensorFlow; another writer unchanged."""
    if not hasattr(writer, "as_default"):
        return writer
    import tensorflow as tf

    def write(tag: str, image: Any, epoch: int) -> None:
        with writer.as_default():
            tf.summary.image(tag, image[None], step=epoch)

    return write
