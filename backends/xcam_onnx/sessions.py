"""Sessions of ONNX Runtime: made once, quiet, and with weights that stay in their file."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnxruntime as ort
from onnx import ModelProto

from xcam.errors import InputError, ModelError
from xcam_onnx.weights import Pages

PROVIDERS = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "gpu": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
    "rocm": "ROCMExecutionProvider",
    "coreml": "CoreMLExecutionProvider",
    "dml": "DmlExecutionProvider",
    "openvino": "OpenVINOExecutionProvider",
}


@dataclass(frozen=True)
class Runtime:
    """Where and how a model runs."""

    pages: Pages
    """Where its weights are."""
    providers: tuple[Any, ...] = ("CPUExecutionProvider",)
    threads: int | None = None
    """intra_op_num_threads; None: as many as there are cores."""
    spinning: bool = True
    """Threads that wait do so awake: faster, unless others want the cores (small networks: 20 % on an idle machine)."""

    def session(self, model: ModelProto, shared: Collection[str] = (), once: bool = False) -> Session:
        """`shared`: weights that other sessions read too. They are read where they are, and not packed anew; nor is
        anything for a session that is made to be run `once`.
        """
        options = ort.SessionOptions()
        options.log_severity_level = 4  # errors come as exceptions
        if self.threads is not None:
            options.intra_op_num_threads = self.threads
        entries = {
            "session.model_external_initializers_file_folder_path": str(self.pages.folder),
            "session.intra_op.allow_spinning": "1" if self.spinning else "0",
            "session.force_spinning_stop": "1",  # or it would slow down the session that is next
            "session.disable_prepacking": "1" if shared or once else "0",
        }
        for key, setting in entries.items():
            options.add_session_config_entry(key, setting)
        kept = []
        for tensor in model.graph.initializer:
            if tensor.name in shared:
                kept.append(value(self.pages.array(tensor)))
                options.add_initializer(tensor.name, kept[-1])
        with running("open the model"):
            made = ort.InferenceSession(
                model.SerializeToString(),
                options,
                providers=list(self.providers),
                enable_fallback=0,  # it prints, and runs elsewhere than asked
            )
        asked = self.providers[0] if isinstance(self.providers[0], str) else self.providers[0][0]
        if asked not in made.get_providers():
            raise ModelError(
                f"ONNX Runtime {ort.__version__} cannot start {asked} (its libraries or its device are missing); install "
                "what it needs, or leave device out"
            )
        return Session(made, kept)


class Session:
    """What a graph gives, by name, on what it takes."""

    def __init__(self, session: ort.InferenceSession, kept: Sequence[Any] = ()) -> None:
        self._session = session
        self._kept = kept  # the runtime does not hold on to weights that it was lent
        self.takes = {value.name for value in session.get_inputs()}
        self.gives = [value.name for value in session.get_outputs()]

    def __call__(self, feeds: Mapping[str, Any], gives: Sequence[str] | None = None) -> dict[str, Any]:
        """Values of the runtime's own: they stay where they are until `array` copies them."""
        names = list(self.gives if gives is None else gives)
        if not names:
            return {}
        given = {name: value(feeds[name]) for name in self.takes}
        with running("run the model"):
            return dict(zip(names, self._session.run_with_ort_values(names, given), strict=True))


def value(given: Any) -> Any:
    """An array as a value of the runtime."""
    return given if isinstance(given, ort.OrtValue) else ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(given))


def array(given: Any) -> Any:
    """float32 NumPy, in memory of its own."""
    found = given.numpy() if isinstance(given, ort.OrtValue) else given
    return np.array(found, np.float32, order="C")


@contextlib.contextmanager
def running(what: str) -> Iterator[None]:
    """Memory that runs out is a MemoryError; what the runtime cannot do is said in one line."""
    try:
        yield
    except Exception as error:
        said = " ".join(re.sub(r"\[ONNXRuntimeError\] : \d+ : [A-Z_]+ : ", "", str(error)).split())
        text = f"{type(error).__name__}: {said[:300]}".rstrip(". :")
        if "allocate memory" in str(error).lower() or "bad_alloc" in str(error):
            raise MemoryError(text) from error
        lacks = any(sign in str(error) for sign in ("NOT_IMPLEMENTED", "not a registered", "No Op", "is under dev"))
        remedy = (
            "update onnxruntime, or export the model anew, in float32 or with an older opset"
            if lacks
            else "check the model"
        )
        raise ModelError(f"ONNX Runtime {ort.__version__} cannot {what}: {text}; {remedy}") from error


def providers(device: str | None) -> tuple[Any, ...]:
    """The execution providers for a device: `cpu`, `cuda`, `cuda:1`, or a provider by its own name. Raises InputError."""
    if device is None:
        return ("CPUExecutionProvider",)
    word, _, number = device.partition(":")
    name = PROVIDERS.get(word.lower(), word)
    there = ort.get_available_providers()
    if name not in there or (number and not number.isdigit()):
        known = [key for key, provider in PROVIDERS.items() if provider in there and key != "gpu"]
        raise InputError(
            f"no device {device!r} here; this onnxruntime has: {', '.join(known)} "
            "(others come with builds of their own, such as onnxruntime-gpu)"
        )
    chosen = (name, {"device_id": int(number)}) if number else name
    return (chosen,) if name == "CPUExecutionProvider" else (chosen, "CPUExecutionProvider")
