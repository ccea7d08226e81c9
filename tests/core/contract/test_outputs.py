"""Outputs and cotangents: an array or a mapping; the activation that is cut off an output."""

import numpy as np
import pytest

from xcam.contract.outputs import ask, by_name, cut_activation, like, one_or_mapping, one_output

A, B = np.array([[1.0, 2.0]]), np.array([[3.0]])


def test_one_output_is_given_as_it_is_and_several_by_name():
    assert one_or_mapping({"scores": A}) is A
    assert one_or_mapping({"scores": A, "mask": B}) == {"scores": A, "mask": B}
    assert one_or_mapping({"scores": "softmax"}) == "softmax"


def test_an_array_belongs_to_the_first_name():
    assert by_name(A, iter(["scores", "mask"])) == {"scores": A}
    assert by_name({"mask": B}, ["scores", "mask"]) == {"mask": B}


def test_cotangents_are_asked_once_and_returned_by_name():
    calls = []

    def cotangents(outputs):
        calls.append(outputs)
        return [A, {"scores": B}]

    assert ask(cotangents, A, ["scores"]) == [{"scores": A}, {"scores": B}]
    assert len(calls) == 1
    assert calls[0] is A
    assert ask(None, A, ["scores"]) == []


def test_a_target_reads_the_named_output_or_the_first():
    assert one_output(A) is A
    assert one_output({"scores": A, "mask": B}) is A
    assert one_output({"scores": A, "mask": B}, "mask") is B


def test_a_cotangent_is_zero_at_every_other_output():
    assert like(A, B) is B
    result = like({"scores": A, "mask": B}, np.array([[9.0]]), "mask")
    assert result["scores"].tolist() == [[0, 0]]
    assert result["mask"].tolist() == [[9]]
    assert like({"scores": A, "mask": B}, A)["mask"].tolist() == [[0]]


STEPS = {
    "probabilities": ("softmax", "logits"),
    "cast": (None, "probabilities"),
    "copy": (None, "relu"),
    "logits": ("sigmoid", "never"),
}


@pytest.mark.parametrize(
    ("output", "expected"),
    [
        ("probabilities", ("logits", "softmax")),
        ("cast", ("logits", "softmax")),
        ("relu", ("relu", None)),
        ("copy", ("copy", None)),
    ],
)
def test_the_last_activation_is_cut_off_through_casts(output, expected):
    assert cut_activation(output, STEPS.get) == expected
