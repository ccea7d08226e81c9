"""xcam's conformance suite, on the networks that ops.py builds."""

from __future__ import annotations

from typing import Any

from ops import graph
from xcam_numpy.graph import Graph

from xcam.testing import Conformance, Network


class TestNumpy(Conformance):
    def build(self, network: Network) -> Graph:
        return graph(network)

    def snapshot(self, native: Graph) -> Any:
        return native
