"""The probe: how the values of a layer follow changes of the image, measured before a layer is trusted.

Two images form a batch, and the second one is changed in a patch: at the upper right, then at the lower left. From three
forward passes the probe derives for each layer

- whether its value depends on the image at all (a reference branch of a siamese network does not),
- the axis of the batch: changes appear in one of its two rows (tokens first, batch second),
- the axes of space: the change moves down and to the left along them (channels first or last; heads of attention or
  channels that were mixed with positions are not a map),
- for tokens, whether they are stored row by row. Where they are not, further passes read the order: the patches whose
  index has a given bit are changed, one bit after the other.

Names, shapes and classes of layers are only hints.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from xcam.contract.layouts import MOST_EXTRA, shape_to_channels_first, token_grid
from xcam.contract.types import Array, InputSpec, Layer, Layout

Values = Callable[[Array, Sequence[str]], Sequence[Array]]
"""A batch and names of layers → the layers' values in the framework's own order, from one forward pass."""

BUDGET = 2**30
"""Bytes of layer values that are kept at once. Larger models are probed in groups of layers."""
FRACTION = 8
"""The changed patch has this fraction of the image's height and width."""
LOW, HIGH = 1, 5
"""The bands of the image, of FRACTION along an axis, in which the patches are. Windows of two or four positions, stored one
after the other, do not map these patches to themselves."""
CLEAR = 0.1
"""A shift of a change along an axis, as a fraction of the axis, that is clear evidence; the patches are half an image apart."""
PEAK = 8
"""A change of tokens is local where its largest value exceeds the mean by this factor; attention may spread it evenly."""
NOISE = 0.02
"""A shift along an axis that is not evidence."""
FEW = 36
"""Tokens; the change of fewer is where the image changed by chance too often."""
TALL = 4
"""The largest ratio of the scales of a map's axes, where one of them has more positions than the image."""
ROUNDING = 1e-6
"""A change up to this fraction of a value's largest magnitude is rounding: kernels may sum in another order."""


@dataclass(frozen=True)
class Change:
    """The squared change of a layer's value, summed over all other axes, for each axis in the framework's order."""

    profiles: tuple[Array, ...]

    @property
    def any(self) -> bool:
        """Whether any value changed."""
        return bool(self.profiles) and bool(self.profiles[0].sum() > 0)


def probed(
    layers: Mapping[str, Layer],
    values: Values,
    spec: InputSpec,
    shape: Sequence[int],
    rows: int,
    layout: Layout | None = None,
) -> dict[str, Layer]:
    """Return layers with the facts that a probe of the model shows.

    Args:
        layers: The layers by name, as the backend describes them. Their layouts are hints.
        values: Runs the model.
        spec: The model's input.
        shape: The shape of one input without the batch.
        rows: The batch size: 2, or 1 for a model that takes one image at a time.
        layout: The layout that the caller states for all layers, which is not questioned.

    Returns:
        The same layers in the same order, with `shape`, `layout`, `batch_axis`, `depends_on_input`, `folds_batch`,
        `has_map` and `order` as measured.
    """
    images = Images(spec, shape, rows)
    space = images.space
    result = dict(layers)
    for names in _groups(layers, rows):
        clean = values(images.clean, names)
        changes = [_changes(clean, values(images.patched(k), names)) for k in range(2)]
        for name, value, first, second in zip(names, clean, *changes, strict=True):
            measured = _measured(layers[name], value, (first, second), rows, space)
            result[name] = replace(measured, **_stated(layers[name])) if layout else measured
        silent = [name for name in names if result[name].depends_on_input is False]
        if silent and rows == 1:  # two images cannot be compared: the layer may see a part without the patches
            others = values(images.masked(np.ones(space, bool)), silent)
            for name, value in zip(silent, others, strict=True):
                if not _equal(value, clean[names.index(name)]):
                    result[name] = layers[name]
    _read_orders(result, values, images)
    return result


def _stated(layer: Layer) -> dict[str, Any]:
    return {"layout": layer.layout, "shape": layer.shape, "has_map": True, "order": None}


class Images:
    """Images of noise, and their variants.

    Args:
        spec: The model's input.
        shape: The shape of one input.
        rows: The batch size, 1 or 2. The last row is changed.
    """

    def __init__(self, spec: InputSpec, shape: Sequence[int], rows: int) -> None:
        self._spec = spec
        channel = len(shape) - 1 if spec.layout == "channels_last" else 0
        self._axes = [i for i in range(len(shape)) if i != channel or not spec.channels]
        self.space = tuple(shape[i] for i in self._axes)
        """The size of the image: (H, W), or of another number of axes."""
        rng = np.random.default_rng(0)
        self._pixels = rng.uniform(0, 255, size=(rows, *shape))
        self._others = 255 * (rng.uniform(size=shape) > 0.3)
        self.clean = self._input(self._pixels)

    def patched(self, k: int) -> Array:
        """Return the images with a changed patch, at the upper right (k = 0) or at the lower left (k = 1)."""
        low, high = ([self._band(n, begin) for n in self.space] for begin in (LOW, HIGH))
        bands = [(low if (i + k) % 2 == 0 else high)[i] for i in range(len(self.space))]
        mask = np.zeros(self.space, bool)
        mask[tuple(bands)] = True
        return self.masked(mask)

    def masked(self, mask: Array) -> Array:
        """Return the images with other pixels in the last row where a mask over space is True."""
        whole = np.expand_dims(mask, [i for i in range(self._pixels.ndim - 1) if i not in self._axes])
        pixels = self._pixels.copy()
        pixels[-1] = np.where(whole, self._others, pixels[-1])
        return self._input(pixels)

    def halves(self, mask: Array | None) -> Array:
        """Return the last image, and before it the same one; changed inside and outside of a mask over space."""
        pixels = self._pixels.copy()
        pixels[:] = pixels[-1]
        if mask is not None:
            axes = [i for i in range(self._pixels.ndim - 1) if i not in self._axes]
            for row, half in zip(range(-1, -1 - min(2, len(pixels)), -1), (mask, ~mask), strict=False):
                pixels[row] = np.where(np.expand_dims(half, axes), self._others, pixels[row])
        return self._input(pixels)

    @staticmethod
    def _band(size: int, begin: int) -> slice:
        start = size * begin // FRACTION
        return slice(start, max(start + 1, size * (begin + 1) // FRACTION))

    def _input(self, pixels: Array) -> Array:
        """Return pixels as the model takes them."""
        dtype = np.dtype(self._spec.dtype)
        if not np.issubdtype(dtype, np.floating):
            return pixels.astype(dtype)
        preprocessing = self._spec.preprocessing
        if preprocessing is None or {len(preprocessing.mean), len(preprocessing.std)} - {1, self._spec.channels}:
            return (pixels / 64 - 2).astype(dtype)  # the range that most networks take
        return preprocessing(pixels, axis=-1 if self._spec.layout == "channels_last" else 1).astype(dtype)


def _groups(layers: Mapping[str, Layer], rows: int) -> Iterator[list[str]]:
    """Yield groups of layers whose values fit in memory; vectors do not need a probe."""
    group: list[str] = []
    size = 0.0
    for name, layer in layers.items():
        if len(layer.shape) < 2:
            continue
        needed = 8.0 * rows * np.prod([n or 1 for n in layer.shape], dtype=float)
        if group and size + needed > BUDGET:
            yield group
            group, size = [], 0
        group.append(name)
        size += needed
    if group:
        yield group


def _changes(clean: Sequence[Array], changed: Sequence[Array]) -> list[Change | None]:
    """Return the change of each value; None where the shapes differ."""
    return [_change(a, b) for a, b in zip(clean, changed, strict=True)]


def _change(clean: Array, changed: Array) -> Change | None:
    if clean.shape != changed.shape:
        return None
    with np.errstate(invalid="ignore", over="ignore"):
        difference = np.subtract(changed, clean, dtype=np.float32)
        largest = max(float(difference.max(initial=0.0)), -float(difference.min(initial=0.0)))
        if not np.isfinite(largest):
            difference = np.nan_to_num(difference, copy=False, nan=0.0, posinf=0.0, neginf=0.0)
            largest = float(np.abs(difference).max(initial=0.0))
    if not largest > ROUNDING * float(np.abs(clean, dtype=np.float32).max(initial=0.0)):
        return Change(tuple(np.zeros(n) for n in clean.shape))
    if not 1e-12 < largest < 1e12:  # untrained networks have values whose squares are zero in float32
        difference = difference / np.float32(largest)
    # Two passes over the values instead of one for each axis: the sums over the last axes, and over the first ones.
    axes = "abcdefghij"[: difference.ndim]
    half = len(axes) // 2
    profiles = []
    for kept in (axes[:half], axes[half:]):
        energy = np.einsum(f"{axes},{axes}->{kept}", difference, difference).astype(np.float64)
        for k in range(len(kept)):
            profiles.append(energy.sum(axis=tuple(i for i in range(len(kept)) if i != k)))
    return Change(tuple(profiles))


def _measured(
    layer: Layer, value: Array, changes: tuple[Change | None, Change | None], rows: int, space: tuple[int, ...]
) -> Layer:
    """Return a layer with the facts that its changes show."""
    first, second = changes
    if first is None or second is None or value.ndim < 3:
        return layer
    if not (first.any or second.any):
        differs = rows > 1 and len(value) == rows and not _equal(value[0], value[-1])  # a crop of the image
        dead = not value.any()  # behind a ReLU that is zero for both images, and need not be for others
        known = layer.depends_on_input is not None  # a saturated layer may be constant on these images alone
        layer = layer if differs or dead or known else replace(layer, depends_on_input=False)
        return _by_shape(layer, space)
    axis = _batch_axis(value.shape, [change for change in changes if change and change.any], rows)
    if axis is None:
        return replace(layer, folds_batch=True)
    layer = replace(layer, batch_axis=axis, folds_batch=False, depends_on_input=True)
    shape = tuple(n for i, n in enumerate(value.shape) if i != axis)
    if axis and len(shape) == 2 == len(space):  # the backend took the tokens for the batch
        layer = replace(layer, layout="tokens")
    layer = replace(layer, shape=shape_to_channels_first(shape, layer.layout))
    profiles = [tuple(p for i, p in enumerate(change.profiles) if i != axis) for change in (first, second)]
    if not (first.any and second.any):
        return _by_shape(layer, space)
    if len(space) != 2:
        return _signal_or_volume(layer, shape, profiles, len(space))
    if len(shape) == 2:
        return _tokens(layer, shape, profiles, space)
    return _map(layer, shape, profiles, space) if len(shape) == 3 else replace(layer, has_map=False)


def _by_shape(layer: Layer, space: Sequence[int]) -> Layer:
    """Return a layer whose changes show nothing, without a map where its shape excludes one."""
    if len(space) != 2 or None in layer.shape or len(layer.shape) < 2:
        return layer
    if len(layer.shape) == 2:
        has_map = token_grid(layer.shape[1] or 0, (space[0], space[1])) is not None
        layer = replace(layer, order=SILENT) if has_map and layer.depends_on_input is not False else layer
    else:
        has_map = len(layer.shape) == 3 and _is_possible([n or 1 for n in layer.shape[1:]], space)
    return layer if has_map else replace(layer, has_map=False)


def _equal(a: Array, b: Array) -> bool:
    return bool(np.array_equal(a, b, equal_nan=True))


def _batch_axis(shape: Sequence[int], changes: Sequence[Change], rows: int) -> int | None:
    """Return the axis along which only the last of `rows` entries changed; None where there is none."""
    if rows == 1:
        return 1 if shape[0] > 1 and shape[1] == 1 else 0 if shape[0] == 1 else None

    def is_batch(axis: int) -> bool:
        profiles = [change.profiles[axis] for change in changes]
        return shape[axis] == rows and all(p[:-1].sum() <= 1e-6 * p[-1] for p in profiles)

    return next((axis for axis in range(len(shape)) if is_batch(axis)), None)


def _shift(first: Array, second: Array) -> float:
    """Return how far the change moved along an axis between the two patches, as a fraction of the axis."""
    if len(first) < 2:
        return 0.0
    position = np.linspace(0, 1, len(first))
    return float(second @ position / second.sum() - first @ position / first.sum())


def fits(grid: Sequence[int], space: Sequence[int]) -> bool:
    """Return whether a grid (h, w) has about the ratio of the image (H, W), with room for cut or padded borders."""
    (h, w), (height, width) = grid, space
    expected = w * height / width
    return abs(h - expected) <= max(1.5, 0.35 * max(h, expected))


def _is_possible(grid: Sequence[int], space: Sequence[int]) -> bool:
    """Return whether a grid may be that of a map: the list of a detector's boxes is longer than the image along one axis."""
    scales = [n / size for n, size in zip(grid, space, strict=True)]
    return max(scales) <= 1 or max(scales) <= TALL * min(scales)


def _map(layer: Layer, shape: tuple[int, ...], profiles: Sequence[Sequence[Array]], space: tuple[int, ...]) -> Layer:
    """Return a layer of three axes with the layout in which the change moves as the patches do."""
    if sum(n > 1 for n in shape) < 2:  # a pooled vector: nothing moves in space, and its channels do so by chance
        return layer
    shifts = [_shift(a, b) for a, b in zip(*profiles, strict=True)]
    spatial: dict[Layout, tuple[int, int]] = {"channels_first": (1, 2), "channels_last": (0, 1)}
    strength = {}
    for layout, (rows, columns) in spatial.items():
        down, left = (sign * shifts[i] for sign, i in ((1, rows), (-1, columns)))
        along = [shift for shift, i in ((down, rows), (left, columns)) if shape[i] > 1]
        across = abs(shifts[0 if layout == "channels_first" else 2])
        strength[layout] = min(along, default=0.0)
        if max(along, default=0.0) > CLEAR and strength[layout] < (NOISE if down > left else -NOISE):
            # Only one axis follows the image: tokens, and not rows and columns. Tokens row by row move as rows do.
            strength[layout] = -max(along)
        if across > max(CLEAR, 2 * abs(strength[layout])):
            strength[layout] = -across  # positions are in the channels
        if not _is_possible((shape[rows], shape[columns]), space):
            strength[layout] = -1.0
    fitting = [layout for layout, axes in spatial.items() if fits([shape[i] for i in axes], space)]
    stated: Layout = "channels_first" if layer.layout == "tokens" else layer.layout
    best = max(strength, key=lambda layout: (strength[layout], layout == stated))
    if strength[best] > NOISE and strength[stated] < strength[best] / 2:
        chosen: Layout | None = best if best in fitting or strength[best] > CLEAR else None
    elif stated in fitting or strength[stated] > CLEAR:
        chosen = stated
    else:
        chosen = next(iter(fitting), None)
    if chosen is None or strength[chosen] < -CLEAR:
        return replace(layer, has_map=False)
    return replace(layer, layout=chosen, shape=shape_to_channels_first(shape, chosen))


def _signal_or_volume(layer: Layer, shape: tuple[int, ...], profiles: Sequence[Sequence[Array]], rank: int) -> Layer:
    """Return a layer of a model of signals or volumes with the layout in which the change moves as the patches do."""
    if len(shape) != rank + 1:
        extra = len(layer.shape) - 1 - rank
        is_flat = extra > 0 and all(n == 1 for n in layer.shape[1 : 1 + extra])  # signals as images of one row
        return layer if is_flat else replace(layer, has_map=False)
    shifts = [_shift(a, b) for a, b in zip(*profiles, strict=True)]

    def strength(first: int) -> float:
        """Return the smallest movement along the axes from `first` on, in the direction of the patches."""
        moved = [shifts[first + i] * (-1) ** i for i in range(rank) if shape[first + i] > 1]
        return min(moved, default=0.0)

    strengths: dict[Layout, float] = {"channels_first": strength(1), "channels_last": strength(0)}
    other: Layout = "channels_last" if layer.layout == "channels_first" else "channels_first"
    if strengths[other] > CLEAR and strengths.get(layer.layout, 0.0) < strengths[other] / 2:
        return replace(layer, layout=other, shape=shape_to_channels_first(shape, other))
    return layer


def _tokens(
    layer: Layer, shape: tuple[int, ...], profiles: Sequence[Sequence[Array]], space: tuple[int, ...]
) -> Layer:
    """Return a layer of two axes, in the layout in which its tokens follow the image; `order` marks a doubtful order."""
    stated: Layout = "channels_first" if layer.layout == "channels_first" else "tokens"
    exchanged: Layout = "tokens" if stated == "channels_first" else "channels_first"
    if 1 in shape:  # one token, or one channel: nothing to distinguish
        return replace(layer, layout=stated, shape=shape_to_channels_first(shape, stated))
    for layout in (stated, exchanged):
        order = _token_order(0 if layout == "tokens" else 1, shape, profiles, space)
        if order is not None and (layout == stated or order is LOCAL):
            shape_first = shape_to_channels_first(shape, layout)
            return replace(layer, layout=layout, shape=shape_first, order=order)
    return replace(layer, layout=stated, shape=shape_to_channels_first(shape, stated), has_map=False)


def _token_order(
    axis: int, shape: tuple[int, ...], profiles: Sequence[Sequence[Array]], space: tuple[int, ...]
) -> tuple[int, ...] | None:
    """Return LOCAL, CONFIRMED, UNREAD or DOUBTFUL for tokens along an axis; None where they do not follow the image."""
    grid = token_grid(shape[axis], (space[0], space[1]))
    if grid is None:
        return None
    extra, size = grid
    maps = [profile[axis][extra:].reshape(size) for profile in profiles]
    if not all(m.any() for m in maps):
        return DOUBTFUL
    rows, columns = (_shift(*(m.sum(axis) for m in maps)) for axis in (1, 0))
    strength = min([s for s, n in ((rows, size[0]), (-columns, size[1])) if n > 1], default=0.0)
    along_channels = abs(_shift(*(profile[1 - axis] for profile in profiles)))
    if along_channels > max(CLEAR, 2 * abs(strength)):
        return None  # channels and positions are exchanged
    if strength > NOISE and all(_peaks_right(m, k) for k, m in enumerate(maps)):
        return LOCAL
    if all(m.max() > PEAK * m.mean() for m in maps):
        return UNREAD
    return CONFIRMED if strength > CLEAR else DOUBTFUL


CONFIRMED, UNREAD, DOUBTFUL, LOCAL, SILENT = (-1,), (-2,), (-3,), (-4,), (-5,)
"""Marks of an order of tokens: it is the row order, as changes that are spread over the image show; local changes contradict
it; the changes do not show it; it is the row order, and the largest changes are where the image changed; nothing changed."""


def _peaks_right(change: Array, k: int) -> bool:
    """Return whether the largest change is at a position that the patch covers."""
    peak = np.unravel_index(int(change.argmax()), change.shape)
    for i, n in enumerate(change.shape):
        begin = (LOW if (i + k) % 2 == 0 else HIGH) * n / FRACTION
        if not begin - 1 < peak[i] < begin + n / FRACTION:
            return False
    return True


def _are_patches(layers: Mapping[str, Layer]) -> dict[str, bool]:
    """Return for each layer of tokens whether they are known to be parts of the image, and not queries or coordinates.

    Queries of a detector read the whole image, and a few of them move as an image does by chance. Tokens that are parts
    of the image are so from the first layer with their number on: there the change is local, or a map with as many
    positions precedes it. A layer of constants with that number is that of queries, or of positions: then the change
    must be local.
    """
    patches: dict[int, bool] = {}
    maps, constants = set[int](), set[int]()
    result = {}
    for name, layer in layers.items():
        sizes = [n for n in layer.shape[1:] if n is not None]
        if len(sizes) == 2 and layer.has_map and layer.depends_on_input:
            positions = sizes[0] * sizes[1]
            maps.update(range(positions, positions + MOST_EXTRA + 1))
        if len(layer.shape) != 2 or not sizes:
            continue
        (count,) = sizes
        if layer.depends_on_input is False:
            patches.pop(count, None)
            constants.add(count)
        elif layer.order is not None:
            is_local, follows = layer.order == LOCAL, count not in constants
            is_clear = is_local and (count >= FEW or count in maps)
            result[name] = patches.setdefault(count, is_clear or (follows and count in maps))
    return result


def _read_orders(layers: dict[str, Layer], values: Values, images: Images) -> None:
    """Read the order of tokens where it may not be the row order, in place.

    Where it cannot be read, the row order counts for layers between others with as many tokens, whose order is known:
    attention mixes tokens, and the change of one appears at others.
    """
    names = list(layers)
    confirmed: dict[int | None, list[int]] = {}
    for name, are_patches in _are_patches(layers).items():
        layer = layers[name]
        if layer.order == SILENT:
            layers[name] = replace(layer, order=None, has_map=are_patches)
        elif layer.order in (CONFIRMED, LOCAL):
            layers[name] = replace(layer, order=None if are_patches else UNREAD)
            if are_patches:
                confirmed.setdefault(layer.shape[1], []).append(names.index(name))
    for name, layer in layers.items():
        if layer.order == DOUBTFUL and layer.shape[1] in confirmed:
            layers[name] = replace(layer, order=None)
    group = [name for name in names if layers[name].order is not None]
    if group:
        reading = _Reading(group, layers, values, images)
        orders = {name: reading.order(name) for name in group}
        for name, order in orders.items():
            if order == tuple(range(layers[name].shape[1] or 0)):
                confirmed.setdefault(layers[name].shape[1], []).append(names.index(name))
        for name, order in orders.items():
            layer, k = layers[name], names.index(name)
            if order is None:
                around = confirmed.get(layer.shape[1], [])
                is_known = bool(around) and min(around) < k < max(around)
                layers[name] = replace(layer, order=None, has_map=is_known)
            else:
                layers[name] = replace(layer, order=None if order == tuple(range(len(order))) else order)


class _Reading:
    """The order of tokens, read from further passes.

    For each bit of a row's index, the rows with this bit and those without it are changed, and likewise for columns. A
    token belongs to the half whose change moved it more. The passes serve all grids of which one divides the other.

    Args:
        names: The layers whose order is read.
        layers: All layers.
        values: Runs the model.
        images: The images.
    """

    def __init__(self, names: Sequence[str], layers: Mapping[str, Layer], values: Values, images: Images) -> None:
        self._names, self._values, self._images = names, values, images
        self._layers = {name: layers[name] for name in names}
        self._clean = values(images.halves(None), names)
        self._belongs: dict[bytes, dict[str, Array]] = {}

    def order(self, name: str) -> tuple[int, ...] | None:
        """Return the index of each token in row order, extra tokens first; None where not every position occurs once."""
        space = self._images.space
        count = self._layers[name].shape[1] or 0
        grid = token_grid(count, (space[0], space[1]))
        assert grid is not None
        extra, size = grid
        position = np.zeros(count - extra, np.int64)
        for axis, (pixels, cells) in enumerate(zip(space, size, strict=True)):
            cell = np.minimum(np.arange(pixels) * cells // pixels, cells - 1)
            index = np.zeros_like(position)
            for bit in range((cells - 1).bit_length()):
                has_bit = (cell >> bit) & 1 == 1
                mask = np.broadcast_to(has_bit[:, None] if axis == 0 else has_bit, space)
                index |= self._with(mask)[name][extra:].astype(np.int64) << bit
            position = position * cells + index
        if not np.array_equal(np.sort(position), np.arange(len(position))):
            return None
        return (*range(extra), *(extra + int(i) for i in np.argsort(position)))

    def _with(self, mask: Array) -> dict[str, Array]:
        """Return for each layer which tokens a change inside of a mask moves more than one outside of it."""
        key = np.packbits(mask).tobytes()
        if key not in self._belongs:
            changed = self._values(self._images.halves(mask), self._names)
            if len(self._images.clean) == 1:
                outside = self._values(self._images.halves(~mask), self._names)
                moved = [self._moved(k, pair, (-1, -1)) for k, pair in enumerate(zip(changed, outside, strict=True))]
            else:
                moved = [self._moved(k, (value, value), (-1, -2)) for k, value in enumerate(changed)]
            self._belongs[key] = dict(zip(self._names, moved, strict=True))
        return self._belongs[key]

    def _moved(self, k: int, values: tuple[Array, Array], rows: tuple[int, int]) -> Array:
        layer = self._layers[self._names[k]]
        inside, outside = (
            np.abs(value.take(row, layer.batch_axis) - self._clean[k].take(row, layer.batch_axis)).sum(
                axis=1 if layer.layout == "tokens" else 0
            )
            for value, row in zip(values, rows, strict=True)
        )
        return np.asarray(inside > outside)
