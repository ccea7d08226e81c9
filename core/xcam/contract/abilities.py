"""Optional abilities of a model, as protocols: members that a backend may add to those of `Model`.

A backend implements an ability by having its members; it inherits from nothing. The core asks with `supports`:

    if supports(model, ExportsOnnx):
        model.to_onnx(path)

The conformance suite (`xcam.testing`) checks every ability that a model has.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol, TypeGuard, TypeVar

from xcam.contract.quantization import Part, Range, Stretch
from xcam.contract.types import Array, Cotangents, Model

T = TypeVar("T")


class SupportsHvp(Model, Protocol):
    """Hessian-vector products at a layer, by differentiating twice. Declared by "hvp" in `capabilities`."""

    def hvp(self, x: Array, layer: str, cotangents: Cotangents, vectors: Sequence[Array]) -> list[Array]:
        """Return ∂²⟨v, outputs⟩/∂activations² times `vectors[m]` for each cotangent v, taken as a constant.

        Args:
            x: a batch as the model itself takes it.
            layer: name of a layer.
            cotangents: called once with the outputs; returns M cotangents.
            vectors: M arrays [N, C, *spatial].

        Returns:
            M float32 arrays [N, C, *spatial].
        """


class ExportsOnnx(Model, Protocol):
    """Conversion of the model to an ONNX file."""

    def to_onnx(self, path: Path) -> None:
        """Write the model as an ONNX file in which its layers can be found by their names.

        Raises:
            BackendError: the exporter is not installed.
            ModelError: the model cannot be converted.
            InputError: the file cannot be written.
        """


class ExportsSelfExplaining(Model, Protocol):
    """An ONNX file that returns the activations and gradients of a layer, and its own heatmap."""

    def export(self, path: Path, layer: str | None, heatmap: str | None, facts: Mapping[str, str]) -> None:
        """Write the model as an ONNX file that explains itself: see `xcam.export` for its inputs and outputs.

        Args:
            path: the file to write.
            layer: name of a layer; None: the default layer.
            heatmap: name of the method whose heatmap is an output; None for no heatmap.
            facts: further metadata to store in the file.

        Raises:
            ModelError: the model cannot be differentiated at the layer.
            InputError: the file cannot be written.
        """


class Randomizable(Model, Protocol):
    """Copies with shuffled weights, for the model-parameter randomisation test (Adebayo et al. 2018)."""

    @property
    def parameter_layers(self) -> Sequence[str]:
        """Names of the parts that have learnt weights, in execution order."""

    def with_shuffled_weights(self, parts: Sequence[str], seed: int = 0) -> Model:
        """Return a copy in which the learnt weights of `parts` are shuffled. The model itself is not changed.

        Each part has its own random generator (see `xcam.contract.shuffling`): the result for a part depends on
        `seed` and on the part's name, and not on which other parts are shuffled.

        Raises:
            InputError: a part is not one of `parameter_layers`.
            ModelError: the model cannot be copied.
        """


class NamesDefaultLayer(Model, Protocol):
    """A model that names the layer to explain when the caller names none."""

    default_layer: str | None
    """A layer's name; None: the core chooses."""


class ChoosesOutput(Model, Protocol):
    """A model with several outputs, any of which can be the one that targets read when they name none."""

    chosen_output: str | None
    """The name of the output that the caller chose; None: the model's first."""

    def with_output(self, name: str) -> Model:
        """Return a copy of which the output `name` is the first. The model itself is not changed.

        Raises:
            InputError: the model has no such output.
        """


class ExplainsMissingLayers(Model, Protocol):
    """A model that knows why a layer that its user may expect does not exist, for example after a conversion."""

    def explain_missing_layer(self, name: str) -> str | None:
        """Return one line with the reason and a remedy, or None where nothing is known about `name`."""


class RunsStretches(Model, Protocol):
    """Layers computed from given values at the layers ahead of them, without the errors of earlier layers."""

    @property
    def precision(self) -> str | None:
        """The type to which most layers or weights are reduced: `int8`, `uint8`, `float16`, …; None for float32."""

    def stretch_sources(self, layers: Sequence[str], known: Collection[str]) -> Collection[str]:
        """Return those of the layers `known` from which `layers` are computed: the nearest ahead of each."""

    def stretches(self, x: Array, values: Mapping[str, Array], layers: Sequence[str]) -> Mapping[str, Stretch]:
        """Compute each of `layers` from the values at the layers nearest ahead of it, in one forward pass.

        Args:
            x: a batch as the model itself takes it, for layers with none of `values` ahead on a path from the input.
            values: [N, C, *spatial] by the name of the layer.
            layers: names of layers. Where a layer is one of `values` too, it is computed all the same.
        """


class Mending(Protocol):
    """The parts of a model of reduced precision that the nodes of a float model can take over."""

    @property
    def parts(self) -> Sequence[Part]:
        """All parts, in execution order."""

    def nodes(self, parts: Collection[str]) -> list[str]:
        """Return the names of the float file's nodes that some parts consist of."""

    @property
    def pairs(self) -> Sequence[tuple[str, str]]:
        """The layers of the float model and of this one that have the same value, each value once."""

    def has_range(self, layer: str) -> bool:
        """Return whether the range of a value can be changed: by the float model's layer; "" for the input."""

    def run(
        self, parts: Collection[str], ranges: Mapping[str, Range], x: Array, values: Sequence[str]
    ) -> tuple[Array, dict[str, Array]]:
        """Run the model in which `parts` are in float.

        Args:
            parts: Their names.
            ranges: New ranges of quantised values, by the float model's layer.
            x: A batch as the model of reduced precision takes it.
            values: Names of the float model's layers, or of parts.

        Returns:
            The first output; and, in the mended model, the values [N, C, *spatial] of the layers and those that the parts
            compute.
        """

    def mended(
        self, parts: Collection[str], ranges: Mapping[str, Range], layers: Sequence[str] = (), quick: bool = False
    ) -> tuple[Model, dict[str, str | None]]:
        """Return the model in which `parts` are in float, and the names in it of some layers of the float model.

        Args:
            parts: Their names.
            ranges: New ranges of quantised values, by the float model's layer; by "" for the input.
            layers: Names of the float model's layers.
            quick: The layers of `layers` are described as in the float model, and no layer is probed.

        Raises:
            ModelError: A range cannot be changed.
        """

    def write(self, path: Path, parts: Collection[str], ranges: Mapping[str, Range]) -> None:
        """Write this model to a file, its weights next to it where the file would be too large."""

    def size(self, parts: Collection[str], ranges: Mapping[str, Range]) -> int:
        """Return the size of this model in bytes."""


class Mends(Model, Protocol):
    """A model of reduced precision that can be mended with the float model it was made from."""

    def mending(self, reference: Model, pairs: Sequence[tuple[str, str]]) -> Mending:
        """Return the parts that the float model can take over.

        Args:
            reference: The float model.
            pairs: Names of layers of the float model and of this one that have the same values.

        Raises:
            InputError: The float model is not a file of the same kind.
            ModelError: The models have no quantised part in common.
        """


class DisablesSpinning(Model, Protocol):
    """A runtime whose idle threads spin, which costs time when other threads need the cores."""

    def disable_spinning(self) -> None:
        """Let idle threads sleep from now on: other threads decode images at the same time."""


class ExplainsInTraining(Model, Protocol):
    """A model that is explained while it is trained, without effects on the training."""

    def is_live(self, source: object) -> bool:
        """Return whether this model runs `source` itself: changes of its weights count, as nothing is copied."""

    def random_state(self) -> AbstractContextManager[None]:
        """Return a context that restores the random states of the framework and of the model when it ends."""


def supports(model: object, ability: Callable[..., T]) -> TypeGuard[T]:
    """Return whether `model` has the members of an ability. No property is evaluated.

    Args:
        model: any object.
        ability: one of this module's protocols.
    """
    if ability is SupportsHvp and "hvp" not in getattr(model, "capabilities", ()):
        return False
    attributes = vars(ability)
    return all(
        callable(getattr(model, name, None)) if callable(attributes.get(name)) else has_member(model, name)
        for name in members(ability)
    )


def members(protocol: Any) -> list[str]:
    """Return the names of a protocol's public members, without inherited ones."""
    return [name for name in (*protocol.__annotations__, *vars(protocol)) if not name.startswith("_")]


def has_member(value: object, name: str) -> bool:
    """Return whether an object has a member, without evaluating it where it is a property.

    Python 3.11's `isinstance` with a runtime-checkable protocol evaluates every property.
    """
    return hasattr(type(value), name) or name in getattr(value, "__dict__", ()) or hasattr(value, name)
