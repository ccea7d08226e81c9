"""The same job on Ray. Each worker loads the model once and writes whole parts; a crash loses one part's work at most."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import sys
from collections.abc import Sequence
from typing import Any

from xcam import errors, progress
from xcam.contract import Model
from xcam.dataset.job import Job, ModelSource
from xcam.dataset.output import Output, schema
from xcam.dataset.worker import Worker
from xcam.errors import BackendError, InputError, XcamError, first_line

TIMEOUT = 10
"""Seconds to wait for the answer of a cluster."""


class Explainer:
    """A Ray worker: it holds the model and writes parts. It returns xcam's errors, as Ray would print raised ones repeatedly.

    Args:
        source: The model to load.
        job: The request.
        output: The output.
        threads: The number of threads that decode; by default that of the cores.
        proved: The model has explained images before.
        directory: The working directory of the driver.
    """

    def __init__(
        self, source: ModelSource, job: Job, output: Output, threads: int | None, proved: bool, directory: str
    ) -> None:
        # Relative paths mean the same to a worker of a cluster that was started elsewhere on this machine.
        with contextlib.suppress(OSError):
            os.chdir(directory)
        if "" not in sys.path:
            sys.path.insert(0, "")
        self.proved = proved
        self.source, self.job, self.output, self.threads = source, job, output, threads
        self.columns = schema(job.measures, job.maps, job.rivals)
        self.worker: Worker | None = None

    def __call__(self, part: dict[str, Any]) -> dict[str, Any]:
        """Explain and write one part; return the kind and the text of an error, or empty strings."""
        import pyarrow as pa

        rows = pa.ipc.open_stream(part["rows"]).read_all()
        try:
            if self.worker is None:
                threads = self.threads or os.cpu_count() or 2
                self.worker = Worker(self.source.load(), self.job, self.output, threads, self.proved)
            for number, explained in self.worker.run([(int(part["number"]), int(part["first"]), rows)]):
                self.output.write(number, explained, self.columns)
        except XcamError as error:
            return {"kind": type(error).__name__, "text": str(error)}
        return {"kind": "", "text": ""}


def run(
    source: ModelSource | Model,
    job: Job,
    output: Output,
    listing: Any,
    numbers: Sequence[int],
    *,
    workers: int | None,
    gpus_per_worker: float,
    address: str | None,
    threads: int | None,
    proved: bool,
) -> None:
    """Explain the parts of a listing on Ray.

    Args:
        source: The model to load; a loaded model is refused.
        job: The request.
        output: The output.
        listing: The images, an Arrow table.
        numbers: The numbers of the parts to explain.
        workers: The number of workers; by default one for each machine, or for each share of a GPU.
        gpus_per_worker: GPUs of each worker, also a fraction.
        address: The address of a cluster; by default Ray is started on this machine.
        threads: Threads that decode, in each worker.
        proved: The model has explained images before.

    Raises:
        InputError: The model cannot be sent, or there are too few GPUs.
        ModelError: The model cannot be read or explained.
        BackendError: Ray is missing, cannot be reached, or a worker fails.
    """
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise BackendError(
            'engine ray needs Ray, which is not installed; run pip install "xcam-explain[ray]"'
        ) from error
    if isinstance(source, Model):
        raise InputError("cannot send a loaded model to Ray's workers; give a path, or a name that load() takes")
    started = not ray.is_initialized()
    if started:
        _start(ray, address)
    # A cluster may grow; this machine does not.
    if started and address is None and gpus_per_worker > (gpus := _gpus(ray)):
        ray.shutdown()
        raise InputError(
            f"{gpus_per_worker:g} GPUs for each worker, but Ray has {gpus:g} on this machine; give fewer, or an --address"
        )
    ray.data.DataContext.get_current().enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    count = min(workers or _workers(ray, gpus_per_worker), len(numbers))
    # On this machine alone, Ray would limit each worker to one thread.
    variables = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // count))} if address is None else {}
    parts = [
        {"number": k, "first": k * job.part, "rows": _serialized(listing.slice(k * job.part, job.part))}
        for k in numbers
    ]
    explainer: Any = Explainer
    # A block for each part: a worker that dies is replaced, and its part repeated.
    results = ray.data.from_items(parts, override_num_blocks=len(parts)).map(
        explainer,
        fn_constructor_args=(source, job, output, threads, proved, os.getcwd()),
        compute=ray.data.ActorPoolStrategy(size=count),
        num_gpus=gpus_per_worker or None,
        num_cpus=None if gpus_per_worker else 1,
        runtime_env={"env_vars": variables},
    )
    try:
        for result in progress.counted(results.iter_rows(), "parts", len(numbers)):
            if result["kind"]:
                raise getattr(errors, result["kind"], BackendError)(result["text"])
    except ray.exceptions.RayError as error:
        raise BackendError(f"a worker of Ray failed: {first_line(error)}; see its logs") from error
    finally:
        if started:
            ray.shutdown()


def _start(ray: Any, address: str | None) -> None:
    """Start Ray, or connect to a cluster. Raises BackendError."""
    host, _, port = (address or "").rpartition("://")[2].rpartition(":")
    if host and port.isdigit():
        try:
            socket.create_connection((host, int(port)), TIMEOUT).close()  # Ray itself would try for minutes
        except (OSError, OverflowError) as error:
            raise BackendError(
                f"cannot reach a cluster at {address}: {first_line(error)}; check the address, or leave it out to use "
                "this machine"
            ) from error
    # Ray prints to standard error; the variable is read once, at the start.
    level = os.environ.get("RAY_BACKEND_LOG_LEVEL")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    stderr = os.dup(2)
    os.dup2(null := os.open(os.devnull, os.O_WRONLY), 2)
    try:
        options = {"include_dashboard": False} if address is None else {}
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, **options)
    except Exception as error:
        raise BackendError(f"cannot start or reach Ray: {first_line(error)}; check the address") from error
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
        os.close(null)
        if level is None:
            del os.environ["RAY_BACKEND_LOG_LEVEL"]


def _serialized(rows: Any) -> bytes:
    import pyarrow as pa

    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, rows.schema) as writer:
        writer.write_table(rows)
    return bytes(sink.getvalue())


def _gpus(ray: Any) -> float:
    return float(ray.cluster_resources().get("GPU", 0))


def _workers(ray: Any, gpus: float) -> int:
    """Return the number of workers: one for each share of a GPU, or one for each machine."""
    if gpus:
        return max(1, int(_gpus(ray) / gpus))
    return max(1, sum(node["Alive"] for node in ray.nodes()))
