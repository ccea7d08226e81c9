"""Abilities: which members a model has to have, and that asking evaluates nothing."""

import pytest

from xcam.contract import abilities
from xcam.contract.abilities import supports

ALL = [
    abilities.SupportsHvp,
    abilities.ExportsOnnx,
    abilities.ExportsSelfExplaining,
    abilities.Randomizable,
    abilities.NamesDefaultLayer,
    abilities.ExplainsMissingLayers,
    abilities.DisablesSpinning,
    abilities.ExplainsInTraining,
]


class Able:
    capabilities = frozenset({"hvp"})

    def __init__(self):
        self.default_layer = None

    @property
    def parameter_layers(self):
        raise AssertionError("the property was evaluated")

    def method(self, *args):
        raise AssertionError("the method was called")

    hvp = to_onnx = export = with_shuffled_weights = explain_missing_layer = disable_spinning = is_live = (
        random_state
    ) = method


@pytest.mark.parametrize("ability", ALL)
def test_a_model_with_the_members_supports_it_and_nothing_is_evaluated(ability):
    assert supports(Able(), ability)


@pytest.mark.parametrize("ability", ALL)
def test_a_model_without_them_does_not(ability):
    class Plain:
        capabilities = frozenset({"gradients"})

    assert not supports(Plain(), ability)


@pytest.mark.parametrize(
    ("ability", "names"),
    [
        (abilities.SupportsHvp, ["hvp"]),
        (abilities.Randomizable, ["parameter_layers", "with_shuffled_weights"]),
        (abilities.NamesDefaultLayer, ["default_layer"]),
    ],
)
def test_an_ability_has_its_own_members_alone(ability, names):
    assert abilities.members(ability) == names


def test_half_of_an_ability_is_none():
    class Half:
        def with_shuffled_weights(self, parts, seed=0):
            return self

    assert not supports(Half(), abilities.Randomizable)


def test_a_method_set_to_none_is_not_there():
    class Without(Able):
        to_onnx = None

    assert not supports(Without(), abilities.ExportsOnnx)


def test_hvp_has_to_be_declared():
    class Undeclared(Able):
        capabilities = frozenset({"gradients"})

    assert not supports(Undeclared(), abilities.SupportsHvp)
