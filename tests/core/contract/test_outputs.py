"""Outputs and cotangents: an array or a mapping; the activation that is cut off an output."""

import numpy as np
import pytest

from xcam.contract.outputs import ask, by_name, cut_activation, like, main_first, one_or_mapping, one_output

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


PATHS = {"features": "conv", "logits": "features", "probs": "logits", "aux": "conv", "conv": ""}


def path(node):
    return [node, *path(PATHS[node])] if node else []


def first(**outputs):
    """Return the main output of a model; each output is its node, rank, and possibly an activation."""
    nodes = {name: value[0] for name, value in outputs.items()}
    shapes = {name: (2, 3, 4, 5)[: value[1]] for name, value in outputs.items()}
    activations = {name: value[2] if len(value) > 2 else None for name, value in outputs.items()}
    order = list(main_first(activations, shapes, nodes, path))
    assert order[1:] == [name for name in outputs if name != order[0]]
    return order[0]


def test_the_vector_that_the_others_lead_to_is_the_main_output():
    assert first(a=("features", 2), b=("logits", 2)) == "b"
    assert first(a=("logits", 2), b=("features", 2)) == "a"
    assert first(a=("conv", 4), b=("features", 2)) == "b"
    assert first(a=("logits", 2), b=("probs", 1)) == "a"  # a number for each image, without an activation
    assert first(a=("features", 4), b=("logits", 1, "sigmoid")) == "b"
    assert first(a=("logits", 2), b=("aux", 2)) == "a"
    assert first(a=("conv", 4), b=("features", 3)) == "a"


def test_a_name_chooses_among_outputs_that_are_alike():
    assert first(other=("aux", 2), scores=("logits", 2)) == "scores"
    assert first(probabilities=("probs", 2, "softmax"), logits=("logits", 2)) == "logits"
    assert first(**{"aux": ("logits", 2), "head": ("aux", 2)}) == "head"
    assert first(**{"a": ("logits", 2), "model/predictions/Softmax:0": ("aux", 2)}) == "model/predictions/Softmax:0"
    assert first(boxes=("aux", 3), scores=("logits", 3)) == "scores"


def test_outputs_whose_nodes_or_ranks_are_not_known_keep_their_order():
    assert list(main_first({"a": None, "b": None}, {"a": None, "b": None}, {"a": None, "b": None}, path)) == [
        "a",
        "b",
    ]
    assert list(main_first({"a": None, "b": None}, {"a": None, "b": (1, 2)}, {"a": None, "b": None}, path)) == [
        "b",
        "a",
    ]
