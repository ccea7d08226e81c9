"""A batch of images explained by one method, and the inputs of measures computed from it. See xcam.evaluation.inputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np

from xcam.contract import Array, InputSpec, Layer, Model, Outputs, Trace, validation
from xcam.contract.preprocessing import PRESETS
from xcam.evaluation.inputs import Masks
from xcam.explanation import tokens
from xcam.explanation.context import MethodContext, cotangent, pick, stack
from xcam.explanation.inputs import input_size
from xcam.explanation.result import Explanation
from xcam.explanation.tokens import Grid
from xcam.images import batches, reading
from xcam.images.framing import Frame, frame
from xcam.methods import maps
from xcam.methods.registry import Method
from xcam.targets import BoxScore, ClassScore, Target


class LazySequence(Sequence[Any]):
    """A sequence whose items are computed on access: all maps and masks of large images would exceed the memory."""

    def __init__(self, function: Callable[[Any], Any], items: Sequence[Any]) -> None:
        self._function, self._items = function, items

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, k: Any) -> Any:
        return (
            LazySequence(self._function, self._items[k]) if isinstance(k, slice) else self._function(self._items[k])
        )


class ExplainedBatch:
    """Images, their maps, and the model: each public attribute is an input of measures, computed once when first used.

    Args:
        model: The model.
        layer: The explained layer.
        explanations: One for each image.
        masks: The object's mask for each image, or None.
        raw_maps: x in the model's own layout, rows → raw maps [K, h, w], before ReLU.
        spec: The input for the images in `explanations`; default: the model's own.
    """

    def __init__(
        self,
        model: Model,
        layer: Layer,
        explanations: Sequence[Explanation],
        masks: Masks,
        raw_maps: Callable[[Array, Sequence[int]], Array],
        spec: InputSpec | None = None,
    ) -> None:
        self._masks = masks
        self._explanations, self._raw_maps = explanations, raw_maps
        empty = Trace(np.empty(0), np.empty(0))
        spec = spec or model.input
        x = batch([e.image for e in explanations], spec)
        self._context = MethodContext(model, layer, Grid(), x, empty, [_measured(e) for e in explanations], 0)
        self._input_size = input_size(spec, explanations[0].image.shape)

    @cached_property
    def heatmap(self) -> Array:
        """The maps after ReLU at the size of the model's input, with a maximum of 1, [N, H, W]."""
        return self._enlarged(np.stack([e.cam for e in self._explanations]))

    @property
    def heatmaps(self) -> Sequence[Array]:
        """The heatmaps at the size of each image, N arrays [h, w]."""
        return LazySequence(
            lambda e: _frame(e).map_to_image(maps.normalize(e.positive[None])[0]),
            self._explanations,
        )

    @property
    def masks(self) -> Masks:
        """The object's mask for each image; None where it is unknown, or the model did not see any of the object."""
        return LazySequence(self._mask, range(len(self._explanations)))

    def _mask(self, k: int) -> Array | None:
        mask: Array | None = self._masks[k]
        return None if mask is None or not mask[_frame(self._explanations[k]).seen].any() else mask

    @property
    def x(self) -> Array:
        """The images as the model takes them, channels first, [N, channels, H, W]."""
        return self._context.x

    def score(self, x: Array, rows: Sequence[int]) -> Array:
        """Return the target's value [K] for changed images."""
        return self._context.forward(x, rows)

    @cached_property
    def clean(self) -> Array:
        """The target's value for the unchanged images, [N]."""
        return self.score(self.x, range(len(self.x)))

    @cached_property
    def _masked_x(self) -> Array:
        return self.x * self.heatmap[:, None].astype(self.x.dtype)

    @cached_property
    def masked(self) -> Array:
        """The target's value for the images seen through their maps, [N]; −∞ for an all-zero map."""
        visible = self.heatmap.any(axis=(1, 2))
        return np.where(visible, self.score(self._masked_x, range(len(self.x))), -np.inf)

    @cached_property
    def masked_heatmap(self) -> Array:
        """The maps of the images seen through their maps, [N, H, W]."""
        return self.explain(self._masked_x, range(len(self.x)))

    def explain(self, x: Array, rows: Sequence[int]) -> Array:
        """Return the maps [K, H, W] of changed images."""
        return self._enlarged(self._raw_maps(self._context._native(x), rows))

    def _enlarged(self, cams: Array) -> Array:
        """Return raw maps after ReLU, at the size of the model's input, with a maximum of 1."""
        large = np.stack([maps.resize(cam, self._input_size) for cam in maps.relu(cams)])
        return maps.normalize(large)  # after resizing, which lowers a peak between two cells


def _frame(e: Explanation) -> Frame:
    return e.frame or frame(e.image.shape, (1, 1), None)


def _measured(e: Explanation) -> Target:
    """Return the target to measure: the probability of a class, or the target itself."""
    if isinstance(e.target, ClassScore):
        return replace(e.target, score="probability").resolve(e.outputs[None])
    return replace(e.target, score="probability") if isinstance(e.target, BoxScore) else e.target


def cams(
    model: Model, layer: Layer, x: Array, targets: Sequence[Target], method: Method, options: Mapping[str, Any]
) -> Array:
    """Return the raw maps [N, h, w] of a batch, before ReLU. Where memory runs out, the batch is halved.

    Args:
        model: The model.
        layer: The layer to explain.
        x: Images in the model's own layout.
        targets: A resolved target for each image.
        method: The method.
        options: Its options.
    """

    def cotangents(outputs: Outputs) -> list[Outputs]:
        return [stack([cotangent(target, pick(outputs, [n])) for n, target in enumerate(targets)])]

    try:
        trace = validation.trace(model, x, layer, cotangents if "gradients" in method.inputs else None)
        grid = tokens.grid(layer, trace.activations.shape[-1], model.input, x.shape)
        return MethodContext(model, layer, grid, x, trace, targets, 0)(method, options)
    except MemoryError:
        if len(x) == 1:
            raise
    half = len(x) // 2
    return np.concatenate(
        [cams(model, layer, x[part], targets[part], method, options) for part in (slice(0, half), slice(half, None))]
    )


def batch(images: Sequence[reading.Image], spec: InputSpec) -> Array:
    """Return images as the model takes them. Where the model states no preprocessing, `explain` has warned of the default."""
    preprocessing = spec.preprocessing or PRESETS["unit" if spec.dtype.startswith("float") else "raw"]
    return batches.batch(images, spec, input_size(spec, images[0].shape), preprocessing)
