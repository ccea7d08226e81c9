"""`batch`: explain a whole set of images, into a table for further work.

Decoding runs ahead of the model in separate threads. Results are written part by part: a run that was killed continues
after the last complete part, and its table is the same as that of an undisturbed run.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from xcam.contract import Model
from xcam.dataset import storage
from xcam.dataset.inputs import MASK, listing
from xcam.dataset.job import Job, ModelSource, digest
from xcam.dataset.output import Output, schema
from xcam.dataset.worker import Worker
from xcam.errors import InputError, XcamWarning, keywords_checked
from xcam.evaluation.registry import get as get_measure
from xcam.images.overlay import check_drawing
from xcam.methods.registry import option_names
from xcam.targets import Score

Engine = Literal["local", "ray"]
BATCH, PART = 8, 256


@dataclass(frozen=True)
class Batch:
    """The output of a batch."""

    output: Output
    images: int
    """The number of images."""
    failed: int
    """The number of images that failed."""

    @property
    def table(self) -> str:
        """The folder with the table's parts: `pandas.read_parquet(b.table)`, `pyarrow.dataset.dataset(b.table)`."""
        return self.output.table

    def parts(self) -> Iterator[Any]:
        """Yield the parts of the table, as pyarrow tables."""
        return self.output.parts()

    def report(self) -> str:
        """Write OUT/report.html: the images that look wrong, sorted for inspection.

        Returns:
            The path of the report.

        Raises:
            InputError: The table cannot be read, or the report cannot be written.
            BackendError: Jinja2 is not installed.
        """
        from xcam.dataset.page import page

        path = storage.join(self.output.path, "report.html")
        storage.write(path, page(self.output))
        return path


@keywords_checked(option_names)
def batch(
    model: Any,
    inputs: str | os.PathLike[str] | Sequence[str],
    *,
    out: str | os.PathLike[str],
    backend: str | None = None,
    load_options: Mapping[str, Any] | None = None,
    layer: str | None = None,
    target: Any = None,
    method: str = "gradcam",
    method_options: Mapping[str, Any] | None = None,
    score: Score = "logit",
    measures: Sequence[str] = (),
    maps: bool = True,
    rivals: bool = False,
    overlays: Mapping[str, Any] | bool = False,
    batch: int = BATCH,
    part: int = PART,
    engine: Engine = "local",
    workers: int | None = None,
    gpus_per_worker: float = 0,
    address: str | None = None,
    threads: int | None = None,
) -> Batch:
    """Explain every image of a set, and write a table.

    The model and all other arguments are left unchanged. An image that fails is a row with its error.

    Args:
        model: A path or a name that `load` takes, or, for the local engine, a model returned by `load`.
        inputs: Folders, patterns, tables (.csv, .parquet: columns path, and optionally class, x0, y0, x1, y1, mask) and
            shards (.tar, in the format of WebDataset), on this machine or where fsspec reaches.
        out: The output folder: the table is out/table, overlays are in out/overlays. A run that was stopped continues;
            one with another request is refused.
        backend: As for `load`.
        load_options: Further arguments of `load`: `{"preprocess": "torch", "size": (224, 224)}`.
        layer: As for `explain`.
        target: As for `explain`, also a list; "@class" explains the class that the table or the shard gives.
        method: As for `explain`.
        method_options: Options of the method.
        score: As for `explain`.
        measures: Names of `list_measures()`: a column for each. Those that need a box or a mask are empty without one.
        maps: Store the raw maps in the table.
        rivals: Where the top class is explained, compare its map with that of the second best class.
        overlays: Write overlays; a mapping holds options of `Explanation.overlay`.
        batch: Images in one forward pass.
        part: Images in one part of the table, which is written whole or not at all.
        engine: `local`, or `ray`, whose workers each load the model.
        workers: The number of Ray workers; by default one for each machine, or for each share of a GPU.
        gpus_per_worker: GPUs of each Ray worker; a fraction is shared.
        address: The address of a Ray cluster; by default Ray is started on this machine.
        threads: Threads that decode; by default the number of cores.

    Returns:
        The output, with the numbers of all and of failed images.

    Raises:
        InputError: An argument cannot be used, the output belongs to another run, or every image fails.
        ModelError: The model cannot be read or explained.
        BackendError: A package is missing, or the backend lacks a capability.
    """
    if engine not in ("local", "ray"):
        raise InputError(f"unknown engine {engine!r}; known: local, ray")
    for name, number in (("batch", batch), ("part", part)):
        if number < 1:
            raise InputError(f"cannot use {name}={number}; give a positive integer")
    class_target = isinstance(target, str) and target == "@class"
    targets = (
        tuple(target) if isinstance(target, list | tuple) else () if target is None or class_target else (target,)
    )
    if "@class" in targets:
        raise InputError(
            "the target @class cannot be combined with others; leave them out, or explain them in a separate run"
        )
    overlay_options = dict(overlays) if isinstance(overlays, Mapping) else {} if overlays else None
    check_drawing(**overlay_options or {})
    rivals = rivals and not targets and not class_target
    for name in measures:
        if "shuffled" in get_measure(name).inputs:
            raise InputError(f"{name} is a measure of a whole set; use `xcam evaluate`")
    job = Job(
        layer=layer,
        targets=targets,
        class_target=class_target,
        method=method,
        method_options=dict(method_options or {}),
        score=score,
        measures=tuple(dict.fromkeys(measures)),
        maps=maps,
        rivals=rivals,
        overlays=overlay_options,
        batch=batch,
        part=part,
    )
    output = Output(os.fspath(out))
    names = [os.fspath(inputs)] if isinstance(inputs, str | os.PathLike) else [os.fspath(name) for name in inputs]
    images = listing(names, output.has_overlay)
    _warn_of_empty_columns(job.measures, images)
    source = _source(model, backend, load_options)
    with output.lock():
        output.begin(_request(source, job, images))
        if overlay_options is not None:
            storage.make_folder(output.overlays)
        columns = schema(job.measures, job.maps, job.rivals)
        done = output.done()
        proved = output.check(done, columns)
        numbers = [k for k in range(-(-len(images) // part)) if k not in done]
        if numbers and engine == "ray":
            from xcam.dataset import cluster

            cluster.run(
                source,
                job,
                output,
                images,
                numbers,
                workers=workers,
                gpus_per_worker=gpus_per_worker,
                address=address,
                threads=threads,
                proved=proved,
            )
        elif numbers:
            loaded = source.load() if isinstance(source, ModelSource) else source
            worker = Worker(loaded, job, output, threads or os.cpu_count() or 2, proved)
            for number, rows in worker.run([(k, k * part, images.slice(k * part, part)) for k in numbers]):
                output.write(number, rows, columns)
    total = failed = 0
    first_error = ""
    for table in output.parts(["error"]):
        total += len(table)
        failed += len(table) - table["error"].null_count
        first_error = first_error or next((text for text in table["error"].to_pylist() if text), "")
    if failed == total:
        raise InputError(
            f"none of the {total} images could be explained: {first_error}; {output.table} has a row for each"
        )
    return Batch(output, len(images), failed)


def _source(model: Any, backend: str | None, load_options: Mapping[str, Any] | None) -> Model | ModelSource:
    """Return a loaded model itself, and of a path or name the source that each process loads. Raises InputError."""
    if isinstance(model, Model):
        if backend is not None or load_options:
            raise InputError("cannot apply backend and load_options to a loaded model; give them to xcam.load")
        return model
    if not isinstance(model, str | os.PathLike):
        raise InputError(
            f"cannot load an object of type {type(model).__name__} here; give a path, a name, or xcam.load(model)"
        )
    return ModelSource(os.fspath(model), backend, dict(load_options or {}))


def _warn_of_empty_columns(measures: Sequence[str], images: Any) -> None:
    """Warn of measures that need boxes or masks, if no image has any."""
    import pyarrow.compute as pc

    empty = [name for name in measures if "masks" in get_measure(name).inputs]
    if empty and images[MASK].null_count == len(images) and not pc.max(pc.list_value_length(images["boxes"])).as_py():
        warnings.warn(
            f"no image has a box or a mask, so {' and '.join(empty)} will be empty; give a table with the columns "
            "x0, y0, x1, y1, or mask",
            XcamWarning,
            stacklevel=4,
        )


def _request(source: ModelSource | Model, job: Job, images: Any) -> dict[str, Any]:
    """Return the record that a run must have in common with the one that it continues."""
    model = {"model": source.name, "backend": source.backend} if isinstance(source, Model) else source.facts()
    return {**model, **job.facts(), "count": len(images), "inputs": digest(images)}
