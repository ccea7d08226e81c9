"""Heatmaps while Lightning trains a module: see xcam.callbacks."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec
from typing import Any

from xcam.callbacks import Heatmaps
from xcam.errors import BackendError
from xcam.explanation.run import ImageSource

PACKAGES = ("lightning.pytorch", "pytorch_lightning")
"""Lightning's packages; each has its own classes."""


def __getattr__(name: str) -> Any:
    """Return the class, which inherits from that of Lightning. Raises BackendError where Lightning is not installed."""
    if name == "LightningHeatmaps":
        return _lightning_heatmaps(_package())
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def _package() -> str:
    """Return the package that is imported, or else the first that is installed."""
    installed = [name for name in PACKAGES if name.partition(".")[0] in sys.modules]
    installed = installed or [name for name in PACKAGES if find_spec(name.partition(".")[0])]
    if not installed:
        raise BackendError("cannot use LightningHeatmaps: Lightning is not installed; pip install lightning")
    return installed[0]


@cache
def _lightning_heatmaps(package: str) -> Any:
    base: Any = importlib.import_module(package).Callback

    class LightningHeatmaps(base):  # type: ignore[misc]
        """A callback of Lightning's Trainer: heatmaps before the first epoch, and after each."""

        def __init__(
            self,
            images: Sequence[ImageSource],
            folder: str | os.PathLike[str] | None = None,
            *,
            module: str | None = None,
            **options: Any,
        ) -> None:
            """Read the images.

            Args:
                images: See xcam.callbacks.Heatmaps.
                folder: See xcam.callbacks.Heatmaps.
                module: The attribute of the LightningModule that is explained, such as `net`; default: the LightningModule
                    itself, with its `forward`.
                options: See xcam.callbacks.Heatmaps.
            """
            super().__init__()
            self.module, self.heatmaps = module, Heatmaps(images, folder, **options)

        def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
            """Write the heatmaps of the weights with which the training begins."""
            if not self.heatmaps.is_open:
                self._write(trainer, pl_module, trainer.current_epoch)

        def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
            """Write the heatmaps of an epoch; the first has the number 1."""
            self._write(trainer, pl_module, trainer.current_epoch + 1)

        def _write(self, trainer: Any, pl_module: Any, epoch: int) -> None:
            if trainer.is_global_zero and not trainer.sanity_checking:
                self.heatmaps.on_epoch_end(
                    pl_module if self.module is None else pl_module.get_submodule(self.module), epoch
                )

    return LightningHeatmaps
