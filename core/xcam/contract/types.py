"""The contract between the core and a backend: a model that can be opened at a layer.

A backend supplies activations and gradients for a named layer, as NumPy arrays. It knows nothing of methods,
targets, images or heatmaps; the core knows nothing of frameworks. Nothing here may import a framework.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, overload, runtime_checkable

import numpy.typing as npt

from xcam.contract.fit import Fit
from xcam.contract.preprocessing import Preprocessing

Array = npt.NDArray[Any]
Outputs = Array | Mapping[str, Array]
"""The outputs of a model: an array [N, …], or a mapping from names to arrays when there are several."""

Cotangents = Callable[[Outputs], Sequence[Outputs]]
"""A function from outputs to M cotangents, each shaped like the outputs. Called once per forward pass, in NumPy."""

Activation = str | None | Mapping[str, str | None]
"""`softmax` or `sigmoid` where one is cut off the end, else None; a mapping by name for several outputs."""

Names = list[str] | tuple[str, ...]
"""Names of several layers, for `trace` and `resume`."""

DEFAULT_SIZE = (224, 224)
"""(height, width) for a model that takes any size and declares none."""

Layout = Literal["channels_first", "channels_last", "tokens"]
Capability = Literal["gradients", "resume", "hvp"]


@dataclass(frozen=True)
class Layer:
    """A value inside a model, at which the model can be opened."""

    name: str
    """The name that `trace` takes. Nested parts are joined by `/` or `.`, as the framework does."""
    kind: str
    """The framework's name for its type: `Conv2D`, `ReLU`, `MaxPool`."""
    shape: tuple[int | None, ...]
    """(C, *spatial), or (C, T) for tokens; without the batch; None where it is not fixed."""
    layout: Layout = "channels_first"
    """The order in which the framework stores it. A Trace is always channels first."""
    is_output: bool = False
    """Whether its value is a model output, or the logits of one: the tail behind it is empty."""
    folds_batch: bool = False
    """Whether its first axis also counts windows or frames: it does not have one value for each image."""
    reaches_output: bool = True
    """Whether an output depends on its value; for tokens, on the values of most of them."""
    leads_to: tuple[str, ...] | None = None
    """Names of the outputs that depend on it; None: not known, any."""
    differentiable: bool = True
    """Whether a gradient leads from an output to it: a detached layer has a value and no gradient."""
    depends_on_input: bool | None = None
    """Whether its value depends on the image, and not only on the batch size or on constants; None: not known."""
    has_map: bool = True
    """Whether its axes after the channels follow the image's; heads of attention and windows do not."""
    batch_axis: int = 0
    """The axis of the batch in the framework's own order: 1 for tokens first, batch second. A Trace has it first."""
    order: tuple[int, ...] | None = None
    """For tokens that the framework does not store row by row: the index of each token of a Trace in its order. In a Trace
    extra tokens come first, and then the patches row by row."""
    aliases: tuple[str, ...] = ()
    """Other names of the same value, which `trace` also takes."""
    dtype: str = "float32"
    """The type in which the runtime stores it: `int8`, `uint8`, `float16`, … A Trace is always float32."""
    inner: bool = False
    """Whether it is a value inside a layer: it can be explained by name, and is neither listed nor chosen by default."""
    bypassed: bool = False
    """Whether a path from the input to the first output avoids it, as around the inside of a residual block. False: the
    output depends on the image through this value alone. A backend that does not know the paths states True."""

    @property
    def has_space(self) -> bool:
        """Whether it has a map of more than one position: (512, 14, 14) does, (512, 1, 1) and (1000,) do not."""
        return self.has_map and len(self.shape) > 1 and any(n is None or n > 1 for n in self.shape[1:])


@dataclass(frozen=True)
class InputSpec:
    """The input that a model takes: a batch [N, H, W, C] or [N, C, H, W] of `dtype`."""

    size: tuple[int | None, ...] | None
    """(H, W), None for a side of any length; None where the model takes any size."""
    channels: int = 3
    """0 for a model of grey images that takes [N, H, W]. The core gives it a channel axis of one all the same."""
    layout: Layout = "channels_first"
    dtype: str = "float32"
    preprocessing: Preprocessing | None = None
    """None: the model does not declare one."""
    fixed: bool = False
    """Whether the model takes `size` and no other; a side that is None remains open."""
    channels_known: bool = True
    """False where `channels` is a guess, which the first run of the model may correct."""
    needs: Preprocessing | None = None
    """The preprocessing that the model's own scaling needs, where it scales its input: any other scales images twice."""
    axes: int | None = None
    """The number of spatial axes where `size` is None: 1 for signals, 2 for images, 3 for volumes; None: not known."""

    fit: Fit | None = None
    """How images fit the size; None: the model does not state it, and they are stretched."""

    @property
    def rank(self) -> int | None:
        """The number of spatial axes; None where it is not known."""
        return self.axes if self.size is None else len(self.size)


@dataclass(eq=False)
class Trace:
    """The result of a forward pass, at a layer where it was opened.

    Attributes:
        outputs: raw scores (logits) wherever the backend can find them, [N, …], or a mapping of such arrays.
        activations: [N, C, *spatial] float32, always channels first; tokens are [N, C, T].
        gradients: one [N, C, *spatial] float32 for each cotangent that `cotangents` returned.
        state: private to the backend: what `resume` needs in addition to the activations.
    """

    outputs: Outputs
    activations: Array
    gradients: list[Array] = field(default_factory=list)
    state: Any = None
    by_channel: bool = False
    """Whether the gradients are means over each channel, repeated at all its positions, and the true ones differ there."""


@runtime_checkable
class Model(Protocol):
    """A model as the core uses it. Every backend's `load` returns one. See `abilities` for optional members.

    A backend raises MemoryError for exhausted memory, instead of the framework's own error: the core then halves the
    batch.
    """

    name: str
    backend: str
    input: InputSpec
    labels: Sequence[str] | None
    capabilities: frozenset[Capability]
    notes: Sequence[str]
    """Facts that a reader of a heatmap must know, for example that the weights are random."""

    @property
    def output_activation(self) -> Activation:
        """The activation that is cut off the outputs."""

    @property
    def layers(self) -> Sequence[Layer]:
        """Every layer that can be explained, in execution order."""

    def predict(self, x: Array) -> Outputs:
        """Run one forward pass over a batch `x`, given as the model itself takes it."""

    def activations(self, x: Array, layers: Sequence[str]) -> Mapping[str, Array]:
        """Return the values of several layers, [N, C, *spatial] each, from ONE forward pass."""

    @overload
    def trace(self, x: Array, layer: str, cotangents: Cotangents | None = None) -> Trace: ...
    @overload
    def trace(self, x: Array, layer: Names, cotangents: Cotangents | None = None) -> list[Trace]: ...
    def trace(self, x: Array, layer: str | Names, cotangents: Cotangents | None = None) -> Trace | list[Trace]:
        """Run ONE forward pass; for each cotangent v compute ∂⟨v, outputs⟩/∂activations.

        Args:
            x: a batch as the model itself takes it.
            layer: the name of a layer; or several names: a list with a Trace for each, from one backward pass for each
                cotangent. Each has the gradient of a pass opened at its layer alone, also where one layer is behind
                another.
            cotangents: called once with the outputs; returns M cotangents.
        """

    @overload
    def resume(
        self,
        trace: Trace,
        activations: Array,
        rows: Sequence[int] | None = None,
        cotangents: Cotangents | None = None,
        at: str | None = None,
    ) -> Trace: ...
    @overload
    def resume(
        self,
        trace: Trace,
        activations: Array,
        rows: Sequence[int] | None = None,
        cotangents: Cotangents | None = None,
        *,
        at: Names,
    ) -> list[Trace]: ...
    def resume(
        self,
        trace: Trace,
        activations: Array,
        rows: Sequence[int] | None = None,
        cotangents: Cotangents | None = None,
        at: str | Names | None = None,
    ) -> Trace | list[Trace]:
        """Run the tail behind the layer again, on `activations` [K, C, *spatial].

        Args:
            trace: a result of `trace` or `resume`.
            activations: K variants of the layer's value.
            rows: rows[k] is the row of `trace` that variant k belongs to; default: all 0 when the trace has one row,
                else row k for variant k.
            cotangents: as for `trace`.
            at: the layer of the returned Trace, or several, for a list; None: the layer of `trace`. Values and gradients
                are those of THIS run, in which the layer of `trace` has the value `activations`, a constant: gradients
                do not pass through it. A layer that is not computed from it keeps its value. The result can be resumed
                again, with the bypass values of this run.
        """


class Backend(Protocol):
    """The class that a plugin's `target` names. It is created without arguments."""

    def load(
        self,
        source: Any,
        *,
        size: tuple[int | None, int | None] | None = None,
        device: str | None = None,
        layout: Layout | None = None,
        weights: str | None = None,
    ) -> Model:
        """Load a model.

        Args:
            source: a pathlib.Path, a name that the backend knows, or a live model object.
            size: height and width, where the model takes any; one of them may be None: it follows the image's ratio.
            device: name of a device; None: the framework's default.
            layout: of the input and the layers, where the backend cannot find it out.
            weights: a file with weights, `imagenet` or `none`, for a model known by name.

        Raises:
            InputError: an argument cannot be used.
            ModelError: the model cannot be loaded.
        """
