"""Sessions of ONNX Runtime: quiet, and with weights that stay in their files."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnxruntime as ort
from onnx import ModelProto, TensorProto

from xcam.contract import Array
from xcam.contract.messages import one_line, out_of_memory, unknown_device
from xcam.errors import ModelError
from xcam_onnx.graph import INFERRED, copied
from xcam_onnx.weights import WeightFiles

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
    """The options of all sessions of a model."""

    weights: WeightFiles
    providers: tuple[Any, ...] = ("CPUExecutionProvider",)
    threads: int | None = None
    """intra_op_num_threads; None: the number of cores."""
    spinning: bool = True
    """Waiting threads spin: faster, unless other threads need the cores (small networks: 20 % on an idle machine)."""

    def unfused_session(self, model: ModelProto, shared: Collection[str] = ()) -> Session:
        """Create a session that computes quantised operators in floats, as the standard form states them."""
        return self.session(model, shared, fused=False)

    def session(
        self, model: ModelProto, shared: Collection[str] = (), once: bool = False, fused: bool = True
    ) -> Session:
        """Create a session.

        Args:
            model: The model, or a part of it.
            shared: Weights that other sessions read too: they are read from the mapped files, and not packed.
            once: The session is run once, so that packing its weights would only cost time.
            fused: DequantizeLinear, an operator and QuantizeLinear may become one operator on integers.

        Raises:
            ModelError: The runtime cannot open the model, or cannot start the device.
        """
        options = ort.SessionOptions()
        options.log_severity_level = 4  # errors come as exceptions
        if self.threads is not None:
            options.intra_op_num_threads = self.threads
        entries = {
            "session.model_external_initializers_file_folder_path": str(self.weights.folder),
            "session.intra_op.allow_spinning": "1" if self.spinning else "0",
            "session.force_spinning_stop": "1",  # otherwise it slows the next session down
            "session.disable_prepacking": "1" if shared or once else "0",
            "session.disable_quant_qdq": "0" if fused else "1",
        }
        for key, setting in entries.items():
            options.add_session_config_entry(key, setting)
        values = {t.name: _value(self.weights.array(t)) for t in model.graph.initializer if t.name in shared}
        for name, value in values.items():
            options.add_initializer(name, value)
        stated = [value for value in model.graph.value_info if value.doc_string != INFERRED]
        if len(stated) < len(model.graph.value_info):
            model = copied(model)
            del model.graph.value_info[:]
            model.graph.value_info.extend(stated)
        with _errors("open the model"):
            session = ort.InferenceSession(
                model.SerializeToString(),
                options,
                providers=list(self.providers),
                enable_fallback=0,  # otherwise it prints, and runs on another device than the requested one
            )
        provider = self.providers[0] if isinstance(self.providers[0], str) else self.providers[0][0]
        if provider not in session.get_providers():
            raise ModelError(
                f"ONNX Runtime {ort.__version__} cannot start {provider}: its libraries or its device are missing; "
                "install its requirements, or leave device out"
            )
        return Session(session, list(values.values()), self.weights)


class Session:
    """A graph that runs: from values by name to values by name.

    Args:
        session: The runtime's session.
        values: Weights that the session reads: the runtime does not keep them alive.
        weights: Files that the session maps; last, so that they are released after the session.
    """

    def __init__(self, session: ort.InferenceSession, values: Sequence[Any], weights: WeightFiles) -> None:
        self._session = session
        self._values = values
        self._weights = weights
        self._inputs = [value.name for value in session.get_inputs()]
        self._outputs = [value.name for value in session.get_outputs()]

    def __call__(self, feeds: Mapping[str, Any], outputs: Iterable[str] | None = None) -> dict[str, Any]:
        """Run the graph.

        Args:
            feeds: Its inputs, and possibly more, as arrays or OrtValues.
            outputs: Names of the outputs; by default all.

        Returns:
            OrtValues by name. They stay on the device until `array` copies them.
        """
        names = list(self._outputs if outputs is None else outputs)
        if not names:
            return {}
        inputs = {name: _value(feeds[name]) for name in self._inputs}
        with _errors("run the model"):
            return dict(zip(names, self._session.run_with_ort_values(names, inputs), strict=True))


def _value(source: Any) -> Any:
    """Convert an array to an OrtValue."""
    if isinstance(source, ort.OrtValue):
        return source
    source = np.ascontiguousarray(source)
    if source.dtype.name == "bfloat16":
        return ort.OrtValue.ortvalue_from_numpy_with_onnx_type(source.view(np.uint16), TensorProto.BFLOAT16)
    return ort.OrtValue.ortvalue_from_numpy(source)


def array(value: Any) -> Array:
    """Copy an OrtValue or an array to a float32 array."""
    return np.array(value.numpy() if isinstance(value, ort.OrtValue) else value, np.float32, order="C")


NODES = (
    r"while running (?P<op>\S+) node\. Name:'(?P<node>[^']*)' Status Message: (?P<cause>.*)",
    r"implementation for (?P<op>[^\s(]+)\(\d+\) node with name '(?P<node>[^']*)'(?P<cause>)",
    r"Node:? ?\((?P<node>[^)]*)\) Op \((?P<op>[^)]*)\) (?:\[\w+\] )?(?P<cause>.*)",
    r"In Node, \(\"(?P<node>[^\"]*)\", (?P<op>[^,]+), .*?Error (?P<cause>.*)",
    r"(?P<cause>Type parameter \(\w+\) of Optype \((?P<op>\w+)\) bound .*) in node \((?P<node>[^)]*)\)",
)
"""Messages of the runtime that name a node."""


def _cause(error: Exception) -> str:
    """Return the runtime's message in one line: node and operator first, without the lines of its source."""
    text = re.sub(r"\[ONNXRuntimeError\] : \d+ : [A-Z_]+ : ", "", " ".join(str(error).split()))
    match = next((match for match in (re.search(pattern, text) for pattern in NODES) if match), None)
    if match is None:
        return f"{type(error).__name__}: {one_line(Exception(text), 300)}".rstrip(". :")
    cause = match["cause"].rpartition(" was false. ")[2] or "it has no implementation for these types on this device"
    cause = re.sub(r"^/\S+:\d+ ", "", cause)
    return f"node {match['node']!r} ({match['op']}): {one_line(Exception(cause), 250)}".rstrip(". :")


@contextlib.contextmanager
def _errors(action: str) -> Iterator[None]:
    """Turn errors of the runtime into a MemoryError, or a ModelError in one line."""
    try:
        with out_of_memory(signs=("allocate memory", "bad_alloc")):
            yield
    except MemoryError:
        raise
    except Exception as error:
        cause = _cause(error)
        unsupported = any(
            sign in str(error) for sign in ("NOT_IMPLEMENTED", "not a registered", "No Op", "is under dev")
        )
        remedy = "update onnxruntime, or export the model again: with standard operators, in float32, or with an older opset"
        raise ModelError(
            f"ONNX Runtime {ort.__version__} cannot {action}: {cause}; "
            f"{remedy if unsupported else 'check that onnxruntime runs the model without xcam'}"
        ) from error


def providers(device: str | None) -> tuple[Any, ...]:
    """Return the execution providers for a device.

    Args:
        device: `cpu`, `cuda`, `cuda:1`, the name of an execution provider, or None for the CPU.

    Raises:
        InputError: The runtime does not have the device.
    """
    if device is None:
        return ("CPUExecutionProvider",)
    kind, _, number = device.partition(":")
    name = PROVIDERS.get(kind.lower(), kind)
    available = ort.get_available_providers()
    if name not in available or (number and not number.isdigit()):
        known = [key for key, provider in PROVIDERS.items() if provider in available and key != "gpu"]
        raise unknown_device(device, "this build of onnxruntime", known)
    chosen = (name, {"device_id": int(number)}) if number else name
    return (chosen,) if name == "CPUExecutionProvider" else (chosen, "CPUExecutionProvider")
