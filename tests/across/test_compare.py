"""Conversions with a mistake planted in them: the layer where it sits is named, and its kind; faithful ones raise no alarm."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import xcam
from faulty import SIZE, Fault, in_keras, in_torch

PICTURE = np.random.default_rng(6).integers(0, 256, (*SIZE, 3), dtype=np.uint8)

FAULTS = [
    (Fault("epsilon", 0), "bn0", "epsilon of a batch normalisation"),
    (Fault("epsilon", 1), "bn1", "epsilon of a batch normalisation"),
    (Fault("epsilon", 2), "bn2", "epsilon of a batch normalisation"),
    (Fault("statistics", 0), "bn0", "statistics"),
    (Fault("statistics", 2), "bn2", "statistics"),
    (Fault("padding", 0), "(pad0|conv0|bn0).*", "shifted by a pixel"),
    (Fault("padding", 1), "(pad1|conv1|bn1).*", "shifted by a pixel"),
    (Fault("padding", 2), "(pad2|conv2|bn2).*", "shifted by a pixel"),
    (Fault("order", 0), "(conv0|bn0).*", "another order"),
    (Fault("order", 2), "(conv2|bn2).*", "another order"),
    (Fault("preset"), "(rescaled|conv0|bn0|node_).*", "given pictures scaled as 'tf'"),
    (Fault("channels", 0), "(conv0|bn0).*", "another order"),
    (Fault("channels", 1), "(conv1|bn1).*", "another order"),
    (Fault("first kernel"), "(conv0|bn0).*", "RGB against BGR"),
    (Fault("scale"), "(rescaled|conv0|bn0|node_div).*", "scale of the input|multiplied by 0.5"),
    (Fault("interpolation"), "up|pool", "interpolation"),
    (Fault("gelu", 2), "act2", "exact GELU against tanh GELU"),
    (Fault("activation", 1), "act1", "ReLU against SiLU"),
    (Fault("flatten"), "fc", "order of flattening"),
    (Fault("half"), "(conv0|bn0).*", "reduced precision"),
]
PAIRS = ("torch to ONNX", "Keras to ONNX", "Keras to torch")


@cache
def clean(framework: str) -> Any:
    if framework == "keras":
        return xcam.load(in_keras(), preprocess="torch")
    return xcam.load(in_torch(), preprocess="torch", size=SIZE)


def second(pair: str, fault: Fault, folder: Path) -> Any:
    source = in_keras(fault) if pair == "Keras to ONNX" else in_torch(fault)
    if pair == "Keras to torch":
        return xcam.load(source, preprocess="torch", size=SIZE)
    opened = xcam.load(source, preprocess="torch", size=None if pair == "Keras to ONNX" else SIZE)
    opened.to_onnx(folder / "converted.onnx")
    return xcam.load(folder / "converted.onnx", preprocess="torch")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "layer", "cause"), FAULTS, ids=lambda v: f"{v.kind} {v.depth}" if isinstance(v, Fault) else ""
)
@pytest.mark.parametrize("pair", PAIRS)
def test_a_planted_fault_is_named(pair: str, fault: Fault, layer: str, cause: str, tmp_path: Path) -> None:
    first = clean("torch" if pair.startswith("torch") else "keras")
    found = xcam.compare([first, second(pair, fault, tmp_path)], PICTURE, align=True)
    assert found.divergence is not None, [(s.second, s.error) for s in found.divergences[0].steps]
    told = [(s.first, s.second, f"{s.error:.1e}") for s in found.divergence.steps], found.divergence.cause
    assert re.fullmatch(layer, str(found.divergence.layer)), (found.divergence.layer, told)
    assert re.search(cause, found.divergence.cause), told


@pytest.mark.slow
@pytest.mark.parametrize("pair", PAIRS)
def test_a_faithful_conversion_raises_no_alarm(pair: str, tmp_path: Path) -> None:
    first = clean("torch" if pair.startswith("torch") else "keras")
    found = xcam.compare([first, second(pair, Fault(), tmp_path)], PICTURE, align=True)
    assert found.verdict == "identical", found.table
    assert found.divergence is None
    assert found.findings == ()
