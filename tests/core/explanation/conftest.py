"""Fixture for tests of explanations: the fake model."""

from __future__ import annotations

import pytest

import xcam
from fake import FakeModel


@pytest.fixture
def model() -> FakeModel:
    """Return the fake model, which takes the values of images of 4 × 6 unchanged."""
    model = FakeModel()
    model.input = xcam.InputSpec((4, 6), preprocessing=xcam.Preprocessing("raw"))
    return model
