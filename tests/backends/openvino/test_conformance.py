"""The conformance suite, for OpenVINO: the networks are read from ONNX, as most files of users are."""

from __future__ import annotations

from typing import Any

import openvino
import pytest

import onnx_networks
from xcam.testing import NETWORKS, Conformance, Network


def read(model: Any) -> openvino.Model:
    return openvino.Core().read_model(model.SerializeToString())


class TestOpenVino(Conformance):
    def build(self, network: Network) -> openvino.Model:
        return read(onnx_networks.build(network))

    def layer(self, name: str) -> str:
        return f"node of {name}"

    def snapshot(self, native: openvino.Model) -> Any:
        return [
            (node.get_friendly_name(), node.get_type_name(), str(node.get_output_partial_shape(0)))
            for node in native.get_ordered_ops()
        ]


@pytest.mark.slow
class TestFixedBatch(TestOpenVino):
    """A batch of one: predictions image by image, the rest together where the shapes show that rows stay apart."""

    @pytest.fixture(params=["residual", "tokens"])
    def network(self, request: pytest.FixtureRequest) -> Network:
        return NETWORKS[request.param]

    def build(self, network: Network) -> openvino.Model:
        return read(onnx_networks.build(network, batch=1))


@pytest.mark.slow
class TestChannelsLast(TestOpenVino):
    @pytest.fixture(params=["chain", "branch"])
    def network(self, request: pytest.FixtureRequest) -> Network:
        return NETWORKS[request.param]

    def build(self, network: Network) -> openvino.Model:
        return read(onnx_networks.build(network, nhwc=True))
