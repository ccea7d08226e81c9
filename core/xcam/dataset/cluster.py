"""The same job on Ray: each worker opens the model once and writes whole parts, so that one that dies costs its part's time."""

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
from xcam.dataset.job import Job, Opening
from xcam.dataset.output import Output, schema
from xcam.dataset.worker import Worker
from xcam.errors import BackendError, InputError, XcamError, first_line

PATIENCE = 10
"""Seconds until a cluster has answered."""


class Explainer:
    """What a worker holds: the model, and where parts go. An error of ours is an answer: Ray would tell it many times."""

    def __init__(
        self, opening: Opening, job: Job, output: Output, threads: int | None, proved: bool, here: str
    ) -> None:
        with contextlib.suppress(OSError):
            os.chdir(
                here
            )  # a path that is told on one machine means the same to a worker of a cluster that ran before
        if "" not in sys.path:
            sys.path.insert(0, "")
        self.proved = proved
        self.opening, self.job, self.output, self.threads = opening, job, output, threads
        self.columns = schema(job.measures, job.maps, job.rivals)
        self.worker: Worker | None = None

    def __call__(self, part: dict[str, Any]) -> dict[str, Any]:
        import pyarrow as pa

        rows = pa.ipc.open_stream(part["rows"]).read_all()
        try:
            if self.worker is None:
                threads = self.threads or os.cpu_count() or 2
                self.worker = Worker(self.opening.model(), self.job, self.output, threads, self.proved)
            for number, made in self.worker.run([(int(part["number"]), int(part["first"]), rows)]):
                self.output.write(number, made, self.columns)
        except XcamError as error:
            return {"kind": type(error).__name__, "text": str(error)}
        return {"kind": "", "text": ""}


def run(
    opening: Opening | Model,
    job: Job,
    output: Output,
    listing: Any,
    todo: Sequence[int],
    workers: int | None,
    gpus_per_worker: float,
    address: str | None,
    threads: int | None,
    proved: bool,
) -> None:
    """Raises InputError, ModelError or BackendError."""
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise BackendError('engine ray needs Ray, not installed here: pip install "xcam-explain[ray]"') from error
    if isinstance(opening, Model):
        raise InputError(
            "a model that is open cannot travel to Ray's workers; give a path, or a name that load takes"
        )
    ours = not ray.is_initialized()
    if ours:
        _start(ray, address)
    if (
        ours and address is None and gpus_per_worker > (gpus := _gpus(ray))
    ):  # a cluster may grow; this machine will not
        ray.shutdown()
        raise InputError(
            f"a worker is to have {gpus_per_worker:g} GPUs, and Ray finds {gpus:g} here; give less, or an --address"
        )
    ray.data.DataContext.get_current().enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    count = min(workers or _workers(ray, gpus_per_worker), len(todo))
    alone = address is None  # then Ray would give each worker one thread
    threads_each = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // count))} if alone else {}
    parts = [
        {"number": k, "first": k * job.part, "rows": _packed(listing.slice(k * job.part, job.part))} for k in todo
    ]
    work: Any = Explainer
    # A block for each part; a worker that dies is replaced, and its part done again.
    answers = ray.data.from_items(parts, override_num_blocks=len(parts)).map(
        work,
        fn_constructor_args=(opening, job, output, threads, proved, os.getcwd()),
        compute=ray.data.ActorPoolStrategy(size=count),
        num_gpus=gpus_per_worker or None,
        num_cpus=None if gpus_per_worker else 1,
        runtime_env={"env_vars": threads_each},
    )
    try:
        for answer in progress.counted(answers.iter_rows(), "parts", len(todo)):
            if answer["kind"]:
                raise getattr(errors, answer["kind"], BackendError)(answer["text"])
    except ray.exceptions.RayError as error:
        raise BackendError(f"a worker of Ray failed: {first_line(error)}; look into its logs") from error
    finally:
        if ours:
            ray.shutdown()


def _start(ray: Any, address: str | None) -> None:
    """Raises BackendError."""
    host, _, port = (address or "").rpartition("://")[2].rpartition(":")
    if host and port.isdigit():
        try:
            socket.create_connection((host, int(port)), PATIENCE).close()  # Ray itself would try for minutes
        except (OSError, OverflowError) as error:
            raise BackendError(
                f"no cluster answers at {address} ({first_line(error)}); check the address, or leave it out for this machine"
            ) from error
    level = os.environ.get("RAY_BACKEND_LOG_LEVEL")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # it talks on standard error; read once, at the start,
    kept = os.dup(2)  # and told there
    os.dup2(nowhere := os.open(os.devnull, os.O_WRONLY), 2)
    try:
        own = {"include_dashboard": False} if address is None else {}
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, **own)
    except Exception as error:
        raise BackendError(f"Ray cannot be started or reached: {first_line(error)}; check the address") from error
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)
        if level is None:
            del os.environ["RAY_BACKEND_LOG_LEVEL"]


def _packed(rows: Any) -> bytes:
    import pyarrow as pa

    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, rows.schema) as writer:
        writer.write_table(rows)
    return bytes(sink.getvalue())


def _gpus(ray: Any) -> float:
    return float(ray.cluster_resources().get("GPU", 0))


def _workers(ray: Any, gpus: float) -> int:
    """One for each share of a GPU, or one for each machine."""
    if gpus:
        return max(1, int(_gpus(ray) / gpus))
    return max(1, sum(node["Alive"] for node in ray.nodes()))
