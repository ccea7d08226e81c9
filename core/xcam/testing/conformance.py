"""The conformance suite: every promise of the contract, checked on every network, with a message that names the mistake.

One promise cannot be checked from outside, so a backend's own tests have to: nothing before the layer is differentiated.
"""

from xcam.testing.abilities import Abilities
from xcam.testing.side_effects import SideEffects
from xcam.testing.values import Values


class Conformance(Values, SideEffects, Abilities):
    """The suite: subclass it, and define `build` and `snapshot` for your framework. pytest runs the tests."""
