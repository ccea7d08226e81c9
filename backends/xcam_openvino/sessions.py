"""Compiled models, and how they are run by several threads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
import openvino

from xcam.contract import Array
from xcam.contract.messages import unknown_device
from xcam.errors import InputError

MAX_THREADS = 1024
FULL_PRECISION = ("CPU", "GPU")
"""Devices for which float32 is requested by a hint; other devices are asked for accuracy."""
META = ("AUTO", "MULTI", "HETERO", "BATCH")
"""Devices that choose among others."""


@cache
def core() -> openvino.Core:
    """Return the runtime, which is shared."""
    return openvino.Core()


@dataclass(frozen=True)
class Runtime:
    """How models are compiled.

    Attributes:
        device: A name of OpenVINO's own: `CPU`, `GPU`, `AUTO`.
        threads: The number of threads of the CPU; None: OpenVINO's choice.
    """

    device: str = "CPU"
    threads: int | None = None

    @property
    def properties(self) -> dict[str, Any]:
        """The properties of compiled models. Without them, some processors compute in bfloat16."""
        full = self.device.partition(".")[0] in FULL_PRECISION
        result: dict[str, Any] = {"INFERENCE_PRECISION_HINT": "f32"} if full else {"EXECUTION_MODE_HINT": "ACCURACY"}
        return result if self.threads is None else {**result, "INFERENCE_NUM_THREADS": self.threads}

    def session(self, model: openvino.Model) -> Session:
        """Compile a model."""
        return Session(core().compile_model(model, self.device, self.properties))


def runtime(device: str | None, threads: int | None) -> Runtime:
    """Return the runtime for a device and a number of threads. Raises InputError."""
    if threads is not None and not (isinstance(threads, int) and 1 <= threads <= MAX_THREADS):
        raise InputError(f"cannot use threads={threads!r}: give an integer from 1 to {MAX_THREADS}, or leave it out")
    if device is None:
        return Runtime(threads=threads)
    known = core().available_devices
    name, _, rest = device.upper().partition(":")
    chosen = rest.split(",") if name in META and rest else [] if name in META else [name]
    for one in chosen:
        if one.removeprefix("-") not in known and one.partition(".")[0] not in known:
            raise unknown_device(device, "OpenVINO", [*known, *META[:1]])
    return Runtime(device.upper(), threads)


@dataclass(eq=False)
class Session:
    """A compiled model; each call has a request of its own, so that threads do not share results."""

    compiled: openvino.CompiledModel
    _idle: list[Any] = field(default_factory=list)

    def __call__(self, feeds: Sequence[Array]) -> list[Array]:
        """Return the outputs for arrays in the order of the inputs: new arrays; floats as float32."""
        try:
            request = self._idle.pop()
        except IndexError:
            request = self.compiled.create_infer_request()
        inputs: Mapping[int, Array] = dict(enumerate(feeds))
        results = request.infer(inputs, share_inputs=False, share_outputs=False)
        values = [results[k] for k in range(len(self.compiled.outputs))]
        self._idle.append(request)
        return [np.asarray(v, np.float32) if v.dtype.kind == "f" else np.asarray(v) for v in values]
