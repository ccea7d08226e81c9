"""Errors that the backends share: kinds, texts, and which errors pass."""

import pytest

from xcam import BackendError, InputError, ModelError
from xcam.contract import messages
from xcam.explanation.context import without_gradients


@pytest.mark.parametrize(
    ("error", "kind", "text"),
    [
        (
            messages.unknown_layer("conv9", "net", ["conv1", "conv2"]),
            InputError,
            "unknown layer 'conv9' in net; known: conv1, conv2; `xcam layers` lists them",
        ),
        (
            messages.unknown_device("tpu", "torch", ["cpu", "cuda:0"]),
            InputError,
            "unknown device 'tpu'; torch has: cpu, cuda:0",
        ),
        (
            messages.own_weights("the demo network", "none"),
            InputError,
            "cannot use weights='none': the demo network contains its own weights; leave weights out",
        ),
        (
            messages.no_gradient("conv9", "net"),
            ModelError,
            "cannot differentiate net at layer 'conv9': no differentiable path leads from it to the explained "
            "output; choose a method that needs no gradient: eigencam, scorecam, ablationcam",
        ),
        (
            messages.no_gradient("conv9", "net", "norm"),
            ModelError,
            "cannot differentiate net at layer 'conv9': no differentiable path leads from it to the explained output; "
            "choose layer 'norm', the next one with a gradient, or a method that needs no gradient: eigencam, scorecam, "
            "ablationcam",
        ),
        (
            messages.one_input("net", 2, "fix the other"),
            ModelError,
            "cannot use net: it has 2 inputs, and an image is one input; fix the other",
        ),
    ],
)
def test_the_errors_in_full(error, kind, text):
    assert type(error) is kind
    assert str(error) == text


def test_an_error_in_one_line():
    assert messages.one_line(ValueError("a\n  b\tc")) == "a b c"
    assert messages.one_line(ValueError("abcdefghij"), 9) == "abc … hij"
    assert messages.one_line(ValueError()) == "ValueError"


def test_a_missing_package_is_named_with_its_remedy():
    messages.require(["json"], "export to ONNX")
    with pytest.raises(BackendError, match="cannot export to ONNX: xcam_absent is not installed; pip install xcam_a"):
        messages.require(["json", "xcam_absent"], "export to ONNX")


@pytest.mark.parametrize("error", [ValueError("bad\nshape"), SystemExit("bad shape"), RuntimeError("bad shape")])
def test_a_failing_first_run_is_a_model_error_with_its_cause(error):
    with (
        pytest.raises(
            ModelError,
            match=rf"cannot run net on an input of shape \[3, None\]: {type(error).__name__}: bad shape; check",
        ) as caught,
        messages.first_run("net", (3, None), "check size"),
    ):
        raise error
    assert caught.value.__cause__ is error


def test_the_remedy_for_a_missing_argument_is_its_value():
    def call(x, mask):
        """Take an image and a mask."""

    with (
        pytest.raises(
            ModelError,
            match=r"argument: 'mask'; wrap it in a model that takes the image alone, or give the others: inputs=.* \(--input name=…\)$",
        ),
        messages.first_run("net", (3, 4, 4)),
    ):
        call(1)


@pytest.mark.parametrize("error", [InputError("one"), ModelError("two"), MemoryError("three"), KeyboardInterrupt()])
def test_errors_of_xcam_and_of_memory_pass_a_first_run(error):
    with pytest.raises(type(error)) as caught, messages.first_run("net", (3,), "check size"):
        raise error
    assert caught.value is error


def test_the_methods_of_the_messages_need_no_gradient():
    assert set(messages.WITHOUT_GRADIENT) < set(without_gradients())


class ExhaustedError(Exception):
    """A framework's own error for exhausted memory."""


@pytest.mark.parametrize("error", [ExhaustedError("it is\nfull"), RuntimeError("no room:\nit is full")])
def test_exhausted_memory_is_a_memory_error(error):
    with (
        pytest.raises(MemoryError, match="it is full") as caught,
        messages.out_of_memory(ExhaustedError, signs=["room"]),
    ):
        raise error
    assert caught.value.__cause__ is error


@pytest.mark.parametrize("error", [RuntimeError("other"), KeyboardInterrupt("no room")])
def test_other_errors_pass(error):
    with pytest.raises(type(error)) as caught, messages.out_of_memory(ExhaustedError, signs=["room"]):
        raise error
    assert caught.value is error
