"""The conformance suite: every promise of the contract, checked on every network, with a message that says what is wrong.

What it cannot see from outside, and a backend's own tests must: that nothing before the layer is differentiated.
"""

from xcam.testing.abilities import Abilities
from xcam.testing.numbers import Numbers
from xcam.testing.side_effects import Manners


class Conformance(Numbers, Manners, Abilities):
    """Subclass it, and say how a network is built in your framework. pytest does the rest."""
