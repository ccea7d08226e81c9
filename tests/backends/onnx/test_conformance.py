"""The conformance suite, for ONNX: a free batch, a batch fixed to one image, a channels-last input."""

from __future__ import annotations

from typing import Any

import onnx
import pytest

import onnx_networks
from xcam.testing import Conformance, Network


class TestOnnx(Conformance):
    def build(self, network: Network) -> onnx.ModelProto:
        return onnx_networks.build(network)

    def layer(self, name: str) -> str:
        return f"node of {name}"

    def snapshot(self, native: onnx.ModelProto) -> Any:
        return native.SerializeToString(deterministic=True)


@pytest.mark.slow
class TestOldOperators(TestOnnx):
    def build(self, network: Network) -> onnx.ModelProto:
        return onnx_networks.build(network, opset=11)


@pytest.mark.slow
class TestNewestOperators(TestOnnx):
    def build(self, network: Network) -> onnx.ModelProto:
        return onnx_networks.build(network, opset=24)


@pytest.mark.slow
class TestFixedBatch(TestOnnx):
    """A batch of one is fed one by one."""

    def build(self, network: Network) -> onnx.ModelProto:
        return onnx_networks.build(network, batch=1)


@pytest.mark.slow
class TestChannelsLast(TestOnnx):
    def build(self, network: Network) -> onnx.ModelProto:
        return onnx_networks.build(network, nhwc=True)


def test_a_second_derivative_is_not_declared() -> None:
    import xcam

    model = xcam.load("demo", backend="onnx")
    assert model.capabilities == {"gradients", "resume"}
    assert not hasattr(model, "hvp")
