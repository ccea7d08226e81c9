"""The contract for a torch.nn.Module."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path

import torch
from torch import nn

from xcam.contract import DEFAULT_SIZE, Array, Capability, Cotangents, InputSpec, Layout
from xcam.contract.recorded import RecordedModel
from xcam.errors import nearest
from xcam.models.texts import TextHead
from xcam_torch import export, shuffling
from xcam_torch.guard import random_state, running, unwrapped
from xcam_torch.recording import Recording


class TorchModel(RecordedModel[Recording]):
    """A torch.nn.Module behind xcam's contract. See xcam.contract.Model."""

    backend = "torch"
    capabilities: frozenset[Capability] = frozenset({"gradients", "resume", "hvp"})

    def __init__(
        self,
        module: nn.Module,
        name: str,
        spec: InputSpec,
        *,
        labels: Sequence[str] | None = None,
        notes: Sequence[str] = (),
        layout: Layout | None = None,
        batch: int | None = None,
    ) -> None:
        """Wrap a module.

        Args:
            module: the module; it is not changed.
            name: a name for messages.
            spec: the input that the module takes.
            labels: class labels.
            notes: see xcam.contract.Model.
            layout: of every layer, where the caller gives one.
            batch: the batch size that the module is fixed to; None: any.
        """
        super().__init__(name, spec, labels, notes)
        self.module, self.layout, self.batch = module, layout, batch
        self._stated_layout = layout
        self.text_head: TextHead | None = None
        """The embeddings of the texts that the caller gives for a model of images and texts."""

    def hvp(self, x: Array, layer: str, cotangents: Cotangents, vectors: Sequence[Array]) -> list[Array]:
        """See xcam.contract.abilities.SupportsHvp. By double backward."""
        return self._hvp(x, layer, cotangents, vectors)

    def to_onnx(self, path: Path) -> None:
        """See xcam.contract.abilities.ExportsOnnx."""
        rank = self.input.rank
        size = self.input.size or (DEFAULT_SIZE if rank in (2, None) else (None,) * rank)
        export.to_onnx(self.module, path, size, self.input.channels)

    def explain_missing_layer(self, name: str) -> str | None:
        """See xcam.contract.abilities.ExplainsMissingLayers."""
        modules = dict(self.module.named_modules())
        if name not in modules:
            return None
        around = [path for path in modules if path and name.startswith(f"{path}.")]
        script = next((path for path in around if isinstance(modules[path], torch.jit.ScriptModule)), None)
        if script is not None:
            return (
                f"cannot explain layer {name!r}: it is inside the TorchScript module {script!r}, which runs as a whole; "
                f"choose {script!r} or another layer"
            )
        return (
            f"cannot explain layer {name!r}: the forward pass of {self.name} never reaches it, or it returns no float "
            f"tensor; {nearest(name, self._recording().calls)}"
        )

    @property
    def parameter_layers(self) -> Sequence[str]:
        """See xcam.contract.abilities.Randomizable."""
        return shuffling.parameter_layers(self.module, [name.partition("#")[0] for name in self._recording().calls])

    def with_shuffled_weights(self, parts: Sequence[str], seed: int = 0) -> TorchModel:
        """See xcam.contract.abilities.Randomizable."""
        return TorchModel(
            shuffling.with_shuffled_weights(self.module, parts, seed),
            f"{self.name}, shuffled",
            self.input,
            labels=self.labels,
            notes=self.notes,
            layout=self.layout,
            batch=self.batch,
        )

    def is_live(self, source: object) -> bool:
        """See xcam.contract.abilities.ExplainsInTraining."""
        if not isinstance(source := unwrapped(source)[0], nn.Module):
            return False
        known = {id(tensor) for tensor in (*source.parameters(), *source.buffers())}
        return {id(tensor) for tensor in (*self.module.parameters(), *self.module.buffers())} <= known

    def random_state(self) -> AbstractContextManager[None]:
        """See xcam.contract.abilities.ExplainsInTraining."""
        return random_state(self.module)

    def _record(self, shape: tuple[int, ...], batch: int) -> Recording:
        return Recording(self.module, self.name, shape, self.layout, self.batch or (1 if batch == 1 else None))

    def _running(self) -> AbstractContextManager[None]:
        return running(self.module)
