"""Two models on one image, of which one is given values of the other at its layers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from xcam.comparison import inputs
from xcam.comparison.alignment import error
from xcam.comparison.blame.locations import Location
from xcam.comparison.blame.measure import ScoreDifference
from xcam.comparison.similarity import compared_size, correlation
from xcam.contract import Array, Cotangents, InputSpec, Layer, Model, Outputs, Trace, like, one_output, validation
from xcam.explanation.checks import check_finite
from xcam.explanation.context import MethodContext, cotangent, pick, stack
from xcam.explanation.fitting import fitted_grid
from xcam.explanation.run import resolved
from xcam.explanation.settings import Settings
from xcam.images import reading
from xcam.images.framing import frame
from xcam.methods import maps
from xcam.targets import Target


@dataclass(frozen=True)
class Side:
    """One of the two models, with its input and its explained layer."""

    model: Model
    spec: InputSpec
    layer: Layer
    columns: Array | None = None
    """The indices of the class scores that are compared, in their order; None: all."""


class Run:
    """A model on one image, opened at several layers in one forward pass."""

    def __init__(
        self,
        side: Side,
        image: reading.Image,
        target: Target,
        settings: Settings,
        layers: Sequence[Layer],
        direction: Callable[[Array], Array] | None = None,
    ) -> None:
        """Run the model.

        Args:
            side: The model.
            image: RGB uint8 [H, W, 3].
            target: What is explained; its class is fixed on the outputs of this run.
            settings: The method and its options.
            layers: The layers at which values are read and swapped, in addition to the explained one.
            direction: A function from the compared class scores [K] to a vector v [K], for the gradients of ⟨v, scores⟩ at all
                layers.
        """
        self.side, self.settings, self.target = side, settings, target
        self.x = inputs.batch(side.spec, [image])
        axis = 1 if side.spec.layout == "channels_last" else 2
        size = self.x.shape[axis], self.x.shape[axis + 1]
        self._frame = frame(image.shape, size, side.spec.fit).resized(compared_size(image.shape))
        opened = {layer.name: layer for layer in (*layers, side.layer)}
        cotangents = None if direction is None else self._cotangents_of_scores(direction)
        traces = validation.trace(side.model, self.x, list(opened.values()), cotangents)
        self.traces: dict[str, Trace] = dict(zip(opened, traces, strict=True))
        explained = self.traces[side.layer.name]
        self.outputs = explained.outputs
        self.target = resolved(target, self.outputs, side.model)
        self.scores = self._scores(self.outputs)
        check_finite(self.x, explained, side.model, side.layer)
        self._grid = fitted_grid(side.model, side.layer, explained, side.spec, self.x.shape, 2)
        self.cam = self._cam(explained)
        self.heatmap = self._resized(self.cam)

    def value(self, name: str) -> Array:
        """Return the value of a layer [1, C, *spatial]."""
        return self.traces[name].activations

    def open(self, start: Layer | None, layers: Sequence[Layer]) -> list[Layer]:
        """Open this run at more layers, which are behind `start`; None: the input. Return those at which it was not open."""
        missing = [layer for layer in layers if layer.name not in self.traces]
        if not missing:
            return []
        if start is None:
            traces = validation.trace(self.side.model, self.x, missing)
        else:
            trace = self.traces[start.name]
            traces = validation.resume(self.side.model, trace, trace.activations, at=missing)
        self.traces |= {layer.name: trace for layer, trace in zip(missing, traces, strict=True)}
        return missing

    def close(self, layers: Sequence[Layer]) -> None:
        """Forget the values at layers."""
        for layer in layers:
            self.traces.pop(layer.name, None)

    def swapped(self, trace: Trace, value: Array, at: Sequence[Layer], with_heatmap: bool) -> Swap:
        """Run the tail behind a layer on another value.

        Args:
            trace: A trace of this run or of a swap, at that layer.
            value: [1, C, *spatial].
            at: The layers whose values in that run are read.
            with_heatmap: Whether the explained layer is that layer or behind it, so that its heatmap is computed.
        """
        model, explained = self.side.model, self.side.layer
        opened = {layer.name: layer for layer in (*at, *([explained] if with_heatmap else []))}
        if opened:
            traces = validation.resume(model, trace, value, at=list(opened.values()))
            results, outputs = dict(zip(opened, traces, strict=True)), traces[0].outputs
        else:
            results, outputs = {}, validation.resume(model, trace, value).outputs
        heatmap = self._resized(self._cam(results[explained.name])) if with_heatmap else None
        return Swap(self._scores(outputs), heatmap, results)

    def _cam(self, trace: Trace) -> Array:
        """Return the raw map at a trace of the explained layer."""
        method = self.settings.method
        if (
            "gradients" in method.inputs
        ):  # the short tail behind it only: a gradient at earlier layers would cost more
            trace = validation.resume(
                self.side.model,
                trace,
                trace.activations,
                cotangents=lambda outputs: [self._cotangent(outputs)],
                at=self.side.layer,
            )
        context = MethodContext(self.side.model, self.side.layer, self._grid, self.x, trace, [self.target], 0)
        return context(method, self.settings.method_options)[0]

    def _cotangent(self, outputs: Outputs) -> Outputs:
        return stack([cotangent(self.target, pick(outputs, [0]))])

    @property
    def drawn_heatmap(self) -> Array:
        """The heatmap; NaN where the model did not see the image."""
        return np.where(self._frame.mask, self.heatmap, np.float32(np.nan))

    def _resized(self, cam: Array) -> Array:
        return self._frame.map_to_image(maps.normalize(maps.relu(cam)[None], self.settings.normalize)[0])

    def _scores(self, outputs: Outputs) -> Array:
        """Return the compared class scores, float64 [K]."""
        scores = np.ravel(one_output(outputs, getattr(self.target, "output", None))).astype(np.float64)
        return scores if self.side.columns is None else scores[self.side.columns]

    def _cotangents_of_scores(self, direction: Callable[[Array], Array]) -> Cotangents:
        def cotangents(outputs: Outputs) -> list[Outputs]:
            name = getattr(self.target, "output", None)
            value = one_output(outputs, name)
            whole = np.zeros(value.size, value.dtype)
            whole[slice(None) if self.side.columns is None else self.side.columns] = direction(self._scores(outputs))
            return [like(outputs, whole.reshape(value.shape), name)]

        return cotangents


@dataclass(frozen=True)
class Swap:
    """A model in which one layer had another value."""

    scores: Array
    """The compared class scores, float64 [K]."""
    heatmap: Array | None
    """[h, w]; None where it was not computed."""
    traces: dict[str, Trace]
    """A trace of that run at each layer that was asked for."""


@dataclass(frozen=True)
class Walk:
    """The difference at the end that is left, along a series of locations. One image."""

    errors: tuple[float, ...]
    """The local error of each stretch: relative to the largest magnitude."""
    scores: tuple[float, ...]
    """The difference of the class scores where the first model's value is at the input, at each location, at the output."""
    heatmap: tuple[float, ...]
    """The same in lost correlation; NaN behind the explained layer."""


@dataclass(frozen=True)
class Pair:
    """Both models on one image."""

    first: Run
    second: Run
    explained: int
    """The position of the explained layer among the layers of the second model; locations behind it change no heatmap."""
    in_first: bool = False
    """Whether contributions are those of the second model's values in the first model, instead of the other way round."""

    @cached_property
    def measure(self) -> ScoreDifference:
        """The difference of class scores from those of the first model."""
        return ScoreDifference(self.first.scores, self.second.scores)

    @property
    def lost(self) -> float:
        """The lost correlation of the heatmaps."""
        return lost_correlation(self.first.heatmap, self.second.heatmap)

    def has_heatmap(self, location: Location) -> bool:
        """Return whether the heatmap follows from the value at a location."""
        return location.positions[1] <= self.explained

    @property
    def whole(self) -> tuple[float, float]:
        """The whole difference of the class scores and of the heatmaps."""
        return self.measure(self.second.scores), self.lost

    def walk(self, locations: Sequence[Location]) -> Walk:
        """Put the first model's value into the second at each of the locations, through which everything passes.

        With `in_first`, the differences that are left are those of the opposite direction; the errors are the same.
        """
        states = [self.whole]
        errors = []
        local = self.second.value(locations[0].second.name) if locations else self.second.scores
        for k, location in enumerate(locations):
            value = self.first.value(location.first.name)
            errors.append(error(value, local))
            at = [each.second for each in locations[k + 1 : k + 2]]
            swap = self.second.swapped(
                self.second.traces[location.second.name], value, at, self.has_heatmap(location)
            )
            states.append(self.opposite(location, False) if self.in_first else self._state(swap))
            local = swap.traces[at[0].name].activations if at else swap.scores
        errors.append(error(self.first.scores, local))
        states.append((0.0, 0.0))
        return Walk(tuple(errors), *_columns(states))

    def chain(
        self, start: Location | None, inner: Sequence[Location], end: Location | None, in_first: bool = False
    ) -> Walk:
        """Put one model's values into the other one after another: each on top of those before it.

        Therefore each value is computed from the other model's values at all layers ahead of it, whichever way they reach it.

        Args:
            start: The location at the start of the stretch; None: the input.
            inner: The locations within the stretch, in the order of the second model.
            end: The location at its end; None: the output.
            in_first: Whether the second model's values are put into the first, instead of the other way round.

        Returns:
            The walk from the start to the last of `inner`; the errors include that of the end.
        """
        source, changed = (self.second, self.first) if in_first else (self.first, self.second)
        opened = [_sides(location, in_first) for location in (*inner, *([end] if end else []))]
        scores, traces = changed.scores, changed.traces
        states = [self.whole]
        errors = []
        steps = [*([start] if start else []), *inner]
        for k, location in enumerate(steps, 0 if start is None else -1):
            layer, other = _sides(location, in_first)
            value, trace = source.value(other.name), traces[layer.name]
            if k >= 0:
                errors.append(error(value, trace.activations))
            at = [layer for layer, _ in opened[k + 1 : k + 2]]
            swap = changed.swapped(trace, value, at, self.has_heatmap(location))
            states.append(self._left(swap) if in_first else self._state(swap))
            scores, traces = swap.scores, swap.traces
        states = states[1:] if start else states
        last = (source.scores, scores)
        if end is not None:
            layer, other = _sides(end, in_first)
            last = source.value(other.name), traces[layer.name].activations
        return Walk((*errors, error(*last)), *_columns(states))

    def opposite(self, location: Location, in_first: bool) -> tuple[float, float]:
        """Return the differences that are left in the direction opposite to `in_first`, in class scores and in the heatmap."""
        source, changed = (self.first, self.second) if in_first else (self.second, self.first)
        layer, other = _sides(location, not in_first)
        swap = changed.swapped(changed.traces[layer.name], source.value(other.name), [], self.has_heatmap(location))
        return self._state(swap) if in_first else self._left(swap)

    def _state(self, swap: Swap) -> tuple[float, float]:
        lost = float("nan") if swap.heatmap is None else lost_correlation(self.first.heatmap, swap.heatmap)
        return self.measure(swap.scores), lost

    def _left(self, swap: Swap) -> tuple[float, float]:
        """Return the whole difference without that of a first model with values of the second."""
        scores, heatmap = self._state(swap)
        return self.whole[0] - scores, self.whole[1] - heatmap


def _sides(location: Location, in_first: bool) -> tuple[Layer, Layer]:
    """Return the layer of the model that is changed, and that of the other."""
    return (location.first, location.second) if in_first else (location.second, location.first)


def lost_correlation(a: Array, b: Array) -> float:
    """Return 1 − the correlation of two maps of one size."""
    return 1.0 - correlation(a, b)


def _columns(states: Sequence[tuple[float, float]]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    scores, heatmap = zip(*states, strict=True)
    return tuple(scores), tuple(heatmap)
