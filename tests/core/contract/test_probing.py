"""The probe, on layers whose values are written in NumPy: the facts are known from their formulas."""

from dataclasses import replace

import numpy as np
import pytest

from xcam import InputSpec, Layer
from xcam.contract.layouts import from_trace, to_trace
from xcam.contract.probing import fits, probed

CELL = 4
"""Pixels of the image along a side of a position."""


def features(x, channels=5):
    """Return [N, C, h, w]: cells of the image, mixed with all others as deep layers do."""
    n, c, height, width = x.shape
    cells = x.reshape(n, c, height // CELL, CELL, width // CELL, CELL).mean((3, 5))
    mix = np.random.default_rng(0).normal(size=(channels, c))
    local = np.einsum("oc,nchw->nohw", mix, cells)
    return (local + 0.3 * local.mean((2, 3), keepdims=True)).astype(np.float32)


def tokens(x, extra=0, channels=5):
    """Return [N, extra + h·w, C]; the extra tokens hold the mean."""
    f = features(x, channels)
    patches = f.reshape(*f.shape[:2], -1).transpose(0, 2, 1)
    return np.concatenate([np.repeat(patches.mean(1, keepdims=True), extra, 1), patches], 1)


def windows(x, side):
    """Return [N, h·w, C], window by window."""
    f = features(x)
    n, c, h, w = f.shape
    split = f.reshape(n, c, h // side, side, w // side, side)
    return split.transpose(0, 2, 4, 3, 5, 1).reshape(n, h * w, c)


def probe(function, shape=(3, 32, 32), layout="channels_first", rows=2, stated=None):
    """Return the layer whose value is function(x), described with a wrong or right layout."""
    passes = []

    def values(x, names):
        passes.append(len(x))
        return [np.asarray(function(x), np.float32)]

    value = function(np.zeros((rows, *shape), np.float32))
    layer = Layer("a", "A", value.shape[1:], layout=layout)
    result = probed({"a": layer}, values, InputSpec(shape[1:], channels=shape[0]), shape, rows, stated)["a"]
    return result, passes


def test_three_passes_are_enough():
    layer, passes = probe(features)
    assert passes == [2, 2, 2]
    assert layer.shape == (5, 8, 8)


@pytest.mark.parametrize(
    ("function", "depends"),
    [
        (features, True),
        (lambda x: np.ones((len(x), 5, 8, 8)), False),
        (lambda x: features(np.ones_like(x)) + 0 * features(x), False),
        (lambda x: features(x[:, :, 12:20, 12:20]), True),  # a crop, which the changed patches do not touch
        (lambda x: 0 * features(x), True),  # dead on these images
    ],
)
@pytest.mark.parametrize("rows", [1, 2])
def test_dependence_on_the_image(function, depends, rows):
    assert (probe(function, rows=rows)[0].depends_on_input is not False) is depends


@pytest.mark.parametrize("shape", [(3, 32, 32), (3, 32, 64), (3, 96, 32)])
@pytest.mark.parametrize("stated", ["channels_first", "channels_last"])
@pytest.mark.parametrize("right", ["channels_first", "channels_last"])
@pytest.mark.parametrize("channels", [5, 8, 16, 24])
def test_the_axes_of_space(shape, stated, right, channels):
    def stored(x):
        return features(x, channels) if right == "channels_first" else np.moveaxis(features(x, channels), 1, -1)

    layer, _ = probe(stored, shape, stated)
    assert (layer.layout, layer.has_map) == (right, True)
    assert layer.shape == (channels, shape[1] // CELL, shape[2] // CELL)


@pytest.mark.parametrize("layout", ["channels_first", "channels_last"])
@pytest.mark.parametrize("seed", range(6))
def test_a_pooled_vector_has_one_position(layout, seed):
    """Which of its channels change most is not a movement in space."""
    mix = np.random.default_rng(seed).normal(size=(3, 5))

    def pooled(x):
        vector = np.maximum(x.mean((2, 3)) @ mix, 0)
        return vector[:, :, None, None] if layout == "channels_first" else vector[:, None, None, :]

    layer, _ = probe(pooled, layout=layout)
    assert (layer.layout, layer.shape, layer.has_space) == (layout, (5, 1, 1), False)


def test_the_values_of_untrained_networks_may_be_tiny():
    layer, _ = probe(lambda x: 1e-29 * features(x), layout="channels_last")
    assert (layer.layout, layer.shape) == ("channels_first", (5, 8, 8))
    folded, _ = probe(lambda x: 1e-29 * features(x, 6).reshape(len(x) * 2, 3, 8, 8))
    assert folded.folds_batch


def test_a_layout_that_the_caller_states_is_kept():
    layer, _ = probe(lambda x: np.moveaxis(features(x), 1, -1), stated="channels_first")
    assert (layer.layout, layer.shape) == ("channels_first", (8, 8, 5))


def heads(x):
    """Return [N, T, heads, C]: the query of attention, for as many heads and channels as the grid has columns."""
    return tokens(x, channels=64).reshape(len(x), 64, 8, 8)


def attention(x):
    """Return [N, heads, T, T]."""
    t = tokens(x)
    return np.exp(-np.square(t[:, None, :, None] - t[:, None, None]).sum(-1)).repeat(2, 1)


def keys(x):
    """Return [N, heads, T, C]: the key of attention, with nearly as many channels as tokens."""
    return tokens(x, channels=250).reshape(len(x), 64, 5, 50).transpose(0, 2, 1, 3)


@pytest.mark.parametrize("function", [heads, keys, attention])
@pytest.mark.parametrize("layout", ["channels_first", "channels_last"])
def test_heads_and_attention_are_not_a_map(function, layout):
    layer, _ = probe(function, layout=layout)
    assert not layer.has_map
    assert not layer.has_space


@pytest.mark.parametrize("stated", ["tokens", "channels_first"])
@pytest.mark.parametrize("right", ["tokens", "channels_first"])
def test_the_axis_of_tokens_where_there_are_as_many_channels(stated, right):
    layer, _ = probe(
        lambda x: tokens(x, channels=64).transpose(*((0, 1, 2) if right == "tokens" else (0, 2, 1))), layout=stated
    )
    assert (layer.layout, layer.has_map, layer.order) == (right, True, None)


@pytest.mark.parametrize(
    ("store", "axis", "shape"),
    [
        (lambda x: tokens(x, extra=1), 0, (5, 65)),
        (lambda x: tokens(x, extra=1).transpose(1, 0, 2), 1, (5, 65)),  # tokens first, batch second
        (lambda x: np.moveaxis(features(x), (0, 1), (2, 3)), 2, (5, 8, 8)),
        (lambda x: np.moveaxis(features(x, 2), 0, 1), 1, (2, 8, 8)),  # as many channels as images
    ],
)
def test_the_axis_of_the_batch(store, axis, shape):
    layer, _ = probe(store)
    assert (layer.batch_axis, layer.shape, layer.folds_batch, layer.order) == (axis, shape, False, None)
    x = np.random.default_rng(3).normal(size=(2, 3, 32, 32))
    value = store(x)
    assert np.array_equal(from_trace(to_trace(value, layer), layer), value)
    plain = features(x, shape[0]).reshape(2, shape[0], -1)
    assert np.array_equal(to_trace(value, layer).reshape(2, shape[0], -1)[..., -64:], plain)


def test_windows_on_the_axis_of_the_batch():
    layer, _ = probe(lambda x: windows(x, 4).reshape(-1, 16, 5))
    assert layer.folds_batch


@pytest.mark.parametrize("rows", [1, 2])
@pytest.mark.parametrize("side", [2, 4])
def test_the_order_of_windows_is_read(side, rows):
    layer, passes = probe(lambda x: windows(x, side), layout="tokens", rows=rows)
    assert len(passes) == 3 + 1 + 6 * (3 - rows)  # three bits for rows and columns
    x = np.random.default_rng(3).normal(size=(2, 3, 32, 32))
    assert np.array_equal(to_trace(windows(x, side), layer), features(x).reshape(2, 5, 64))
    assert np.array_equal(from_trace(to_trace(windows(x, side), layer), layer), windows(x, side))


def test_an_order_that_cannot_be_read_has_no_map():
    mix = np.random.default_rng(1).normal(size=(64, 64))
    layer, _ = probe(lambda x: np.einsum("st,ntc->nsc", mix, tokens(x)), layout="tokens")
    assert not layer.has_map


def test_tokens_that_do_not_fit_a_grid_have_no_map():
    layer, _ = probe(lambda x: tokens(x)[:, :-3], layout="tokens")
    assert not layer.has_map


def test_one_image_at_a_time_with_tokens_first():
    layer, passes = probe(lambda x: tokens(x).transpose(1, 0, 2), rows=1)
    assert passes == [1, 1, 1]
    assert (layer.batch_axis, layer.shape) == (1, (5, 64))


def test_large_models_are_probed_in_groups(monkeypatch):
    calls = []

    def values(x, names):
        calls.append(tuple(names))
        return [features(x) for _ in names]

    monkeypatch.setattr("xcam.contract.probing.BUDGET", 8 * 2 * 5 * 64 * 2)
    layers = {name: replace(Layer(name, "A", (5, 8, 8)), inner=name == "b") for name in "abc"}
    probed(layers | {"v": Layer("v", "A", (5,))}, values, InputSpec((32, 32)), (3, 32, 32), 2)
    assert calls == [("a", "b")] * 3 + [("c",)] * 3


@pytest.mark.parametrize(
    ("grid", "space", "expected"),
    [
        ((7, 7), (224, 224), True),
        ((16, 24), (64, 64), True),  # the changes decide
        ((8, 24), (64, 64), False),
        ((3, 19), (64, 320), True),  # convolutions without padding
        ((64, 8), (64, 64), False),
        ((12, 80), (48, 320), True),
    ],
)
def test_grids_that_fit_the_ratio_of_the_image(grid, space, expected):
    assert fits(grid, space) is expected


def test_values_that_do_not_change_are_judged_by_their_shape():
    assert not probe(lambda x: np.ones((len(x), 80, 2100)))[0].has_map
    assert not probe(lambda x: np.ones((len(x), 2, 8, 8, 5)))[0].has_map
    assert probe(lambda x: np.ones((len(x), 5, 8, 8)))[0].has_map


@pytest.mark.parametrize("channels", [4, 16, 64])
def test_one_token_is_not_a_map_of_its_channels(channels):
    layer, _ = probe(lambda x: tokens(x, extra=1, channels=channels)[:, :1], layout="tokens")
    assert (layer.layout, layer.shape, layer.has_space) == ("tokens", (channels, 1), False)


def test_a_map_whose_rows_are_mixed_remains_one():
    """A change that spreads over the rows, as by squeeze and excitation, moves along the columns alone."""

    def mixed(x):
        f = features(x)
        return f.mean(2, keepdims=True) + 0.003 * f

    layer, _ = probe(mixed)
    assert (layer.layout, layer.has_map) == ("channels_first", True)


def test_rounding_is_not_a_change():
    """A kernel that sums in another order changes last digits, here in the first channels, and then in the last ones."""
    passes = []

    def rounded(x):
        value = np.ones((len(x), 8, 8, 8), np.float32)
        passes.append(x)
        if len(passes) > 2:  # the first call is for the shape, the second one clean
            value[-1, 0 if len(passes) == 3 else 7] += 2e-7
            value[-1, :, :, 0 if len(passes) == 3 else 7] += 2e-7
        return value

    layer, _ = probe(rounded)
    assert (layer.layout, layer.shape, layer.has_map) == ("channels_first", (8, 8, 8), True)


def test_attention_that_mixes_tokens_does_not_exchange_the_axes():
    """Where a change is spread over all tokens, channels may move by chance as patches would."""
    layouts = []
    for seed in range(60):
        mix = np.random.default_rng(seed).normal(size=(256, 256)) ** 5

        def mixed(x, mix=mix):
            t = tokens(x, channels=16)
            return (t.reshape(len(t), -1) @ mix).reshape(t.shape)

        layouts.append(probe(mixed, (3, 16, 16), layout="tokens")[0].layout)
    assert set(layouts) == {"tokens"}


def probed_layers(functions, side=32):
    """Return the layers of a model, in order, whose values are those of functions."""
    x = np.zeros((2, 3, side, side), np.float32)
    layers = {}
    for name, function in functions.items():
        layout = "tokens" if np.ndim(function(x)) == 3 else "channels_first"
        shape = np.shape(function(x))[1:]
        layers[name] = Layer(name, "A", shape if layout != "tokens" else shape[::-1], layout=layout)
    spec = InputSpec((side, side), channels=3)
    return probed(
        layers, lambda x, names: [np.asarray(functions[n](x), np.float32) for n in names], spec, x.shape[1:], 2
    )


def queries(x, count, seed):
    """Return [N, count, C]: each query reads the whole image with its own weights, as those of a detector do."""
    f = features(x)
    weights = np.random.default_rng(seed).normal(size=(count, f[0, 0].size))
    return np.einsum("qp,ncp->nqc", weights, f.reshape(*f.shape[:2], -1))


@pytest.mark.parametrize("count", [16, 17, 20, 64, 100])
def test_queries_of_a_detector_are_never_a_map(count):
    """Among 80 layers some move by chance as the image does. Constants of their number precede them."""
    first = {"map": features, "constant": lambda x: np.repeat(np.ones((1, count, 5)), len(x), 0)}
    layers = probed_layers(first | {f"{k}": lambda x, k=k: queries(x, count, k) for k in range(80)})
    assert layers["map"].has_map
    assert [name for name, layer in layers.items() if name.isdigit() and layer.has_map] == []


@pytest.mark.parametrize("count", [20, 84])
def test_queries_without_constants_ahead_of_them(count):
    layers = probed_layers({"map": features} | {f"{k}": lambda x, k=k: queries(x, count, k) for k in range(80)})
    assert [name for name, layer in layers.items() if name.isdigit() and layer.has_map] == []


@pytest.mark.parametrize("extra", [0, 1])
@pytest.mark.parametrize("cell_map", [False, True])
def test_mixed_tokens_are_parts_of_the_image_behind_local_ones(extra, cell_map):
    """Attention spreads a change over all tokens; ahead of it the tokens were local, or a map with as many positions."""
    local = features if cell_map else lambda x: tokens(x, extra)

    def mixed(x):
        t = tokens(x, extra)
        rows, columns = np.divmod(np.arange(t.shape[1]) - extra, 8)
        distance = np.abs(np.subtract.outer(rows, rows)) + np.abs(np.subtract.outer(columns, columns))
        return np.einsum("qp,npc->nqc", np.exp(-distance / 3.0), t)

    layers = probed_layers({"local": local, "mixed": mixed})
    assert layers["mixed"].has_map
    assert layers["mixed"].order is None


def test_lists_of_boxes_are_not_a_map():
    """Coordinates of all boxes of three scales, [N, 1, 4, 84], as the head of a YOLO has them."""

    def boxes(x):
        rows = np.concatenate([features(x)[:, :1, ::k, ::k].reshape(len(x), -1) for k in (1, 2, 4)], 1)
        return np.stack([rows * (1 + i) for i in range(4)], 1)[:, None]

    layer = probed_layers({"boxes": boxes})["boxes"]
    assert layer.shape == (1, 4, 84)
    assert not layer.has_map
    still = probed_layers({"boxes": lambda x: np.ones((len(x), 1, 4, 84))})["boxes"]
    assert not still.has_map
