"""Tools for authors of backends: small networks with weights, reference values in NumPy, and a suite of tests.

    from xcam.testing import Conformance, Network

    class TestMine(Conformance):
        def build(self, network: Network):      # the network in your framework, as a user would write it
            ...
        def snapshot(self, native):             # the state that must not change
            ...

Needs pytest.
"""

from xcam.testing.conformance import Conformance
from xcam.testing.networks import NETWORKS, Network, Step
from xcam.testing.reference import run

__all__ = ["NETWORKS", "Conformance", "Network", "Step", "run"]
