"""Conversions with a planted mistake: its layer and its kind are reported. Correct conversions are identical."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import xcam
from faulty import SIZE, Fault, in_keras, in_torch

IMAGE = np.random.default_rng(6).integers(0, 256, (*SIZE, 3), dtype=np.uint8)

FAULTS = [
    (Fault("epsilon", 0), "bn0", "batchnorm-statistics|channel-scale", "epsilon of a batch normalisation"),
    (Fault("epsilon", 1), "bn1", "batchnorm-statistics|channel-scale", "epsilon of a batch normalisation"),
    (Fault("epsilon", 2), "bn2", "batchnorm-statistics|channel-scale", "epsilon of a batch normalisation"),
    (Fault("statistics", 0), "bn0", "batchnorm-statistics|channel-scale", "statistics"),
    (Fault("statistics", 2), "bn2", "batchnorm-statistics|channel-scale", "statistics"),
    (Fault("padding", 0), "(pad0|conv0|bn0).*", "uneven-padding", "shifted by a pixel"),
    (Fault("padding", 1), "(pad1|conv1|bn1).*", "uneven-padding", "shifted by a pixel"),
    (Fault("padding", 2), "(pad2|conv2|bn2).*", "uneven-padding", "shifted by a pixel"),
    (Fault("order", 0), "(conv0|bn0).*", "channel-order", "another order"),
    (Fault("order", 2), "(conv2|bn2).*", "channel-order", "another order"),
    (Fault("preset"), "(rescaled|conv0|bn0|node_).*", "input-scale", "on images scaled as 'tf'"),
    (Fault("channels", 0), "(conv0|bn0).*", "channel-order", "another order"),
    (Fault("channels", 1), "(conv1|bn1).*", "channel-order", "another order"),
    (Fault("first kernel"), "(conv0|bn0).*", "rgb-bgr", "RGB against BGR"),
    (
        Fault("scale"),
        "(rescaled|conv0|bn0|node_div).*",
        "input-scale|constant-factor",
        "scale of the input.*multiplied by 2|multiplied by 0.5",
    ),
    (Fault("interpolation"), "up|pool", "interpolation", "interpolation"),
    (Fault("gelu", 2), "act2", "activation", "exact GELU against tanh GELU"),
    (Fault("activation", 1), "act1", "activation", "ReLU against SiLU"),
    (Fault("flatten"), "fc", "flattening-order", "order of flattening"),
    (Fault("half"), "(conv0|bn0).*", "half-precision", "rounded to float16"),
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
@pytest.mark.filterwarnings("ignore:.*scales its input itself")  # one of the faults
@pytest.mark.parametrize(
    ("fault", "layer", "code", "text"), FAULTS, ids=lambda v: f"{v.kind} {v.depth}" if isinstance(v, Fault) else ""
)
@pytest.mark.parametrize("pair", PAIRS)
def test_a_planted_fault_is_named(pair: str, fault: Fault, layer: str, code: str, text: str, tmp_path: Path) -> None:
    first = clean("torch" if pair.startswith("torch") else "keras")
    comparison = xcam.compare([first, second(pair, fault, tmp_path)], IMAGE, align=True)
    divergence = comparison.divergence
    assert divergence is not None, [(s.second, s.error) for s in comparison.divergences[0].steps]
    details = [(s.first, s.second, f"{s.error:.1e}") for s in divergence.steps], divergence.cause
    assert re.fullmatch(layer, str(divergence.layer)), (divergence.layer, details)
    assert divergence.cause is not None, details
    assert re.fullmatch(code, divergence.cause.code), details
    assert re.search(text, divergence.cause.text), details
    assert divergence.notes == ()


@pytest.mark.slow
@pytest.mark.parametrize("pair", PAIRS)
def test_a_correct_conversion_is_reported_as_identical(pair: str, tmp_path: Path) -> None:
    first = clean("torch" if pair.startswith("torch") else "keras")
    comparison = xcam.compare([first, second(pair, Fault(), tmp_path)], IMAGE, align=True)
    assert comparison.verdict == "identical", comparison.table
    assert comparison.divergence is None
    assert comparison.findings == ()
