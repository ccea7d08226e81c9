"""Token grids of common transformers, and their inverse."""

from __future__ import annotations

import numpy as np
import pytest

from xcam import ModelError
from xcam.contract import InputSpec, Layer
from xcam.explanation.tokens import Grid, grid


def test_a_layer_without_a_grid_is_an_error_with_a_remedy() -> None:
    layer = Layer("blocks.3", "Block", (8, 60), layout="tokens")
    with pytest.raises(
        ModelError, match=r"the 60 tokens of layer 'blocks\.3' do not fit a grid over an image of 224×224"
    ):
        grid(layer, 60, InputSpec((224, 224)), (1, 3, 224, 224))


def test_the_view_can_be_undone() -> None:
    tokens = np.random.default_rng(0).normal(size=(2, 3, 2 + 6))
    grid_of_six = Grid(2, (2, 3))
    view = grid_of_six.view(tokens)
    assert view.shape == (2, 3, 2, 3)
    np.testing.assert_array_equal(view[1, 2, 1], tokens[1, 2, 5:])
    np.testing.assert_array_equal(grid_of_six.restore(view, tokens), tokens)
    assert Grid().view(tokens) is tokens
    assert Grid().restore(view, tokens) is view
