"""Layouts: to and from channels first, for arrays and shapes."""

import numpy as np
import pytest

from xcam import InputSpec
from xcam.contract.layouts import (
    filled,
    from_channels_first,
    input_shape,
    joined,
    shape_from_channels_first,
    shape_to_channels_first,
    to_channels_first,
    token_grid,
)

CASES = [
    ("channels_first", (2, 3, 4, 5), (2, 3, 4, 5)),
    ("channels_last", (2, 4, 5, 3), (2, 3, 4, 5)),
    ("channels_last", (2, 4, 5, 6, 3), (2, 3, 4, 5, 6)),
    ("tokens", (2, 7, 3), (2, 3, 7)),
    ("channels_last", (2, 3), (2, 3)),
    ("tokens", (2,), (2,)),
]


@pytest.mark.parametrize(("layout", "stored", "channels_first"), CASES)
def test_every_value_is_at_its_channel_and_position(layout, stored, channels_first):
    array = np.arange(np.prod(stored)).reshape(stored)
    result = to_channels_first(array, layout)
    assert result.shape == channels_first
    assert np.shares_memory(result, array)
    for index in np.ndindex(*channels_first):
        row, channel, *position = (*index, 0)[: max(2, len(index))]
        stored_index = index if layout == "channels_first" or len(index) < 3 else (row, *position, channel)
        assert result[index] == array[stored_index]


@pytest.mark.parametrize(("layout", "stored", "channels_first"), CASES)
def test_from_channels_first_undoes_to_channels_first(layout, stored, channels_first):
    array = np.arange(np.prod(stored)).reshape(stored)
    assert np.array_equal(from_channels_first(to_channels_first(array, layout), layout), array)


@pytest.mark.parametrize(("layout", "stored", "channels_first"), CASES[:4])
def test_shapes_follow_their_arrays(layout, stored, channels_first):
    assert shape_to_channels_first(stored[1:], layout) == channels_first[1:]
    assert shape_from_channels_first(channels_first[1:], layout) == stored[1:]


def test_open_sizes_stay_open_and_an_empty_shape_stays_empty():
    assert shape_to_channels_first((None, None, 8), "channels_last") == (8, None, None)
    assert shape_to_channels_first((), "tokens") == ()


def test_batches_are_joined_in_order_and_contiguous():
    first, second = np.arange(12.0).reshape(1, 2, 2, 3), 100 + np.arange(12.0).reshape(1, 2, 2, 3)
    result = joined([first, second], "channels_last")
    assert result.flags.c_contiguous
    assert result[:, 2].tolist() == [[[2, 5], [8, 11]], [[102, 105], [108, 111]]]


def test_a_single_batch_in_order_is_not_copied():
    batch = np.zeros((2, 3, 4, 5))
    assert joined([batch]) is batch


@pytest.mark.parametrize(
    ("spec", "shape"),
    [
        (InputSpec((32, 48)), (3, 32, 48)),
        (InputSpec((32, 48), channels=1, layout="channels_last"), (32, 48, 1)),
        (InputSpec(None), (3, 224, 224)),
        (InputSpec((48, None)), (3, 48, 224)),
        (InputSpec((None, 320), layout="channels_last"), (320, 320, 3)),
    ],
)
def test_the_shape_of_an_input(spec, shape):
    assert input_shape(spec) == shape


@pytest.mark.parametrize(
    ("size", "other", "result"),
    [
        (None, None, None),
        (None, (4, None), (4, None)),
        ((4, None), None, (4, None)),
        ((4, None), (5, 6), (4, 6)),
        ((None, None), (None, 6), (None, 6)),
        ((None, None), None, None),
        ((None,), (4, 5), (None,)),
    ],
)
def test_open_sides_are_filled_in(size, other, result):
    assert filled(size, other) == result


@pytest.mark.parametrize(
    ("count", "size", "expected"),
    [
        (197, (224, 224), (1, (14, 14))),  # ViT-B/16
        (198, (224, 224), (2, (14, 14))),  # DeiT, distilled
        (50, (224, 224), (1, (7, 7))),  # ViT-B/32
        (261, (224, 224), (5, (16, 16))),  # DINOv2 with four registers
        (49, (224, 224), (0, (7, 7))),  # Swin's last stage
        (281, (224, 320), (1, (14, 20))),
        (282, (224, 320), (2, (14, 20))),
        (3136, (224, 224), (0, (56, 56))),
        (7 * 10, (224, 320), (0, (7, 10))),
        (5 * 8 + 1, (80, 128), (1, (5, 8))),
        (9, (12, 12), (0, (3, 3))),
    ],
)
def test_token_grids(count, size, expected):
    assert token_grid(count, size) == expected
